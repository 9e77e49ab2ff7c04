"""What a run came to, and a group of runs that differ in their seed alone.

What is said of a group is the mean over its runs and, from two runs on, the sample standard deviation
sqrt(sum_i (x_i - mean)^2 / (n - 1)).
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from fedsim.core.measures import Asked, attack_of, gains, is_measure, label_of, lower_is_better
from fedsim.plots import measured
from fedsim.reports.statistics import Reached
from fedsim.running.endings import ENDED
from fedsim.running.history import History, Row
from fedsim.running.stored import open_run

OF_CLIENTS = ("client_", "personal_", "newcomer_")
"""How columns begin that are of each client's examples."""
EPSILON = "privacy, epsilon"
"""The label of what a run has spent of its clients' privacy."""
HIDDEN = re.compile(
    r"(validation_)?(client_(\w+_)?|personal_|newcomer_)(accuracy|loss)_(mean|worst|std)|client_value_worst"
)
"""Columns of clients that say less than the one that is shown."""
HOPELESS = frozenset(status for status, well in ENDED.items() if not well)
"""How runs have ended that would not have come any further."""
COUNTS = {"queries": "queries", "extra_queries": "extra queries", "late": "late", "lost": "lost"}
"""Columns whose sum over the rows is a number of the run, and its label."""


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
    """A run as it was read. config: the options without the seed, keys of nested tables joined by dots.

    path: its folder; None: it is a result that was not saved, told is what it says as its trace, and came what it has
    come to, as in a summary. asked: which way measures improve that it was asked for.
    """

    path: Path | None
    seed: int | None
    config: Mapping[str, Any]
    history: History
    told: Mapping[str, Any] | None = None
    asked: Asked = field(default_factory=dict)
    came: Mapping[str, Any] | None = None

    @property
    def rows(self) -> list[Row]:
        """The rows of the run's metrics.jsonl."""
        return self.history.rows

    @cached_property
    def numbers(self) -> dict[str, float]:
        """What the run came to: final and best values of what it measured, and what that cost."""
        history = self.history
        numbers: dict[str, float] = {}
        for column in (column for column in measured(history.columns, self.asked) if not self._hidden(column)):
            # A final value that was not finite, or not measured any more, must not pass for the last one that was.
            final = None if self.summary.get("status") == "diverged" else history.last(column)
            numbers[f"{column}, final"] = math.nan if final is None else float(final)
            finite = [value for value in history[column] if value is not None]
            # The best of many robust accuracies says little.
            if is_measure(column, self.asked) and not attack_of(column, self.asked):
                pick = min if lower_is_better(column, self.asked) else max
                numbers[f"{column}, best"] = float(pick(finite, default=math.nan))
        finals = {label.removesuffix(", final"): value for label, value in numbers.items()}
        numbers |= {f"{column}, final": value for column, value in gains(finals).items()}
        for column, label in (
            ("round", "rounds done"),
            ("time", "virtual time (s)"),
            ("wall", "wall time (s)"),
            ("epsilon", EPSILON),
        ):
            if column in history.columns and (last := history.last(column)) is not None:
                numbers[label] = float(last)
        for column, label in (("bytes_up", "up (MiB)"), ("bytes_down", "down (MiB)")):
            if column in history.columns:
                numbers[label] = sum(value or 0 for value in history[column]) / 2**20
        # A row's staleness is a mean over its replies: a row of many replies says more.
        replies = [(row.get("clients") or 0, row["staleness"]) for row in history if row.get("staleness") is not None]
        if any(count for count, _ in replies):
            numbers["staleness, mean"] = sum(count * mean for count, mean in replies) / sum(c for c, _ in replies)
        for column, label in COUNTS.items():
            if column in history.columns:
                numbers[label] = float(sum(value or 0 for value in history[column]))
        return numbers

    def _hidden(self, column: str) -> bool:
        """Whether a column of clients says less than the one that is shown of the same measure."""
        whose = column.removeprefix("validation_")
        if not whose.startswith(OF_CLIENTS) or not column.endswith(("_mean", "_worst", "_std")):
            return HIDDEN.fullmatch(column) is not None
        return HIDDEN.fullmatch(column) is not None or label_of(column.removesuffix("_std"), self.asked) is not None

    def spent(self, measure: str, level: float) -> tuple[dict[str, float], bool]:
        """What it took until the measure was first as good as the level, and whether it ever was; else all it took.

        Rounds, and, where the rows have them, virtual seconds, queries and MiB sent up by all clients until then.
        """
        sign = -1.0 if lower_is_better(measure, self.asked) else 1.0
        row: Row = {}
        reached = False
        totals = dict.fromkeys((column for column in ("queries", "bytes_up") if column in self.history.columns), 0)
        for row in self.rows:
            for column in totals:
                totals[column] += row.get(column) or 0
            value = row.get(measure)
            if reached := value is not None and sign * value >= sign * level:
                break
        found = {name: row.get(column) for name, column in (("rounds", "round"), ("virtual time (s)", "time"))}
        found["queries"] = totals.get("queries")
        if "bytes_up" in totals:
            found["up (MiB)"] = totals["bytes_up"] / 2**20
        return {label: float(number) for label, number in found.items() if number is not None}, reached

    @cached_property
    def summary(self) -> Mapping[str, Any]:
        """What it has come to, as summary.json has it; empty while it is under way."""
        return (self.came if self.path is None else open_run(self.path).summary()) or {}

    @cached_property
    def status(self) -> str:
        """How it has ended, or that it has not; see `StoredRun.status`."""
        return str(self.summary["status"]) if self.path is None else open_run(self.path).status()

    @cached_property
    def trace(self) -> Mapping[str, Any] | None:
        """What it says of staleness, participation and the first clients; None without one. InputError: unreadable."""
        return self.told if self.path is None else open_run(self.path).trace()

    @cached_property
    def clients(self) -> Mapping[str, list[Any]] | None:
        """What its final model comes to on each client, as clients.csv has it; None without. InputError: unreadable."""
        return None if self.path is None else open_run(self.path).clients()


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone, ordered by it."""

    name: str
    runs: tuple[Run, ...]

    @cached_property
    def asked(self) -> Asked:
        """Which way measures improve that the runs were asked for."""
        return {label: higher for run in self.runs for label, higher in run.asked.items()}

    @cached_property
    def numbers(self) -> dict[str, Spread]:
        """The numbers of the runs, each over those runs that have it."""
        labels = dict.fromkeys(label for run in self.runs for label in run.numbers)
        return {
            label: Spread(tuple(run.numbers[label] for run in self.runs if label in run.numbers)) for label in labels
        }

    def by_seed(self, label: str) -> dict[Any, float]:
        """A number of those runs that have it, by their seeds; a run without one is like no other."""
        named = [(run.seed if run.seed is not None else (self.name, place), run) for place, run in enumerate(self.runs)]
        return {seed: run.numbers[label] for seed, run in named if label in run.numbers}

    def spent(self, measure: str, level: float) -> dict[str, Reached]:
        """What it took the runs to reach the level; of those that have not measured it nothing. See `Run.spent`.

        A run that diverged or stalled would never have reached it. It counts as one that went on without success as
        long as any of the group did.
        """
        runs = [run for run in self.runs if measure in run.history.columns]
        found = [run.spent(measure, level) for run in runs]
        spent: dict[str, Reached] = {}
        for label in dict.fromkeys(label for taken, _ in found for label in taken):
            longest = max(taken[label] for taken, _ in found if label in taken)
            values = [
                (longest if run.summary.get("status") in HOPELESS and not reached else taken[label], reached)
                for run, (taken, reached) in zip(runs, found, strict=True)
                if label in taken
            ]
            spent[label] = Reached(tuple(value for value, _ in values), tuple(reached for _, reached in values))
        return spent


def options_of(config: Mapping[str, Any]) -> dict[str, Any]:
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
