"""The losses of a mini-batch as functions, for rules of a step that ask more than one gradient of them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedsim.nets.descent import Rule
from fedsim.nets.network import Batch, Network
from fedsim.nets.stack import Stack


@dataclass(frozen=True)
class BatchObjective:
    """The `Objective` of a step: what its mini-batch, decay and corrections make of the clients' losses.

    rows: the parameters of the batch's k clients, with their running statistics, which no question here moves. shift:
    is taken from gradients, [k, ...], of what is trained. start: see `Rule.value`.
    """

    network: Network
    rule: Rule
    rows: Stack
    batch: Batch
    shift: Stack | None
    start: Stack | None

    def again(self, at: Stack) -> tuple[Tensor, Stack]:
        """Losses [k] and gradients at another point, on the same mini-batch, under the same dropout."""
        losses, gradient = self.network.gradients(self._everything(at), self.batch)
        return self.rule.value(losses, at, self.shift, self.start), self.rule.corrected(at, gradient, self.shift)

    def _everything(self, at: Stack) -> Stack:
        """A point with statistics of its own, for a training pass moves them."""
        return Stack([*at.leaves, *(leaf.clone() for leaf in self.rows.leaves[len(at.leaves) :])])
