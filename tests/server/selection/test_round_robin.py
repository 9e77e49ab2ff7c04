import torch
from turns import select, turn

from fedsim.server.selection.round_robin import RoundRobin


def test_it_goes_round_and_on_from_where_it_stopped():
    selector = RoundRobin(count=2)
    state, chosen = selector.start(torch.ones(5, dtype=torch.int64)), []
    for _ in range(4):
        ids, state = select(selector, state, turn([True] * 5, 2))
        chosen.append(ids)
    assert chosen == [[0, 1], [2, 3], [0, 4], [1, 2]]


def test_who_is_not_free_waits_for_the_next_lap():
    selector = RoundRobin(count=2)
    state, chosen = selector.start(torch.ones(6, dtype=torch.int64)), []
    masks = [[0, 0, 1, 1, 1, 1], [1, 0, 1, 1, 0, 1], [1, 1, 1, 1, 1, 1]]
    for mask in masks:
        ids, state = select(selector, state, turn(map(bool, mask), 2))
        chosen.append(ids)
    # After 3 comes 5, since 4 is not free, then 0; after 0 comes 1.
    assert chosen == [[2, 3], [0, 5], [1, 2]]


def test_where_all_free_are_taken_it_stops_at_the_last_of_them():
    selector = RoundRobin(count=3)
    state = {**selector.start(torch.ones(6, dtype=torch.int64)), "next": torch.tensor(3)}
    everybody = [True] * 6
    # In order: 4, then 1; so that 2 is next.
    ids, state = select(selector, state, turn([False, True, False, False, True, False], 3))
    assert ids == [1, 4]
    # Only 5 is free: then comes 0. Nobody is: that stays.
    ids, at_the_end = select(selector, state, turn([False] * 5 + [True], 3))
    assert ids == [5]
    ids, unmoved = select(selector, at_the_end, turn([False] * 6, 3))
    assert ids == []
    assert select(selector, state, turn(everybody, 3))[0] == [2, 3, 4]
    assert select(selector, unmoved, turn(everybody, 3))[0] == [0, 1, 2]
