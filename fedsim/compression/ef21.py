"""EF21: both ends remember an estimate, and the difference from it crosses.

D_i = C(v_i - h_i) crosses;  h_i <- h_i + D_i, d numbers a client
v_i is what is sent; with a momentum b < 1 its running mean, v_i <- (1 - b) v_i + b (what is sent), and d numbers more.
Richtarik et al. 2021; momentum: Fatkhullin et al. 2023; weights: Richtarik et al. 2024. Of orders, whose receivers
remember the model, it is EF21-P of Gruntkowska et al. 2023; there take init = dense.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fedsim.compression.feedback import Tracking
from fedsim.core.errors import InputError
from fedsim.core.options import PositiveFloat, options
from fedsim.exchange.transforms import Shapes, Vector


@options
class EF21(Tracking):
    """It ends on the optimum, with clients that differ, where each sends always the same at the same model."""

    momentum: Annotated[float, Field(gt=0, le=1)] = 1.0
    """b, the weight of what is sent in its running mean, which takes noise out; 1: there is none."""
    smoothness: Annotated[tuple[PositiveFloat, ...], Field(strict=False, min_length=1)] | None = None
    """L_i, how fast each client's gradient changes, of all clients: v_i is divided by N w_i on its way, w_i = L_i over
    the sum (EF21-W). Of a compressor that commutes with factors, as most do, nothing changes but how long steps may be.
    """

    def state(self, length: int) -> Shapes:
        """See `Transform`."""
        more = {"mean": (length,), "begun": (1,)} if self.momentum < 1.0 else {}
        return {**super().state(length), **more}

    def encode(self, vector: Vector) -> Vector:
        """See `Transform`."""
        state, factors, kept = vector.sender.state, self._factors(vector), dict[str, Tensor]()
        wanted, estimate = vector.rows / factors, state["estimate"]
        if self.momentum < 1.0:
            mean = (1.0 - self.momentum) * state["mean"] + self.momentum * wanted
            wanted = kept["mean"] = torch.where(state["begun"] == 0, wanted, mean)
        new, size = self.first(vector)
        change, base = wanted - estimate, 0.0 if self.increments else estimate

        def learn(arrived: Tensor) -> dict[str, Tensor]:
            return self.remembered(vector, estimate=torch.where(new, wanted, estimate + arrived), **kept)

        def decode(arrived: Tensor) -> Tensor:
            return factors * torch.where(new, change + base, arrived + base)

        return vector.coded(torch.where(new, 0.0, change), size, decode=decode, learn=learn)

    def _factors(self, vector: Vector) -> Tensor:
        """N w_i, [C, 1]."""
        rows, clients = vector.rows, vector.sender.clients
        if self.smoothness is None:
            return torch.ones_like(rows[:, :1])
        known = torch.tensor(self.smoothness, dtype=torch.float64, device=rows.device)
        if len(clients) and int(clients.max()) >= len(known):
            raise InputError(
                "smoothness", len(known), f"client {int(clients.max())} has none; give one for each client"
            )
        return (len(known) * known / known.sum())[clients].to(rows.dtype).unsqueeze(1)
