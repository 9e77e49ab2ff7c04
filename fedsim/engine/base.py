"""What the loop asks of an engine, wherever orders are executed."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from fedsim.engine.ledger import Ledger
from fedsim.engine.trace import Trace
from fedsim.exchange.messages import Free, Order, Replies
from fedsim.exchange.windows import Window


class Engine(Protocol):
    """Where orders are executed, and what time it is.

    now: ticks of the clock (see `fedsim.core.clock`). in_flight: clients at work.
    """

    now: int
    in_flight: int
    ledger: Ledger
    trace: Trace

    def free(self) -> Free:
        """Who could start now."""
        ...

    def declared(self, orders: Order) -> Tensor | None:
        """The seconds that this order takes its clients, float64 [C]; None where they are random or unknown."""
        ...

    def submit(self, orders: Order) -> None:
        """Send orders."""
        ...

    def collect(self, window: Window, round: int, until: int | None = None) -> Replies | None:  # noqa: A002
        """Wait for the window's close and return its replies.

        The window is about the action of the last orders. round: the server's. Where the window is still open at tick
        `until`, or cannot close before other clients start: None, and the next call goes on with the same window.
        StalledError: it will never close.
        """
        ...

    def settled(self) -> bool:
        """Whether nothing more is due at this very tick."""
        ...

    def rest(self, until: int | None = None) -> bool:
        """Let time pass, at most to tick `until`, to where somebody may become free; False: nobody ever will."""
        ...

    def snapshot(self) -> dict[str, Any]:
        """Everything that a restored engine needs; it may go on changing with the engine."""
        ...

    def restore(self, saved: dict[str, Any]) -> None:
        """Go back to a snapshot, which stays as it is."""
        ...

    def describe(self) -> dict[str, Any]:
        """How orders are executed, for the run's config.toml."""
        ...
