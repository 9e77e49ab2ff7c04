"""CIFAR-10: the published Python batches, the published binary batches, or a smaller part of either.

The part lies in `cifar10_subset/`: `x_train.npy.xz` and `x_test.npy.xz` (uint8 [n, 32, 32, 3]) and
`labels.npz` (`y_train`, `y_test`); results on it cannot be compared with published ones.
Source: Krizhevsky 2009, Learning multiple layers of features from tiny images.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Literal

import numpy as np

from fedsim.core import plain_pickle
from fedsim.core.data_files import Array, DataFolder, damaged, read_arrays, reading, unpacked
from fedsim.core.options import options
from fedsim.problems.datasets.base import Dataset, standardise, unit_scale

PYTHON, BINARY, SUBSET = "cifar-10-batches-py", "cifar-10-batches-bin", "cifar10_subset"
FIRST = {"python": f"{PYTHON}/data_batch_1", "binary": f"{BINARY}/data_batch_1.bin"}
FIRST["subset"] = f"{SUBSET}/x_train.npy.xz"
TRAINING = [f"data_batch_{number}" for number in range(1, 6)]
Pair = tuple[Array, Array]


@options
class CIFAR10:
    """Photographs of 10 classes: 50,000 and 10,000 colour images of 32 x 32."""

    files: Literal["any", "python", "binary", "subset"] = "any"
    """Which layout to read; any: the first that is there of python, binary and subset."""
    standardize: bool = False
    """Shift and scale each colour by the mean and deviation of the training pixels."""

    def load(self, folder: DataFolder) -> Dataset:
        """Return x float32 [n, 3, 32, 32]; the part is named `cifar10_subset`."""
        found = folder.find(*(FIRST.values() if self.files == "any" else [FIRST[self.files]]))
        if found.parent.name == SUBSET:
            name, train, test = "cifar10_subset", _read_part(folder, "train"), _read_part(folder, "test")
        else:
            read, pattern = (
                (_read_pickle, f"{PYTHON}/{{}}")
                if found.parent.name == PYTHON
                else (_read_binary, f"{BINARY}/{{}}.bin")
            )
            name, test = "cifar10", read(folder.find(pattern.format("test_batch")))
            batches = [read(folder.find(pattern.format(batch))) for batch in TRAINING]
            train = (np.concatenate([x for x, _ in batches]), np.concatenate([y for _, y in batches]))
        x, x_test = unit_scale(train[0]), unit_scale(test[0])
        told = {"features": standardise(x, x_test)} if self.standardize else {}
        return Dataset(name, x, train[1].astype(np.int64), x_test, test[1].astype(np.int64), 10, told=told)


def _read_pickle(path: Path) -> Pair:
    with reading(path, "a CIFAR-10 batch"):
        batch = plain_pickle.load(unpacked(path, "a CIFAR-10 batch"))
        if not isinstance(batch, dict):
            raise damaged(path, f"holds a {type(batch).__name__}, not a dictionary with data and labels")
        entries = {key.decode() if isinstance(key, bytes) else key: value for key, value in batch.items()}
        for key in ("data", "labels"):
            if key not in entries:
                raise damaged(path, f"holds no {key}")
        data, labels = entries["data"], entries["labels"]
        if isinstance(labels, list) and all(type(label) is int for label in labels):
            labels = np.array(labels, dtype=np.int64)
        for array in (data, labels):
            if not isinstance(array, np.ndarray):
                raise damaged(path, "holds other things than an array of pixels and numbers of classes")
        return _checked(path, data, labels)


def _read_binary(path: Path) -> Pair:
    with reading(path, "a CIFAR-10 batch"):
        content = np.frombuffer(unpacked(path, "a CIFAR-10 batch"), np.uint8)
        if len(content) % 3073:
            raise damaged(path, f"holds {len(content)} bytes, not records of 3,073")
        return _checked(path, content.reshape(-1, 3073)[:, 1:], content[::3073])


def _read_part(folder: DataFolder, part: str) -> Pair:
    images_at = folder.find(f"{SUBSET}/x_{part}.npy.xz")
    labels_at = folder.find(f"{SUBSET}/labels.npz")
    with reading(images_at, "an xz-compressed NumPy array"):
        images = np.load(io.BytesIO(unpacked(images_at, "an xz-compressed NumPy array")), allow_pickle=False)
        if images.ndim != 4:
            raise damaged(images_at, f"holds {images.dtype} of shape {images.shape}, not images")
        pixels = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(images), -1)
    labels = read_arrays(labels_at, "an archive of labels")
    if f"y_{part}" not in labels:
        raise damaged(labels_at, f"has no array y_{part}")
    return _checked(labels_at, pixels, labels[f"y_{part}"])


def _checked(path: Path, pixels: Array, labels: Array) -> Pair:
    """Return uint8 [n, 3, 32, 32] and the labels [n], or refuse what has another shape."""
    if pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != 3072 or len(pixels) == 0:
        raise damaged(path, f"holds {pixels.dtype} of shape {pixels.shape}, not bytes of shape (n, 3072)")
    if labels.shape != (len(pixels),) or labels.dtype.kind not in "iu":
        raise damaged(path, f"holds labels of shape {labels.shape} for {len(pixels)} images")
    if not 0 <= labels.min() <= labels.max() <= 9:
        raise damaged(path, f"holds labels {labels.min()} .. {labels.max()}, not 0 .. 9")
    return pixels.reshape(-1, 3, 32, 32), labels
