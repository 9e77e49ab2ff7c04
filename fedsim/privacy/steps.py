"""Example-level privacy: of the examples of a local step one sum leaves, of clipped gradients with noise (DP-SGD).

    g = (sum_j g_j min(1, C / |g_j|) + N(0, z^2 C^2)) / (q n)

over examples that are each in the step with probability q, whoever else is, divided by how many are expected, which is
no secret, and not by how many came: a step that draws none has noise alone. Abadi et al. 2016.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.nets.network import Batch, Network
from fedsim.nets.noise import normal
from fedsim.nets.stack import Stack, shaped

NOISE = "privacy/steps"
"""The name under which clients draw the noise of their steps."""
RARE = 1e-12
"""How probable it may be at most that a step of a client draws more examples than there is room for."""


@dataclass(frozen=True)
class NoisySteps:
    """How steps are made private. bounds: C, or C of each leaf; None: nothing is clipped. deviation: z C.

    capacity: examples that a step of any client has room for.
    """

    bounds: tuple[float, ...] | None
    deviation: float
    capacity: int

    @property
    def plain(self) -> bool:
        """Whether nothing but the sampling of examples is other than without privacy."""
        return self.bounds is None and not self.deviation

    def gradients(self, network: Network, rows: Stack, batch: Batch) -> tuple[Tensor, Stack]:
        """Losses [k], and what a step of the k clients of a batch knows of its examples."""
        if self.bounds is None:
            losses, gradient = network.gradients(rows, batch)
        else:
            losses, gradient = network.clipped(rows, batch, self.bounds)
        if self.deviation:
            assert batch.expected is not None
            shapes = [leaf.shape[1:] for leaf in gradient.leaves]
            count = sum(map(math.prod, shapes))
            noise = normal(batch.draw, NOISE, count, (self.deviation / batch.expected).to(losses.dtype))
            gradient.add_(shaped(noise, shapes))
        return losses, gradient


def capacity(examples: Tensor, width: int) -> int:
    """Room for the examples of a step of any client, of which so many, int64 [N], each is drawn with rate width / n.

    A sum over more would be another mechanism than the account's, so a step that draws more is an error.
    """
    from scipy.stats import binom

    room = 0
    for count in torch.unique(examples).tolist():
        drawn = int(binom.isf(RARE, count, width / count)) + 1 if width < count else count
        room = max(room, min(drawn, count))
    return room
