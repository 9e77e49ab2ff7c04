"""What groups of runs came to against what it cost them, and which of them none leaves behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.plots.style import BRIGHT, INK, WIDE, grid_of, legend_below, named, plain, save, written

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKS = ("o", "s", "^", "D", "v", "P", "X")
Values = Sequence[float]


@dataclass(frozen=True)
class Panel:
    """A number against a cost. groups: costs and values of each group's runs; no costs: it has nothing to pay.

    front: the groups that none leaves behind, from the cheapest on.
    """

    number: str
    cost: str
    groups: Mapping[str, tuple[Values, Values]]
    front: Sequence[str]


def costs(panels: Sequence[Panel], path: Path | BytesIO) -> bool:
    """Draw a panel for each: a point a group, with one sample deviation to each side, and a staircase along the front.

    A group without costs is a level to compare with. Returns False, and draws nothing, where there is no panel.
    """
    if not panels:
        return False
    figure, axes = grid_of(len(panels))
    entries: dict[str, Any] = {}
    several = False
    names = list(dict.fromkeys(name for panel in panels for name in panel.groups))
    for axis, panel in zip(axes, panels, strict=True):
        for name, (paid, values) in panel.groups.items():
            place = names.index(name)
            several = several or len(values) > 1
            colour, label = BRIGHT[place % len(BRIGHT)], named(name, len(values))
            if not paid:
                entries.setdefault(
                    label, axis.axhline(float(np.mean(values)), color=colour, linestyle="--", linewidth=1.2)
                )
                continue
            entries[label] = axis.errorbar(
                np.mean(paid),
                np.mean(values),
                xerr=_deviation(paid),
                yerr=_deviation(values),
                fmt=MARKS[place // len(BRIGHT) % len(MARKS)],
                color=colour,
                markersize=6,
                linewidth=1.0,
            )
        _stairs(axis, panel)
        axis.set_xlabel(written(panel.cost), color=INK)
        axis.set_ylabel(written(panel.number.replace("_", " ")), color=INK)
        plain(axis, grid="both")
    title = "bars: one sample standard deviation over the seeds; grey: what none leaves behind" if several else None
    legend_below(figure, entries, title or "grey: what none leaves behind")
    save(figure, path)
    return True


def _deviation(values: Values) -> float | None:
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def _stairs(axis: Axes, panel: Panel) -> None:
    """The front: from one of its groups on its value is to be had, until a better one is."""
    means = [tuple(map(np.mean, panel.groups[name])) for name in panel.front]
    where, values = np.array(means).T
    axis.step(where, values, where="post", color="#999999", linewidth=1.0, zorder=0)
    paid = [float(np.mean(own)) for own, _ in panel.groups.values() if own]
    if min(paid) > 0 and max(paid) > WIDE * min(paid):
        axis.set_xscale("log")
