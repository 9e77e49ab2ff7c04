"""`fedsim ls`: runs, a line each or a line for the seeds of one."""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from fedsim.cli.answers import Json, answering
from fedsim.cli.arguments import run_folders
from fedsim.cli.words import number_of, size_of
from fedsim.core.errors import InputError, one_line
from fedsim.core.near import name_one

if TYPE_CHECKING:
    from fedsim.reports.listing import Listed

RUNS = Path("runs")
"""Where runs are, if nothing else is said."""
SEED = re.compile(r"seed-\d+")
"""What the folder of one of several seeds is called."""
UNITS = ((60, 1, "s"), (3600, 60, "min"), (86400, 3600, "h"), (30 * 86400, 86400, "d"))
"""Up to how many seconds an age is said in a unit, and how many that is."""
FAULTS = 10
"""So many damaged runs are told of."""


def _statuses(incomplete: str) -> list[str]:
    """What a shell completes a status to."""
    from fedsim.reports.listing import STATUSES

    return [status for status in STATUSES if status.startswith(incomplete)]


def _orders(incomplete: str) -> list[str]:
    """What a shell completes an order to."""
    from fedsim.reports.listing import ORDERS

    return [order for order in ORDERS if order.startswith(incomplete)]


Folders = Annotated[
    list[Path] | None,
    typer.Argument(help="Run folders, or folders that hold runs; by default runs.", autocompletion=run_folders),
]


def ls(
    folders: Folders = None,
    status: Annotated[
        list[str] | None,
        typer.Option(
            help="Only such runs: finished, stopped, diverged, stalled, interrupted, failed, running, damaged; may be "
            "given several times.",
            autocompletion=_statuses,
        ),
    ] = None,
    sort: Annotated[str, typer.Option(help="when (the latest first), best or name.", autocompletion=_orders)] = "when",
    each: Annotated[bool, typer.Option("--each", help="A line a seed, not one for all seeds of a run.")] = False,
    as_json: Json = False,
) -> None:
    """List runs: how they have ended, when, how far they are, and the last and best value of their first measure."""
    from fedsim.reports.listing import STATUSES, ordered

    for named in status or ():
        if named not in STATUSES:
            raise InputError("status", named, name_one(named, STATUSES))
    with answering(as_json=as_json) as answer:
        runs = [run for run in ordered(found_in(folders), sort) if not status or run.status in status]
        for run in runs:
            answer.give(run.record())
        if as_json:
            return
        if not runs:
            answer.tell("no run is there")
            return
        groups = _each(runs) if each else grouped(runs)
        answer.lay_out(_table(groups, time.time()))
        for run in [run for run in runs if run.fault][:FAULTS]:
            answer.tell(one_line(f"damaged: {run.fault}"))


def found_in(folders: Sequence[Path] | None) -> list[Listed]:
    """The runs in folders that were named, or in `RUNS` if it is there."""
    from fedsim.reports.listing import listed

    return listed(folders or ([RUNS] if RUNS.is_dir() else []))


def _each(runs: Iterable[Listed]) -> list[tuple[str, list[Listed]]]:
    return [(str(run.folder), [run]) for run in runs]


def grouped(runs: Iterable[Listed]) -> list[tuple[str, list[Listed]]]:
    """Runs by what they are called: seeds of one experiment in one folder together, where the first of them is."""
    groups: dict[tuple[Path, str | None], list[Listed]] = {}
    for run in runs:
        is_seed = SEED.fullmatch(run.folder.name) is not None and not run.fault
        groups.setdefault((run.folder.parent, run.name) if is_seed else (run.folder, None), []).append(run)
    return [(str(members[0].folder if name is None else place), members) for (place, name), members in groups.items()]


def _table(groups: Sequence[tuple[str, Sequence[Listed]]], now: float) -> Table:
    measures = dict.fromkeys(run.measure for _, runs in groups for run in runs if run.measure)
    seeds = any(len(runs) > 1 for _, runs in groups)
    table = Table(show_edge=False, box=None, padding=(0, 1), pad_edge=False)
    table.add_column("run", overflow="fold", min_width=12)
    for heading in ("seeds",) * seeds + ("status", "ago", "rounds") + ("measure",) * (len(measures) > 1):
        table.add_column(heading, justify="left" if heading in ("status", "measure") else "right", overflow="fold")
    for heading in ("last", "best", "size"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, runs in groups:
        cells = [str(len(runs))] if seeds else []
        cells += [_status(runs), age(now - max(run.when for run in runs)), _rounds(runs)]
        measured = [run for run in runs if run.measure is not None]
        if len(measures) > 1:
            cells.append(", ".join(dict.fromkeys(str(run.measure) for run in measured)) or "-")
        cells += [_spread(measured, [run.last for run in measured]), _spread(measured, [run.best for run in measured])]
        cells.append(size_of(sum(run.size for run in runs)))
        table.add_row(*(Text(one_line(cell)) for cell in (name, *cells)))
    said = [f"last, best: {next(iter(measures))}"] if len(measures) == 1 else []
    said += ["±: one sample standard deviation over the seeds"] if seeds else []
    table.caption = "; ".join(said) or None
    return table


def _status(runs: Sequence[Listed]) -> str:
    from fedsim.reports.listing import STATUSES

    found = Counter(run.status for run in runs)
    if len(found) == 1:
        return next(iter(found))
    return ", ".join(f"{found[status]} {status}" for status in STATUSES if found[status])


def age(seconds: float) -> str:
    """How long ago something was, in a few letters; from a month on the day."""
    for below, unit, name in UNITS:
        if seconds < below:
            return f"{max(seconds, 0) // unit:.0f} {name}"
    return f"{datetime.fromtimestamp(time.time() - seconds):%Y-%m-%d}"


def _rounds(runs: Sequence[Listed]) -> str:
    done = sorted({run.rounds for run in runs})
    said = str(done[0]) if len(done) == 1 else f"{done[0]}-{done[-1]}"
    if runs[0].asked is not None:
        return f"{said}/{runs[0].asked}"
    if runs[0].duration is not None:
        return f"{said} ({min(run.time for run in runs):.4g}/{runs[0].duration:.4g} s)"
    return said


def _spread(runs: Sequence[Listed], values: Sequence[float | None]) -> str:
    """The mean of what runs were measured at, ± its deviation over several."""
    from fedsim.reports.numbers import Spread

    if not runs:
        return "-"
    spread = Spread(tuple(math.nan if value is None else value for value in values))
    if not math.isfinite(spread.mean):
        return "not finite"
    said = number_of(str(runs[0].measure), spread.mean)
    return said if spread.deviation is None else f"{said} ± {number_of(str(runs[0].measure), spread.deviation)}"
