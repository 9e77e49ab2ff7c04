"""What the page's scripts draw: rows, clients and virtual time of all runs, and how they may be looked at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from fedsim.core.measures import is_measure, lower_is_better
from fedsim.plots import ranked
from fedsim.plots.personal import gain_of
from fedsim.plots.style import BRIGHT, STYLES
from fedsim.plots.timeline import limit_of, works_of
from fedsim.reports.cells import measure_of
from fedsim.reports.comparison import Comparison
from fedsim.reports.numbers import Run
from fedsim.reports.page.columns import Column, column, columns, shortened

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


def numbers(comparison: Comparison, tried: dict[str, Any] | None) -> dict[str, Any]:
    """All that the scripts need, as JSON takes it: groups, colours, axes, measures, targets. tried: see there."""
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
    groups: list[dict[str, Any]] = [
        {
            "name": group.name,
            "runs": [_run(run) for run in group.runs],
            "timeline": None if (trace := group.runs[0].trace) is None else _timeline(trace),
        }
        for group in comparison.groups
    ]
    of_clients = [name for group in groups for run in group["runs"] for name in run["clients"] or {}]
    return {
        "colours": BRIGHT,
        "dashes": [DASHES[style] for style in STYLES],
        "axes": axes,
        "along": comparison.along[0] if comparison.along else "round",
        "measures": [{"name": name, "better": _better(name, comparison)} for name in measures],
        "clients": [
            {"name": name, "better": _better(f"client_{name}", comparison)}
            for name in dict.fromkeys(of_clients)
            if name not in WHO
        ],
        "first": first[:SHOWN],
        "targets": dict(comparison.targets),
        "groups": groups,
        "tried": tried,
        "outcomes": _outcomes(comparison),
    }


WHO = ("rows", "client", "name", "examples", "train_examples", "label_distance", "participation", "cluster")
"""What is said of clients beside what they are judged by."""


def _run(run: Run) -> dict[str, Any]:
    trace, clients = run.trace, run.clients
    return {
        "seed": run.seed,
        "rows": len(run.rows),
        "columns": columns(run.rows),
        "clients": None if clients is None else _clients(clients, trace),
        "staleness": None if trace is None else trace["staleness"],
        # how many clients have taken part so often
        "participation": None if trace is None else sorted(Counter(trace["participation"]).items()),
    }


def _clients(clients: Mapping[str, list[Any]], trace: Mapping[str, Any] | None) -> dict[str, Any]:
    """The columns of clients.csv, how often each of these clients has taken part, and what its own model gains."""
    found: dict[str, Any] = {name: values if name == "name" else column(values) for name, values in clients.items()}
    if (gain := gain_of(clients)) is not None:
        found["gain"] = column(gain.tolist())
    times = [] if trace is None else trace["participation"]
    if times and all(isinstance(client, int) and client < len(times) for client in clients.get("client", [])):
        found["participation"] = column([times[client] for client in clients.get("client", [])])
    return found | {"rows": len(clients.get("client", []))}


def _timeline(trace: Mapping[str, Any]) -> dict[str, Any]:
    """When the first clients worked, up to the time that can be read, in columns.

    stop: where what it did ends that is known; used: when a window took the reply.
    """
    works = works_of(trace)
    until = min(limit_of(works), max((work.stop for work in works), default=0.0))
    shown = [work for work in works if work.start < until]
    names: dict[str, Column | list[str]] = {
        name: column([getattr(work, name) for work in shown]) for name in ("client", "version", "start", "stop", "used")
    }
    return {
        "rows": len(shown),
        "of": len(works),
        "columns": names | {"outcome": [work.outcome for work in shown]},
        "until": until,
        "population": len(trace["participation"]),
        "clients": min(int(trace["timeline_clients"]), len(trace["participation"])),
        "names": trace.get("clients", [])[: int(trace["timeline_clients"])],
    }


def _outcomes(comparison: Comparison) -> list[dict[str, Any]]:
    """Of each measure, final and best, what every run has come to, and the interval of each group's mean."""
    found = []
    for label in comparison.labels:
        measure = measure_of(label)
        if measure is None:
            continue
        between = comparison.intervals.get(label, (None,) * len(comparison.groups))
        spreads = [group.numbers.get(label) for group in comparison.groups]
        values = [[] if spread is None else [*map(shortened, spread.values)] for spread in spreads]
        ends = [None if one is None else [shortened(one.low), shortened(one.high)] for one in between]
        found.append({"label": label, "better": _better(measure, comparison), "values": values, "intervals": ends})
    return found


def _better(name: str, comparison: Comparison) -> str:
    """Which way a column improves, in a word; empty: neither."""
    if not is_measure(name, comparison.asked):
        return ""
    return "lower" if lower_is_better(name, comparison.asked) else "higher"
