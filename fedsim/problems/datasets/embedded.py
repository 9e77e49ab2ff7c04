"""Small real data sets that scikit-learn carries: nothing to download."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedsim.core.data_files import DataFolder
from fedsim.core.errors import InputError
from fedsim.core.options import Fraction, NonNegativeInt, options
from fedsim.core.streams import Streams
from fedsim.problems.datasets.base import Dataset, split_dataset, standardise

CARRIED = {"digits": ("digits.csv.gz", 0, (1797, 65)), "breast_cancer": ("breast_cancer.csv", 1, (569, 31))}
"""By data set: its file, the lines before its first row, and how many rows and columns it has."""


@options
class Digits:
    """Handwritten digits, 8 x 8 pixels as 64 features in [0, 1]: 1,797 examples, 10 classes."""

    test_share: Fraction = 0.2
    """Share of each class that is the test set."""
    split_seed: NonNegativeInt = 0
    """Which examples are the test set; it does not follow the run's seed, so that runs of several seeds are judged
    alike.
    """

    def load(self, folder: DataFolder) -> Dataset:  # noqa: ARG002
        """Return x float32 [n, 64]."""
        x, y = carried("digits")
        x, y = (x / 16).astype(np.float32), y.astype(np.int64)
        return split_dataset("digits", x, y, 10, self.test_share, self.split_seed)


@options
class BreastCancer:
    """Breast cancer Wisconsin (diagnostic): 569 examples, 30 standardised features, 2 classes."""

    test_share: Fraction = 0.2
    """Share of each class that is the test set."""
    split_seed: NonNegativeInt = 0
    """Which examples are the test set; it does not follow the run's seed, so that runs of several seeds are judged
    alike.
    """

    def load(self, folder: DataFolder) -> Dataset:  # noqa: ARG002
        """Return x float32 [n, 30]."""
        x, y = carried("breast_cancer")
        x, y = x.astype(np.float32), y.astype(np.int64)
        data = split_dataset("breast_cancer", x, y, 2, self.test_share, self.split_seed)
        return replace(data, told={"features": standardise(data.x, data.x_test)})


def carried(name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The features [n, k] and the labels [n] of a table that lies in scikit-learn's folder, as its own loader has them.

    That loader is not asked: to import it takes as long as PyTorch does, for it brings SciPy and pandas along.
    InputError: the scikit-learn that is installed has no such table.
    """
    file, titles, shape = CARRIED[name]
    found = importlib.util.find_spec("sklearn")
    places = [] if found is None else [Path(place) for place in found.submodule_search_locations or ()]
    there = next((path for place in places if (path := place / "datasets" / "data" / file).is_file()), None)
    table = None if there is None else np.loadtxt(there, delimiter=",", skiprows=titles)
    if table is None or table.shape != shape:
        here = f"scikit-learn {version('scikit-learn')} does not carry {file} where those up to 1.9 do"
        raise InputError("problem.dataset", name, f"{here}; install an earlier one")
    return table[:, :-1], table[:, -1]


def owned_digits(
    name: str, clients: int, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """The digits' features [n, 64] and labels [n], and to which of so many clients each is dealt at random, [n].

    name: of the data set that deals them, and of the draws. InputError: there are too few digits.
    """
    x, y = carried("digits")
    if clients > len(x) // 2:
        raise InputError("problem.dataset.clients", clients, f"of {len(x)} digits each needs two; take fewer")
    return x, y, Streams(seed).generator(f"{name}/owner").permutation(len(x)) % clients
