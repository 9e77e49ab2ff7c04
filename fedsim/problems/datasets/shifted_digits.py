"""Digits that groups of clients call by other names: one model for all must fail, and one a group need not."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from fedsim.core.data_files import DataFolder
from fedsim.core.options import Fraction, NonNegativeInt, PositiveInt, options
from fedsim.problems.datasets.base import Dataset, split_dataset
from fedsim.problems.datasets.embedded import owned_digits


@options
class ShiftedDigits:
    """Handwritten digits of 64 features in [0, 1], dealt at random to clients; `natural` deals them so.

    A client's number modulo G is that of its group, g, and digit y has the label y + g floor(10 / G), modulo 10: of two
    groups the second has labels that are 5 further. Ghosh et al. 2020 turn images by groups instead.
    """

    clients: PositiveInt = 20
    """How many clients there are."""
    groups: Annotated[int, Field(ge=1, le=10)] = 2
    """G, how many groups they are of."""
    test_share: Fraction = 0.33
    """Share of each client's examples that is the test set."""
    split_seed: NonNegativeInt = 0
    """Who has which examples, and which of them are tests."""

    def load(self, folder: DataFolder) -> Dataset:  # noqa: ARG002
        """Return x float32 [n, 64], each example with its owner."""
        x, y, owner = owned_digits("shifted_digits", self.clients, self.split_seed)
        named = (y.astype(np.int64) + owner % self.groups * (10 // self.groups)) % 10
        pixels = (x / 16).astype(np.float32)
        return split_dataset("shifted_digits", pixels, named, 10, self.test_share, self.split_seed, owner)
