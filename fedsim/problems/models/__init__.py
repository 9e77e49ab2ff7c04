"""Models: options that build a `torch.nn.Module` for the shape of a problem's data.

Authors of models find here all that they need.

Every built-in model is an `nn.Sequential` of standard layers, `Residual` and those of `fedsim.nets.sequences`, which
the stacked engine knows how to run for many clients at once.
"""

from __future__ import annotations

from typing import Protocol

from torch import nn

from fedsim.core.errors import InputError
from fedsim.core.options import Fraction, PositiveFloat, PositiveInt, options
from fedsim.nets.layers import Residual
from fedsim.nets.sequences import LastStep, MeanStep, Steps
from fedsim.problems.models.layers import initialise, need_images, need_numbers, starts_as_made

__all__ = [
    "Fraction",
    "InputError",
    "LastStep",
    "MeanStep",
    "Model",
    "PositiveFloat",
    "PositiveInt",
    "Residual",
    "Steps",
    "initialise",
    "need_images",
    "need_numbers",
    "options",
    "starts_as_made",
]


class Model(Protocol):
    """What a plug-in of the group `models` offers."""

    def build(self, shape: tuple[int, ...], outputs: int, vocabulary: int) -> nn.Module:
        """Make the module, without drawing from a global generator; `initialise` fills it afterwards.

        shape: one input's, without the batch. outputs: K, how many numbers it is to make of an example, [B, K]: one a
        class, a number or a tag; or where each place of an example has a class, so many at each, [B, *places, K].
        vocabulary: how many characters there are when inputs are characters, else 0. Raises `InputError` when the
        model does not fit the data.
        """
        ...
