"""DoG, distance over gradients: a step size that no rate is needed for.

rbar_t = max(rbar_(t-1), |y_t - y_0|), from reps_rel (1 + |y_0|);  G_t = G_(t-1) + |g_t|^2, from epsilon
y_(t+1) = y_t - lr rbar_t / sqrt(G_t) g_t,  t = 0, 1, ... within the round, lr = 1; norms are over a client's parameters
With average: ybar <- (1 - w) ybar + w y_t,  w = (1 + gamma) / (t + gamma), t = 1, 2, ...; ybar is what is sent
Memory: y_0, and ybar if there is one. Ivgi, Hinder and Carmon 2023; with the weight decay in g, as there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from fedsim.client import Beginning, CompiledRule, Need, Remembered, Stack, Travelled, norms, options


@options
class Dog(Travelled):
    """Deltas do not change with the scale of a client's loss. A large gradient makes all later steps of a round small.

    Averaging is a part of the published method, for runs of thousands of steps.
    """

    distance: Literal["round", "client"] = "round"
    """Whose rbar is: it begins anew in each round, or each client goes on with what it came to in its round before, as
    one number that it keeps; from reps_rel = 1e-6, too, clients that come back learn then.
    """

    @property
    def needs(self) -> frozenset[Need]:
        """What clients keep, and the average's end."""
        return super().needs | ({"state"} if self.distance == "client" else set())

    @property
    def compiled(self) -> CompiledRule | None:
        """What begins anew in each round and sends where it ends."""
        return None if self.needs else CompiledRule("dog", (self.reps_rel, self.epsilon, self.init_eta or 0.0), more=1)

    def kept(self, dimension: int) -> Mapping[str, tuple[int, ...]]:  # noqa: ARG002
        """Rbar."""
        return {"rbar": ()} if self.distance == "client" else {}

    def begin(self, y: Stack, beginning: Beginning) -> Remembered:
        """At least the distance that was kept."""
        memory = super().begin(y, beginning)
        (distance,) = memory["distance"].leaves
        for kept in beginning.kept.values():
            torch.maximum(distance, kept, out=distance)
        return memory

    def keep(self, memory: Remembered, rows: Stack) -> Mapping[str, Tensor]:
        """The longest distance from where the round began."""
        (distance,) = memory["distance"].leaves
        longest = torch.maximum(distance, norms(rows.minus(memory["start"])))
        return {"rbar": longest} if self.distance == "client" else {}
