"""EF21's server: it remembers the mean of what all clients were last known to send, and steps along it.

h <- h + sum_(i in S) p_i D_i;  theta <- theta + optimizer(h), where D_i is how the estimate of client i has changed
p_i is client i's share of all clients, 1/N, or of all examples: those who are away count with what they have sent last.
Uplink as the transforms leave it, downlink d floats; or q <- q + C(h - q), of which C(h - q) alone goes down, and both
ends step along q in place of h. Richtarik et al. 2021; partial participation, and both ways: Fatkhullin et al. 2021.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from fedsim.server import BothWays, Metrics, ProblemView, Replies, ServerState, Weighting, options, remembering


@options
class EF21(BothWays):
    """Needs a transform `ef21` or `econtrol` of replies with `arrives = "increment"`."""

    adds_up: ClassVar[frozenset[str]] = frozenset({"delta"})

    weighting: Weighting = "uniform"

    def init(self, problem: ProblemView) -> ServerState:
        """The mean of all estimates, h, begins at zero; N, or the number of all examples, is kept to average over."""
        state = super().init(problem)
        return remembering(state, {"estimate": torch.zeros_like(state.params), "whole": self._whole(problem)})

    def resize(self, state: ServerState, problem: ProblemView) -> ServerState:
        """Keep h the mean over all clients: new ones begin with an estimate of 0."""
        whole = self._whole(problem)
        estimate = state.memory["estimate"] * (int(state.memory["whole"]) / int(whole))
        return remembering(super().resize(state, problem), {"estimate": estimate, "whole": whole})

    def tell(self, state: ServerState, replies: Replies) -> tuple[ServerState, Metrics, bool]:
        """Add up how the estimates have changed, and move along their mean, or what has crossed of it."""
        part = int(replies.examples.sum()) if self.weighting == "examples" else len(replies)
        changed = replies.combine(replies.weights(self.weighting), part / int(state.memory["whole"]))
        estimate = state.memory["estimate"] + changed
        step, memory = self.crossed(state, replies, estimate)
        later = self.advance(state, replies, step, **memory, estimate=estimate)
        return later, self.seen(state, replies, estimate), True

    def _whole(self, problem: ProblemView) -> Tensor:
        """What the p_i are shares of: N, or the number of all examples."""
        return problem.sizes.sum().cpu() if self.weighting == "examples" else torch.tensor(problem.num_clients)
