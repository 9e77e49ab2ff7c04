"""The page of runs, which a room above this one writes: found by its name, as plug-ins are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedsim.core.files import path_of
from fedsim.core.plugins import names


def write_report(runs: Any, path: Path | str) -> None:
    """Write results, or a comparison of some, as one HTML page. InputError: this is no path. StorageError: as it says.

    An earlier file of this name is replaced.
    """
    names("reports")["page"].load()(runs, path_of(path, "path"))
