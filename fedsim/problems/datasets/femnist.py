"""FEMNIST: handwritten characters with their writers.

`femnist/femnist_subset.npz` holds, for `train`, `test` and `unseen`, `x_*` (uint8 [n, 28, 28]), `y_*` and
`writer_*`; the last part is of writers who are in neither other. Source: Caldas et al. 2018 (LEAF).
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from fedsim.core.data_files import Array, DataFolder, damaged, read_arrays
from fedsim.core.options import options
from fedsim.problems.datasets.base import Dataset, standardise, unit_scale

FILE = "femnist/femnist_subset.npz"


@options
class FEMNIST:
    """62 classes of characters (digits, capitals, small letters), a client being a writer."""

    test: Literal["seen", "unseen"] = "seen"
    """What models are judged on: other images of the writers who train (seen), or writers who never train (unseen)."""
    standardize: bool = False
    """Shift and scale by the mean and deviation of the training pixels."""

    def load(self, folder: DataFolder) -> Dataset:
        """Return x float32 [n, 1, 28, 28], owner = writer; owner_test is None for unseen writers."""
        path = folder.find(FILE)
        parts: list[tuple[Array, Array, Array]] = []
        archive = read_arrays(path, "the FEMNIST archive")
        for part in ("train", "test" if self.test == "seen" else "unseen"):
            missing = [key for key in (f"x_{part}", f"y_{part}", f"writer_{part}") if key not in archive]
            if missing:
                raise damaged(path, f"has no array {missing[0]}")
            x, y, writer = (archive[f"{key}_{part}"] for key in ("x", "y", "writer"))
            if x.dtype != np.uint8 or x.shape != (y.size, 28, 28) or writer.shape != y.shape:
                raise damaged(path, f"holds {x.dtype} images of shape {x.shape} for {y.size} labels")
            parts.append((unit_scale(x[:, None]), y.astype(np.int64), writer.astype(np.int64)))
        (x, y, writer), (x_test, y_test, writer_test) = parts
        names, owner = np.unique(writer, return_inverse=True)
        seen = self.test == "seen"
        if seen and not np.isin(writer_test, names).all():
            raise damaged(path, "holds test images of writers without training images")
        told = {"features": standardise(x, x_test)} if self.standardize else {}
        owner_test = np.searchsorted(names, writer_test) if seen else None
        return Dataset("femnist", x, y, x_test, y_test, 62, owner, owner_test, told=told)
