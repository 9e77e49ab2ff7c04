"""What a client has asked so far and been told: the data of its surrogates, bounded, as rows of a client store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.zeroth_order.surrogates.gaussian_process import nearest


@dataclass
class Trajectory:
    """The latest H pairs of C clients. points: [C, H, d]; values: [C, H]; count: [C], how many there ever were.

    Pair number i lies in row i mod H, so that the oldest is overwritten first.
    """

    points: Tensor
    values: Tensor
    count: Tensor

    @staticmethod
    def shapes(length: int, dimension: int) -> dict[str, tuple[int, ...]]:
        """The state of one client, by name."""
        return {"points": (length, dimension), "values": (length,), "count": ()}

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> Trajectory:
        """The trajectories that clients remember; changed in place from here on."""
        return cls(state["points"], state["values"], state["count"])

    @property
    def state(self) -> dict[str, Tensor]:
        """What clients are to remember."""
        return {"points": self.points, "values": self.values, "count": self.count}

    @property
    def stored(self) -> Tensor:
        """How many pairs are there now, int64 [C]."""
        return self.count.long().clamp(max=self.points.shape[1])

    def add(self, points: Tensor, values: Tensor, rows: Tensor | None = None) -> None:
        """Take in pairs [k, Q, d], [k, Q], of all clients or of the rows int64 [k]; those not finite are dropped."""
        told = torch.isfinite(values) & torch.isfinite(points).all(dim=2)
        which = torch.arange(len(self.count), device=self.count.device) if rows is None else rows
        number, length = told.cumsum(dim=1), self.points.shape[1]
        # Of more pairs than there are rows the last ones stay: no row is written twice.
        stay = told & (number > number[:, -1:] - length)
        order = torch.argsort(~stay, dim=1, stable=True)[:, :length]
        # As many rows for each client, so that nobody has to know how many: beyond its pairs they keep what they hold.
        taken, each = stay.gather(1, order), torch.arange(order.shape[1], device=order.device)
        first = self.count[which].long() + number[:, -1] - stay.sum(dim=1)
        at = which.unsqueeze(1), (first.unsqueeze(1) + each) % length
        new = points.gather(1, order.unsqueeze(2).expand(-1, -1, points.shape[2])), values.gather(1, order)
        self.points[at] = torch.where(taken.unsqueeze(2), new[0], self.points[at])
        self.values[at] = torch.where(taken, new[1], self.values[at])
        self.count.index_add_(0, which, told.sum(dim=1).to(self.count.dtype))

    def nearest(self, center: Tensor, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """The `number` pairs nearest to each client's center [C, d]: points, values, and how many there are, [C]."""
        places, counts = nearest(self.points, self.stored, center, number)
        points = self.points.gather(1, places.unsqueeze(2).expand(-1, -1, self.points.shape[2]))
        return points, self.values.gather(1, places), counts
