"""Windows: when the server stops waiting for replies."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class All:
    """Closes when every order of its action has been answered, or after `deadline` seconds: a synchronous round."""

    deadline: float | None = None


@dataclass(frozen=True)
class Every:
    """Closes so many seconds after it opened, whoever has answered; a reply due at that very time is in it."""

    seconds: float


@dataclass(frozen=True)
class First:
    """Closes with the `count`-th reply, ties by client, or after `deadline` seconds.

    refill: clients that have answered are replaced at once, by orders with the unchanged state; otherwise when the
    window has closed.
    """

    count: int
    deadline: float | None = None
    refill: bool = False


Window = All | Every | First
