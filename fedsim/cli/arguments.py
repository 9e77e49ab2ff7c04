"""Arguments and options of several commands, and what a shell completes of them."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from fedsim.core.errors import InputError


def experiment_files(incomplete: str) -> Iterator[str]:
    """Folders, files that may be experiments, and experiments that come with fedsim, whose path or name begins so."""
    from fedsim.configuration.places import shipped

    for found in sorted(glob.glob(f"{glob.escape(incomplete)}*")):
        if Path(found).is_dir():
            yield f"{found}/"
        elif found.endswith(".toml"):
            yield found
    yield from (name for name in shipped() if name.startswith(incomplete))


def run_folders(incomplete: str) -> Iterator[str]:
    """Folders whose path begins so: those of runs, and others, in which runs may be."""
    from fedsim.running.stored import is_run

    for found in sorted(glob.glob(f"{glob.escape(incomplete)}*")):
        if Path(found).is_dir():
            yield found if is_run(Path(found)) else f"{found}/"


def axes(incomplete: str) -> list[str]:
    """What curves may be drawn against, that begins so."""
    from typing import get_args

    from fedsim.plots import Along

    return [axis for axis in get_args(Along) if axis.startswith(incomplete)]


def measures_of_runs(context: typer.Context, incomplete: str) -> list[str]:
    """The measures of the runs that stand on the command line already, or of those in `runs`, that begin so."""
    from fedsim.reports.listing import runs_below
    from fedsim.running.stored import StoredRun

    given = context.params.get("runs") or ["runs"]
    found: set[str] = set()
    for folder in (folder for root in given for folder, _ in runs_below(Path(root))):
        summary = StoredRun(folder).summary() or {}
        found |= {name for name in summary if f"best_{name}_round" in summary}
    return sorted(name for name in found if name.startswith(incomplete))


def targets_of_runs(context: typer.Context, incomplete: str) -> list[str]:
    """The same, as targets begin."""
    return [f"{name}=" for name in measures_of_runs(context, incomplete)]


DataDir = Annotated[Path | None, typer.Option(envvar="FEDSIM_DATA", help="Folder in which data files are looked for.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="table.option=value; may be given several times, in any order.")
]
Track = Annotated[
    list[str] | None,
    typer.Option(help="A tracker by its kind, as tensorboard, instead of the file's; may be given several times."),
]
Seeds = Annotated[str | None, typer.Option(help="Several seeds, as in 0-4 or 0,2,5.")]


def with_trackers(settings: list[str] | None, trackers: list[str] | None) -> list[str]:
    """What is set, and which trackers there are instead of the file's."""
    return [*(settings or []), *([f"track={json.dumps(trackers)}"] if trackers else [])]


def parse_seeds(text: str) -> list[int]:
    """Seeds from `0-4` or `0,2,5` or both."""
    from fedsim.running.many import hold_few

    try:
        ranges = [_range(part) for part in text.split(",")]
    except ValueError:
        ranges = []
    hold_few("seeds", text, sum(last - first + 1 for first, last in ranges))
    found = [seed for first, last in ranges for seed in range(first, last + 1)]
    if not found or len(set(found)) < len(found) or max(found) >= 2**63:
        raise InputError("seeds", text, "write different whole numbers of 64 bits, as in 0-4 or 0,2,5")
    return found


def _range(text: str) -> tuple[int, int]:
    """The first and the last seed of `3` or `0-4`. ValueError: it is no such text."""
    first, dash, last = text.strip().partition("-")
    begin, end = int(first), int(last if dash else first)
    if end < begin:
        raise ValueError("an empty range")
    return begin, end
