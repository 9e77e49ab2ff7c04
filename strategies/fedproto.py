"""FedProto: clients have models of their own, and share what the features of each class are like: prototypes.

P_c <- sum_i w_ic p_ic / sum_i w_ic,  p_ic the mean feature of client i's examples of class c
Here w_ic is 1 where client i has class c and 0 otherwise, or of how many examples p_ic is the mean; a class that nobody
has keeps its prototype. No model crosses: uplink k h floats and k bits for k classes of h features, or, where clients
tell of how many examples, k floats for the bits; downlink k h floats and k bits. Tan et al. 2022, algorithm 1, whose
equation 6 weighs by examples, and whose published code counts each client the same.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedsim.server import (
    All,
    Metrics,
    Order,
    ProblemView,
    Replies,
    ServerState,
    Strategy,
    Window,
    from_bits,
    observed,
    options,
    to_bits,
)


@options
class FedProto(Strategy):
    """Needs the client `fedproto`."""

    down: ClassVar[frozenset[str]] = frozenset({"prototypes", "has", "report-counts"})
    aggregates: ClassVar[bool] = False
    for_all: ClassVar[bool] = False

    weights: Literal["clients", "examples"] = "clients"
    """What a client's prototypes count: the same, or as much as it has examples of their class, which it then tells."""

    @property
    def up(self) -> frozenset[str]:
        """Prototypes, and of which classes."""
        return frozenset({"prototypes", "has" if self.weights == "clients" else "counts"})

    def init(self, problem: ProblemView) -> ServerState:
        """No prototypes yet."""
        start, classes = problem.initial(), problem.classes()
        known = torch.zeros(classes, dtype=torch.bool, device=start.device)
        memory = {"prototypes": start.new_zeros((classes, problem.features())), "has": to_bits(known)}
        return ServerState(start, memory=memory, trained=problem.trained)

    def ask(self, state: ServerState, chosen: Tensor) -> tuple[Order, Window]:
        """Send the prototypes, and of which classes there are some; wait for everybody."""
        config = {"report-counts": True} if self.weights == "examples" else {}
        return Order("train", chosen, dict(state.memory), config, state.round), All()

    def tell(self, state: ServerState, replies: Replies) -> tuple[ServerState, Metrics, bool]:
        """Take means over the clients; where nobody answers, the prototypes stay."""
        later = replace(state, round=state.round + 1)
        if not len(replies):
            return later, observed(replies), True
        before, rows, told = state.memory["prototypes"], replies.payload["prototypes"], replies.payload
        weights = from_bits(told["has"], len(before)).to(rows.dtype) if self.weights == "clients" else told["counts"]
        total = weights.sum(dim=0)
        mean = (weights.unsqueeze(2) * rows).sum(dim=0) / total.clamp(min=1.0).unsqueeze(1)
        known = from_bits(state.memory["has"], len(before)) | (total > 0)
        memory = {"prototypes": torch.where(total.unsqueeze(1) > 0, mean, before), "has": to_bits(known)}
        metrics = {**observed(replies), "known_classes": float(known.sum())}
        return replace(later, memory=memory), metrics, True
