"""A person's own data: arrays in a NumPy archive."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np

from fedsim.core.data_files import TABLE, Array, DataFolder, read_arrays
from fedsim.core.errors import InputError
from fedsim.core.options import Fraction, NonNegativeInt, options
from fedsim.nets.losses import IGNORED
from fedsim.problems.datasets.base import (
    SHARE,
    Classes,
    Dataset,
    Indices,
    Task,
    finite,
    hold_counted,
    hold_unsplit,
    split_off,
    unit_scale,
)
from fedsim.problems.datasets.labels import no_classes
from fedsim.problems.datasets.scaling import EXACT, standardised

PATH = f"{TABLE}.path"
USUAL = (
    ("x", "y"),
    ("X", "y"),
    ("X", "Y"),
    ("data", "target"),
    ("data", "labels"),
    ("images", "labels"),
    ("features", "labels"),
    ("inputs", "targets"),
)
"""How inputs and labels are usually called, in one of these forms."""
FORMS = ("{}", "{}_train", "train_{}")
CHANNELS = (1, 3, 4)
TESTS = ("test", "val", "valid", "validation")
"""What the arrays of the test set are called beside those of training: the first that are there."""


@options
class NPZ:
    """Arrays of a NumPy archive: inputs and labels, perhaps those of a test set, perhaps owners.

    Found by their usual names: `x` and `y`, `X` and `y`, `data` and `target` or `labels`, `images` and `labels`, as
    they are or as `x_train`, `train_x`; those of the test set as `x_test`, `test_x`, or else `x_val`. Images of bytes
    become numbers from 0 to 1.
    """

    path: str
    """The file, absolute, or below the current or the data folder."""
    x: str | None = None
    """The array of the inputs. Not given: found by its usual name."""
    y: str | None = None
    """The array of the labels. Not given: found by its usual name."""
    owner: str | None = None
    """The array of the owners. Not given: `owner`, if there is one."""
    task: Task = "classification"
    """classification numbers the distinct labels in their order from 0, or of arrays [n, ...] takes them as class
    numbers of each place of an example, where -100 does not count; regression takes labels [n] or [n, k] as numbers;
    tags are [n, k] of 0 and 1.
    """
    num_classes: Classes | None = None
    """K, where labels are class numbers 0 .. K-1 already, of which not all need occur. Not given: the distinct labels
    are numbered.
    """
    tokens: bool = False
    """x holds token ids, not features."""
    missing: Literal["refuse", "drop", "fill"] = "refuse"
    """What becomes of an example of which a feature is missing (NaN): refuse the archive; drop the example; fill in
    the mean of the training examples.
    """
    test_share: Fraction = SHARE
    """Share that is the test set, of each owner, or else of each class, where the archive has none."""
    split_seed: NonNegativeInt = 0
    """Which examples are the test set then; it does not follow the run's seed."""
    standardize: bool = False
    """Shift and scale each feature (or channel, axis 1) by the mean and deviation of the training examples."""

    def __post_init__(self) -> None:
        if self.tokens and self.standardize:
            raise InputError("standardize", True, "token ids cannot be standardised; leave one of the two out")
        if self.tokens and self.missing != "refuse":
            raise InputError("missing", self.missing, "no token id can be missing; leave one of the two out")
        hold_counted(self.num_classes, self.task)

    def load(self, folder: DataFolder) -> Dataset:
        """Return x float32 [n, ...], or int64 [n, ...] token ids."""
        path = folder.resolve(self.path)
        arrays = read_arrays(path, "a NumPy archive", PATH)
        names = self._names(arrays, path)
        x, y, owner, training = _joined(arrays, names, path)
        x = self._inputs(x, path, names["x"][0])
        if self.missing == "drop":
            kept = np.flatnonzero(~np.isnan(x.reshape(len(x), -1)).any(axis=1))
            training = int(np.searchsorted(kept, training))
            x, y, owner = x[kept], y[kept], None if owner is None else owner[kept]
        several = len(names["x"]) > 1
        for count, part in ((training, 0), (len(x) - training, -1)):
            if not count and (part == 0 or several):
                missing = "something is missing in every example" if self.missing == "drop" else "there is no example"
                raise InputError(PATH, str(path), f"{missing} of {names['x'][part]}")
        targets, classes = coded_targets(y, training, self.task, path, names["y"], self.num_classes)
        owners, owner_names = (None, []) if owner is None else coded_owners(owner, training, path, names["owner"])
        if several:
            hold_unsplit(self.test_share, f"{names['x'][1]} is of")
            train, test = np.arange(training), np.arange(training, len(x))
        else:
            strata = owners if owners is not None else (targets if classes and targets.ndim == 1 else None)
            train, test = split_off(strata, training, self.test_share, self.split_seed)
        inputs, inputs_test, told = self._treated(x[train], x[test], path, names["x"][0])
        owned = owners is not None and len(names["owner"]) == len(names["x"]) and not (owners[test] < 0).any()
        return Dataset(
            path.stem,
            inputs,
            targets[train],
            inputs_test,
            targets[test],
            len(classes),
            None if owners is None else owners[train],
            owners[test] if owners is not None and owned else None,
            vocabulary=int(x.max(initial=0)) + 1 if self.tokens else 0,
            told={"arrays": names, "features": told, "classes": classes, "owners": owner_names},
            drawn=not several,
            tags=self.task == "tags",
        )

    def _names(self, arrays: dict[str, Array], path: Path) -> dict[str, list[str]]:
        """What the arrays of inputs, labels and owners are called, each with that of the test set behind."""
        held = f"it holds {', '.join(arrays) or 'nothing'}"
        pairs = [(self.x or x, self.y or y) for x, y in USUAL]
        usual = list(dict.fromkeys((form.format(x), form.format(y)) for form in FORMS for x, y in pairs))
        if self.x is not None and self.y is not None:
            usual = [(self.x, self.y)]
        found = [pair for pair in usual if pair[0] in arrays and pair[1] in arrays]
        if not found:
            half = next((pair for pair in usual if pair[0] in arrays), usual[0])
            absent = half[1] if half[0] in arrays else half[0]
            fault = f"the archive has no array {absent}; {held}; say by x and y which are the inputs and the labels"
            raise InputError(PATH, str(path), fault)
        if len(found) > 1:
            several = " and ".join(map(repr, found))
            fault = f"the archive has {several}; say by x and y which are the inputs and the labels"
            raise InputError(PATH, str(path), fault)
        (x, y) = found[0]
        owner = self.owner or next((form.format("owner") for form in FORMS if form.format("owner") in arrays), None)
        if owner is not None and owner not in arrays:
            raise InputError(f"{TABLE}.owner", owner, f"the archive has no such array; {held}")
        names = {"x": [x], "y": [y]} | ({} if owner is None else {"owner": [owner]})
        kinds = [kind for kind in TESTS if any(_of_test(kind, one, arrays) for one in (x, y))]
        tests = {part: _of_test(kinds[0], one, arrays) if kinds else None for part, (one,) in names.items()}
        for part, other in (("x", "y"), ("y", "x")):
            if tests[part] is not None and tests[other] is None:
                fault = f"the archive has {tests[part]} but no {_test_names(kinds[0], names[other][0])[0]}; {held}"
                raise InputError(PATH, str(path), fault)
        return {part: [*own, *(test for test in [tests[part]] if test is not None)] for part, own in names.items()}

    def _inputs(self, values: Array, path: Path, key: str) -> Array:
        """Token ids int64, images float32 with channels first, or features as they are."""
        if values.ndim < 2 or values.dtype.kind not in ("iu" if self.tokens else "fiub"):
            wanted = "whole numbers" if self.tokens else "numbers"
            fault = f"{key} is {values.dtype} of shape {values.shape}, not {wanted} of shape [n, ...]"
            raise InputError(PATH, str(path), fault)
        if 0 in values.shape[1:]:
            raise InputError(PATH, str(path), f"{key} has shape {values.shape}: an example holds nothing")
        if self.tokens:
            if values.min(initial=0) < 0 or values.max(initial=0) >= 2**63:
                strange = values.min() if values.min(initial=0) < 0 else values.max()
                raise InputError(
                    PATH, str(path), f"{key} has the token id {strange}; they begin at 0, and have 63 bits"
                )
            return values.astype(np.int64)
        if values.dtype.kind in "iu" and max(int(values.max(initial=0)), -int(values.min(initial=0))) > EXACT:
            fault = f"{key} has whole numbers above 2^53, such as ids, which floating-point numbers do not tell apart"
            raise InputError(PATH, str(path), f"{fault}; encode them, or leave them out")
        if values.dtype.itemsize > 8:
            with np.errstate(over="ignore"):
                values = values.astype(np.float64)
        if values.dtype == np.uint8 and values.ndim in (3, 4):
            values = unit_scale(values)
            if values.ndim == 3:
                return values[:, None]
            if values.shape[1] not in CHANNELS and values.shape[3] in CHANNELS:
                return np.ascontiguousarray(np.moveaxis(values, 3, 1))
        return values

    def _treated(self, x: Array, x_test: Array, path: Path, key: str) -> tuple[Array, Array, dict[str, Any]]:
        """What a model is given, and what was done to come to it."""
        told: dict[str, Any] = {}
        if self.tokens:
            return x, x_test, told
        if self.missing == "fill":
            x, x_test, told["filled"] = _filled(x, x_test, path, key)
        for part, values in ((key, x), (f"{key} (test)", x_test)):
            finite(values, path, part)
        if self.standardize:
            x, x_test, scaled = standardised(x, x_test)
            told |= scaled
        return single(x, path, key), single(x_test, path, key), told


def _of_test(kind: str, name: str, arrays: dict[str, Array]) -> str | None:
    """What the array of a test set is called that belongs to one of the training set; None: there is none."""
    return next((test for test in _test_names(kind, name) if test in arrays), None)


def _test_names(kind: str, name: str) -> list[str]:
    return [name.replace("train", kind)] if "train" in name else [f"{name}_{kind}", f"{kind}_{name}"]


def _is_text(kind: np.dtype[Any]) -> bool:
    return kind.kind == "U"


def _is_bytes(kind: np.dtype[Any]) -> bool:
    """Whether numbers are of the kind that is scaled to 0 .. 1 where they are images."""
    return kind == np.uint8


def _joined(
    arrays: dict[str, Array], names: dict[str, list[str]], path: Path
) -> tuple[Array, Array, Array | None, int]:
    """Inputs, labels and owners, of the test set behind those of training, and how many these are."""
    for part, own in names.items():
        for key, inputs in zip(own, names["x"], strict=False):
            count = arrays[inputs].shape[:1]
            if part == "y" and arrays[key].ndim == 2 and arrays[key].shape[1] == 1:
                arrays[key] = arrays[key][:, 0]
            own_shape = arrays[key].shape[:1] if part == "y" else arrays[key].shape
            if part != "x" and (own_shape != count or not count):
                fault = f"{key} has shape {arrays[key].shape}, {inputs} {count} examples; one for each"
                raise InputError(PATH, str(path), fault)
        first = arrays[own[0]]
        for key in own[1:]:
            other = arrays[key]
            alike = all((one(first.dtype) == one(other.dtype)) for one in (_is_text, _is_bytes))
            if other.shape[1:] != first.shape[1:] or not alike:
                fault = f"{key} is {other.dtype} of shape {other.shape}, {own[0]} {first.dtype} of shape {first.shape}"
                fault += "" if alike else "; write both alike"
                raise InputError(PATH, str(path), fault)
    x, y = (np.concatenate([arrays[key] for key in names[part]]) for part in ("x", "y"))
    owner = np.concatenate([arrays[key] for key in names["owner"]]) if "owner" in names else None
    return x, y, owner, len(arrays[names["x"][0]])


def _filled(x: Array, x_test: Array, path: Path, key: str) -> tuple[Array, Array, int]:
    """Both with the training mean of a feature in place of NaN, and how many numbers that were."""
    from sklearn.impute import SimpleImputer

    flat, flat_test = (values.reshape(len(values), x[0].size).astype(np.float64) for values in (x, x_test))
    empty = np.isnan(flat).all(axis=0)
    if empty.any():
        fault = f"feature {int(np.argmax(empty))} of {key} has no value in any training example; leave it out"
        raise InputError(PATH, str(path), fault)
    count = int(np.isnan(flat).sum() + np.isnan(flat_test).sum())
    for part in (flat, flat_test):
        if np.isinf(part).any():
            raise InputError(PATH, str(path), f"{key} has infinity in it; remove or replace it")
    imputer = SimpleImputer().fit(flat)
    filled = imputer.transform(flat_test) if len(flat_test) else flat_test
    return imputer.transform(flat).reshape(x.shape), filled.reshape(x_test.shape), count


def single(values: Array, path: Path, what: str) -> Array:
    """Convert to float32; refuse what is not finite there."""
    with np.errstate(over="ignore", invalid="ignore"):
        found = values.astype(np.float32)
    finite(found, path, what)
    return found


def coded_targets(
    labels: Array, training: int, task: Task, path: Path, names: list[str], num_classes: int | None = None
) -> tuple[Array, list[str]]:
    """Return classes int64 [n, *places] and their names, or float32 [n] or [n, k] numbers or tags and none.

    num_classes: K, where labels are class numbers 0 .. K-1 already.
    """
    what = names[0]
    if task != "classification":
        if labels.dtype.kind not in "fiub":
            raise InputError(PATH, str(path), f"{what} is {labels.dtype}; give numbers")
        if labels.ndim > 2:
            raise InputError(PATH, str(path), f"{what} has shape {labels.shape}; give one row for each example")
        if task == "tags" and (labels.ndim == 1 or not np.isin(labels, (0, 1)).all()):
            raise InputError(PATH, str(path), f"{what} has no tags; give 0 and 1, of shape [n, tags]")
        return single(labels, path, what), []
    if num_classes is not None or labels.ndim > 1:
        return _numbered(labels, path, what, num_classes)
    codes, classes = _codes(labels, training, path, what)
    if (codes < 0).any():
        row = int(np.argmax(codes < 0))
        fault = f"{names[-1]} has {labels[row]} in row {row - training + 1}, the label of no training example"
        raise InputError(PATH, str(path), fault)
    reason = no_classes(labels[:training])
    if reason is not None:
        raise InputError(PATH, str(path), f"{what} {reason}")
    return codes, classes


def _numbered(labels: Array, path: Path, what: str, num_classes: int | None) -> tuple[Array, list[str]]:
    """Class numbers [n, *places] as they are, int64, and their names; of several places -100 does not count."""
    if num_classes is None and labels.ndim == 2 and labels.dtype.kind in "fiub" and np.isin(labels, (0, 1)).all():
        remedy = 'say task = "tags", or of one-hot rows take argmax(axis=1), or of classes of places say num_classes'
        raise InputError(PATH, str(path), f"{what} has shape {labels.shape} and 0 and 1 alone; {remedy}")
    if labels.dtype.kind not in "iub":
        remedy = 'say task = "regression" if these are numbers' if labels.dtype.kind == "f" else "give numbers"
        raise InputError(PATH, str(path), f"{what} is {labels.dtype}, and class numbers are whole; {remedy}")
    counted = labels[labels != IGNORED] if labels.ndim > 1 else labels
    least, most = int(counted.min(initial=0)), int(counted.max(initial=0))
    if least < 0 or (num_classes is not None and most >= num_classes):
        classes = "numbers from 0" if num_classes is None else f"the classes 0 .. {num_classes - 1}"
        raise InputError(PATH, str(path), f"{what} has labels {least} .. {most}, not {classes}")
    return labels.astype(np.int64), [str(one) for one in range(num_classes or most + 1)]


def coded_owners(values: Array, training: int, path: Path, names: list[str]) -> tuple[Indices, list[str]]:
    """The owners of all examples, -1 for those of a test set none of whom has a training example, and their names."""
    codes, owners = _codes(values, training, path, names[0])
    strange = codes < 0
    if strange.any() and not strange[training:].all():
        row = int(np.argmax(strange))
        fault = f"{names[-1]} has {values[row]} in row {row - training + 1}, who has no training example"
        raise InputError(PATH, str(path), fault)
    return codes, owners


def _codes(labels: Array, training: int, path: Path, what: str) -> tuple[Indices, list[str]]:
    """Number the distinct values of training examples from 0, in the order of numbers where all are, else of text.

    -1: a value of a test example that no training example has. Then the names of the values.
    """
    if labels.dtype.kind == "U":
        from fedsim.problems.datasets.cells import MISSING
        from fedsim.problems.datasets.labels import in_order, places

        missing = np.isin(np.char.strip(labels), MISSING)
        if missing.any():
            raise InputError(PATH, str(path), f"{what} has no value in row {np.flatnonzero(missing)[0] + 1}")
        texts = labels.astype(object)
        distinct = in_order(texts[:training])
        return places(texts, distinct), distinct
    if labels.dtype.kind not in "fiub":
        raise InputError(PATH, str(path), f"{what} is {labels.dtype}; give numbers or text")
    finite(labels, path, what)
    values = np.unique(labels[:training])
    at = np.minimum(np.searchsorted(values, labels), len(values) - 1)
    return np.where(values[at] == labels, at, -1).astype(np.int64), [str(value) for value in values.tolist()]
