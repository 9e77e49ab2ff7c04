"""The ledger: what crossed the network and what was asked, exactly."""

from __future__ import annotations

from dataclasses import dataclass

from fedsim.core.graph import storable


@storable("ledger")
@dataclass
class Ledger:
    """Running totals.

    bytes_up, bytes_down: payload bytes of replies and orders. queries: evaluations that clients asked for, of replies
    that arrived; extra_queries: those of them that are no part of the method's published count; failed_queries: those
    that gave no finite value. clients: replies that arrived. failed: replies left out because they were not finite, or
    not of the shape that was asked for. late: replies that were not in when the first window closed, taken later or
    never. crashed: orders during which the client's machine failed. lost: clients whose machine failed for good.
    staleness: sum over the replies of the rounds that the server had completed since their orders. faults: faults on
    demand, of all kinds (see `fedsim.devices.faults`), each when it shows.
    """

    bytes_up: int = 0
    bytes_down: int = 0
    queries: int = 0
    extra_queries: int = 0
    failed_queries: int = 0
    clients: int = 0
    failed: int = 0
    late: int = 0
    crashed: int = 0
    lost: int = 0
    staleness: int = 0
    faults: int = 0

    def since(self, before: Ledger) -> dict[str, int]:
        """What was added since an earlier state of the ledger."""
        return {name: getattr(self, name) - getattr(before, name) for name in self.__dataclass_fields__}
