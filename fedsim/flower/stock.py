"""Flower's strategies over fedsim's clients: `[strategy] kind = "flwr:FedAdam"`, or your own, `"flwr:module:Class"`.

The strategy is asked what it sends by its `configure_train` and told what came by its `aggregate_train`; who takes
part, on which machines and how long that takes, and how the model is judged, are the experiment's, and clients are
executed as a stack. What it sends is decoded once a round, and an array of a reply is made when the strategy reads it.

Such a strategy keeps its state on itself, so that a run of it cannot be resumed, and may draw from global generators:
they are seeded by name before each call, and put back after it.
"""

from __future__ import annotations

import functools
import gc
import inspect
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, cast

import flwr.serverapp.strategy as flower
import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp.mod import adaptiveclipping_mod, fixedclipping_mod
from flwr.serverapp import Grid
from torch import Tensor

from fedsim.core import plugins
from fedsim.core.errors import FedsimError, InputError, one_line
from fedsim.core.generators import seeded_globals
from fedsim.core.logs import errors_alone
from fedsim.core.near import meant
from fedsim.core.options import options
from fedsim.core.plugins import HasPlugins
from fedsim.core.signatures import arguments, plain
from fedsim.core.streams import Streams
from fedsim.exchange.messages import Order, Replies, Scalar
from fedsim.exchange.windows import All, Window
from fedsim.flower.internals import acting_as
from fedsim.flower.names import ARRAYS, CONFIG, EXAMPLES, METRICS, ROUND
from fedsim.nets.stack import Layout
from fedsim.problems.base import Problem
from fedsim.server.strategy import Metrics, ProblemView, ServerState, Strategy

PREFIX = "flwr:"
SERVER_NODE, FIRST = 1, 2
"""The node in whose name a strategy sends, and that of client 0; the other clients follow."""
FAILED = 1
"""The code of an error reply: the client's update was not finite."""
SELECTING = {"fraction_train": 1.0, "min_train_nodes": 1, "min_available_nodes": 1}
"""What says whom Flower would choose: here all whom the experiment's selector has chosen."""
ELSEWHERE = frozenset(
    {*SELECTING, "fraction_evaluate", "min_evaluate_nodes", "arrayrecord_key", "configrecord_key", "accountant"}
)
"""Arguments that are no options here: of selection, of evaluation, and names of records."""
TREES = ("FedXgbBagging", "FedXgbCyclic")
"""Strategies about boosted trees, which fedsim's clients do not train."""
CLIPPED: Mapping[type[flower.Strategy], Callable[..., Message]] = {
    flower.DifferentialPrivacyClientSideFixedClipping: fixedclipping_mod,
    flower.DifferentialPrivacyClientSideAdaptiveClipping: adaptiveclipping_mod,
}
"""Strategies whose clients carry a mod of Flower's, and that mod."""


@dataclass
class _Live:
    """A strategy at work. sent: the orders' messages of the round, by client. arrays: the model as it was last sent."""

    server: flower.Strategy
    layout: Layout
    seed: int = 0
    arrays: ArrayRecord = field(default_factory=ArrayRecord)
    sent: dict[int, Message] = field(default_factory=dict)


@dataclass(frozen=True)
class _State(ServerState):
    """The state of a run. live: made for this run; the strategy in it changes as it goes."""

    live: _Live | None = None

    @property
    def at_work(self) -> _Live:
        assert self.live is not None
        return self.live


class Stock(HasPlugins, Strategy):
    """Flower's own code, over fedsim's clients. Uplink and downlink d floats a client."""

    made_of: ClassVar[type[flower.Strategy]]
    aggregates: ClassVar[bool] = False
    up: ClassVar[frozenset[str]] = frozenset({"delta"})
    unresumable: ClassVar[str | None] = "a strategy of Flower's keeps its state on itself"

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            self._built()
        except ValueError as error:
            raise InputError("kind", f"{PREFIX}{self.made_of.__name__}", one_line(error)) from error

    @functools.cached_property
    def down(self) -> frozenset[str]:
        """Names in the payload and the configuration of its orders, as it sends them to one client."""
        if self.made_of in CLIPPED:  # what it adds is for the mod
            return cast("Stock", self.made["strategy"]).down
        trial = ArrayRecord({"x": Array(np.zeros(1, np.float32))})
        with _calling(0):
            messages = list(self._built().configure_train(1, trial, ConfigRecord(), _Nodes([1])))
        return frozenset({"params", *_config(messages)})

    def init(self, problem: ProblemView) -> ServerState:
        """Begin with a strategy of this run's own."""
        whole, params = cast("Problem", problem), problem.initial()
        held = whole.tensors(params)
        layout = Layout.of(held) if whole.model is None else whole.model.layout
        if held.keys() != set(layout.names):
            remedy = "takes models whose state is their parameters, each of them once; take another model"
            raise InputError("kind", f"{PREFIX}{self.made_of.__name__}", remedy)
        live = _Live(self._built(), layout, arrays=_record(layout, params))
        return _State(params, live=live)

    def seeded(self, state: ServerState, streams: Streams) -> ServerState:
        """The state with a seed for the global generators."""
        assert isinstance(state, _State)
        state.at_work.seed = streams.derive("flower")
        return state

    def ask(self, state: ServerState, chosen: Tensor) -> tuple[Order, Window]:
        """Send what `configure_train` sends, to those of the chosen clients to whom it does."""
        assert isinstance(state, _State)
        live, round_ = state.at_work, state.round
        if round_ == 0:  # whatever was asked before the first round left no trace
            live.server = self._built()
        messages: list[Message] = []
        if len(chosen):
            nodes = _Nodes([client + FIRST for client in chosen.tolist()])
            with _calling(_seed(live, "configure", round_)):
                messages = list(live.server.configure_train(round_ + 1, live.arrays, ConfigRecord(), nodes))
        live.sent = {message.metadata.dst_node_id - FIRST: message for message in messages}
        if len(live.sent) < len(messages):
            raise FedsimError(f"{self.made_of.__name__} sends a client two messages in a round; one is possible here")
        payload = {"params": self._params(live, messages, state.params)}
        clients = torch.tensor(sorted(live.sent), dtype=torch.int64)
        settings = _config(messages)
        if self.made_of in CLIPPED:
            settings = {name: value for name, value in settings.items() if name in self.down}
        return Order("train", clients, payload, settings, round_), All()

    def tell(self, state: ServerState, replies: Replies) -> tuple[ServerState, Metrics, bool]:
        """Hand the replies to `aggregate_train`; where it makes no model of them, the model stays."""
        assert isinstance(state, _State)
        live, params = state.at_work, state.params
        messages = self._messages(live, replies)
        arrays: ArrayRecord | None = None
        metrics: MetricRecord | None = None
        if messages:
            with _calling(_seed(live, "aggregate", state.round)):
                arrays, metrics = live.server.aggregate_train(state.round + 1, messages)
        if arrays is not None:
            live.arrays, params = arrays, _flat(live.layout, arrays, params)
        live.sent = {}
        found = {name: float(value) for name, value in (metrics or {}).items() if not isinstance(value, list)}
        return replace(state, params=params, round=state.round + 1), found, True

    def _built(self) -> flower.Strategy:
        """A new strategy of these options."""
        given = {option.name: getattr(self, option.name) for option in fields(self)}  # type: ignore[arg-type]
        given |= {name: inner._built() for name, inner in self.made.items()}
        given |= {name: value for name, value in SELECTING.items() if name in arguments(self.made_of)}
        with errors_alone("flwr"):
            return self.made_of(**given)

    def _params(self, live: _Live, messages: Sequence[Message], params: Tensor) -> Tensor:
        """The model that messages carry, [d], decoded once; as it was, if that is what they carry."""
        sent = {id(message.content): message.content for message in messages}
        records = [record for content in sent.values() for record in content.array_records.values()]
        if len(records) != len(sent):
            raise FedsimError(f"{self.made_of.__name__} sends several records of arrays; fedsim's clients take a model")
        first = next(iter(records), live.arrays)
        if any(record is not first and record != first for record in records):
            name = self.made_of.__name__
            raise FedsimError(f"{name} sends clients different models; run its app with fedsim flower run")
        return params if first is live.arrays else _flat(live.layout, first, params)

    def _messages(self, live: _Live, replies: Replies) -> list[Message]:
        """The replies as Flower's messages, in the order of clients; whose update was not finite, as an error."""
        if len(replies):
            trained = (replies.payload["delta"] + replies.orders[0].payload["params"]).cpu().numpy()
            told = {"train_loss" if name == "loss" else name: rows.tolist() for name, rows in replies.metrics.items()}
        found: dict[int, Message] = {}
        for row, (client, examples) in enumerate(zip(replies.clients.tolist(), replies.examples.tolist(), strict=True)):
            metrics = MetricRecord({EXAMPLES: examples, **{name: values[row] for name, values in told.items()}})
            arrays = _lazy(live.layout, trained[row])
            found[client] = Message(RecordDict({ARRAYS: arrays, METRICS: metrics}), reply_to=live.sent[client])
        for client in replies.failed.tolist():
            found[client] = Message(Error(FAILED, "the update is not finite"), reply_to=live.sent[client])
        mod = CLIPPED.get(self.made_of)
        if mod is not None:
            with errors_alone("flwr"):
                found = {client: _through(mod, live.sent[client], reply) for client, reply in found.items()}
        return [found[client] for client in sorted(found)]


class _Nodes(Grid):
    """What a strategy sees of the federation when it decides whom to send what: the nodes."""

    def __init__(self, nodes: list[int]) -> None:
        self._nodes = nodes

    @property
    def run(self) -> Any:
        raise FedsimError("over fedsim's clients a strategy of Flower's has no run; run its app with fedsim flower run")

    def set_run(self, run: Any) -> None:  # noqa: ARG002
        self.run  # noqa: B018

    def create_message(self, *given: Any, **named: Any) -> Message:  # noqa: ARG002
        return cast("Message", self.run)

    def get_node_ids(self) -> Iterable[int]:
        return list(self._nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:  # noqa: ARG002
        return cast("list[str]", self.run)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:  # noqa: ARG002
        return cast("list[Message]", self.run)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:  # noqa: ARG002
        return cast("list[Message]", self.run)


class LazyArray(Array):
    """An array that is encoded when its bytes are asked for, and never where only its numbers are.

    values: not written to afterwards; `numpy` gives a copy of them, as of any array.
    """

    def __init__(self, values: np.ndarray) -> None:
        self.dtype, self.shape, self.stype = str(values.dtype), tuple(values.shape), "numpy.ndarray"
        self.__dict__["values"] = values

    @functools.cached_property
    def data(self) -> bytes:  # type: ignore[override]
        """The array as bytes, as NumPy saves it."""
        buffer = io.BytesIO()
        np.save(buffer, self.__dict__["values"], allow_pickle=False)
        return buffer.getvalue()

    def numpy(self) -> np.ndarray:
        """Give a copy of the numbers."""
        return np.array(self.__dict__["values"])


def stock_class(group: str, kind: str, option: str) -> type[Stock]:
    """The resolver of the prefix `flwr`: the class of options of `flwr:<name>` or `flwr:<module or file>:<class>`.

    A name is one of flwr.serverapp.strategy. Options are those arguments of its constructor that a file can give.
    InputError: there is no such strategy.
    """
    if group != "strategies":
        raise InputError(option, kind, f"of Flower's only strategies are {PREFIX}...; name one of the {group}")
    name = kind.removeprefix(PREFIX)
    if ":" in name:
        found: Any = plugins.find("strategies", name, option)
    else:
        found = getattr(flower, name, None) if name in flower.__all__ else None
    if not (isinstance(found, type) and issubclass(found, flower.Strategy)) or inspect.isabstract(found):
        known = [one for one in flower.__all__ if one not in ("Result", "Strategy", *TREES)]
        named = f"name one of: {', '.join(known)}, or write module:Class or ./file.py:Class{meant(name, known)}"
        raise InputError(option, kind, f"no strategy of Flower's; {named}")
    if issubclass(found, tuple(getattr(flower, tree) for tree in TREES)):
        raise InputError(option, kind, "fedsim's clients train no trees; run its app with fedsim flower run")
    return _options_of(found, option, kind)


@functools.cache
def _options_of(made: type[flower.Strategy], option: str, kind: str) -> type[Stock]:
    types: dict[str, Any] = {}
    values: dict[str, Any] = {}
    parts: dict[str, str] = {}
    for name, (annotation, default) in arguments(made).items():
        if name in ELSEWHERE:
            continue
        if annotation is flower.Strategy:
            types[name], parts[name] = Any, "strategies"
        elif plain(annotation):
            types[name] = annotation
        elif default is inspect.Parameter.empty:
            raise InputError(option, kind, f"its argument {name} cannot be given in a file")
        else:
            continue
        if default is not inspect.Parameter.empty:
            values[name] = default
    rule = (inspect.getdoc(made) or made.__name__).partition("\n\n")[0]
    text = f"{' '.join(rule.split())}\n\n{inspect.cleandoc(Stock.__doc__ or '')}"
    body = {"__annotations__": types, "__doc__": text, "__module__": __name__, "made_of": made, "parts": parts}
    body[plugins.KIND] = kind
    return options(type(made.__name__, (Stock,), body | values))


def _seed(live: _Live, call: str, round_: int) -> int:
    return Streams(live.seed).derive(call, turn=round_)


@contextmanager
def _calling(seed: int) -> Iterator[None]:
    # Some strategies collect garbage after each reply, 0.2 s where much is in memory; what is there now is left out.
    gc.freeze()
    try:
        with errors_alone("flwr"), seeded_globals(seed), acting_as(SERVER_NODE):
            yield
    finally:
        gc.unfreeze()


def _config(messages: Sequence[Message]) -> dict[str, Scalar]:
    """The settings that messages carry, but for the round, which orders have anyway."""
    found: dict[str, Scalar] = {}
    for content in {id(message.content): message.content for message in messages}.values():
        for record in content.config_records.values():
            for name, value in record.items():
                if name == ROUND:
                    continue
                if isinstance(value, list | bytes):
                    raise FedsimError(f"{CONFIG} {name} is no plain number or text, which fedsim's clients take")
                if found.setdefault(name, value) != value:
                    raise FedsimError(f"{CONFIG} {name} differs among clients; run the app with fedsim flower run")
    return found


def _record(layout: Layout, params: Tensor) -> ArrayRecord:
    """A vector [d] as named arrays."""
    return _lazy(layout, params.detach().cpu().numpy().copy())


def _lazy(layout: Layout, values: np.ndarray) -> ArrayRecord:
    record, start = ArrayRecord(), 0
    for name, shape, size in zip(layout.names, layout.shapes, layout.sizes, strict=True):
        record[name] = LazyArray(values[start : start + size].reshape(shape))
        start += size
    return record


def _flat(layout: Layout, arrays: Mapping[str, Array], like: Tensor) -> Tensor:
    """Named arrays as a vector [d], as `like` is."""
    if set(arrays) != set(layout.names):
        raise FedsimError(f"the strategy made arrays {', '.join(arrays)} of {', '.join(layout.names)}")
    parts = [torch.from_numpy(np.asarray(arrays[name].numpy())).reshape(-1) for name in layout.names]
    return torch.cat(parts).to(like.device, like.dtype)


def _through(mod: Callable[..., Message], sent: Message, reply: Message) -> Message:
    context = Context(0, reply.metadata.src_node_id, {}, RecordDict(), {})
    return mod(sent, context, lambda *_: reply)
