"""The losses of a mini-batch as functions, for rules of a step that ask more than one gradient of them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedsim.engine.cohort import Cohort
from fedsim.nets.descent import Rule
from fedsim.nets.network import Batch
from fedsim.nets.stack import Stack


@dataclass(frozen=True)
class BatchObjective:
    """The `Objective` of a step: what its mini-batch, decay and corrections make of the clients' losses.

    rows: the parameters of the batch's k clients, with their running statistics, which no question here moves. shift:
    is taken from gradients, [k, ...], of what is trained. start: see `Rule.value`.
    """

    cohort: Cohort
    rule: Rule
    rows: Stack
    batch: Batch
    shift: Stack | None
    start: Stack | None

    def again(self, at: Stack) -> tuple[Tensor, Stack]:
        """Losses [k] and gradients at another point, on the same mini-batch, under the same dropout."""
        losses, gradient = self.cohort.network.gradients(self._everything(at), self.batch)
        return self.rule.value(losses, at, self.shift, self.start), self.rule.corrected(at, gradient, self.shift)

    def product(self, at: Stack, v: Stack) -> Stack:
        """Products with the Hessians, decay's term among them, on the same mini-batch; a bound of norms has none."""
        _, _, found = self.cohort.network.products(self._everything(at), self.batch, v)
        return found.add_(v, alpha=self.rule.decay) if self.rule.decay else found

    def whole(self, at: Stack, rows: Tensor) -> Stack:
        """Gradients over all examples of the clients in some rows, taken in mini-batches as wide as the step's."""
        here = Stack([leaf[rows] for leaf in at.leaves])
        found, everything = here.zeros(), Stack([leaf[rows] for leaf in self._everything(at).leaves])
        name = f"whole/{self.batch.draw.step}"
        for some, batch in self.cohort.everything(rows, self.batch.weight.shape[1], name):
            _, part = self.cohort.network.gradients(Stack([leaf[some] for leaf in everything.leaves]), batch)
            for leaf, own in zip(found.leaves, part.leaves, strict=True):
                leaf.index_add_(0, some, own)
        shift = None if self.shift is None else Stack([leaf[rows] for leaf in self.shift.leaves])
        return self.rule.corrected(here, found, shift)

    def _everything(self, at: Stack) -> Stack:
        """A point with statistics of its own, for a training pass moves them."""
        return Stack([*at.leaves, *(leaf.clone() for leaf in self.rows.leaves[len(at.leaves) :])])
