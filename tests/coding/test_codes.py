"""Codes of sums: published ones number for number, and who may be missing."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from fedsim.coding import codes
from fedsim.core.errors import InputError

NORMAL = np.random.default_rng(0).standard_normal
FOUR = np.array([[1.0, -2.0, 3.0, -2.0]])
SIX = np.array([[-5.0, -3.0, -1.0, 1.0, 3.0, 5.0], [5.0, -1.0, -4.0, -4.0, -1.0, 5.0]])


def alive(workers: int, *gone: int) -> np.ndarray:
    return ~np.isin(np.arange(workers), gone)


def test_a_code_for_one_straggler_of_four_by_hand():
    code = codes.cyclic(FOUR)
    # Row i is in the null space of H: 1 * 1 - 2 b = 0, -2 + 3 b = 0, 3 - 2 b = 0, -2 + b = 0.
    assert code.tolist() == [[1, 0.5, 0, 0], [0, 1, pytest.approx(2 / 3), 0], [0, 0, 1, 1.5], [2, 0, 0, 1]]
    found = {gone: codes.decode(code, alive(4, gone)) for gone in range(4)}
    assert found[0] == pytest.approx([0, 1, 1 / 3, 1 / 2])
    assert found[1] == pytest.approx([2, 0, 1, -1 / 2])
    assert found[2] == pytest.approx([-1, 3 / 2, 0, 1])
    assert found[3] == pytest.approx([1, 1 / 2, 2 / 3, 0])
    assert all(codes.decode(code, alive(4, *pair)) is None for pair in combinations(range(4), 2))


def test_a_code_for_two_stragglers_of_six():
    code = codes.cyclic(SIX)
    rows = [(1, -25 / 11, 20 / 11), (1, -13 / 8, 11 / 8), (1, -13 / 11, 8 / 11), (1, -5 / 4, 11 / 20)]
    for worker, row in enumerate(rows):
        assert code[worker, worker : worker + 3] == pytest.approx(row)
    assert code[4, [4, 5, 0]] == pytest.approx([1, -1 / 5, 2 / 5])
    assert code[5, [5, 0, 1]] == pytest.approx([1, -1 / 2, 5 / 2])
    assert (np.abs(code) > 1e-12).sum(axis=1).tolist() == [3] * 6
    pairs = {pair: codes.decode(code, alive(6, *pair)) for pair in combinations(range(6), 2)}
    assert all(found is not None for found in pairs.values())
    assert pairs[0, 1][2:] == pytest.approx([1, 24 / 11, 3, 2 / 5])
    assert pairs[0, 2][[1, 3, 4, 5]] == pytest.approx([-8 / 13, 24 / 13, 43 / 13, 42 / 65])
    assert pairs[0, 3][[1, 2, 4, 5]] == pytest.approx([-4, -11 / 2, 5, 2])
    assert pairs[4, 5][:4] == pytest.approx([1, 36 / 11, 9 / 2, 20 / 11])
    assert all(codes.decode(code, alive(6, *three)) is None for three in combinations(range(6), 3))


@pytest.mark.parametrize(("workers", "stragglers"), [(6, 1), (7, 2), (10, 3)])
def test_any_s_stragglers_are_decoded_and_s_and_one_are_not(workers, stragglers):
    random = np.random.default_rng(0)
    code, gradients = codes.drawn(workers, stragglers, random.standard_normal), random.standard_normal((workers, 5))
    for gone in combinations(range(workers), stragglers):
        factors = codes.decode(code, alive(workers, *gone))
        assert factors is not None
        assert not factors[list(gone)].any()
        assert factors @ (code @ gradients) == pytest.approx(gradients.sum(axis=0), abs=1e-9)
    for gone in combinations(range(workers), stragglers + 1):
        assert codes.decode(code, alive(workers, *gone)) is None


def test_where_fewer_are_late_all_who_are_there_decode():
    code = codes.drawn(7, 3, np.random.default_rng(1).standard_normal)
    factors = codes.decode(code, alive(7, 2))
    assert factors is not None
    assert factors @ code == pytest.approx(np.ones(7))


def test_groups_that_hold_the_same_need_one_of_each():
    code = codes.repetition(4, 1)
    assert code.tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
    decoded = {pair for pair in combinations(range(4), 2) if codes.decode(code, alive(4, *pair)) is not None}
    assert decoded == {(0, 2), (0, 3), (1, 2), (1, 3)}
    assert codes.decode(code, np.zeros(4, dtype=bool)) is None


def test_no_straggler_is_no_code():
    assert codes.drawn(3, 0, NORMAL).tolist() == np.eye(3).tolist()


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: codes.drawn(4, 4, NORMAL), "stragglers = 4: of 4 workers 0 to 3 may be late"),
        (lambda: codes.drawn(4, -1, NORMAL), "stragglers = -1"),
        (lambda: codes.repetition(4, 2), "do not divide into groups of 3"),
        (lambda: codes.cyclic(np.array([[0.0, 0.0, 0.0]])), "depend on each other"),
    ],
)
def test_codes_that_there_are_not_are_refused(make, line):
    with pytest.raises(InputError, match=line):
        make()
