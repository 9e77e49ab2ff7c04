"""Search with values alone over Flower's messages: an app offers a function, and has our zeroth-order clients.

The app's side is `searcher`: one call. The server's side is `Search`: it writes the orders of a strategy that sends
more than a model (FedES, DeComFL, FedKSeed, Just One Byte, FZooS, SCAFFOLD on black boxes) as messages of the type
`query.search`, one a client, and reads what comes back, which is held to what the client says that it answers. Draws
are named by the run's seed, the client's number and the order's turn, so that a run is that of `fedsim.run` on the
same functions.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor

from fedsim.configuration.bases import hold_base
from fedsim.configuration.tables import hold_pair
from fedsim.core import plugins
from fedsim.core.errors import InputError
from fedsim.core.streams import Streams
from fedsim.engine.client import Client
from fedsim.engine.executor import Executor
from fedsim.engine.job import JobResult
from fedsim.exchange.forms import Form
from fedsim.exchange.messages import Order
from fedsim.flower.app_side import filled, flat, partition_of, round_of, rows, sent_record
from fedsim.flower.names import ARRAYS, CANDIDATES, CONFIG, EVALUATED, EXAMPLES, LOSS, METRICS, ROUND, VALUES
from fedsim.flower.node import carry_out, read_order, written
from fedsim.flower.records import CLIENT_METRICS, CLIENTS, LATE, ORDER, TURN, decoded, record
from fedsim.flower.replies import Asking, RefusedError
from fedsim.problems.black_box import BlackBox, OnError
from fedsim.problems.evaluators import Stacked
from fedsim.problems.own_functions import Kind, black_box
from fedsim.running.checks import check_asking
from fedsim.server.strategy import Strategy

MEMORY = "fedsim.search"
"""Where in a node's state its client's memory lies."""
POPULATION, SEED, DIMENSION, DTYPE = "population", "seed", "dimension", "dtype"
"""In an order: how many clients there are, the run's seed, and what a model is: d numbers of a type."""
DTYPES = {"float32": torch.float32, "float64": torch.float64}

Given = Client | Mapping[str, Any] | str
"""A client: a plug-in, its table or its kind."""
Function = Callable[[Any, Context], Any]
"""function(points, context): the values, lower being better, at points [Q, d] or, of kind "scalar", at one [d]."""


class Search:
    """The server's side: a strategy's orders as messages, and what the apps of `searcher` answer to them.

    client: what these have, with the same options: it says what a reply is made of. params: the model, [d], of single
    or double precision. seed: the run's. InputError: the client does not go with the strategy, or with black boxes.
    """

    def __init__(self, strategy: Strategy, client: Given, params: Tensor, seed: int) -> None:
        made = searching_client(strategy, client)
        nobody = BlackBox(Stacked(_unasked, 1), dimension=len(params), bounds=None, dtype=params.dtype)
        dtype = str(params.dtype).removeprefix("torch.")
        self._about: dict[str, int | str] = {SEED: seed, DIMENSION: len(params), DTYPE: dtype}
        self.asked = Asking(Executor(nobody, made, Streams(seed)))

    def questions(self, orders: Order, population: int) -> list[RecordDict]:
        """The messages of an order, one for each of its clients, int64 [C]. population: how many clients there are."""
        payload = record(orders.payload)
        config = ConfigRecord({ROUND: orders.round + 1, **orders.config})
        questions = []
        for client in orders.clients.tolist():
            order = ConfigRecord({"action": orders.action, TURN: orders.turn, LATE: orders.late, **self._about})
            order[CLIENTS], order[POPULATION] = [client], population
            questions.append(RecordDict({ARRAYS: payload, CONFIG: config, ORDER: order}))
        return questions

    def answer(self, content: RecordDict, orders: Order) -> JobResult:
        """What one of an order's clients answers, C = 1; what is not finite is marked. RefusedError: it is no answer.

        Whose answer it is its node knows, and a grid: what it says of that only has to be one of them.
        """
        said = content.array_records.get(CLIENT_METRICS, ArrayRecord()).get(CLIENTS)
        try:
            whose = None if said is None else decoded(said, Form("int64", (1,)))
        except ValueError as error:
            raise RefusedError(f"{CLIENTS}: {error}") from error
        if whose is None or not bool(torch.isin(whose, orders.clients)):
            raise RefusedError("it does not say which of the order's clients has answered")
        own = replace(self.asked(orders), clients=whose, examples=torch.ones(1, dtype=torch.int64))
        return own.read(content, torch.device("cpu"))


def searching_client(strategy: Strategy, client: Given) -> Client:
    """The client that a strategy's orders are for. InputError: it does not go with it, or needs more than values."""
    made = _made(client)
    hold_pair(strategy, made)
    return made


def searcher(
    app: ClientApp,
    client: Given | Callable[[Context], Given],
    function: Function,
    *,
    kind: Kind = "vectorised",
    bounds: tuple[float, float] | None = None,
    on_error: OnError = "stop",
    seed: int = 0,
) -> None:
    """Have a ClientApp answer as one of our zeroth-order clients would that asks for values of a function.

    It registers `query.search` for strategies that send orders of their own; `train`, where a client needs the model
    alone (FedZO); `query`, which answers values at candidates; and `evaluate`, which answers the value at the model.
    The app registers none of these itself. What the client remembers lies in the node's state.

    client: as in an experiment, a plug-in, its table or its kind; or what says that of a node's context, where the
    run's configuration decides. function(points, context): the values [Q], lower being better, at points [Q, d], the
    model's float arrays one after the other; which partition's, and by which settings, its context says. kind: points
    are tensors ("vectorised"), arrays ("numpy"), or one array [d] whose value is a number ("scalar"). bounds: the box
    to which points belong, the same for all coordinates; None: R^d. on_error: when a function raises, the reply is an
    error ("stop"), or the value is NaN, and the search goes on with the others ("nan"). seed: of what is drawn for
    `train`, whose messages carry none; there the node's `partition-id` names the draws, too.

    InputError: the client needs more than values, or the function does not take points and a context.
    """
    if kind not in ("vectorised", "numpy", "scalar"):
        raise InputError("kind", kind, "name one of: vectorised, numpy, scalar")
    try:
        inspect.signature(function).bind(None, None)
    except TypeError as error:
        name = getattr(function, "__name__", type(function).__name__)
        raise InputError("function", name, "has to take two arguments, the points and the node's context") from error
    chosen: Any = client
    by_context = callable(chosen) and not isinstance(chosen, type | Client)
    own = _Searcher(chosen if by_context else _made(chosen), function, kind, bounds, on_error, seed)
    own.black_box(1, 1, torch.float64, _nowhere())  # refuses options before anything runs
    app.query("search")(own.search)
    app.train()(own.train)
    app.query()(own.query)
    app.evaluate()(own.evaluate)


@dataclass(frozen=True)
class _Searcher:
    """What an app of `searcher` has, and its answers. Nodes differ in their context alone."""

    client: Client | Callable[[Context], Given]
    function: Function
    kind: Kind
    bounds: tuple[float, float] | None
    on_error: OnError
    seed: int

    def search(self, message: Message, context: Context) -> Message:
        """Carry out an order of our own server."""
        orders, about = read_order(message.content), message.content.config_records[ORDER]
        dtype = DTYPES[str(about[DTYPE])]
        problem = self.black_box(int(str(about[POPULATION])), int(str(about[DIMENSION])), dtype, context)
        work = self._work(problem, orders, int(str(about[SEED])), context)
        return Message(written(work, orders.clients, problem.sizes), reply_to=message)

    def train(self, message: Message, context: Context) -> Message:
        """Search from the model that was sent, and answer the one that was found."""
        lacks = self._client(context).requires - {"params"}
        if lacks:
            remedy = "give as_flower_strategy the client, client=, so that orders are sent as they are"
            raise InputError("train", "the model alone", f"lacks {', '.join(sorted(lacks))}; {remedy}")
        name, sent = sent_record(message, ARRAYS)
        x, (partition, partitions) = flat(sent), partition_of(context)
        problem = self.black_box(partitions, len(x), x.dtype, context)
        clients, number = torch.tensor([partition]), round_of(message)
        work = self._work(problem, Order("train", clients, {"params": x}, round=number), self.seed, context)
        metrics = MetricRecord({EXAMPLES: 1, LOSS: float(work.metrics["loss"][0])})
        found = filled(sent, x + work.payload["delta"][0])
        return Message(RecordDict({name: found, METRICS: metrics}), reply_to=message)

    def evaluate(self, message: Message, context: Context) -> Message:
        """Answer the value at the model."""
        x = flat(sent_record(message, ARRAYS)[1])
        metrics = MetricRecord({EXAMPLES: 1, EVALUATED: self._values(x.unsqueeze(0), context)[0]})
        return Message(RecordDict({METRICS: metrics}), reply_to=message)

    def query(self, message: Message, context: Context) -> Message:
        """Answer values at candidates, as they come."""
        values = self._values(rows(sent_record(message, CANDIDATES)[1]), context)
        return Message(RecordDict({METRICS: MetricRecord({EXAMPLES: 1, VALUES: values})}), reply_to=message)

    def black_box(self, clients: int, dimension: int, dtype: torch.dtype, context: Context) -> BlackBox:
        """The problem of a node: whichever client it is, it has the one function."""

        def own(x: Any) -> Any:
            return self.function(x, context)

        return black_box(
            [own] * clients,
            dimension=dimension,
            kind=self.kind,
            bounds=self.bounds,
            on_error=self.on_error,
            device="cpu",
            dtype=dtype,
        )

    def _client(self, context: Context) -> Client:
        return self.client if isinstance(self.client, Client) else _made(self.client(context))

    def _work(self, problem: BlackBox, orders: Order, seed: int, context: Context) -> JobResult:
        executor = Executor(problem, self._client(context), Streams(seed), participants=1)
        return carry_out(executor, executor.store.snapshot(), orders, context, MEMORY)

    def _values(self, x: Tensor, context: Context) -> list[float]:
        """Values at points [Q, d]."""
        problem = self.black_box(1, x.shape[1], x.dtype, context)
        values = problem.query(torch.zeros(1, dtype=torch.int64), x.unsqueeze(0), Streams(self.seed), 0, 0)[0]
        found: list[float] = values.tolist()
        return found


def _made(client: Given) -> Client:
    """A client that asks for values only. InputError: it is none."""
    made: Client = plugins.make("clients", client, "client")
    hold_base("client", "clients", made)
    check_asking(made)
    return made


def _unasked(clients: Tensor, x: Tensor) -> Tensor:
    raise AssertionError(f"the server has no function to ask of {len(clients)} clients at {list(x.shape)}")


def _nowhere() -> Context:
    """A context of no node, before there is one."""
    return Context(run_id=0, node_id=0, node_config={}, state=RecordDict(), run_config={})
