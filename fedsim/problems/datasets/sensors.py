"""Digits as unlike instruments would read them: each client has scales and offsets of its own."""

from __future__ import annotations

import numpy as np

from fedsim.core.data_files import Array, DataFolder
from fedsim.core.options import Fraction, NonNegativeFloat, NonNegativeInt, PositiveInt, options
from fedsim.core.streams import Streams
from fedsim.problems.datasets.base import Dataset, split_dataset
from fedsim.problems.datasets.embedded import owned_digits


@options
class Sensors:
    """Handwritten digits of 64 features, dealt at random to clients with a sensor each; `natural` deals them so.

    Client c reads exp(scale z_cp) x_p + offset z'_cp for the pixels x_p in [0, 1], with z and z' standard normal.
    """

    clients: PositiveInt = 10
    """How many sensors there are."""
    scale: NonNegativeFloat = 0.8
    """How unlike their scales are: the standard deviation of the scale's logarithm."""
    offset: NonNegativeFloat = 1.0
    """How unlike their offsets are: their standard deviation."""
    test_share: Fraction = 0.33
    """Share of each client's examples that is the test set."""
    split_seed: NonNegativeInt = 0
    """What the sensors are, who has which examples, and which of them are tests."""

    def load(self, folder: DataFolder) -> Dataset:  # noqa: ARG002
        """Return x float32 [n, 64], each example with its owner."""
        x, y, owner = owned_digits("sensors", self.clients, self.split_seed)
        scale, offset = self.readings(x.shape[1])
        read = (x / 16 * scale[owner] + offset[owner]).astype(np.float32)
        return split_dataset("sensors", read, y.astype(np.int64), 10, self.test_share, self.split_seed, owner)

    def readings(self, pixels: int) -> tuple[Array, Array]:
        """Scales and offsets of the sensors, [clients, pixels] each."""
        drawn = Streams(self.split_seed).generator("sensors/readings").normal(size=(2, self.clients, pixels))
        return np.exp(self.scale * drawn[0]), self.offset * drawn[1]
