"""Local training as one piece of work: all steps of a cohort, for what can take them without coming back in between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from fedsim.core.errors import BrokenPromiseError
from fedsim.core.plugins import kind_of
from fedsim.nets.dropout import Draw
from fedsim.nets.optimizers import Beginning, Optimizer, Remembered, Step, StepDraws
from fedsim.nets.rows import inner, scale, squares, squares_by_leaf
from fedsim.nets.stack import Stack

EPSILON = 1e-12
"""Added to the norm of a gradient that is clipped."""


@dataclass(frozen=True)
class Rule:
    """How a step follows from the gradient g of a client's loss at y.

    g is scaled to a norm of at most `clip_norm`, if there is one; then g <- g + decay y - shift; then y <- (1 - lr
    decoupled) y; then comes the optimizer's own step. pull: the part of `decay` that is to where clients begin, for
    which `shift` has pull times that.
    """

    optimizer: Optimizer
    clip_norm: float | None
    decay: float
    decoupled: float
    pull: float = 0.0

    @property
    def plain(self) -> bool:
        """Whether a step is a multiple of the gradient, so that it may be fused with it."""
        return self.optimizer.plain and self.clip_norm is None

    def corrected(self, rows: Stack, gradient: Stack, shift: Stack | None) -> Stack:
        """The gradient at `rows`, in its own memory, clipped, and with decay and shift."""
        if self.clip_norm is not None:
            norm = torch.stack(squares_by_leaf(gradient), dim=1).sum(dim=1).sqrt_()
            scale(gradient, torch.clamp(self.clip_norm / (norm + EPSILON), max=1.0))
        if self.decay:
            gradient.add_(rows, alpha=self.decay)
        if shift is not None:
            gradient.add_(shift, alpha=-1.0)
        return gradient

    def value(self, losses: Tensor, rows: Stack, shift: Stack | None, start: Stack | None) -> Tensor:
        """The value [k] of what `corrected`, but for clipping, gives the gradient of, where the losses are [k].

        f(y) + (decay - pull) / 2 |y|^2 + pull / 2 |y - start|^2 - <shift - pull start, y - start>: what is linear
        counts from where clients begin. start: where they did, of the same rows; None: there is nothing but f.
        """
        if start is None:
            return losses
        away = Stack(torch._foreach_sub(rows.leaves, start.leaves))
        found = losses + (self.decay - self.pull) / 2 * squares(rows) + self.pull / 2 * squares(away)
        if shift is None:
            return found
        linear = Stack(torch._foreach_sub(shift.leaves, torch._foreach_mul(start.leaves, self.pull)))
        return found - inner(linear, away)

    def take(self, memory: Remembered, rows: Stack, step: Step) -> None:
        """The optimizer's step of some rows in place, which are shrunk before, or by itself."""
        if self.decoupled and self.optimizer.shrinks:
            step = replace(step, decay=self.decoupled)
        elif self.decoupled:
            step.shrink(rows, self.decoupled)
        self.optimizer.step(memory, rows, step)

    def stepper(self, y: Stack, beginning: Beginning) -> Stepper:
        """The optimizer's steps of clients that begin at y, the first rows of which work on."""
        return Stepper(self, y, beginning)


class Stepper:
    """Steps of C clients from where they begin, and what the optimizer remembers of them in between."""

    def __init__(self, rule: Rule, y: Stack, beginning: Beginning) -> None:
        self._rule, self._optimizer = rule, rule.optimizer
        self._everything = self._memory = _memory(self._optimizer, y, beginning)
        self._count = len(y)

    def point(self, rows: Stack, number: int, noise: StepDraws) -> Stack:
        """Where the gradient of the next step is taken, of the first rows."""
        return self._optimizer.point(self._of(len(rows)), rows, number, noise)

    def ahead(self, rows: Stack, gradient: Stack) -> Stack:
        """Where the gradient of the next step is taken, of the first rows, which have this one where they are."""
        return self._optimizer.ahead(rows, gradient)

    def take(self, rows: Stack, step: Step) -> None:
        """Take a step of the first rows in place."""
        self._rule.take(self._of(len(rows)), rows, step)

    def end(self, y: Stack) -> Stack:
        """What all clients send that are now at y."""
        ended = self._optimizer.end(self._everything, y)
        if not _is_of(ended, len(y)) or [leaf.shape for leaf in ended.leaves] != [leaf.shape for leaf in y.leaves]:
            raise _broken(self._optimizer, "`end` returns no stack of the parameters' shapes")
        return ended

    def told(self) -> Stack | None:
        """How surely each number of what is trained is known; None: the rule learns no such."""
        return self._optimizer.told(self._everything) if self._optimizer.precise else None

    def keep(self, y: Stack) -> Mapping[str, Tensor]:
        """What they keep until their next round."""
        return self._optimizer.keep(self._everything, y)

    def _of(self, count: int) -> Remembered:
        """What is remembered of the first clients, in its own memory."""
        if count != self._count:
            self._count = count
            self._memory = {name: part[:count] for name, part in self._everything.items()}
        return self._memory


def _memory(optimizer: Optimizer, y: Stack, beginning: Beginning) -> Remembered:
    """What an optimizer remembers at first. BrokenPromiseError: it is not what can be remembered of clients."""
    found: object = optimizer.begin(y, beginning)
    if not isinstance(found, dict) or not all(_is_of(part, len(y)) for part in found.values()):
        raise _broken(optimizer, "`begin` returns no stacks by name, with leaves [C, ...] of all clients")
    return found


def _is_of(found: object, clients: int) -> bool:
    """Whether something is a stack of so many clients."""
    return isinstance(found, Stack) and all(leaf.dim() > 0 and len(leaf) == clients for leaf in found.leaves)


def _broken(optimizer: Optimizer, fault: str) -> BrokenPromiseError:
    return BrokenPromiseError(f"client.optimizer.kind = {kind_of('optimizers', optimizer)}: {fault}")


@dataclass(frozen=True, eq=False)
class Descent:
    """All local steps of C clients.

    start: [d] or [C, d]; shift: the same, or None. x: [n, ...], y: [n], the examples. index: int64 [R, B], the first
    `count`, int64 [R], of a row are the examples of a step; the rows of client c are first[c], first[c] + 1, ..., one a
    step, R in all. first, steps: int64 [C]. examples: int64 [C], how many clients have. draw: whose draws they make,
    all C, in their first step. rates: the learning rate of each step, or of each client's, float64 [C, S]. change:
    whether it is asked how far clients end from `start`, instead of where.
    """

    start: Tensor
    shift: Tensor | None
    x: Tensor
    y: Tensor
    index: Tensor
    count: Tensor
    first: Tensor
    steps: Tensor
    examples: Tensor
    draw: Draw
    rates: Sequence[float] | Tensor
    rule: Rule
    change: bool = False


@dataclass(frozen=True, eq=False)
class Descended:
    """Where clients end. params: [C, d], or their change; finite: bool [C], whether a client's are.

    losses: [R], of each row before its step. total: [C], their sums.
    """

    params: Tensor
    losses: Tensor
    total: Tensor
    finite: Tensor


@dataclass(frozen=True, eq=False)
class Shuffles:
    """E passes over the examples of C clients, each pass in an order of its own.

    owners, turns, low, high: uint64 [C], the words by which a client's draws are named (see `fedsim.core.streams`).
    order: int64 [n], of which client c has `examples` from `begin`, int64 [C]; its first step has row first[c] of R.
    """

    owners: Tensor
    turns: Tensor
    low: Tensor
    high: Tensor
    order: Tensor
    begin: Tensor
    examples: Tensor
    first: Tensor
    rows: int
    epochs: int
    width: int


@dataclass(frozen=True, eq=False)
class Queries:
    """The values of k clients that are asked for: the mean loss of a client's examples at each of its Q points.

    points: [k, Q, d]. x: [n, ...], y: [n], the examples. index: int64 [m], of which client c has `count` from `begin`,
    int64 [k].
    """

    points: Tensor
    x: Tensor
    y: Tensor
    index: Tensor
    begin: Tensor
    count: Tensor


class Loop(Protocol):
    """What takes all steps at once."""

    def takes(self, rule: Rule) -> bool:
        """Whether it can take those of a rule."""
        ...

    def descend(self, descent: Descent) -> Descended:
        """Take them."""
        ...


class Compiled(Loop, Protocol):
    """What also shuffles. evaluates: whether it is for values, too."""

    evaluates: bool

    def shuffle(self, shuffles: Shuffles) -> tuple[Tensor, Tensor]:
        """The examples of each step, int64 [R, B], and how many there are, int64 [R], as `fedsim.engine.batches`."""
        ...

    def values(self, queries: Queries) -> Tensor:
        """Evaluate them: values [k, Q]."""
        ...
