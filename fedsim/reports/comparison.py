"""Runs side by side.

Runs whose options (config.toml without `resolved`) differ in nothing but `seed` are one group. What is said of a
group is the mean over its runs and, from two runs on, the sample standard deviation
sqrt(sum_i (x_i - mean)^2 / (n - 1)). A target, such as a test accuracy of 0.9, adds what it took each run to reach it
for the first time; runs that never do have no such numbers, and the table says of how many runs its mean is.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from fedsim.core.errors import InputError
from fedsim.core.html import html_table
from fedsim.core.measures import Asked, first, is_measure
from fedsim.core.near import name_one
from fedsim.core.terminal import printable
from fedsim.plots import Along, Picture, axes_of, compare_curves, measured
from fedsim.reports.cells import cell, cell_spent, measure_of, seeds
from fedsim.reports.numbers import COUNTS, Group, Run, Spread
from fedsim.running.history import Row
from fedsim.running.reporting import write_report
from fedsim.running.result import Result
from fedsim.running.stored import CONFIG, METRICS, is_run, open_run
from fedsim.running.sweep import Outcome

SHOWN = 4
"""So many names of groups are said in one line."""
WHERE_ANY = ("staleness, mean", *COUNTS.values())
"""What is left out where it is zero in all groups."""
DEPTH = 3
"""How deep below a given folder runs are looked for: runs/sweep-<n>/<name>/<options>/seed-<k>."""


NO_ROW = "it has no row yet"
"""Why a run is left out that has only begun."""
ONE_TEST_SET = 'all seeds share one test set; problem.split = "seed" draws one for each, where it is drawn'
"""What is said where the spread over seeds has nothing of the choice of the test set in it."""


@dataclass(frozen=True)
class Comparison:
    """Groups of runs, in the order in which they were named.

    targets: levels of measures, by the measure. along: the horizontal axes of the curves; none: the usual ones.
    left_out: folders of runs that are not in it, and why.
    """

    groups: tuple[Group, ...]
    targets: Mapping[str, float] = field(default_factory=dict)
    along: tuple[Along, ...] = ()
    left_out: Mapping[Path, str] = field(default_factory=dict)

    @property
    def rows(self) -> dict[str, list[list[Row]]]:
        """The rows of each group's runs, by its name."""
        return {group.name: [run.rows for run in group.runs] for group in self.groups}

    @property
    def asked(self) -> Asked:
        """Which way measures improve that the runs were asked for."""
        return _asked(self.groups)

    def plot(self) -> Picture:
        """The curves of all groups. FedsimError: no number was measured."""
        return Picture(lambda place: compare_curves(self.rows, place, self.along, self.asked))

    def report(self, path: Path | str) -> None:
        """Write all that it says as one HTML page, as `fedsim report` does."""
        write_report(self, path)

    def __repr__(self) -> str:
        runs = sum(len(group.runs) for group in self.groups)
        names = ", ".join(group.name for group in self.groups[:SHOWN])
        more = ", ..." if len(self.groups) > SHOWN else ""
        return f"Comparison({len(self.groups)} groups of {runs} runs: {names}{more})"

    def _repr_html_(self) -> str:
        return html_table(("", *(group.name for group in self.groups)), lines_of(self))

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The numbers that any group has, in the order of the table; of `WHERE_ANY` those that any has not zero."""
        labels = dict.fromkeys(
            label
            for group in self.groups
            for label, spread in group.numbers.items()
            if label not in WHERE_ANY or any(spread.values)
        )
        order = first(self.asked)
        return tuple(sorted(labels, key=lambda label: _rank(label, order)))

    @property
    def one_test_set(self) -> bool:
        """Whether there are seeds that are all judged on the same test examples."""
        runs = [group.runs[0].config for group in self.groups if len(group.runs) > 1]
        return any((run.get("problem.kind"), run.get("problem.split")) == ("supervised", "fixed") for run in runs)

    @cached_property
    def spent(self) -> dict[str, tuple[dict[str, Spread], ...]]:
        """What each group took to reach each target, by its measure; see `Group.spent`."""
        return {
            measure: tuple(group.spent(measure, level) for group in self.groups)
            for measure, level in self.targets.items()
        }

    @cached_property
    def differing(self) -> dict[str, tuple[Any, ...]]:
        """The options in which the groups differ: each group's value, None where it lacks the option."""
        configs = [group.runs[0].config for group in self.groups]
        keys = dict.fromkeys(key for config in configs for key in config)
        values = {key: tuple(config.get(key) for config in configs) for key in keys}
        return {key: found for key, found in values.items() if any(value != found[0] for value in found)}


Compared = Result | Outcome | Path | str
"""A run, or a folder that holds some."""


def compare(
    runs: Compared | Sequence[Compared],
    *,
    targets: Mapping[str, float] | None = None,
    along: Sequence[str] = (),
    under_way: bool = False,
) -> Comparison:
    """Read runs and group them. runs: results, outcomes of a sweep, run folders, or folders that hold some.

    A run that is named twice counts once. Runs of equal seed and config are not replicas but results to be
    compared (of two versions of the code, say): they stand in different groups. targets: levels, by the measure that is
    to reach them. along: what the curves are drawn against, of round, time, queries and bytes; by default see
    `plots.axes_of`. under_way: runs that have no row yet are left out and named in `Comparison.left_out`. InputError:
    there is no path, one holds no run, a run cannot be read, or has no row yet and none is under way, a target is no
    measure of any run, or no run has what curves are to be drawn against.
    """
    found: dict[Path | int, Run] = {}
    for given in [runs] if isinstance(runs, Compared) or not isinstance(runs, Iterable) else runs:
        if isinstance(given, Result) and given.folder is None:
            found[id(given)] = _in_memory(given)
        else:
            found |= {path: found.get(path) or read_run(path) for path in map(Path.resolve, _runs_in(_place(given)))}
    if not found:
        raise InputError("runs", "(nothing)", "name at least one run folder")
    rowless = [key for key, run in found.items() if isinstance(key, Path) and not len(run.history)]
    if rowless and not under_way:
        raise InputError("runs", str(rowless[0] / METRICS), "no round was logged; leave this run out")
    runs_with_rows = [run for key, run in found.items() if key not in rowless]
    return group_runs(runs_with_rows, targets or {}, along, dict.fromkeys(rowless, NO_ROW))


def group_runs(
    runs: Iterable[Run], targets: Mapping[str, float], along: Sequence[str], left_out: Mapping[Path, str]
) -> Comparison:
    """Group runs that have been read, as `compare` does. InputError: see there, of targets and along."""
    grouped: dict[tuple[str, int], list[Run]] = {}
    occurrences: Counter[tuple[str, int | None]] = Counter()
    for run in runs:
        config = json.dumps(run.config, sort_keys=True, default=str)
        place = occurrences[config, run.seed]
        occurrences[config, run.seed] += 1
        grouped.setdefault((config, place), []).append(run)
    groups = [sorted(group, key=lambda run: -1 if run.seed is None else run.seed) for group in grouped.values()]
    names = _names(groups)
    compared = tuple(Group(name, tuple(group)) for name, group in zip(names, groups, strict=True))
    known = dict.fromkeys(name for group in compared for run in group.runs for name in run.history.columns)
    asked = _asked(compared)
    measures = [name for name in measured(known, asked) if is_measure(name, asked)]
    for measure, level in targets.items():
        if measure not in measures:
            raise InputError("target", f"{measure}={level:g}", name_one(measure, measures))
    axes_asked = cast("tuple[Along, ...]", tuple(dict.fromkeys(along)))
    comparison = Comparison(compared, targets, axes_asked, left_out)
    axes = axes_of(comparison.rows)
    for axis in along:
        if axis not in axes:
            raise InputError("along", axis, name_one(axis, axes))
    return comparison


def parse_targets(assignments: Iterable[str]) -> dict[str, float]:
    """Read targets: `test_accuracy=0.9` and the like. InputError: no finite number follows, or one is given twice."""
    targets: dict[str, float] = {}
    for assignment in assignments:
        measure, _, text = assignment.partition("=")
        try:
            level = float(text)
        except ValueError:
            level = math.nan
        if not math.isfinite(level):
            raise InputError("target", assignment, "write measure=number, as in test_accuracy=0.9")
        if measure in targets:
            raise InputError("target", assignment, f"{measure} has a target already")
        targets[measure] = level
    return targets


def _runs_in(given: Path) -> list[Path]:
    try:
        found = _search(given, DEPTH)
    except OSError as error:
        raise InputError("runs", str(given), f"cannot be read: {error.strerror}") from error
    if not found:
        raise InputError("runs", str(given), "there is no run in this place, nor in the folders in it")
    return found


def _search(folder: Path, depth: int) -> list[Path]:
    """List the runs at a folder or at most `depth` folders below it."""
    if is_run(folder):
        return [folder]
    if depth == 0 or not folder.is_dir():
        return []
    return [path for below in sorted(folder.iterdir()) for path in _search(below, depth - 1)]


def read_run(path: Path) -> Run:
    """Read the folder of a run; its rows when they are first asked for. InputError: it cannot be read."""
    folder = open_run(path)
    config = folder.config()
    seed = config.pop("seed", None)
    if not isinstance(seed, int | None):
        raise InputError("seed", seed, f"is no whole number; {path / CONFIG} is not as a run has written it")
    return Run(path, seed, _compared(config), folder.history, asked=folder.asked())


def _place(given: Compared) -> Path:
    """Where a run, or a folder that holds some, is."""
    if isinstance(given, Outcome):
        return given.point.folder
    if isinstance(given, Result) and given.folder is not None:
        return given.folder
    if not isinstance(given, Path | str):
        raise InputError("runs", type(given).__name__, "hand over results, or name run folders")
    return Path(given)


def _in_memory(result: Result) -> Run:
    """A run that was not saved, as it would be read."""
    config = json.loads(json.dumps(result.config, default=str))
    seed = config.pop("seed")
    if len(result.history) == 0:
        raise InputError("runs", config["name"], "no round was logged; leave this run out")
    return Run(None, seed, _compared(config), result.history, result.trace, result.asked, result.summary)


def _compared(config: Mapping[str, Any]) -> dict[str, Any]:
    """What makes runs alike but for their seed, by `table.option`: without what came of the options, and trackers.

    Of the data the checksums of their files count; what was drawn of them for training follows the seed.
    """
    held = {name: table for name, table in config.items() if name not in ("resolved", "arithmetic", "data", "track")}
    data = config.get("data")
    if isinstance(data, Mapping) and "files" in data:
        held["data"] = {"files": data["files"]}
    return dict(_flat(held))


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _names(groups: Sequence[Sequence[Run]]) -> list[str]:
    """Name each group by its runs' folders; without one, by what its experiment is called."""
    paths = [[run.path for run in group if run.path is not None] for group in groups]
    saved = iter(_names_of([inner for inner in paths if inner]))
    names: list[str] = []
    for group, inner in zip(groups, paths, strict=True):
        name = next(saved) if inner else str(group[0].config["name"])
        alike = sum(other == name or other.startswith(f"{name} (") for other in names)
        names.append(f"{name} ({alike + 1})" if alike and not inner else name)
    return [printable(name) for name in names]


def _names_of(groups: Sequence[Sequence[Path]]) -> list[str]:
    """Name each group by its run, by the folder that holds its runs alone, or by its first run."""
    if not groups:
        return []
    holders = Counter(parent for group in groups for parent in {path.parent for path in group})
    places = [
        group[0].parent
        if len(group) > 1 and len({path.parent for path in group}) == 1 and holders[group[0].parent] == 1
        else group[0]
        for group in groups
    ]
    common = os.path.commonpath([place.parent for place in places])
    names = [os.path.relpath(place, common) for place in places]
    return [
        name if place != group[0] or len(group) == 1 else f"{name} (+{len(group) - 1})"
        for name, place, group in zip(names, places, groups, strict=True)
    ]


def _asked(groups: Iterable[Group]) -> Asked:
    """Which way measures improve that any run of the groups was asked for."""
    return {label: higher for group in groups for label, higher in group.asked.items()}


def _rank(label: str, order: Sequence[str]) -> int:
    """Put the measures of `order` first, in their order, then the others, then what it cost."""
    measure = measure_of(label)
    if measure is None:
        return len(order) + 1
    return order.index(measure) if measure in order else len(order)


def lines_of(comparison: Comparison) -> list[list[str]]:
    """The comparison as lines of texts, each with a heading before the groups' cells."""
    groups = comparison.groups
    lines = [["seeds", *map(seeds, groups)]]
    for label in comparison.labels:
        lines.append(
            [label, *(cell(label, group.numbers.get(label), len(group.runs), group.asked) for group in groups)]
        )
    for measure, level in comparison.targets.items():
        spent = comparison.spent[measure]
        for label in dict.fromkeys(label for found in spent for label in found) or ("rounds",):
            cells = (cell_spent(group, measure, label, found) for group, found in zip(groups, spent, strict=True))
            lines.append([f"{label} until {measure} {level:g}", *cells])
    for key, values in comparison.differing.items():
        lines.append([key, *("(absent)" if value is None else str(value) for value in values)])
    return lines
