"""Consensus-based optimisation: particles that drift to where F is low, and explore as long as they disagree.

w_j ~ exp(-alpha F(x_j)), sum_j w_j = 1;  c = sum_j w_j x_j, the global model;  F = sum_i w_i f_i, by default w_i = 1/k
x_j <- x_j - lambda dt (x_j - c) + sigma sqrt(dt) e_j;  xi ~ N(0, I) and e_j = (x_j - c) * xi, elementwise
(anisotropic), or e_j = |x_j - c| xi (isotropic)
Downlink n d floats a client, uplink n floats and n evaluations. Pinnau et al. 2017; anisotropic of Carrillo et al.
2021, whose noise does not grow with d; the rules for alpha as in the package CBXpy. The mean field contracts where
2 lambda > sigma^2, or isotropic 2 lambda > d sigma^2; the anisotropic particles also do with far more noise, and find
minima among many only with it: on Rastrigin's function of 10 coordinates (100 particles, dt 0.01, alpha 30, values
divided by d) sigma = 7 does, sigma <= 3 or isotropic noise does not, and of 20 coordinates neither.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedsim.server import (
    All,
    InputError,
    Metrics,
    NonNegativeFloat,
    Order,
    PositiveFloat,
    PositiveInt,
    ProblemView,
    Replies,
    ServerState,
    Strategy,
    Streams,
    Weighting,
    Window,
    observed,
    options,
)

HALVINGS = 60
"""Steps of the bisection for alpha, on a logarithmic scale."""


@options
class CBO(Strategy):
    """Needs the client `values`."""

    down: ClassVar[frozenset[str]] = frozenset({"candidates"})
    up: ClassVar[frozenset[str]] = frozenset({"values"})

    weighting: Weighting = "uniform"
    """Weights w_i of F = sum_i w_i f_i: by the clients' examples, or uniform, 1/k each."""
    particles: PositiveInt = 100
    """n, how many."""
    drift: NonNegativeFloat = 1.0
    """lambda, how fast particles go to c."""
    sigma: NonNegativeFloat = 5.1
    """How much particles explore, in proportion to their distance from c."""
    noise: Literal["anisotropic", "isotropic"] = "anisotropic"
    """Each coordinate by its own distance from c (anisotropic), or all by the length of x_j - c (isotropic)."""
    dt: PositiveFloat = 0.01
    """The time step."""
    alpha: NonNegativeFloat = 1.0
    """How much low values count in the first round."""
    growth: Annotated[float, Field(ge=1)] = 1.05
    """Factor of alpha in every round."""
    most: PositiveFloat = 1e5
    """The largest alpha."""
    share: Annotated[float, Field(gt=0, le=1)] | None = None
    """Instead of alpha and growth: alpha is such in every round that 1 / sum_j w_j^2, the effective number of
    particles, is this share of n. Not given: alpha grows.
    """
    spread: PositiveFloat | None = None
    """Particles begin uniformly within so much of the model in every coordinate. Not given: anywhere in the problem's
    box, or within 1 where there is none.
    """
    project: bool = True
    """Keep particles within the problem's box."""

    def __post_init__(self) -> None:
        if self.share is not None:
            for name, default in (("alpha", 1.0), ("growth", 1.05)):
                if getattr(self, name) != default:
                    raise InputError(name, getattr(self, name), "share decides on alpha; leave one of them out")

    def init(self, problem: ProblemView) -> ServerState:
        """The model to start from, alpha, and the limits of the particles, [2, d]: of the start, and of all time."""
        params, bounds = problem.initial(), problem.bounds
        spread = self.spread if self.spread is not None or bounds is not None else 1.0
        everywhere = torch.full_like(params, math.inf)
        box = torch.stack((-everywhere, everywhere))
        if bounds is not None:
            box = torch.stack((torch.full_like(params, bounds[0]), torch.full_like(params, bounds[1])))
        begin = box if spread is None else torch.stack((params - spread, params + spread)).clamp(box[0], box[1])
        memory = {"alpha": torch.tensor(min(self.alpha, self.most), dtype=torch.float64), "begin": begin}
        return ServerState(params, memory=memory | ({"box": box} if self.project else {}))

    def seeded(self, state: ServerState, streams: Streams) -> ServerState:
        """The state with a seed, and with the particles, [n, d]."""
        seed, memory = streams.seed_of("cbo"), dict(state.memory)
        lower, upper = memory.pop("begin")
        shape, dtype = (state.params.numel(),), state.params.dtype
        drawn = Streams(seed).uniform("particles", self._numbers(state.params), shape, dtype=dtype)
        particles = lower + (upper - lower) * drawn
        return replace(state, memory={**memory, "seed": torch.tensor(seed), "particles": particles})

    def ask(self, state: ServerState, chosen: Tensor) -> tuple[Order, Window]:
        """Send the particles; wait for everybody."""
        return Order("evaluate", chosen, {"candidates": state.memory["particles"]}, round=state.round), All()

    def tell(self, state: ServerState, replies: Replies) -> tuple[ServerState, Metrics, bool]:
        """Move the particles; without replies they stay."""
        if not len(replies):
            return replace(state, round=state.round + 1), {}, True
        memory, particles = dict(state.memory), state.memory["particles"]
        values = replies.combine(replies.weights(self.weighting), name="values").double()
        alpha = float(memory["alpha"]) if self.share is None else self._decided(values)
        weights = consensus_weights(values, alpha)
        center = weights.to(particles.dtype) @ particles
        streams = Streams(int(memory["seed"]))
        xi = streams.normal(
            "noise", self._numbers(particles), (particles.shape[1],), turn=state.round, dtype=particles.dtype
        )
        memory["particles"] = self.moved(particles, center, xi)
        if "box" in memory:
            memory["particles"] = memory["particles"].clamp(memory["box"][0], memory["box"][1])
        memory["alpha"] = torch.tensor(min(alpha * self.growth, self.most), dtype=torch.float64)
        metrics = {
            "lowest_value": float(values.min()),
            "alpha": alpha,
            "effective": 1.0 / float(weights.square().sum()),
            "disagreement": float((particles - center).square().sum(dim=1).mean().sqrt()),
        }
        moved = replace(state, params=center, round=state.round + 1, memory=memory)
        return moved, {**observed(replies), **metrics}, True

    def moved(self, particles: Tensor, center: Tensor, xi: Tensor) -> Tensor:
        """The particles [n, d] after a step of dt, with normal numbers xi [n, d]."""
        away = particles - center
        scale = away if self.noise == "anisotropic" else torch.linalg.vector_norm(away, dim=1, keepdim=True)
        return particles - self.drift * self.dt * away + self.sigma * math.sqrt(self.dt) * scale * xi

    def _numbers(self, like: Tensor) -> Tensor:
        """The particles' numbers, under which they draw."""
        return torch.arange(self.particles, device=like.device)

    def _decided(self, values: Tensor) -> float:
        """Alpha such that share n particles are effective, within `most`; `most` where values hardly differ."""
        assert self.share is not None
        low, high = 0.0, self.most
        for _ in range(HALVINGS):
            middle = math.sqrt(low * high) if low else high / 2**10
            effective = 1.0 / float(consensus_weights(values, middle).square().sum())
            low, high = (middle, high) if effective > self.share * len(values) else (low, middle)
        return high


def consensus_weights(values: Tensor, alpha: float) -> Tensor:
    """w_j ~ exp(-alpha f_j) that sum to one, [n], of values [n]; the same for f + constant, and without underflow."""
    scaled = -alpha * values
    if not bool(torch.isfinite(scaled).all()):  # of values that stand for infinity, the least has weight all the same
        scaled = -alpha * (values - values.min())
    return torch.softmax(scaled, dim=0)
