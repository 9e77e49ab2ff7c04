"""Data sets of torchvision, from files that are there: CIFAR-100, SVHN, EMNIST and others."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fedsim.core.data_files import TABLE, DataFolder, reading
from fedsim.core.errors import InputError
from fedsim.core.extras import library
from fedsim.core.options import Fraction, NonNegativeInt, PositiveInt, options
from fedsim.problems.datasets.arrow import PATH
from fedsim.problems.datasets.base import SHARE, Dataset, hold_unsplit, split_dataset, standardise
from fedsim.problems.datasets.images import Look, pixels_of

Name = Literal[
    "CIFAR10",
    "CIFAR100",
    "DTD",
    "EMNIST",
    "EuroSAT",
    "FGVCAircraft",
    "FashionMNIST",
    "Flowers102",
    "Food101",
    "GTSRB",
    "KMNIST",
    "MNIST",
    "QMNIST",
    "RenderedSST2",
    "STL10",
    "SVHN",
    "StanfordCars",
    "USPS",
]
"""Those with one class an image, of whose files none is unpickled that has not the published checksum."""


@options
class TorchVision:
    """A data set of torchvision whose files are in a folder; nothing is fetched.

    Needs `pip install "fedsim-lab[vision]"`. Images become numbers from 0 to 1.
    """

    name: Name
    """The class of torchvision.datasets."""
    path: str
    """The folder that torchvision calls root, absolute, or below the current or the data folder."""
    split: str | None = None
    """Which part of a data set that has several of one kind, as letters of EMNIST. Not given: it has none."""
    color: Literal["rgb", "gray"] = "rgb"
    """What images are converted to."""
    resize: PositiveInt | None = None
    """Width and height that each image is scaled to, in pixels, by bilinear interpolation. Not given: none is."""
    test_share: Fraction = SHARE
    """Share of each class that is the test set, where torchvision has none."""
    split_seed: NonNegativeInt = 0
    """Which examples are the test set then; it does not follow the run's seed."""
    standardize: bool = False
    """Shift and scale each channel by the mean and deviation of the training pixels."""

    def load(self, folder: DataFolder) -> Dataset:
        """Return x float32 [n, 3 or 1, height, width]; the classes are torchvision's numbers."""
        sets = library("torchvision", "vision", f"torchvision {self.name}", TABLE).datasets
        root = folder.resolve(self.path)
        pickled = next(iter(sorted(root.rglob("*.pt"))), None)
        if pickled is not None:
            raise InputError(PATH, str(pickled), "is a file that old versions of torchvision unpickle; remove it")
        made = getattr(sets, self.name)
        parts = list(self._parts(made))
        with reading(root, f"the {self.name} of torchvision", PATH):
            read = [_Pictures(root, made(str(root), **arguments)) for arguments in parts]
            x = [pixels_of(part, Look(color=self.color, resize=self.resize)) for part in read]
        labels = [np.array(part.labels, dtype=np.int64) for part in read]
        least = min(int(part.min()) for part in labels)  # letters of EMNIST begin at 1
        labels = [part - least for part in labels]
        classes = max(int(part.max()) for part in labels) + 1
        told: dict[str, Any] = {"classes": [str(least + number) for number in range(classes)]}
        if len(read) > 1:
            hold_unsplit(self.test_share, f"{self.name} of torchvision has")
            data = Dataset(self.name, x[0], labels[0], x[1], labels[1], classes, told=told)
        else:
            data = split_dataset(self.name, x[0], labels[0], classes, self.test_share, self.split_seed, told=told)
        if self.standardize:
            told["features"] = standardise(data.x, data.x_test)
        return data

    def _parts(self, made: Any) -> Iterator[dict[str, Any]]:
        """The arguments by which torchvision makes the training set, then the test set, if it has one."""
        taken = inspect.signature(made).parameters
        several = "train" in taken and (made.__name__ == "EMNIST")
        if (self.split is not None) != several:
            fault = "has none; leave it out" if self.split is not None else "has several; name one, such as letters"
            raise InputError(f"{TABLE}.split", str(self.split), f"of parts {self.name} {fault}")
        base: dict[str, Any] = {"download": False} if "download" in taken else {}
        base |= {} if self.split is None else {"split": self.split}
        if "train" in taken:
            yield from (base | {"train": train} for train in (True, False))
        elif "split" in taken:
            yield from (base | {"split": split} for split in ("train", "test"))
        else:
            yield base


class _Pictures(Sequence[tuple[Path, Any]]):
    """The images of a data set of torchvision, read one by one; the labels of those that were."""

    def __init__(self, root: Path, held: Any) -> None:
        self._root, self._held, self._labels = root, held, [0] * len(held)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, row: Any) -> Any:
        if row >= len(self._labels):
            raise IndexError(row)
        image, self._labels[row] = self._held[row]
        return self._root / f"image {row + 1}", image

    @property
    def labels(self) -> list[int]:
        """Of images that were read."""
        return self._labels
