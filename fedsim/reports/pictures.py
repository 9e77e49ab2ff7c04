"""A comparison of runs as pictures."""

from __future__ import annotations

import os
from pathlib import Path

from fedsim.core.errors import InputError
from fedsim.core.files import look
from fedsim.plots import compare_curves, costs, format_of, histograms, timelines
from fedsim.reports.comparison import Comparison
from fedsim.reports.fronts import panels_of

PARTS = ("costs", "trace", "timeline")
"""What is beside the curves, as the names of its files say."""


def places(out: Path) -> tuple[Path, Path, Path, Path]:
    """Name the pictures that `draw` may write: `out`, and beside it out-costs, out-trace and out-timeline.

    InputError: their format is none that is drawn, or there is no folder to write them in.
    """
    format_of(out, "out")
    look(out, "out")
    folder = out.absolute().parent
    if not folder.is_dir():
        raise InputError("out", str(out), f"{folder} is not a folder; make it first, or choose another place")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError("out", str(out), f"{folder} cannot be written in; choose another place")
    costs, trace, timeline = (out.with_name(f"{out.stem}-{part}{out.suffix}") for part in PARTS)
    return out, costs, trace, timeline


def draw(comparison: Comparison, out: Path) -> list[Path]:
    """Draw the groups into the files that `places(out)` names, and return those that were written.

    The curves; what was reached for what it cost; staleness and participation; the timelines of each group's first run.
    A picture that would show nothing is not drawn: see `plots.compare_curves`, `Comparison.fronts`, `plots.histograms`
    and `plots.timelines`. Raises InputError when a trace cannot be read, or there is no folder for the pictures, before
    anything is drawn, and StorageError when a picture cannot be written.
    """
    groups = comparison.groups
    traces = {group.name: [run.trace for run in group.runs if run.trace is not None] for group in groups}
    curves, paid, trace, timeline = places(out)
    drawn = {
        curves: compare_curves(comparison.rows, curves, comparison.along, comparison.asked),
        paid: costs(panels_of(groups, comparison.fronts), paid),
        trace: histograms(traces, trace),
        timeline: timelines({name: found[0] for name, found in traces.items() if found}, timeline),
    }
    return [path for path, was_drawn in drawn.items() if was_drawn]
