"""Paths in an experiment: those of a file are from the file's folder, wherever the program is started."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedsim.core.data_files import matching
from fedsim.core.errors import InputError
from fedsim.core.files import path_of
from fedsim.core.near import meant
from fedsim.core.plugins import FILE_KIND

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
"""Those that come with fedsim, in a clone as in what is installed."""

FOLDER_KIND = r"(?P<resolver>hf:)(?P<folder>[^\x00]+)"
"""What a kind is like that names a folder, after the prefix of a resolver."""
PATHS = ("path", "test_path", "file", "factors")
"""Options that name a file, or a folder of data."""


def shipped() -> list[str]:
    """The names of the experiments that come with fedsim."""
    return sorted(path.stem for path in EXPERIMENTS.glob("*.toml"))


def experiment_file(given: Path | str) -> Path:
    """The path of an experiment; a name without folder and ending that is no file here is one that comes with fedsim.

    InputError: it is no path, or such a name of none.
    """
    path = path_of(given, "experiment")
    if path.suffix or len(path.parts) != 1 or os.path.isfile(path):
        return path
    known = shipped()
    if path.name not in known:
        remedy = f"there is no such file; fedsim comes with {', '.join(known)}{meant(path.name, known)}"
        raise InputError("experiment", str(path), remedy)
    return EXPERIMENTS / f"{path}.toml"


def placed(tables: Any, folder: Path, option: str = "") -> Any:
    """Tables with absolute paths in place of relative ones of plug-ins' files, and of data that are in this folder.

    Data may also lie below the data folder: where there are none here, the path stays as it is.
    """
    if isinstance(tables, Mapping):
        return {name: placed(value, folder, name) for name, value in tables.items()}
    if isinstance(tables, list):
        return [placed(value, folder, option) for value in tables]
    if not isinstance(tables, str):
        return tables
    kind = re.fullmatch(FILE_KIND, tables)
    if kind:
        return f"{kind['resolver'] or ''}{_from(folder, kind['file'])}:{kind['name']}"
    folder_kind = re.fullmatch(FOLDER_KIND, tables)
    if folder_kind:
        return f"{folder_kind['resolver']}{_from(folder, folder_kind['folder'])}"
    # What else these may be is a number, or a word.
    named = option in PATHS or (option in ("start", "weights") and Path(tables).suffix)
    there = _from(folder, tables) if named and tables else folder
    return str(there) if there != folder and (os.path.exists(there) or matching(there)) else tables


def _from(folder: Path, path: str) -> Path:
    """A path from a folder. ~user who is not there stays: who reads the file refuses it, by the option's whole name."""
    return folder / os.path.expanduser(path)
