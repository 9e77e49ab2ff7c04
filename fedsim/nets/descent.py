"""Local training as one piece of work: all steps of a cohort, for what can take them without coming back in between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

EPSILON = 1e-12
"""Added to the norm of a gradient that is clipped."""


@dataclass(frozen=True)
class Rule:
    """How a step follows from the gradient g of a client's loss at y.

    g is scaled to a norm of at most `clip_norm`, if there is one; then g <- g + decay y - shift. sgd: with momentum,
    perhaps in Nesterov's form; adam and lion with beta1 and beta2, adam with epsilon; with lion y <- (1 - lr decoupled)
    y comes before the step.
    """

    optimizer: str
    momentum: float
    nesterov: bool
    beta1: float
    beta2: float
    epsilon: float
    clip_norm: float | None
    decay: float
    decoupled: float

    @property
    def plain(self) -> bool:
        """Whether a step is a multiple of the gradient, so that it may be fused with it."""
        return self.optimizer == "sgd" and self.momentum == 0.0 and self.clip_norm is None


@dataclass(frozen=True, eq=False)
class Descent:
    """All local steps of C clients, sorted by their steps, longest first.

    start: [d] or [C, d]; shift: the same, or None. x: [n, ...], y: [n], the examples. index: int64 [R, B], the first
    `count`, int64 [R], of a row are the examples of a step; rows of the clients at step s are begin[s], begin[s] + 1,
    ..., R rows in all. steps: int64 [C]. rates: the learning rate of each step.
    """

    start: Tensor
    shift: Tensor | None
    x: Tensor
    y: Tensor
    index: Tensor
    count: Tensor
    begin: Sequence[int]
    steps: Tensor
    rates: Sequence[float]
    rule: Rule


@dataclass(frozen=True, eq=False)
class Descended:
    """Where clients end. params: [C, d]. losses: [R], of each row before its step. total: [C], their sums."""

    params: Tensor
    losses: Tensor
    total: Tensor


class Loop(Protocol):
    """What takes all steps at once."""

    def descend(self, descent: Descent) -> Descended:
        """Take them."""
        ...
