"""Windows: when the server stops waiting for replies."""

from __future__ import annotations

from collections.abc import Collection
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


@dataclass(frozen=True)
class Enough:
    """Closes after (1 + patience) times the first reply's time, if it can do without those who are late; or with all.

    It can do without whoever is not `needed`, and without at most `most` who are not `excused`. Where it cannot, every
    order is waited for.
    """

    patience: float
    most: int
    needed: frozenset[int] = frozenset()
    excused: frozenset[int] = frozenset()

    def without(self, late: Collection[int]) -> bool:
        """Whether it can do without these clients."""
        return self.needed.isdisjoint(late) and len(set(late) - self.excused) <= self.most

    def end(self, opened: int, first: int) -> int:
        """The tick at which it looks, where it was opened at one and the first reply came at another."""
        return first + round(self.patience * (first - opened))


Window = All | Every | First | Enough
