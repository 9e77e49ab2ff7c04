"""`fedsim clean`: takes away of runs what nothing needs, after it has listed it, and has asked."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from fedsim.cli.answers import Json, answering
from fedsim.cli.ls import RUNS, Folders
from fedsim.cli.words import size_of
from fedsim.core.errors import FedsimError, InputError, one_line
from fedsim.core.terminal import tell

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fedsim.running.cleaning import Removable

AGE = re.compile(r"(\d{1,6})([smhdw])", re.ASCII)
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def clean(
    folders: Folders = None,
    failed: Annotated[bool, typer.Option("--failed", help="Also runs that an error has ended, altogether.")] = False,
    interrupted: Annotated[
        bool, typer.Option("--interrupted", help="Also runs that were interrupted or killed, altogether.")
    ] = False,
    older: Annotated[
        str | None, typer.Option(help="Only of runs whose last row is older than that, as 12h, 7d or 4w.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Remove checkpoints of runs that have ended, half-written files and empty folders; what, is listed first.

    Never anything that no run has written, nor of a run that goes on. Without --yes it asks on a terminal, and
    elsewhere only lists.
    """
    from fedsim.core.files import look
    from fedsim.reports.listing import DEPTH, runs_below
    from fedsim.running.cleaning import empty_folders, removable, remove
    from fedsim.running.stored import StoredRun

    least = time.time() - _seconds(older)
    whole = ("failed",) * failed + ("interrupted",) * interrupted
    roots = folders or ([RUNS] if RUNS.is_dir() else [])
    for root in roots:
        if look(root, "folders") is None or root.is_symlink() or not root.is_dir():
            raise InputError("folders", str(root), "name a folder that is there, and no link to it")
    with answering(as_json=as_json) as answer:
        below = dict.fromkeys(path for root in roots for path, fault in runs_below(root) if not fault)
        found = [one for path in below if (one := removable(StoredRun(path), whole)) is not None]
        found = [one for one in found if one.seen < least * 1e9]
        empty = dict.fromkeys(path for root in roots for path in empty_folders(root, DEPTH))
        gone = [path for path in empty if path.stat().st_mtime < least]
        if not found and not gone:
            answer.tell("nothing is to be removed")
            return
        answer.lay_out(_table(found, gone))
        sure = yes or (not as_json and sys.stdin.isatty() and typer.confirm("Remove this?", err=True))
        kept = 0
        for one in found:
            removed = sure
            try:
                if sure:
                    remove(one, roots)
            except FedsimError as error:  # as a run that has gone on meanwhile
                tell(f"fedsim: {one_line(error)}", "stderr")
                removed, kept = False, kept + 1
            told = {"files": one.files, "size": one.size, "removed": removed}
            answer.give({"folder": one.folder, "what": one.what} | told)
        for path in gone:
            if sure:
                path.rmdir()
            answer.give({"folder": path, "what": "empty", "files": [], "size": 0, "removed": sure})
        answer.tell("removed" if sure else "nothing was removed; --yes does it without asking")
        if kept:
            raise typer.Exit(1)


def _seconds(older: str | None) -> float:
    """Seconds of an age such as 7d; none where none is given."""
    if older is None:
        return 0.0
    parsed = AGE.fullmatch(older)
    if parsed is None:
        raise InputError("older", older, "write a number and one of s, m, h, d, w, as in 7d")
    return float(parsed[1]) * SECONDS[parsed[2]]


def _table(found: Sequence[Removable], gone: Sequence[Path]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1), show_edge=False)
    for heading in ("folder", "what", "files", "size"):
        table.add_column(heading, justify="right" if heading in ("files", "size") else "left", overflow="fold")
    for one in found:
        cells = (one.what, str(len(one.files)), size_of(one.size))
        table.add_row(Text(one_line(one.folder)), *cells)
    for path in gone:
        table.add_row(Text(one_line(path)), "empty", "0", size_of(0))
    table.add_section()
    files = sum(len(one.files) for one in found)
    table.add_row("all", "", str(files), size_of(sum(one.size for one in found)))
    return table
