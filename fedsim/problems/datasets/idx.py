"""MNIST and Fashion-MNIST: the published idx files, compressed or not.

A file begins with two zero bytes, the type (8: unsigned bytes), the number of dimensions, and each
dimension as a big-endian 32-bit number; then the bytes. Source: LeCun, Cortes, Burges, the MNIST database.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedsim.core.data_files import Array, DataFolder, damaged, unpacked
from fedsim.core.options import options
from fedsim.problems.datasets.base import Dataset, standardise, unit_scale


@options
class MNIST:
    """Handwritten digits: 60,000 and 10,000 images of 28 x 28, 10 classes."""

    standardize: bool = False
    """Shift and scale by the mean and deviation of the training pixels."""

    def load(self, folder: DataFolder) -> Dataset:
        """Return x float32 [n, 1, 28, 28] from `MNIST/raw/` or from the folder itself."""
        return load_idx(folder, "mnist", "MNIST/raw", self.standardize)


@options
class FashionMNIST:
    """Articles of clothing: 60,000 and 10,000 images of 28 x 28, 10 classes (Xiao, Rasul, Vollgraf 2017)."""

    standardize: bool = False
    """Shift and scale by the mean and deviation of the training pixels."""

    def load(self, folder: DataFolder) -> Dataset:
        """Return x float32 [n, 1, 28, 28] from `FashionMNIST/raw/` or from the folder itself."""
        return load_idx(folder, "fashion_mnist", "FashionMNIST/raw", self.standardize)


def load_idx(folder: DataFolder, name: str, subfolder: str, standardize: bool) -> Dataset:
    """Read the four files of a data set with the layout of MNIST."""
    parts: list[Array] = []
    for stem in ("train", "t10k"):
        images_at, labels_at = (
            folder.find(f"{subfolder}/{file}.gz", f"{subfolder}/{file}", f"{file}.gz", file)
            for file in (f"{stem}-images-idx3-ubyte", f"{stem}-labels-idx1-ubyte")
        )
        images, labels = read_idx(images_at, 3), read_idx(labels_at, 1)
        if images.shape[1:] != (28, 28):
            raise damaged(images_at, f"holds images of {images.shape[1]} x {images.shape[2]}, not 28 x 28")
        if len(images) != len(labels) or len(images) == 0:
            raise damaged(labels_at, f"holds {len(labels)} labels for {len(images)} images")
        if labels.max() > 9:
            raise damaged(labels_at, f"holds the label {labels.max()}, above 9")
        parts += [unit_scale(images[:, None]), labels.astype(np.int64)]
    x, y, x_test, y_test = parts
    told = {"features": standardise(x, x_test)} if standardize else {}
    return Dataset(name, x, y, x_test, y_test, 10, told=told)


def read_idx(path: Path, dimensions: int) -> Array:
    """Read an idx file of unsigned bytes with that many dimensions; raises InputError on anything else."""
    content = unpacked(path, "an idx file")
    start = 4 + 4 * dimensions
    if content[:4] != bytes((0, 0, 8, dimensions)) or len(content) < start:
        found = content[:4].hex(" ")
        raise damaged(path, f"is not an idx file of {dimensions}-dimensional bytes (it begins with {found})")
    shape = [int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4)]
    expected = int(np.prod(shape, dtype=object))
    if len(content) - start != expected:
        raise damaged(path, f"holds {len(content) - start} bytes where its head announces {expected}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
