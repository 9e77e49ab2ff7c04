"""When the first clients worked, on which version of the model, and when they waited."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from fedsim.plots.style import INK, plain, save, short, whole_step, written

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm
    from matplotlib.figure import Figure

WORKS = 15
"""The part that is shown is so many times as long as the longest work, at most."""
PIECES = 75
"""And in it no client starts more often than this."""
CLOSINGS = 80
"""Up to so many closings of windows get a line each."""
COLOURS = 10
"""At most so many steps of colour."""
GROUPS = 4
"""At most so many groups are drawn."""
ALARM = "#CC3311"
LOOKS: dict[str, dict[str, Any]] = {
    "used": {"edgecolor": "white", "linewidth": 0.4},
    "late": {"edgecolor": INK, "linewidth": 0.9},
    "cancelled": {"alpha": 0.4, "edgecolor": INK, "linewidth": 0.0, "hatch": "//////"},
    "failed": {"alpha": 0.4, "edgecolor": ALARM, "linewidth": 0.0, "hatch": "xxxxxx"},
    "dropped": {"alpha": 0.4, "edgecolor": ALARM, "linewidth": 0.0, "hatch": "......"},
}
"""How the bars of an outcome look; those that are still at work and those that were lost look as if used."""
LEGEND = {
    "used": "at work",
    "late": "late: a window closed without it",
    "cancelled": "cancelled",
    "failed": "failed",
    "dropped": "dropped: no reply has arrived",
}

TraceSummary = Mapping[str, Any]


@dataclass(frozen=True)
class Work:
    """One order of one client; times in virtual seconds. stop: when work ended, or the end of what is known."""

    client: int
    version: int
    start: float
    stop: float
    used: float | None
    outcome: str


def timeline(trace: TraceSummary, path: Path) -> bool:
    """Draw the timeline of one run; see `timelines`."""
    return timelines({"": trace}, path)


def timelines(traces: Mapping[str, TraceSummary], path: Path) -> bool:
    """Draw when the first clients of each run worked, one run below the other, into `path`.

    traces: for each name the trace of a run. A client is a line and an order a bar, coloured by the version of the
    global model that the client started from; from the end of its work to the close of the window that took it the
    client idles, which is a thin line. Vertical lines are the closings of windows that took a reply of these clients.
    All runs have the same horizontal axis; it ends where a client would get more than `PIECES` bars or the longest
    work would fit `WORKS` times, and the picture says so. Runs after the first `GROUPS` are left out, which it says
    too. Returns False, and draws nothing, when in no run a client idles, or is late, or takes longer than another.
    """
    from matplotlib.figure import Figure

    found = {name: works_of(trace) for name, trace in traces.items() if trace["timeline"]}
    drawn = dict(list(found.items())[:GROUPS])
    if not any(map(_is_news, drawn.values())):
        return False
    shown = min(max(map(_end, drawn.values())), *map(limit_of, drawn.values()))
    heights = [0.9 + 0.17 * max(_clients(traces[name]), 8) for name in drawn]
    figure = Figure(figsize=(11.0, 0.9 + sum(heights)), layout="constrained")
    axes = figure.subplots(len(drawn), 1, squeeze=False, sharex=True, height_ratios=heights)[:, 0]
    entries: dict[str, Any] = {}
    for axis, (name, works) in zip(axes, drawn.items(), strict=True):
        entries |= _draw_run(figure, axis, name, traces[name], works, shown)
    axes[-1].set_xlabel("virtual time (s)", color=INK)
    axes[-1].set_xlim(min(work.start for works in drawn.values() for work in works), shown)
    if len(drawn) < len(found):
        figure.suptitle(f"the first {len(drawn)} of {len(found)} groups", fontsize=10, color=INK)
    figure.legend(
        list(entries.values()),
        list(entries),
        loc="outside lower center",
        ncols=len(entries),
        frameon=False,
        fontsize=9,
        labelcolor=INK,
    )
    save(figure, path)
    return True


def _draw_run(
    figure: Figure, axis: Axes, name: str, trace: TraceSummary, works: Sequence[Work], shown: float
) -> dict[str, Any]:
    """Draw a run up to a moment into a panel; returns what the legend has to name."""
    from matplotlib.ticker import MaxNLocator

    clients, population = _clients(trace), len(trace["participation"])
    entries: dict[str, Any] = {}
    title = [written(name)] if name else []
    if clients < population:
        title.append(f"the first {clients} of {population:,} clients")
    if shown < _end(works):
        title.append(f"the first part, up to {shown:,.4g} s")
    visible = [work for work in works if work.start < shown]
    if visible:
        colours = _colours([work.version for work in visible])
        entries |= _draw_works(axis, visible, colours)
        _name_versions(figure, axis, colours)
    closings = sorted({work.used for work in works if work.used is not None and work.used <= shown})
    if len(closings) > CLOSINGS:
        title.append(f"{len(closings)} moments at which work was taken are not drawn")
    elif closings:
        lines = axis.vlines(closings, -0.6, clients - 0.4, color="#999999", linewidth=0.5, zorder=0.9)
        entries["a window closes"] = lines
    axis.set_title(", ".join(title), loc="left", fontsize=10, color=INK)
    axis.set_ylim(clients - 0.4, -0.6)
    axis.set_ylabel("client", color=INK)
    if "clients" in trace:
        names = [short(name) for name in trace["clients"][:clients]]
        axis.set_yticks(range(len(names)), names)
    else:
        axis.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, steps=(1, 2, 5, 10)))
    plain(axis, grid=None)
    return entries


def works_of(trace: TraceSummary) -> list[Work]:
    """Read the orders of a trace; work that goes on lasts until the trace ends."""
    entries = trace["timeline"]
    return [
        Work(
            entry["client"],
            entry["version"],
            entry["start"],
            trace["until"] if entry["end"] is None else entry["end"],
            entry["used"],
            entry["outcome"],
        )
        for entry in entries
    ]


def _is_news(works: Sequence[Work]) -> bool:
    """Tell whether the clients are anything but equally quick and never waiting."""
    finished = [work for work in works if work.outcome != "working"]
    if any(work.outcome != "used" or work.used != work.stop for work in finished):
        return True
    durations = _durations(finished)
    return not np.allclose(durations, durations[:1], rtol=1e-6, atol=0.0)


def _durations(works: Sequence[Work]) -> list[float]:
    return [work.stop - work.start for work in works]


def _end(works: Sequence[Work]) -> float:
    """Find the last moment that is known."""
    return max(work.stop if work.used is None else work.used for work in works)


def limit_of(works: Sequence[Work]) -> float:
    """Find the time up to which a run's bars are wide enough to be read; infinite where all are."""
    longest = max(_durations([work for work in works if work.outcome != "working"]), default=math.inf)
    first = min((work.start for work in works), default=0.0)
    starts: dict[int, list[float]] = {}
    for work in works:
        starts.setdefault(work.client, []).append(work.start)
    return min([first + WORKS * longest, *(begun[PIECES] for begun in starts.values() if len(begun) > PIECES)])


def _clients(trace: TraceSummary) -> int:
    """Count the lines of a trace: the clients whose timeline it has."""
    return min(int(trace["timeline_clients"]), len(trace["participation"]))


def _colours(versions: Sequence[int]) -> ScalarMappable:
    """Give each version a colour; beyond `COLOURS` of them, equally many neighbours share one."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm, ListedColormap

    width = whole_step(max(versions) - min(versions) + 1, COLOURS - 1)
    edges = np.arange(min(versions) // width * width, max(versions) + width + 1, width)
    # Neither end: on the darkest colour no black edge is seen, and on white the lightest is faint.
    palette = ListedColormap(colormaps["viridis"](np.linspace(0.15, 0.95, len(edges) - 1)))
    return ScalarMappable(BoundaryNorm(edges - 0.5, palette.N), palette)


def _name_versions(figure: Figure, axis: Axes, colours: ScalarMappable) -> None:
    """Set a bar of the colours beside a panel, each with its versions."""
    edges = (np.asarray(cast("BoundaryNorm", colours.norm).boundaries) + 0.5).astype(int)
    bar = figure.colorbar(colours, ax=axis, label="version of the model", pad=0.01, aspect=30)
    steps = [(low, high - 1) for low, high in pairwise(edges)]
    bar.set_ticks(
        [(low + high) / 2 for low, high in steps],
        labels=[str(low) if low == high else f"{low}–{high}" for low, high in steps],
    )
    bar.minorticks_off()
    bar.ax.tick_params(length=0, labelsize=8, labelcolor=INK)
    bar.outline.set_visible(False)


def _draw_works(axis: Axes, works: Sequence[Work], colours: ScalarMappable) -> dict[str, Any]:
    """Draw bars, waits and crosses into a panel; returns what its legend has to name."""
    from matplotlib.patches import Patch

    entries: dict[str, Any] = {}
    for outcome, look in LOOKS.items():
        bars = [work for work in works if _look(work) == outcome]
        if bars:
            axis.barh(
                [work.client for work in bars],
                _durations(bars),
                left=[work.start for work in bars],
                height=0.72,
                color=colours.to_rgba(np.array([work.version for work in bars])),
                **look,
            )
            entries[LEGEND[outcome]] = Patch(facecolor="#AAAAAA", **look)
    waits = [(work.client, work.stop, work.used) for work in works if work.used is not None and work.used != work.stop]
    if waits:
        entries["idle until its window closes"] = axis.hlines(*zip(*waits, strict=True), color=INK, lw=1.0)
    lost = [work for work in works if work.outcome == "lost"]
    if lost:
        where = [work.stop for work in lost]
        (entries["lost"],) = axis.plot(where, [work.client for work in lost], "X", color=ALARM, markersize=7, zorder=3)
    return entries


def _look(work: Work) -> str:
    return work.outcome if work.outcome in LOOKS else "used"
