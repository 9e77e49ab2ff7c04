"""What happened to the clients' work over time: counters of fixed size, and the history of the first clients."""

from __future__ import annotations

from collections import Counter
from typing import Any

from fedsim.core.clock import seconds
from fedsim.core.graph import storable

CLIENTS = 20
"""Clients whose work is recorded one by one."""
ENTRIES = 5_000
"""Pieces of work that are recorded at most."""
FAILURES = 5
"""Different messages of failures that are kept, the first ones."""
SELECTED = 50_000
"""Selections, a client and a round each, that are recorded at most."""


@storable("trace")
class Trace:
    """Counters of staleness and participation, and until they are full who was selected when, and what the first did.

    The timeline is of the first `CLIENTS` clients. faults: how many of each kind on demand have shown (see
    `fedsim.devices.faults`). skipped: windows whose replies were too few for the aggregator, so that none was used.
    failures: the first messages of evaluations that failed and of replies that were refused. strays: replies to nothing
    that was asked, which were dropped.
    """

    def __init__(self, population: int) -> None:
        self.staleness: Counter[int] = Counter()
        self.participation = [0] * population
        self.lost: list[int] = []
        self.late = 0
        self.faults: Counter[str] = Counter()
        self.skipped = 0
        self.failures: list[str] = []
        self.strays = 0
        self._versions, self._selected = list[int](), list[int]()  # of one selection after the other
        self._timeline: list[dict[str, Any]] = []
        self._working: dict[int, dict[str, Any]] = {}

    def began(self, client: int, version: int, start: int, due: int | None = None) -> None:
        """Note that a client starts to work at tick `start`, from a version of the model; due: when it will be done."""
        if len(self._selected) < SELECTED:
            self._versions.append(version)
            self._selected.append(client)
        if client < CLIENTS and len(self._timeline) < ENTRIES:
            entry = {"client": client, "version": version, "start": start, "end": due, "used": None}
            self._timeline.append(entry)
            self._working[client] = entry

    def took(self, client: int, staleness: int, end: int, used: int, *, finite: bool) -> None:
        """Note that a reply arrived at tick `end` and was taken when a window closed at tick `used`."""
        if finite:
            self.staleness[staleness] += 1
            self.participation[client] += 1
        if staleness > 0:
            self.late += 1
        if finite:
            self._ended(client, end, used, "late" if staleness else "used")
        else:
            self._ended(client, end, None, "failed")

    def cancelled(self, client: int, at: int) -> None:
        """Note that a client was told to stop at a tick."""
        self.late += 1
        self._ended(client, at, None, "cancelled")

    def failed(self, client: int, at: int, *, lost: bool) -> None:
        """Note that a client's machine failed at a tick, for good or not."""
        if lost:
            self.lost.append(client)
        self._ended(client, at, None, "lost" if lost else "failed")

    def dropped(self, client: int, at: int) -> None:
        """Note that an order ended at a tick without a reply, though the client's machine had not failed."""
        self._ended(client, at, None, "dropped")

    def complained(self, text: str) -> None:
        """Keep what a failure has said, if it is among the first ones."""
        if len(self.failures) < FAILURES and text not in self.failures:
            self.failures.append(text)

    def summary(self, shares: list[float], now: int) -> dict[str, Any]:
        """Everything up to tick `now`, as JSON takes it; times in seconds. shares: of the examples, each client's."""
        timeline = [
            {
                "client": entry["client"],
                "version": entry["version"],
                **{name: _past(entry[name], now) for name in ("start", "end", "used")},
                "outcome": entry.get("outcome", "working"),
            }
            for entry in self._timeline
        ]
        selected: dict[str, list[int]] = {}
        for version, client in zip(self._versions, self._selected, strict=True):
            selected.setdefault(str(version), []).append(client)
        return {
            "staleness": {str(rounds): self.staleness[rounds] for rounds in sorted(self.staleness)},
            "participation": self.participation,
            "late": self.late,
            "lost": sorted(self.lost),
            "lost_weight": sum(shares[client] for client in self.lost),
            "faults": {kind: self.faults[kind] for kind in sorted(self.faults)},
            "skipped": self.skipped,
            **({"failures": self.failures} if self.failures else {}),
            **({"strays": self.strays} if self.strays else {}),
            "until": seconds(now),
            "selected": selected,
            "timeline_clients": CLIENTS,
            "timeline": timeline,
        }

    def _ended(self, client: int, end: int, used: int | None, outcome: str) -> None:
        entry = self._working.pop(client, None)
        if entry is not None:
            entry |= {"end": end, "used": used, "outcome": outcome}


def _past(tick: int | None, now: int) -> float | None:
    """Seconds of what has happened by now."""
    return None if tick is None or tick > now else seconds(tick)
