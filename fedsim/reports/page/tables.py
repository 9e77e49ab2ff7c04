"""Tables as the page has them, and the cells of a group in them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fedsim.core.measures import Asked
from fedsim.reports.cells import cell
from fedsim.reports.numbers import Group, Spread


@dataclass(frozen=True)
class Cell:
    """A text, and what it is sorted by: a number, or the text itself. marked: it is the best, or differs."""

    text: str
    number: float | None = None
    marked: bool = False


@dataclass(frozen=True)
class Line:
    """A row of a table: its heading, its cells, and the place of the group that it is about; None: of none."""

    head: str
    cells: tuple[Cell, ...]
    group: int | None = None
    marked: bool = False


@dataclass(frozen=True)
class Table:
    """A table that can be sorted by each of its columns. key: its name in the page."""

    key: str
    caption: str
    heads: tuple[str, ...]
    lines: tuple[Line, ...]


def spread_cell(label: str, spread: Spread | None, runs: int, asked: Asked, *, marked: bool = False) -> Cell:
    """A number of a group's runs, sorted by its mean."""
    number = None if spread is None or not math.isfinite(spread.mean) else spread.mean
    return Cell(cell(label, spread, runs, asked), number, marked)


def totals(key: str, caption: str, groups: Sequence[Group], found: Sequence[Sequence[dict[str, float]]]) -> Table:
    """A line a group of what its runs have added up to. found: of each group's runs those totals that they have."""
    labels = dict.fromkeys(label for runs in found for run in runs for label in run)
    lines = []
    for place, (group, runs) in enumerate(zip(groups, found, strict=True)):
        spreads = [Spread(tuple(run[label] for run in runs if label in run)) for label in labels]
        cells = (
            spread_cell(label, spread if spread.values else None, len(group.runs), group.asked)
            for label, spread in zip(labels, spreads, strict=True)
        )
        lines.append(Line(group.name, tuple(cells), place))
    return Table(key, caption, ("group", *labels), tuple(lines))
