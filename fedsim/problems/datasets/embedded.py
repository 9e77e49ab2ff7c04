"""Small real data sets that scikit-learn carries: nothing to download."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedsim.core.data_files import DataFolder
from fedsim.core.options import Fraction, NonNegativeInt, options
from fedsim.problems.datasets.base import Dataset, split_dataset, standardise


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
        from sklearn.datasets import load_digits

        x, y = load_digits(return_X_y=True)
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
        from sklearn.datasets import load_breast_cancer

        x, y = load_breast_cancer(return_X_y=True)
        x, y = x.astype(np.float32), y.astype(np.int64)
        data = split_dataset("breast_cancer", x, y, 2, self.test_share, self.split_seed)
        return replace(data, told={"features": standardise(data.x, data.x_test)})
