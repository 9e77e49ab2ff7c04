"""FZooS's client: gradients of a surrogate of all values that it has seen, corrected by everyone's surrogates.

g = grad mu_i(z) + gamma_t (grad mu(z; w) - grad mu(z; w_i)),  z <- z - lr * Adam(g),  mu_i: Gaussian process,
mu(.; w): random features, frozen since the last exchange and evaluated at the current z
Uplink d + M floats. Evaluations: 1 + T + 5 (T - 1) while searching, 1 + 50 while sharing, and 10 in a client's first
round. Shu et al. 2023, algorithm 1 and equations 5 to 8; defaults of its published code, but for gamma.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedsim.client import (
    Cohort,
    Cost,
    InputError,
    NonNegativeFloat,
    NonNegativeInt,
    Order,
    PositiveFloat,
    PositiveInt,
    Shapes,
    Size,
    Streams,
    Update,
    options,
)
from fedsim.zeroth_order import (
    KERNELS,
    MEASURE,
    GaussianProcess,
    LocalSearch,
    Probe,
    RandomFeatures,
    Trajectory,
    draw,
    fit,
    length_scales,
)

LEAST_RADIUS = 1e-3
"""Of the last queries of a round, where the client's model and the server's are the same."""
SHARE = "share"


@options
class FZooS(LocalSearch):
    """A client's surrogates and what it asks for them."""

    up: ClassVar[frozenset[str]] = LocalSearch.up | {"surrogate"}
    accepts: ClassVar[frozenset[str]] = LocalSearch.accepts | {"surrogate", "corrected"}

    gamma: NonNegativeFloat = 1.0
    """Factor of the correction."""
    decay: Literal["constant", "inverse", "adaptive"] = "constant"
    """gamma_t: constant; inverse, gamma / t in local step t, from 1; or adaptive, gamma times the cosine, where
    positive, of the gradients of the client's own two surrogates: how far the frozen one still holds at z.
    """
    kernel: Literal["matern52", "rbf"] = "matern52"
    """Of the Gaussian process: Matern's with nu = 5/2, or the squared exponential (rbf)."""
    profiled: bool = False
    """Choose its length scale as if the size of the function were unknown, and not that of the values' range."""
    neighbours: PositiveInt = 150
    """The process is fitted to so many of a client's values, those nearest to z."""
    history: PositiveInt = 2000
    """The latest values that a client keeps."""
    initial: NonNegativeInt = 10
    """Values in a client's first round, within `radius` of the model."""
    active: NonNegativeInt = 5
    """Further values a step, at most `candidates`."""
    candidates: PositiveInt = 100
    """Points around z among which those of a step are chosen."""
    radius: PositiveFloat = 0.01
    """How far from z these lie at most, in every coordinate."""
    last_active: NonNegativeInt = 50
    """Further values around the new model, when surrogates are shared; at most `last_candidates`."""
    last_candidates: PositiveInt = 200
    """Points around the new model among which these are chosen, within half the mean distance in a coordinate between
    it and z.
    """
    selection: Literal["uncertainty", "random"] = "uncertainty"
    """Of candidates those where the gradient is least certain (uncertainty), or random ones."""
    features: PositiveInt = 10_000
    """M, random features of a surrogate that is shared."""
    feature_scale: PositiveFloat = 1.0
    """Length scale of the features."""
    feature_points: PositiveInt = 500
    """To how many values, those nearest to the model, the features' weights are fitted."""
    feature_seed: int = 0
    """Which features are drawn; not by the run's seed, so that runs of different seeds have them in common."""
    noise: PositiveFloat = 1e-6
    """Variance of the noise of values scaled to [0, 1], for both surrogates."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size != "full":
            raise InputError("batch_size", self.batch_size, "surrogates are of one function; leave it out")
        if self.selection == "uncertainty":
            for asked, of in (("active", "candidates"), ("last_active", "last_candidates")):
                if getattr(self, asked) > getattr(self, of):
                    remedy = f"there are only {getattr(self, of)} {of}; raise them"
                    raise InputError(asked, getattr(self, asked), remedy)

    def state(self, dimension: int) -> Shapes:
        """The trajectory; where the last search ended; the weights last shared, and whether there are any."""
        own = {"reached": (dimension,), "weights": (self.features,), "fitted": ()}
        return Trajectory.shapes(self.history, dimension) | own

    def numbers(self, dimension: int, largest: int) -> int:  # noqa: ARG002
        """The trajectory, the points fitted to, candidates, the process's matrices and weights, in double precision."""
        points = 2 * self.history + 4 * max(self.neighbours, self.feature_points) + 4 * self.last_candidates
        matrices = 12 * self.neighbours * max(self.neighbours, self.last_candidates)
        return 2 * (points * dimension + matrices + 8 * self.features)

    def operations(self, shapes: Sequence[tuple[int, ...]]) -> int:
        """A fit of the process and two gradients of the features; and the features' fit, of the steps' mean."""
        dimension = sum(map(math.prod, shapes))
        process = len(length_scales(dimension)) * self.neighbours**3 // 6 + self.neighbours**2 * dimension
        share = self.features * self.last_active * (dimension + self.feature_points) // self.steps
        return process + 2 * self.features * dimension + share

    def cost(self, order: Order, examples: Tensor) -> Cost:
        """Evaluations of a search, or of sharing, which sends M floats."""
        if order.action == MEASURE:
            return self.declared(order, examples, 0)
        if order.action == SHARE:
            surrogate = Size(self.features, 8 * order.payload["params"].element_size())
            return Cost(torch.zeros_like(examples), {"surrogate": surrogate}, 1 + self.last_active)
        cost = self.declared(order, examples, 1 + self.steps + self.active * (self.steps - 1))
        return replace(cost, first=self.initial)

    def train(self, cohort: Cohort) -> Update:
        """Search from the server's model along corrected surrogate gradients, and send the change."""
        theta, seen = cohort.received("params"), Trajectory.of(cohort.state)
        start = theta.expand(len(cohort), -1)
        new = (seen.count == 0).nonzero().flatten()
        around = self._inside(cohort, self._cloud(cohort, "fzoos/initial", start, self.initial, 0)[new])
        seen.add(around, cohort.query(around, rows=new), new)
        difference = self._difference(cohort)
        first, process = list[Tensor](), list[GaussianProcess]()

        def direction(probe: Probe, z: Tensor) -> Tensor:
            first.append(self._ask(cohort, seen, z))
            if process and self.active:
                self._explore(cohort, seen, process.pop(), z, probe.step)
            process[:] = [self._process(seen, z)]
            gradient = process[0].gradient(z.unsqueeze(1))[:, 0]
            if difference is not None:
                gradient = gradient + self._correction(cohort, difference, gradient, z, probe.step)
            return gradient.to(z.dtype)

        z = self.search(cohort, theta, direction)
        self._ask(cohort, seen, z)
        cohort.keep(**seen.state, reached=z)
        return Update({"delta": z - theta}, {"loss": first[0]})

    def share(self, cohort: Cohort) -> Update:
        """Ask around the new model, fit the shared features to the values nearest to it, and send the weights."""
        seen = Trajectory.of(cohort.state)
        x = cohort.received("params").expand(len(cohort), -1)
        self._ask(cohort, seen, x)
        if self.last_active:
            away = (x - cohort.state["reached"]).abs().mean(dim=1, keepdim=True) / 2.0
            radius = away.clamp(min=LEAST_RADIUS).unsqueeze(2)
            cloud = self._cloud(cohort, "fzoos/last", x, self.last_candidates, 0, radius)
            self._pick(cohort, seen, self._process(seen, x), cloud, self.last_active)
        points, values, counts = seen.nearest(x, self.feature_points)
        known, clients = cohort.scratch, cohort.clients.tolist()
        fitted = self._features(cohort).fit(points, values, counts, noise=self.noise, known=known, clients=clients)
        weights = fitted.to(x.dtype)
        cohort.keep(**seen.state, weights=weights, fitted=torch.ones_like(seen.count))
        return Update({"surrogate": weights})

    def _ask(self, cohort: Cohort, seen: Trajectory, x: Tensor) -> Tensor:
        """The values [C] at x [C, d], remembered."""
        values = cohort.query(x.unsqueeze(1))
        seen.add(x.unsqueeze(1), values)
        return values[:, 0]

    def _process(self, seen: Trajectory, z: Tensor) -> GaussianProcess:
        points, values, counts = seen.nearest(z, self.neighbours)
        return fit(KERNELS[self.kernel], points, values, counts, noise=self.noise, profiled=self.profiled)

    def _explore(self, cohort: Cohort, seen: Trajectory, process: GaussianProcess, z: Tensor, step: int) -> None:
        """Ask around z, where the process of the step before is least certain."""
        count = self.candidates if self.selection == "uncertainty" else self.active
        self._pick(cohort, seen, process, self._cloud(cohort, "fzoos/active", z, count, step), self.active)

    def _pick(self, cohort: Cohort, seen: Trajectory, process: GaussianProcess, cloud: Tensor, count: int) -> None:
        """Ask for the values at `count` of the candidates [C, m, d], and remember them."""
        cloud = self._inside(cohort, cloud)
        chosen = cloud[:, :count]
        if self.selection == "uncertainty" and count < cloud.shape[1]:
            places = process.uncertainty(cloud).argsort(dim=1, descending=True, stable=True)[:, :count]
            chosen = cloud.gather(1, places.unsqueeze(2).expand(-1, -1, cloud.shape[2]))
        seen.add(chosen, cohort.query(chosen))

    def _cloud(
        self, cohort: Cohort, purpose: str, center: Tensor, count: int, step: int, radius: float | Tensor | None = None
    ) -> Tensor:
        """Points [C, count, d], uniform within `radius` of each center [C, d] in every coordinate."""
        drawn = cohort.streams.uniform(
            purpose, cohort.clients, (count, center.shape[1]), turn=cohort.turn, step=step, dtype=center.dtype
        )
        return center.unsqueeze(1) + (self.radius if radius is None else radius) * (2.0 * drawn - 1.0)

    def _inside(self, cohort: Cohort, points: Tensor) -> Tensor:
        return points if cohort.bounds is None or not self.project else points.clamp(*cohort.bounds)

    def _features(self, cohort: Cohort) -> RandomFeatures:
        return _shared(self.feature_seed, self.features, cohort.dimension, self.feature_scale, cohort.clients.device)

    def _difference(self, cohort: Cohort) -> Tensor | None:
        """The mean weights less each client's own [C, M], 0 for who has none; None before the first exchange."""
        if not cohort.config.get("corrected"):
            return None
        own, fitted = cohort.state["weights"], cohort.state["fitted"].unsqueeze(1)
        return (cohort.received("surrogate") - own).double() * fitted

    def _correction(self, cohort: Cohort, difference: Tensor, gradient: Tensor, z: Tensor, step: int) -> Tensor:
        """Gamma times the gradient of the mean surrogate less that of the client's own, at z: [C, d]."""
        features = self._features(cohort)
        correction = self.gamma * features.gradient(difference, z)
        if self.decay == "inverse":
            return correction / (step + 1)
        if self.decay == "adaptive":
            frozen = features.gradient(cohort.state["weights"].double(), z)
            return correction * torch.cosine_similarity(frozen, gradient, dim=1).clamp(min=0.0).unsqueeze(1)
        return correction


@lru_cache(maxsize=2)
def _shared(seed: int, number: int, dimension: int, length_scale: float, device: torch.device) -> RandomFeatures:
    """The features that everyone draws for themselves, here once."""
    return draw(Streams(seed), number, dimension, length_scale=length_scale, device=device)
