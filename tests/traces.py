"""Schedules of clients that always take equally long, as rows of metrics.jsonl and trace.json describe them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fedsim.core.clock import seconds, ticks

Closing = Callable[[int, list[int]], int]
"""When the window closes that opened at a tick, given the ticks at which the replies are due, ascending."""


def everybody(opened: int, due: list[int]) -> int:
    """Synchronous rounds."""
    return due[-1]


def every(length: float) -> Closing:
    """FedFix: windows of so many seconds."""
    return lambda opened, due: opened + ticks(length)


def after(replies: int) -> Closing:
    """FedBuff: windows of so many replies; of one, asynchronous."""
    return lambda opened, due: due[replies - 1]


def schedule(
    taus: list[float],
    closing: Closing,
    horizon: float,
    *,
    cancel: bool = False,
    lost: Mapping[int, float] | None = None,
    drawn: int = 20,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows and the trace of a run up to `horizon` seconds.

    taus: seconds that each client takes. cancel: who is not in when a window closes starts anew. lost: when clients
    break, by their id. Losses fall from 1 as exp(-used/500), where `used` replies were taken so far.
    """
    broken = {client: ticks(moment) for client, moment in (lost or {}).items()}
    start, version = [0] * len(taus), [0] * len(taus)
    alive, now, round_, used = set(range(len(taus))), 0, 0, 0
    staleness: Counter[int] = Counter()
    participation = [0] * len(taus)
    rows: list[dict[str, Any]] = []
    timeline: list[dict[str, Any]] = []

    def log(client: int, outcome: str, end: int | None, taken: int | None) -> None:
        times = {"start": start[client], "end": end, "used": taken}
        entry = {name: None if value is None else seconds(value) for name, value in times.items()}
        timeline.append({"client": client, "version": version[client], **entry, "outcome": outcome})

    def due(client: int) -> int:
        return start[client] + ticks(taus[client])

    while alive:
        breaking = {client for client in alive if client in broken and broken[client] < due(client)}
        for client in sorted(breaking):
            log(client, "lost", broken[client], None)
        alive -= breaking
        closed = closing(now, sorted(due(client) for client in alive))
        if closed > ticks(horizon):
            break
        arrived = [client for client in sorted(alive) if due(client) <= closed]
        late = len(alive) - len(arrived)
        for client in arrived:
            staleness[round_ - version[client]] += 1
            participation[client] += 1
            log(client, "late" if start[client] < now else "used", due(client), closed)
        delays = [round_ - version[client] for client in arrived]
        for client in sorted(alive) if cancel else arrived:
            if client not in arrived:
                log(client, "cancelled", closed, None)
            start[client], version[client] = closed, round_ + 1
        now, round_, used = closed, round_ + 1, used + len(arrived)
        loss = math.exp(-used / 500)
        rows.append(
            {"round": round_, "time": seconds(now), "wall": 0.1 * round_, "clients": len(arrived), "failed": 0}
            | {"late": late, "lost": len(taus) - len(alive), "bytes_up": 2**18, "bytes_down": 2**19, "queries": 0}
            | ({"staleness": sum(delays) / len(delays)} if delays else {})
            | {"train_loss": 0.9 * loss, "test_loss": loss, "test_accuracy": 1 - loss}
            | {"global_train_loss": 0.95 * loss, "global_train_accuracy": 1 - 0.95 * loss}
        )
    for client in sorted(alive):
        log(client, "working", None, None)
    missing = sorted(set(range(len(taus))) - alive)
    trace = {
        "staleness": {str(value): count for value, count in sorted(staleness.items())},
        "participation": participation,
        "late": sum(entry["outcome"] == "late" for entry in timeline),
        "lost": missing,
        "lost_weight": len(missing) / len(taus),
        "timeline": [entry for entry in timeline if entry["client"] < drawn],
        "timeline_clients": drawn,
        "until": ended(timeline),
    }
    return rows, trace


def ended(timeline: Iterable[Mapping[str, Any]]) -> float:
    """The last moment that a timeline names; 0 without one."""
    moments = [entry[name] for entry in timeline for name in ("start", "end", "used")]
    return max((moment for moment in moments if moment is not None), default=0.0)
