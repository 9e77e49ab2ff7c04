"""Losses of single examples. An author of one imports all that is needed from here."""

from fedsim.core.errors import InputError
from fedsim.core.options import Fraction, NonNegativeFloat, PositiveFloat, Share, options
from fedsim.nets.losses.base import (
    IGNORED,
    FeatureLoss,
    Loss,
    ModelLoss,
    Pointwise,
    Targets,
    each_its_own,
    weighted,
    weighted_gradient,
)
from fedsim.nets.losses.classes import CrossEntropy, Focal
from fedsim.nets.losses.given import Given, hold_loss, loss_of, named
from fedsim.nets.losses.numbers import AbsoluteError, Huber, LogCosh, Pinball, Poisson, SquaredError
from fedsim.nets.losses.tags import BinaryCrossEntropy

__all__ = [
    "IGNORED",
    "AbsoluteError",
    "BinaryCrossEntropy",
    "CrossEntropy",
    "FeatureLoss",
    "Focal",
    "Fraction",
    "Given",
    "Huber",
    "InputError",
    "LogCosh",
    "Loss",
    "ModelLoss",
    "NonNegativeFloat",
    "Pinball",
    "Pointwise",
    "Poisson",
    "PositiveFloat",
    "Share",
    "SquaredError",
    "Targets",
    "each_its_own",
    "hold_loss",
    "loss_of",
    "named",
    "options",
    "weighted",
    "weighted_gradient",
]
