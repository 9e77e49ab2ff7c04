"""FZooS as one would write it in NumPy and SciPy: a loop over the clients, each with a list of what it has seen.

Shu et al. 2023, algorithm 1, with a length scale from the same 13, the same features and the same options as fedsim's.
On quadratics f_i(x) = (0.1/d) (sum_j s_ij u_j^2 + sum_j o_ij u_j + 1), u = -10 + 20 clip(x, 0, 1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_solve, cholesky, solve_triangular
from scipy.spatial.distance import cdist

Numbers = NDArray[np.float64]

STEPS, LR, NEIGHBOURS, HISTORY, RADIUS, NOISE = 10, 0.01, 150, 2000, 0.01, 1e-6
INITIAL, ACTIVE, CANDIDATES, LAST_ACTIVE, LAST_CANDIDATES = 10, 5, 100, 50, 200
FEATURES, FEATURE_POINTS = 10_000, 500


def scaled(y: Numbers) -> tuple[Numbers, float]:
    """Values in [0, 1], and their range."""
    span = float(y.max() - y.min())
    return (y - y.min()) / (span or 1.0), span


def nearest(x: Numbers, y: Numbers, center: Numbers, count: int) -> tuple[Numbers, Numbers]:
    """The pairs nearest to a point, of the latest ones."""
    x, y = x[-HISTORY:], y[-HISTORY:]
    chosen = np.sort(np.argsort(((x - center) ** 2).sum(axis=1), kind="stable")[:count])
    return x[chosen], y[chosen]


class Process:
    """A Gaussian process with the Matern-5/2 kernel of the likeliest length scale."""

    def __init__(self, x: Numbers, y: Numbers) -> None:
        d = x.shape[1]
        _, first = np.unique(x[::-1], axis=0, return_index=True)
        kept = np.sort(len(x) - 1 - first)
        self.x = x[kept]
        targets, span = scaled(y[kept])
        distances, best = cdist(self.x, self.x), -math.inf
        for scale in np.logspace(math.log10(0.005), 1.0, 13) * math.sqrt(d):
            r = math.sqrt(5.0) / scale * distances
            matrix = (1.0 + r + r * r / 3.0) * np.exp(-r) + NOISE * np.eye(len(r))
            try:
                factor = cholesky(matrix, lower=True)
            except LinAlgError:
                continue
            white = solve_triangular(factor, targets, lower=True)
            evidence = -0.5 * float(white @ white) - float(np.log(np.diag(factor)).sum())
            if evidence > best:
                best, self.scale, self.factor = evidence, float(scale), factor
        self.weights = span * cho_solve((self.factor, True), targets)

    def slopes(self, z: Numbers) -> Numbers:
        """s_a at points z [m, d]: [m, n]."""
        r = math.sqrt(5.0) / self.scale * cdist(z, self.x)
        slopes: Numbers = 5.0 / (3.0 * self.scale**2) * (1.0 + r) * np.exp(-r)
        return slopes

    def gradient(self, z: Numbers) -> Numbers:
        """Of the mean, at z [d]."""
        pull: Numbers = self.slopes(z[None])[0] * self.weights
        gradient: Numbers = pull @ self.x - pull.sum() * z
        return gradient

    def uncertainty(self, z: Numbers) -> Numbers:
        """The trace of the gradient's covariance at z [m, d], but for what is the same everywhere: [m]."""
        jacobian = self.slopes(z)[:, :, None] * (self.x - z[:, None])
        white: Numbers = solve_triangular(self.factor, jacobian.transpose(1, 0, 2).reshape(len(self.x), -1), lower=True)
        known: Numbers = (white**2).reshape(len(self.x), len(z), -1).sum(axis=(0, 2))
        return -known


@dataclass
class Seen:
    """A client's pairs."""

    x: list[Numbers] = field(default_factory=list)
    y: list[float] = field(default_factory=list)


class PlainFZooS:
    """scale, shift: s and o, [N, d]; start: x_0 [d]; seed: of everything that is drawn."""

    def __init__(self, scale: Numbers, shift: Numbers, start: Numbers, seed: int) -> None:
        self.scale, self.shift, self.model = scale, shift, start
        self.draws = np.random.default_rng(seed)
        self.frequencies = self.draws.standard_normal((FEATURES, len(start)))
        self.phases = self.draws.uniform(0.0, 2.0 * math.pi, FEATURES)
        self.clients = [Seen() for _ in scale]
        self.weights: list[Numbers] = []

    def value(self, client: int, x: Numbers) -> float:
        """f_i(x)."""
        u = -10.0 + 20.0 * np.clip(x, 0.0, 1.0)
        return float(0.1 / len(u) * (self.scale[client] @ (u * u) + self.shift[client] @ u + 1.0))

    def gap(self) -> float:
        """F - F* at the model."""
        return self.average(self.model) - (0.1 / len(self.model) - 0.025)

    def average(self, x: Numbers) -> float:
        """F(x)."""
        return float(np.mean([self.value(client, x) for client in range(len(self.clients))]))

    def round(self) -> None:
        """One round, with a guard: the model is kept where the clients' mean is no better."""
        reached = [self.search(client, seen) for client, seen in enumerate(self.clients)]
        candidate = np.mean(reached, axis=0)
        if self.average(candidate) < self.average(self.model):
            self.model = candidate
        self.weights = [self.share(client, seen, reached[client]) for client, seen in enumerate(self.clients)]

    def ask(self, client: int, seen: Seen, points: Numbers) -> None:
        """Evaluate, and remember."""
        for x in points:
            seen.x.append(x)
            seen.y.append(self.value(client, x))

    def around(self, center: Numbers, radius: float, count: int) -> Numbers:
        """Uniform points in a box."""
        return np.clip(center + radius * self.draws.uniform(-1.0, 1.0, (count, len(center))), 0.0, 1.0)

    def process(self, seen: Seen, z: Numbers) -> Process:
        """Fitted to the nearest pairs."""
        return Process(*nearest(np.array(seen.x), np.array(seen.y), z, NEIGHBOURS))

    def pick(self, process: Process, cloud: Numbers, count: int) -> Numbers:
        """The candidates of which least is known."""
        return cloud[np.argsort(-process.uncertainty(cloud), kind="stable")[:count]]

    def search(self, client: int, seen: Seen) -> Numbers:
        """Adam along the corrected gradients of the client's surrogate."""
        z, first, second = self.model.copy(), np.zeros_like(self.model), np.zeros_like(self.model)
        if not seen.x:
            self.ask(client, seen, self.around(z, RADIUS, INITIAL))
        self.ask(client, seen, z[None])
        for step in range(1, STEPS + 1):
            process = self.process(seen, z)
            gradient = process.gradient(z)
            if self.weights:
                gradient = gradient + self.slope(np.mean(self.weights, axis=0) - self.weights[client], z)
            first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
            z = z - LR * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
            z = np.clip(z, 0.0, 1.0)
            self.ask(client, seen, z[None])
            if step < STEPS:
                self.ask(client, seen, self.pick(process, self.around(z, RADIUS, CANDIDATES), ACTIVE))
        return z

    def slope(self, weights: Numbers, z: Numbers) -> Numbers:
        """The gradient of the features' surrogate."""
        waves: Numbers = weights * np.sin(self.frequencies @ z + self.phases)
        return -math.sqrt(2.0 / FEATURES) * (waves @ self.frequencies)

    def share(self, client: int, seen: Seen, reached: Numbers) -> Numbers:
        """Ask around the model, and fit the features to what is near it."""
        self.ask(client, seen, self.model[None])
        radius = max(float(np.abs(self.model - reached).mean()) / 2.0, 1e-3)
        cloud = self.around(self.model, radius, LAST_CANDIDATES)
        self.ask(client, seen, self.pick(self.process(seen, self.model), cloud, LAST_ACTIVE))
        x, y = nearest(np.array(seen.x), np.array(seen.y), self.model, FEATURE_POINTS)
        targets, span = scaled(y)
        features = math.sqrt(2.0 / FEATURES) * np.cos(x @ self.frequencies.T + self.phases)
        factor = cholesky(features @ features.T + NOISE * np.eye(len(x)), lower=True)
        weights: Numbers = span * (cho_solve((factor, True), targets) @ features)
        return weights
