"""Forest cover types, which scikit-learn can fetch and then keeps on disk."""

from __future__ import annotations

import numpy as np

from fedsim.core.data_files import DataFolder
from fedsim.core.errors import InputError
from fedsim.core.options import Fraction, NonNegativeInt, options
from fedsim.problems.datasets.base import Dataset, split_dataset


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
        from sklearn.datasets import fetch_covtype

        try:
            x, y = fetch_covtype(data_home=folder.path, download_if_missing=False, return_X_y=True)
        except OSError as error:
            remedy = "is not on this disk; sklearn.datasets.fetch_covtype(data_home=<the data folder>) fetches it"
            raise InputError("problem.dataset", "covertype", remedy) from error
        x, y = x.astype(np.float32), y.astype(np.int64) - 1
        return split_dataset("covertype", x, y, 7, self.test_share, self.split_seed)
