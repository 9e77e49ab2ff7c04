import math
from collections import Counter

import pytest
import torch
from scipy import stats
from turns import replies, select, turn

from fedsim.core.errors import InputError
from fedsim.server.selection.power_of_choice import PowerOfChoice
from fedsim.server.selection.weighted import Weighted

SIZES = torch.tensor([1, 2, 3, 4, 5, 6])
ALL = [True] * 6
LOSSES = [0.5, 2.0, 1.0, 2.0, 0.1, 2.0]


def test_all_as_candidates_picks_the_largest_losses_ties_by_id():
    selector = PowerOfChoice(count=2, pool=6)
    state = selector.start(SIZES)
    assert select(selector, state, turn(ALL, 2), LOSSES)[0] == [1, 3]
    assert select(selector, state, turn(ALL, 4), LOSSES)[0] == [1, 2, 3, 5]
    assert select(selector, state, turn([True, False, True, False, True, True], 2), LOSSES)[0] == [2, 5]


@pytest.mark.parametrize("loss", ["full", "last"])
@pytest.mark.parametrize("sizes", [SIZES, torch.arange(1, 31)])
def test_as_many_candidates_as_wanted_is_weighted_selection_and_asks_nobody(loss, sizes):
    selector, weighted = PowerOfChoice(count=3, pool=3, loss=loss), Weighted(count=3)
    state, other = selector.start(sizes), weighted.start(sizes)
    for number in range(20):
        now = turn([True] * len(sizes), 3, round=number)
        assert selector.candidates(state, now) is None
        ids, state = select(selector, state, now)
        wanted, other = select(weighted, other, now)
        assert ids == wanted


def test_candidates_are_drawn_by_examples_and_the_choice_is_among_them():
    selector = PowerOfChoice(count=1, pool=2)
    state, asked, chosen = selector.start(torch.tensor([1, 1, 2, 4])), Counter(), Counter()
    for number in range(1200):
        now = turn([True] * 4, 1, round=number)
        candidates = selector.candidates(state, now).tolist()
        (client,), _ = select(selector, state, now, [4.0, 3.0, 2.0, 1.0])
        assert client == candidates[0]  # the smallest id has the largest loss
        asked[tuple(candidates)] += 1
        chosen[client] += 1
    share = [1 / 8, 1 / 8, 1 / 4, 1 / 2]
    pairs = [(i, j) for i in range(4) for j in range(i + 1, 4)]
    expected = [1200 * share[i] * share[j] * (1 / (1 - share[i]) + 1 / (1 - share[j])) for i, j in pairs]
    # Fixed seeds; a right sampler is below 1e-3 for one in a thousand.
    assert stats.chisquare([asked[pair] for pair in pairs], expected).pvalue > 1e-3
    assert chosen[3] == 0


def test_candidates_are_free_and_no_more_than_there_are():
    selector = PowerOfChoice(count=2, pool=4)
    state = selector.start(SIZES)
    assert selector.candidates(state, turn([True, True, False, True, False, False], 2)).tolist() == [0, 1, 3]
    assert selector.candidates(state, turn([True, True, False, False, False, False], 2)) is None
    candidates = selector.candidates(state, turn(ALL, 2))
    assert len(candidates) == 4
    assert candidates.tolist() == sorted(set(candidates.tolist()))


def test_a_loss_that_did_not_come_is_the_smallest_and_an_infinite_one_the_largest():
    selector = PowerOfChoice(count=2, pool=6)
    losses = [math.nan, 1.0, math.nan, math.inf, -1.0, math.nan]
    for wanted, ids in ((1, [3]), (3, [1, 3, 4]), (4, [0, 1, 3, 4])):
        assert select(selector, selector.start(SIZES), turn(ALL, wanted), losses)[0] == ids


def test_a_missing_answer_is_not_taken_for_one():
    selector = PowerOfChoice(count=2, pool=6)
    with pytest.raises(ValueError, match="have not been asked"):
        selector.select(selector.start(SIZES), turn(ALL, 2), None)


def test_last_losses_where_those_without_one_come_first():
    selector = PowerOfChoice(count=2, pool=6, loss="last")
    state = selector.start(SIZES)
    assert selector.candidates(state, turn(ALL, 2)) is None
    state = selector.observe(state, replies([0, 1, 2, 3], loss=[3.0, 1.0, 2.0, 4.0]))
    assert select(selector, state, turn(ALL, 2))[0] == [4, 5]
    assert select(selector, state, turn(ALL, 4))[0] == [0, 3, 4, 5]
    # The last of two replies counts, and an older loss is forgotten.
    state = selector.observe(state, replies([1, 3, 3, 4, 5], loss=[2.5, 9.0, 0.5, 0.0, 0.0]))
    assert select(selector, state, turn(ALL, 3))[0] == [0, 1, 2]


def test_what_is_not_needed_is_not_kept():
    selector = PowerOfChoice(count=2, pool=6)
    state = selector.start(SIZES)
    assert selector.observe(state, replies([0])) is state


def test_bad_options_are_one_clear_line():
    with pytest.raises(InputError, match=r"^pool = \(nothing\): this option has no default"):
        PowerOfChoice(count=3)
    with pytest.raises(InputError, match=r"^pool = 2: give at least the 3 that are selected"):
        PowerOfChoice(count=3, pool=2)
    with pytest.raises(InputError, match=r"^selection.pool = 2: give at least the 5 that are selected"):
        PowerOfChoice(fraction=0.5, pool=2).check(10)
    PowerOfChoice(fraction=0.2, pool=2).check(10)
    with pytest.raises(InputError, match=r"^selection.count = 3: there are only 2 clients"):
        PowerOfChoice(count=3, pool=3).check(2)
    with pytest.raises(InputError, match=r"^count = \(nothing\): give count or fraction"):
        PowerOfChoice(pool=3)
    with pytest.raises(InputError, match=r'^score_examples = 8: leave it out, or take loss = "full"'):
        PowerOfChoice(count=3, pool=4, loss="last", score_examples=8)
    assert PowerOfChoice(count=3, pool=4, score_examples=8).score_examples == 8
    selector = PowerOfChoice(count=3, pool=4, loss="last")
    window = replies([0])
    window.metrics.clear()
    with pytest.raises(InputError, match=r"^selection.loss = last: the replies of this client carry no loss"):
        selector.observe(selector.start(SIZES), window)
