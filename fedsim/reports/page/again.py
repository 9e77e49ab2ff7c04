"""How to have the runs of a page again: commands, configurations, versions, checksums of the data."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsim.core.files import read_bytes
from fedsim.core.plugins import DISTRIBUTION
from fedsim.core.terminal import printable
from fedsim.reports.numbers import Group
from fedsim.running.stored import CONFIG, LARGEST, open_run

INSTALLED = {"fedsim": DISTRIBUTION}
"""What is installed under another name than it is noted by."""


@dataclass(frozen=True)
class Again:
    """How to run a group again.

    folder, config: of its first run, and that one's config.toml; None: it was not saved. commands: for a shell. data:
    what is known of them, as names, sizes and checksums.
    """

    name: str
    folder: str | None
    commands: tuple[str, ...]
    config: str | None
    data: tuple[tuple[str, str], ...]


def again(group: Group) -> Again:
    """How to run a group again; see `Again`."""
    run = group.runs[0]
    packages = [
        f"{INSTALLED.get(name, name)}=={str(version).partition('+')[0]}"
        for key, version in run.config.items()
        if (name := key.removeprefix("versions.")) != key and name != "python"
    ]
    commands = [f"pip install {shlex.join(packages)}"] if packages else []
    if run.path is None:
        return Again(group.name, None, tuple(map(printable, commands)), None, ())
    seeds = [str(run.seed) for run in group.runs if run.seed is not None]
    which = ["--seed" if len(seeds) == 1 else "--seeds", ",".join(seeds)] if seeds else []
    folder = _from_here(run.path)
    commands.append(shlex.join(["fedsim", "run", os.path.join(folder, CONFIG), *which]))
    text = read_bytes(run.path / CONFIG, LARGEST).decode(errors="replace")
    data = open_run(run.path).config().get("data")
    told = _data(data) if isinstance(data, dict) else ()
    return Again(group.name, printable(folder), tuple(map(printable, commands)), printable(text), told)


def _data(data: Mapping[str, Any], prefix: str = "") -> tuple[tuple[str, str], ...]:
    """Names and values of a table, those of tables in it after theirs."""
    told: list[tuple[str, str]] = []
    for name, value in data.items():
        if isinstance(value, Mapping):
            told += _data(value, f"{prefix}{name} ")
        else:
            told.append((printable(f"{prefix}{name}"), printable(str(value))))
    return tuple(told)


def _from_here(path: Path) -> str:
    """A path from the current folder, where it is in that."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
