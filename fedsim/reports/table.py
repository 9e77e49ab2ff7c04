"""A comparison of runs as tables for a terminal."""

from __future__ import annotations

import sys
from textwrap import fill

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table

from fedsim.core.terminal import printable
from fedsim.reports.cells import seeds
from fedsim.reports.comparison import Comparison, notes_of, numbers_of, spent_of

WIDEST = 22
"""Letters after which the name of a group and the value of an option go on in the next line."""


class _Tables:
    """A comparison to be printed: tables one below the other, each with as many groups as the terminal is wide for."""

    def __init__(self, comparison: Comparison) -> None:
        self._comparison = comparison

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.measure import Measurement
        from rich.text import Text

        comparison, unbounded = self._comparison, options.update(max_width=sys.maxsize)
        first, count = 0, len(comparison.groups)
        cells = numbers_of(comparison), {measure: spent_of(comparison, measure) for measure in comparison.targets}
        while first < count:
            last = first + 1
            table = _table(comparison, *cells, range(first, last))
            while last < count:
                wider = _table(comparison, *cells, range(first, last + 1))
                if Measurement.get(console, unbounded, wider).maximum > options.max_width:
                    break
                table, last = wider, last + 1
            yield table
            if last < count:
                yield ""
            else:
                for lines, style in ((notes_of(comparison), "italic"), (comparison.tests.lines, "")):
                    for line in lines:
                        yield Text(fill(printable(line), options.max_width, subsequent_indent="  "), style=style)
            first = last


def render(comparison: Comparison) -> RenderableType:
    """Lay out the comparison: a column a group; numbers, targets, and options that differ; below it the verdicts."""
    return _Tables(comparison)


def _table(comparison: Comparison, numbers: list[list[str]], spent: dict[str, list[list[str]]], shown: range) -> Table:
    """Lay out some of the groups, by their places. numbers, spent: the lines of all groups."""
    from rich.table import Table
    from rich.text import Text

    groups = [comparison.groups[place] for place in shown]
    table = Table(show_edge=False)
    table.add_column(overflow="fold")
    for group in groups:
        table.add_column(Text(fill(group.name, WIDEST)), justify="right", overflow="fold")
    table.add_row("seeds", *(seeds(group) for group in groups), end_section=True)
    for heading, *cells in numbers:
        table.add_row(Text(heading), *(cells[place] for place in shown))
    for measure, level in comparison.targets.items():
        table.add_section()
        table.add_row(Text(f"until {measure} {level:g}", style="italic"))
        for heading, *cells in spent[measure]:
            table.add_row(Text(f"  {heading}"), *(cells[place] for place in shown))
    for label in dict.fromkeys(front.label for front in comparison.fronts):
        table.add_section()
        table.add_row(Text(f"{label}, for", style="italic"))
        for front in (front for front in comparison.fronts if front.label == label):
            where = (printable(front.cell(group.name)) for group in groups)
            table.add_row(Text(f"  {front.cost}"), *(Text(fill(text, WIDEST)) for text in where))
    if len(comparison.groups) > 1:
        table.add_section()
        table.add_row(Text("options that differ" + ("" if comparison.differing else ": none"), style="italic"))
    for key, values in comparison.differing.items():
        said = ("(absent)" if values[place] is None else str(values[place]) for place in shown)
        table.add_row(Text(printable(key)), *(Text(fill(printable(text), WIDEST)) for text in said))
    return table
