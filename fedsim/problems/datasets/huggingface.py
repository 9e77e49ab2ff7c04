"""A person's own data: a folder of the library `datasets`, saved or as its hub has it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fedsim.core.data_files import TABLE, Array, DataFolder
from fedsim.core.errors import InputError
from fedsim.core.options import Fraction, NonNegativeInt, PositiveInt, Texts, options
from fedsim.problems.datasets.arrays import coded_owners, coded_targets, single
from fedsim.problems.datasets.arrow import PATH, is_text
from fedsim.problems.datasets.base import SHARE, Dataset, Indices, Task, hold_unsplit, split_off
from fedsim.problems.datasets.hub import (
    TESTS,
    TRAIN,
    Split,
    class_names,
    column_names,
    hold_whole,
    is_number,
    joined_values,
    read_split,
    splits,
)
from fedsim.problems.datasets.images import Look, pixels_of
from fedsim.problems.datasets.scaling import standardised


@options
class HuggingFace:
    """A folder saved by `save_to_disk`, or one of Parquet files as the hub has them.

    Images become numbers from 0 to 1, as those of `image_folder`; lists of one length arrays; columns of numbers
    features. Nothing is fetched, and no code of the folder is run. Needs `pip install "fedsim-lab[parquet]"`.
    """

    path: str
    """The folder, or one file of it; absolute, or below the current or the data folder."""
    inputs: Texts | None = None
    """The columns that are learned from: one of images or of lists, or several of numbers. Not given: all others."""
    target: str = "label"
    """The column of the labels. Those of a ClassLabel are its classes, in its order; lists of one length are several of
    an example.
    """
    owner: str | None = None
    """The owner's column. Not given: nobody owns examples."""
    train: str = TRAIN
    """The split that is trained on. A folder without splits is all one."""
    test: str | None = None
    """The split that is the test set. Not given: test, validation, valid, val or dev, the first that is there; or else
    `test_share` are split off.
    """
    task: Task = "classification"
    """classification numbers the distinct labels in their order from 0, or of lists takes them as class numbers of each
    place, where -100 does not count; regression takes them as numbers; tags are lists of 0 and 1.
    """
    tokens: bool = False
    """The input holds token ids, not features."""
    color: Literal["rgb", "gray"] = "rgb"
    """What images are converted to."""
    resize: PositiveInt | None = None
    """Width and height that each image is scaled to, in pixels, by bilinear interpolation. Not given: none is."""
    test_share: Fraction = SHARE
    """Share that is the test set, of each owner, or else of each class, where there is no split of it."""
    split_seed: NonNegativeInt = 0
    """Which examples are the test set then; it does not follow the run's seed."""
    standardize: bool = False
    """Shift and scale each feature (or channel) by the mean and deviation of the training examples."""

    def __post_init__(self) -> None:
        if self.tokens and self.standardize:
            raise InputError("standardize", True, "token ids cannot be standardised; leave one of the two out")

    def load(self, folder: DataFolder) -> Dataset:
        """Return x float32 [n, ...], or int64 [n, T] token ids."""
        parts = self._parts(splits(folder, self.path))
        path = folder.resolve(self.path)
        inputs = self._inputs(column_names(parts[0][0]))
        needed = [*inputs, self.target, *([] if self.owner is None else [self.owner])]
        read = [read_split(files, needed) for files in parts]
        for split in read:
            if not len(split.columns[self.target]):
                raise InputError(PATH, str(split.files[0]), "there is no example in this split")
        training = len(read[0].columns[self.target])
        x = self._examples(read, inputs)
        y, classes = self._targets(read, path, training)
        owner, owners = self._owners(read, path, training)
        if len(read) > 1:
            hold_unsplit(self.test_share, f"a split of {path} is")
            train, test = np.arange(training), np.arange(training, len(x))
        else:
            strata = owner if owner is not None else (y if classes and y.ndim == 1 else None)
            train, test = split_off(strata, training, self.test_share, self.split_seed)
        told: dict[str, Any] = {"inputs": inputs, "classes": classes, "owners": owners}
        of_train, of_test = x[train], x[test]
        if self.standardize:
            of_train, of_test, told["features"] = standardised(of_train, of_test)
        owned = owner is not None and not (owner[test] < 0).any()
        return Dataset(
            path.stem,
            of_train,
            y[train],
            of_test,
            y[test],
            len(classes),
            None if owner is None else owner[train],
            owner[test] if owner is not None and owned else None,
            vocabulary=int(x.max(initial=0)) + 1 if self.tokens else 0,
            told=told,
            drawn=len(read) == 1,
            tags=self.task == "tags",
        )

    def _parts(self, found: dict[str, list[Path]]) -> list[list[Path]]:
        """The files of the training set, and of the test set if it is a split."""
        if "" in found:
            for option, name in (("train", self.train if self.train != TRAIN else None), ("test", self.test)):
                if name is not None:
                    raise InputError(f"{TABLE}.{option}", name, f"{self.path} has no splits; leave it out")
            return [found[""]]
        test = self.test or next((name for name in TESTS if name in found and name != self.train), None)
        for option, name in (("train", self.train), ("test", test)):
            if name is not None and name not in found:
                raise InputError(f"{TABLE}.{option}", name, f"{self.path} has the splits {', '.join(found)}; name one")
        if test == self.train:
            raise InputError(f"{TABLE}.test", test, "is trained on; name another split, or leave it out")
        return [found[self.train], *([] if test is None else [found[test]])]

    def _inputs(self, names: list[str]) -> list[str]:
        named = {"target": [self.target], "owner": [] if self.owner is None else [self.owner]}
        named["inputs"] = list(self.inputs or ())
        for option, ones in named.items():
            for name in ones:
                if names.count(name) != 1:
                    known = f"not the name of one column; there are {', '.join(names[:20])}"
                    raise InputError(f"{TABLE}.{option}", name, known)
        taken = [*named["target"], *named["owner"]]
        for name in (*taken, *named["inputs"]):
            if [*taken, *named["inputs"]].count(name) > 1:
                fault = "is target, owner and input at once, or named twice; name each column once"
                raise InputError(f"{TABLE}.inputs", name, fault)
        found = named["inputs"] or [name for name in names if name not in taken]
        if not found:
            raise InputError(PATH, self.path, "there is no column besides target and owner")
        return found

    def _examples(self, read: Sequence[Split], inputs: Sequence[str]) -> Array:
        """Training and test inputs, one behind the other: float32 [n, ...], or int64 token ids."""
        for name in inputs:
            if _is_image(read[0], name):
                _hold_alone(inputs, name, "images")
                return pixels_of(list(_pictures(read, name)), Look(color=self.color, resize=self.resize))
        for option, given, default in (("color", self.color, "rgb"), ("resize", self.resize, None)):
            if given != default:
                raise InputError(f"{TABLE}.{option}", given, "no input is an image; leave it out")
        columns = [np.concatenate([_array(split, name) for split in read]) for name in inputs]
        for name, values in zip(inputs, columns, strict=True):
            if values.ndim > 1:
                _hold_alone(inputs, name, "lists")
        x = columns[0] if columns[0].ndim > 1 else np.stack(columns, axis=1)
        if not self.tokens:
            return single(x, read[0].files[0], ", ".join(inputs))
        if x.dtype.kind not in "iu" or x.min(initial=0) < 0:
            raise InputError(
                f"{TABLE}.tokens", True, f"{', '.join(inputs)} has {x.dtype}, or numbers below 0; ids begin at 0"
            )
        return x.astype(np.int64)

    def _targets(self, read: Sequence[Split], path: Path, training: int) -> tuple[Array, list[str]]:
        """Classes int64 [n, *places] and their names, or float32 [n] or [n, k] targets and none."""
        if _is_list(read[0].columns[self.target].type):
            values, names = np.concatenate([_array(split, self.target, "target") for split in read]), []
        else:
            values, names = joined_values(read, self.target), class_names(read[0], self.target)
        if not names or self.task != "classification":
            return coded_targets(values, training, self.task, path, [self.target, self.target])
        if values.dtype.kind not in "iu" or values.min(initial=0) < 0 or values.max(initial=0) >= len(names):
            row = int(np.argmax((values < 0) | (values >= len(names)))) if values.dtype.kind in "iu" else 0
            split = read[0] if row < training else read[-1]
            fault = f"column {self.target!r} has {values[row]}, which is none of its {len(names)} classes"
            raise InputError(PATH, str(split.place(row % training)), f"{fault}; name a split that has labels")
        return values.astype(np.int64), names

    def _owners(self, read: Sequence[Split], path: Path, training: int) -> tuple[Indices | None, list[str]]:
        """The owners of all examples, -1 for those of a test set none of whom has a training example; their names."""
        if self.owner is None:
            return None, []
        return coded_owners(joined_values(read, self.owner), training, path, [self.owner, self.owner])


def _hold_alone(inputs: Sequence[str], name: str, what: str) -> None:
    if len(inputs) > 1:
        others = ", ".join(other for other in inputs if other != name)
        fault = f"holds {what}, which are an input alone; leave out {others}: inputs = [{name!r}]"
        raise InputError(f"{TABLE}.inputs", name, fault)


def _is_image(split: Split, name: str) -> bool:
    """Whether a column holds images: files, as bytes."""
    from pyarrow import types

    kind = split.columns[name].type
    return types.is_struct(kind) and [field.name for field in kind] == ["bytes", "path"]


def _pictures(read: Sequence[Split], name: str) -> Any:
    """What each image is called, and its bytes as an open file."""
    for split in read:
        row = 0
        for chunk in split.columns[name].chunks:
            for content in chunk.field("bytes"):
                if not content.is_valid:
                    fault = "has an image that is a file elsewhere, which is not opened; save it with its bytes"
                    raise InputError(PATH, str(split.place(row)), fault)
                yield split.place(row), io.BytesIO(content.as_py())
                row += 1


def _is_list(kind: Any) -> bool:
    """Whether a column holds lists."""
    from pyarrow import types

    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _array(split: Split, name: str, option: str = "inputs") -> Array:
    """A column of numbers, [n], or of lists of one shape, [n, ...]. InputError, on an option: it is neither."""
    from pyarrow import compute

    column = split.columns[name].combine_chunks()
    shape = [len(column)]
    while _is_list(column.type):
        hold_whole(split, name, column)
        lengths = compute.list_value_length(column).to_numpy(zero_copy_only=False)
        shape.append(int(lengths[0]) if len(lengths) else 0)
        wrong = np.flatnonzero(lengths != shape[-1])
        if len(wrong):
            row = int(wrong[0]) * shape[0] // len(column)
            fault = f"column {name!r} has a list of {lengths[wrong[0]]}, and the first is of {shape[-1]}"
            raise InputError(PATH, str(split.place(row)), f"{fault}; fill them up to one length")
        column = column.flatten()
    if not is_number(column.type):
        kind = 'texts, which kind = "text" reads' if is_text(column.type) else column.type
        raise InputError(f"{TABLE}.{option}", name, f"holds {kind}; name columns of images, lists or numbers")
    hold_whole(split, name, column)
    values: Array = column.to_numpy(zero_copy_only=False)
    return values.reshape(shape)
