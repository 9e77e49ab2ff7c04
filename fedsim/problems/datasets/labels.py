"""What is a class, what is a number, and which is which: shared by tables and arrays.

Arrays: n examples.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas

from fedsim.core.data_files import Array
from fedsim.problems.datasets.base import Indices

FEW = 20
"""So many different labels are classes, however few examples each has."""


def in_order(texts: Array) -> list[Any]:
    """The distinct ones: in the order of numbers where all are, those of one number as texts; else as texts."""
    distinct = pandas.unique(texts)
    values = pandas.to_numeric(pandas.Series(distinct, dtype=str), errors="coerce").to_numpy(np.float64)
    if np.isnan(values).any():
        return sorted(map(str, distinct))
    return [text for _, text in sorted(zip(values.tolist(), map(str, distinct), strict=True))]


def places(texts: Array, distinct: list[Any]) -> Indices:
    """Which of the distinct ones each is, int64 [n]; -1: none."""
    found: Indices = pandas.Index(distinct).get_indexer(texts).astype(np.int64)
    return found


def no_classes(labels: Array) -> str | None:
    """Why labels, numbers or texts, are no classes; None: they are.

    More than 20 differ and hardly any comes twice; or they are numbers that are not whole, and one of these is so.
    """
    distinct = len(pandas.unique(labels))
    many, rare = distinct > FEW, 2 * distinct > len(labels)
    real = labels.dtype.kind == "f" and bool((labels != np.floor(labels)).any())
    if not ((many and rare) or (real and (many or rare))):
        return None
    kind = "numbers" if labels.dtype.kind in "fiu" else "texts"
    remedy = 'say task = "regression"' if kind == "numbers" else "name the column that has the classes"
    return f"has {distinct} different {kind} in {len(labels)} examples, which are no classes; {remedy}"
