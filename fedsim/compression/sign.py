"""Signs with a scale: each number becomes the mean absolute value, with its sign.

C(v)_j = (|v|_1 / d) sign(v_j), where 0 counts as positive;  |C(v) - v|^2 = (1 - |v|_1^2 / (d |v|^2)) |v|^2
A scale, and a bit a number. Karimireddy et al. 2019.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from fedsim.compression.groups import Grouped, absolute_sum, hold_numbers, of_groups, spread
from fedsim.core.options import options
from fedsim.core.plugins import kind_of
from fedsim.exchange.messages import Size
from fedsim.exchange.transforms import Vector


@options
class Sign(Grouped):
    """Biased, and of no more use than 1/d on the worst of vectors; it wants feedback."""

    keeps_statistics: ClassVar[bool] = False

    def check(self, before: Size) -> None:
        """See `Transform`."""
        hold_numbers(kind_of("transforms", self), before)
        super().check(before)

    def size(self, before: Size) -> Size:
        """See `Transform`."""
        return Size(before.numbers, 1, before.beside + before.bits * len(self.groups(before.numbers)))

    def error(self, before: Size) -> float:
        """See `Transform`."""
        return 1.0 - 1.0 / max(1, *self.groups(before.numbers))

    def encode(self, vector: Vector) -> Vector:
        """See `Transform`."""
        rows, groups = vector.rows, self.groups(vector.rows.shape[1])
        counts = torch.tensor(groups, dtype=torch.float64, device=rows.device).clamp_(min=1.0)
        scales = spread((of_groups(rows, groups, absolute_sum) / counts).to(rows.dtype), groups)
        return vector.coded(torch.where(rows >= 0, scales, -scales), self.size(vector.size))
