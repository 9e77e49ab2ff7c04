"""Arguments and options of several commands, and what a shell completes of them."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from fedsim.core.errors import InputError


def experiment_files(incomplete: str) -> Iterator[str]:
    """Folders, and files that may be experiments, whose path begins so."""
    for found in sorted(glob.glob(f"{glob.escape(incomplete)}*")):
        if Path(found).is_dir():
            yield f"{found}/"
        elif found.endswith(".toml"):
            yield found


DataDir = Annotated[Path | None, typer.Option(envvar="FEDSIM_DATA", help="Folder in which data files are looked for.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="table.option=value; may be given several times, in any order.")
]
Seeds = Annotated[str | None, typer.Option(help="Several seeds, as in 0-4 or 0,2,5.")]


def parse_seeds(text: str) -> list[int]:
    """Seeds from `0-4` or `0,2,5` or both."""
    found: list[int] = []
    try:
        for part in text.split(","):
            first, dash, last = part.strip().partition("-")
            numbers = range(int(first), int(last if dash else first) + 1)
            if not numbers:
                raise ValueError("an empty range")
            found += numbers
    except ValueError:
        found = []
    if not found or len(set(found)) < len(found):
        raise InputError("seeds", text, "write different whole numbers, as in 0-4 or 0,2,5")
    return found
