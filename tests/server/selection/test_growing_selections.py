"""Selectors whose population grows while they are at work: whom they know, and who comes next."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fedsim.server.selection.base import Selector, SelectorState
from fedsim.server.selection.curriculum import ClientCurriculum
from fedsim.server.selection.fastest import Fastest
from fedsim.server.selection.oort import Oort
from fedsim.server.selection.power_of_choice import PowerOfChoice
from fedsim.server.selection.round_robin import RoundRobin
from fedsim.server.selection.uniform import Uniform
from fedsim.server.selection.weighted import Weighted
from fedsim.testing.selectors import SIZES, replies, turn

FOUR, SIX = SIZES[:4], torch.tensor([7, 2, 3, 4, 5, 6])
"""Of 1, 2, 3 and 4 examples; and the same, of which the first is found to have 7, with two more."""


def chosen(
    selector: Selector, state: SelectorState, wanted: int, scores: Any = None
) -> tuple[list[int], SelectorState]:
    """Who is selected of six of whom all are free, and the state after that."""
    now = turn(0, wanted, free=range(6), population=6)
    clients, after = selector.select(state, now, scores)
    return clients.tolist(), after


def test_uniform_remembers_how_often_it_has_selected():
    state = Uniform(count=2).resize({"selections": torch.tensor(3)}, SIX)
    assert {name: int(kept) for name, kept in state.items()} == {"selections": 3}


def test_round_robin_goes_on_to_those_who_have_come():
    selector = RoundRobin(count=3)
    state = selector.start(FOUR)
    for expected in ([0, 1, 2], [0, 1, 3]):
        now = turn(0, 3, free=range(4), population=4)
        clients, state = selector.select(state, now, None)
        assert clients.tolist() == expected
    assert chosen(selector, selector.resize(state, SIX), 3)[0] == [2, 3, 4]


def test_fastest_tries_those_who_have_come_first():
    selector = Fastest(count=2)
    state = selector.observe(selector.start(FOUR), replies(torch.arange(4), 0))
    clients, state = chosen(selector, selector.resize(state, SIX), 2)
    assert clients == [4, 5]
    # Of 20 + 13 c % 17 ticks: 20, 33, 29, 25; the others have not answered.
    assert chosen(selector, state, 2)[0] == [0, 3]


@pytest.mark.parametrize("selector", [Weighted(count=2), PowerOfChoice(count=2, pool=3)], ids=["weighted", "poc"])
def test_cumulative_sizes_are_those_that_are_known_now(selector):
    state = selector.resize({**selector.start(FOUR), "selections": torch.tensor(3)}, SIX)
    assert state["ends"].tolist() == [7, 9, 12, 16, 21, 27]
    assert int(state["selections"]) == 3


def test_the_losses_of_those_who_have_come_are_unknown():
    selector = PowerOfChoice(count=2, pool=6, loss="last")
    state = selector.observe(selector.start(FOUR), replies(torch.arange(4), 0))
    state = selector.resize(state, SIX)
    assert state["losses"].isinf().tolist() == [False] * 4 + [True] * 2
    assert chosen(selector, state, 2)[0] == [4, 5]


def test_oort_explores_those_who_have_come_by_their_examples():
    selector = Oort(count=2, exploration=0.5, exploration_floor=0.5, pacer_step=1)
    state = selector.observe(selector.start(FOUR), replies(torch.arange(4), 0))
    _, state = selector.select(state, turn(1, 2, free=range(4), population=4), None)
    grown = selector.resize(state, SIX)
    assert grown["sizes"].tolist() == SIX.tolist()
    assert grown["replies"].tolist() == [1, 1, 1, 1, 0, 0]
    for name in ("utility", "versions", "durations"):
        assert torch.equal(grown[name][:4], state[name])
        assert grown[name][4:].tolist() == [0, 0]
    for name in ("round", "threshold", "earned", "windows"):
        assert torch.equal(grown[name], state[name])
    clients, _ = chosen(selector, grown, 2)
    assert len({4, 5} & set(clients)) == 1, "one of two is explored, and the others are known"


def test_the_pacer_keeps_its_two_numbers_where_there_are_two_clients():
    selector = Oort(count=1)
    windows = torch.tensor([3.0, 5.0], dtype=torch.float64)
    state = selector.resize({**selector.start(FOUR[:1]), "windows": windows}, FOUR[:2])
    assert torch.equal(state["windows"], windows)


def test_who_has_come_is_in_the_next_pool_of_a_curriculum():
    selector = ClientCurriculum(count=2, rounds=1, order="random")
    state = selector.start(FOUR)
    state = {**state, "pool": torch.tensor([3, 1, 2]), "selected": torch.tensor(2)}
    state = selector.resize(state, SIX)
    assert state["pool"].tolist() == [3, 1, 2]
    seen = list[int]()
    for expected in ([1, 3], [2]):
        clients, state = chosen(selector, state, 2)
        assert clients == expected
    for _ in range(3):
        clients, state = chosen(selector, state, 2)
        seen += clients
    assert sorted(seen) == list(range(6)), "from two selected on everybody is in"


class Lends(Uniform):
    """Begins with the very sizes that it was handed: a credit for each client."""

    def start(self, sizes: torch.Tensor) -> SelectorState:
        return {**super().start(sizes), "left": sizes}


def test_sizes_that_begin_a_column_stay_as_they_were():
    sizes = SIX.clone()
    state = Lends(count=2).resize({"selections": torch.tensor(1), "left": torch.zeros(4, dtype=torch.int64)}, sizes)
    assert state["left"].tolist() == [0, 0, 0, 0, 5, 6]
    assert sizes.tolist() == SIX.tolist()


def test_what_was_handed_over_is_not_shared():
    """Neither the sizes nor the state: what is done to them later does not come back."""
    selector, sizes = Oort(count=2), SIX.clone()
    before = selector.start(FOUR)
    state = selector.resize(before, sizes)
    sizes += 1
    assert state["sizes"].tolist() == SIX.tolist()
    assert before["sizes"].tolist() == FOUR.tolist()
    assert np.all(before["replies"].numpy() == 0)
