"""Transforms: steps that the payload of a reply, or of an order, goes through before it crosses the network.

An experiment lists them, and they apply in that order. A transform works on the rows of a cohort at once and
never changes what it is given; what client c's row becomes depends on that row, on c's own state and on c's
own random stream, not on who else is in the cohort.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fedsim.aggregation import halving_sum
from fedsim.options import NonNegative, Positive, options
from fedsim.streams import Index, Streams

BLOCK = 2**21
"""Numbers of rows that are worked on at a time."""
TransformState = dict[str, Tensor]


class Transform(Protocol):
    """What a plug-in of the group `transforms` offers."""

    def init(self, dimension: int) -> dict[str, tuple[int, ...]]:
        """Name the state that a client keeps for payloads of this length, and its shapes; it starts at 0."""
        ...

    def apply(
        self,
        rows: Tensor,
        state: TransformState,
        clients: Tensor,
        streams: Streams,
        round: Index,  # noqa: A002
    ) -> tuple[Tensor, TransformState]:
        """Transform rows [C, d] of clients int64 [C]: what arrives, [C, d], and the new state.

        state: for each name of `init` the clients' tensors, [C, *shape].
        """
        ...

    def nbytes(self, dimension: int, itemsize: int) -> int:
        """Payload of one client's vector of this length as it crosses. itemsize: bytes of a number before."""
        ...


@dataclass(frozen=True)
class Chain:
    """Transforms one after the other; the state of the n-th has names that begin with `transform<n>/`."""

    transforms: tuple[Transform, ...] = ()

    def init(self, dimension: int) -> dict[str, tuple[int, ...]]:
        """All the state that a client keeps, and its shapes."""
        return {
            f"transform{number}/{name}": shape
            for number, transform in enumerate(self.transforms)
            for name, shape in transform.init(dimension).items()
        }

    def apply(
        self,
        rows: Tensor,
        state: TransformState,
        clients: Tensor,
        streams: Streams,
        round: Index,  # noqa: A002
    ) -> tuple[Tensor, TransformState]:
        """What arrives of rows [C, d], and the new state; names in `state` that are not the chain's stay out of it."""
        kept: TransformState = {}
        for number, transform in enumerate(self.transforms):
            prefix = f"transform{number}/"
            own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
            rows, own = transform.apply(rows, own, clients, streams, round)
            kept |= {prefix + name: value for name, value in own.items()}
        return rows, kept

    def nbytes(self, dimension: int, itemsize: int) -> int:
        """Bytes of one vector on its way: the last transform says what its encoding takes."""
        if not self.transforms:
            return dimension * itemsize
        return self.transforms[-1].nbytes(dimension, itemsize)


@options
class Clip:
    """x <- x min(1, max_norm / |x|), the Euclidean norm of the whole payload; payload d numbers."""

    max_norm: Positive
    """The largest norm that is left as it is."""

    def init(self, dimension: int) -> dict[str, tuple[int, ...]]:  # noqa: ARG002
        """Keep no state."""
        return {}

    def apply(
        self,
        rows: Tensor,
        state: TransformState,
        clients: Tensor,  # noqa: ARG002
        streams: Streams,  # noqa: ARG002
        round: Index,  # noqa: A002, ARG002
    ) -> tuple[Tensor, TransformState]:
        """See `Transform`."""
        clipped = torch.empty_like(rows)
        for part in _parts(rows):
            # In double precision no square overflows; a row of zeros gives infinity, which is cut to 1.
            norms = halving_sum(rows[part].to(torch.float64).square(), 1).sqrt()
            factors = (self.max_norm / norms).clamp(max=1.0)
            clipped[part] = rows[part] * factors.to(rows.dtype).unsqueeze(1)
        return clipped, state

    def nbytes(self, dimension: int, itemsize: int) -> int:
        """As many numbers as before."""
        return dimension * itemsize


@options
class Noise:
    """x <- x + std z with z standard normal from the client's own stream; payload d numbers."""

    std: NonNegative
    """Standard deviation of the noise."""
    stream: str = "noise"
    """Name of the draw; two noises in one list need two names, or they add the same numbers."""

    def init(self, dimension: int) -> dict[str, tuple[int, ...]]:  # noqa: ARG002
        """Keep no state."""
        return {}

    def apply(
        self,
        rows: Tensor,
        state: TransformState,
        clients: Tensor,
        streams: Streams,
        round: Index,  # noqa: A002
    ) -> tuple[Tensor, TransformState]:
        """See `Transform`."""
        noisy = torch.empty_like(rows)
        for part in _parts(rows):
            rounds = round[part] if isinstance(round, Tensor) else round
            drawn = streams.normal(self.stream, clients[part], rows.shape[1:], round=rounds, dtype=rows.dtype)
            noisy[part] = rows[part] + self.std * drawn
        return noisy, state

    def nbytes(self, dimension: int, itemsize: int) -> int:
        """As many numbers as before."""
        return dimension * itemsize


def _parts(rows: Tensor) -> Iterator[slice]:
    """Slices of rows [C, d] whose working copies fit in memory."""
    height = max(1, BLOCK // max(1, rows.shape[1]))
    return (slice(start, start + height) for start in range(0, len(rows), height))
