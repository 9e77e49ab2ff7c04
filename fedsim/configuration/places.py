"""Paths in an experiment: those of a file are from the file's folder, wherever the program is started."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedsim.core.data_files import matching
from fedsim.core.plugins import FILE_KIND

FOLDER_KIND = r"(?P<resolver>hf:)(?P<folder>[^\x00]+)"
"""What a kind is like that names a folder, after the prefix of a resolver."""
PATHS = ("path", "test_path", "file")
"""Options that name a file or folder of data."""


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
