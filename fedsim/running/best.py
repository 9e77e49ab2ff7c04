"""The best model of a run is kept beside the last."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from fedsim.core.measures import Asked, lower_is_better
from fedsim.problems.base import Problem
from fedsim.running.folder import RunFolder
from fedsim.running.history import Row


class Best:
    """Writes the model of each row that is better than all before it by one measure into best.safetensors.

    asked: which way measures improve that were asked for. earlier: rows before. Of rows that are equally good the first
    counts, and those without the measure do not. What was written before a process was killed is written again, or has
    been the best of the rows that are left.
    """

    def __init__(self, measure: str, asked: Asked, problem: Problem, folder: RunFolder, earlier: Iterable[Row]) -> None:
        self._measure, self._problem, self._folder = measure, problem, folder
        self._sign = -1.0 if lower_is_better(measure, asked) else 1.0
        self._best = -float("inf")
        for row in earlier:
            self._is_better(row)

    def __call__(self, row: Row, params: Tensor) -> None:
        """Look at a row and the model [d] that it is about."""
        if self._is_better(row):
            # One entry: safetensors writes several in no fixed order.
            told = f"round {row['round']}, {self._measure} {row[self._measure]}"
            self._folder.write_best(self._problem.tensors(params), {"best": told})

    def _is_better(self, row: Row) -> bool:
        value = row.get(self._measure)
        if value is None or not self._sign * value > self._best:
            return False
        self._best = self._sign * value
        return True
