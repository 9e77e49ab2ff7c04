"""Losses of single examples."""

from fedsim.nets.losses.base import IGNORED, Loss, Pointwise, Targets, weighted, weighted_gradient
from fedsim.nets.losses.classes import CrossEntropy, Focal
from fedsim.nets.losses.given import Given, hold_loss, loss_of, named
from fedsim.nets.losses.numbers import AbsoluteError, Huber, LogCosh, Pinball, Poisson, SquaredError
from fedsim.nets.losses.tags import BinaryCrossEntropy

__all__ = [
    "IGNORED",
    "AbsoluteError",
    "BinaryCrossEntropy",
    "CrossEntropy",
    "Focal",
    "Given",
    "Huber",
    "LogCosh",
    "Loss",
    "Pinball",
    "Pointwise",
    "Poisson",
    "SquaredError",
    "Targets",
    "hold_loss",
    "loss_of",
    "named",
    "weighted",
    "weighted_gradient",
]
