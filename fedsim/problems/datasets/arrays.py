"""A person's own data: arrays in a NumPy archive."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np

from fedsim.core.data_files import TABLE, Array, DataFolder, read_arrays
from fedsim.core.errors import InputError
from fedsim.core.options import Fraction, NonNegativeInt, options
from fedsim.problems.datasets.base import Dataset, Indices, Task, finite, split_off, unit_scale
from fedsim.problems.datasets.labels import no_classes
from fedsim.problems.datasets.scaling import standardised

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


@options
class NPZ:
    """Arrays of a NumPy archive: inputs and labels, perhaps those of a test set, perhaps owners.

    Found by their usual names: `x` and `y`, `X` and `y`, `data` and `target` or `labels`, `images` and `labels`, as
    they are or as `x_train`, `train_x`; those of the test set as `x_test`, `test_x`. Images of bytes become numbers
    from 0 to 1.
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
    """classification numbers the distinct labels in their order from 0; regression takes them as numbers."""
    tokens: bool = False
    """x holds token ids, not features."""
    missing: Literal["refuse", "drop", "fill"] = "refuse"
    """What becomes of an example of which a feature is missing (NaN): refuse the archive; drop the example; fill in
    the mean of the training examples.
    """
    test_share: Fraction = 0.2
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
        targets, classes = _targets(y, training, self.task, path, names["y"][0])
        owners, owner_names = (None, []) if owner is None else _codes(owner, path, names["owner"][0])
        if len(names["x"]) > 1:
            train, test = np.arange(training), np.arange(training, len(x))
        else:
            strata = owners if owners is not None else (targets if classes else None)
            train, test = split_off(strata, training, self.test_share, self.split_seed)
        inputs, inputs_test, told = self._treated(x[train], x[test], path, names["x"][0])
        owned = owners is not None and len(names["owner"]) == len(names["x"])
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
            drawn=len(names["x"]) == 1,
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
        tests = {part: _of_test(one, arrays) for part, (one,) in names.items()}
        for part, other in (("x", "y"), ("y", "x")):
            if tests[part] is not None and tests[other] is None:
                fault = f"the archive has {tests[part]} but no {_test_names(names[other][0])[0]}; {held}"
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
            if values.min(initial=0) < 0:
                raise InputError(PATH, str(path), f"{key} has the token id {values.min()}; they begin at 0")
            return values.astype(np.int64)
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
        return _single(x, path, key), _single(x_test, path, key), told


def _of_test(name: str, arrays: dict[str, Array]) -> str | None:
    """What the array of the test set is called that belongs to one of the training set; None: there is none."""
    return next((test for test in _test_names(name) if test in arrays), None)


def _test_names(name: str) -> list[str]:
    return [name.replace("train", "test")] if "train" in name else [f"{name}_test", f"test_{name}"]


def _joined(
    arrays: dict[str, Array], names: dict[str, list[str]], path: Path
) -> tuple[Array, Array, Array | None, int]:
    """Inputs, labels and owners, of the test set behind those of training, and how many these are."""
    for part, own in names.items():
        for key, inputs in zip(own, names["x"], strict=False):
            count = arrays[inputs].shape[:1]
            if part == "y" and arrays[key].ndim == 2 and arrays[key].shape[1] == 1:
                arrays[key] = arrays[key][:, 0]
            if part != "x" and (arrays[key].shape != count or not count):
                fault = f"{key} has shape {arrays[key].shape}, {inputs} {count} examples; one for each"
                raise InputError(PATH, str(path), fault)
        first = arrays[own[0]]
        for key in own[1:]:
            other = arrays[key]
            if other.shape[1:] != first.shape[1:] or (other.dtype.kind == "U") != (first.dtype.kind == "U"):
                fault = f"{key} is {other.dtype} of shape {other.shape}, {own[0]} {first.dtype} of shape {first.shape}"
                raise InputError(PATH, str(path), fault)
    x, y = (np.concatenate([arrays[key] for key in names[part]]) for part in ("x", "y"))
    owner = np.concatenate([arrays[key] for key in names["owner"]]) if "owner" in names else None
    return x, y, owner, len(arrays[names["x"][0]])


def _filled(x: Array, x_test: Array, path: Path, key: str) -> tuple[Array, Array, int]:
    """Both with the training mean of a feature in place of NaN, and how many numbers that were."""
    from sklearn.impute import SimpleImputer

    flat, flat_test = (values.reshape(len(values), -1).astype(np.float64) for values in (x, x_test))
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


def _single(values: Array, path: Path, what: str) -> Array:
    """Convert to float32; refuse what is not finite there."""
    with np.errstate(over="ignore", invalid="ignore"):
        single = values.astype(np.float32)
    finite(single, path, what)
    return single


def _targets(labels: Array, training: int, task: Task, path: Path, what: str) -> tuple[Array, list[str]]:
    """Return classes int64 [n] and their names, or float32 [n] targets and none."""
    if task == "regression":
        if labels.dtype.kind not in "fiub":
            raise InputError(PATH, str(path), f"{what} is {labels.dtype}; give numbers")
        return _single(labels, path, what), []
    codes, classes = _codes(labels, path, what)
    reason = no_classes(labels[:training])
    if reason is not None:
        raise InputError(PATH, str(path), f"{what} {reason}")
    return codes, classes


def _codes(labels: Array, path: Path, what: str) -> tuple[Indices, list[str]]:
    """Number the distinct values from 0, in the order of numbers where all are, else of text; and their names."""
    if labels.dtype.kind == "U":
        from fedsim.problems.datasets.cells import MISSING
        from fedsim.problems.datasets.labels import in_order, places

        missing = np.isin(np.char.strip(labels), MISSING)
        if missing.any():
            raise InputError(PATH, str(path), f"{what} has no value in row {np.flatnonzero(missing)[0] + 1}")
        texts = labels.astype(object)
        distinct = in_order(texts)
        return places(texts, distinct), distinct
    if labels.dtype.kind not in "fiub":
        raise InputError(PATH, str(path), f"{what} is {labels.dtype}; give numbers or text")
    finite(labels, path, what)
    values, codes = np.unique(labels, return_inverse=True)
    return codes.reshape(-1).astype(np.int64), [str(value) for value in values.tolist()]
