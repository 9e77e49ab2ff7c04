"""Server optimizers: what the server does with the averaged change of a cohort's parameters.

An optimizer is two pure functions on flat vectors, after optax: `init` makes a state, and `step` turns the
cohort's centre `delta` [d] (the negative of a gradient) into what is to be added to the parameters, and a new
state. Nothing that goes in is changed, so a state can be kept, saved and returned to. Beside those of this file, every
rule by which clients step is one that needs the gradient alone (see `fedsim.server.rules`).

With x the parameters, Delta the averaged change and eta the strategy's `server_lr`:

    sgd      v <- momentum v + Delta;                       x <- x + eta v                      (FedAvgM)
    adagrad  v <- v + Delta^2;                              x <- x + eta m / (sqrt v + tau)     (FedOpt)
    adam     v <- beta2 v + (1 - beta2) Delta^2;            as above
    yogi     v <- v - (1 - beta2) Delta^2 sign(v - Delta^2); as above
             m <- beta1 m + (1 - beta1) Delta for these three

Hsu et al. 2019 (FedAvgM); Reddi et al. 2021, algorithm 2 (FedOpt). Flower 1.42 departs from the latter, and
`variant` chooses: "paper" starts v at tau^2 without bias correction; "flwr" starts v at 0, and its Adam
multiplies eta by sqrt(1 - beta2^(k+1)) / (1 - beta1^(k+1)) in its k-th step, k = 1, 2, ...
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from fedsim.core.errors import InputError
from fedsim.core.options import Fraction, PositiveFloat, options
from fedsim.nets.stack import Layout

OptimizerState = Mapping[str, Tensor]
Variant = Literal["paper", "flwr"]


class ServerOptimizer(ABC):
    """What the server makes of an averaged change; options of a subclass are its numbers."""

    @abstractmethod
    def init(self, params: Tensor, layout: Layout) -> OptimizerState:
        """What is remembered before the first step. params: [d], which lie as the layout says."""

    @abstractmethod
    def step(self, state: OptimizerState, delta: Tensor, lr: float, params: Tensor) -> tuple[Tensor, OptimizerState]:
        """What to add to the parameters [d] after an averaged change delta [d], and the new state."""


@options
class Sgd(ServerOptimizer):
    """v <- momentum v + Delta; x <- x + eta v, or with nesterov x <- x + eta (Delta + momentum v)."""

    momentum: Fraction = 0.0
    """How slowly v moves; 0: it is Delta."""
    nesterov: bool = False
    """Nesterov's form, which needs a momentum."""

    def __post_init__(self) -> None:
        if self.nesterov and not self.momentum:
            raise InputError("nesterov", True, "needs a momentum above 0")

    def init(self, params: Tensor, layout: Layout) -> OptimizerState:  # noqa: ARG002
        """Keep a velocity of zeros, or nothing at all without momentum."""
        return {"v": torch.zeros_like(params)} if self.momentum else {}

    def step(
        self,
        state: OptimizerState,
        delta: Tensor,
        lr: float,
        params: Tensor,  # noqa: ARG002
    ) -> tuple[Tensor, OptimizerState]:
        """What to add to the parameters after an averaged change delta [d], and the new state."""
        if not self.momentum:
            return (delta if lr == 1.0 else lr * delta), {}
        velocity = self.momentum * state["v"] + delta
        ahead = delta + self.momentum * velocity if self.nesterov else velocity
        return lr * ahead, {"v": velocity}


@options
class Adagrad(ServerOptimizer):
    """v <- v + Delta^2; x <- x + eta m / (sqrt v + tau)."""

    beta1: Fraction = 0.0
    """How slowly m moves; 0: it is Delta."""
    tau: PositiveFloat = 1e-3
    """Added to the root of v."""
    variant: Variant = "paper"
    """How v begins and whether biases are corrected: as in the paper, or as in Flower."""

    def init(self, params: Tensor, layout: Layout) -> OptimizerState:  # noqa: ARG002
        """Both moments: m of zeros, v as the variant says."""
        return _moments(params, self.tau, self.variant)

    def step(
        self,
        state: OptimizerState,
        delta: Tensor,
        lr: float,
        params: Tensor,  # noqa: ARG002
    ) -> tuple[Tensor, OptimizerState]:
        """What to add to the parameters after an averaged change delta [d], and the new state."""
        mean = torch.lerp(delta, state["m"], self.beta1)
        square = state["v"] + delta.square()
        return _scaled(mean, square, lr, self.tau), {"m": mean, "v": square}


@options
class Adam(ServerOptimizer):
    """v <- beta2 v + (1 - beta2) Delta^2; x <- x + eta m / (sqrt v + tau)."""

    beta1: Fraction = 0.9
    """How slowly m moves; 0: it is Delta."""
    beta2: Fraction = 0.99
    """How slowly v moves."""
    tau: PositiveFloat = 1e-3
    """Added to the root of v."""
    variant: Variant = "paper"
    """How v begins and whether biases are corrected: as in the paper, or as in Flower."""

    def init(self, params: Tensor, layout: Layout) -> OptimizerState:  # noqa: ARG002
        """Both moments, and how many steps were taken."""
        return {**_moments(params, self.tau, self.variant), "steps": torch.zeros((), dtype=torch.int64)}

    def step(
        self,
        state: OptimizerState,
        delta: Tensor,
        lr: float,
        params: Tensor,  # noqa: ARG002
    ) -> tuple[Tensor, OptimizerState]:
        """What to add to the parameters after an averaged change delta [d], and the new state."""
        mean = torch.lerp(delta, state["m"], self.beta1)
        square = torch.lerp(delta.square(), state["v"], self.beta2)
        steps = state["steps"] + 1
        if self.variant == "flwr":
            power = int(steps) + 1
            lr *= math.sqrt(1 - self.beta2**power) / (1 - self.beta1**power)
        return _scaled(mean, square, lr, self.tau), {"m": mean, "v": square, "steps": steps}


@options
class Yogi(ServerOptimizer):
    """v <- v - (1 - beta2) Delta^2 sign(v - Delta^2); x <- x + eta m / (sqrt v + tau)."""

    beta1: Fraction = 0.9
    """How slowly m moves; 0: it is Delta."""
    beta2: Fraction = 0.99
    """How slowly v moves."""
    tau: PositiveFloat = 1e-3
    """Added to the root of v."""
    variant: Variant = "paper"
    """How v begins and whether biases are corrected: as in the paper, or as in Flower."""

    def init(self, params: Tensor, layout: Layout) -> OptimizerState:  # noqa: ARG002
        """Both moments: m of zeros, v as the variant says."""
        return _moments(params, self.tau, self.variant)

    def step(
        self,
        state: OptimizerState,
        delta: Tensor,
        lr: float,
        params: Tensor,  # noqa: ARG002
    ) -> tuple[Tensor, OptimizerState]:
        """What to add to the parameters after an averaged change delta [d], and the new state."""
        mean = torch.lerp(delta, state["m"], self.beta1)
        new = delta.square()
        square = state["v"] - (1 - self.beta2) * new * torch.sign(state["v"] - new)
        return _scaled(mean, square, lr, self.tau), {"m": mean, "v": square}


def _moments(params: Tensor, tau: float, variant: Variant) -> OptimizerState:
    start = tau**2 if variant == "paper" else 0.0
    return {"m": torch.zeros_like(params), "v": torch.full_like(params, start)}


def _scaled(mean: Tensor, square: Tensor, lr: float, tau: float) -> Tensor:
    return lr * mean / (square.sqrt() + tau)
