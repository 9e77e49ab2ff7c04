"""Pages of runs under way, for which what has not changed is not read again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from fedsim.core.errors import InputError
from fedsim.reports.comparison import NO_ROW, group_runs, read_run
from fedsim.reports.numbers import Run
from fedsim.reports.page import page
from fedsim.reports.watching.shelf import Line, Mark, Search
from fedsim.running.study import read_study

State = tuple[Mapping[str, Mark], str]
"""What a run was when it was read: its files, and its status, which can change without them."""


class Pages:
    """Draws pages, and remembers the runs of the last one. For one thread at a time."""

    def __init__(self) -> None:
        self._runs: dict[Path, tuple[State, Run]] = {}

    def draw(self, lines: Sequence[Line], search: Search | None) -> str:
        """The page of runs, and of the search that they are of; runs that cannot be read, or have no row, are named.

        InputError: the search cannot be read.
        """
        read: dict[Path, tuple[State, Run]] = {}
        left_out: dict[Path, str] = {}
        for line in lines:
            path, state = line.run.folder, (line.marks, line.run.status)
            try:
                if line.run.fault:
                    left_out[path] = line.run.fault
                    continue
                known = self._runs.get(path)
                run = known[1] if known is not None and known[0] == state else read_run(path)
                if len(run.history):
                    read[path] = (state, run)
                else:
                    left_out[path] = NO_ROW
            except InputError as error:
                left_out[path] = f"{error.value}: {error.remedy}"
        self._runs = read
        study = None if search is None else read_study(search.folder)
        return page(group_runs([run for _, run in read.values()], {}, (), left_out), study=study, live=True)
