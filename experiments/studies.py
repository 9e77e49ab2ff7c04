"""What the comparisons' programs share: running the runs, the lines and numbers that are shown, and how they end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console

from fedsim.core.errors import FedsimError, InputError
from fedsim.plots.style import BRIGHT, INK, STYLES, plain, save
from fedsim.reports.numbers import Spread
from fedsim.running.sweep import Outcome, Point, run_points

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Numbers = NDArray[np.float64]
Judged = tuple[str, str, bool | None]
"""What is claimed, the numbers in words, and whether they bear it out; None: nothing is demanded of them."""
VERDICTS = {True: "holds", False: "FAILS", None: "measured"}
SHOWN = 5
"""Parts of the path of a run folder that tell its run from others."""


def run_all(
    points: Sequence[Point],
    workers: int | None = None,
    on_done: Callable[[Outcome], None] | None = None,
    *,
    accepted: Sequence[str] = ("finished",),
) -> None:
    """Run what is not finished. FedsimError: a run ended in another way than those accepted."""
    outcomes = run_points(points, workers=workers, on_done=on_done)
    failed = next((outcome for outcome in outcomes if outcome.status not in accepted), None)
    if failed is not None:
        raise FedsimError(f"{failed.point.folder}: {failed.status}: {failed.reason}")


def said(outcome: Outcome) -> None:
    """Say of a run that it is done."""
    if not outcome.skipped:
        typer.echo(f"{'/'.join(outcome.point.folder.parts[-SHOWN:])}: {outcome.status}")


def console(width: int) -> Console:
    """Where tables are printed: as wide as the terminal, or of that width where there is none."""
    return Console(width=None if sys.stdout.isatty() else width)


def cell(values: Numbers, digits: int) -> str:
    """Mean ± sample standard deviation of the seeds' numbers [S], with so many decimals."""
    spread = Spread(tuple(values.tolist()))
    return f"{spread.mean:.{digits}f}" + ("" if spread.deviation is None else f" ± {spread.deviation:.{digits}f}")


def band(axis: Axes, place: int, label: str, where: Numbers, curves: Numbers) -> None:
    """Draw the mean of the seeds' curves [S, T] at `where` [T], and a band of one deviation about it.

    place: the line's number, which decides its colour and style.
    """
    mean, colour = curves.mean(axis=0), BRIGHT[place % len(BRIGHT)]
    axis.plot(where, mean, STYLES[place % len(STYLES)], color=colour, linewidth=1.6, label=label)
    if len(curves) > 1:
        deviation = curves.std(axis=0, ddof=1)
        axis.fill_between(where, mean - deviation, mean + deviation, color=colour, alpha=0.12, linewidth=0)


@contextmanager
def picture(
    path: Path,
    across: str,
    up: str,
    *,
    size: tuple[float, float] = (6.4, 3.8),
    log: Literal["", "x", "y"] = "",
    letters: int = 9,
    **legend: Any,
) -> Iterator[Axes]:
    """The axes of a picture of one, which is written when they are drawn on. across, up: what their numbers are.

    log: whose numbers are on a logarithmic scale. letters: of the legend, which other options are of.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axis = figure.subplots()
    if log:
        getattr(axis, f"set_{log}scale")("log")
    yield axis
    axis.set_xlabel(across, color=INK)
    axis.set_ylabel(up, color=INK)
    axis.legend(frameon=False, fontsize=letters, labelcolor=INK, **legend)
    plain(axis, grid="both")
    save(figure, path)


@contextmanager
def concluding() -> Iterator[list[Judged]]:
    """Around a comparison: give the list to add its judged claims to, and tell them at the end.

    Ends the program with exit code 1 when a claim does not hold or a run failed, 2 for an input that cannot be used.
    """
    judged: list[Judged] = []
    try:
        yield judged
    except FedsimError as error:
        typer.echo(f"fedsim: {error}", err=True)
        raise typer.Exit(2 if isinstance(error, InputError) else 1) from None
    for text, told, holds in judged:
        typer.echo(f"{VERDICTS[holds]}: {text}: {told}")
    if any(holds is False for _, _, holds in judged):
        raise typer.Exit(1)
