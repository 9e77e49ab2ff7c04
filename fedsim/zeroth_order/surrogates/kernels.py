"""Stationary, isotropic kernels of unit variance, k(x, x') = k(|x - x'|), and what their gradients need.

A distance may be any tensor and a length scale l > 0 a number or a tensor that broadcasts against it. The gradient
of a kernel is dk(x, a)/dx = -slope (x - a). That of a Gaussian process with no data has the covariance
d2k(x, x')/dx dx' at x' = x, which is `gradient_variance` times the identity, and equals the slope at distance 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, TypeVar

from torch import Tensor

LengthScale = TypeVar("LengthScale", float, Tensor, float | Tensor)


class Kernel(Protocol):
    """What a surrogate asks of a kernel; all of it elementwise."""

    def value(self, distance: Tensor, length_scale: float | Tensor) -> Tensor:
        """The kernel at these distances."""
        ...

    def slope(self, distance: Tensor, length_scale: float | Tensor) -> Tensor:
        """The factor in dk(x, a)/dx = -slope (x - a), at these distances |x - a|."""
        ...

    def gradient_variance(self, length_scale: LengthScale) -> LengthScale:
        """The variance of each coordinate of the gradient where nothing is known."""
        ...


@dataclass(frozen=True)
class Matern52:
    """k = (1 + r + r^2/3) e^-r with r = sqrt(5) |x - x'| / l. Rasmussen and Williams 2006, equation 4.17."""

    def value(self, distance: Tensor, length_scale: float | Tensor) -> Tensor:
        """The kernel, of the shape of the distances and length scales together."""
        less = distance * (-math.sqrt(5.0) / length_scale)
        # Of -r, as 1 - r (-r/3 - 1): squares and quotients of torch take much longer.
        return (less * (1.0 / 3.0)).sub_(1.0).mul_(less).add_(1.0).mul_(less.exp_())

    def slope(self, distance: Tensor, length_scale: float | Tensor) -> Tensor:
        """5 / (3 l^2) (1 + r) e^-r."""
        less = distance * (-math.sqrt(5.0) / length_scale)
        return (1.0 - less).mul_(less.exp_()).mul_(self.gradient_variance(length_scale))

    def gradient_variance(self, length_scale: LengthScale) -> LengthScale:
        """5 / (3 l^2)."""
        return 5.0 / (3.0 * length_scale * length_scale)


@dataclass(frozen=True)
class RBF:
    """k = exp(-|x - x'|^2 / (2 l^2)). Rasmussen and Williams 2006, equation 4.9."""

    def value(self, distance: Tensor, length_scale: float | Tensor) -> Tensor:
        """The kernel, of the shape of the distances and length scales together."""
        ratio = distance * (1.0 / length_scale)
        return (ratio * -0.5).mul_(ratio).exp_()

    def slope(self, distance: Tensor, length_scale: float | Tensor) -> Tensor:
        """The kernel divided by l^2."""
        return self.value(distance, length_scale).mul_(self.gradient_variance(length_scale))

    def gradient_variance(self, length_scale: LengthScale) -> LengthScale:
        """1 / l^2."""
        return 1.0 / (length_scale * length_scale)


KERNELS: dict[str, Kernel] = {"matern52": Matern52(), "rbf": RBF()}
"""By the names that options give them."""
