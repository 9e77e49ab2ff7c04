"""What the page's scripts draw: the rows of all runs as columns, and how they may be looked at."""

from __future__ import annotations

from typing import Any

from fedsim.core.measures import is_measure, lower_is_better
from fedsim.plots import ranked
from fedsim.plots.style import BRIGHT, STYLES
from fedsim.reports.comparison import Comparison
from fedsim.reports.page.columns import columns

SHOWN = 4
"""So many measures are drawn until others are chosen."""
AXES = {
    "round": ("round", None),
    "time": ("virtual time (s)", None),
    "wall": ("wall time (s)", None),
    "bytes": ("bytes sent up by all clients", "bytes_up"),
    "down": ("bytes sent down to all clients", "bytes_down"),
    "queries": ("queries of all clients, extra ones included", "queries"),
    "epsilon": ("privacy spent, epsilon", None),
}
"""Horizontal axes: what they are called, and the column that is added up from the start; None: the column itself."""
DASHES = {"-": "solid", "--": "dash", ":": "dot", "-.": "dashdot"}
"""Plotly's words for the styles of lines."""


def numbers(comparison: Comparison) -> dict[str, Any]:
    """All that the scripts need, as JSON takes it: groups, colours, axes, measures, targets."""
    rows = [row for group in comparison.groups for run in group.runs for row in run.rows]
    known = dict.fromkeys(name for row in rows for name in row if name != "round")
    asked = comparison.asked
    first = ranked(known, asked)
    measures = [*first, *sorted(known.keys() - set(first))]
    axes = {
        key: {"label": label, "sum": summed, "column": summed or key}
        for key, (label, summed) in AXES.items()
        if (any(row.get(summed) for row in rows) if summed else key in {"round", *known})
    }
    return {
        "colours": BRIGHT,
        "dashes": [DASHES[style] for style in STYLES],
        "axes": axes,
        "along": comparison.along[0] if comparison.along else "round",
        "measures": [{"name": name, "better": _better(name, comparison)} for name in measures],
        "first": first[:SHOWN],
        "targets": dict(comparison.targets),
        "groups": [
            {
                "name": group.name,
                "runs": [{"seed": run.seed, "rows": len(run.rows), "columns": columns(run.rows)} for run in group.runs],
            }
            for group in comparison.groups
        ],
    }


def _better(name: str, comparison: Comparison) -> str:
    """Which way a column improves, in a word; empty: neither."""
    if not is_measure(name, comparison.asked):
        return ""
    return "lower" if lower_is_better(name, comparison.asked) else "higher"
