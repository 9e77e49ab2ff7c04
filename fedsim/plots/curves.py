"""Loss and accuracy against the round, and for runs side by side also against virtual time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedsim.plots.style import BRIGHT, INK, STYLES, named, plain, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BOOKKEEPING = frozenset(
    [
        "round",
        "time",
        "wall",
        "clients",
        "failed",
        "late",
        "crashed",
        "lost",
        "bytes_up",
        "bytes_down",
        "queries",
        "staleness",
    ]
)
WHOSE = {"global_train": "training set", "train": "local training", "test": "test set", "client": "clients"}
"""Prefixes of columns: the global model on all training examples, the clients' own models while they train, ..."""
COLOURS = {"global_train": BRIGHT[5], "train": BRIGHT[1], "test": BRIGHT[0], "client": BRIGHT[2]}
UNITS = {"accuracy": "accuracy (share of examples)"}
AXES = {"round": "round", "time": "virtual time (s)"}
COLUMNS = 4
"""At most so many measures stand beside each other where each has a panel a kind of time."""

Row = Mapping[str, Any]
Along = Literal["round", "time"]
Line = NDArray[np.float64]


def measured(columns: Iterable[str]) -> list[str]:
    """Pick the columns that say how well a run does: all but the bookkeeping.

    When there are columns of `WHOSE`, the others (a strategy's own observations) are left out.
    """
    own = [column for column in columns if column not in BOOKKEEPING]
    return [column for column in own if _whose(column)] or own


def curves(rows: Sequence[Row], path: Path) -> bool:
    """Draw what a run measured against the round, one panel a quantity (loss, accuracy, ...), into `path`.

    The clients are a line for their mean and a band from their 10th percentile to it. Missing values are
    skipped. Returns False, and draws nothing, when no number was measured.
    """
    panels: dict[str, dict[str, Line]] = {}
    for column in measured(_columns(rows)):
        line = _line(rows, column, "round")
        if line.shape[1] and not _is_noise(column):
            panels.setdefault(_quantity(column), {})[column] = line
    if not panels:
        return False
    figure, axes = _figure(len(panels))
    for axis, quantity in zip(axes, _in_order(panels), strict=True):
        _draw_quantity(axis, panels[quantity])
        _finish(axis, quantity, "round", list(panels[quantity].values()))
        if len(panels[quantity]) > 1 or quantity not in panels[quantity]:  # else the axis says it all
            axis.legend(frameon=False, fontsize=9, labelcolor=INK)
    save(figure, path)
    return True


def compare_curves(runs: Mapping[str, Sequence[Sequence[Row]]], path: Path) -> bool:
    """Draw groups of runs into the same panels: what was measured against the round, and below against virtual time.

    runs: for each name the rows of its runs, one run a seed. A line is the mean over a group's seeds, its
    band one sample standard deviation to each side. Against the round both stand only where every seed of the
    group has a number. Against time a run has at each moment the number measured last, so a line is a staircase,
    from the moment at which every seed has a number to the end of the first seed that ends; a run gets no credit
    for a model before it exists. Time is left out where it is the round in another unit, the same for all runs.
    Returns False, and draws nothing, when no number was measured.
    """
    measures = measured(_columns(row for group in runs.values() for rows in group for row in rows))
    along: list[Along] = ["round", "time"] if _time_is_news(runs) else ["round"]
    panels: dict[str, dict[Along, dict[str, Line]]] = {}
    for column in measures:
        drawn = {kind: _bands(runs, column, kind) for kind in along}
        if drawn["round"] and not _is_noise(column):
            panels[column] = drawn
    if not panels:
        return False
    figure, pairs = _paired_figure(len(panels)) if len(along) > 1 else _single_figure(len(panels))
    entries: dict[str, Any] = {}
    for pair, column in zip(pairs, _in_order(panels), strict=True):
        for axis, kind in zip(pair, along, strict=True):
            bands = panels[column][kind]
            if not bands:  # as in rows that lack the time
                axis.remove()
                continue
            entries |= _draw_groups(axis, bands, runs, kind)
            _finish(axis, _quantity(column), kind, [band[:2] for band in bands.values()])
            axis.set_title(_heading(column), loc="left", fontsize=10, color=INK)
    labels = [label for name, group in runs.items() if (label := named(name, len(group))) in entries]
    several = any(len(group) > 1 for group in runs.values())
    figure.legend(
        [entries[label] for label in labels],
        labels,
        loc="outside lower center",
        ncols=min(3, len(labels)),
        frameon=False,
        fontsize=9,
        labelcolor=INK,
        title="band: one sample standard deviation over the seeds" if several else None,
        title_fontsize=8,
    )
    save(figure, path)
    return True


def _draw_groups(
    axis: Axes, bands: Mapping[str, Line], runs: Mapping[str, Sequence[Sequence[Row]]], along: Along
) -> dict[str, Any]:
    """Draw the groups that have a band into a panel; returns the lines by their labels."""
    entries = {}
    step: Literal["post"] | None = "post" if along == "time" else None
    for place, (name, group) in enumerate(runs.items()):
        if name not in bands:
            continue
        where, mean, deviation = bands[name]
        colour, style = BRIGHT[place % len(BRIGHT)], STYLES[place % len(STYLES)]
        (line,) = axis.plot(where, mean, style, color=colour, linewidth=1.6, marker=_mark(where))
        if step is not None:
            line.set_drawstyle("steps-post")
        entries[named(name, len(group))] = line
        if len(group) > 1:
            low, high = mean - deviation, mean + deviation
            axis.fill_between(where, low, high, step=step, color=colour, alpha=0.18, linewidth=0)
    return entries


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


def _time_is_news(runs: Mapping[str, Sequence[Sequence[Row]]]) -> bool:
    """Tell whether rows have a time that is not one common factor times their round."""
    lines = [_line(rows, "time", "round") for group in runs.values() for rows in group]
    points = np.concatenate([*lines, np.zeros((2, 1))], axis=1)  # the clock starts with round 0
    rounds, times = points
    return not np.allclose(times * rounds.max(), rounds * times.max(), rtol=1e-6, atol=0.0)


def _columns(rows: Iterable[Row]) -> dict[str, None]:
    return dict.fromkeys(name for row in rows for name in row)


def _whose(column: str) -> str:
    return next((prefix for prefix in WHOSE if column.startswith(f"{prefix}_")), "")


def _quantity(column: str) -> str:
    """Name what a column measures: test_loss and train_loss are both a loss."""
    name = column.removeprefix(f"{_whose(column)}_")
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
    """Put a whole column in words: "test set: accuracy", "clients: accuracy, 10th percentile"."""
    whose = f"{WHOSE[_whose(column)]}: " if _whose(column) else ""
    return f"{whose}{_quantity(column).replace('_', ' ')}{_statistic(column)}"


def _statistic(column: str) -> str:
    known = {"mean": ", mean", "p10": ", 10th percentile", "worst": ", worst"}
    return known.get(column.rpartition("_")[2], "")


def _in_order(names: Iterable[str]) -> list[str]:
    """Losses first, then accuracies, then the rest as they come."""
    first = ("loss", "accuracy")
    return sorted(names, key=lambda name: first.index(_quantity(name)) if _quantity(name) in first else len(first))


def _line(rows: Iterable[Row], column: str, along: Along) -> Line:
    """Select rounds or times, and values of a column, where both are finite numbers: [2, points].

    A model that was judged several times has several rows of one round; the last of them counts.
    """
    points = {
        row[along]: row[column]
        for row in rows
        if all(isinstance(row.get(name), (int, float)) and np.isfinite(row[name]) for name in (along, column))
    }
    return np.array(list(points.items()), dtype=np.float64).reshape(-1, 2).T


def _bands(runs: Mapping[str, Sequence[Sequence[Row]]], column: str, along: Along) -> dict[str, Line]:
    """Find where the runs of each group have numbers, their mean and sample standard deviation: [3, points].

    A group without a common point is left out.
    """
    common = _common_times if along == "time" else _common_rounds
    bands = {}
    for name, group in runs.items():
        lines = [_line(rows, column, along) for rows in group]
        if not lines or not all(line.shape[1] for line in lines):
            continue
        where, values = common(lines)
        if len(where):
            deviation = values.std(axis=0, ddof=1) if len(lines) > 1 else np.zeros_like(where)
            bands[name] = np.stack((where, values.mean(axis=0), deviation))
    return bands


def _common_rounds(lines: Sequence[Line]) -> tuple[Line, Line]:
    """Find the rounds that all lines have [points], and the lines' values there [lines, points].

    Where runs were judged at moments of time, their rounds differ: then a line has the value of its last one.
    """
    rounds = np.array(sorted(set(lines[0][0]).intersection(*(line[0] for line in lines[1:]))))
    if len(rounds) < min(line.shape[1] for line in lines):
        return _common_times(lines)
    return rounds, np.array([line[1][np.isin(line[0], rounds)] for line in lines])


def _common_times(lines: Sequence[Line]) -> tuple[Line, Line]:
    """Find the times at which a line changes while all are known [points], and their values then [lines, points].

    Of several values at one time the last holds.
    """
    times = np.unique(np.concatenate([line[0] for line in lines]))
    times = times[(times >= max(line[0][0] for line in lines)) & (times <= min(line[0][-1] for line in lines))]
    return times, np.array([line[1][np.searchsorted(line[0], times, side="right") - 1] for line in lines])


def _mark(where: Line) -> str | None:
    """Mark a single point, which has no line to see."""
    return "o" if len(where) == 1 else None


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


def _single_figure(panels: int) -> tuple[Figure, list[tuple[Axes, ...]]]:
    figure, axes = _figure(panels)
    return figure, [(axis,) for axis in axes]


def _paired_figure(measures: int) -> tuple[Figure, list[tuple[Axes, ...]]]:
    """Make a figure of two panels a measure, one below the other, with the same vertical axis."""
    from matplotlib.figure import Figure

    lines = -(-measures // COLUMNS)
    columns = -(-measures // lines)
    figure = Figure(figsize=(0.6 + 4.2 * columns, 6.0 * lines), layout="constrained")
    axes = figure.subplots(2 * lines, columns, squeeze=False)
    pairs: list[tuple[Axes, ...]] = [
        (axes[2 * line, column], axes[2 * line + 1, column]) for line in range(lines) for column in range(columns)
    ]
    for above, below in pairs:
        below.sharey(above)
    for axis in (axis for pair in pairs[measures:] for axis in pair):
        axis.remove()
    return figure, pairs[:measures]


def _finish(axis: Axes, quantity: str, along: Along, lines: Sequence[Line]) -> None:
    """Name the axes; a positive quantity that spans more than two powers of ten gets a logarithmic axis."""
    from matplotlib.ticker import MaxNLocator

    values = np.concatenate([line[1] for line in lines])
    if "accuracy" not in quantity and values.min() > 0 and values.max() > 100 * values.min():
        axis.set_yscale("log")
    axis.set_xlabel(AXES[along], color=INK)
    axis.set_ylabel(UNITS.get(quantity, quantity.replace("_", " ")), color=INK)
    axis.xaxis.set_major_locator(MaxNLocator(integer=along == "round", nbins=7, steps=(1, 2, 5, 10)))
    where = np.concatenate([line[0] for line in lines])
    if where.min() == where.max():
        axis.set_xlim(where[0] - 1, where[0] + 1)
    plain(axis, grid="both")
