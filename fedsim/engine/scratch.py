"""What clients have computed and may find again, or not: it saves time, and losing it changes no number."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import Any


class Scratch:
    """One object a client, of at most `budget` bytes together; the longest unused are dropped first.

    It belongs to the process, not to the run: no snapshot has it. Cohorts on several cores may share it.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._kept: OrderedDict[int, tuple[Any, int]] = OrderedDict()
        self._lock = Lock()

    @property
    def nbytes(self) -> int:
        """What all takes now."""
        return sum(nbytes for _, nbytes in self._kept.values())

    def take(self, client: int) -> Any | None:
        """What is kept of the client, which is the caller's from now on; None: nothing, or it was dropped."""
        with self._lock:
            return self._kept.pop(client, (None, 0))[0]

    def put(self, client: int, value: Any, nbytes: int) -> None:
        """Keep `value`, of so many bytes, if there is room at all."""
        with self._lock:
            self._kept.pop(client, None)
            if nbytes > self.budget:
                return
            while self.nbytes + nbytes > self.budget:
                self._kept.popitem(last=False)
            self._kept[client] = (value, nbytes)
