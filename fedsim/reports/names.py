"""What groups of runs are called."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from fedsim.core.terminal import printable
from fedsim.reports.numbers import Run


def names_of(groups: Sequence[Sequence[Run]]) -> list[str]:
    """Name each group by its runs' folders; without one, by what its experiment is called."""
    paths = [[run.path for run in group if run.path is not None] for group in groups]
    saved = iter(_of_folders([inner for inner in paths if inner]))
    names: list[str] = []
    for group, inner in zip(groups, paths, strict=True):
        name = next(saved) if inner else str(group[0].config["name"])
        alike = sum(other == name or other.startswith(f"{name} (") for other in names)
        names.append(f"{name} ({alike + 1})" if alike and not inner else name)
    return [printable(name) for name in names]


def _of_folders(groups: Sequence[Sequence[Path]]) -> list[str]:
    """Name each group by its run, by the folder that holds its runs alone, or by its first run."""
    if not groups:
        return []
    holders = Counter(parent for group in groups for parent in {path.parent for path in group})
    places = [
        group[0].parent
        if len(group) > 1 and len({path.parent for path in group}) == 1 and holders[group[0].parent] == 1
        else group[0]
        for group in groups
    ]
    common = os.path.commonpath([place.parent for place in places])
    names = [os.path.relpath(place, common) for place in places]
    return [
        name if place != group[0] or len(group) == 1 else f"{name} (+{len(group) - 1})"
        for name, place, group in zip(names, places, groups, strict=True)
    ]
