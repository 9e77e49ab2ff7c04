"""How stale the replies were and how often the clients took part, group by group."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedsim.plots.style import BRIGHT, INK, named, plain, save, whole_step

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BINS = 60
"""At most so many bars."""
GROUPS = 8
"""At most so many groups are drawn."""

TraceSummary = Mapping[str, Any]
Counted = tuple[NDArray[np.int64], NDArray[np.float64]]
"""Different whole numbers, ascending, and how often each occurs: two arrays of one length."""


@dataclass(frozen=True)
class _Quantity:
    """What a column of panels shows: its names, and how it is counted in a trace."""

    axis: str
    share: str
    counted: Callable[[TraceSummary], Counted]


def _staleness(trace: TraceSummary) -> Counted:
    pairs = sorted((int(staleness), count) for staleness, count in trace["staleness"].items())
    table = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1].astype(np.float64)


def _participation(trace: TraceSummary) -> Counted:
    values, counts = np.unique(np.array(trace["participation"], dtype=np.int64), return_counts=True)
    return values, counts.astype(np.float64)


QUANTITIES = (
    _Quantity("staleness of a reply (server steps)", "share of replies", _staleness),
    _Quantity("replies used of a client", "share of clients", _participation),
)


def histograms(groups: Mapping[str, Sequence[TraceSummary]], path: Path) -> bool:
    """Draw the staleness of the replies and the participation of the clients, a row of panels a group, into `path`.

    groups: for each name the traces of its runs, one run a seed; a group without traces is left out, and so are
    those after the first `GROUPS`, which the picture says. A bar is the mean over the seeds of the share of replies,
    or of clients. Bars and horizontal axes are the same for all groups. A quantity that takes one value in each run
    (all replies fresh, all clients equally often) has no panels. Returns False, and draws nothing, when both do.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    traced = [(place, name, traces) for place, (name, traces) in enumerate(groups.items()) if traces]
    drawn = traced[:GROUPS]
    counted = {
        quantity: [[quantity.counted(trace) for trace in traces] for _, _, traces in drawn] for quantity in QUANTITIES
    }
    counted = {
        quantity: found
        for quantity, found in counted.items()
        if any(len(values) > 1 for seeds in found for values, _ in seeds)
    }
    if not counted:
        return False
    figure = Figure(figsize=(0.6 + 4.8 * len(counted), 0.7 + 1.7 * len(drawn)), layout="constrained")
    axes = figure.subplots(len(drawn), len(counted), sharex="col", squeeze=False)
    for column, (quantity, found) in zip(axes.T, counted.items(), strict=True):
        edges = _edges([values for seeds in found for values, _ in seeds])
        for axis, seeds, (place, name, _) in zip(column, found, drawn, strict=True):
            _draw_shares(axis, edges, seeds, BRIGHT[place % len(BRIGHT)])
            axis.set_ylabel(quantity.share, color=INK, fontsize=9)
            axis.yaxis.set_major_locator(MaxNLocator(nbins=4, steps=(1, 2, 5, 10)))
            axis.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.3g} %")
            if axis in axes[:, 0]:
                axis.set_title(named(name, len(seeds)), loc="left", fontsize=10, color=INK)
        column[-1].set_xlabel(quantity.axis, color=INK)
        column[-1].xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, steps=(1, 2, 5, 10)))
    if len(drawn) < len(traced):
        figure.suptitle(f"the first {len(drawn)} of {len(traced)} groups", fontsize=10, color=INK)
    save(figure, path)
    return True


def _edges(values: Sequence[NDArray[np.int64]]) -> NDArray[np.float64]:
    """Cut the whole numbers that occur into at most `BINS` bins of a whole width: edges [bins + 1]."""
    present = np.concatenate(values)
    low, high = int(present.min()), int(present.max())
    width = whole_step(high - low + 1, BINS - 1)
    first = low // width * width
    return np.arange(first, high + width + 1, width, dtype=np.float64) - 0.5


def _draw_shares(axis: Axes, edges: NDArray[np.float64], seeds: Sequence[Counted], colour: str) -> None:
    """Draw bars, and say beside them what the mean and the extremes are."""
    shares = [np.histogram(values, edges, weights=counts / counts.sum())[0] for values, counts in seeds if len(values)]
    if not shares:
        axis.text(0.98, 0.95, "none", transform=axis.transAxes, ha="right", va="top", fontsize=8, color=INK)
        plain(axis, grid="y")
        return
    width = edges[1] - edges[0]
    axis.bar(edges[:-1] + width / 2, np.mean(shares, axis=0), width=0.9 * width, color=colour)
    mean = np.mean([np.average(values, weights=counts) for values, counts in seeds if len(values)])
    low, high = (pick(int(pick(values)) for values, _ in seeds if len(values)) for pick in (min, max))
    said = f"all {low:,}" if low == high else f"mean {mean:,.2f}, from {low:,} to {high:,}"
    axis.text(0.98, 0.95, said, transform=axis.transAxes, ha="right", va="top", fontsize=8, color=INK)
    axis.margins(y=0.25)  # room for the words above the bars
    plain(axis, grid="y")
