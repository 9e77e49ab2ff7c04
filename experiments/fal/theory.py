"""The setting of FAL's theorem: a wide network of two layers on few separated points, as a problem of experiment files.

f_U(x) = sum_r a_r relu(<U_r, x> + b_r),  r = 1 .. m;  a_r = +-m^(-1/3) and b_r ~ N(0, 1/m) fixed, U_r(0) ~ N(0, I/m)
x in R^d with |x| = 1 and x_d = 1/2, labels +-1 at random, any two points at least delta apart, more than twice the
radius of attacks; the loss is log cosh(f(x) - label): convex, 1-Lipschitz and 0 at the label. After Li, Song and Yang
2023; the scales of a_r, b_r and U_r(0) are reconstructed, from the model of Zhang et al. 2020, "Over-parameterized
adversarial training". Attacks are not held to the sphere here, so they can do more.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.core.errors import InputError
from fedsim.core.options import NonNegativeFloat, PositiveInt, options
from fedsim.core.streams import SERVER, Streams
from fedsim.problems.base import Setting
from fedsim.problems.datasets import Dataset
from fedsim.problems.supervised import Supervised

ATTEMPTS = 10_000
"""Points that are drawn for one that is far enough from those before it, until it is given up."""
LAST = 0.5
"""x_d."""


@options
class Separated:
    """Points of length 1 that are apart, and the network of the theory."""

    delta: NonNegativeFloat
    """The least distance of two points."""
    points: PositiveInt = 20
    """n, how many points there are."""
    dimension: PositiveInt = 10
    """d, numbers of a point, two at least."""
    width: PositiveInt = 2048
    """m, units of the network."""

    values_only: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.dimension < 2:
            raise InputError("dimension", self.dimension, "take two at least, of which the last is given")

    def build(self, setting: Setting) -> Supervised:
        """Points, labels and first parameters of the experiment's seed, dealt as its partition says."""
        streams = Streams(setting.seed)
        data = self.dataset(streams)
        return Supervised(
            data,
            setting.partition.split(data, streams.derive("partition")),
            self.model(streams),
            loss="log_cosh",
            device=setting.device,
            dtype=setting.dtype,
        )

    def dataset(self, streams: Streams) -> Dataset:
        """The points, x float32 [n, d], one after the other, each drawn until it is far enough; and no test set."""
        generator = streams.generator("theory/points")
        x = np.empty((self.points, self.dimension), np.float32)
        for number in range(self.points):
            for _ in range(ATTEMPTS):
                direction = generator.standard_normal(self.dimension - 1)
                rest = math.sqrt(1.0 - LAST**2) * direction / np.linalg.norm(direction)
                x[number] = [*rest, LAST]
                if number == 0 or np.linalg.norm(x[:number] - x[number], axis=1).min() >= self.delta:
                    break
            else:
                raise InputError("delta", self.delta, f"{self.points} points so far apart are not found; lower it")
        y = generator.choice(np.array([-1.0, 1.0], np.float32), self.points)
        return Dataset("separated", x, y, x[:0], y[:0], 0)

    def model(self, streams: Streams) -> nn.Module:
        """[B, d] to [B, 1]; U alone is trained."""

        def drawn(name: str, *shape: int) -> Tensor:
            return streams.normal(f"theory/{name}", torch.tensor([SERVER]), shape)[0]

        first, second = nn.Linear(self.dimension, self.width), nn.Linear(self.width, 1, bias=False)
        with torch.no_grad():
            first.weight.copy_(drawn("U", self.width, self.dimension) / math.sqrt(self.width))
            first.bias.copy_(drawn("b", self.width) / math.sqrt(self.width))
            second.weight.copy_(drawn("a", 1, self.width).sign() * self.width ** (-1 / 3))
        first.bias.requires_grad_(False)
        second.weight.requires_grad_(False)
        return nn.Sequential(first, nn.ReLU(), second)
