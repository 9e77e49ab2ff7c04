"""From the cells of a table to numbers that a model is given, by scikit-learn's transformers.

What is done to a column is fitted on training examples alone. Arrays: n training and m test examples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas
from sklearn.compose import ColumnTransformer
from sklearn.feature_extraction import FeatureHasher
from sklearn.impute import SimpleImputer
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, OrdinalEncoder, StandardScaler

from fedsim.core.data_files import TABLE, Array, hold_memory
from fedsim.core.errors import InputError
from fedsim.problems.datasets.cells import PATH, Cells, Texts, as_numbers, first_of
from fedsim.problems.datasets.labels import in_order
from fedsim.problems.datasets.scaling import moderate

Encoding = Literal["one_hot", "ordinal", "hash"]
MOST_CATEGORIES = 4096
"""Columns that one_hot makes of one at most."""


@dataclass(frozen=True)
class Feature:
    """A column that a model learns from. values: float64 [rows], NaN where missing; None: texts, which are encoded."""

    name: str
    texts: Texts
    values: Array | None
    encoding: Encoding | None


@dataclass(frozen=True, kw_only=True)
class Treatment:
    """What becomes of features; see the options of `fedsim.problems.datasets.tables.CSV`."""

    decimal: str
    numbers: Sequence[str]
    encode: Mapping[str, Encoding] | Encoding | None
    hash_columns: int
    standardize: bool


def features(cells: Cells, chosen: Sequence[int], how: Treatment) -> list[Feature]:
    """The chosen columns, each as numbers or as texts that are encoded. InputError: one is neither."""
    encode = how.encode
    made = [_feature(cells, column, how) for column in chosen]
    names = [one.name for one in made]
    for name in how.numbers:
        one = next((one for one in made if one.name == name), None)
        if one is None or one.values is None or not as_numbers(one.texts, how.decimal)[2].any():
            raise InputError(f"{TABLE}.numbers", name, "is no feature with codes that are to be numbers; leave it out")
    if isinstance(encode, Mapping):
        for name in encode:
            if name not in names:
                raise InputError(f"{TABLE}.encode", name, f"is no feature; these are: {', '.join(sorted(names)[:20])}")
            if names.count(name) > 1:
                raise InputError(f"{TABLE}.encode", name, "names several columns; give each a name of its own")
    elif encode is not None and all(one.encoding is None for one in made):
        raise InputError(f"{TABLE}.encode", encode, "every feature is a number already; leave it out")
    return made


def _feature(cells: Cells, column: int, treatment: Treatment) -> Feature:
    name, texts, encode = cells.names[column], cells.columns[column], treatment.encode
    values, wrong, codes = as_numbers(texts, treatment.decimal)
    if isinstance(encode, Mapping) and name in encode:
        if not wrong.any() and not codes.any():  # of numbers, which one file may write as 1 and another as 1.0
            texts = texts.mask(texts.notna(), [f"{value:.17g}" for value in values])
        return Feature(name, texts, None, encode[name])
    if wrong.any():
        row = first_of(wrong)
        reason = f"has {texts.iloc[row]!r}, which is not a number"
        if treatment.decimal == "." and not as_numbers(texts, ",")[1].any():
            reason += ' (but for decimal = ",")'
    elif np.isinf(values).any():
        row = first_of(np.isinf(values))
        raise cells.fault(row, f"column {name!r} has {texts.iloc[row]} in row {cells.number(row)}, which is not finite")
    elif codes.any() and name not in treatment.numbers:
        row = first_of(codes)
        reason = f"has {texts.iloc[row]!r}, a code rather than a number (if it is one: numbers = [{name!r}])"
    else:
        return Feature(name, texts, values, None)
    if isinstance(encode, str):
        return Feature(name, texts, None, encode)
    remedy = f'; say encode = "one_hot", "ordinal" or "hash", or leave the column out by drop = [{name!r}]'
    raise cells.fault(row, f"row {cells.number(row)}, column {name!r}, {reason}{remedy}")


def hold_complete(cells: Cells, wanted: Sequence[Feature]) -> None:
    """Refuse what is missing."""
    for one in wanted:
        missing = one.texts.isna().to_numpy()
        if missing.any():
            remedy = 'missing = "drop" leaves such rows out, "fill" fills them in'
            row = first_of(missing)
            raise cells.fault(row, f"column {one.name!r} has no value in row {cells.number(row)}; {remedy}")


def treated(
    cells: Cells, wanted: Sequence[Feature], train: Array, test: Array, how: Treatment
) -> tuple[Array, Array, list[dict[str, Any]]]:
    """What becomes of features: float32 [n, k] of the rows `train`, [m, k] of the rows `test`, and what was done.

    What is done to a column is fitted on the rows `train`. InputError: a column has no value in any of them, too many
    categories, or numbers that are beyond what single precision holds.
    """
    _hold_widths(cells, wanted, how)
    scales = [_scale(cells.paths[0], one, train) if how.standardize else 1.0 for one in wanted]
    frame, frame_test = _frame(wanted, train, scales), _frame(wanted, test, scales)
    runs = []
    for encoding, run in groupby(range(len(wanted)), lambda number: wanted[number].encoding):
        of_run = list(run)
        runs.append((str(of_run[0]), _transformer(wanted, of_run, frame, encoding, how), list(map(str, of_run))))
    table = ColumnTransformer(runs, sparse_threshold=0.0)
    x = table.fit_transform(frame)
    x_test = table.transform(frame_test) if len(frame_test) else np.empty((0, x.shape[1]))
    told: list[dict[str, Any]] = []
    of_column: list[Feature] = []
    for _, pipeline, of_run in table.transformers_:
        places = [int(number) for number in of_run]
        for number, said in zip(places, _told(pipeline, wanted, places, scales), strict=True):
            told.append(said)
            widths = {"one_hot": len(said.get("categories", ())), "hash": how.hash_columns}
            of_column += [wanted[number]] * widths.get(said.get("encoding", ""), 1)
    return _single(cells, x, train, of_column), _single(cells, x_test, test, of_column), told


def _hold_widths(cells: Cells, wanted: Sequence[Feature], how: Treatment) -> None:
    """Refuse encodings that make more numbers, of 8 bytes for a time, than fit into memory."""
    widths = {
        one.name: how.hash_columns if one.encoding == "hash" else min(one.texts.nunique(), MOST_CATEGORIES)
        for one in wanted
        if one.encoding in ("hash", "one_hot")
    }
    option, value = ("hash_columns", how.hash_columns) if how.hash_columns in widths.values() else ("encode", "one_hot")
    if widths:
        hold_memory((len(cells), 2 * sum(widths.values())), f"{TABLE}.{option}", value, "take fewer columns")


def _single(cells: Cells, values: Array, rows: Array, of_column: Sequence[Feature]) -> Array:
    """In single precision, contiguous; refuse what is not finite there."""
    with np.errstate(over="ignore"):
        single = np.ascontiguousarray(values, np.float32)
    wrong = np.argwhere(~np.isfinite(single))
    if len(wrong):
        row, column = wrong[0]
        one = of_column[column]
        text = one.texts.iloc[rows[row]]
        raise cells.fault(
            int(rows[row]), f"column {one.name!r} has {text} in row {cells.number(row)}, too large a number"
        )
    return single


def _scale(path: Path, feature: Feature, train: Array) -> float:
    """A power of two that keeps a column's squares within the range of numbers."""
    if feature.values is None:
        return 1.0
    values = feature.values[train]
    if np.isnan(values).all():
        fault = (
            f"column {feature.name!r} has no value in any training example; leave it out by drop = [{feature.name!r}]"
        )
        raise InputError(PATH, str(path), fault)
    return float(moderate(np.nanmax(np.abs(values))))


def _frame(wanted: Sequence[Feature], rows: Array, scales: Sequence[float]) -> pandas.DataFrame:
    columns = {}
    for number, (one, scale) in enumerate(zip(wanted, scales, strict=True)):
        if one.values is None:
            columns[str(number)] = one.texts.fillna("").to_numpy(dtype=object)[rows]
        else:
            columns[str(number)] = one.values[rows] * scale
    return pandas.DataFrame(columns)


def _transformer(
    wanted: Sequence[Feature], run: list[int], frame: pandas.DataFrame, encoding: Encoding | None, how: Treatment
) -> Pipeline:
    """What is done to columns that lie side by side and are all of one kind."""
    scaling = [("scale", StandardScaler())] if how.standardize else []
    if encoding is None:
        return Pipeline([("fill", SimpleImputer()), *scaling])
    if encoding == "hash":
        return Pipeline([("hash", FunctionTransformer(partial(_hashed, columns=how.hash_columns)))])
    categories = [in_order(frame[str(number)].to_numpy()) for number in run]
    if encoding == "ordinal":
        ordinal = OrdinalEncoder(categories=categories, handle_unknown="use_encoded_value", unknown_value=-1)
        return Pipeline([("ordinal", ordinal), *scaling])
    for number, held in zip(run, categories, strict=True):
        if len(held) > MOST_CATEGORIES:
            fault = f"column {wanted[number].name!r} has {len(held)} different texts; hash makes few columns of them"
            raise InputError(f"{TABLE}.encode", "one_hot", fault)
    return Pipeline([("one_hot", OneHotEncoder(categories=categories, handle_unknown="ignore", sparse_output=False))])


def _hashed(texts: Any, columns: int) -> Array:
    """Of each column of texts [n, c] as many columns as are wanted, [n, c * columns], by the hash of the text."""
    hasher = FeatureHasher(columns, input_type="string")
    parts = [hasher.transform([[text] for text in texts[name]]).toarray() for name in texts]
    return np.concatenate(parts, axis=1)


def _told(
    pipeline: Pipeline, wanted: Sequence[Feature], run: Sequence[int], scales: Sequence[float]
) -> list[dict[str, Any]]:
    """What was done to each of the columns of a run, as a methods section says it."""
    told: list[dict[str, Any]] = [{"name": wanted[number].name} for number in run]
    for step in pipeline.named_steps.values():
        for place, (one, number) in enumerate(zip(told, run, strict=True)):
            if isinstance(step, StandardScaler):
                one |= {"mean": float(step.mean_[place]) / scales[number]}
                one |= {"deviation": float(step.scale_[place]) / scales[number]}
            elif isinstance(step, OneHotEncoder | OrdinalEncoder):
                kind = "one_hot" if isinstance(step, OneHotEncoder) else "ordinal"
                one |= {"encoding": kind, "categories": list(map(str, step.categories_[place]))}
            elif isinstance(step, FunctionTransformer):
                one |= {"encoding": "hash"}
    return told
