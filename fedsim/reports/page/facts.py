"""What the page says: tables and sentences, as its template writes them."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.core.measures import is_measure, lower_is_better
from fedsim.core.terminal import printable
from fedsim.plots.personal import gain_of
from fedsim.reports.cells import cell, cell_spent, measure_of, seeds
from fedsim.reports.comparison import ONE_TEST_SET, Comparison
from fedsim.reports.numbers import Group
from fedsim.reports.page.again import Again, again
from fedsim.reports.page.costs import endings, failures, fronts, ledger, wrongs
from fedsim.reports.page.pictures import Gallery, adversaries, partitions
from fedsim.reports.page.seeds import told
from fedsim.reports.page.tables import Cell, Line, Table, spread_cell
from fedsim.reports.page.tried import main, search_lines, trials, tried
from fedsim.running.study import Study

NAMED = 3
"""So many groups are named in the title of a page."""


class Facts:
    """The facts of a comparison, each found when it is asked for."""

    def __init__(self, comparison: Comparison, study: Study | None) -> None:
        self._comparison, self._study = comparison, study
        self.groups = comparison.groups

    @cached_property
    def title(self) -> str:
        """What was compared, in a few words."""
        names = [group.name for group in self.groups]
        if len(names) <= NAMED:
            return " · ".join(names) or "no round yet"
        paths = [run.path for group in self.groups for run in group.runs if run.path is not None]
        holder = Path(os.path.commonpath(paths)).name if paths else ""
        return f"{printable(holder)}: {len(names)} groups" if holder else f"{len(names)} groups"

    @cached_property
    def lead(self) -> str:
        """How much was compared, and how it has ended."""
        runs = [run for group in self.groups for run in group.runs]
        counted = Counter(run.status for run in runs)
        said = ", ".join(f"{number} {status}" for status, number in counted.items())
        count = f"{_many(len(runs), 'run')} in {_many(len(self.groups), 'group')}"
        return f"{count}: {said}." if runs else "No run has a row yet."

    @cached_property
    def left_out(self) -> dict[str, str]:
        """The runs that are not shown, and why."""
        return {printable(str(path)): printable(why) for path, why in self._comparison.left_out.items()}

    @cached_property
    def verdict(self) -> list[str]:
        """Which group is best by what is said first of a run, and whether the seeds can tell; none of a search."""
        found = main(self._comparison)
        if found is None or self._study is not None:
            return []
        label, spreads = found
        asked = self._comparison.asked
        lower = lower_is_better(measure_of(label) or label, asked)
        order = sorted(spreads, key=lambda place: spreads[place].mean, reverse=not lower)[:2]
        said = [
            f"{self.groups[place].name} {cell(label, spreads[place], len(self.groups[place].runs), asked)}"
            for place in order
        ]
        if len(order) == 1:
            return [f"{label}: {said[0]}."]
        lines = [f"Best by {label} ({'lower' if lower else 'higher'} is better): {said[0]}; next {said[1]}."]
        lines += [f"{line}." for line in self._comparison.tests.lines]
        if self._comparison.one_test_set:
            lines.append(f"{ONE_TEST_SET[0].upper()}{ONE_TEST_SET[1:]}.")
        return lines

    @cached_property
    def summary(self) -> Table:
        """A line a group: how it ended, what it came to and what that cost."""
        labels, asked = self._comparison.labels, self._comparison.asked
        best = {label: self._best(label) for label in labels}
        targets = [
            (measure, level, label)
            for measure, level in self._comparison.targets.items()
            for label in dict.fromkeys(name for spent in self._comparison.spent[measure] for name in spent)
            or ("rounds",)
        ]
        lines = []
        for place, group in enumerate(self.groups):
            cells = [Cell(_statuses(group)), Cell(seeds(group), len(group.runs))]
            for label in labels:
                spread = group.numbers.get(label)
                cells.append(spread_cell(label, spread, len(group.runs), asked, marked=place in best[label]))
            for measure, _, label in targets:
                spent = self._comparison.spent[measure][place].get(label)
                cells.append(Cell(cell_spent(spent), None if spent is None else spent.median))
            lines.append(Line(group.name, tuple(cells), place))
        heads = [f"{label} until {measure} {level:g}" for measure, level, label in targets]
        return Table("summary", "What each group came to", ("group", "status", "seeds", *labels, *heads), tuple(lines))

    @cached_property
    def seeds(self) -> list[Table]:
        """What the seeds tell, in tables."""
        return list(told(self._comparison))

    def _best(self, label: str) -> set[int]:
        """The groups that are best by a measure; none where there is one group, or better has no meaning."""
        measure = measure_of(label)
        if measure is None or len(self.groups) < 2 or not is_measure(measure, self._comparison.asked):
            return set()
        means = {
            place: spread.mean
            for place, group in enumerate(self.groups)
            if (spread := group.numbers.get(label)) is not None and math.isfinite(spread.mean)
        }
        pick = min if lower_is_better(measure, self._comparison.asked) else max
        return {place for place, mean in means.items() if mean == pick(means.values())}

    @cached_property
    def sections(self) -> dict[str, str]:
        """The sections that have something to show: their headings by their names."""
        runs = [run for group in self.groups for run in group.runs]
        traced = [run.trace for run in runs if run.trace is not None]
        there = {
            "summary": "Summary",
            "tried": "" if self.tried is None else "Options and outcomes" if self._study is None else "Search",
            "curves": "Curves" if runs else "",
            "clients": "Clients" if any(run.clients for run in runs) else "",
            "personal": "Own models" if any("personal_loss" in (run.clients or {}) for run in runs) else "",
            "partition": "Partition" if self.partitions.pictures else "",
            "time": "Virtual time" if traced else "",
            "adversarial": "Adversarial images" if self.adversaries.pictures else "",
            "faults": "Faults" if runs else "",
            "ledger": "Ledger" if runs else "",
            "configuration": "Configuration" if runs else "",
            "versions": "Versions" if runs else "",
            "again": "Run it again" if runs else "",
        }
        return {name: heading for name, heading in there.items() if heading}

    @cached_property
    def tried(self) -> dict[str, Any] | None:
        """What was tried, as it is drawn; None: nothing that can be."""
        return tried(self._comparison, self._study)

    @cached_property
    def trials(self) -> Table | None:
        """The trials of a search; None: there was none."""
        return None if self._study is None else trials(self._study)

    @cached_property
    def search(self) -> list[str]:
        """How a search was made and what it came to."""
        return [] if self._study is None else search_lines(self._study)

    @cached_property
    def ledger(self) -> Table:
        """What each group has sent and asked."""
        return ledger(self.groups)

    @cached_property
    def fronts(self) -> Table | None:
        """Which groups none leaves behind for what it costs; None: there is nothing to weigh."""
        return fronts(self._comparison)

    @cached_property
    def wrongs(self) -> Table | None:
        """What has gone wrong in each group; None: nothing."""
        return wrongs(self.groups)

    @cached_property
    def endings(self) -> list[str]:
        """Why runs ended that did not just finish."""
        return endings(self.groups)

    @cached_property
    def failures(self) -> list[tuple[str, str]]:
        """What errors have said."""
        return failures(self.groups)

    @cached_property
    def partitions(self) -> Gallery:
        """Who has which labels."""
        return partitions(self.groups)

    @cached_property
    def own(self) -> list[str]:
        """For how many clients of each group their own models are better than the global one."""
        found = []
        for group in self.groups:
            gains = [gain for run in group.runs if (gain := gain_of(run.clients or {})) is not None]
            gain = np.concatenate([one[np.isfinite(one)] for one in gains] or [np.zeros(0)])
            if len(gain):
                better, worse = int((gain > 0).sum()), int((gain < 0).sum())
                as_good = len(gain) - better - worse
                said = f"better for {better:,} of {len(gain):,} clients, as good for {as_good:,}, worse for {worse:,}"
                found.append(f"{group.name}: own models are {said}.")
        return found

    @cached_property
    def adversaries(self) -> Gallery:
        """What attacks have made of an image."""
        return adversaries(self.groups)

    @cached_property
    def again(self) -> list[Again]:
        """How to run each group again."""
        return [again(group) for group in self.groups]

    @cached_property
    def configuration(self) -> Table:
        """A line an option: its value in each group, marked where groups differ."""
        configs = [group.runs[0].config for group in self.groups]
        keys = [key for key in dict.fromkeys(key for config in configs for key in config) if not _is_version(key)]
        return self._options("configuration", "Options of each group, as resolved", keys)

    @cached_property
    def versions(self) -> Table:
        """A line a package: its version in each group, marked where groups differ."""
        configs = [group.runs[0].config for group in self.groups]
        keys = [key for key in dict.fromkeys(key for config in configs for key in config) if _is_version(key)]
        return self._options("versions", "Versions that computed each group", keys)

    def _options(self, key: str, caption: str, keys: Sequence[str]) -> Table:
        differing = self._comparison.differing
        lines = [
            Line(
                printable(name.removeprefix("versions.")),
                tuple(_value(group.runs[0].config.get(name), name in differing) for group in self.groups),
                marked=name in differing,
            )
            for name in keys
        ]
        return Table(key, caption, ("option", *(group.name for group in self.groups)), tuple(lines))


def _is_version(key: str) -> bool:
    return key.startswith("versions.")


def _value(value: Any, marked: bool) -> Cell:
    """A value as a run's config.toml has it; what is absent is a dash."""
    number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
    return Cell("–" if value is None else printable(str(value)), number, marked)


def _statuses(group: Group) -> str:
    """How the runs of a group have ended: in a word, where all have ended alike."""
    counted = Counter(run.status for run in group.runs)
    return next(iter(counted)) if len(counted) == 1 else ", ".join(f"{n} {status}" for status, n in counted.items())


def _many(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number:,} {what}s"
