"""A comparison as a program reads it: plain lists and tables, in which nothing is rounded."""

from __future__ import annotations

from typing import Any

from fedsim.reports.comparison import Comparison
from fedsim.reports.fronts import records


def record(comparison: Comparison) -> dict[str, Any]:
    """What the groups came to, in what they differ, and which are told apart.

    Of each group and number a value a run, in the order of the seeds, with mean, sample deviation and interval; of each
    target what it took each run, and whether it came there.
    """
    groups = []
    for place, group in enumerate(comparison.groups):
        numbers = {}
        for label, spread in group.numbers.items():
            found = comparison.intervals[label][place] if label in comparison.intervals else None
            ends = None if found is None else [found.low, found.high]
            numbers[label] = {
                "values": spread.values,
                "mean": spread.mean,
                "deviation": spread.deviation,
                "interval": ends,
            }
        targets = {
            measure: {
                label: {"values": took.values, "reached": took.reached, "median": took.median}
                for label, took in comparison.spent[measure][place].items()
            }
            for measure in comparison.targets
        }
        named = {"name": group.name, "folders": [run.path for run in group.runs]}
        groups.append(named | {"seeds": [run.seed for run in group.runs], "numbers": numbers, "targets": targets})
    return {
        "groups": groups,
        "targets": comparison.targets,
        "differing": comparison.differing,
        "level": comparison.level,
        "tests": comparison.tests.records,
        "fronts": records(comparison.fronts),
        "left_out": {str(path): why for path, why in comparison.left_out.items()},
    }
