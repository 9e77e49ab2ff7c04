"""What every loader shares: the data set it returns, where its files are looked for, how tests are split off.

Arrays: n training examples, m test examples, k classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedsim.core.data_files import TABLE, Array, DataFolder, file_sha256
from fedsim.core.errors import InputError
from fedsim.core.streams import Streams
from fedsim.nets.losses import IGNORED, Targets

Indices = NDArray[np.int64]
Task = Literal["classification", "regression", "tags"]
TARGETS: Mapping[Task, Targets] = {"classification": "classes", "regression": "numbers", "tags": "tags"}
"""What the targets of a task are."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training and test examples, ready for a model.

    x, x_test: [n, ...] and [m, ...]; float32 (images channels first and scaled) or int64 token ids.
    y, y_test: int64 classes 0 .. num_classes-1: [n] and [m], one an example; or [n, *places], one a token or a pixel,
    where -100 is a place that does not count. When num_classes is 0, float32: numbers [n] or [n, k], or with
    `tags` [n, k], 1 where an example has a tag and 0 elsewhere.
    owner, owner_test: int64 [n] and [m], the natural client of each example, 0 .. clients-1; or None.
    vocabulary: the number of token symbols, 0 when x is not a sequence of tokens.
    told: what else a run folder says of it: names, what was done to the features, and the files it is from.
    drawn: whether the test examples were drawn from all, by the data set's `split_seed`.
    padding: the token that fills up sequences which are shorter than the others and says nothing; None: there is none.
    tags: whether the targets are tags.
    Raises InputError when the arrays do not fit each other.
    """

    name: str
    x: Array
    y: Array
    x_test: Array
    y_test: Array
    num_classes: int
    owner: Indices | None = None
    owner_test: Indices | None = None
    vocabulary: int = 0
    told: Mapping[str, Any] = field(default_factory=dict)
    drawn: bool = False
    padding: int | None = None
    tags: bool = False

    def __post_init__(self) -> None:
        for x, y, owner, kind in (
            (self.x, self.y, self.owner, "training"),
            (self.x_test, self.y_test, self.owner_test, "test"),
        ):
            for array, what in ((x, "inputs"), (y, "labels")):
                _hold_numbers(self.name, f"{kind} {what}", array)
            if not y.ndim or (not self.num_classes and y.ndim > 2) or 0 in y.shape[1:]:
                raise InputError(
                    TABLE, self.name, f"{kind} labels have shape {y.shape}; give one number for each input, or several"
                )
            if len(x) != len(y) or (owner is not None and len(owner) != len(x)):
                owners = "" if owner is None else f" and {len(owner)} owners"
                fault = f"{len(x)} {kind} inputs have {len(y)} labels{owners}; give one for each input"
                raise InputError(TABLE, self.name, fault)
            if self.num_classes and y.dtype.kind not in "iu":
                fault = f"{kind} labels are {y.dtype}, and classes are whole numbers from 0"
                raise InputError(TABLE, self.name, fault)
            if self.num_classes:
                _hold_classes(self.name, f"{kind} labels", y, self.num_classes)
            if self.tags and (self.num_classes or y.ndim != 2 or not np.isin(y, (0, 1)).all()):
                raise InputError(
                    TABLE, self.name, f"{kind} labels are no tags; give 0 and 1, for each tag of each input"
                )
        if len(self.x) == 0:
            raise InputError(TABLE, self.name, "there is no training example; take a smaller test_share")
        if self.x.shape[1:] != self.x_test.shape[1:]:
            shapes = f"a training input has shape {self.x.shape[1:]}, a test input {self.x_test.shape[1:]}"
            raise InputError(TABLE, self.name, f"{shapes}; they must be equal")
        if self.padding is not None and not 0 <= self.padding < self.vocabulary:
            fault = f"padding is token {self.padding}, and the vocabulary has {self.vocabulary}"
            raise InputError(TABLE, self.name, f"{fault}; give one of its tokens")
        if self.y.shape[1:] != self.y_test.shape[1:]:
            shapes = f"labels of a training input have shape {self.y.shape[1:]}, of a test one {self.y_test.shape[1:]}"
            raise InputError(TABLE, self.name, f"{shapes}; they must be equal")

    @property
    def task(self) -> Targets:
        """What targets are."""
        return "classes" if self.num_classes else "tags" if self.tags else "numbers"

    @property
    def places(self) -> tuple[int, ...]:
        """The shape of what has a class of its own in an example: () the example itself, (T,) tokens, (H, W) pixels."""
        return self.y.shape[1:] if self.num_classes else ()

    @property
    def labelled(self) -> bool:
        """Whether an example has one class."""
        return self.num_classes > 0 and self.y.ndim == 1

    @property
    def outputs(self) -> int:
        """K, how many outputs a model needs, at each place: one a class, number or tag."""
        return self.num_classes or (self.y.shape[1] if self.y.ndim > 1 else 1)

    def provenance(self) -> dict[str, Any]:
        """What a run folder says of the data: checksums of the arrays and of the files, counts, and what was done."""
        told = {name: value for name, value in self.told.items() if name not in ("owners", "files")}
        files = {str(path): file_sha256(path) for path in self.told.get("files", ())}
        counts = {"examples": len(self.x), "test_examples": len(self.x_test), "shape": list(self.x.shape[1:])}
        return {"name": self.name, "sha256": self._sha256(), "files": files, **counts, **told}

    def _sha256(self) -> str:
        """Of all arrays, their types and shapes."""
        found = hashlib.sha256()
        for name in ("x", "y", "x_test", "y_test", "owner", "owner_test"):
            array = getattr(self, name)
            if array is not None:
                found.update(f"{name} {array.dtype.str} {array.shape}".encode())
                found.update(np.ascontiguousarray(array).data)
        return found.hexdigest()


def _hold_numbers(name: str, what: str, array: Any) -> None:
    """Refuse what is no array of numbers, and numbers that are none: they would be taken for what a model makes."""
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
        found = f"an array of {array.dtype}" if isinstance(array, np.ndarray) else f"a {type(array).__name__}"
        raise InputError(TABLE, name, f"its {what} are {found}; give a NumPy array of numbers")
    with np.errstate(over="ignore", invalid="ignore"):
        whole = array.dtype.kind != "f" or bool(np.isfinite(array.sum(dtype=np.float64)))  # without a mask of its size
    if not whole and not np.isfinite(array).all():
        where = ", ".join(map(str, np.argwhere(~np.isfinite(array))[0]))
        raise InputError(TABLE, name, f"its {what} are not finite at [{where}]; leave that out, or fill it")


def _hold_classes(name: str, what: str, y: Array, num_classes: int) -> None:
    """Refuse classes y [n, *places] that are none of 0 .. num_classes-1, and examples none of whose places counts."""
    counts = y != IGNORED if y.ndim > 1 else np.ones(y.shape, dtype=bool)
    classes = y[counts]
    if classes.size and not 0 <= classes.min() <= classes.max() < num_classes:
        fault = f"{what} lie in {classes.min()} .. {classes.max()}, not in 0 .. {num_classes - 1}"
        raise InputError(TABLE, name, fault)
    empty = ~counts.any(axis=tuple(range(1, y.ndim))) if y.ndim > 1 else ~counts
    if empty.any():
        fault = f"{what} of example {int(empty.argmax())} are all {IGNORED}, which does not count; leave it out"
        raise InputError(TABLE, name, fault)


Classes = Annotated[int, Field(ge=2)]


def hold_counted(num_classes: int | None, task: Task) -> None:
    """Refuse a number of classes where there are none."""
    if num_classes is not None and task != "classification":
        raise InputError("num_classes", num_classes, f"there are no classes in {task}; leave one of the two out")


class Loader(Protocol):
    """A data set plug-in: an `@options` class that reads or makes a `Dataset`."""

    def load(self, folder: DataFolder) -> Dataset:
        """Read the files under `folder`; raises InputError when one is absent or not what it should be."""
        ...


SHARE = 0.2
"""The share of the examples that is the test set, where nothing else is said."""


def hold_unsplit(share: float, what: str) -> None:
    """Refuse the share of a split where there is none. what: has the test set, such as "test_path names"."""
    if share != SHARE:
        raise InputError(
            f"{TABLE}.test_share", share, f"{what} the test set, so that nothing is split off; leave it out"
        )


def split_off(strata: Array | None, count: int, share: float, seed: int) -> tuple[Indices, Indices]:
    """Split 0 .. count-1 at random into training and test indices, both ascending.

    strata: [count], values of which `share` of the examples of each goes to the test (rounded to the
    nearest, leaving one at least); None takes `share` of all.
    """
    keys = Streams(seed).generator("datasets/split").random(count)
    _, group = np.unique(np.zeros(count) if strata is None else strata, return_inverse=True)
    order = np.lexsort((keys, group))
    sizes = np.bincount(group)
    tests = np.minimum(np.floor(sizes * share + 0.5).astype(np.int64), sizes - 1)
    rank = np.arange(count) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    chosen = np.zeros(count, dtype=bool)
    chosen[order] = rank < np.repeat(tests, sizes)
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def split_dataset(
    name: str,
    x: Array,
    y: Array,
    num_classes: int,
    share: float,
    seed: int,
    owner: Indices | None = None,
    vocabulary: int = 0,
    told: Mapping[str, Any] | None = None,
    *,
    tags: bool = False,
) -> Dataset:
    """Build a data set whose test part is split off: by owner where there is one, else by class of an example."""
    strata = owner if owner is not None else (y if num_classes and y.ndim == 1 else None)
    train, test = split_off(strata, len(y), share, seed)
    return Dataset(
        name,
        x[train],
        y[train],
        x[test],
        y[test],
        num_classes,
        None if owner is None else owner[train],
        None if owner is None else owner[test],
        vocabulary,
        told or {},
        drawn=True,
        tags=tags,
    )


def standardise(x: Array, x_test: Array) -> dict[str, Any]:
    """Shift and scale both in place by the mean and deviation of the training inputs, which are returned.

    Per feature for tables [n, features], per channel for images [n, channels, ...]. What is constant is
    only shifted.
    """
    axes = (0, *range(2, x.ndim))
    mean = x.mean(axis=axes, keepdims=True, dtype=np.float64).astype(np.float32)
    x -= mean
    x_test -= mean
    deviation = np.sqrt(np.square(x).mean(axis=axes, keepdims=True, dtype=np.float64)).astype(np.float32)
    deviation[deviation == 0] = 1.0
    x /= deviation
    x_test /= deviation
    return {"mean": mean.ravel().tolist(), "deviation": deviation.ravel().tolist()}


def unit_scale(pixels: Array) -> Array:
    """Bytes 0 .. 255 as float32 in [0, 1]."""
    return np.divide(pixels, np.float32(255), dtype=np.float32)


def finite(values: Array, path: Path, what: str) -> None:
    """Refuse NaN and infinity in the user's data, saying in which row (from 1) the first one is."""
    wrong = ~np.isfinite(values)
    if wrong.any():
        row, value = int(np.argwhere(wrong)[0][0]) + 1, values[wrong][0]
        fault = f"{what} has {value} in row {row}; remove or fill in what is missing"
        raise InputError(f"{TABLE}.path", str(path), fault)
