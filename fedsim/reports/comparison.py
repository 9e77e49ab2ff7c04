"""Runs side by side, as a table and as pictures.

Runs whose options (config.toml without `resolved`) differ in nothing but `seed` are one group. What is said of a
group is the mean over its runs and, from two runs on, the sample standard deviation
sqrt(sum_i (x_i - mean)^2 / (n - 1)). A target, such as a test accuracy of 0.9, adds what it took each run to reach it
for the first time; runs that never do have no such numbers, and the table says of how many runs its mean is.
"""

from __future__ import annotations

import json
import math
import os
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fedsim.core.errors import InputError
from fedsim.core.measures import FIRST, attack_of, is_measure, lower_is_better
from fedsim.plots import Along, axes_of, compare_curves, histograms, measured, timelines
from fedsim.running.folder import METRICS, is_run, open_run
from fedsim.running.history import History, Row

if TYPE_CHECKING:
    pass

HIDDEN = re.compile(r"client_(\w+_)?accuracy_(mean|worst)|client_value_worst")
COUNTS = {"queries": "queries", "extra_queries": "extra queries", "late": "late", "lost": "lost"}
"""Columns whose sum over the rows is a number of the run, and its label."""
WHERE_ANY = ("staleness, mean", *COUNTS.values())
"""What is left out where it is zero in all groups."""
DEPTH = 3
"""How deep below a given folder runs are looked for: runs/sweep-<n>/<name>/<options>/seed-<k>."""


@dataclass(frozen=True)
class Spread:
    """A number of the runs of a group, in the order of their seeds; NaN: it was not finite."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean over the runs."""
        return sum(self.values) / len(self.values)

    @property
    def deviation(self) -> float | None:
        """The sample standard deviation; None for one run."""
        if len(self.values) == 1:
            return None
        return statistics.stdev(self.values) if all(map(math.isfinite, self.values)) else math.nan


@dataclass(frozen=True)
class Run:
    """A run as it was read. config: the options without the seed, keys of nested tables joined by dots."""

    path: Path
    seed: int | None
    config: Mapping[str, Any]
    history: History

    @property
    def rows(self) -> list[Row]:
        """The rows of the run's metrics.jsonl."""
        return self.history.rows

    @cached_property
    def numbers(self) -> dict[str, float]:
        """What the run came to: final and best values of what it measured, and what that cost."""
        history = self.history
        numbers: dict[str, float] = {}
        for column in (column for column in measured(history.columns) if not HIDDEN.fullmatch(column)):
            # A final value that was not finite must not pass for the last one that was.
            final = history.last(column)
            numbers[f"{column}, final"] = math.nan if final is None else float(final)
            finite = [value for value in history[column] if value is not None]
            if is_measure(column) and not attack_of(column):  # the best of many robust accuracies says little
                pick = min if lower_is_better(column) else max
                numbers[f"{column}, best"] = float(pick(finite, default=math.nan))
        for column, label in (
            ("round", "rounds done"),
            ("time", "virtual time (s)"),
            ("wall", "wall time (s)"),
        ):
            if column in history.columns:
                numbers[label] = float(history.last(column))
        for column, label in (("bytes_up", "up (MiB)"), ("bytes_down", "down (MiB)")):
            if column in history.columns:
                numbers[label] = sum(value or 0 for value in history[column]) / 2**20
        # A row's staleness is a mean over its replies: a row of many replies says more.
        replies = [(row["clients"], row["staleness"]) for row in history if row.get("staleness") is not None]
        if any(count for count, _ in replies):
            numbers["staleness, mean"] = sum(count * mean for count, mean in replies) / sum(c for c, _ in replies)
        for column, label in COUNTS.items():
            if column in history.columns:
                numbers[label] = float(sum(value or 0 for value in history[column]))
        return numbers

    def spent(self, measure: str, level: float) -> dict[str, float] | None:
        """What it took until the measure was first as good as the level; None: it never was.

        Rounds, and, where the rows have them, virtual seconds, queries and MiB sent up by all clients until then.
        """
        sign = -1.0 if lower_is_better(measure) else 1.0
        totals = dict.fromkeys((column for column in ("queries", "bytes_up") if column in self.history.columns), 0)
        for row in self.rows:
            for column in totals:
                totals[column] += row.get(column) or 0
            value = row.get(measure)
            if value is not None and sign * value >= sign * level:
                found = {"rounds": row["round"], "virtual time (s)": row.get("time"), "queries": totals.get("queries")}
                if "bytes_up" in totals:
                    found["up (MiB)"] = totals["bytes_up"] / 2**20
                return {label: float(number) for label, number in found.items() if number is not None}
        return None

    @cached_property
    def trace(self) -> dict[str, Any] | None:
        """What it says of staleness, participation and the first clients; None without one. InputError: unreadable."""
        return open_run(self.path).trace()


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone, ordered by it."""

    name: str
    runs: tuple[Run, ...]

    @cached_property
    def numbers(self) -> dict[str, Spread]:
        """The numbers of the runs, each over those runs that have it."""
        labels = dict.fromkeys(label for run in self.runs for label in run.numbers)
        return {
            label: Spread(tuple(run.numbers[label] for run in self.runs if label in run.numbers)) for label in labels
        }

    def spent(self, measure: str, level: float) -> dict[str, Spread]:
        """What it took those runs that reached the level; see `Run.spent`. Empty: none did."""
        found = [taken for run in self.runs if (taken := run.spent(measure, level)) is not None]
        labels = dict.fromkeys(label for taken in found for label in taken)
        return {label: Spread(tuple(taken[label] for taken in found if label in taken)) for label in labels}


@dataclass(frozen=True)
class Comparison:
    """Groups of runs, in the order in which they were named.

    targets: levels of measures, by the measure. along: the horizontal axes of the curves; none: the usual ones.
    """

    groups: tuple[Group, ...]
    targets: Mapping[str, float] = field(default_factory=dict)
    along: tuple[Along, ...] = ()

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The numbers that any group has, in the order of the table; of `WHERE_ANY` those that any has not zero."""
        labels = dict.fromkeys(
            label
            for group in self.groups
            for label, spread in group.numbers.items()
            if label not in WHERE_ANY or any(spread.values)
        )
        return tuple(sorted(labels, key=_rank))

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


def compare(
    paths: Sequence[Path], *, targets: Mapping[str, float] | None = None, along: Sequence[str] = ()
) -> Comparison:
    """Read runs and group them. paths: runs, or folders that hold runs (what `--seeds` writes).

    A run that is named twice counts once. Runs of equal seed and config are not replicas but results to be
    compared (of two versions of the code, say): they stand in different groups. targets: levels, by the measure that is
    to reach them. along: what the curves are drawn against, of round, time, queries and bytes; by default see
    `plots.axes_of`. InputError: there is no path, one holds no run, a run cannot be read or has no row yet, a target is
    no measure of any run, or no run has what curves are to be drawn against.
    """
    found = dict.fromkeys(path.resolve() for given in paths for path in _runs_in(given))
    if not found:
        raise InputError("runs", "(nothing)", "name at least one run folder")
    grouped: dict[tuple[str, int], list[Run]] = {}
    occurrences: Counter[tuple[str, int | None]] = Counter()
    for run in map(_read, found):
        config = json.dumps(run.config, sort_keys=True, default=str)
        place = occurrences[config, run.seed]
        occurrences[config, run.seed] += 1
        grouped.setdefault((config, place), []).append(run)
    groups = [sorted(runs, key=lambda run: -1 if run.seed is None else run.seed) for runs in grouped.values()]
    names = _names([[run.path for run in runs] for runs in groups])
    compared = tuple(Group(name, tuple(runs)) for name, runs in zip(names, groups, strict=True))
    known = dict.fromkeys(name for group in compared for run in group.runs for name in run.history.columns)
    measures = [name for name in measured(known) if is_measure(name)]
    for measure, level in (targets or {}).items():
        if measure not in measures:
            raise InputError("target", f"{measure}={level:g}", f"name one of: {', '.join(measures) or '(no measure)'}")
    axes = axes_of(_rows(compared))
    for axis in along:
        if axis not in axes:
            raise InputError("along", axis, f"name one of: {', '.join(axes)}")
    return Comparison(compared, targets or {}, cast("tuple[Along, ...]", tuple(dict.fromkeys(along))))


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


def places(out: Path) -> tuple[Path, Path, Path]:
    """Name the pictures that `draw` may write: `out`, and beside it out-trace and out-timeline.

    InputError: there is no folder to write them in.
    """
    folder = out.absolute().parent
    if not folder.is_dir():
        raise InputError("out", str(out), f"{folder} is not a folder; make it first, or choose another place")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError("out", str(out), f"{folder} cannot be written in; choose another place")
    trace, timeline = (out.with_name(f"{out.stem}-{part}{out.suffix}") for part in ("trace", "timeline"))
    return out, trace, timeline


def draw(comparison: Comparison, out: Path) -> list[Path]:
    """Draw the groups into the files that `places(out)` names, and return those that were written.

    The curves; staleness and participation; the timelines of each group's first run. A picture that would show
    nothing is not drawn: see `plots.compare_curves`, `plots.histograms` and `plots.timelines`. Raises InputError when
    a trace cannot be read, or there is no folder for the pictures, before anything is drawn, and StorageError when a
    picture cannot be written.
    """
    groups = comparison.groups
    traces = {group.name: [run.trace for run in group.runs if run.trace is not None] for group in groups}
    curves, trace, timeline = places(out)
    drawn = {
        curves: compare_curves(_rows(groups), curves, comparison.along),
        trace: histograms(traces, trace),
        timeline: timelines({name: found[0] for name, found in traces.items() if found}, timeline),
    }
    return [path for path, was_drawn in drawn.items() if was_drawn]


def _rows(groups: Iterable[Group]) -> dict[str, list[list[Row]]]:
    return {group.name: [run.rows for run in group.runs] for group in groups}


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


def _read(path: Path) -> Run:
    folder = open_run(path)
    config = folder.config()
    seed = config.pop("seed", None)
    config.pop("resolved", None)  # what came of the options on one machine
    history = folder.history
    if len(history) == 0:
        raise InputError("runs", str(path / METRICS), "no round was logged; leave this run out")
    return Run(path, seed, dict(_flat(config)), history)


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _names(groups: Sequence[Sequence[Path]]) -> list[str]:
    """Name each group by its run, by the folder that holds its runs alone, or by its first run."""
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


def _measure(label: str) -> str | None:
    """Name the measure whose final or best value a label is about; None: it is about what the run cost."""
    column, _, which = label.partition(", ")
    return column if which in ("final", "best") else None


def _rank(label: str) -> int:
    """Put the measures of `FIRST` first, in their order, then the others, then what it cost."""
    measure = _measure(label)
    if measure is None:
        return len(FIRST) + 1
    return FIRST.index(measure) if measure in FIRST else len(FIRST)
