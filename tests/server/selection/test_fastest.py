from collections import Counter

import pytest
import torch
from scipy import stats
from turns import replies, select, turn

from fedsim.server.selection.fastest import Fastest

SIZES = torch.ones(6, dtype=torch.int64)
ALL = [True] * 6


def seen(durations):
    """The state after a first round in which these clients have replied, each after so many ticks."""
    selector = Fastest(count=3)
    _, state = select(selector, selector.start(SIZES), turn([i in durations for i in range(6)], 6))
    return selector, selector.observe(state, replies(list(durations), durations=list(durations.values())))


def test_the_shortest_last_durations_ties_by_id():
    selector, state = seen({0: 50, 1: 30, 2: 10, 3: 30, 4: 30, 5: 40})
    assert select(selector, state, turn(ALL, 1))[0] == [2]
    assert select(selector, state, turn(ALL, 3))[0] == [1, 2, 3]
    assert select(selector, state, turn([True, True, False, False, True, True], 3))[0] == [1, 4, 5]
    # The last duration counts, and the later of two in a window.
    state = selector.observe(state, replies([1, 2, 2], durations=[60, 5, 70]))
    assert select(selector, state, turn(ALL, 3))[0] == [3, 4, 5]


def test_who_was_never_selected_comes_first_then_the_fast_and_last_who_never_replied():
    selector, state = seen({0: 50, 1: 30, 2: 10})
    assert select(selector, state, turn(ALL, 3))[0] == [3, 4, 5]
    ids, state = select(selector, state, turn(ALL, 5))
    assert ids == [1, 2, 3, 4, 5]
    # 3, 4 and 5 were cancelled.
    assert select(selector, state, turn(ALL, 4))[0] == [0, 1, 2, 3]
    state = selector.observe(state, replies([5], durations=[1]))
    assert select(selector, state, turn(ALL, 2))[0] == [2, 5]


@pytest.mark.parametrize(("wanted", "sets"), [(2, 6), (3, 4)])
def test_those_never_selected_are_equally_likely(wanted, sets):
    selector, state = seen({0: 1, 1: 1})
    counts = Counter()
    for number in range(600):
        counts[tuple(select(selector, state, turn(ALL, wanted, round=number))[0])] += 1
    # Pairs or triples of clients 2 to 5; fixed seeds, a right sampler is below 1e-3 for one in a thousand.
    assert len(counts) == sets
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3
