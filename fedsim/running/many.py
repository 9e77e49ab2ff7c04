"""How many runs a call may ask for, which is said before they are listed."""

from __future__ import annotations

from collections.abc import Sequence

from fedsim.core.errors import InputError, shortened

MOST = 100_000
"""Runs that one call may ask for."""


def hold_few(option: str, value: object, number: int) -> None:
    """Refuse more runs than anybody waits for, before they are listed."""
    if number > MOST:
        raise InputError(option, value, f"these are {shortened(f'{number:,}')} runs, and a call makes {MOST:,} at most")


def length(seeds: Sequence[int]) -> int:
    """How many there are, also of a range that is longer than what `len` can say."""
    return max(0, -((seeds.start - seeds.stop) // seeds.step)) if isinstance(seeds, range) else len(seeds)
