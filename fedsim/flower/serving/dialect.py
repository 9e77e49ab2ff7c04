"""What crosses between a strategy of ours and a client app that does not know us, by Flower's own conventions.

An order becomes a message that such apps understand, `train`, `evaluate` or `query`, and a reply the rows that the
strategy asked for. A node is not trusted: what it sends is held to the names, types and shapes that were asked for.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, MessageType, MetricRecord, RecordDict
from numpy.typing import NDArray
from torch import Tensor

from fedsim.core.errors import InputError
from fedsim.exchange.actions import REPORT_UTILITY, SCORE, SCORE_EXAMPLES, UTILITY
from fedsim.exchange.messages import Order
from fedsim.flower.names import (
    ALPHA,
    CANDIDATES,
    CONTROL,
    CONTROL_DELTA,
    MU,
    NU,
    PRECISION,
    ROUND,
    SEARCH,
    START_LOSS,
    VALUES,
)
from fedsim.flower.records import record
from fedsim.flower.replies import RefusedError, arrays_of, metrics_of
from fedsim.flower.searching import Search
from fedsim.flower.serving.options import AppOptions
from fedsim.flower.serving.state_dict import Kept, StateDict
from fedsim.zeroth_order.failures import outranked, ranked_last

JUDGE = "judge"
"""The action of the global model's evaluation by nodes, of which the metrics are kept as they come."""
DIFFERS = {ALPHA: "fedsim.flower.local.feddyn"}
"""Settings without which clients minimise something else than the strategy believes, and what follows them."""
HELP = {
    CONTROL_DELTA: "fedsim.flower.local.scaffold",
    NU: "the mod fedsim.flower.mods.steps",
    PRECISION: "a record `precision`, as IVON learns it",
    START_LOSS: "a metric `start-loss`, the loss of the model that it was sent",
    VALUES: "an answer to query messages",
}
"""What in a client app makes a part of a reply that plain apps do not have."""
FOLLOWED = {MU: "fedsim.flower.local.proximal, or such a term of its own"}
"""Settings by Flower's own names, which clients follow or not, as with Flower's strategies."""
TRAINED = frozenset({"delta", CONTROL_DELTA, PRECISION, NU, "last-loss", START_LOSS, UTILITY})
"""What a reply to `train` can have."""
APART = (NU, START_LOSS)
"""Those of them for which the loss of `train` does not do."""
BESIDE = (CONTROL_DELTA, PRECISION)
"""Those of them that are records beside the model's, with arrays like its floats."""
OBSERVED = ("cosine", "difficulty")
"""Further metrics that strategies report; see `fedsim.server.strategy.observed`."""
Rows = Mapping[str, NDArray[np.floating]]
"""Room for replies, [k, ...] by name."""
SPOKEN = TRAINED | {VALUES}
"""What replies of apps can have."""
SENT = frozenset({"params", CONTROL, CANDIDATES})
"""What orders to apps can have."""
PEERS = {
    "coefficients": "sends steps along directions that its clients draw",
    "models": "sends clients each other's models",
    "other-models": "sends clients several models",
    "chunks": "has clients go over each other's examples",
    "visits": "hands its model from client to client",
}
"""In an order: what says that there is more than a model of the server's, and what is done with it."""


@dataclass
class Answer:
    """What a reply says beside its vectors.

    examples: what it weighs; None: not said. whole: its whole numbers. queries: evaluations that it asked for, outside
    the published count, and without a value.
    """

    examples: float | None
    metrics: dict[str, float] = field(default_factory=dict)
    whole: Kept = field(default_factory=dict)
    queries: tuple[int, int, int] = (0, 0, 0)


class Question(ABC):
    """What an order asks app clients. kind: of the messages. nbytes: of arrays, that each client is sent."""

    kind: str
    nbytes: int = 0

    @abstractmethod
    def contents(self, clients: Sequence[int]) -> list[RecordDict]:
        """What each of these clients is sent."""

    @abstractmethod
    def rows(self, count: int) -> dict[str, Tensor]:
        """Room for so many replies, [count, ...] by name."""

    @abstractmethod
    def read(self, content: RecordDict, rows: Rows, place: int) -> Answer:
        """Write a reply's vectors into their place in the rows. RefusedError: it is no reply to this, and why."""

    def finish(self, rows: Mapping[str, Tensor]) -> None:  # noqa: B027
        """Make of the rows, when all replies are read, what the strategy asked for."""


@dataclass
class Dialect:
    """Makes questions of orders.

    strategy: its kind. up: what it reads from replies. kept: the whole numbers of the model, as nodes are sent them.
    search: how our own clients are spoken to, where the app has such; None: it has its own.
    """

    strategy: str
    model: StateDict
    keys: AppOptions
    train_config: ConfigRecord
    evaluate_config: ConfigRecord
    up: frozenset[str]
    kept: Kept
    search: Search | None = None
    _encoded: tuple[Tensor, ArrayRecord] | None = field(default=None, init=False)

    def question(self, orders: Order, population: int) -> Question:
        """What an order asks of app clients. InputError: what none of them understands."""
        if orders.action in (SCORE, JUDGE):
            return Evaluation(self, orders)
        if self.search is not None:
            return Searching(self.search, orders, population)
        unknown = sorted(orders.payload.keys() - SENT)
        if unknown:
            raise unspoken(self.strategy, unknown)
        if CANDIDATES in orders.payload:
            return Values(self, orders)
        return Training(self, orders)

    def record(self, params: Tensor) -> ArrayRecord:
        """A model [d] as nodes and the app's server know it.

        What was last asked for is at hand: a round sends the model to be trained and evaluated, and its server has it.
        """
        if self._encoded is None or self._encoded[0] is not params:
            self._encoded = params, self.model.model_floats(params)
        return self.model.record(self._encoded[1], self.kept)

    def config(self, given: ConfigRecord, orders: Order) -> ConfigRecord:
        """The settings of a message: the app's own, the round, and the strategy's."""
        own = {name: value for name, value in orders.config.items() if name not in (REPORT_UTILITY, SCORE_EXAMPLES)}
        return ConfigRecord({**given, ROUND: orders.round + 1, **own})


class Training(Question):
    """Train the model that is sent: of the reply the change counts, against what the node was sent."""

    kind = MessageType.TRAIN

    def __init__(self, dialect: Dialect, orders: Order) -> None:
        self._dialect, self._orders, model = dialect, orders, dialect.model
        self._sent = model.arrived(orders.payload["params"].cpu())
        records = {dialect.keys.arrayrecord_key: dialect.record(orders.payload["params"])}
        records |= {name: model.floats(vector) for name, vector in orders.payload.items() if name != "params"}
        self.nbytes = sum(map(size_of, records.values()))
        settings = dialect.config(dialect.train_config, orders)
        self._content = RecordDict({**records, dialect.keys.configrecord_key: settings})
        self._up = (dialect.up & TRAINED) | {"delta"} | ({UTILITY} if orders.config.get(REPORT_UTILITY) else set())

    def contents(self, clients: Sequence[int]) -> list[RecordDict]:
        """See `Question`: the same for all."""
        return [self._content] * len(clients)

    def rows(self, count: int) -> dict[str, Tensor]:
        """See `Question`: the models that come, in the place of the changes."""
        like, lengths = self._sent, {**dict.fromkeys(BESIDE, (len(self._sent),)), NU: ()}
        others = {name: like.new_zeros((count, *lengths.get(name, (1,)))) for name in sorted(self._up - {"delta"})}
        return {"delta": like.new_empty((count, len(like))), **others}

    def finish(self, rows: Mapping[str, Tensor]) -> None:
        """See `Question`."""
        rows["delta"].sub_(self._sent)

    def read(self, content: RecordDict, rows: Rows, place: int) -> Answer:
        """See `Question`."""
        keys, model, held = self._dialect.keys, self._dialect.model, arrays_of(content)
        metrics = metrics_of(content)
        examples = weight_of(metrics, keys.weighted_by_key)
        for name in DIFFERS.keys() & self._orders.config.keys():
            if metrics.get(name) != self._orders.config[name]:
                raise RefusedError(f"its metrics do not say {name} as it was sent: the app needs {DIFFERS[name]}")
        for name in [name for name in BESIDE if name in rows]:
            beside = held.pop(name, None)
            if beside is None:
                raise lacking(name)
            model.read(beside, rows[name][place])
        if PRECISION in rows and (rows[PRECISION][place] < 0.0).any():
            raise RefusedError(f"its {PRECISION} has numbers below 0")
        if len(held) != 1:
            raise RefusedError(
                f"it has {len(held)} records of arrays ({', '.join(held) or 'none'}), not the model alone"
            )
        whole = model.read(next(iter(held.values())), rows["delta"][place], self._sent.numpy())
        loss = number(metrics, keys.loss_key)
        for name in rows.keys() - {"delta", *BESIDE}:
            value = number(metrics, name, None if name in APART else loss)
            if value is None:
                raise lacking(name, "" if name in APART else f"; {keys.loss_key} would do, or what loss_key names")
            rows[name][place] = abs(value) if name == UTILITY else value
        told = {} if loss is None else {"loss": loss}
        for name in OBSERVED:
            value = number(metrics, name) if name in metrics else None
            told |= {} if value is None else {name: value}
        return Answer(examples, told, whole)


class Evaluation(Question):
    """Evaluate the model that is sent; of the reply the loss counts, where a selector asks for it."""

    kind = MessageType.EVALUATE

    def __init__(self, dialect: Dialect, orders: Order) -> None:
        self._key = dialect.keys.evaluate_loss_key if orders.action == SCORE else None
        self._weight, self._like = dialect.keys.weighted_by_key, orders.payload["params"]
        arrays = dialect.record(self._like)
        self.nbytes = size_of(arrays)
        settings = dialect.config(dialect.evaluate_config, orders)
        self._content = RecordDict({dialect.keys.arrayrecord_key: arrays, dialect.keys.configrecord_key: settings})

    def contents(self, clients: Sequence[int]) -> list[RecordDict]:
        """See `Question`: the same for all."""
        return [self._content] * len(clients)

    def rows(self, count: int) -> dict[str, Tensor]:
        """See `Question`."""
        return {"loss": self._like.new_zeros((count, 1), device="cpu")}

    def read(self, content: RecordDict, rows: Rows, place: int) -> Answer:
        """See `Question`."""
        metrics = metrics_of(content)
        if self._key is not None:
            loss = number(metrics, self._key)
            if loss is None:
                raise lacking(self._key, "; evaluate_loss_key says what the app calls it")
            rows["loss"][place] = loss
        return Answer(weight_of(metrics, self._weight))


class Values(Question):
    """Values of the node's function at some points [n, d], which its `query` answers."""

    kind = MessageType.QUERY

    def __init__(self, dialect: Dialect, orders: Order) -> None:
        points = orders.payload[CANDIDATES]
        arrays = dialect.model.floats(points)
        self._weight, self._like = dialect.keys.weighted_by_key, points
        # As our own clients tell values that failed: to servers that search, and to those whose clients do.
        self._told = outranked if "delta" in dialect.up else ranked_last
        self.nbytes = size_of(arrays)
        settings = dialect.config(ConfigRecord(), orders)
        self._content = RecordDict({CANDIDATES: arrays, dialect.keys.configrecord_key: settings})

    def contents(self, clients: Sequence[int]) -> list[RecordDict]:
        """See `Question`: the same for all."""
        return [self._content] * len(clients)

    def rows(self, count: int) -> dict[str, Tensor]:
        """See `Question`."""
        return {VALUES: self._like.new_zeros((count, len(self._like)), device="cpu")}

    def read(self, content: RecordDict, rows: Rows, place: int) -> Answer:
        """See `Question`."""
        metrics = metrics_of(content)
        values, wanted = metrics.get(VALUES), len(self._like)
        if values is None:
            raise lacking(VALUES)
        if not isinstance(values, list) or len(values) != wanted:
            raise RefusedError(f"its values are not a list of {wanted} numbers")
        found = [_real(value, VALUES) for value in values]
        told = [value for value in found if math.isfinite(value)]
        if not told:
            raise RefusedError("none of its values is finite")
        rows[VALUES][place] = found
        queries = (wanted, 0, wanted - len(told))
        return Answer(number(metrics, self._weight), {"loss": math.fsum(told) / len(told)}, queries=queries)

    def finish(self, rows: Mapping[str, Tensor]) -> None:
        """See `Question`."""
        rows[VALUES].copy_(self._told(rows[VALUES]))


class Searching(Question):
    """What our own zeroth-order clients are ordered to do, which the app has by `searcher`."""

    kind = SEARCH

    def __init__(self, search: Search, orders: Order, population: int) -> None:
        self._search, self._orders, self._population = search, orders, population
        self.nbytes = size_of(record(orders.payload))

    def contents(self, clients: Sequence[int]) -> list[RecordDict]:  # noqa: ARG002
        """See `Question`: an order names its client."""
        return self._search.questions(self._orders, self._population)

    def rows(self, count: int) -> dict[str, Tensor]:
        """See `Question`."""
        nothing = self._search.asked(self._orders).nothing.payload
        return {name: one.new_zeros((count, *one.shape[1:])) for name, one in nothing.items()}

    def read(self, content: RecordDict, rows: Rows, place: int) -> Answer:
        """See `Question`."""
        found = self._search.answer(content, self._orders)
        asked, extra, failed = found.queries[0].tolist()
        if asked and failed == asked:
            raise RefusedError(f"none of its {asked} evaluations has a finite value")
        for name, row in found.payload.items():
            rows[name][place] = row[0].numpy()
        metrics = {name: float(value[0]) for name, value in found.metrics.items()}
        return Answer(None, metrics, queries=(asked, extra, failed))


def unspoken(strategy: str, names: Collection[str]) -> InputError:
    """What to raise where a strategy exchanges what client apps do not know."""
    if sent := [PEERS[name] for name in names if name in PEERS]:
        remedy = f"it {sent[0]}, so its clients are ours: run it with fedsim.run"
    else:
        remedy = (
            f"it exchanges {', '.join(sorted(names))}, of which client apps of others know nothing; where the app "
            "searches by fedsim.flower.local.searcher, give client=, the client that it has there"
        )
    return InputError("strategy", strategy, remedy)


def number(metrics: Mapping[str, Any], name: str, otherwise: float | None = None) -> float | None:
    """A metric that is one number; what it is otherwise, where it is not there. RefusedError: it is no such number."""
    value = metrics.get(name)
    if isinstance(value, list):
        raise RefusedError(f"{name} is a list, not a number")
    return otherwise if value is None else _real(value, name)


def _real(value: float, name: str) -> float:
    try:
        return float(value)
    except OverflowError as error:
        raise RefusedError(f"{name} is no number of 64 bits") from error


def weight_of(metrics: MetricRecord, name: str) -> float:
    """What a reply weighs. RefusedError: it does not say, or not with a number above 0."""
    value = number(metrics, name)
    if value is None:
        raise RefusedError(f"its metrics have no {name}; weighted_by_key says what the app calls it")
    if not 0.0 < value < math.inf:
        raise RefusedError(f"its {name} is {value:g}")
    return value


def lacking(name: str, further: str = "") -> RefusedError:
    """What to raise where a reply lacks something, with what would make it."""
    need = f": the app needs {HELP[name]}" if name in HELP else ""
    return RefusedError(f"{name} is missing{need}{further}")


def size_of(arrays: ArrayRecord) -> int:
    """Bytes of the numbers of some arrays, as they are encoded."""
    return sum(len(array.data) for array in arrays.values())
