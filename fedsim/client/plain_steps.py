"""Steps of plain SGD along gradients that a client takes elsewhere, or makes of several: one by one, with their rates.

    y <- y - lr (g + mu (y - theta))

where g is what a client algorithm has found, and mu is of the proximal term that a server may ask for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedsim.client.training import LocalTraining
from fedsim.core.errors import InputError
from fedsim.core.options import options
from fedsim.core.plugins import kind_of
from fedsim.engine.cohort import Cohort
from fedsim.nets.network import Batch, Network
from fedsim.nets.optimizers import descend_plainly
from fedsim.nets.stack import Stack


@dataclass(frozen=True)
class PlainStep:
    """A local step of the first k clients of a cohort: its mini-batch, its rate, one or [k], and the proximal term.

    decay, shift: as of `Network.descend`, what the proximal term adds to gradients.
    """

    network: Network
    batch: Batch
    lr: float | Tensor
    decay: float
    shift: Stack | None

    def __len__(self) -> int:
        return len(self.batch)

    def descend(self, rows: Stack) -> Tensor:
        """Take the step along the gradient where the k rows are, in place; losses [k] before."""
        return self.network.descend(rows, self.batch, self.lr, self.decay, self.shift)

    def along(self, gradient: Stack, rows: Stack, at: Stack) -> None:
        """Take the step along a gradient, in place, that has been taken at another point.

        Running statistics are what they have become there.
        """
        layout = self.network.layout
        shift = None if self.shift is None else layout.moved(self.shift)
        descend_plainly(layout.moved(rows), layout.moved(gradient), self.lr, self.decay, shift)
        for leaf, there in zip(rows.leaves[layout.trained :], at.leaves[layout.trained :], strict=True):
            leaf.copy_(there)


@options
class PlainSteps(LocalTraining):
    """Local training in steps of plain SGD, of which a subclass says where gradients are taken, and what of."""

    accepts: ClassVar[frozenset[str]] = LocalTraining.accepts | {"proximal-mu"}
    decays: ClassVar[bool] = False
    """Whether it knows what weight decay is a part of."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.rule.plain:
            remedy = "the gradients of a step are taken in this client's own way, for plain sgd; leave it out"
            raise InputError("optimizer", kind_of("optimizers", self.rule), remedy)
        refused = ["clip_norm", "adversarial", "curriculum", *([] if self.decays else ["weight_decay"])]
        for option in refused:
            value = getattr(self, option)
            if value:
                remedy = "the gradients of a step are taken in this client's own way, without it; leave it out"
                raise InputError(option, value if isinstance(value, float) else "given", remedy)

    @property
    def rests(self) -> bool:
        """Something is done between its steps."""
        return True

    def paced(self, cohort: Cohort) -> Iterator[PlainStep]:
        """The cohort's steps."""
        network, pull = cohort.network, self.proximal(cohort, cohort.received("params"))
        mu, shift = pull["decay"], None if pull["shift"] is None else cohort.stack(pull["shift"])
        for batch, lr in self.rated(cohort):
            yield PlainStep(network, batch, lr, mu, None if shift is None else shift[: len(batch)])
