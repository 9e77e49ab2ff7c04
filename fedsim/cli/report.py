"""`fedsim report`: runs as one page of HTML, to be opened from the disk."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedsim.cli.answers import Answer
from fedsim.core.errors import InputError
from fedsim.core.terminal import tell

if TYPE_CHECKING:
    from fedsim.running.study import Study

Report = Annotated[bool, typer.Option("--report", help="Write report.html into the folder, a page for the browser.")]


def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or folders that hold runs.")],
    out: Annotated[Path | None, typer.Option(help="Where the page goes; by default report.html.")] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="measure=level, as in test_accuracy=0.9: what it took to get there; may be given several times."
        ),
    ] = None,
    along: Annotated[
        str | None,
        typer.Option(
            help="What curves are drawn against at first: round, time, queries, bytes (sent up), down or epsilon."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier page.")] = False,
) -> None:
    """Write runs as one page of HTML that needs no network and no server. Runs that are under way are in it, too."""
    from fedsim.core.files import StorageError, look
    from fedsim.reports.comparison import compare, parse_targets
    from fedsim.reports.page import write_page

    if out is None:
        names = (Path("report.html" if number == 0 else f"report-{number}.html") for number in count())
        out = next(path for path in names if force or look(path, "out") is None)
    elif look(out, "out") is not None and not force:
        raise InputError("out", str(out), "this file exists; choose another or pass --force")
    axes = [] if along is None else [along]
    compared = compare(runs, targets=parse_targets(target or []), along=axes, under_way=True)
    try:
        write_page(compared, out, study=_study(runs))
    except StorageError as error:
        raise InputError("out", str(out), str(error)) from error
    tell(f"report: {out}")


def _study(folders: list[Path]) -> Study | None:
    """The search that runs are of, where they are all those of one folder."""
    from fedsim.running.study import read_study

    return read_study(folders[0]) if len(folders) == 1 else None


def leave_report(folder: Path, answer: Answer) -> None:
    """Write the page of the runs in a folder into it, and say so; where that fails it is said, and no more."""
    from fedsim.running.stored import REPORT

    if wrote_report(folder):
        answer.tell(f"report: {folder / REPORT}")


def wrote_report(folder: Path) -> bool:
    """Write the page of the runs in a folder into it: whether that was done; if not, it is said why."""
    from fedsim.reports.comparison import compare
    from fedsim.reports.page import write_page
    from fedsim.running.runner import not_needed
    from fedsim.running.stored import REPORT

    with not_needed(REPORT):
        write_page(compare(folder, under_way=True), folder / REPORT, study=_study([folder]))
        return True
    return False
