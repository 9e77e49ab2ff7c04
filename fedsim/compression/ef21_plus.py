"""EF21+: what crosses is the vector itself, or how it differs from the estimate, whichever comes nearer to it.

h_i <- C(v_i) or h_i + C(v_i - h_i), by which of them is closer to v_i; a bit says which of the two has crossed
d numbers a client. Richtarik et al. 2021.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from fedsim.compression.feedback import Tracking
from fedsim.compression.groups import norm
from fedsim.compression.induced import taken
from fedsim.core.errors import InputError, naming
from fedsim.core.options import options
from fedsim.core.plugins import HasPlugins, kind_of
from fedsim.exchange.messages import Size
from fedsim.exchange.transforms import LESS, Transform, Vector


@options
class EF21Plus(HasPlugins, Tracking):
    """What it compresses by is its own, for it has to see what that makes of both."""

    parts: ClassVar[Mapping[str, str]] = {"compressor": "transforms"}

    compressor: Any
    """A compressor, a name or a table; what quantises the numbers that it selects may follow in the list."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.increments:
            remedy = "an estimate may be replaced, which no sum of changes follows; take estimate"
            raise InputError("arrives", self.arrives, remedy)

    def bound(self, shapes: Sequence[tuple[int, ...]]) -> Self:
        """See `Transform`."""
        other = super().bound(shapes)
        other.__dict__["made"] = {name: one.bound(shapes) for name, one in self.made.items()}
        return other

    def check(self, before: Size) -> None:
        """See `Transform`."""
        own: Transform = self.made["compressor"]
        with naming("compressor"):
            own.check(before)
        kind, error = kind_of("transforms", own), own.error(before)
        if own.feeds_back or own.state(before.numbers):
            raise InputError("compressor", kind, "it remembers something; take one that does not")
        if error is not None and error >= 1.0:
            raise InputError("compressor", kind, f"it may be {error:.3g} times off; take one that {LESS}")

    def error(self, before: Size) -> float | None:
        """See `Transform`."""
        return self.made["compressor"].error(before)  # type: ignore[no-any-return]

    def size(self, before: Size) -> Size:
        """See `Transform`."""
        size: Size = self.made["compressor"].size(super().size(before))
        return Size(size.numbers, size.bits, size.beside + 1)

    def encode(self, vector: Vector) -> Vector:
        """See `Transform`."""
        rows, estimate, (new, before) = vector.rows, vector.sender.state["estimate"], self.first(vector)
        both = (Vector(own, before, vector.sender, vector.place) for own in (rows, rows - estimate))
        whole, change = map(self.made["compressor"].encode, both)
        far, near = norm(whole.received()[0] - rows), norm(estimate + change.received()[0] - rows)
        direct = (far < near).unsqueeze(1)

        def decode(arrived: Tensor) -> Tensor:
            tracked = torch.where(direct, taken(whole, arrived), estimate + taken(change, arrived))
            return torch.where(new, rows, tracked)

        one, other = (torch.as_tensor(own.size.beside) for own in (whole, change))
        return vector.coded(
            torch.where(direct, whole.rows, change.rows),
            Size(whole.size.numbers, whole.size.bits, torch.where(direct[:, 0], one, other) + 1),
            decode=decode,
            learn=lambda arrived: self.remembered(vector, estimate=decode(arrived)),
        )
