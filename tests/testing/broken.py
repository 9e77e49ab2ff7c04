"""Plug-ins that each break one promise, in the way in which authors do."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from clients.fedzo import FedZO
from clients.sgd import Sgd
from fedsim.core.options import PositiveFloat, options
from fedsim.engine.cohort import Cohort
from fedsim.exchange.messages import Cost, Order, Replies, Update
from fedsim.exchange.windows import Window
from fedsim.server.participation import extended
from fedsim.server.strategy import ProblemView, ServerState
from strategies.fedavg import FedAvg
from strategies.fedfix import FedFix


@options
class EditsItsState(FedAvg):
    def tell(self, state: ServerState, replies: Replies) -> Any:
        state.params.mul_(0.99)
        return super().tell(state, replies)


@options
class EditsReplies(FedAvg):
    def tell(self, state: ServerState, replies: Replies) -> Any:
        replies.payload["delta"].mul_(0.5)
        return super().tell(state, replies)


@options
class FavoursTheFirst(FedAvg):
    """Who answers first counts twice."""

    def tell(self, state: ServerState, replies: Replies) -> Any:
        weights = replies.weights(self.weighting)
        if len(replies):
            weights[int(replies.durations.argmin())] *= 2.0
        return self.advance(state, replies, replies.combine(weights)), {}, True


@options
class DrawsFromPython(FedAvg):
    def tell(self, state: ServerState, replies: Replies) -> Any:
        delta = replies.combine(replies.weights(self.weighting), scale=random.uniform(0.5, 1.5))
        return self.advance(state, replies, delta), {}, True


@options
class DrawsTheSame(FedAvg):
    """Its own generator, in a state that no seed of a run changes."""

    def tell(self, state: ServerState, replies: Replies) -> Any:
        delta = replies.combine(replies.weights(self.weighting))
        generator = torch.Generator().manual_seed(state.round)
        noise = torch.randn(delta.shape, generator=generator, dtype=delta.dtype)
        return self.advance(state, replies, delta + 0.01 * noise), {}, True


@options
class SeedsPyTorch(FedAvg):
    """Nobody draws, but whoever does later draws something else."""

    def tell(self, state: ServerState, replies: Replies) -> Any:
        torch.manual_seed(state.round)
        return super().tell(state, replies)


@options
class CountsBytesOnce(FedAvg):
    """Neither one number nor one for each client."""

    def ask(self, state: ServerState, chosen: Tensor) -> tuple[Order, Window]:
        orders, window = super().ask(state, chosen)
        return replace(orders, encoded=torch.tensor([332])), window


@options
class IgnoresAnOption(FedAvg):
    temperature: PositiveFloat = 1.0


@options
class HasMomentumOnItself(FedAvg):
    """Not in the state, so that a restored run begins without."""

    def tell(self, state: ServerState, replies: Replies) -> Any:
        delta = replies.combine(replies.weights(self.weighting)) + 0.5 * vars(self).get("velocity", 0.0)
        vars(self)["velocity"] = delta
        return self.advance(state, replies, delta), {}, True


@options
class DividesByReplies(FedAvg):
    def tell(self, state: ServerState, replies: Replies) -> Any:
        delta = replies.payload["delta"].sum(dim=0) / len(replies)
        return replace(state, params=state.params + delta, round=state.round + 1), {}, True


@options
class DividesByAsked(FedAvg):
    """Those whose updates are not finite are in the mean, as zeros."""

    def tell(self, state: ServerState, replies: Replies) -> Any:
        everybody = max(1, len(replies) + len(replies.failed))
        delta = replies.payload["delta"].sum(dim=0) / everybody
        return self.advance(state, replies, delta), {}, True


@options
class TrustsLosses(FedAvg):
    """Weights by losses, which nobody has looked through."""

    def tell(self, state: ServerState, replies: Replies) -> Any:
        losses = replies.metrics["loss"]
        return self.advance(state, replies, replies.combine(losses / losses.sum())), {}, True


@options
class WaitsForEverybody(FedAvg):
    """Asks again until all have answered."""

    def tell(self, state: ServerState, replies: Replies) -> Any:
        if len(replies) < len(replies.orders[0].clients if replies.orders else ()) or not len(replies):
            return state, {}, False
        return super().tell(state, replies)


@options
class NeedsTwo(FedAvg):
    """Scales by the spread of the changes, of which one client has none."""

    def tell(self, state: ServerState, replies: Replies) -> Any:
        rows = replies.payload["delta"]
        deviations = ((rows - rows.mean(dim=0)).square().sum(dim=0) / (len(rows) - 1)).sqrt()
        return self.advance(state, replies, rows.mean(dim=0) / (1.0 + deviations)), {}, True


@options
class FearsTheLate(FedFix):
    """A discount that ends after a round."""

    def tell(self, state: ServerState, replies: Replies) -> Any:
        discount = torch.log1p(-replies.staleness.double())
        delta = replies.combine(discount.exp().to(state.params.dtype) / max(1, len(replies)))
        delta = torch.where(discount.isfinite().all(), delta, torch.nan)
        return self.advance(state, replies, delta), {}, True


@options
class LosesAnOption(FedAvg):
    """An option that can be None where it is something by default: TOML has no None."""

    scale: PositiveFloat | None = 0.5

    def tell(self, state: ServerState, replies: Replies) -> Any:
        delta = replies.combine(replies.weights(self.weighting), scale=1.0 if self.scale is None else self.scale)
        return self.advance(state, replies, delta), {}, True


@options
class CentresTheCohort(Sgd):
    """What a client tells depends on who is executed beside it."""

    def train(self, cohort: Cohort) -> Update:
        update = super().train(cohort)
        delta = update.payload["delta"]
        return replace(update, payload={"delta": delta - delta.mean(dim=0)})


@options
class CountsRows(Sgd):
    """What a client tells depends on its place in the order."""

    def train(self, cohort: Cohort) -> Update:
        update = super().train(cohort)
        place = torch.arange(len(cohort), dtype=cohort.dtype).unsqueeze(1)
        return replace(update, payload={"delta": update.payload["delta"] * (1.0 + 0.1 * place)})


@options
class RemembersOnItself(Sgd):
    """Not in the store, so that a restored run begins without."""

    def train(self, cohort: Cohort) -> Update:
        update, memory = super().train(cohort), vars(self).setdefault("memory", {})
        delta = update.payload["delta"].clone()
        for row, client in enumerate(cohort.clients.tolist()):
            delta[row] += 0.1 * memory.get(client, 0.0)
            memory[client] = delta[row].clone()
        return replace(update, payload={"delta": delta})


@options
class DrawsByClient(Sgd):
    """The same numbers in every run."""

    def train(self, cohort: Cohort) -> Update:
        update = super().train(cohort)
        noise = [np.random.default_rng(client).normal(size=cohort.dimension) for client in cohort.clients.tolist()]
        rows = torch.from_numpy(np.array(noise)).to(cohort.dtype).reshape(len(cohort), -1)
        return replace(update, payload={"delta": update.payload["delta"] + 0.01 * rows})


@options
class DrawsInCohorts(Sgd):
    """Of a generator that all clients share, so that numbers follow who is executed when."""

    def train(self, cohort: Cohort) -> Update:
        update = super().train(cohort)
        noise = cohort.streams.generator("noise", turn=cohort.round).normal(size=(len(cohort), cohort.dimension))
        delta = update.payload["delta"]
        return replace(update, payload={"delta": delta + 0.01 * torch.from_numpy(noise).to(delta.dtype)})


@options
class SendsMoreThanItSays(Sgd):
    up: ClassVar[frozenset[str]] = frozenset({"delta", "more"})

    def train(self, cohort: Cohort) -> Update:
        update = super().train(cohort)
        more: Tensor = update.payload["delta"][:, :1]
        return replace(update, payload={**update.payload, "more": more})


@options
class AsksMoreThanItSays(FedZO):
    def cost(self, orders: Order, examples: Tensor) -> Cost:
        cost = super().cost(orders, examples)
        return replace(cost, queries=cost.queries - 1)


@options
class CountsFewerThanItAsks(AsksMoreThanItSays):
    def train(self, cohort: Cohort) -> Update:
        update = super().train(cohort)
        cohort.queries -= 1
        return update


@options
class KeepsItsPopulation(FedAvg):
    """Counts replies by client, of those that there were at the beginning."""

    def init(self, problem: ProblemView) -> ServerState:
        state = super().init(problem)
        return replace(state, memory={"counts": torch.zeros(problem.num_clients, dtype=torch.int64)})

    def tell(self, state: ServerState, replies: Replies) -> Any:
        counts = state.memory["counts"].index_add(0, replies.clients, torch.ones_like(replies.clients))
        delta = replies.combine(replies.weights(self.weighting))
        return self.advance(state, replies, delta, counts=counts), {}, True


@options
class ForgetsItsPopulation(KeepsItsPopulation):
    """Counts from the beginning, as often as it is asked."""

    def resize(self, state: ServerState, problem: ProblemView) -> ServerState:
        return replace(state, memory=self.init(problem).memory)


@options
class GrowsInPlace(KeepsItsPopulation):
    def resize(self, state: ServerState, problem: ProblemView) -> ServerState:
        memory: Any = state.memory
        memory["counts"] = extended(memory["counts"], problem.num_clients, 0)
        return state


@options
class CreditsNewClients(KeepsItsPopulation):
    """With a reply that they have never sent."""

    def resize(self, state: ServerState, problem: ProblemView) -> ServerState:
        return replace(state, memory={"counts": extended(state.memory["counts"], problem.num_clients, 1)})
