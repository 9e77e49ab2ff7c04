"""Pictures of a run: curves against the round, the label distribution of the clients, runs side by side.

Drawn with matplotlib's figures alone (no pyplot), so no global state is written. The colours are those of
Paul Tol's "bright" and "muted" sets, which people with colour blindness can tell apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedsim.runfolder import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BRIGHT = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377", "#7F7F7F")
MUTED = ["#332288", "#88CCEE", "#44AA99", "#117733", "#999933"]
MUTED += ["#DDCC77", "#CC6677", "#882255", "#AA4499", "#BBBBBB"]
STYLES = ("-", "--", ":", "-.")
INK = "#333333"

BARS = 40
"""Up to so many clients get a bar each."""
COLUMNS = 500
"""At most so many clients get a column of the heat map."""
BINS = 5
"""Quantile bins that stand in for classes when the targets are real numbers."""

BOOKKEEPING = ("round", "time", "wall", "clients", "bytes_up", "bytes_down", "queries", "failed")
WHOSE = {"train": "training", "test": "test set", "client": "clients"}
COLOURS = {"train": BRIGHT[1], "test": BRIGHT[0], "client": BRIGHT[2]}
UNITS = {"accuracy": "accuracy (share of examples)"}

Row = Mapping[str, Any]
Line = NDArray[np.float64]


def measured(columns: Iterable[str]) -> list[str]:
    """Pick the columns that say how well a run does: all but the bookkeeping.

    When there are train_, test_ or client_ columns, the others (a strategy's own observations) are left out.
    """
    own = [column for column in columns if column not in BOOKKEEPING]
    return [column for column in own if _whose(column)] or own


def curves(rows: Sequence[Row], path: Path) -> bool:
    """Draw what a run measured against the round, one panel a quantity (loss, accuracy, ...), into `path`.

    The clients are a line for their mean and a band from their 10th percentile to it. Missing values are
    skipped. Returns False, and draws nothing, when no number was measured. StorageError: the picture cannot
    be written.
    """
    panels: dict[str, dict[str, Line]] = {}
    for column in measured(_columns(rows)):
        line = _line(rows, column)
        if line.shape[1] and not _is_noise(column):
            panels.setdefault(_quantity(column), {})[column] = line
    if not panels:
        return False
    figure, axes = _figure(len(panels))
    for axis, quantity in zip(axes, _in_order(panels), strict=True):
        _draw_quantity(axis, panels[quantity])
        _finish(axis, quantity, list(panels[quantity].values()))
        if len(panels[quantity]) > 1 or quantity not in panels[quantity]:  # else the axis says it all
            axis.legend(frameon=False, fontsize=9, labelcolor=INK)
    _save(figure, path)
    return True


def compare_curves(runs: Mapping[str, Sequence[Sequence[Row]]], path: Path) -> bool:
    """Draw groups of runs into the same panels, one panel a column that was measured.

    runs: for each name the rows of its runs, one run a seed. A line is the mean over a group's seeds, its
    band one sample standard deviation to each side; both stand only at rounds for which every seed of the
    group has a number. Returns and raises like `curves`.
    """
    panels: dict[str, dict[str, Line]] = {}
    for column in measured(_columns(row for group in runs.values() for rows in group for row in rows)):
        bands = {name: _band([_line(rows, column) for rows in group]) for name, group in runs.items()}
        bands = {name: band for name, band in bands.items() if band.shape[1]}
        if bands and not _is_noise(column):
            panels[column] = bands
    if not panels:
        return False
    figure, axes = _figure(len(panels))
    entries = {}
    for axis, column in zip(axes, _in_order(panels), strict=True):
        for place, (name, group) in enumerate(runs.items()):
            if name not in panels[column]:
                continue
            rounds, mean, deviation = panels[column][name]
            colour, style = BRIGHT[place % len(BRIGHT)], STYLES[place % len(STYLES)]
            label = f"{name} ({len(group)} seeds)" if len(group) > 1 else name
            (entries[label],) = axis.plot(rounds, mean, style, color=colour, linewidth=1.6, marker=_mark(rounds))
            if len(group) > 1:
                low, high = mean - deviation, mean + deviation
                axis.fill_between(rounds, low, high, color=colour, alpha=0.18, linewidth=0)
        _finish(axis, _quantity(column), [band[:2] for band in panels[column].values()])
        axis.set_title(_heading(column), loc="left", fontsize=10, color=INK)
    several = any(len(group) > 1 for group in runs.values())
    figure.legend(
        list(entries.values()),
        list(entries),
        loc="outside lower center",
        ncols=min(3, len(entries)),
        frameon=False,
        fontsize=9,
        labelcolor=INK,
        title="band: one sample standard deviation over the seeds" if several else None,
        title_fontsize=8,
    )
    _save(figure, path)
    return True


def label_distribution(
    labels: NDArray[Any], offset: NDArray[Any], order: NDArray[Any], num_classes: int | None, path: Path
) -> None:
    """Draw which labels each client has, and how many examples, into `path`.

    labels: [n], classes 0 .. num_classes-1, or real targets (num_classes None), which are shown in
    quantile bins. Client c has the examples order[offset[c]:offset[c + 1]]; offset: [C + 1]. Up to `BARS`
    clients and ten classes are bars; more are a heat map, of at most `COLUMNS` clients evenly spaced by id.
    StorageError: the picture cannot be written.
    """
    clients = len(offset) - 1
    shown = np.unique(np.linspace(0, clients - 1, min(clients, COLUMNS)).round().astype(np.int64))
    if num_classes is None:
        names, classes = _bins(np.asarray(labels, dtype=np.float64))
    else:
        names, classes = [str(label) for label in range(num_classes)], np.asarray(labels)
    counts = np.zeros((len(shown), len(names)))
    for row, client in enumerate(shown):
        held = classes[order[offset[client] : offset[client + 1]]].astype(np.int64)
        counts[row] = np.bincount(held, minlength=len(names))
    kind = "class" if num_classes is not None else "target"
    if clients <= BARS and len(names) <= len(MUTED):
        figure = _bars(counts, names, kind)
    else:
        figure = _heat_map(counts, names, kind, clients)
    _save(figure, path)


def _bars(counts: Line, names: list[str], kind: str) -> Figure:
    """Draw horizontal bars, one a client; counts: [clients, classes]."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    clients, classes = counts.shape
    figure = Figure(figsize=(7.5, 1.6 + 0.2 * max(clients, 6)), layout="constrained")
    axis = figure.subplots()
    left = np.zeros(clients)
    for label in range(classes):
        axis.barh(
            np.arange(clients),
            counts[:, label],
            left=left,
            height=0.8,
            color=MUTED[label],
            edgecolor="white",
            linewidth=0.4,
            label=names[label],
        )
        left += counts[:, label]
    axis.set_ylim(clients - 0.4, -0.6)
    axis.set_xlabel("examples", color=INK)
    axis.set_ylabel("client", color=INK)
    axis.yaxis.set_major_locator(MaxNLocator(integer=True, steps=(1, 2, 5, 10)))
    axis.set_title(f"Labels of {clients:,} clients", loc="left", fontsize=11, color=INK)
    _plain(axis, grid="x")
    figure.legend(loc="outside right upper", title=kind, frameon=False, fontsize=9, title_fontsize=9, labelcolor=INK)
    return figure


def _heat_map(counts: Line, names: list[str], kind: str, clients: int) -> Figure:
    """Draw a column a client, its shares above and its size below; counts: [shown, classes]."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    shown, classes = counts.shape
    sizes = counts.sum(axis=1)
    # A client without examples has no shares: it is grey.
    shares = np.full_like(counts, np.nan)
    np.divide(counts, sizes[:, None], out=shares, where=sizes[:, None] > 0)
    figure = Figure(figsize=(9.0, 5.0), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    picture = above.imshow(
        shares.T,
        aspect="auto",
        interpolation="nearest",
        cmap=colormaps["Blues"].with_extremes(bad="#CCCCCC"),
        vmin=0.0,
        vmax=float(np.nanmax(shares, initial=0.0)) or 1.0,
        extent=(-0.5, clients - 0.5, classes - 0.5, -0.5),
    )
    figure.colorbar(picture, ax=above, label="share of the client's examples", pad=0.01).outline.set_visible(False)
    above.set_ylabel(kind, color=INK)
    if classes <= 12:
        above.set_yticks(np.arange(classes), names)
    else:
        above.yaxis.set_major_locator(MaxNLocator(integer=True, steps=(1, 2, 5, 10)))
    title = f"Labels of {clients:,} clients"
    if shown < clients:
        title += f": a sample of {shown:,}, evenly spaced by id"
    above.set_title(title, loc="left", fontsize=11, color=INK)
    below.stairs(sizes, np.linspace(-0.5, clients - 0.5, shown + 1), fill=True, color=BRIGHT[0])
    below.set_ylim(bottom=0)
    below.set_ylabel("examples", color=INK)
    below.set_xlabel("client", color=INK)
    below.xaxis.set_major_locator(MaxNLocator(integer=True, steps=(1, 2, 5, 10)))
    below.xaxis.set_major_formatter("{x:,.0f}")
    _plain(above, grid=None)
    _plain(below, grid="y")
    return figure


def _bins(targets: Line) -> tuple[list[str], NDArray[np.int64]]:
    """Cut real targets into quantile bins: their names, and the bin of each target, [n]."""
    edges = np.unique(np.quantile(targets, np.arange(BINS + 1) / BINS))
    if len(edges) == 1:
        return [f"{edges[0]:.3g}"], np.zeros(len(targets), dtype=np.int64)
    names = [f"{low:.3g} to {high:.3g}" for low, high in pairwise(edges)]
    return names, np.searchsorted(edges[1:-1], targets, side="right").astype(np.int64)


def _draw_quantity(axis: Axes, lines: Mapping[str, Line]) -> None:
    """Draw the lines of one quantity; the clients' 10th percentile is a band where their mean is known."""
    used: set[str] = set()
    for column, (rounds, values) in lines.items():
        mean = lines.get(column.removesuffix("_p10") + "_mean")
        if column.endswith("_p10") and mean is not None and len(rounds) > 1 and np.array_equal(mean[0], rounds):
            label = "clients, 10th percentile to mean"
            axis.fill_between(rounds, values, mean[1], color=COLOURS["client"], alpha=0.18, linewidth=0, label=label)
            continue
        wished = (COLOURS.get(_whose(column), BRIGHT[0]), *BRIGHT)
        colour = next((colour for colour in wished if colour not in used), INK)
        used.add(colour)
        axis.plot(
            rounds,
            values,
            color=colour,
            linewidth=1.6,
            marker=_mark(rounds),
            label=_label(column),
        )


def _columns(rows: Iterable[Row]) -> dict[str, None]:
    return dict.fromkeys(name for row in rows for name in row)


def _whose(column: str) -> str:
    prefix = column.partition("_")[0]
    return prefix if prefix in WHOSE and prefix != column else ""


def _quantity(column: str) -> str:
    """Name what a column measures: test_loss and train_loss are both a loss."""
    name = column.partition("_")[2] if _whose(column) else column
    for suffix in ("_mean", "_p10", "_worst"):
        name = name.removesuffix(suffix)
    return name


def _is_noise(column: str) -> bool:
    """Tell whether a column follows one client, the worst of a round, whose curve would hide the others."""
    return column.endswith("_worst")


def _label(column: str) -> str:
    """Say whose a column is; the axis says what it measures."""
    if not _whose(column):
        return column.replace("_", " ")
    return WHOSE[_whose(column)] + _statistic(column)


def _heading(column: str) -> str:
    """Put a whole column in words: "test accuracy", "client accuracy, 10th percentile"."""
    whose = _whose(column).replace("train", "training")
    return f"{whose} {_quantity(column).replace('_', ' ')}{_statistic(column)}".strip()


def _statistic(column: str) -> str:
    known = {"mean": ", mean", "p10": ", 10th percentile", "worst": ", worst"}
    return known.get(column.rpartition("_")[2], "")


def _in_order(names: Iterable[str]) -> list[str]:
    """Losses first, then accuracies, then the rest as they come."""
    first = ("loss", "accuracy")
    return sorted(names, key=lambda name: first.index(_quantity(name)) if _quantity(name) in first else len(first))


def _line(rows: Sequence[Row], column: str) -> Line:
    """Select rounds and values of a column where it is a finite number: [2, points]."""
    points = [
        (row["round"], row[column])
        for row in rows
        if isinstance(row.get(column), (int, float)) and np.isfinite(row[column])
    ]
    return np.array(points, dtype=np.float64).reshape(-1, 2).T


def _band(lines: Sequence[Line]) -> Line:
    """Find the rounds that all lines have, their mean and sample standard deviation: [3, points]."""
    common = set(lines[0][0]).intersection(*(line[0] for line in lines[1:])) if lines else set()
    rounds = np.array(sorted(common))
    values = np.array([line[1][np.isin(line[0], rounds)] for line in lines]).reshape(len(lines), -1)
    deviation = values.std(axis=0, ddof=1) if len(lines) > 1 else np.zeros_like(rounds)
    return np.stack((rounds, values.mean(axis=0), deviation)) if len(rounds) else np.zeros((3, 0))


def _mark(rounds: Line) -> str | None:
    """Mark a single point, which has no line to see."""
    return "o" if len(rounds) == 1 else None


def _figure(panels: int) -> tuple[Figure, list[Axes]]:
    """Make a figure of up to three panels a row."""
    from matplotlib.figure import Figure

    columns = min(panels, 3) if panels != 4 else 2
    rows = -(-panels // columns)
    figure = Figure(figsize=(0.6 + 4.2 * columns, 3.2 * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes[panels:]:
        axis.remove()
    return figure, axes[:panels]


def _finish(axis: Axes, quantity: str, lines: Sequence[Line]) -> None:
    """Name the axes; a positive quantity that spans more than two powers of ten gets a logarithmic axis."""
    from matplotlib.ticker import MaxNLocator

    values = np.concatenate([line[1] for line in lines])
    if "accuracy" not in quantity and values.min() > 0 and values.max() > 100 * values.min():
        axis.set_yscale("log")
    axis.set_xlabel("round", color=INK)
    axis.set_ylabel(UNITS.get(quantity, quantity.replace("_", " ")), color=INK)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7, steps=(1, 2, 5, 10)))
    rounds = np.concatenate([line[0] for line in lines])
    if rounds.min() == rounds.max():
        axis.set_xlim(rounds[0] - 1, rounds[0] + 1)
    _plain(axis, grid="both")


def _plain(axis: Axes, *, grid: Literal["both", "x", "y"] | None) -> None:
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axis.spines[side].set_color("#999999")
    axis.tick_params(colors=INK, labelsize=9)
    axis.set_axisbelow(True)
    if grid is not None:
        axis.grid(axis=grid, color="#E5E5E5", linewidth=0.6)


def _save(figure: Figure, path: Path) -> None:
    drawn = BytesIO()
    figure.savefig(drawn, format="png", dpi=150, facecolor="white")
    write_whole(path, drawn.getvalue())
