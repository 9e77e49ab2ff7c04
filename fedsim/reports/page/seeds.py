"""What the seeds tell, as tables: where means are, and how every pair of groups was tested."""

from __future__ import annotations

from collections.abc import Iterator

from fedsim.reports.cells import cell_interval
from fedsim.reports.comparison import Comparison
from fedsim.reports.page.tables import Cell, Line, Table
from fedsim.reports.verdicts import Pair


def told(comparison: Comparison) -> Iterator[Table]:
    """The tables that have something to say."""
    found = {label: means for label, means in comparison.intervals.items() if any(means) and label.endswith(", final")}
    if found and comparison.interval is not None:
        kind, asked = comparison.interval, comparison.asked
        lines = []
        for place, group in enumerate(comparison.groups):
            means = [(label, intervals[place]) for label, intervals in found.items()]
            cells = (
                Cell(cell_interval(label, one, kind, asked), None if one is None else one.low) for label, one in means
            )
            lines.append(Line(group.name, tuple(cells), place))
        caption = f"Where the means of the groups are, with {100 * comparison.level:g} % confidence ({kind})"
        yield Table("means", caption, ("group", *found), tuple(lines))
    pairs = comparison.tests.pairs
    if any(pair.p is not None for pair in pairs):
        heads = (
            "measure",
            "group",
            "other",
            "difference",
            "interval",
            "test",
            "p",
            "p after Holm",
            "Hedges' g",
            "better",
        )
        shown = (pair for label in comparison.tested for pair in comparison.tests.shown(label))
        lines = [Line(pair.label, tuple(_cells(pair))) for pair in shown]
        which = "Pairs with the best" if len(lines) < len(pairs) else "Every pair"
        caption = f"{which} of the groups; p is corrected for {max(pair.family for pair in pairs)} tests"
        yield Table("tests", caption, heads, tuple(lines))


def _cells(pair: Pair) -> Iterator[Cell]:
    found, between = pair.difference, pair.difference.interval
    yield Cell(pair.one)
    yield Cell(pair.other)
    yield _number(found.mean)
    yield Cell("–") if between is None else Cell(f"{between.low:.3g} to {between.high:.3g}", between.low)
    yield Cell(found.test or found.why)
    for number in (found.p, pair.p, found.effect):
        yield _number(number)
    yield Cell(pair.better or "not told")


def _number(number: float | None) -> Cell:
    """A number in three digits; a dash for none, and for what is not finite."""
    return Cell("–") if number is None or number != number else Cell(f"{number:.3g}", number)
