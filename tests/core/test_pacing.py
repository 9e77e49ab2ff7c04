"""Pacing functions against their closed forms."""

from __future__ import annotations

import math
from itertools import pairwise, product

import pytest

from fedsim.core.errors import InputError
from fedsim.core.pacing import Exponential, Linear, Logarithmic, Quadratic, SquareRoot, Step

KINDS = [Linear, Quadratic, SquareRoot, Step, Exponential, Logarithmic]
TOTAL, COUNT = 200, 1000


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("a", "b"), [(0.8, 0.2), (0.5, 0.01), (1.0, 0.29), (0.2, 0.2)])
def test_pacing_begins_at_b_ends_at_all_and_never_falls(kind, a, b):
    pacing = kind(a=a, b=b)
    items = [pacing.items(step, TOTAL, COUNT) for step in range(TOTAL + 10)]
    assert items[0] == round(b * COUNT)
    assert items[int(a * TOTAL)] == COUNT
    assert all(item == COUNT for item in items[int(a * TOTAL) :])
    assert all(before <= after for before, after in pairwise(items))


@pytest.mark.parametrize("kind", KINDS)
def test_all_items_are_in_from_the_first_with_b_1_or_a_0(kind):
    assert {kind(a=0.8, b=1.0).items(step, TOTAL, COUNT) for step in range(TOTAL)} == {COUNT}
    assert {kind(a=0.0, b=0.2).items(step, TOTAL, COUNT) for step in range(TOTAL)} == {COUNT}


@pytest.mark.parametrize(
    ("kind", "share"),
    [
        (Linear, 0.2 + 0.8 * 0.25),
        (Quadratic, 0.2 + 0.8 * 0.0625),
        (SquareRoot, 0.2 + 0.8 * 0.5),
        (Step, 0.2),
        (Exponential, 0.2 + 0.8 * (math.exp(2.5) - 1.0) / (math.exp(10.0) - 1.0)),
        (Logarithmic, 0.2 + 0.8 * (1.0 + 0.1 * math.log(0.25 + math.exp(-10.0)))),
    ],
)
def test_a_quarter_of_the_way(kind, share):
    # t = 40 of a T = 0.8 * 200 = 160.
    assert kind().items(40, TOTAL, 10**6) == int(share * 10**6)


def test_a_pacing_that_would_select_nothing_selects_one():
    assert Linear(b=0.0).items(0, TOTAL, COUNT) == 1
    assert Quadratic(b=0.001).items(0, TOTAL, 5) == 1


def test_shares_above_one_are_refused():
    with pytest.raises(InputError, match=r"a = 1\.5"):
        Linear(a=1.5)


def test_all_items_are_in_at_a_of_the_steps_whatever_is_rounded():
    for percent, total in product(range(1, 101), (10, 50, 100, 200, 1000)):
        if percent * total % 100 == 0:
            items = Step(a=percent / 100, b=0.2).items(percent * total // 100, total, COUNT)
            assert items == COUNT, (percent, total)
