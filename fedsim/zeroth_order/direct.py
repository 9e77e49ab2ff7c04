"""Directions that a direct search tries, and guides: what a server takes for the slope of F, by which it attacks."""

from __future__ import annotations

from typing import Annotated, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor

from fedsim.core.options import options
from fedsim.zeroth_order.surrogates.gaussian_process import fit
from fedsim.zeroth_order.surrogates.kernels import KERNELS

PGD_STEPS = 10
"""Steps of a projected attack, each of 2.5 / 10 of its radius."""
Attack = Literal["fgsm", "pgd"]
Poll = Literal["2n", "n+1"]


class Guide(Protocol):
    """A plug-in of the group `guides`: an `@options` class.

    history: how many of the last points with their values it wants to be told.
    """

    history: int

    def slope(self, x: Tensor, points: Tensor, values: Tensor) -> Tensor:
        """What it takes for the gradient of F at x, float64 [d]; zero where it knows nothing.

        points: float64 [m, d], values: float64 [m], of F there, the last one last; of those that it wants.
        """
        ...


@options
class Fitted:
    """A Gaussian process with a Matern 5/2 kernel, fitted to what the search has found so far."""

    history: Annotated[int, Field(ge=2, le=2000)] = 60
    """How many of the last points it is fitted to."""

    def slope(self, x: Tensor, points: Tensor, values: Tensor) -> Tensor:
        """The gradient of its mean."""
        count = torch.tensor([len(points)], device=points.device)
        process = fit(KERNELS["matern52"], points.unsqueeze(0), values.unsqueeze(0), count, profiled=True)
        return process.gradient(x.view(1, 1, -1))[0, 0]


def attacked(
    guide: Guide, x: Tensor, radius: float, kind: Literal["fgsm", "pgd"], told: tuple[Tensor, Tensor]
) -> Tensor:
    """The displacement of an attack on F within a cube, [d]: zero where the slope is.

    fgsm: -r sign(slope at x). pgd: `PGD_STEPS` steps of 2.5 r / `PGD_STEPS` along the sign where it has come to.
    """
    if kind == "fgsm":
        found: Tensor = guide.slope(x, *told).sign() * -radius
        return found
    away: Tensor = torch.zeros_like(x)
    for _ in range(PGD_STEPS):
        step = guide.slope(x + away, *told).sign()
        away = (away - 2.5 * radius / PGD_STEPS * step).clamp(-radius, radius)
    return away


def in_ball(normal: Tensor, uniform: float, radius: float) -> Tensor:
    """A point of the ball of a radius, uniform in it, of a normal vector [d] and a uniform number."""
    unit: Tensor = normal / normal.norm()
    length: float = radius * uniform ** (1.0 / len(normal))
    return unit * length


def in_cube(normal: Tensor, radius: float) -> Tensor:
    """A vector along a normal one, [d], whose largest number is a radius."""
    found: Tensor = normal / normal.abs().max()
    return found * radius


def polled(normal: Tensor, place: int, poll: Poll) -> Tensor:
    """A direction of a poll, [d], as long as it comes: they span positively.

    H = I - 2 u u' with u along a normal vector has orthonormal columns. "2n": these, and then their negatives. "n+1":
    these, and the negative of their sum.
    """
    u, dimension = normal / normal.norm(), len(normal)
    if place < dimension or poll == "2n":
        column = place % dimension
        found: Tensor = -2.0 * u[column] * u
        found[column] += 1.0
        return found if place < dimension else found.neg()
    found = 2.0 * u.sum() * u
    return found.sub(1.0)


def polls(dimension: int, poll: Poll) -> int:
    """How many directions a poll has."""
    return 2 * dimension if poll == "2n" else dimension + 1
