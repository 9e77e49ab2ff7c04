"""Random-k: k numbers of a vector cross, drawn anew in each round from a stream that both ends know.

C(v)_j = (d/k) v_j for j in a random set of k, else 0;  omega = d/k - 1
k numbers and nothing else. Stich et al. 2018.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from fedsim.compression.selecting import Selecting
from fedsim.core.options import options
from fedsim.core.streams import SERVER
from fedsim.exchange.messages import Size
from fedsim.exchange.transforms import Vector


@options
class RandomK(Selecting):
    """Of a set that is the same for all, decoding a sum of messages gives the sum of what they decode to."""

    keeps_statistics: ClassVar[bool] = False

    scaled: bool = True
    """Multiply what arrives by d/k, which makes it unbiased. Not: |C(v) - v|^2 <= (1 - k/d) |v|^2 in expectation, as
    feedback needs it.
    """
    same: bool = False
    """Draw one set for all clients of a round, in the place of one for each."""

    def size(self, before: Size) -> Size:
        """See `Transform`."""
        return Size(self.total(before.numbers), before.bits, before.beside)

    def encode(self, vector: Vector) -> Vector:
        """See `Transform`."""
        rows, first, places, factors = vector.rows, 0, list[Tensor](), list[Tensor]()
        for layer, (size, count) in enumerate(self.kept(rows.shape[1])):
            places.append(first + self._drawn(vector, size, count, layer))
            factors.append(rows.new_full((count,), size / max(1, count) if self.scaled else 1.0))
            first += size
        where, factor = torch.cat(places, dim=1), torch.cat(factors)
        return vector.coded(
            rows.gather(1, where),
            self.size(vector.size),
            decode=lambda sent: torch.zeros_like(rows).scatter(1, where, factor * sent),
        )

    def error(self, before: Size) -> float:
        """See `Transform`."""
        if not self.scaled:
            return super().error(before)
        return max(size / max(1, count) - 1.0 for size, count in self.kept(before.numbers))

    def _drawn(self, vector: Vector, size: int, count: int, layer: int) -> Tensor:
        """So many different places of a layer in ascending order, int64 [C, count].

        Of more than half of them, those that are left out are drawn.
        """
        sender, fewer = vector.sender, min(count, size - count)
        clients = torch.full_like(sender.clients, SERVER) if self.same else sender.clients
        chosen = torch.zeros((len(clients), size), dtype=torch.bool, device=clients.device)
        if fewer:
            name, draws = f"random-k/{layer}", fewer + 16
            while True:  # a longer draw begins as a shorter one does, so that company makes no difference
                drawn = sender.streams.integers(name, clients, (draws,), size, turn=sender.turn, step=vector.place)
                new = first_times(drawn)
                if not len(clients) or int(new.sum(dim=1).min()) >= fewer:
                    break
                draws *= 2
            new &= new.cumsum(dim=1) <= fewer
            chosen.scatter_(1, drawn[new].view(len(clients), fewer), True)
        return (chosen if fewer == count else ~chosen).nonzero()[:, 1].view(len(clients), count)


def first_times(drawn: Tensor) -> Tensor:
    """Which numbers of each row stand there for the first time, bool [C, n]."""
    ordered, order = drawn.sort(dim=1, stable=True)
    new = torch.ones_like(ordered, dtype=torch.bool)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    return torch.zeros_like(new).scatter(1, order, new)
