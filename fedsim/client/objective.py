"""The losses of a mini-batch as functions, for rules of a step that ask more than one gradient of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.core.errors import InputError
from fedsim.core.plugins import kind_of
from fedsim.engine.cohort import Cohort
from fedsim.nets.curvature import Linearised, slope
from fedsim.nets.descent import Rule
from fedsim.nets.losses import Loss
from fedsim.nets.network import Batch
from fedsim.nets.optimizers import NEEDS, Optimizer
from fedsim.nets.stack import Stack, extended, put, take

FLAT = "it does not curve upwards everywhere, as optimizers that solve for steps need; take another loss or optimizer"
"""Why a loss is refused."""


@dataclass(frozen=True)
class BatchObjective:
    """The `Objective` and the `Outputs` of a step: what its mini-batch, decay and corrections make of clients' losses.

    rows: the parameters of the batch's k clients, with their running statistics, which no question here moves. numbers:
    of the leaves that are trained; points, directions and gradients are of these alone. shift: is taken from gradients,
    [k, ...]. start: see `Rule.value`.
    """

    cohort: Cohort
    rule: Rule
    rows: Stack
    numbers: Sequence[int]
    batch: Batch
    shift: Stack | None
    start: Stack | None

    def again(self, at: Stack) -> tuple[Tensor, Stack]:
        """Losses [k] and gradients at another point, on the same mini-batch, under the same dropout."""
        losses, gradient = self.alone(at)
        return self.rule.value(losses, at, self.shift, self.start), self.rule.corrected(at, gradient, self.shift)

    def alone(self, at: Stack) -> tuple[Tensor, Stack]:
        """The same of the losses alone, without a bound, decay or corrections."""
        losses, gradient = self.cohort.network.gradients(self._everything(at), self.batch)
        return losses, take(gradient, self.numbers)

    def product(self, at: Stack, v: Stack) -> Stack:
        """Products with the Hessians, decay's term among them, on the same mini-batch; a bound of norms has none."""
        everything, layout = self._everything(at), self.cohort.network.layout
        along = extended(v, self.numbers, layout.moved(everything))
        found = take(self.cohort.network.products(everything, self.batch, along)[2], self.numbers)
        return found.add_(v, alpha=self.rule.decay) if self.rule.decay else found

    def whole(self, at: Stack, rows: Tensor) -> Stack:
        """Gradients over all examples of the clients in some rows, taken in mini-batches as wide as the step's."""
        here = Stack([leaf[rows] for leaf in at.leaves])
        found, everything = here.zeros(), Stack([leaf[rows] for leaf in self._everything(at).leaves])
        name = f"whole/{self.batch.draw.step}"
        for some, batch in self.cohort.everything(rows, self.batch.weight.shape[1], name):
            _, part = self.cohort.network.gradients(Stack([leaf[some] for leaf in everything.leaves]), batch)
            for leaf, own in zip(found.leaves, take(part, self.numbers).leaves, strict=True):
                leaf.index_add_(0, some, own)
        shift = None if self.shift is None else Stack([leaf[rows] for leaf in self.shift.leaves])
        return self.rule.corrected(here, found, shift)

    @property
    def shares(self) -> Tensor:
        """What each place of the mini-batch counts of a client's loss, [k, B]: 0 where there is no example."""
        return self.batch.weight

    @property
    def decay(self) -> float:
        """Of which times y is a part of gradients."""
        return self.rule.decay

    def linearised(self, at: Stack) -> Linearised:
        """Outputs at a point, as a linear function of what is trained, on the same mini-batch and dropout."""
        return self.cohort.network.linearised(self._everything(at), self.batch).among(self.numbers)

    def residuals(self, outputs: Tensor) -> Tensor:
        """The gradient of a client's loss by its outputs [k, B, *places, K], in their shape."""
        _, gradient = self._loss.with_gradient(outputs, self.batch.y)
        return gradient * _along(self.batch.weight, gradient)

    def curvature(self, outputs: Tensor) -> Tensor:
        """The Hessian of a client's loss by its outputs, of each example, [k, B, P, P] for P outputs an example.

        InputError: the loss has none.
        """
        if not self._loss.curves:
            raise InputError("problem.loss", kind_of("losses", self._loss), FLAT)
        flat = outputs.flatten(2)
        found = flat.new_empty(*flat.shape, flat.shape[2])
        for number in range(flat.shape[2]):
            one = torch.zeros_like(flat)
            one[..., number] = 1.0
            found[..., number] = slope(self._loss, outputs, self.batch.y, one.view_as(outputs)).flatten(2)
        return found * _along(self.batch.weight, found)

    def corrected(self, at: Stack, gradient: Stack) -> Stack:
        """The gradient of a client's loss at a point, in place, with its bound, decay and corrections."""
        return self.rule.corrected(at, gradient, self.shift)

    def corrections(self, at: Stack) -> Stack | None:
        """What decay and corrections add to gradients at a point; None: nothing."""
        return self.rule.corrected(at, at.zeros(), self.shift) if self.rule.decay or self.shift is not None else None

    @property
    def _loss(self) -> Loss:
        return self.cohort.network.loss if self.batch.loss is None else self.batch.loss

    def _everything(self, at: Stack) -> Stack:
        """A point with the leaves that stay, and statistics of its own, for a training pass moves them."""
        trained = self.cohort.network.layout.trained
        rows = Stack([*self.rows.leaves[:trained], *(leaf.clone() for leaf in self.rows.leaves[trained:])])
        return put(rows, self.numbers, at)


def hold_to_batches(rule: Optimizer, clip_norm: float | None, **chosen: object) -> None:
    """Refuse (InputError) a rule that does not go with a bound of norms, or with how else mini-batches are chosen."""
    if clip_norm is not None and not rule.bounded:
        remedy = f"bounds gradients, and {kind_of('optimizers', rule)} solves for its steps; leave it out"
        raise InputError("clip_norm", clip_norm, remedy)
    for option, value in chosen.items():
        if value is not None:  # so that they are not of what the whole is of
            rule.hold_needs("optimizer", frozenset(NEEDS) - {"whole"}, f"training with {option}")


def hold_to_gradients(rule: Optimizer, place: str) -> None:
    """Refuse (InputError) a rule that asks of losses what those of features or models are not: functions of outputs."""
    rule.hold_needs("optimizer", frozenset(NEEDS) - {"whole", "outputs", "curvature"}, place)


def _along(numbers: Tensor, x: Tensor) -> Tensor:
    """Numbers [k, B] in a shape that goes with x [k, B, ...]."""
    return numbers.view(*numbers.shape, *(1,) * (x.dim() - 2))
