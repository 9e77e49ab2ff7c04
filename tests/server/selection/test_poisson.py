import numpy as np
import pytest
import torch
from turns import turn

from fedsim.core.errors import InputError
from fedsim.server.selection.poisson import Poisson


def select(selector, state, now):
    chosen, after = selector.select(state, now, None)
    return chosen.tolist(), after


def drawn(selector, rounds, population=40):
    state, chosen = selector.start(torch.ones(population, dtype=torch.int64)), np.zeros((rounds, population))
    for number in range(rounds):
        ids, state = select(selector, state, turn([True] * population, population, round=number))
        chosen[number, ids] = 1
    return chosen


def test_each_client_has_a_coin_of_its_own():
    """Of 400 x 40 coins of .25 the mean is within .015, and the size of a round varies as that of 40 coins, 7.5."""
    chosen = drawn(Poisson(fraction=0.25), 400)
    assert chosen.mean() == pytest.approx(0.25, abs=0.015)
    assert chosen.sum(axis=1).var() == pytest.approx(7.5, rel=0.25)
    assert chosen.mean(axis=0).min() > 0.15


def test_a_coin_is_the_same_whoever_else_is_free():
    selector = Poisson(fraction=0.5)
    state, half = selector.start(torch.ones(40, dtype=torch.int64)), [client % 2 == 0 for client in range(40)]
    everybody, few = select(selector, state, turn([True] * 40, 40))[0], select(selector, state, turn(half, 40))[0]
    assert few == [client for client in everybody if client % 2 == 0]


def test_groups_come_in_turn():
    chosen = drawn(Poisson(fraction=1.0, groups=3), 4, population=7)
    assert [np.flatnonzero(row).tolist() for row in chosen] == [[0, 3, 6], [1, 4], [2, 5], [0, 3, 6]]
    assert Poisson(fraction=0.5, groups=4).expected(16) == 2.0


def test_a_round_may_have_nobody():
    assert 0 in drawn(Poisson(fraction=0.01), 20).sum(axis=1)
    assert Poisson(fraction=0.01).least(100) == 0


def test_groups_of_nobody_are_refused():
    with pytest.raises(InputError, match=r"^selection\.groups = 9: there are only 7 clients"):
        Poisson(fraction=0.5, groups=9).check(7)
