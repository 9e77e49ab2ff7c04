"""A person's own images: one folder a class."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from fedsim.core.data_files import TABLE, Array, DataFolder, reading
from fedsim.core.errors import InputError
from fedsim.core.options import Fraction, NonNegativeInt, PositiveInt, options
from fedsim.problems.datasets.base import Dataset, split_dataset, standardise, unit_scale

PATH = f"{TABLE}.path"
SUFFIXES = (".png", ".jpg", ".jpeg")


@options
class ImageFolder:
    """PNG and JPEG files in `path/<class>/`, or in `path/train/<class>/` and `path/test/<class>/`."""

    path: str
    """The folder, absolute, or below the current or the data folder."""
    color: Literal["rgb", "gray"] = "rgb"
    """What images are converted to."""
    size: PositiveInt | None = None
    """Width and height that each image must have, in pixels. Not given: those of the first."""
    test_share: Fraction = 0.2
    """Share of each class that is the test set, where there are no train and test folders."""
    split_seed: NonNegativeInt = 0
    """Which examples are the test set then; it does not follow the run's seed."""
    standardize: bool = False
    """Shift and scale each channel by the mean and deviation of the training pixels."""

    def load(self, folder: DataFolder) -> Dataset:
        """Return x float32 [n, 3 or 1, height, width]; the classes are the folders in the order of names."""
        root = folder.resolve(self.path)
        split = (root / "train").is_dir() and (root / "test").is_dir()
        roots = [root / "train", root / "test"] if split else [root]
        classes = sorted({place.name for part in roots for place in part.glob("*") if _visible_folder(place)})
        files = [
            (file, number)
            for part in roots
            for number, name in enumerate(classes)
            for file in sorted((part / name).glob("*"))
            if file.suffix.lower() in SUFFIXES
        ]
        if not files:
            raise InputError(PATH, str(root), "there is no <class>/*.png or *.jpg in this folder")
        x = self._pixels([file for file, _ in files])
        y = np.array([number for _, number in files], dtype=np.int64)
        if split:
            n = sum(file.is_relative_to(roots[0]) for file, _ in files)
            data = Dataset(root.name, x[:n], y[:n], x[n:], y[n:], len(classes))
        else:
            data = split_dataset(root.name, x, y, len(classes), self.test_share, self.split_seed)
        if self.standardize:
            standardise(data.x, data.x_test)
        return data

    def _pixels(self, files: list[Path]) -> Array:
        """All images: float32 [n, channels, height, width]."""
        from PIL import Image

        pixels: list[Array] = []
        shape = None if self.size is None else (self.size, self.size)
        for file in files:
            with reading(file, "an image", PATH), Image.open(file) as image:
                values = np.asarray(image.convert("RGB" if self.color == "rgb" else "L"))
            shape = shape or values.shape[:2]
            if values.shape[:2] != shape:
                fault = f"is {values.shape[1]} x {values.shape[0]} pixels, not {shape[1]} x {shape[0]}"
                raise InputError(PATH, str(file), f"{fault}; give all images one size")
            pixels.append(values.reshape(*shape, -1).transpose(2, 0, 1))
        return unit_scale(np.stack(pixels))


def _visible_folder(place: Path) -> bool:
    return place.is_dir() and not place.name.startswith(".")
