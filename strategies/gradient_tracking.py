"""Gradient tracking: each client steps along an estimate of everybody's mean change, which neighbours mix, too.

s_i = e_i + (y_i - x_i),  y_i trained from x_i;  x_i <- sum_j W_ij (x_j + s_j),  e_i <- e_i + sum_j W_ij s_j - s_i
W as of `dpsgd`, e = 0 at first, and sum_i e_i stays 0. With one step at a constant rate s is -lr times the tracker of
the literature, y <- W y + g_new - g_old: clients who differ end on the optimum, and together. With more local steps
they end where the clients' changes add up to nothing. Each sends 2 d floats along each of its links. Di Lorenzo and
Scutari 2016; Nedic, Olshevsky and Shi 2017.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from fedsim.server import Gossip, ProblemView, Replies, Rows, mixed, options


@options
class GradientTracking(Gossip):
    """Needs the client `gradient_tracking`, of which each is judged by its own model."""

    down: ClassVar[frozenset[str]] = frozenset({"models", "corrections"})
    up: ClassVar[frozenset[str]] = frozenset({"model", "tracker"})

    def begin(self, problem: ProblemView) -> Rows:
        """Everybody's model, and no correction."""
        models = problem.initial().repeat(problem.num_clients, 1)
        return {"models": models, "corrections": torch.zeros_like(models)}

    def step(self, before: Rows, replies: Replies, weights: Tensor) -> Rows:
        """Mix both."""
        trackers = replies.payload["tracker"]
        corrections = before["corrections"] + (mixed(weights, trackers) - trackers)
        return {"models": mixed(weights, replies.payload["model"]), "corrections": corrections}
