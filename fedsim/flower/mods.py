"""Mods for other people's client apps: what is done to a reply before it leaves its node.

A mod sees messages, not the steps of training. So it can change what is sent, or say more of it; what changes the steps
themselves, as SCAFFOLD does, is in `fedsim.flower.local`. What a mod remembers lies in the node's `Context.state`.

    app = ClientApp(mods=[transformed(Clip(max_norm=1.0), Noise(std=0.01)), steps("local-epochs", 32)])
    identify(app)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable, Mod
from torch import Tensor

from fedsim.client.normaliser import normaliser
from fedsim.configuration.bases import hold_base
from fedsim.core import plugins
from fedsim.core.errors import InputError
from fedsim.core.near import name_one
from fedsim.core.philox import MASK
from fedsim.core.streams import Streams
from fedsim.exchange.forms import Form
from fedsim.exchange.messages import Size
from fedsim.exchange.transforms import Chain, Sender, Transform
from fedsim.flower.app_side import filled, flat, partition_of, round_of, sent_record
from fedsim.flower.names import (
    ARRAYS,
    CONFIG,
    CONTROL_DELTA,
    EXAMPLES,
    IDENTIFY,
    METRICS,
    NU,
    PARTITION,
    PARTITIONS,
    PRECISION,
    REPORT_NU,
    ROUND,
)
from fedsim.flower.records import record, tensors
from fedsim.flower.replies import RefusedError, metrics_of
from fedsim.flower.serving.state_dict import StateDict
from fedsim.problems.evaluators import is_number, is_whole

MEMORY = "fedsim.transforms"
"""How the names begin of what is remembered for transforms in a node's state; the type of the message follows."""


def transformed(*transforms: Transform | Mapping[str, Any] | str, seed: int = 0, arrayrecord_key: str = ARRAYS) -> Mod:
    """A mod that has transforms go over what `train` functions reply, one after the other, as in an experiment.

    transforms: objects, tables or kinds. One that names no vectors goes over the change of the model, y less what was
    sent; `vectors` may name it, as `delta`, and other arrays of the reply, such as `control-delta`. Arrays keep names,
    types and shapes; whole numbers are left alone. seed: draws are named by it, by the round, which messages have to
    say, and by the node: its partition where it has one. It is no secret of the node's: who knows it can take noise off
    again. arrayrecord_key: the model's record in messages. All transforms stand in one mod.

    InputError: a transform cannot be used; and from the mod, where the reply has not what they go over.
    """
    if not transforms:
        raise InputError("transforms", "(nothing)", "give one at least")
    made = [plugins.make("transforms", one, f"transforms.{number}") for number, one in enumerate(transforms)]
    for number, one in enumerate(made):
        hold_base(f"transforms.{number}", "transforms", one)
    return _Transformed(Chain(tuple(made)), seed, arrayrecord_key)


@dataclass(frozen=True)
class _Transformed:
    """See `transformed`."""

    chain: Chain
    seed: int
    key: str

    def __call__(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        """Have the app answer, and transform what it says."""
        reply = call_next(message, context)
        if reply.has_error() or _category(message) != MessageType.TRAIN:
            return reply
        held = reply.content.array_records
        model = self._model(held)
        before = {name: array for name, array in sent_record(message, self.key)[1].items() if name in held[model]}
        _hold_alike(before, held[model])
        x, y = flat(ArrayRecord(before)), flat(held[model])
        vectors = {self.chain.usual: y - x}
        vectors |= {name: flat(arrays) for name, arrays in held.items() if name != model}
        self.chain.check(vectors, vectors)
        chain = self.chain.fitted(StateDict.of(held[model], option=model).layout.shapes, Size.of(y))
        arrived = self._sent(chain, vectors, message, context)
        for name, vector in vectors.items():
            if not torch.equal(arrived[name], vector):  # else no bit changes: y is not the sum of x and y - x
                own, there = (model, x + arrived[name]) if name == self.chain.usual else (name, arrived[name])
                reply.content[own] = filled(held[own], there)
        return reply

    def _model(self, held: Mapping[str, ArrayRecord]) -> str:
        """The name of the model's record in a reply: the only one that is nothing else."""
        others = {CONTROL_DELTA, PRECISION, *(name for one in self.chain.transforms for name in one.vectors or ())}
        found = [name for name in held if name not in others]
        if len(found) != 1:
            raise InputError("transforms", ", ".join(held) or "(nothing)", "a reply has the model in one record alone")
        return found[0]

    def _sent(
        self, chain: Chain, vectors: Mapping[str, Tensor], message: Message, context: Context
    ) -> dict[str, Tensor]:
        """What arrives of vectors, [d] each by name."""
        streams, number = self._streams(message, context), round_of(message)
        memory = f"{MEMORY}/{message.metadata.message_type}"
        model = vectors[chain.usual]
        shapes = chain.state(Size.of(model))
        held = context.state.array_records.get(memory)
        state = {name: torch.zeros((1, *shape), dtype=model.dtype) for name, shape in shapes.items()}
        if held is not None:
            state = tensors(held)
        sender = Sender(torch.tensor([_number(context)]), streams, number, state)
        crossed = chain.apply({name: vector.unsqueeze(0) for name, vector in vectors.items()}, sender)
        if shapes:
            context.state[memory] = record(crossed.state)
        return {name: rows[0] for name, rows in crossed.payload.items()}

    def _streams(self, message: Message, context: Context) -> Streams:
        """What a message's draws come from: others, where the node has had the round before."""
        number, name = round_of(message), message.metadata.message_id
        memory = f"{MEMORY}/{message.metadata.message_type}/{ROUND}"
        held = context.state.config_records.get(memory, ConfigRecord())
        if name and held.get("message") == name:
            raise InputError("mods", "transformed, twice", "give all transforms to one, or they draw the same numbers")
        again = int(str(held["again"])) + 1 if held.get(ROUND) == number else 0
        context.state[memory] = ConfigRecord({ROUND: number, "again": again, "message": name})
        streams = Streams(self.seed)
        return Streams(streams.derive("again", turn=number, step=again)) if again else streams


def steps(
    epochs: int | str, batch_size: int | str, *, momentum: float | str = 0.0, weighted_by_key: str = EXAMPLES
) -> Mod:
    """A mod that tells FedNova how much work a reply of a `train` function is, where the server asks for it.

    The metric `nu` of tau = epochs * ceil(n / batch_size) steps of SGD on n examples; momentum: rho, without Nesterov's
    form. n: the metric `weighted_by_key` of the reply. Numbers may be given by name, of an entry in the message's
    settings or else in the run's configuration. An app that takes other steps, or stops early, reports `nu` itself,
    which is then left as it is.

    InputError: an argument is out of range; and from the mod, where an entry or the number of examples is missing.
    """
    made = _Steps(epochs, batch_size, momentum, weighted_by_key)
    for option, value in (("epochs", epochs), ("batch_size", batch_size), ("momentum", momentum)):
        if not isinstance(value, str):
            _hold_number(option, value, option)
    return made


@dataclass(frozen=True)
class _Steps:
    """See `steps`."""

    epochs: int | str
    batch_size: int | str
    momentum: float | str
    examples: str

    def __call__(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        """Have the app answer, and say how much work that was."""
        settings = dict[str, Any](context.run_config)
        for held in message.content.config_records.values():
            settings |= held
        reply = call_next(message, context)
        if reply.has_error() or _category(message) != MessageType.TRAIN or not settings.get(REPORT_NU):
            return reply
        try:
            metrics = metrics_of(reply.content)
        except RefusedError as error:
            raise InputError(
                METRICS, ", ".join(reply.content) or "(nothing)", f"report them in one record: {error}"
            ) from error
        if NU in metrics:
            return reply
        examples = metrics.get(self.examples)
        if not isinstance(examples, int | float) or not 0 < examples < math.inf:
            raise InputError(self.examples, examples, "report among the metrics how many examples there are")
        given = {"epochs": self.epochs, "batch_size": self.batch_size, "momentum": self.momentum}
        epochs, batch, momentum = (_setting(option, value, settings) for option, value in given.items())
        taken = torch.tensor([int(epochs) * math.ceil(examples / int(batch))])
        metrics[NU] = float(normaliser(taken, momentum=float(momentum)))
        return reply


def identify(app: ClientApp) -> None:
    """Have a ClientApp answer which partition a node has, so that the server numbers nodes by their partitions.

    Node ids differ from run to run; partitions do not. A mod cannot answer this: an app's mods see what its functions
    are asked, and nothing else.
    """
    app.query(IDENTIFY.partition(".")[2])(_identified)


def _identified(message: Message, context: Context) -> Message:
    partition, partitions = partition_of(context)
    said = ConfigRecord({PARTITION: partition, PARTITIONS: partitions})
    return Message(RecordDict({CONFIG: said}), reply_to=message)


def _category(message: Message) -> str:
    return message.metadata.message_type.partition(".")[0]


def _number(context: Context) -> int:
    """The number that names a node's draws."""
    return partition_of(context)[0] if PARTITION in context.node_config else context.node_id & MASK


def _hold_alike(sent: Mapping[str, Array], found: Mapping[str, Array]) -> None:
    """Refuse arrays that are not of the model that was sent; a part of it is."""
    for name, array in found.items():
        was = Form(sent[name].dtype, tuple(sent[name].shape)) if name in sent else "not in what was sent"
        now = Form(array.dtype, tuple(array.shape))
        if now != was:
            raise InputError(name, str(now), f"a change is between arrays alike, and this was {was}")


def _setting(option: str, given: float | str, settings: Mapping[str, Any]) -> float:
    """A number, or the setting that is meant by its name."""
    if not isinstance(given, str):
        return given
    if given not in settings:
        raise InputError(option, given, f"no setting is called so; {name_one(given, sorted(settings))}")
    found: float = settings[given]
    _hold_number(option, found, given)
    return found


def _hold_number(option: str, value: object, called: str) -> None:
    """Refuse a value of an option, under the name by which it was given."""
    if option == "momentum" and not (is_number(value) and 0.0 <= float(str(value)) < 1.0):
        raise InputError(called, value, "a momentum is 0 or more, and below 1")
    if option != "momentum" and not is_whole(value, 1):
        raise InputError(called, value, "take a whole number, one at least")
