"""Measures of what a model's outputs come to on a set of examples, or on each client's.

Outputs and targets are float64 on the CPU, of what counts, one after the other: of classes outputs [n, K] (logits) and
targets int64 [n], a place of a sequence or of a picture counting as an example does, and places without a target
left out; of numbers outputs and targets [n, k]; of tags outputs [n, k] (logits; a tag is predicted above 0) and targets
[n, k] of 0 and 1.

A measure is undefined where targets allow no value, whatever the outputs are, as an AUROC of one class: it is then NaN,
and what would be said of it is left out. Clients for which it is undefined are counted.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fedsim.core.errors import InputError
from fedsim.core.options import options
from fedsim.exchange.messages import broken, shown
from fedsim.nets.losses import Targets

CLASSES: frozenset[Targets] = frozenset({"classes"})
NUMBERS: frozenset[Targets] = frozenset({"numbers"})
TAGS: frozenset[Targets] = frozenset({"tags"})
LABEL = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
"""What columns are called: small letters and digits."""
ColumnName = Annotated[str, Field(pattern=rf"^{LABEL.pattern}$")]


@options
class Measure(ABC):
    """A number of outputs and targets.

    tasks: what targets it is for. higher_is_better: which way it improves. best: beyond which it never is; None: there
    is no such number.
    """

    tasks: ClassVar[frozenset[Targets]] = CLASSES | NUMBERS | TAGS
    higher_is_better: ClassVar[bool]
    best: ClassVar[float | None] = None

    name: ColumnName | None = None
    """What its columns are called, as in test_<name>. Not given: as its kind, with what sets it apart."""

    @property
    def label(self) -> str:
        """What columns call it, such as `f1_macro` in test_f1_macro."""
        return self.name or self.called

    @property
    def called(self) -> str:
        """The same where no name is given: the name of the class in small letters, `WorstRecall` as worst_recall."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(self).__name__).lower()

    def check(self, task: Targets, width: int) -> None:
        """Raise InputError where it does not suit the targets. width: how many outputs an example has."""
        del width
        if task not in self.tasks:
            held = " or ".join(sorted(self.tasks))
            raise InputError("kind", self.label, f"is about {held}, and these targets are {task}; leave it out")

    def undefined(self, targets: Tensor) -> str | None:  # noqa: ARG002
        """Why it has no value for these targets, whatever the outputs are; None: it has one."""
        return None

    @abstractmethod
    def __call__(self, outputs: Tensor, targets: Tensor) -> float:
        """The value for outputs [n, K] and targets [n] or [n, K], n at least 1; NaN: undefined."""

    def of(self, outputs: Tensor, targets: Tensor) -> float:
        """The value, held to be a number."""
        value = self(outputs, targets)
        try:
            return float(value)
        except (TypeError, ValueError) as error:
            raise broken("measure", "measures", self, f"gives {shown(value)}, which is no number") from error

    def of_clients(self, outputs: Tensor, targets: Tensor, count: Tensor) -> Tensor:
        """The value of each client, float64 [N], NaN where it is undefined, as without examples.

        outputs, targets: the clients' own, one client after the other. count: of each, int64 [N].
        """
        found = torch.full((len(count),), torch.nan, dtype=torch.float64)
        own = zip(torch.split(outputs, count.tolist()), torch.split(targets, count.tolist()), strict=True)
        for client, (given, wanted) in enumerate(own):
            if len(wanted) and self.undefined(wanted) is None:
                found[client] = self.of(given, wanted)
        return found


class Grouped(Measure):
    """A measure that is computed for all clients at once, and for a set of examples as for one client."""

    def __call__(self, outputs: Tensor, targets: Tensor) -> float:
        """The value for outputs [n, K] and targets [n] or [n, K]; NaN: undefined."""
        return float(self.of_clients(outputs, targets, torch.tensor([len(targets)])))

    @abstractmethod
    def of_clients(self, outputs: Tensor, targets: Tensor, count: Tensor) -> Tensor:
        """The value of each client, float64 [N]; see `Measure.of_clients`."""


def owners(count: Tensor) -> Tensor:
    """Which client each example is of, int64 [n], where client c has count[c] of them, one client after the other."""
    return torch.repeat_interleave(torch.arange(len(count)), count)


def sums(values: Tensor, count: Tensor) -> Tensor:
    """Sums [N, ...] over each client's examples of values [n, ...]."""
    return values.new_zeros(len(count), *values.shape[1:]).index_add_(0, owners(count), values)


def ratio(above: Tensor, below: Tensor, otherwise: float = 0.0) -> Tensor:
    """The quotient above / below, and `otherwise` where below is 0."""
    return torch.where(below == 0, otherwise, above / torch.where(below == 0, 1.0, below))


def mean_of_known(values: Tensor) -> Tensor:
    """Means [N] over the columns of values [N, k] that are no NaN; NaN where all are."""
    known = ~values.isnan()
    return ratio(values.nan_to_num().sum(dim=1), known.sum(dim=1).double(), math.nan)
