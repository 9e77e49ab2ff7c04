"""What runs measured against the round, and side by side also against virtual time, queries, bytes and privacy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedsim.core.measures import NOTHING, UNDEFINED, Asked, attack_of, first, is_measure, lower_is_better
from fedsim.plots.style import BRIGHT, INK, STYLES, WIDE, grid_of, legend_below, named, plain, save, written

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
        "faults",
        "bytes_up",
        "bytes_down",
        "queries",
        "extra_queries",
        "staleness",
        "personal_untrained",
        "epsilon",
        "delta",
        "clip",
        "unclipped",
    ]
)
WHOSE = {
    "validation_client": "clients, for validation",
    "validation_personal": "own models, for validation",
    "validation_newcomer": "newcomers, for validation",
    "validation": "validation set",
    "global_train": "training set",
    "train": "local training",
    "test": "test set",
    "client": "clients",
    "personal": "own models",
    "newcomer": "newcomers",
}
"""Prefixes of columns: the global model on all training examples, the clients' own models while they train, ..."""
COLOURS = {
    "validation_client": BRIGHT[4],
    "validation_personal": BRIGHT[3],
    "validation_newcomer": BRIGHT[5],
    "validation": BRIGHT[3],
    "global_train": BRIGHT[5],
    "train": BRIGHT[1],
    "test": BRIGHT[0],
    "client": BRIGHT[2],
    "personal": BRIGHT[0],
    "newcomer": BRIGHT[5],
}
STATISTICS = {
    "mean": ", mean",
    "p10": ", 10th percentile",
    "p90": ", 90th percentile",
    "worst": ", worst",
}
"""Endings of columns: what of the clients' numbers they are."""
NAMES = {"value": "value of F", "gap": "gap F − F*"}
"""Columns that are said in words of their own."""
UNITS = {"accuracy": "accuracy (share of examples)"}
AXES = {
    "round": "round",
    "time": "virtual time (s)",
    "queries": "queries of all clients, extra ones included",
    "bytes": "sent up by all clients",
    "down": "sent down to all clients",
    "epsilon": "privacy spent (epsilon)",
}
COUNTED = {"queries": "queries", "bytes": "bytes_up", "down": "bytes_down"}
"""Axes along which a column of the rows is added up from the start."""
BYTES = ("bytes", "down")
"""Those of them that are counted in bytes."""
ROWS = 4
"""Of so many measures runs are compared in one picture, at most."""
INSIDE = 4
"""Of more lines than these a run's legend stands beside the panel."""

Row = Mapping[str, Any]
Runs = Mapping[str, Sequence[Sequence[Row]]]
"""For the name of each group the rows of its runs, one run a seed."""
Along = Literal["round", "time", "queries", "bytes", "down", "epsilon"]
Line = NDArray[np.float64]


def measured(columns: Iterable[str], asked: Asked = NOTHING) -> list[str]:
    """Pick the columns that say how well a run does: measures, and whatever has a prefix of `WHOSE` and is no count.

    Where there are none it is all but the bookkeeping: a strategy's own observations. asked: which way measures improve
    that were asked for, here and below.
    """
    own = [column for column in columns if column not in BOOKKEEPING and not column.endswith(UNDEFINED)]
    return [column for column in own if _whose(column) or is_measure(column, asked)] or own


def ranked(columns: Iterable[str], asked: Asked = NOTHING) -> list[str]:
    """The measured columns that would hide no others, in the order in which they are shown."""
    clear = [column for column in measured(columns, asked) if not _is_noise(column, asked)]
    return sorted(clear, key=lambda column: _place(column, asked))


def curves(rows: Sequence[Row], path: Path | BytesIO, asked: Asked = NOTHING) -> bool:
    """Draw what a run measured against the round, one panel a quantity (loss, accuracy, ...), into `path`.

    The clients are a line for their mean and a band from their 10th percentile to it. Missing values are
    skipped. Returns False, and draws nothing, when no number was measured.
    """
    panels: dict[str, dict[str, Line]] = {}
    for column in measured(_columns(rows), asked):
        line = _line(rows, column, "round")
        if line.shape[1] and not _is_noise(column, asked):
            panels.setdefault(_quantity(column, asked), {})[column] = line
    if not panels:
        return False
    figure, axes = grid_of(len(panels))
    for axis, quantity in zip(axes, _in_order(panels, asked), strict=True):
        lines = list(panels[quantity].values())
        _draw_quantity(axis, panels[quantity], asked)
        _scale(axis, quantity, lines, asked)
        axis.set_ylabel(_unit(panels[quantity], asked), color=INK)
        _finish(axis, "round", lines)
        if len(panels[quantity]) > 1 or quantity not in panels[quantity]:  # else the axis says it all
            beside: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)} if len(lines) > INSIDE else {}
            axis.legend(frameon=False, fontsize=9, labelcolor=INK, **beside)
    save(figure, path)
    return True


def axes_of(runs: Runs) -> dict[Along, bool]:
    """Find the horizontal axes that runs can be drawn along, and whether they are where none is asked for.

    The round always is; virtual time where it is not the round in another unit, the same for all runs; queries where
    any run has asked one; bytes sent up, or down, where a round of one run takes more than twice those of another's;
    the privacy spent where any run says what it is.
    """
    axes: dict[Along, bool] = {"round": True}
    if any(_line(rows, "time", "round").size for group in runs.values() for rows in group):
        axes["time"] = _time_is_news(runs)
    if any(row.get("queries") for group in runs.values() for rows in group for row in rows):
        axes["queries"] = True
    ways: tuple[Along, ...] = ("bytes", "down")
    for way in ways:
        rates = [rate for group in runs.values() for rows in group if (rate := _bytes_a_round(rows, COUNTED[way])) > 0]
        if rates:
            axes[way] = max(rates) > 2 * min(rates)
    if any(_line(rows, "epsilon", "round").size for group in runs.values() for rows in group):
        axes["epsilon"] = True
    return axes


def compare_curves(runs: Runs, path: Path | BytesIO, along: Sequence[Along] = (), asked: Asked = NOTHING) -> bool:
    """Draw groups of runs into the same panels: a line of panels for what was measured, one for each axis of `along`.

    runs: for each name the rows of its runs, one run a seed. along: axes, by default those of `axes_of`. Of more than
    `ROWS` measures those of `FIRST` and the test set's accuracies under attack are shown, then the others. A line is
    the mean over a group's seeds,
    its band one sample standard deviation to each side. Against the round both stand only where every seed of the
    group has a number. Along the other axes a run has at each place the number measured last, so a line is a
    staircase, from the place at which every seed has a number to the end of the first seed that ends; a run gets no
    credit for a model before it exists. Queries and bytes are summed over all clients from the first round on; runs
    without any have no line there. Returns False, and draws nothing, when no number was measured.
    """
    along = list(along) or [axis for axis, shown in axes_of(runs).items() if shown]
    panels: dict[str, dict[Along, dict[str, Line]]] = {}
    for column in ranked(_columns(row for group in runs.values() for rows in group for row in rows), asked):
        drawn = {axis: bands for axis in along if (bands := _bands(runs, column, axis))}
        if drawn:
            panels[column] = drawn
    shown = _in_order([*panels][:ROWS], asked)
    if not shown:
        return False
    figure, grid = _grid(len(shown), len(along))
    entries: dict[str, Any] = {}
    for axes, column in zip(grid, shown, strict=True):
        found = panels[column]
        for axis, kind in zip(axes, along, strict=True):
            if kind not in found:  # as in rows that lack the time
                axis.remove()
                continue
            entries |= _draw_groups(axis, found[kind], runs, kind)
            _finish(axis, kind, [band[:2] for band in found[kind].values()])
        leftmost = next(axis for axis, kind in zip(axes, along, strict=True) if kind in found)
        leftmost.set_title(_heading(column, asked), loc="left", fontsize=10, color=INK)
        leftmost.set_ylabel(_unit([column], asked) + _statistic(column), color=INK)
        leftmost.tick_params(labelleft=True)
        lines = [band[:2] for bands in found.values() for band in bands.values()]
        _scale(leftmost, _quantity(column, asked), lines, asked)
    labels = [label for name, group in runs.items() if (label := named(name, len(group))) in entries]
    several = any(len(group) > 1 for group in runs.values())
    title = "band: one sample standard deviation over the seeds" if several else None
    legend_below(figure, {label: entries[label] for label in labels}, title)
    save(figure, path)
    return True


def _draw_groups(axis: Axes, bands: Mapping[str, Line], runs: Runs, along: Along) -> dict[str, Any]:
    """Draw the groups that have a band into a panel; returns the lines by their labels."""
    entries = {}
    step: Literal["post"] | None = None if along == "round" else "post"
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


def _draw_quantity(axis: Axes, lines: Mapping[str, Line], asked: Asked) -> None:
    """Draw the lines of one quantity; the clients' 10th percentile is a band where their mean is known."""
    used: dict[str, str] = {}
    for column, (rounds, values) in lines.items():
        of_mean = column.removesuffix("_p10") + "_mean"
        mean = lines.get(of_mean)
        if column.endswith("_p10") and mean is not None and len(rounds) > 1 and np.array_equal(mean[0], rounds):
            label = f"{WHOSE[_whose(column)]}{_under(column, asked)}, 10th percentile to mean"
            colour = used.get(of_mean, COLOURS[_whose(column)])
            axis.fill_between(rounds, values, mean[1], color=colour, alpha=0.18, linewidth=0, label=label)
            continue
        wished = ((COLOURS.get(_whose(column), BRIGHT[0]),) if not attack_of(column, asked) else ()) + BRIGHT
        taken = list(used.values())
        colour = min(wished, key=lambda colour: (taken.count(colour), wished.index(colour)))
        axis.plot(
            rounds,
            values,
            color=colour,
            linestyle=STYLES[taken.count(colour) % len(STYLES)],
            linewidth=1.6,
            marker=_mark(rounds),
            label=_label(column, asked),
        )
        used[column] = colour


def _place(column: str, asked: Asked) -> float:
    """Say how soon a column is shown: as in `FIRST`, the accuracy under attack next to the clean one."""
    order = first(asked)
    if attack_of(column, asked) and column.startswith("test_") and column.endswith("_accuracy"):
        return 0.5
    return order.index(column) if column in order else len(order)


def _time_is_news(runs: Runs) -> bool:
    """Tell whether rows have a time that is not one common factor times their round."""
    lines = [_line(rows, "time", "round") for group in runs.values() for rows in group]
    points = np.concatenate([*lines, np.zeros((2, 1))], axis=1)  # the clock starts with round 0
    rounds, times = points
    return not np.allclose(times * rounds.max(), rounds * times.max(), rtol=1e-6, atol=0.0)


def _bytes_a_round(rows: Sequence[Row], column: str) -> float:
    """Divide what all clients have sent, or were sent, by the rounds; 0 where either is not known."""
    rounds = max((row.get("round") or 0 for row in rows), default=0)
    return sum(row.get(column) or 0 for row in rows) / max(rounds, 1)


def _columns(rows: Iterable[Row]) -> dict[str, None]:
    return dict.fromkeys(name for row in rows for name in row)


def _whose(column: str) -> str:
    return next((prefix for prefix in WHOSE if column.startswith(f"{prefix}_")), "")


def _quantity(column: str, asked: Asked) -> str:
    """Name what a column measures: test_loss, train_loss and, under an attack, test_pgd20_loss are all a loss."""
    name = column.removeprefix(f"{_whose(column)}_").removeprefix(f"{attack_of(column, asked)}_")
    head, _, ending = name.rpartition("_")
    return head if ending in STATISTICS and head else name


def _is_noise(column: str, asked: Asked) -> bool:
    """Tell whether a column would hide the others: one client's, a spread, or a band for each attack."""
    return column.endswith(("_worst", "_std")) or (column.endswith(("_p10", "_p90")) and attack_of(column, asked) != "")


def _label(column: str, asked: Asked) -> str:
    """Say whose a column is; the axis says what it measures."""
    if not _whose(column):
        return NAMES.get(column, written(column.replace("_", " ")))
    return WHOSE[_whose(column)] + _under(column, asked) + _statistic(column)


def _heading(column: str, asked: Asked) -> str:
    """Say whose a column is, where the vertical axis does not say it all: "test set", "clients under pgd"."""
    return f"{WHOSE[_whose(column)]}{_under(column, asked)}" if _whose(column) else ""


def _unit(columns: Iterable[str], asked: Asked) -> str:
    """Say what the vertical axis of columns measures, which are of one quantity."""
    one, *more = columns
    quantity = _quantity(one, asked)
    words = UNITS.get(quantity, written(quantity.replace("_", " ")))
    return words if more else NAMES.get(one, words)


def _under(column: str, asked: Asked) -> str:
    """Name the attack that a column is about."""
    attack = attack_of(column, asked)
    return f" under {written(attack.replace('_', ' '))}" if attack else ""


def _statistic(column: str) -> str:
    return STATISTICS.get(column.rpartition("_")[2], "")


def _in_order(names: Iterable[str], asked: Asked) -> list[str]:
    """Values, losses and accuracies first, then the rest as they come."""
    order = ("value", "gap", "loss", "accuracy")
    quantities = {name: _quantity(name, asked) for name in names}
    return sorted(quantities, key=lambda name: [*order, quantities[name]].index(quantities[name]))


def _places(rows: Sequence[Row], along: Along) -> list[Any]:
    """Find where along an axis each row stands; None where that is not known, or nothing has been counted yet."""
    if along in COUNTED:
        return [total or None for total in accumulate(row.get(COUNTED[along]) or 0 for row in rows)]
    return [row.get(along) for row in rows]


def _line(rows: Sequence[Row], column: str, along: Along) -> Line:
    """Select places along an axis, and values of a column, where both are finite numbers: [2, points].

    A model that was judged several times has several rows at one place; the last of them counts.
    """
    points = {
        place: row[column]
        for place, row in zip(_places(rows, along), rows, strict=True)
        if all(isinstance(found, (int, float)) and math.isfinite(found) for found in (place, row.get(column)))
    }
    return np.array(list(points.items()), dtype=np.float64).reshape(-1, 2).T


def _bands(runs: Runs, column: str, along: Along) -> dict[str, Line]:
    """Find where the runs of each group have numbers, their mean and sample standard deviation: [3, points].

    A group without a common point is left out.
    """
    common = _common_rounds if along == "round" else _common_places
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
        return _common_places(lines)
    return rounds, np.array([line[1][np.isin(line[0], rounds)] for line in lines])


def _common_places(lines: Sequence[Line]) -> tuple[Line, Line]:
    """Find the places at which a line changes while all are known [points], and their values there [lines, points]."""
    places = np.unique(np.concatenate([line[0] for line in lines]))
    places = places[(places >= max(line[0][0] for line in lines)) & (places <= min(line[0][-1] for line in lines))]
    return places, np.array([line[1][np.searchsorted(line[0], places, side="right") - 1] for line in lines])


def _mark(where: Line) -> str | None:
    """Mark a single point, which has no line to see."""
    return "o" if len(where) == 1 else None


def _grid(measures: int, kinds: int) -> tuple[Figure, list[list[Axes]]]:
    """Make a figure of a line of panels a measure, which share a vertical axis; of one kind, several a line."""
    from matplotlib.figure import Figure

    if kinds == 1:
        figure, axes = grid_of(measures)
        return figure, [[axis] for axis in axes]
    figure = Figure(figsize=(0.6 + 4.2 * kinds, 2.9 * measures), layout="constrained")
    return figure, figure.subplots(measures, kinds, sharey="row", squeeze=False).tolist()


def _scale(axis: Axes, quantity: str, lines: Sequence[Line], asked: Asked) -> None:
    """Give a positive quantity that is no share, and spans more than two powers of ten, a logarithmic axis.

    A gap that is closed, or that rounding has made negative, is then below the axis.
    """
    values = np.concatenate([line[1] for line in lines])
    positive = values[values > 0]
    share = asked[quantity] if quantity in asked else is_measure(quantity) and not lower_is_better(quantity)
    if share or (len(positive) < len(values) and quantity != "gap"):
        return
    if max(positive, default=0.0) > WIDE * min(positive, default=0.0):
        axis.set_yscale("log")
        axis.set_ylim(bottom=positive.min() / 1.5)  # else a band that comes close to 0 would decide


def _finish(axis: Axes, along: Along, lines: Sequence[Line]) -> None:
    """Name and divide the horizontal axis. Counts are on a logarithmic one where some runs end far beyond others."""
    from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter

    where = np.concatenate([line[0] for line in lines])
    ends = [line[0][-1] for line in lines]
    axis.set_xlabel(AXES[along], color=INK)
    if along in BYTES or (along == "queries" and max(ends) > WIDE * min(ends)):
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1.0,) if where.max() > WIDE * where.min() else (1.0, 2.0, 5.0)))
        axis.xaxis.set_minor_formatter(NullFormatter())
    else:
        axis.xaxis.set_major_locator(
            MaxNLocator(integer=along not in ("time", "epsilon"), nbins=7, steps=(1, 2, 5, 10))
        )
    if along in COUNTED:
        axis.xaxis.set_major_formatter(EngFormatter(unit="B" if along in BYTES else ""))
    if where.min() == where.max():
        axis.set_xlim(*((where[0] / 2, where[0] * 2) if along in COUNTED else (where[0] - 1, where[0] + 1)))
    plain(axis, grid="both")
