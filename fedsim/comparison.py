"""Runs side by side, as a table and as pictures.

Runs whose options (config.toml without `resolved`) differ in nothing but `seed` are one group. What is said of a
group is the mean over its runs and, from two runs on, the sample standard deviation
sqrt(sum_i (x_i - mean)^2 / (n - 1)).
"""

from __future__ import annotations

import json
import math
import os
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim.errors import InputError
from fedsim.history import History, Row
from fedsim.plots import compare_curves, histograms, measured, timelines
from fedsim.runfolder import METRICS, is_run, open_run

if TYPE_CHECKING:
    from rich.table import Table

FIRST = ("test_accuracy", "test_loss", "train_loss", "client_accuracy_p10")
"""What is shown first, in this order, where it was measured."""
HIDDEN = ("client_accuracy_mean", "client_accuracy_worst")
WHERE_ANY = ("staleness, mean", "late", "lost")
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
        others = [column for column in measured(history.columns) if column not in (*FIRST, *HIDDEN)]
        numbers: dict[str, float] = {}
        for column in (*(column for column in FIRST if column in history.columns), *others):
            # A final value that was not finite must not pass for the last one that was.
            final = history.last(column)
            numbers[f"{column}, final"] = math.nan if final is None else float(final)
            finite = [value for value in history[column] if value is not None]
            pick = max if "accuracy" in column else min if column.endswith(("loss", "error")) else None
            if pick is not None:
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
        for column in ("late", "lost"):
            if column in history.columns:
                numbers[column] = float(sum(value or 0 for value in history[column]))
        return numbers

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


@dataclass(frozen=True)
class Comparison:
    """Groups of runs, in the order in which they were named."""

    groups: tuple[Group, ...]

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The numbers that any group has, in the order of the table; of `WHERE_ANY` those that any has not zero."""
        return tuple(
            dict.fromkeys(
                label
                for group in self.groups
                for label, spread in group.numbers.items()
                if label not in WHERE_ANY or any(spread.values)
            )
        )

    @cached_property
    def differing(self) -> dict[str, tuple[Any, ...]]:
        """The options in which the groups differ: each group's value, None where it lacks the option."""
        configs = [group.runs[0].config for group in self.groups]
        keys = dict.fromkeys(key for config in configs for key in config)
        values = {key: tuple(config.get(key) for config in configs) for key in keys}
        return {key: found for key, found in values.items() if any(value != found[0] for value in found)}


def compare(paths: Sequence[Path]) -> Comparison:
    """Read runs and group them. paths: runs, or folders that hold runs (what `--seeds` writes).

    A run that is named twice counts once. Runs of equal seed and config are not replicas but results to be
    compared (of two versions of the code, say): they stand in different groups. InputError: there is no path,
    one holds no run, or a run cannot be read or has no row yet.
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
    return Comparison(tuple(Group(name, tuple(runs)) for name, runs in zip(names, groups, strict=True)))


def render(comparison: Comparison) -> Table:
    """Lay out the comparison: a column a group; below the numbers the options in which the groups differ."""
    from rich.table import Table
    from rich.text import Text

    table = Table(show_edge=False)
    table.add_column()
    for group in comparison.groups:
        table.add_column(Text(group.name), justify="right", overflow="fold")
    table.add_row("seeds", *(_seeds(group) for group in comparison.groups), end_section=True)
    for label in comparison.labels:
        table.add_row(label, *(_cell(group, label) for group in comparison.groups))
    if len(comparison.groups) > 1:
        table.add_section()
        table.add_row(Text("options that differ" + ("" if comparison.differing else ": none"), style="italic"))
    for key, values in comparison.differing.items():
        table.add_row(Text(key), *(Text("(absent)" if value is None else str(value)) for value in values))
    if any(len(group.runs) > 1 for group in comparison.groups):
        table.caption = "±: one sample standard deviation over the seeds"
    return table


def places(out: Path) -> tuple[Path, Path, Path]:
    """Name the pictures that `draw` may write: `out`, and beside it out-trace and out-timeline."""
    trace, timeline = (out.with_name(f"{out.stem}-{part}{out.suffix}") for part in ("trace", "timeline"))
    return out, trace, timeline


def draw(comparison: Comparison, out: Path) -> list[Path]:
    """Draw the groups into the files that `places(out)` names, and return those that were written.

    The curves; staleness and participation; the timelines of each group's first run. A picture that would show
    nothing is not drawn: see `plots.compare_curves`, `plots.histograms` and `plots.timelines`. Raises InputError when
    a trace cannot be read, before anything is drawn, and StorageError when a picture cannot be written.
    """
    groups = comparison.groups
    traces = {group.name: [run.trace for run in group.runs if run.trace is not None] for group in groups}
    curves, trace, timeline = places(out)
    drawn = {
        curves: compare_curves({group.name: [run.rows for run in group.runs] for group in groups}, curves),
        trace: histograms(traces, trace),
        timeline: timelines({name: found[0] for name, found in traces.items() if found}, timeline),
    }
    return [path for path, was_drawn in drawn.items() if was_drawn]


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


def _seeds(group: Group) -> str:
    """Say how many seeds a group has, and which."""
    seeds = [run.seed for run in group.runs]
    numbers = [seed for seed in seeds if seed is not None]
    if len(numbers) < len(seeds) or not numbers:
        return str(len(seeds))
    row = numbers == list(range(numbers[0], numbers[0] + len(numbers))) and len(numbers) > 2
    which = f"{numbers[0]} to {numbers[-1]}" if row else ", ".join(map(str, numbers))
    return f"{len(numbers)} ({which})"


def _cell(group: Group, label: str) -> str:
    """Write mean ± standard deviation; n where not every run of the group has the number."""
    spread = group.numbers.get(label)
    if spread is None:
        return "-"
    if not math.isfinite(spread.mean):
        return "not finite"
    if "accuracy" in label:
        mean, deviation = ".4f", ".4f"
    elif label.endswith((", final", ", best")):
        mean, deviation = ".4g", ".2g"
    else:  # what the run cost
        mean, deviation = ",.6g" if label == "rounds done" else ",.2f", ",.2f"
    text = f"{spread.mean:{mean}}"
    if spread.deviation is not None:
        text += f" ± {spread.deviation:{deviation}}"
    return text if len(spread.values) == len(group.runs) else f"{text} (n = {len(spread.values)})"
