"""A comparison of runs as tables for a terminal."""

from __future__ import annotations

import sys
from textwrap import fill

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table

from fedsim.core.terminal import printable
from fedsim.reports.cells import cell, cell_spent, seeds
from fedsim.reports.comparison import ONE_TEST_SET, Comparison

WIDEST = 22
"""Letters after which the name of a group and the value of an option go on in the next line."""


class _Tables:
    """A comparison to be printed: tables one below the other, each with as many groups as the terminal is wide for."""

    def __init__(self, comparison: Comparison) -> None:
        self._comparison = comparison

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.measure import Measurement

        comparison, unbounded = self._comparison, options.update(max_width=sys.maxsize)
        first, count = 0, len(comparison.groups)
        while first < count:
            last = first + 1
            table = _table(comparison, range(first, last))
            while last < count:
                wider = _table(comparison, range(first, last + 1))
                if Measurement.get(console, unbounded, wider).maximum > options.max_width:
                    break
                table, last = wider, last + 1
            if last < count:
                yield table
                yield ""
            else:
                table.caption = _caption(comparison)
                yield table
            first = last


def render(comparison: Comparison) -> RenderableType:
    """Lay out the comparison: a column a group; below the numbers the targets, and the options that differ."""
    return _Tables(comparison)


def _table(comparison: Comparison, shown: range) -> Table:
    """Lay out some of the groups, by their places."""
    from rich.table import Table
    from rich.text import Text

    groups = [comparison.groups[place] for place in shown]
    table = Table(show_edge=False)
    table.add_column(overflow="fold")
    for group in groups:
        table.add_column(Text(fill(group.name, WIDEST)), justify="right", overflow="fold")
    table.add_row("seeds", *(seeds(group) for group in groups), end_section=True)
    for label in comparison.labels:
        cells = (cell(label, group.numbers.get(label), len(group.runs), group.asked) for group in groups)
        table.add_row(Text(label), *cells)
    for measure, level in comparison.targets.items():
        spent = comparison.spent[measure]
        labels = dict.fromkeys(label for found in spent for label in found)
        if not any(any(found["queries"].values) for found in spent if "queries" in found):
            labels.pop("queries", None)
        table.add_section()
        table.add_row(Text(f"until {measure} {level:g}", style="italic"))
        for label in labels or ("rounds",):
            cells = (cell_spent(comparison.groups[place], measure, label, spent[place]) for place in shown)
            table.add_row(Text(f"  {label}"), *cells)
    if len(comparison.groups) > 1:
        table.add_section()
        table.add_row(Text("options that differ" + ("" if comparison.differing else ": none"), style="italic"))
    for key, values in comparison.differing.items():
        said = ("(absent)" if values[place] is None else str(values[place]) for place in shown)
        table.add_row(Text(printable(key)), *(Text(fill(printable(text), WIDEST)) for text in said))
    return table


def _caption(comparison: Comparison) -> str | None:
    """Say what the signs in the table mean, and what is not in them."""
    if all(len(group.runs) == 1 for group in comparison.groups):
        return None
    said = "±: one sample standard deviation over the seeds"
    if comparison.targets:
        said += "; n = k of m: over the k of m runs that came to it"
    return f"{said}\n{ONE_TEST_SET}" if comparison.one_test_set else said
