"""Training by bounds of what models may do anywhere around an example, whatever an attack finds there.

A defence of this kind says of a batch what is minimised, in terms of `Seen`: outputs, and bounds of margins in a box of
radius epsilon around each example. Epsilon grows with the server's round, the one clock that all clients share.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from fedsim.attacks.certificate import hold_inputs
from fedsim.client.defence import Armed, Defence, Defending, victim
from fedsim.core.errors import InputError
from fedsim.core.options import NonNegativeFloat, PositiveFloat, Share, options
from fedsim.core.schedules import Constant, Growth
from fedsim.engine.cohort import Cohort
from fedsim.nets.bounds import Bounds, Box, Named
from fedsim.nets.crown import Crown
from fedsim.nets.losses import CrossEntropy, ModelLoss, weighted
from fedsim.nets.network import Batch
from fedsim.nets.rows import inner
from fedsim.nets.stack import Layout, Stack


@dataclass(frozen=True)
class Seen:
    """What k models come to on a batch and around its examples, in terms that can be differentiated.

    x: [k, B, ...]. targets, weight: [k, B]. box: around x. absent: classes whose margins do not count, bool [k, 1, K];
    None: all count. elide: whether margins are bounded as such by the last layer.
    """

    bounds: Bounds
    named: Named
    x: Tensor
    targets: Tensor
    weight: Tensor
    box: Box
    absent: Tensor | None
    elide: bool

    def mean(self, losses: Tensor) -> Tensor:
        """The means [k] of losses [k, B] over a batch."""
        return weighted(losses, self.weight)

    def loss(self, x: Tensor) -> Tensor:
        """The cross-entropy [k, B] at inputs x [k, B, ...]."""
        return CrossEntropy().examples(self.bounds.exactly(self.named, x), self.targets)

    def margins(self, x: Tensor) -> Tensor:
        """The margins z_y - z_j [k, B, K] at inputs x [k, B, ...]."""
        outputs = self.bounds.exactly(self.named, x)
        return outputs.gather(-1, self.targets.unsqueeze(-1)) - outputs

    def least(self) -> Tensor:
        """Lower bounds [k, B, K] of the margins in the box, by intervals."""
        return self.bounds.margins(self.named, self.box, self.targets, elide=self.elide)

    def crown(self) -> Tensor:
        """The same by CROWN, between intervals."""
        return Crown(self.bounds).margins(self.named, self.box, self.targets, intervals=True)

    def worst(self, margins: Tensor) -> Tensor:
        """log(1 + sum_{j != y} exp(-m_j)), [k, B], of margins [k, B, K]: the cross-entropy of outputs -m, 0 for y."""
        outputs = -margins if self.absent is None else (-margins).masked_fill(self.absent, -torch.inf)
        return CrossEntropy().examples(outputs, self.targets)


Objective = Callable[[Seen], Tensor]
"""What is minimised, [k]."""


@dataclass(frozen=True)
class Around(ModelLoss):
    """An objective of `Seen` as a loss, with an l1 penalty of the weights."""

    bounds: Bounds
    objective: Objective
    epsilon: float
    domain: tuple[float, float] | None
    absent: Tensor | None
    elide: bool
    l1: float

    def of(self, leaves: Sequence[Tensor], x: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
        """Losses [k]."""
        named = self.bounds.named(leaves, len(x))
        absent = None if self.absent is None else self.absent[: len(x)]
        box = Box.around(x, self.epsilon, self.domain)
        found = self.objective(Seen(self.bounds, named, x, targets, weight, box, absent, self.elide))
        if not self.l1:
            return found
        weights = [named[name] for name in self.bounds.weights]
        return found + self.l1 * inner(Stack(weights), Stack([own.detach().sign() for own in weights]))


@options
class Bounding(Defending):
    """An example goes through the model as it is, and twice more for the centre and the radius of its box."""

    views: ClassVar[int] = 3
    does: ClassVar[str] = "bounds"

    growth: Growth = Constant()
    """Factor of epsilon over the rounds after those."""
    elide: bool = True
    """Bound margins as such by the last layer, instead of by the bounds of two outputs."""
    l1: NonNegativeFloat = 0.0
    """Factor of the sum of the absolute weights of linear layers and convolutions, added to the loss."""
    classes: Literal["all", "present"] = "all"
    """Whose margins count: all, or those of classes that the client has examples of."""

    @property
    @abstractmethod
    def domain_of_inputs(self) -> tuple[float, float] | None:
        """Lower and upper bound of every input; None: there are none."""

    def progress(self, round: int) -> float:  # noqa: A002
        """How much of the rounds in which epsilon grows is behind, from 0 to 1."""
        rounds = getattr(self.growth, "rounds", 0)
        return min((round - self.warm_up) / rounds, 1.0) if rounds else 1.0

    def hold(self, model: nn.Module, layout: Layout) -> None:
        """InputError: the model has no bounds to be trained by."""
        Bounds(model, layout).hold_training()

    def hold_data(self, x: Tensor) -> None:
        """InputError: inputs [n, ...] are tokens, or lie outside the domain."""
        hold_inputs(self.domain_of_inputs, x)

    def hold_rounds(self, last: int) -> None:
        """InputError: epsilon is not at its full size in the last round."""
        factor = self.factor(last)
        if 0.0 < factor < 1.0:
            remedy = f"epsilon is {factor:.2g} of its size in the last of {last + 1} rounds; let it grow faster"
            raise InputError("growth.rounds", getattr(self.growth, "rounds", 0), remedy)

    def around(self, cohort: Cohort, factor: float) -> Callable[[Batch, Objective], Batch]:
        """What gives a batch an objective in boxes of so many times epsilon."""
        bounds = Bounds(cohort.module, cohort.network.layout)
        absent = None if self.classes == "all" else (cohort.class_counts() == 0).unsqueeze(1)

        def given(batch: Batch, objective: Objective) -> Batch:
            epsilon, domain = self.radius * factor, self.domain_of_inputs
            return replace(batch, loss=Around(bounds, objective, epsilon, domain, absent, self.elide, self.l1))

        return given


@options
class Expressive(Bounding, Defence):
    """What lies between the loss of an attack's point x' and that of the bounds: De Palma et al. 2024."""

    alpha: Share = 0.5
    """How much of the bounds there is in the loss; 0: the attack's alone."""
    epsilon_factor: PositiveFloat = 1.0
    """The radius of the boxes, in those of the attack."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if getattr(self.attacked_by, "norm", "linf") != "linf":
            raise InputError("attack.norm", "l2", "bounds are those of a box; take linf")

    @property
    def domain_of_inputs(self) -> tuple[float, float] | None:
        """The attack's."""
        return self.attacked_by.bounds

    def armed(self, cohort: Cohort, factor: float) -> Armed:
        """Show each example as attacked, and around it."""
        around = self.around(cohort, factor * self.epsilon_factor)

        def arm(rows: Stack, batch: Batch) -> Batch:
            found = self.perturbed(victim(cohort, rows, batch), batch.x, batch.y, factor=factor)
            return around(batch, lambda seen: self.between(seen, found))

        return arm

    @abstractmethod
    def between(self, seen: Seen, attacked: Tensor) -> Tensor:
        """What is minimised, [k]. attacked: x', [k, B, ...]."""
