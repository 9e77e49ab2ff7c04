"""What a run comes to: totals over its rows, and its final and best values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fedsim.core.measures import NOTHING, Asked, is_measure, lower_is_better
from fedsim.running.history import Row

TOTALS = (
    *("clients", "failed", "late", "crashed", "lost", "faults"),
    *("bytes_up", "bytes_down", "queries", "extra_queries"),
)
"""Columns of the rows that add up."""
FAILED = "failed_queries"
"""One more, in rows of rounds in which evaluations gave no value."""


def summarise(rows: Sequence[Row], status: str, reason: str, asked: Asked = NOTHING) -> dict[str, Any]:
    """Totals, and of each measure the last value and, of the finite ones, the best with its round.

    asked: which way measures improve that were asked for.
    """
    last = rows[-1] if rows else {}
    summary: dict[str, Any] = {"status": status, "reason": reason, "rounds": last.get("round", 0)}
    summary |= {name: last.get(name, 0.0) for name in ("time", "wall")}
    summary |= {f"total_{name}": sum(row[name] for row in rows) for name in TOTALS}
    if any(FAILED in row for row in rows):
        summary[f"total_{FAILED}"] = sum(row.get(FAILED, 0) for row in rows)
    for name in sorted({name for row in rows for name in row if is_measure(name, asked)}):
        seen = [(row[name], row["round"]) for row in rows if name in row]
        told = [pair for pair in seen if math.isfinite(pair[0])] or seen[-1:]
        best = min(told) if lower_is_better(name, asked) else max(told, key=lambda pair: (pair[0], -pair[1]))
        summary |= {name: seen[-1][0], f"best_{name}": best[0], f"best_{name}_round": best[1]}
    return summary
