"""Losses that somebody hands over: by name, as a table, or as a function of their own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedsim.core.errors import InputError, named_line, one_line
from fedsim.core.plugins import make
from fedsim.nets.losses.base import IGNORED, Loss

OPTION = "problem.loss"


@dataclass(frozen=True)
class Given(Loss):
    """A function of outputs and targets that returns losses.

    function: of outputs [n, *places, K] and classes [n, *places], or of outputs and numbers or tags that both have the
    shape of the targets, [n] or [n, k], to losses [n] or of each place, number or tag, whose mean is the example's. The
    loss of an example depends on nothing but its own. Where places have classes, those that do not count are -100.
    """

    function: Callable[[Tensor, Tensor], Any]

    def examples(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Losses [...] of examples; see `Loss`."""
        lead = targets.shape[: targets.dim() - self.places]
        outputs = outputs if self.task == "classes" else outputs.reshape(targets.shape)
        losses = self.function(outputs.reshape(-1, *outputs.shape[len(lead) :]), targets.flatten(0, len(lead) - 1))
        if isinstance(losses, Tensor) and losses.shape == (lead.numel(), *targets.shape[len(lead) :]) and self.places:
            losses = losses.view(targets.shape)
            if self.task == "classes":
                return self.mean(losses.where(targets != IGNORED, 0.0), targets)
            return losses.mean(dim=-1)
        if not isinstance(losses, Tensor) or losses.shape != (lead.numel(),):
            shape = f"shape {tuple(losses.shape)}" if isinstance(losses, Tensor) else f"a {type(losses).__name__}"
            remedy = f"gives {shape} for {lead.numel()} examples; it is to give a loss for each, as by reduction='none'"
            raise InputError(OPTION, named(self), remedy)
        return losses.view(lead)


def named(loss: Loss) -> str:
    """What a loss is called where it is refused."""
    function = loss.function if isinstance(loss, Given) else loss
    return str(getattr(function, "__name__", type(function).__name__))


def loss_of(given: object) -> Loss:
    """The loss that is meant: an object, a name, a table with `kind` and options, or a function."""
    if isinstance(given, str | Mapping):
        given = make("losses", given, OPTION)
    if isinstance(given, Loss):
        return given
    if not callable(given) or isinstance(given, type):
        held = getattr(given, "__name__", type(given).__name__)
        raise InputError(OPTION, held, "give a name, a table with `kind`, a Loss, or a function of outputs and targets")
    return Given(given)


def hold_loss(loss: Loss, targets: Tensor, outputs: int, dtype: torch.dtype) -> None:
    """Refuse a loss that cannot be computed, or differentiated, or whose examples depend on each other.

    It is tried on the first two of the training targets [n, *places] and some outputs of this precision, K of them.
    """
    y = targets[torch.arange(2) % len(targets)]
    shape = (*y.shape, outputs) if loss.task == "classes" else (2, outputs)
    z = torch.arange(math.prod(shape), dtype=dtype, device=y.device).square().sin().view(shape)
    try:
        losses, _ = loss.with_gradient(z.clone(), y)
        alone = torch.cat([loss.examples(z[row : row + 1], y[row : row + 1]) for row in range(2)])
    except InputError:
        raise
    except Exception as error:  # of whatever kind is in a function that somebody has written
        raise InputError(OPTION, named(loss), f"does not fit: {one_line(named_line(error), 200)}") from error
    if losses.shape != (2,):
        raise InputError(OPTION, named(loss), f"gives losses of shape {tuple(losses.shape)} for 2 examples")
    if not torch.allclose(losses, alone, rtol=1e-3, atol=1e-4, equal_nan=True):
        raise InputError(OPTION, named(loss), "its loss of an example depends on the others of the batch")
