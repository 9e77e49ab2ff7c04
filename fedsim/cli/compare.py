"""`fedsim compare`: runs side by side, as tables and as pictures."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Annotated

import typer

from fedsim.cli.answers import Json, answering
from fedsim.cli.arguments import axes, measures_of_runs, run_folders, targets_of_runs
from fedsim.core.errors import InputError


def compare(
    runs: Annotated[
        list[Path], typer.Argument(help="Run folders, or folders that hold runs.", autocompletion=run_folders)
    ],
    out: Annotated[
        Path | None, typer.Option(help="Where the picture goes, as .png, .pdf or .svg; by default compare.png.")
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="measure=level, as in test_accuracy=0.9: what it took to get there; may be given several times.",
            autocompletion=targets_of_runs,
        ),
    ] = None,
    along: Annotated[
        list[str] | None,
        typer.Option(
            help="What curves are drawn against: round, time, queries, bytes (sent up), down (bytes sent down),"
            " epsilon; may be given several times.",
            autocompletion=axes,
        ),
    ] = None,
    measure: Annotated[
        list[str] | None,
        typer.Option(
            help="By what groups are tested against each other, as test_accuracy (its final value) or"
            " 'test_accuracy, best'; by default the first of the table; may be given several times.",
            autocompletion=measures_of_runs,
        ),
    ] = None,
    interval: Annotated[
        str, typer.Option(help="How the means' intervals are found: t, bootstrap; or none: they are not shown.")
    ] = "t",
    level: Annotated[float, typer.Option(help="The level of confidence of intervals and tests.")] = 0.95,
    to: Annotated[
        list[Path] | None,
        typer.Option(help="Where the numbers go, as .tex (booktabs), .md or .csv; may be given several times."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace earlier files.")] = False,
    as_json: Json = False,
) -> None:
    """Show runs side by side: a table, what their seeds can tell, and pictures of all.

    Runs that differ only in their seed are one group.
    """
    from fedsim.core.files import StorageError, look
    from fedsim.reports.comparison import compare as compare_runs
    from fedsim.reports.comparison import parse_targets
    from fedsim.reports.pictures import draw, places
    from fedsim.reports.record import record
    from fedsim.reports.sheet import format_of
    from fedsim.reports.table import render

    def taken(path: Path) -> Path | None:
        return next((place for place in places(path) if look(place, "out") is not None), None)

    if out is None:
        names = (Path("compare.png" if number == 0 else f"compare-{number}.png") for number in count())
        out = next(path for path in names if force or taken(path) is None)
    elif (present := taken(out)) is not None and not force:
        raise InputError("out", str(present), "this file exists; choose another or pass --force")
    for path in to or []:
        format_of(path)
        if look(path, "to") is not None and not force:
            raise InputError("to", str(path), "this file exists; choose another or pass --force")
    with answering(as_json=as_json) as answer:
        compared = compare_runs(
            runs,
            targets=parse_targets(target or []),
            along=along or [],
            measures=measure or [],
            interval=None if interval == "none" else interval,
            level=level,
        )
        answer.lay_out(render(compared))
        for path in to or []:
            try:
                compared.export(path)
            except StorageError as error:
                raise InputError("to", str(path), str(error)) from error
            answer.tell(f"table: {path}")
        try:
            drawn = draw(compared, out)
        except StorageError as error:
            raise InputError("out", str(out), str(error)) from error
        for path in drawn:
            answer.tell(f"picture: {path}")
        answer.give(record(compared) | {"tables": to or [], "pictures": drawn})
