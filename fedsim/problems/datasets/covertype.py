"""Forest cover types, which scikit-learn can fetch and then keeps on disk."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import numpy as np

from fedsim.core import plain_pickle
from fedsim.core.data_files import Array, DataFolder, allowed, damaged, hold_size, reading
from fedsim.core.errors import InputError
from fedsim.core.options import Fraction, NonNegativeInt, options
from fedsim.problems.datasets.base import Dataset, split_dataset

FILES = ("covertype/samples_py3", "covertype/targets_py3")


@options
class Covertype:
    """581,012 places, 54 features, 7 classes (Blackard and Dean 1999). Nothing is downloaded."""

    test_share: Fraction = 0.2
    """Share of each class that is the test set."""
    split_seed: NonNegativeInt = 0
    """Which examples are the test set; it does not follow the run's seed, so that runs of several seeds are judged
    alike.
    """

    def load(self, folder: DataFolder) -> Dataset:
        """Return x float32 [n, 54], from the data folder, or without one from scikit-learn's own; classes from 0."""
        if folder.path is None:
            folder = DataFolder(Path(os.environ.get("SCIKIT_LEARN_DATA", "~/scikit_learn_data")))
        try:
            places = [folder.find(file) for file in FILES]
        except InputError as error:
            remedy = "is not on this disk; sklearn.datasets.fetch_covtype(data_home=<the data folder>) fetches it"
            raise InputError("problem.dataset", "covertype", remedy) from error
        x, y = map(_read, places)
        if x.ndim != 2 or x.shape[1] != 54 or x.dtype.kind not in "fiu":
            raise damaged(places[0], f"holds {x.dtype} of shape {x.shape}, not numbers of shape (n, 54)")
        if y.shape != x.shape[:1] or y.dtype.kind not in "iu" or not len(y) or not 1 <= y.min() <= y.max() <= 7:
            raise damaged(places[1], f"holds {y.dtype} of shape {y.shape} for {len(x)} places, not classes 1 .. 7")
        with np.errstate(over="ignore", invalid="ignore"):
            x, y = x.astype(np.float32), y.astype(np.int64) - 1
        if not np.isfinite(x).all():
            raise damaged(places[0], "holds numbers that are not finite")
        return split_dataset("covertype", x, y, 7, self.test_share, self.split_seed)


def _read(path: Path) -> Array:
    """An array as joblib keeps it, compressed by zlib or not."""
    with reading(path, "an array of scikit-learn's"):
        content = path.read_bytes()
        size = len(content)
        if content[:1] == b"\x78":
            content = zlib.decompressobj().decompress(content, allowed(size) + 1)
            hold_size(path, len(content), size, "data-dir")
        array = plain_pickle.load(content)
        if not isinstance(array, np.ndarray):
            raise ValueError(f"it holds a {type(array).__name__}")
        return array
