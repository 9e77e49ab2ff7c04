"""A person's own data: a CSV file, or arrays in a NumPy archive."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from fedsim.core.data_files import TABLE, Array, DataFolder, read_arrays, reading
from fedsim.core.errors import InputError
from fedsim.core.options import Fraction, NonNegativeInt, options
from fedsim.problems.datasets.base import Dataset, Indices, Task, finite, split_dataset, standardise

PATH = f"{TABLE}.path"


@options
class CSV:
    """A table of numbers with one column for the label, and perhaps one for the owner."""

    path: str
    """The file, absolute, or below the current or the data folder."""
    label: str | int
    """The label's column: its name, or its place from 0 (-1 is the last)."""
    header: bool = True
    """The first row has the columns' names."""
    delimiter: str = ","
    """The character between two columns."""
    owner: str | int | None = None
    """The owner's column: its name or place. Not given: nobody owns examples."""
    task: Task = "classification"
    """classification numbers the distinct labels in their order from 0; regression takes them as numbers."""
    test_share: Fraction = 0.2
    """Share that is the test set, of each owner, or else of each class."""
    split_seed: NonNegativeInt = 0
    """Which examples are the test set; it does not follow the run's seed."""
    standardize: bool = True
    """Shift and scale each feature by the mean and deviation of the training examples."""

    def __post_init__(self) -> None:
        if len(self.delimiter) != 1:
            raise InputError("delimiter", self.delimiter, "give one character")

    def load(self, folder: DataFolder) -> Dataset:
        """Return x float32 [n, features]: every column but label and owner, in the order of the file."""
        path = folder.resolve(self.path)
        with reading(path, "CSV text", PATH), path.open(newline="", encoding="utf-8-sig") as file:
            try:
                rows = [row for row in csv.reader(file, delimiter=self.delimiter) if row]
            except csv.Error as error:
                raise ValueError(str(error)) from error
        names = [name.strip() for name in rows.pop(0)] if self.header and rows else []
        if not rows:
            raise InputError(PATH, str(path), "the table has no row of data")
        names = names or [str(column) for column in range(len(rows[0]))]
        for number, row in enumerate(rows, 1):
            if len(row) != len(names):
                fault = f"row {number} has {len(row)} fields, the table {len(names)} columns"
                raise InputError(PATH, str(path), fault)
        label = self._column("label", self.label, names)
        owned = None if self.owner is None else self._column("owner", self.owner, names)
        kept = [column for column in range(len(names)) if column not in (label, owned)]
        if not kept:
            raise InputError(PATH, str(path), "the table has no column besides label and owner")
        columns = [np.array([row[column].strip() for row in rows]) for column in range(len(names))]
        titles = [f"column {name!r}" for name in names]
        x = np.stack([_numbers(columns[column], path, titles[column]) for column in kept], axis=1)
        y, num_classes = _targets(columns[label], self.task, path, titles[label])
        owner = None if owned is None else _codes(columns[owned], path, titles[owned])
        data = split_dataset(path.stem, x, y, num_classes, self.test_share, self.split_seed, owner)
        if self.standardize:
            standardise(data.x, data.x_test)
        return data

    def _column(self, option: str, wanted: str | int, names: list[str]) -> int:
        if isinstance(wanted, int):
            if not -len(names) <= wanted < len(names):
                raise InputError(f"{TABLE}.{option}", wanted, f"the table has {len(names)} columns")
            return wanted % len(names)
        if names.count(wanted) != 1:
            known = f"not the name of one column; the table has {', '.join(names[:20])}"
            raise InputError(f"{TABLE}.{option}", wanted, known)
        return names.index(wanted)


@options
class NPZ:
    """Arrays of a NumPy archive: `x` and `y`, perhaps `x_test` and `y_test`, `owner` and `owner_test`."""

    path: str
    """The file, absolute, or below the current or the data folder."""
    task: Task = "classification"
    """classification numbers the distinct labels in their order from 0; regression takes them as numbers."""
    tokens: bool = False
    """x holds token ids, not features."""
    test_share: Fraction = 0.2
    """Share that is the test set, of each owner, or else of each class, where the archive has none."""
    split_seed: NonNegativeInt = 0
    """Which examples are the test set then; it does not follow the run's seed."""
    standardize: bool = False
    """Shift and scale each feature (or channel, axis 1) by the mean and deviation of the training examples."""

    def __post_init__(self) -> None:
        if self.tokens and self.standardize:
            raise InputError("standardize", True, "token ids cannot be standardised; leave one of the two out")

    def load(self, folder: DataFolder) -> Dataset:
        """Return x float32 [n, ...], or int64 [n, ...] token ids."""
        path = folder.resolve(self.path)
        arrays = read_arrays(path, "a NumPy archive", PATH)
        self._check(arrays, path)
        tested = "x_test" in arrays
        x, x_test = (self._inputs(arrays[key], path, key) for key in ("x", "x_test" if tested else "x"))
        together = np.concatenate([arrays["y"], arrays["y_test"]]) if tested else arrays["y"]
        y, num_classes = _targets(together, self.task, path, "y")
        vocabulary = int(max(x.max(initial=0), x_test.max(initial=0))) + 1 if self.tokens else 0
        owner, owner_test = _owners(arrays, path)
        if tested:
            n = len(arrays["y"])
            data = Dataset(path.stem, x, y[:n], x_test, y[n:], num_classes, owner, owner_test, vocabulary=vocabulary)
        else:
            data = split_dataset(path.stem, x, y, num_classes, self.test_share, self.split_seed, owner, vocabulary)
        if self.standardize:
            standardise(data.x, data.x_test)
        return data

    def _check(self, arrays: dict[str, Array], path: Path) -> None:
        for key, needed in (("x", True), ("y", True), ("x_test", "y_test" in arrays)):
            if needed and key not in arrays:
                held = ", ".join(arrays) or "nothing"
                raise InputError(PATH, str(path), f"the archive has no array {key}; it holds {held}")
        if "x_test" in arrays and "y_test" not in arrays:
            raise InputError(PATH, str(path), "the archive has x_test but no y_test")
        for suffix in ("", "_test"):
            count = arrays[f"x{suffix}"].shape[:1] if f"x{suffix}" in arrays else (0,)
            for key in (f"y{suffix}", f"owner{suffix}"):
                if key in arrays and (arrays[key].shape != count or not count):
                    fault = f"{key} has shape {arrays[key].shape}, x{suffix} {count} examples; one for each"
                    raise InputError(PATH, str(path), fault)

    def _inputs(self, values: Array, path: Path, key: str) -> Array:
        if values.ndim < 2 or values.dtype.kind not in ("iu" if self.tokens else "fiub"):
            wanted = "whole numbers" if self.tokens else "numbers"
            fault = f"{key} is {values.dtype} of shape {values.shape}, not {wanted} of shape [n, ...]"
            raise InputError(PATH, str(path), fault)
        if not self.tokens:
            return _single(values, path, key)
        if values.min(initial=0) < 0:
            raise InputError(PATH, str(path), f"{key} has the token id {values.min()}; they begin at 0")
        return values.astype(np.int64)


def _single(values: Array, path: Path, what: str) -> Array:
    """Convert to float32; refuse what is not finite there."""
    with np.errstate(over="ignore"):
        single = values.astype(np.float32)
    finite(single, path, what)
    return single


def _numbers(texts: Array, path: Path, what: str) -> Array:
    """Read texts [n] as finite float32 [n]."""
    try:
        values = texts.astype(np.float64)
    except ValueError:
        row, text = next((row, text) for row, text in enumerate(texts, 1) if not _is_number(text))
        fault = f"row {row}, {what}, has {str(text)!r}, which is not a number"
        raise InputError(PATH, str(path), fault) from None
    return _single(values, path, what)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _targets(labels: Array, task: Task, path: Path, what: str) -> tuple[Array, int]:
    """Return classes int64 [n] and their number, or float32 [n] targets and 0."""
    if task == "regression":
        convert = _numbers if labels.dtype.kind == "U" else _single
        return convert(labels, path, what), 0
    codes = _codes(labels, path, what)
    return codes, int(codes.max(initial=-1)) + 1


def _codes(labels: Array, path: Path, what: str) -> Indices:
    """Give each distinct value a number from 0, in the order of numbers where all are, else of text."""
    if labels.dtype.kind == "U":
        missing = np.isin(np.char.lower(labels), ("", "nan"))
        if missing.any():
            raise InputError(PATH, str(path), f"{what} has no value in row {np.flatnonzero(missing)[0] + 1}")
        if all(map(_is_number, np.unique(labels))):
            labels = labels.astype(np.float64)
    elif labels.dtype.kind in "fiub":
        finite(labels, path, what)
    else:
        raise InputError(PATH, str(path), f"{what} is {labels.dtype}; give numbers or text")
    codes: Indices = np.unique(labels, return_inverse=True)[1].reshape(-1)
    return codes.astype(np.int64)


def _owners(arrays: dict[str, Array], path: Path) -> tuple[Indices | None, Indices | None]:
    """Return the owners of training and test examples, numbered alike from 0."""
    if "owner" not in arrays:
        return None, None
    if "owner_test" not in arrays:
        return _codes(arrays["owner"], path, "owner"), None
    both = _codes(np.concatenate([arrays["owner"], arrays["owner_test"]]), path, "owner")
    n = len(arrays["owner"])
    return both[:n], both[n:]
