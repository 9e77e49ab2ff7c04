"""How steps follow from gradients: the base of rules, and what they are given.

A rule is about a stack of clients. Every norm, mean, counter or rate that it has is one a client, a tensor [k], never a
number over the stack, so that a client's numbers do not depend on who else is in it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from fedsim.core.errors import InputError
from fedsim.core.plugins import kind_of
from fedsim.core.streams import Index
from fedsim.nets.curvature import Linearised
from fedsim.nets.dropout import Draw
from fedsim.nets.footprint import Beside
from fedsim.nets.rows import columns, scale, scaled
from fedsim.nets.stack import Stack, shaped

Remembered = dict[str, Stack]
"""What a rule remembers of each client from step to step of a round, by name; numbers [C] are leaves, too."""
Need = Literal[
    "loss", "noise", "point", "ahead", "again", "product", "whole", "outputs", "curvature", "state", "end"
]  # fmt: skip
"""What a rule asks for beside the gradient, which not every place where steps are taken can give.

loss: `Step.loss`. noise: `StepDraws`. point: gradients elsewhere than where the client is. ahead: the same where a
first gradient leads. again, product, whole: those of `Objective`. outputs: `Step.outputs`; curvature: that of these, of
losses that have one. state: what a client keeps from round to round. end: to send something else than where it ends.
"""

NEEDS: Mapping[Need, str] = {
    "loss": "the clients' losses",
    "noise": "random draws",
    "point": "gradients at points of its choice",
    "ahead": "gradients where a first one leads",
    "again": "several gradients a step",
    "product": "products with the Hessian",
    "whole": "gradients over all examples",
    "outputs": "outputs and their derivatives",
    "curvature": "the curvature of losses by outputs",
    "state": "something that clients keep from round to round",
    "end": "to send another point than the last",
}
"""What is said of what a rule asks for."""


@dataclass(frozen=True)
class StepDraws:
    """Random numbers of a rule, named: a client's are the same in whatever stack it is. owner: before their names."""

    draw: Draw
    owner: str = "optimizer"

    def normal(self, purpose: str, like: Stack) -> Stack:
        """Standard normal numbers of the shapes of the first k clients' rows."""
        name, owners, dtype = f"{self.owner}/{purpose}", self.draw.clients[: len(like)], like.leaves[0].dtype
        drawn = self.draw.streams.normal(
            name, owners, (_numbers(like),), turn=_first(self.draw, len(like)), step=self.draw.step, dtype=dtype
        )
        return _as(like, drawn)

    def signs(self, purpose: str, like: Stack) -> Stack:
        """As many times -1 or 1, each as likely (Rademacher)."""
        name, owners = f"{self.owner}/{purpose}", self.draw.clients[: len(like)]
        words = self.draw.streams.bits(
            name, owners, _numbers(like), turn=_first(self.draw, len(like)), step=self.draw.step
        )
        return _as(like, (words >> 31).to(like.leaves[0].dtype).mul_(2.0).sub_(1.0))

    def permutation(self, purpose: str, count: int, size: int) -> Tensor:
        """An order of 0 .. size-1 for each of the first `count` clients: int64 [count, size]."""
        name, owners = f"{self.owner}/{purpose}", self.draw.clients[:count]
        return self.draw.streams.permutation(name, owners, size, turn=_first(self.draw, count), step=self.draw.step)


class Objective(Protocol):
    """The losses of a step's k clients on its mini-batch, with decay and corrections, as functions to ask again."""

    def again(self, at: Stack) -> tuple[Tensor, Stack]:
        """Losses [k] and gradients at another point, on the same mini-batch, under the same dropout."""
        ...

    def product(self, at: Stack, v: Stack) -> Stack:
        """Products H v with the Hessians at a point, on the same mini-batch, under the same dropout."""
        ...

    def whole(self, at: Stack, rows: Tensor) -> Stack:
        """Gradients of the mean loss over all of a client's examples, of the clients in some rows, int64 [r].

        at: where all k clients are. Dropout draws anew for each mini-batch that the examples are taken in.
        """
        ...


class Outputs(Protocol):
    """The outputs of a step's k clients on its mini-batch, and what losses, decay and corrections make of them."""

    @property
    def shares(self) -> Tensor:
        """What each place of the mini-batch counts of a client's loss, [k, B]: 0 where there is no example."""
        ...

    @property
    def decay(self) -> float:
        """Of which times y is a part of gradients."""
        ...

    def linearised(self, at: Stack) -> Linearised:
        """Outputs at a point, as a linear function of what is trained, on the same mini-batch and dropout."""
        ...

    def residuals(self, outputs: Tensor) -> Tensor:
        """The gradient of a client's loss by its outputs [k, B, *places, K], in their shape."""
        ...

    def curvature(self, outputs: Tensor) -> Tensor:
        """The Hessian of a client's loss by its outputs, of each example, [k, B, P, P] for P outputs an example."""
        ...

    def corrected(self, at: Stack, gradient: Stack) -> Stack:
        """The gradient of a client's loss at a point, in place, with its bound, decay and corrections."""
        ...

    def corrections(self, at: Stack) -> Stack | None:
        """What decay and corrections add to gradients at a point; None: nothing."""
        ...


@dataclass(frozen=True)
class Step:
    """One step of the k clients that still work. number: from 0, the same for all.

    lr: the learning rate, one or [k]. gradient: of each client's loss, clipped, with decay and corrections; the rule
    may write over it. loss: [k], of what the gradient is of, before the step. decay: by which a rule that `shrinks`
    has yet to shrink. What a rule does not need is not there.
    """

    number: int
    lr: float | Tensor
    gradient: Stack
    loss: Tensor = field(default_factory=lambda: torch.empty(0))
    noise: StepDraws | None = None
    objective: Objective | None = None
    outputs: Outputs | None = None
    decay: float = 0.0

    def move(self, rows: Stack, along: Stack, over: Iterable[Tensor] | None = None, per: float = 1.0) -> None:
        """Take rows <- rows - lr / per * along, or along / over element by element, in place."""
        if isinstance(self.lr, Tensor):
            parts = along.leaves if over is None else torch._foreach_div(along.leaves, list(over))
            rate = self.lr / per
            torch._foreach_sub_(rows.leaves, [part * columns(rate, part) for part in parts])
        elif over is None:
            rows.add_(along, -self.lr / per)
        else:
            torch._foreach_addcdiv_(rows.leaves, along.leaves, list(over), -self.lr / per)

    def shrink(self, rows: Stack, decay: float) -> None:
        """Take rows <- (1 - lr decay) rows, in place."""
        if isinstance(self.lr, Tensor):
            scale(rows, 1.0 - self.lr * decay)
        else:
            rows.mul_(1.0 - self.lr * decay)


@dataclass(frozen=True)
class Beginning:
    """What is known of C clients when they begin. examples: int64 [C], how many they have.

    kept: what each has kept from its round before, [C, ...] by name, zeros where there was none.
    """

    examples: Tensor
    kept: Mapping[str, Tensor] = field(default_factory=dict)


class CompiledRule(NamedTuple):
    """A rule that is compiled: the name of its function in `fedsim.nets.kernels.rules`, and the numbers that has.

    The function remembers as many vectors as the rule says, and has so many `more` for sums and a client's numbers.
    """

    name: str
    numbers: tuple[float, ...] = ()
    more: int = 0


class Optimizer(ABC):
    """The rule of a step; options of a subclass are its numbers."""

    bounded: ClassVar[bool] = True
    """Whether its steps are bounded where the norm of the gradient is: `clip_norm` goes with it."""
    shrinks: ClassVar[bool] = False
    """Whether its step has rates of its own, by which it shrinks the parameters itself: see `Step.decay`."""

    @property
    def usual(self) -> float:
        """The learning rate where none is given."""
        return 0.1

    @property
    def rate_free(self) -> bool:
        """Whether it finds its own rate, and lr = 1 leaves it that."""
        return False

    @property
    def needs(self) -> frozenset[Need]:
        """What it asks for beside the gradient. Where that is not to be had, it is refused."""
        return frozenset()

    def hold_needs(self, option: str, given: frozenset[Need], place: str) -> None:
        """Refuse (InputError) to step in a place, as it is called, that does not give what the rule asks for."""
        lacking = [NEEDS[need] for need in NEEDS if need in self.needs - given]
        if lacking:
            remedy = f"asks for {' and '.join(lacking)}, which {place} does not give; take another rule or its options"
            raise InputError(option, kind_of("optimizers", self), remedy)

    @property
    def decoupled(self) -> bool:
        """Whether weight decay shrinks the parameters before the step, instead of being a part of the gradient."""
        return False

    @property
    def vectors(self) -> float:
        """How many vectors of d numbers it remembers of a client, and has beside while it steps, beyond one."""
        return 0.0

    @property
    def effort(self) -> float:
        """What a step takes, in gradients of a mini-batch."""
        return 1.0

    @property
    def passes(self) -> float:
        """Passes over all examples of a client that it takes in a round beside its steps."""
        return 0.0

    def solving(self, shapes: Sequence[tuple[int, ...]], outputs: int) -> Beside:  # noqa: ARG002
        """What it takes to solve for a step from so many outputs of a client's mini-batch; shapes: of its leaves."""
        return Beside()

    def operations(self, shapes: Sequence[tuple[int, ...]]) -> int:  # noqa: ARG002
        """Multiply-adds of products that a step takes beside the gradient; shapes: of a client's leaves."""
        return 0

    def kept(self, dimension: int) -> Mapping[str, tuple[int, ...]]:  # noqa: ARG002
        """Shapes of what a client keeps from round to round, by name; see `keep`."""
        return {}

    @property
    def plain(self) -> bool:
        """Whether a step is -lr times the gradient and no more, so that it may be fused with what makes that."""
        return False

    @property
    def compiled(self) -> CompiledRule | None:
        """The compiled rule that this is; None: it is not compiled, and its steps are taken by PyTorch."""
        return None

    def begin(self, y: Stack, beginning: Beginning) -> Remembered:  # noqa: ARG002
        """What is remembered at the beginning of a round, of all C clients, where their parameters are y."""
        return {}

    def point(self, memory: Remembered, rows: Stack, number: int, noise: StepDraws) -> Stack:  # noqa: ARG002
        """Where the gradient of the next step is taken; a stack of its own, if it is not where the clients are."""
        return rows

    def ahead(self, rows: Stack, gradient: Stack) -> Stack:  # noqa: ARG002
        """Where the gradient of the step is taken, if the rule `needs` that; a stack of its own.

        gradient: of the clients' losses alone, where they are; the rule may write over it. What a step is given is then
        the gradient there, with its bound, and with decay and corrections of where clients are.
        """
        return rows

    @abstractmethod
    def step(self, memory: Remembered, rows: Stack, step: Step) -> None:
        """Take a step in place. rows and memory are views of the first k clients.

        What is remembered is written there: what is put in its place is lost when the next client has finished.
        """

    def end(self, memory: Remembered, rows: Stack) -> Stack:  # noqa: ARG002
        """What all C clients send: where they are, unless the rule `needs` an end of its own."""
        return rows

    def keep(self, memory: Remembered, rows: Stack) -> Mapping[str, Tensor]:  # noqa: ARG002
        """What each keeps until its next round, as `kept` says, [C, ...] by name."""
        return {}

    @property
    def precise(self) -> bool:
        """Whether it learns how surely each number is known, of which it tells in `told`."""
        return False

    def told(self, memory: Remembered) -> Stack:
        """The precision of each number of all C clients: 0 or more, in one unit for all of them."""
        raise NotImplementedError(f"{type(self).__name__} knows nothing of that; ask if it is precise")

    def weights(self, steps: Tensor, shrinkage: float) -> Tensor | None:  # noqa: ARG002
        """The l1 norm of the gradients' weights in what so many steps [C] come to, divided by lr: float64 [C].

        shrinkage: lr times the factor of a proximal term. None: it is no fixed sum of gradients (FedNova asks).
        """
        return None


def descend_plainly(y: Stack, gradient: Stack, lr: float | Tensor, decay: float, shift: Stack | None) -> None:
    """Take y <- y - lr (gradient + decay y - shift) in place. lr: one, or [k]."""
    if isinstance(lr, Tensor):
        if decay:
            scale(y, 1.0 - lr * decay)
        y.add_(scaled(gradient, lr), alpha=-1.0)
        if shift is not None:
            y.add_(scaled(shift, lr))
        return
    if decay:
        y.mul_(1.0 - lr * decay)
    y.add_(gradient, alpha=-lr)
    if shift is not None:
        y.add_(shift, alpha=lr)


def _numbers(stack: Stack) -> int:
    """How many numbers a row has."""
    return sum(leaf.shape[1:].numel() for leaf in stack.leaves)


def _as(like: Stack, rows: Tensor) -> Stack:
    """Rows [k, d] in the shapes of a stack."""
    return shaped(rows, [leaf.shape[1:] for leaf in like.leaves])


def _first(draw: Draw, count: int) -> Index:
    return draw.turn[:count] if isinstance(draw.turn, Tensor) else draw.turn
