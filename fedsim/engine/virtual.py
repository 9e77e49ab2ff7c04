"""The engine of this process: a virtual clock, and replies that are computed when a window needs them."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor

from fedsim.aggregation import Aggregator
from fedsim.engine.executor import Executor
from fedsim.engine.ledger import Ledger
from fedsim.exchange import Orders, Replies, Window, finite_rows

DURATION = 1.0
"""Virtual seconds that every client takes for an order."""


@dataclass(frozen=True)
class _Flight:
    """Orders on their way; all their replies are due at the same time."""

    orders: Orders
    due: float


class VirtualEngine:
    """Takes orders, moves virtual time and hands back replies; see `fedsim.loop`.

    time: virtual seconds. ledger: what crossed so far. busy: clients at work.
    """

    def __init__(self, executor: Executor, aggregator: Aggregator) -> None:
        self.executor, self.aggregator = executor, aggregator
        self.time = 0.0
        self.ledger = Ledger()
        self._flights: list[_Flight] = []

    @property
    def busy(self) -> frozenset[int]:
        """Clients whose replies are still to come."""
        return frozenset(client for flight in self._flights for client in flight.orders.clients.tolist())

    def submit(self, orders: Orders) -> None:
        """Send orders; each reply is due after the client's duration."""
        self.ledger.bytes_down += orders.nbytes * len(orders.clients)
        self._flights.append(_Flight(orders, self.time + DURATION))

    def collect(self, window: Window) -> Replies:  # noqa: ARG002
        """Move time to the window's close and return the replies that arrived in it."""
        (flight,) = self._flights
        self._flights = []
        self.time = flight.due
        work = self.executor.execute(flight.orders)
        clients = flight.orders.clients
        examples = self.executor.problem.sizes[clients]
        replies = Replies(clients, work.payload, work.metrics, examples, clients[:0], self.aggregator)
        return settle(replies, self.ledger, work.bytes_up)

    def snapshot(self) -> dict[str, Any]:
        """Clock, ledger, flights and what the clients remember."""
        return {
            "time": self.time,
            "ledger": asdict(self.ledger),
            "flights": deepcopy(self._flights),
            "store": self.executor.store.snapshot(),
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Go back to a snapshot."""
        self.time, self.ledger = saved["time"], Ledger(**saved["ledger"])
        self._flights = deepcopy(saved["flights"])
        self.executor.store.restore(saved["store"])

    def describe(self) -> dict[str, Any]:
        """How orders are executed, for the run's config.toml."""
        executor = self.executor
        return {
            "executor": executor.name,
            "network": type(executor.network).__name__,
            "chunk": executor.chunk,
            "device": str(executor.problem.device),
        }


def settle(replies: Replies, ledger: Ledger, bytes_up: int) -> Replies:
    """Count replies of so many bytes each in the ledger, and leave out those that are not finite."""
    count = len(replies)
    ledger.bytes_up += bytes_up * count
    ledger.clients += count
    finite = finite_rows(list(replies.payload.values())).cpu()
    if bool(finite.all()):
        return replies
    ledger.failed += int((~finite).sum())
    return replace(select(replies, finite), failed=replies.clients[~finite])


def select(replies: Replies, kept: Tensor) -> Replies:
    """The replies where `kept` (bool [k], on the CPU) says so."""
    return replace(
        replies,
        clients=replies.clients[kept],
        payload={name: rows[kept.to(rows.device)] for name, rows in replies.payload.items()},
        metrics={name: rows[kept.to(rows.device)] for name, rows in replies.metrics.items()},
        examples=replies.examples[kept],
    )
