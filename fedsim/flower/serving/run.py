"""The loop over somebody else's app: its model, its nodes, and what Flower's `Result` has of each round."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from torch import Tensor

from fedsim.core.streams import SERVER
from fedsim.exchange.messages import Order, Replies
from fedsim.exchange.windows import All, Window
from fedsim.flower.names import METRICS, VALUES
from fedsim.flower.replies import arrays_of, metrics_of
from fedsim.flower.serving.dialect import JUDGE, weight_of
from fedsim.flower.serving.engine import AppEngine, Heard
from fedsim.flower.serving.problem import AppProblem
from fedsim.running import promises
from fedsim.running.setup import Setup
from fedsim.running.simulation import Server, Simulation, UnderWay

Combine = Callable[[list[RecordDict], str], MetricRecord]
"""Makes one record of the metrics in some replies, of which each weighs what it has under a name."""


def combined(contents: list[RecordDict], weight: str) -> MetricRecord:
    """The means of the metrics in some replies, each weighing what it has under a name, as Flower's strategies do.

    A metric that not all have is averaged over those that do, and of values that are not alike, numbers or lists of the
    same length, over those that are like most.
    """
    held = [(weight_of(metrics, weight), metrics) for metrics in map(metrics_of, contents)]
    found: dict[str, list[tuple[float, Any]]] = {}
    for share, metrics in held:
        for name, value in metrics.items():
            if name != weight:
                found.setdefault(name, []).append((share, value))
    made = MetricRecord()
    for name, given in found.items():
        kinds = [len(value) if isinstance(value, list) else None for _, value in given]
        most = max(kinds, key=kinds.count)
        shares, values = zip(*(pair for pair, kind in zip(given, kinds, strict=True) if kind == most), strict=True)
        factors = np.array(shares) / np.sum(shares)
        made[name] = (np.array(values, np.float64).T * factors).T.sum(axis=0).tolist()
    return made


class Served(Simulation):
    """A run over an `AppEngine`, whose population may change between two rounds.

    integers: whose whole numbers the model has after a round: of the reply with most examples, or of the latest.
    combine, weight: how the metrics of a round's replies become one record. metrics: of rounds, by kind and number.
    keeps: clients work on from one round to the next.
    """

    def __init__(
        self,
        setup: Setup,
        engine: AppEngine,
        problem: AppProblem,
        *,
        integers: Literal["largest", "latest"],
        combine: Combine,
        weight: str,
    ) -> None:
        self.engine, self._problem, self._census = engine, problem, problem.census
        self._integers, self._combine, self._weight = integers, combine, weight
        self.metrics: dict[str, dict[int, dict[str, Any]]] = {"train": {}, "evaluate": {}, "server": {}}
        super().__init__(setup)
        everybody = torch.arange(problem.num_clients)
        self.keeps = setup.strategy.ask(self.state, everybody)[0].late == "keep"
        self._remedy = "lower the learning rate of the clients"

    @property
    def record(self) -> ArrayRecord:
        """The global model as the app knows it."""
        return self.engine.dialect.record(self.state.params)

    def take(self, number: int, arrays: ArrayRecord, config: ConfigRecord) -> None:
        """Go on with round `number`, as somebody who sends the messages says, from his model and with his settings.

        A round before of which nothing was handed in is forgotten.
        """
        dialect, state = self.engine.dialect, self.state
        self.engine.forget()
        params = dialect.model.vector(arrays).to(state.params.device)
        dialect.train_config = ConfigRecord(dict(config))
        if torch.equal(dialect.model.arrived(state.params), params):
            params = state.params
        self._server = self._server._replace(state=replace(state, params=params, round=number - 1))

    def snapshot(self, *, copy: bool = True) -> dict[str, Any]:
        """See `Simulation`."""
        return super().snapshot(copy=copy) | {"metrics": self.metrics}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """See `Simulation`."""
        super().restore(saved)
        self.metrics, self._census = saved["metrics"], -1

    def complete(self, current: UnderWay) -> None:
        """See `Simulation`; what replies were beside their vectors is taken in, too."""
        super().complete(current)
        heard = sorted(self._heard(), key=lambda one: one.client)
        if not heard:
            return
        latest = self._integers == "latest"
        whose = max(heard, key=lambda one: (one.due, one.client) if latest else (one.examples, -one.client))
        if not current.skipped:  # else the model is the one before, and so are its whole numbers
            self.engine.dialect.kept = {**self.engine.dialect.kept, **whose.whole}
        told: dict[str, Any] = dict(self._combine([weighed(one, self._weight) for one in heard], self._weight))
        told |= {name: value for name, value in current.metrics.items() if name not in told}
        told |= {"replies": len(heard), "failed": current.failed}
        told["staleness"] = sum(one.staleness for one in heard) / len(heard)
        self.metrics["train"][self.round] = told

    @property
    def vain(self) -> tuple[str, str] | None:
        """See `Simulation`."""
        found = super().vain
        return (found[0], self.blaming(found[1])) if found else None

    def blaming(self, reason: str) -> str:
        """The reason why a run came to nothing, and of what could not be used what was wrong first."""
        failures = self.engine.trace.failures
        return f"{reason}; the first: {failures[0]}" if failures else reason

    @property
    def over(self) -> bool:
        """Whether no round follows."""
        return self._ended()

    def judge_by_nodes(self, fraction: float, least: int, combine: Combine) -> None:
        """Have a share of the free nodes, and at least so many if there are, evaluate the global model."""
        clients = self._evaluators(fraction, least)
        if not len(clients):
            return
        engine, number = self.engine, self.round
        engine.submit(Order(JUDGE, clients, {"params": self.state.params}, round=number - 1, counts=False))
        engine.collect(All(), number)
        heard = sorted(engine.heard.pop(JUDGE, []), key=lambda one: one.client)
        if heard:
            self.metrics["evaluate"][number] = dict(
                combine([weighed(one, self._weight) for one in heard], self._weight)
            )

    def evaluation_of(
        self, arrays: ArrayRecord, config: ConfigRecord, number: int, fraction: float, least: int
    ) -> list[Message]:
        """What somebody else is to send the nodes that evaluate his model after a round."""
        dialect, engine = self.engine.dialect, self.engine
        dialect.evaluate_config = ConfigRecord(dict(config))
        params = dialect.model.vector(arrays)
        orders = Order(JUDGE, self._evaluators(fraction, least), {"params": params}, round=number - 1, counts=False)
        return engine.messages(orders, dialect.question(orders, self._problem.num_clients))

    def _evaluators(self, fraction: float, least: int) -> Tensor:
        """Who evaluates after this round: int64 [k], ascending."""
        free = self.engine.free()
        wanted = min(max(int(fraction * free.count), least), free.count)
        there = torch.from_numpy(free.mask).nonzero().flatten()
        owner = torch.tensor([SERVER])
        drawn = self.parts.streams.permutation("federated-evaluation", owner, free.count, turn=self.round)[0]
        return there[drawn[:wanted]].sort().values

    def _choose(self, server: Server) -> tuple[Server, Tensor]:
        """See `Simulation`: of whoever is there now."""
        self.engine.meet()
        return super()._choose(self._resized(server))

    def _collect(self, server: Server, orders: Order, window: Window) -> tuple[Server, Replies]:
        """See `Simulation`: how many examples clients have is known before the strategy is told what has come."""
        server, replies = super()._collect(server, orders, window)
        if orders.counts:
            self._problem.learn(dict(zip(replies.clients.tolist(), replies.examples.tolist(), strict=True)))
        return self._resized(server), replies

    def _resized(self, server: Server) -> Server:
        """What the server knows, for the clients that there are now and the examples that they have."""
        if self._problem.census == self._census:
            return server
        self._census = self._problem.census
        strategy, selector, sizes = self.parts.strategy, self.parts.selector, self._problem.sizes
        state = promises.resized(strategy, strategy.resize(server.state, self._problem), server.state)
        forgetful = torch.tensor(sorted(self._problem.renewed), dtype=torch.int64)
        if len(forgetful):
            state = promises.resized(strategy, strategy.forget(state, forgetful), state, "forget")
            self._problem.renewed.clear()
        given = selector.resize(server.selector, sizes)
        self._at_work = promises.at_once(selector, len(sizes))
        return server._replace(
            state=state, selector=promises.selector_state(selector, given, "resize", server.selector)
        )

    def _heard(self) -> list[Heard]:
        """What was heard in this round of those that take part in it."""
        held = self.engine.heard
        return [one for action in [action for action in held if action != JUDGE] for one in held.pop(action)]


def weighed(heard: Heard, weight: str) -> RecordDict:
    """A reply's content with metrics alone that are such: it says what it weighs, and values are none of them."""
    metrics = metrics_of(heard.content)
    if weight in metrics and VALUES not in metrics:
        return heard.content
    own = {name: value for name, value in metrics.items() if name != VALUES}
    return RecordDict({**arrays_of(heard.content), METRICS: MetricRecord({weight: heard.examples, **own})})
