"""The time that is left, of runs whose pace is known."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import pytest

from fedsim.cli.reckoner import Reckoner

NOISE = random.Random(0)
PACES: dict[str, tuple[int, Callable[[int], float], Callable[[int], int]]] = {
    "constant": (30, lambda _: 1.0, lambda _: 1),
    "first round compiles": (30, lambda r: 20.0 if r == 1 else 1.0, lambda _: 1),
    "judged every 5, cheap": (50, lambda r: 2.0 if r % 5 == 0 else 1.0, lambda r: r % 5 == 0),
    "judged every 5, dear": (50, lambda r: 101.0 if r % 5 == 0 else 1.0, lambda r: r % 5 == 0),
    "judged every 7, and compiled first": (
        100,
        lambda r: 1.0 + 10 * (r % 7 == 0) + 50 * (r == 1),
        lambda r: r % 7 == 0,
    ),
    "judging compiles": (100, lambda r: 1.0 + 3 * (r % 5 == 0) + 30 * (r == 5), lambda r: r % 5 == 0),
    "attacked every 50, judged every 5": (
        1000,
        lambda r: 1.0 + 10 * (r % 5 == 0) + 200 * (r % 50 == 0),
        lambda r: (r % 5 == 0) + (r % 50 == 0),
    ),
    "drifts to 1.4 times": (100, lambda r: 1.0 + 0.4 * r / 100, lambda _: 1),
    "uneven": (60, lambda _: NOISE.uniform(0.7, 1.3), lambda _: 1),
}


@pytest.mark.parametrize("pace", PACES)
def test_after_a_tenth_the_time_left_is_right_within_a_fifth(pace):
    rounds, cost, measures = PACES[pace]
    walls = [*itertools.accumulate(map(cost, range(1, rounds + 1)))]
    reckoner = Reckoner(rounds)
    for number, wall in enumerate(walls[:-1], 1):
        reckoner.add(number, wall, measures(number))
        left = walls[-1] - wall
        # In the last tenth less than a period is left, and a fifth of it is little.
        if rounds / 10 <= number <= 0.9 * rounds:
            assert reckoner.left() == pytest.approx(left, rel=0.2)
            # Half a second later half a second less is left.
            assert reckoner.left(0.5) == pytest.approx((reckoner.left() or 0.0) - 0.5)


def test_nobody_knows_at_once_and_no_time_is_less_than_none():
    reckoner = Reckoner(3.0)
    assert reckoner.left() is None
    reckoner.add(1, 5.0, 1)  # nor how long further rounds take
    assert reckoner.left() is None
    reckoner.add(2, 6.0, 1)
    assert reckoner.left() == 1.0
    assert reckoner.left(2.0) == 0.0


def test_virtual_time_is_counted_as_rounds_are():
    """Rows at 10, 20, 30 of 100 virtual seconds, each 2 s after the one before: 7 more of them are 14 s."""
    reckoner = Reckoner(100.0)
    for number in (1, 2, 3):
        reckoner.add(10.0 * number, 2.0 * number, 1)
    assert reckoner.left() == pytest.approx(14.0)


def test_a_run_that_goes_on_is_not_reckoned_from_its_beginning():
    """Resumed after 500 rounds of a slower machine, rounds take 1 s."""
    reckoner = Reckoner(1000.0)
    for number in range(501, 511):
        reckoner.add(number, 5000.0 + number - 500, 1)
    assert reckoner.left() == pytest.approx(490.0)
