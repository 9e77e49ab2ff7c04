"""Digits as unlike instruments would read them: each client has a scale and an offset of its own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedsim.core.data_files import DataFolder
from fedsim.core.errors import InputError
from fedsim.core.options import Fraction, NonNegativeFloat, NonNegativeInt, PositiveInt, options
from fedsim.core.streams import Streams
from fedsim.problems.datasets.base import Dataset, split_dataset
from fedsim.problems.datasets.embedded import carried


@options
class Sensors:
    """Handwritten digits of 64 features, dealt at random to clients with a sensor each; `natural` deals them so.

    Client c reads exp(scale z_c) x + offset z'_c for pixels x in [0, 1], with z and z' standard normal.
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
        x, y = carried("digits")
        if self.clients > len(x) // 2:
            raise InputError("problem.dataset.clients", self.clients, f"of {len(x)} digits each needs two; take fewer")
        streams = Streams(self.split_seed)
        owner = streams.generator("sensors/owner").permutation(len(x)) % self.clients
        drawn = streams.generator("sensors/readings").normal(size=(2, self.clients))
        scale, offset = np.exp(self.scale * drawn[0]), self.offset * drawn[1]
        read = (x / 16 * scale[owner, None] + offset[owner, None]).astype(np.float32)
        told = {"scale": scale.tolist(), "offset": offset.tolist()}
        found = split_dataset("sensors", read, y.astype(np.int64), 10, self.test_share, self.split_seed, owner)
        return replace(found, told=told)
