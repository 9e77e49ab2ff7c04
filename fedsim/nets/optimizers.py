"""How steps follow from gradients: the base of rules, and what they are given.

A rule is about a stack of clients. Every norm, mean, counter or rate that it has is one a client, a tensor [k], never a
number over the stack, so that a client's numbers do not depend on who else is in it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

from torch import Tensor

from fedsim.nets.stack import Stack

Remembered = dict[str, Stack]
"""What a rule remembers of each client from step to step of a round, by name."""


@dataclass(frozen=True)
class Step:
    """One step of the k clients that still work. number: from 0, the same for all. lr: the learning rate.

    gradient: of each client's loss, clipped, with decay and corrections; the rule may write over it.
    """

    number: int
    lr: float
    gradient: Stack


class Elementwise(NamedTuple):
    """A rule that is compiled (see `fedsim.nets.kernels.rules`), and its numbers; 0 are those that it has not."""

    name: Literal["sgd", "adam", "lion"]
    momentum: float = 0.0
    nesterov: bool = False
    beta1: float = 0.0
    beta2: float = 0.0
    epsilon: float = 0.0


class Optimizer(ABC):
    """The rule of a step; options of a subclass are its numbers.

    decoupled: whether weight decay shrinks the parameters before the step, instead of being a part of the gradient.
    vectors: how many vectors of d numbers it remembers of a client.
    """

    decoupled: ClassVar[bool] = False
    vectors: ClassVar[int] = 0

    @property
    def plain(self) -> bool:
        """Whether a step is -lr times the gradient and no more, so that it may be fused with what makes that."""
        return False

    @property
    def compiled(self) -> Elementwise | None:
        """The compiled rule that this is; None: it is not compiled, and its steps are taken by PyTorch."""
        return None

    def begin(self, y: Stack) -> Remembered:  # noqa: ARG002
        """What is remembered at the beginning of a round, of all C clients, where their parameters are y."""
        return {}

    @abstractmethod
    def step(self, memory: Remembered, rows: Stack, step: Step) -> None:
        """Take a step in place. rows and memory are views of the first k clients.

        What is remembered is written there: what is put in its place is lost when the next client has finished.
        """

    def weights(self, steps: Tensor, shrinkage: float) -> Tensor | None:  # noqa: ARG002
        """The l1 norm of the gradients' weights in what so many steps [C] come to, divided by lr: float64 [C].

        shrinkage: lr times the factor of a proximal term. None: it is no fixed sum of gradients (FedNova asks).
        """
        return None


def descend_plainly(y: Stack, gradient: Stack, lr: float, decay: float, shift: Stack | None) -> None:
    """Take y <- y - lr (gradient + decay y - shift) in place."""
    if decay:
        y.mul_(1.0 - lr * decay)
    y.add_(gradient, alpha=-lr)
    if shift is not None:
        y.add_(shift, alpha=lr)
