"""The server's side of a search: rounds of up to three windows."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from fedsim.core.options import options
from fedsim.exchange.messages import Order, Replies, Weighting
from fedsim.exchange.windows import All, Window
from fedsim.server.strategy import Averaging, Metrics, ProblemView, ServerState
from fedsim.zeroth_order.search import MEASURE

TRAIN = "train"


@options
class GuardedStep(Averaging):
    """theta <- theta + eta sum_i w_i Delta_i; where guarded, only if that lowers F.

    A subclass may end its rounds with one more exchange, about the new model: `sharing`, its action, and `shared`, the
    vector that clients answer with. The mean of what they answer is kept in the state's memory under that name.
    """

    sharing: ClassVar[str | None] = None
    shared: ClassVar[str] = ""

    weighting: Weighting = "uniform"
    guard: bool = False
    """Ask all clients of the round for F at the candidate (and, where they may not be those of the last round, at the
    model as it is) and keep the model where F is not lower; momenta of the server's optimizer move even so. These
    evaluations are no part of the published counts.
    """

    @property
    def down(self) -> frozenset[str]:
        """As of a plain round; and for the guard candidates."""
        return super().down | ({"candidates"} if self.guard else frozenset())

    @property
    def up(self) -> frozenset[str]:
        """The change; and for the guard values."""
        return frozenset({"delta", "values"} if self.guard else {"delta"})

    @property
    def summed(self) -> Weighting | None:
        """The changes, if nothing is asked about them."""
        return None if self.sharing else self.sums(GuardedStep.tell)

    def windows(self, state: ServerState) -> tuple[str, ...]:  # noqa: ARG002
        """The actions of a round, in their order."""
        return (TRAIN, *([MEASURE] if self.guard else []), *([self.sharing] if self.sharing else []))

    def init(self, problem: ProblemView) -> ServerState:
        """The state before the first round."""
        return replace(super().init(problem), memory={"clients": torch.tensor(problem.num_clients)})

    def resize(self, state: ServerState, problem: ProblemView) -> ServerState:
        """Of more clients F is another function, of which nothing is known yet."""
        if problem.num_clients == int(state.memory["clients"]):
            return state
        memory = {name: kept for name, kept in state.memory.items() if name != "value"}
        return replace(state, memory={**memory, "clients": torch.tensor(problem.num_clients)})

    def ask(self, state: ServerState, chosen: Tensor) -> tuple[Order, Window]:
        """Send what the window is about; wait for everybody."""
        action = self.windows(state)[state.phase]
        if action == TRAIN:
            return super().ask(state, chosen)
        candidates = action == MEASURE
        payload = {"candidates": self._candidates(state, len(chosen))} if candidates else {"params": state.params}
        return Order(action, chosen, payload, round=state.round), All()

    def tell(self, state: ServerState, replies: Replies) -> tuple[ServerState, Metrics, bool]:
        """Move; hold the step against F; take in what was shared."""
        windows = self.windows(state)
        action, metrics = windows[state.phase], dict[str, float]()
        if action == TRAIN:
            delta = self.change(state, replies)
            metrics |= self.seen(state, replies, delta)
            state = self._moved(state, replies, delta)
        elif action == MEASURE:
            state, metrics["accepted"] = self._judged(state, replies)
        elif len(replies):
            state = self.remember(state, replies)
        if state.phase + 1 < len(windows):
            return replace(state, phase=state.phase + 1), metrics, False
        return replace(state, phase=0, round=state.round + 1), metrics, True

    def remember(self, state: ServerState, replies: Replies) -> ServerState:
        """The state with the mean of what was shared."""
        shared = replies.combine(replies.weights(self.weighting), name=self.shared)
        return replace(state, memory={**state.memory, self.shared: shared})

    def _moved(self, state: ServerState, replies: Replies, delta: Tensor) -> ServerState:
        """The state with the candidate along delta [d], which without a guard is the new model."""
        candidate, optimizer = state.params, state.optimizer
        if len(replies):
            candidate, optimizer = self.moved(state, delta)
        if self.guard:
            return replace(state, optimizer=optimizer, memory={**state.memory, "candidate": candidate})
        return replace(state, optimizer=optimizer, params=candidate)

    def _candidates(self, state: ServerState, count: int) -> Tensor:
        """What F is measured at: the candidate, and the model as it is where that is not known of these clients."""
        candidate = state.memory["candidate"].unsqueeze(0)
        known = "value" in state.memory and count == int(state.memory["clients"])
        return candidate if known else torch.cat((state.params.unsqueeze(0), candidate))

    def _judged(self, state: ServerState, replies: Replies) -> tuple[ServerState, float]:
        """The state with the candidate if F is lower there, and whether it is."""
        memory = dict(state.memory)
        candidate = memory.pop("candidate")
        if not len(replies) or len(replies.failed):  # somebody's value is not finite: nor is F
            return replace(state, memory=memory), 0.0
        values = replies.combine(replies.weights(self.weighting), name="values")
        if len(values) == 1 and len(replies) < int(memory["clients"]):
            memory.pop("value", None)  # it was everybody's, or of those before somebody came
            return replace(state, memory=memory), 0.0
        before = values[0] if len(values) == 2 else memory["value"]
        accepted = bool(values[-1] < before)
        memory["value"] = values[-1] if accepted else before
        if len(replies) < int(memory["clients"]):
            del memory["value"]
        return replace(state, params=candidate if accepted else state.params, memory=memory), float(accepted)
