"""What runs have cost, and what has gone wrong in them: tables of totals, and sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedsim.core.terminal import printable
from fedsim.reports.comparison import Comparison
from fedsim.reports.fronts import ON
from fedsim.reports.numbers import Group, Run
from fedsim.reports.page.tables import Cell, Line, Table, totals
from fedsim.running.stored import open_run

MIB = 2**20
WRONG = {
    "failed": "updates that were not finite, or misshapen",
    "late": "late: a window closed without them",
    "crashed": "orders ended by a failure",
    "lost": "clients lost for good",
    "faults": "faulty on purpose",
}
"""Columns of the rows that say what has gone wrong, and what their totals are called."""
TOLD = {
    "skipped": "windows with too few replies",
    "strays": "replies to nothing that was asked",
    "total_failed_queries": "evaluations without a value",
}
"""The same of the summary."""
LINES = 40
"""Of a traceback so many lines are shown, the last ones."""


def ledger(groups: Sequence[Group]) -> Table:
    """A line a group: bytes and queries, in all and a round."""
    found = [[_spent(run) for run in group.runs] for group in groups]
    asked = {label for runs in found for run in runs for label, number in run.items() if number or "quer" not in label}
    found = [[{label: number for label, number in run.items() if label in asked} for run in runs] for runs in found]
    return totals("ledger", "What crossed between server and clients, and was asked", groups, found)


def fronts(comparison: Comparison) -> Table | None:
    """A line a group: whether it is on the front of each measure and cost; None where nothing is to be weighed."""
    found = comparison.fronts
    if not found:
        return None
    lines = [
        Line(group.name, tuple(Cell(cell := front.cell(group.name), marked=cell == ON) for front in found), place)
        for place, group in enumerate(comparison.groups)
    ]
    heads = ("group", *(front.heading for front in found))
    return Table("fronts", "Who comes furthest for what it costs, by the means of the seeds", heads, tuple(lines))


def wrongs(groups: Sequence[Group]) -> Table | None:
    """A line a group: what has gone wrong; None where nothing has."""
    found = [[_wrong(run) for run in group.runs] for group in groups]
    wrong = {label for runs in found for run in runs for label, number in run.items() if number}
    if not wrong:
        return None
    kept = [[{label: number for label, number in run.items() if label in wrong} for run in runs] for runs in found]
    return totals("faults", "What has gone wrong, in all rounds together", groups, kept)


def endings(groups: Sequence[Group]) -> list[str]:
    """How those runs ended that did not just finish, and why."""
    return [
        f"{_called(group, run)}: {run.status}, {printable(str(run.summary['reason']))}"
        for group in groups
        for run in group.runs
        if run.summary.get("reason")
    ]


def failures(groups: Sequence[Group]) -> list[tuple[str, str]]:
    """The runs that an error has ended, with the end of its traceback; and the first messages of evaluations."""
    found = []
    for group in groups:
        for run in group.runs:
            text = None if run.path is None else open_run(run.path).failure()
            if text is not None:
                found.append((_called(group, run), printable("\n".join(text.strip().splitlines()[-LINES:]))))
            messages = run.summary.get("failures") or []
            if messages:
                found.append((f"{_called(group, run)}: evaluations", printable("\n".join(map(str, messages)))))
    return found


def _spent(run: Run) -> dict[str, float]:
    """Totals of a run's rows, and what they come to a round."""
    sums: dict[str, float] = {}
    rounds = max((row.get("round") or 0 for row in run.rows), default=0)
    for column, label in (("bytes_up", "sent up"), ("bytes_down", "sent down")):
        if column in run.history.columns:
            total = sum(row.get(column) or 0 for row in run.rows) / MIB
            sums[f"{label} (MiB)"] = total
            if rounds:
                sums[f"{label} a round (MiB)"] = total / rounds
    for column, label in (("queries", "queries"), ("extra_queries", "extra queries"), ("clients", "replies used")):
        if column in run.history.columns:
            sums[label] = sum(row.get(column) or 0 for row in run.rows)
    orders = run.summary.get("orders")
    return sums | ({"orders sent": orders} if isinstance(orders, int) else {})


def _wrong(run: Run) -> dict[str, float]:
    columns = {column: label for column, label in WRONG.items() if column in run.history.columns}
    sums: dict[str, float] = {label: sum(row.get(column) or 0 for row in run.rows) for column, label in columns.items()}
    sums |= {label: found for name, label in TOLD.items() if isinstance(found := run.summary.get(name), int)}
    kinds: Any = (run.trace or {}).get("faults")
    if isinstance(kinds, dict):
        sums |= {f"faults: {printable(kind)}": found for kind, found in kinds.items() if isinstance(found, int)}
    weight = run.summary.get("lost_weight")
    return sums | ({"share of examples lost": float(weight)} if isinstance(weight, int | float) else {})


def _called(group: Group, run: Run) -> str:
    """A run, by its group and, where that has several, its seed."""
    return group.name if len(group.runs) == 1 else f"{group.name}, seed {run.seed}"
