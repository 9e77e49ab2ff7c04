"""Benchmark functions of many coordinates, which differ between clients as much as is asked for.

On x in [0, 1]^d, clipped to it inside: u = -10 + 20 clip(x, 0, 1). For each coordinate j two independent draws a_.j,
a'_.j ~ Dir(1/N, ..., 1/N) over the N clients make
    s_ij = base + C (a_ij - 1/N),   o_ij = base' + C (a'_ij - 1/N),
whose means over the clients are base and base'; C = 0 makes all clients equal. Shu et al. 2023 (FZooS), section 6.1.

quadratic (base = base' = 1): f_i = (0.1/d) (sum_j s_ij u_j^2 + sum_j o_ij u_j + 1). Whatever C and N are,
F = (0.1/d) (|u|^2 + sum_j u_j + 1), least at x = 0.475: F* = 0.1/d - 0.025. s_ij >= 1 - C/N: with C > N an f_i may be
concave in some coordinates.
The others are f_i = g(v), v_j = s_ij (u_j - o_ij), base = 0.1, base' = 0; g >= 0, and g = 0 where said:
ackley: 20 - 20 exp(-0.2 sqrt(mean_j v_j^2)) + e - exp(mean_j cos(pi v_j)), at v = 0.
levy: with w = 1 + (v - 1)/4, sin^2(pi w_1) + sum_{j<d} (w_j - 1)^2 (1 + 10 sin^2(pi w_j + 1)) + (w_d - 1)^2 (1 +
sin^2(2 pi w_d)), at v = 1. The authors' code leaves the first coordinate out of the sum; here it is in it.
rosenbrock: (1 / (100 (d-1))) sum_{j<d} (100 (v_{j+1} - v_j^2)^2 + (1 - v_j)^2), at v = 1.
rastrigin: (0.05/d) sum_j (v_j^2 + 10 - 10 cos(2 pi v_j)), at v = 0.
The factors of the last two, ours, make them of order 1 for C = 0; with C the fourth power in rosenbrock grows fast.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from fedsim.core.errors import InputError
from fedsim.core.options import NonNegativeFloat, PositiveInt, Share, options
from fedsim.core.streams import Streams
from fedsim.problems.base import Setting
from fedsim.problems.black_box import BlackBox
from fedsim.problems.evaluators import Functions, Stacked

AT_ONCE = 2**24
"""Coordinates that are worked on at once, unless a single point of each client has more."""


@options
class BenchmarkFunctions:
    """The run's seed draws coefficients and the start."""

    function: Literal["quadratic", "ackley", "levy", "rosenbrock", "rastrigin"] = "quadratic"
    """Which one."""
    dimension: PositiveInt = 300
    """d, coordinates; rosenbrock has two at least."""
    clients: PositiveInt = 5
    """N, how many clients there are."""
    heterogeneity: NonNegativeFloat = 5.0
    """C, how much the clients' functions differ."""
    noise: NonNegativeFloat = 0.0
    """Standard deviation of the noise that is added to every answer."""
    start: Literal["random"] | Share = "random"
    """Every coordinate of x_0, or random: x_0 ~ U[0, 1]^d."""

    values_only: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.function == "rosenbrock" and self.dimension < 2:
            raise InputError("dimension", self.dimension, "rosenbrock has two at least")

    def build(self, setting: Setting) -> BlackBox:
        """The problem, on the experiment's device and in its precision."""
        streams = Streams(setting.seed)
        start: float | np.ndarray = (
            streams.generator("synthetic-start").random(self.dimension) if self.start == "random" else self.start
        )
        return BlackBox(
            OneFamily(self.family(streams, setting.device, setting.dtype), self.clients, differentiable=True),
            dimension=self.dimension,
            bounds=(0.0, 1.0),
            start=start,
            optimum=self.optimum,
            noise=self.noise,
            device=setting.device,
            dtype=setting.dtype,
        )

    @property
    def optimum(self) -> float | None:
        """Min F, where it is known: always of the quadratic, else if all clients are equal."""
        if self.function == "quadratic":
            return 0.1 / self.dimension - 0.025
        return 0.0 if self.heterogeneity == 0 or self.clients == 1 else None

    def family(self, streams: Streams, device: torch.device, dtype: torch.dtype) -> Family:
        """The functions of all clients."""
        scale, shift = (1.0, 1.0) if self.function == "quadratic" else (0.1, 0.0)

        def drawn(name: str, base: float) -> Tensor:
            concentration = np.full(self.clients, 1.0 / self.clients)
            shares = streams.generator(f"synthetic-{name}").dirichlet(concentration, self.dimension)
            spread = base + self.heterogeneity * (shares.T - 1.0 / self.clients)
            return torch.from_numpy(np.ascontiguousarray(spread)).to(device, dtype)

        return Family(SHAPES[self.function], drawn("scale", scale), drawn("shift", shift))


Shape = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Values [C, Q] from u [C, Q, d] and a client's coefficients s and o, each [C, 1, d]."""


@dataclass(frozen=True)
class Family:
    """N functions of one shape. scale: s, [N, d]; shift: o, [N, d]."""

    shape: Shape
    scale: Tensor
    shift: Tensor

    def __call__(self, clients: Tensor, x: Tensor) -> Tensor:
        """Values [C, Q] of clients int64 [C] at x [C, Q, d]; memory is bounded, whatever Q is."""
        scale, shift = self.scale[clients].unsqueeze(1), self.shift[clients].unsqueeze(1)
        at_once = max(1, AT_ONCE // max(1, len(clients) * x.shape[2]))
        parts = [
            self.shape(-10.0 + 20.0 * part.clamp(0.0, 1.0), scale, shift) for part in torch.split(x, at_once, dim=1)
        ]
        return torch.cat(parts, dim=1)


@dataclass(frozen=True)
class OneFamily(Stacked):
    """The functions of a family, which those of another of the same shape join without another call."""

    function: Family

    def join(self, others: Sequence[Functions]) -> Functions:
        """See `Functions.join`: one family, where all have one shape."""
        families = [self.function, *(other.function for other in others if isinstance(other, OneFamily))]
        if len(families) <= len(others) or any(family.shape is not self.function.shape for family in families):
            return super().join(others)
        scale, shift = (torch.cat([family.scale for family in families]), torch.cat([f.shift for f in families]))
        joined = Family(self.function.shape, scale, shift)
        return OneFamily(joined, len(families) * self.num_clients, self.differentiable)


def quadratic(u: Tensor, s: Tensor, o: Tensor) -> Tensor:
    """(0.1/d) (sum_j s_j u_j^2 + sum_j o_j u_j + 1)."""
    return (0.1 / u.shape[-1]) * (((s * u + o) * u).sum(-1) + 1.0)


def ackley(u: Tensor, s: Tensor, o: Tensor) -> Tensor:
    """Ackley's function with 20, 0.2 and the frequency pi; its gradient at v = 0 is taken to be 0."""
    v = s * (u - o)
    radius = torch.linalg.vector_norm(v, dim=-1) / math.sqrt(v.shape[-1])
    return 20.0 - 20.0 * torch.exp(-0.2 * radius) + math.e - torch.exp(torch.cos(math.pi * v).mean(-1))


def levy(u: Tensor, s: Tensor, o: Tensor) -> Tensor:
    """Levy's function, with every coordinate but the last in the sum."""
    w = 1.0 + (s * (u - o) - 1.0) / 4.0
    inner, last = w[..., :-1], w[..., -1]
    waves = (inner - 1.0).square() * (1.0 + 10.0 * torch.sin(math.pi * inner + 1.0).square())
    end = (last - 1.0).square() * (1.0 + torch.sin(2.0 * math.pi * last).square())
    return torch.sin(math.pi * w[..., 0]).square() + waves.sum(-1) + end


def rosenbrock(u: Tensor, s: Tensor, o: Tensor) -> Tensor:
    """Rosenbrock's function, divided by 100 (d-1)."""
    v = s * (u - o)
    here, following = v[..., :-1], v[..., 1:]
    valley = 100.0 * (following - here.square()).square() + (1.0 - here).square()
    return valley.sum(-1) / (100.0 * (v.shape[-1] - 1))


def rastrigin(u: Tensor, s: Tensor, o: Tensor) -> Tensor:
    """Rastrigin's function, times 0.05/d."""
    v = s * (u - o)
    return (0.05 / v.shape[-1]) * (v.square() + 10.0 - 10.0 * torch.cos(2.0 * math.pi * v)).sum(-1)


SHAPES: dict[str, Shape] = {
    "quadratic": quadratic,
    "ackley": ackley,
    "levy": levy,
    "rosenbrock": rosenbrock,
    "rastrigin": rastrigin,
}
