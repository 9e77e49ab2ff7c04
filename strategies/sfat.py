"""SFAT: slack aggregation, which trusts the clients with the smallest adversarial losses more.

theta <- theta + eta * sum_i w_i Delta_i,  w_i ~ p_i b_i
b_i = (1 + alpha) / (1 - alpha) for the khat smallest losses, else 1
The first round is plain. Uplink d + 1 floats a client: the mean loss of its last epoch; downlink d. Zhu et al. 2023,
whose khat is at most half of the cohort; of equal losses that of the smaller id counts as smaller. The published code
divides by another number than the sum of the weights, unless the first client is one of the khat, and so shrinks the
model (to 0.931 for n = 5, alpha = 1/6); `normalisation = "published"` does so, too.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedsim.server import Averaging, Config, Fraction, InputError, PositiveInt, Replies, ServerState, options

Normalisation = Literal["sum", "published"]


@options
class SFAT(Averaging):
    """Needs the client `sgd`, which tells the loss of its last epoch."""

    up: ClassVar[frozenset[str]] = frozenset({"delta", "last-loss"})

    alpha: Fraction = 1 / 6
    """The slack; 1/6 weighs 1.4 times as much."""
    khat: PositiveInt = 1
    """How many clients weigh more, at most half of those selected."""
    normalisation: Normalisation = "sum"
    """The weights are divided by their sum, or as in the published code."""

    def check(self, at_once: int, population: int, steady: bool) -> None:  # noqa: ARG002
        """Refuse to favour more than half of the clients in a round."""
        if self.khat > max(1, at_once // 2):
            raise InputError("khat", self.khat, f"{at_once} clients are selected; favour at most half of them")

    def config(self) -> Config:
        """Ask for the loss."""
        return {"report-loss": True}

    def change(self, state: ServerState, replies: Replies) -> Tensor:
        """The mean change, in which the favoured clients weigh more."""
        weights = replies.weights(self.weighting)
        if state.round:
            losses = replies.payload["last-loss"].squeeze(1)
            weights = slack(losses, weights, self.alpha, self.khat, self.normalisation)
        delta = replies.combine(weights)
        if self.normalisation == "published":
            delta = delta + (weights.sum() - 1.0) * state.params  # it averages models, not changes
        return delta


def slack(losses: Tensor, weights: Tensor, alpha: float, khat: int, normalisation: Normalisation = "sum") -> Tensor:
    """Weights [k] of replies with these losses [k], from weights [k] that sum to one; 0 stays 0 and is not favoured.

    They sum to one. published: they are k w_i times 1 or p = (1 + alpha) / (1 - alpha), over u + (k - u) p, where u are
    those that are not favoured among all but the first.
    """
    order = torch.where(weights > 0, losses, torch.inf).argsort(stable=True)
    favoured = torch.zeros_like(weights, dtype=torch.bool)
    favoured[order[:khat]] = True
    most = (1.0 + alpha) / (1.0 - alpha)
    raised = torch.where(favoured, most * weights, weights)
    if normalisation == "sum":
        return raised / raised.sum()
    others = int((~favoured[1:]).sum())
    return raised * len(weights) / (others + (len(weights) - others) * most)
