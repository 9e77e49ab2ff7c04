"""`fedsim compare`: runs side by side, as a table and as pictures."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Annotated

import typer

from fedsim.cli.console import Console
from fedsim.core.errors import InputError
from fedsim.core.terminal import tell


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or folders that hold runs.")],
    out: Annotated[
        Path | None, typer.Option(help="Where the picture goes, as .png, .pdf or .svg; by default compare.png.")
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="measure=level, as in test_accuracy=0.9: what it took to get there; may be given several times."
        ),
    ] = None,
    along: Annotated[
        list[str] | None,
        typer.Option(help="What curves are drawn against: round, time, queries, bytes; may be given several times."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier picture.")] = False,
) -> None:
    """Show runs side by side: a table, and pictures of all. Runs that differ only in their seed are one group."""
    from fedsim.core.files import StorageError, look
    from fedsim.reports.comparison import compare as compare_runs
    from fedsim.reports.comparison import parse_targets
    from fedsim.reports.pictures import draw, places
    from fedsim.reports.table import render

    def taken(path: Path) -> Path | None:
        return next((place for place in places(path) if look(place, "out") is not None), None)

    if out is None:
        names = (Path("compare.png" if number == 0 else f"compare-{number}.png") for number in count())
        out = next(path for path in names if force or taken(path) is None)
    elif (present := taken(out)) is not None and not force:
        raise InputError("out", str(present), "this file exists; choose another or pass --force")
    compared = compare_runs(runs, targets=parse_targets(target or []), along=along or [])
    Console().print(render(compared))
    try:
        drawn = draw(compared, out)
    except StorageError as error:
        raise InputError("out", str(out), str(error)) from error
    for path in drawn:
        tell(f"picture: {path}")
