"""Adversarial training: what a client does to a batch before it takes its local step.

A defence is a plug-in of the group `defences`, an option of every client that trains. It turns the batch of a step into
the one that is trained on: other inputs, more views of them, another loss. So it goes with any client algorithm,
selector, aggregator and window.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedsim.attacks.attack import Attack, ClientDraws, Victim, perturbed
from fedsim.core.errors import InputError
from fedsim.core.options import NonNegativeInt, options
from fedsim.core.plugins import HasPlugins
from fedsim.core.schedules import Constant, Growth
from fedsim.engine.cohort import Cohort
from fedsim.nets.losses import Loss
from fedsim.nets.network import Batch
from fedsim.nets.stack import Stack

Armed = Callable[[Stack, Batch], Batch]
"""From the local models of the k clients that still work, and their batch, to the batch that they train on."""


@options
class Defending(HasPlugins, ABC):
    """What every defence has: how far its examples may be moved, and when that begins and grows."""

    views: ClassVar[int] = 1
    """How many times an example of a batch goes through the model that is trained."""
    of_classes: ClassVar[bool] = True
    """Whether its loss is about classes."""
    does: ClassVar[str] = "attacks"
    """What a round is without where epsilon is 0."""

    warm_up: NonNegativeInt = 0
    """Rounds of plain training at first."""
    growth: Growth = Constant()
    """Factor of epsilon, and of an attack's step size, over the rounds after those."""

    @property
    @abstractmethod
    def radius(self) -> float:
        """Epsilon at its full size."""

    @property
    def gradients(self) -> int:
        """How many forward and backward passes an example takes beside those of its views."""
        return 0

    @property
    def same_every_round(self) -> bool:
        """Whether rounds differ in nothing but their draws."""
        return self.warm_up == 0 and isinstance(self.growth, Constant)

    def round_of(self, cohort: Cohort) -> int:
        """The round of the cohort's order: any, where all are the same."""
        return 0 if self.same_every_round else cohort.round

    def factor(self, round: int) -> float:  # noqa: A002
        """Of epsilon in a round; 0: plain training."""
        if self.radius == 0.0 or round < self.warm_up:
            return 0.0
        return self.growth.factor(round - self.warm_up)

    def effort(self, round: int) -> float:  # noqa: A002
        """What a local step takes beside a plain one, in plain ones."""
        return float(self.views - 1 + self.gradients) if self.factor(round) else 0.0

    def arm(self, cohort: Cohort) -> Armed | None:
        """What is done to the batches of this cohort's order; None: nothing, it trains as without a defence."""
        factor = self.factor(self.round_of(cohort))
        return self.armed(cohort, factor) if factor else None

    @abstractmethod
    def armed(self, cohort: Cohort, factor: float) -> Armed:
        """What is done to the batches where epsilon has this factor, above 0."""


@options
class Defence(Defending):
    """A defence with an attack on the current local model."""

    parts: ClassVar[Mapping[str, str]] = {"attack": "attacks"}

    attack: Any
    """What the current local model is attacked with."""

    @property
    def radius(self) -> float:
        """The attack's epsilon."""
        return self.attacked_by.epsilon

    @property
    def gradients(self) -> int:
        """How many forward and backward passes of an example the attack takes."""
        return self.attacked_by.gradients

    @property
    def attacked_by(self) -> Attack:
        """The attack."""
        attack: Attack = self.made["attack"]
        return attack

    def perturbed(
        self, attacked: Victim, x: Tensor, targets: Tensor, loss: Loss | None = None, factor: float = 1.0
    ) -> Tensor:
        """Inputs x [k, B, ...] as the attack leaves them: see `Attack.perturb`."""
        return perturbed(self.attacked_by, self.attacked_by.perturb(attacked, x, targets, loss, factor), x)


def victim(cohort: Cohort, rows: Stack, batch: Batch) -> Victim:
    """The local models of the clients of a batch, to be attacked on it."""
    return Victim(cohort.network, rows, cohort.network.loss, ClientDraws(batch.draw))


def check_start(attack: Attack) -> None:
    """Refuse an attack that maximises something else, or that begins at the examples.

    There a divergence from the predictions for them has no slope.
    """
    if getattr(attack, "loss", "own") != "own":
        raise InputError("attack", attack.label, "it maximises the margin, and not what this defence says; take pgd")
    if not getattr(attack, "random_start", True):
        raise InputError(
            "attack.random_start", False, "at the examples themselves a divergence has no slope; set it to true"
        )


def clean_and_attacked(batch: Batch, attacked: Tensor, loss: Loss) -> Batch:
    """The examples [k, B, ...] as they are, then as attacked [k, B, ...], under a loss of two views: [k, 2B, ...]."""
    x, y, weight = torch.cat((batch.x, attacked), dim=1), batch.y.repeat(1, 2), batch.weight.repeat(1, 2)
    return replace(batch, x=x, y=y, weight=weight, loss=loss)


def apart(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log probabilities [..., B, K] of the clean view and of the attacked one, and the targets' places [..., B, 1]."""
    clean, attacked = torch.log_softmax(outputs, dim=-1).chunk(2, dim=-2)
    return clean, attacked, targets.chunk(2, dim=-1)[0].unsqueeze(-1)
