"""EControl: EF21 that pays back, little by little, what its estimates have missed.

D_i = C(eta e_i + v_i - h_i) crosses;  e_i <- e_i + v_i - h_i - D_i;  h_i <- h_i + D_i, 2 d numbers a client
eta = 0 is EF21. Gao, Islamov and Stich 2024.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedsim.compression.feedback import Tracking
from fedsim.core.options import NonNegativeFloat, options
from fedsim.exchange.transforms import Shapes, Vector


@options
class EControl(Tracking):
    """For clients whose gradients are noisy."""

    eta: NonNegativeFloat = 0.1
    """How much of what was missed is asked for again; of the order of the share that the compressor keeps."""

    def state(self, length: int) -> Shapes:
        """See `Transform`."""
        return {**super().state(length), "missed": (length,)}

    def encode(self, vector: Vector) -> Vector:
        """See `Transform`."""
        wanted, estimate, missed = vector.rows, *(vector.sender.state[name] for name in ("estimate", "missed"))
        new, size = self.first(vector)
        gap, base = wanted - estimate, 0.0 if self.increments else estimate

        def learn(arrived: Tensor) -> dict[str, Tensor]:
            sent = torch.where(new, gap, arrived)
            return self.remembered(vector, estimate=estimate + sent, missed=missed + gap - sent)

        def decode(arrived: Tensor) -> Tensor:
            return torch.where(new, gap, arrived) + base

        return vector.coded(torch.where(new, 0.0, self.eta * missed + gap), size, decode=decode, learn=learn)
