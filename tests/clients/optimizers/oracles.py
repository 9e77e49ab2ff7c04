"""The problems on which rules of a step are held to numbers of their official packages, and the walk over them.

Q: f_c(y) = (y - s)' A_c (y - s) / 2 of a vector, from (1, 1). W: f_c(W) = |diag(L_c) (W - T)|^2 / 2 of a 3 x 2 matrix,
from 0. P: what a server has averaged in three rounds, whose pseudo-gradient is the change's opposite, from (1, 1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedsim.client import Beginning, Optimizer, Stack, Step
from fedsim.nets.descent import Rule

EVERYBODY = slice(None)


def exact(numbers: object) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


@dataclass(frozen=True)
class Quadratic:
    """f_c(y) = <y - least, B_c (y - least)> / 2, of y [r, q]; B_c: curvatures [C, r, r], from the left.

    vector: y [r, 1] is a vector. apart: each number is a leaf of its own.
    """

    curvatures: Tensor
    least: Tensor
    start: Tensor
    vector: bool = False
    apart: bool = False

    def stack(self, y: Tensor) -> Stack:
        """[k, r, q] as a stack in memory of its own."""
        if self.apart:
            return Stack([y[:, row].clone() for row in range(y.shape[1])])
        return Stack([(y.squeeze(2) if self.vector else y).clone()])

    def numbers(self, stack: Stack) -> Tensor:
        """The way back: [k, r, q]."""
        if self.apart:
            return torch.stack(stack.leaves, dim=1)
        return stack.leaves[0].unsqueeze(2) if self.vector else stack.leaves[0]

    def curved(self, along: Stack, clients: slice) -> Stack:
        """The product of each Hessian with a vector."""
        return self.stack(self.curvatures[clients] @ self.numbers(along))

    def losses(self, at: Stack, clients: slice, number: int) -> Tensor:
        """[k]."""
        away = self.numbers(at) - self.least
        return (away * (self.curvatures[clients] @ away)).reshape(len(away), -1).sum(1) / 2

    def gradient(self, at: Stack, clients: slice, number: int) -> Stack:
        """Of the losses."""
        return self.stack(self.curvatures[clients] @ (self.numbers(at) - self.least))


@dataclass(frozen=True)
class Given:
    """One client of which each step's gradient is known, [T, d], wherever it is; its loss is none."""

    gradients: Tensor
    start: Tensor = field(default_factory=lambda: torch.ones(2, 1, dtype=torch.float64))

    def stack(self, y: Tensor) -> Stack:
        """[k, d, 1] as a stack."""
        return Stack([y.squeeze(2).clone()])

    def numbers(self, stack: Stack) -> Tensor:
        """The way back."""
        return stack.leaves[0].unsqueeze(2)

    def losses(self, at: Stack, clients: slice, number: int) -> Tensor:
        """Zeros [k]."""
        return torch.zeros(len(at), dtype=torch.float64)

    def gradient(self, at: Stack, clients: slice, number: int) -> Stack:
        """That of the step."""
        return Stack([self.gradients[number].repeat(len(at), 1)])


Problem = Quadratic | Given
Q = Quadratic(
    exact([[[3, 1], [1, 2]], [[10, 0], [0, 1]]]), exact([[0.6], [-0.8]]), torch.ones(2, 1).double(), vector=True
)
Q_APART = Quadratic(Q.curvatures, Q.least, Q.start, apart=True)
W = Quadratic(
    torch.diag_embed(exact([[1, 2, 3], [3, 1, 0.5]]).square()),
    exact([[1, -1], [0, 2], [0.5, 1]]),
    torch.zeros(3, 2).double(),
)
P = Given(-exact([[3, 4], [-1, 0.5], [0.2, 0.1]]))


@dataclass(frozen=True)
class Known:
    """Draws of a rule that are given, [d], the same for all clients, and for all purposes if these are not named."""

    drawn: Sequence[float] | Mapping[str, Sequence[float]]

    def normal(self, purpose: str, like: Stack) -> Stack:
        """The given ones."""
        sizes = [leaf.shape[1:].numel() for leaf in like.leaves]
        parts = torch.split(exact(self.drawn[purpose] if isinstance(self.drawn, Mapping) else self.drawn), sizes)
        return Stack(
            [part.expand(len(like), -1).reshape(leaf.shape) for part, leaf in zip(parts, like.leaves, strict=True)]
        )

    signs = normal


@dataclass(frozen=True)
class Asked:
    """The `Objective` of a problem's step."""

    problem: Problem
    rule: Rule
    clients: slice
    number: int

    def again(self, at: Stack) -> tuple[Tensor, Stack]:
        """Losses and gradients at another point."""
        gradient = self.problem.gradient(at, self.clients, self.number)
        return self.problem.losses(at, self.clients, self.number), self.rule.corrected(at, gradient, None)

    def product(self, at: Stack, v: Stack) -> Stack:
        """Products with the curvatures, of a problem that has some."""
        assert isinstance(self.problem, Quadratic)
        return self.problem.curved(v, self.clients).add_(v, alpha=self.rule.decay)

    def whole(self, at: Stack, rows: Tensor) -> Stack:
        """The gradients, of which each step has the whole."""
        gradient = self.rule.corrected(at, self.problem.gradient(at, self.clients, self.number), None)
        return Stack([leaf[rows] for leaf in gradient.leaves])


def path(
    optimizer: Optimizer,
    steps: Sequence[int],
    *,
    problem: Problem = Q,
    lr: float | Tensor = 0.1,
    decay: float = 0.0,
    clients: slice = EVERYBODY,
    examples: int = 1,
    draws: Sequence[Sequence[float] | Mapping[str, Sequence[float]]] = (),
    kept: Mapping[str, Tensor] | None = None,
    sent: bool = False,
) -> Tensor:
    """Where clients are after each step, [T, C, d].

    steps: how many each takes, the most first. lr: one, or [C]. clients: which of the problem's they are. examples: of
    each. draws: of each step, see `Known`. kept: what they have kept. sent: what they would send if it were the last.
    """
    coupled, decoupled = (0.0, decay) if optimizer.decoupled else (decay, 0.0)
    rule = Rule(optimizer, None, coupled, decoupled)
    y, first = problem.stack(problem.start.expand(len(steps), -1, -1)), clients.start or 0
    stepper = rule.stepper(y, Beginning(torch.full((len(steps),), examples), kept or {}))
    found = []
    for number in range(max(steps)):
        rows = y[: sum(number < own for own in steps)]
        own = slice(first, first + len(rows))
        noise = Known(draws[number]) if draws else None
        at = stepper.point(rows, number, noise) if "point" in optimizer.needs else rows
        alone = problem.gradient(at, own, number)
        if "ahead" in optimizer.needs:
            alone = problem.gradient(stepper.ahead(at, alone), own, number)
        gradient = rule.corrected(at, alone, None)
        rate = lr[: len(rows)] if isinstance(lr, Tensor) else lr
        loss, objective = problem.losses(at, own, number), Asked(problem, rule, own, number)
        stepper.take(rows, Step(number, rate, gradient, loss, noise, objective))
        there = stepper.end(y) if sent else y
        found.append(problem.numbers(there).reshape(len(steps), -1).clone())
    return torch.stack(found)


def assert_held(optimizer: Optimizer, wanted: object, *, away: float = 6e-7, **options: object) -> None:
    """Clients come to these numbers, [T, C, d] or without brackets, together; and alone to the same bits.

    options: of `path`.
    """
    problem = options.get("problem", Q)
    count = len(problem.curvatures) if isinstance(problem, Quadratic) else 1
    expected = exact(wanted).reshape(-1, count, problem.start.numel())
    together = path(optimizer, [len(expected)] * count, **options)
    torch.testing.assert_close(together, expected, rtol=0, atol=away)
    for client in range(count):
        alone = path(optimizer, [len(expected)], clients=slice(client, client + 1), **options)
        assert torch.equal(alone[:, 0], together[:, client])


def assert_finishes_early(optimizer: Optimizer, **options: object) -> None:
    """Who has finished stays, and the others go on as if alone. options: of `path`, on a problem of two clients."""
    found = path(optimizer, [6, 3], **options)
    assert torch.equal(found[:, 0], path(optimizer, [6], clients=slice(0, 1), **options)[:, 0])
    assert torch.equal(found[2:, 1], found[2:3, 1].expand(4, -1))
    assert not torch.equal(found[0, 1], found[2, 1])


def assert_stays_without_gradient(optimizer: Optimizer, **options: object) -> None:
    """Who has no gradient in any step stays to the bit, beside one that has one."""
    still = Quadratic(Q.curvatures * exact([1, 0]).view(2, 1, 1), Q.least, Q.start, vector=True)
    found = path(optimizer, [4, 4], problem=still, **options)
    assert torch.equal(found[:, 1], torch.ones(4, 2, dtype=torch.float64))
    assert not torch.equal(found[0, 0], found[3, 0])
