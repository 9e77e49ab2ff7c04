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
class Defence(HasPlugins, ABC):
    """What every defence has: an attack on the current local model, and when it begins and grows."""

    parts: ClassVar[Mapping[str, str]] = {"attack": "attacks"}
    views: ClassVar[int] = 1
    """How many times an example is in the batch that is trained on."""
    of_classes: ClassVar[bool] = True
    """Whether its loss is about classes."""

    attack: Any
    """What the current local model is attacked with."""
    warm_up: NonNegativeInt = 0
    """Rounds without an attack at first."""
    growth: Growth = Constant()
    """Factor of epsilon and of the attack's step size over the rounds after those."""

    @property
    def same_every_round(self) -> bool:
        """Whether rounds differ in nothing but their draws."""
        return self.warm_up == 0 and isinstance(self.growth, Constant)

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

    def factor(self, round: int) -> float:  # noqa: A002
        """Of epsilon in a round; 0: no attack."""
        if self.attacked_by.epsilon == 0.0 or round < self.warm_up:
            return 0.0
        return self.growth.factor(round - self.warm_up)

    def effort(self, round: int) -> float:  # noqa: A002
        """What a local step takes beside a plain one, in plain ones."""
        return float(self.views - 1 + self.attacked_by.gradients) if self.factor(round) else 0.0

    def arm(self, cohort: Cohort) -> Armed | None:
        """What is done to the batches of this cohort's order; None: nothing, it trains as without a defence."""
        factor = self.factor(0 if self.same_every_round else cohort.round)
        return self.armed(cohort, factor) if factor else None

    @abstractmethod
    def armed(self, cohort: Cohort, factor: float) -> Armed:
        """What is done to the batches where epsilon has this factor, above 0."""


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
