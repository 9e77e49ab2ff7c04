"""Runs side by side.

Runs whose options (config.toml without `resolved`) differ in nothing but `seed` are one group. What is said of a
group is the mean over its runs and, from two runs on, the sample standard deviation
sqrt(sum_i (x_i - mean)^2 / (n - 1)) and an interval of the mean. Groups are tested against each other, see
`fedsim.reports.verdicts`. A target, such as a test accuracy of 0.9, adds what it took the runs to reach it for the
first time: the median over all, those that never did censored where they ended.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any, cast

from fedsim.core.errors import InputError
from fedsim.core.files import look, path_of, write_whole
from fedsim.core.html import html_table
from fedsim.core.measures import Asked, first, is_measure, lower_is_better
from fedsim.core.near import name_one
from fedsim.plots import Along, Picture, axes_of, compare_curves, measured
from fedsim.reports.cells import cell, cell_interval, cell_spent, measure_of, seeds
from fedsim.reports.fronts import Front, fronts_of
from fedsim.reports.listing import runs_below
from fedsim.reports.names import names_of
from fedsim.reports.numbers import COUNTS, Group, Run, options_of
from fedsim.reports.sheet import Sheet, csv_of, format_of
from fedsim.reports.statistics import LEVEL, Interval, Kind, Reached, held_kind, held_level, interval
from fedsim.reports.verdicts import Verdicts, judge
from fedsim.running.history import Row
from fedsim.running.reporting import write_report
from fedsim.running.result import Result
from fedsim.running.stored import CONFIG, METRICS, open_run
from fedsim.running.sweep import Outcome

SHOWN = 4
"""So many names of groups are said in one line."""
WHERE_ANY = ("staleness, mean", *COUNTS.values())
"""What is left out where it is zero in all groups."""
NO_ROW = "it has no row yet"
"""Why a run is left out that has only begun."""
NOT_IN = "not in x: fewer than half of the runs came there in x"
ONE_TEST_SET = 'all seeds share one test set; problem.split = "seed" draws one for each, where it is drawn'
"""What is said where the spread over seeds has nothing of the choice of the test set in it."""


@dataclass(frozen=True)
class Comparison:
    """Groups of runs, in the order in which they were named.

    targets: levels of measures, by the measure. along: the horizontal axes of the curves; none: the usual ones.
    left_out: folders of runs that are not in it, and why. tested: the labels by which groups are tested. interval: how
    the intervals of the means are found, None: there are none. level: of confidence, of intervals and tests.
    """

    groups: tuple[Group, ...]
    targets: Mapping[str, float] = field(default_factory=dict)
    along: tuple[Along, ...] = ()
    left_out: Mapping[Path, str] = field(default_factory=dict)
    tested: tuple[str, ...] = ()
    interval: Kind | None = "t"
    level: float = LEVEL

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
        table = html_table(("", *(group.name for group in self.groups)), lines_of(self))
        notes = "<br>".join(map(escape, notes_of(self)))
        return f"{table}{self.tests._repr_html_()}<small>{notes}</small>"

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

    @cached_property
    def fronts(self) -> list[Front]:
        """Which groups none leaves behind, by each number that is tested and each cost in which they differ."""
        return fronts_of(self.groups, self.tested, self.asked)

    @property
    def one_test_set(self) -> bool:
        """Whether there are seeds that are all judged on the same test examples."""
        runs = [group.runs[0].config for group in self.groups if len(group.runs) > 1]
        return any((run.get("problem.kind"), run.get("problem.split")) == ("supervised", "fixed") for run in runs)

    @cached_property
    def intervals(self) -> dict[str, tuple[Interval | None, ...]]:
        """Where the mean of each group is, by the labels of measures; None: its runs do not say. See `interval`."""
        if self.interval is None:
            return {}
        return {
            label: tuple(
                interval(group.numbers[label].values, self.interval, self.level) if label in group.numbers else None
                for group in self.groups
            )
            for label in self.labels
            if measure_of(label) is not None
        }

    @cached_property
    def tests(self) -> Verdicts:
        """Which groups are better than which, by the labels that are tested."""
        return judge(self.groups, self.tested, self.asked, self.level)

    def to_pandas(self) -> Any:
        """A DataFrame with a row a run: its group and seed, the options that differ, and its numbers."""
        import pandas

        rows = []
        for place, group in enumerate(self.groups):
            differing = {key: values[place] for key, values in self.differing.items()}
            rows += [{"group": group.name, "seed": run.seed, **differing, **run.numbers} for run in group.runs]
        return pandas.DataFrame(rows)

    @cached_property
    def sheet(self) -> Sheet:
        """A line a group, with the numbers that are tested and what it took to reach each target.

        Bold is who is told to be better than every other group.
        """
        asked, groups = self.asked, self.groups
        ways = ("↓" if lower_is_better(measure_of(label) or "", asked) else "↑" for label in self.tested)
        columns = [["seeds", *(str(len(group.runs)) for group in groups)]]
        for label, way in zip(self.tested, ways, strict=True):
            name = label.removesuffix(", final").replace("_", " ")
            found = (cell(label, group.numbers.get(label), len(group.runs), group.asked) for group in groups)
            columns.append([f"{name} {way}", *found])
        for measure, level in self.targets.items():
            until = f"until {measure.replace('_', ' ')} {level:g}"
            columns += [[f"{label} {until}", *cells] for label, *cells in spent_of(self, measure)]
        told = (
            (place, 2 + number)
            for place, group in enumerate(groups)
            for number, label in enumerate(self.tested)
            if self.tests.told(label, group.name)
        )
        heads, *cells = zip(*columns, strict=True)
        lines = [[group.name, *line] for group, line in zip(groups, cells, strict=True)]
        notes = [*notes_of(replace(self, interval=None)), *self.tests.notes]
        return Sheet(("", *heads), lines, frozenset(told), f"{'; '.join(notes)}." if notes else "")

    def export(self, path: Path | str) -> None:
        """Write the numbers for a paper (.tex), a page (.md) or a spreadsheet (.csv, which has all of them).

        InputError: the name ends otherwise. StorageError: it cannot be written.
        """
        place = path_of(path, "to")
        match format_of(place):
            case ".tex":
                text = self.sheet.latex()
            case ".md":
                text = self.sheet.markdown()
            case _:
                text = csv_of(*table_of(self))
        write_whole(place, text.encode())

    @cached_property
    def spent(self) -> dict[str, tuple[dict[str, Reached], ...]]:
        """What it took each group to reach each target, by its measure; see `Group.spent`."""
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
    measures: Sequence[str] = (),
    interval: str | None = "t",
    level: float = LEVEL,
    under_way: bool = False,
) -> Comparison:
    """Read runs and group them. runs: results, outcomes of a sweep, run folders, or folders that hold some.

    A run that is named twice counts once. Runs of equal seed and config are not replicas but results to be
    compared (of two versions of the code, say): they stand in different groups. targets: levels, by the measure that is
    to reach them. along: what the curves are drawn against, of round, time, queries, bytes (sent up), down and epsilon;
    by default see `plots.axes_of`. measures: by which groups are tested, such as test_accuracy (its final value) or
    "test_accuracy, best"; by default the first of the table. interval: "t", "bootstrap" or None; level: of confidence.
    under_way: runs that have no row yet are left out and named in `Comparison.left_out`.

    InputError: there is no path, one holds no run, a run cannot be read, or has no row yet and none is under way, a
    target or a measure is none of any run, no run has what curves are to be drawn against, or an interval or its level
    is none.
    """
    kind = None if interval is None else held_kind(interval)
    held_level(level)
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
    comparison = group_runs(runs_with_rows, targets or {}, along, dict.fromkeys(rowless, NO_ROW), measures)
    return replace(comparison, interval=kind, level=level)


def group_runs(
    runs: Iterable[Run],
    targets: Mapping[str, float],
    along: Sequence[str],
    left_out: Mapping[Path, str],
    measures: Sequence[str] = (),
) -> Comparison:
    """Group runs that have been read, as `compare` does. InputError: see there, of targets, along and measures."""
    grouped: dict[tuple[str, int], list[Run]] = {}
    occurrences: Counter[tuple[str, int | None]] = Counter()
    for run in runs:
        config = json.dumps(run.config, sort_keys=True, default=str)
        place = occurrences[config, run.seed]
        occurrences[config, run.seed] += 1
        grouped.setdefault((config, place), []).append(run)
    groups = [sorted(group, key=lambda run: -1 if run.seed is None else run.seed) for group in grouped.values()]
    names = names_of(groups)
    compared = tuple(Group(name, tuple(group)) for name, group in zip(names, groups, strict=True))
    known = dict.fromkeys(name for group in compared for run in group.runs for name in run.history.columns)
    asked = _asked(compared)
    targeted = [name for name in measured(known, asked) if is_measure(name, asked)]
    for measure, level in targets.items():
        if measure not in targeted:
            raise InputError("target", f"{measure}={level:g}", name_one(measure, targeted))
    axes_asked = cast("tuple[Along, ...]", tuple(dict.fromkeys(along)))
    comparison = Comparison(compared, targets, axes_asked, left_out)
    comparison = replace(comparison, tested=_tested(comparison, measures))
    axes = axes_of(comparison.rows)
    for axis in along:
        if axis not in axes:
            raise InputError("along", axis, name_one(axis, axes))
    return comparison


def _tested(comparison: Comparison, measures: Sequence[str]) -> tuple[str, ...]:
    """The labels of measures that somebody has named; by default the first final value of the table."""
    labels = [label for label in comparison.labels if is_measure(measure_of(label) or "", comparison.asked)]
    if not measures:
        return tuple(label for label in labels if label.endswith(", final"))[:1]
    found = {name: name if name in labels else f"{name}, final" for name in measures}
    for name, label in found.items():
        if label not in labels:
            raise InputError("measure", name, name_one(name, [label.removesuffix(", final") for label in labels]))
    return tuple(dict.fromkeys(found.values()))


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
    found = [] if look(given, "runs") is None else list(runs_below(given))
    for folder, fault in found:
        if fault:
            raise InputError("runs", str(folder), fault)
    if not found:
        raise InputError("runs", str(given), "there is no run in this place, nor in the folders in it")
    return [folder for folder, _ in found]


def read_run(path: Path) -> Run:
    """Read the folder of a run; its rows when they are first asked for. InputError: it cannot be read."""
    folder = open_run(path)
    config = folder.config()
    seed = config.pop("seed", None)
    if not isinstance(seed, int | None):
        raise InputError("seed", seed, f"is no whole number; {path / CONFIG} is not as a run has written it")
    return Run(path, seed, options_of(config), folder.history, asked=folder.asked())


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
    return Run(None, seed, options_of(config), result.history, result.trace, result.asked, result.summary)


def _asked(groups: Iterable[Group]) -> Asked:
    """Which way measures improve that any run of the groups was asked for."""
    return {label: higher for group in groups for label, higher in group.asked.items()}


def _rank(label: str, order: Sequence[str]) -> int:
    """Put the measures of `order` first, in their order, then the others, then what it cost."""
    measure = measure_of(label)
    if measure is None:
        return len(order) + 1
    return order.index(measure) if measure in order else len(order)


def numbers_of(comparison: Comparison) -> list[list[str]]:
    """The numbers of all groups as lines of texts, each with a heading; below a measure the intervals of its means."""
    groups, lines = comparison.groups, []
    for label in comparison.labels:
        cells = (cell(label, group.numbers.get(label), len(group.runs), group.asked) for group in groups)
        lines.append([label, *cells])
        found = comparison.intervals.get(label, ())
        # The best of many rounds was picked by what it is judged by; where its mean is says little.
        if comparison.interval is not None and any(found) and label.endswith(", final"):
            kind = comparison.interval
            cells = (cell_interval(label, one, kind, comparison.asked) for one in found)
            lines.append([f"  {100 * comparison.level:g} % ({kind})", *cells])
    return lines


def spent_of(comparison: Comparison, measure: str) -> list[list[str]]:
    """What it took to reach the target of a measure, as `numbers_of`; without queries where nobody asked any."""
    spent = comparison.spent[measure]
    labels = dict.fromkeys(label for found in spent for label in found)
    if not any(any(found["queries"].values) for found in spent if "queries" in found):
        labels.pop("queries", None)
    return [[label, *(cell_spent(found.get(label)) for found in spent)] for label in labels or ("rounds",)]


def lines_of(comparison: Comparison) -> list[list[str]]:
    """The comparison as lines of texts, each with a heading before the groups' cells."""
    lines = [["seeds", *map(seeds, comparison.groups)], *numbers_of(comparison)]
    for measure, level in comparison.targets.items():
        lines += [[f"{label} until {measure} {level:g}", *cells] for label, *cells in spent_of(comparison, measure)]
    for front in comparison.fronts:
        lines.append([front.heading, *(front.cell(group.name) for group in comparison.groups)])
    for key, values in comparison.differing.items():
        lines.append([key, *("(absent)" if value is None else str(value) for value in values)])
    return lines


def notes_of(comparison: Comparison) -> list[str]:
    """What the signs in the table mean, and what is not in them."""
    spent = [took for groups in comparison.spent.values() for found in groups for took in found.values()]
    missed = [NOT_IN] if any(took.median is None for took in spent) else []
    if all(len(group.runs) == 1 for group in comparison.groups):
        return missed
    notes = ["±: one sample standard deviation over the seeds"]
    if any(any(found) for found in comparison.intervals.values()):
        said = "by Student's t" if comparison.interval == "t" else "by the bootstrap (BCa)"
        notes.append(f"{100 * comparison.level:g} %: where the mean is, {said}, as far as seeds vary")
    if comparison.targets:
        notes.append("until: median over the runs, k of m of which came there (Kaplan-Meier)")
    return [*notes, *missed, ONE_TEST_SET] if comparison.one_test_set else [*notes, *missed]


def table_of(comparison: Comparison) -> tuple[tuple[str, ...], list[tuple[object, ...]]]:
    """Headings and lines of all numbers of all groups; of targets the median and how many runs came there."""
    headings = ("group", "number", "runs", "mean", "deviation", "low", "high", "interval", "median", "reached")
    lines: list[tuple[object, ...]] = []
    for place, group in enumerate(comparison.groups):
        for label, spread in group.numbers.items():
            found = comparison.intervals[label][place] if label in comparison.intervals else None
            ends = (None, None, None) if found is None else (found.low, found.high, found.kind)
            lines.append((group.name, label, len(spread.values), spread.mean, spread.deviation, *ends, None, None))
        for measure, level in comparison.targets.items():
            for label, took in comparison.spent[measure][place].items():
                name, nothing = f"{label} until {measure} {level:g}", (None,) * 5
                runs, came = len(took.values), sum(took.reached)
                lines.append((group.name, name, runs, *nothing, took.median, came))
    return headings, lines
