"""FedAvg, and with a server optimizer FedAvgM and FedOpt; with a deadline or over-selection for slow clients.

theta <- theta + eta * sum_i w_i Delta_i,  Delta_i = y_i - theta, over the replies that are in when the round closes
Uplink and downlink d floats a client, and with a batch rule 2 more up. McMahan et al. 2017, algorithm 1; Hsu et al.
2019 (server momentum); Reddi et al. 2021, algorithm 2 (adaptive server optimizers); Bonawitz et al. 2019 (deadline,
over-selection); Lau et al. 2024 (batch sizes, see `fedsim.server.batches`).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fedsim.server import (
    BATCH_SIZE,
    SPREAD,
    All,
    Averaging,
    BatchRule,
    First,
    InputError,
    Late,
    Metrics,
    Order,
    PositiveInt,
    ProblemView,
    Replies,
    Seconds,
    ServerState,
    Weighting,
    Window,
    options,
)


@options
class FedAvg(Averaging):
    """Who is late when a round closes is told to stop."""

    deadline: Seconds | None = None
    """Virtual seconds after which a round closes. Not given: it waits for all."""
    first: PositiveInt | None = None
    """A round closes with so many replies; select more clients than that. Not given: it waits for all."""
    batch_rule: BatchRule | None = None
    """How many examples a step is about, from what gradients are like; it begins with the clients' batch_size. Not
    given: it stays with that.
    """

    @property
    def down(self) -> frozenset[str]:
        """The model, and what steps are about."""
        return super().down | ({BATCH_SIZE} if self.batch_rule else frozenset())

    @property
    def up(self) -> frozenset[str]:
        """The change, and how unlike the gradients of examples are."""
        return super().up | ({SPREAD} if self.batch_rule else frozenset())

    @property
    def summed(self) -> Weighting | None:
        """The changes, if steps are not about so many examples as these say."""
        return self.sums(FedAvg.tell)

    @property
    def largest_batch(self) -> int:
        """The rule's."""
        return self.batch_rule.max_batch if self.batch_rule else 0

    def init(self, problem: ProblemView) -> ServerState:
        """Begin with the least batch size that there is, so that clients have their own."""
        state = super().init(problem)
        return replace(state, memory={**state.memory, BATCH_SIZE: torch.tensor(1)}) if self.batch_rule else state

    def order(self, state: ServerState, chosen: Tensor, late: Late = "cancel") -> Order:
        """The order to train, with the batch size of the round."""
        order = super().order(state, chosen, late)
        if not self.batch_rule:
            return order
        return replace(order, config={**order.config, BATCH_SIZE: int(state.memory[BATCH_SIZE])})

    def tell(self, state: ServerState, replies: Replies) -> tuple[ServerState, Metrics, bool]:
        """Move along the mean change; and decide on how many examples the next round's steps are about."""
        later, metrics, done = super().tell(state, replies)
        if not self.batch_rule or not len(replies):
            return later, metrics, done
        rule, before = self.batch_rule, int(state.memory[BATCH_SIZE])
        weights, several = replies.weights(self.weighting).cpu(), replies.examples > 1
        spread, delta = replies.payload[SPREAD].cpu(), replies.payload["delta"][:, : state.trained].cpu()
        variance, square = rule.tested(spread, delta, weights, several)
        memory = {**later.memory, BATCH_SIZE: torch.tensor(rule.size(before, variance, square))}
        return replace(later, memory=memory), {**metrics, "wanted_batch": rule.wanted(variance, square)}, done

    def check(self, at_once: int, population: int, steady: bool) -> None:  # noqa: ARG002
        """Refuse to wait for more replies than there are clients in a round."""
        if self.first is not None and self.first > at_once:
            raise InputError("first", self.first, f"only {at_once} clients are selected; raise selection.count")

    def plan(self, state: ServerState, durations: Tensor | None) -> ServerState:
        """Refuse a deadline that nobody can meet."""
        if self.deadline is not None and durations is not None and float(durations.min()) > self.deadline:
            quickest = float(durations.min())
            raise InputError("deadline", self.deadline, f"nobody can meet it: the fastest client takes {quickest:g} s")
        return state

    def ask(self, state: ServerState, chosen: Tensor) -> tuple[Order, Window]:
        """Wait for everybody, or the first, or until the deadline."""
        window: Window = All(self.deadline)
        if self.first is not None:
            window = First(min(self.first, len(chosen)), self.deadline)
        return self.order(state, chosen), window
