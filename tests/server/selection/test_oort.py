import math
from collections import Counter
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from scipy import stats
from turns import replies, select, turn

from fedsim.core.errors import InputError
from fedsim.server.selection.oort import Oort

EXPLOIT = {"exploration": 0.0, "exploration_floor": 0.0}
# Only those whose score is at least that of rank k: the best, and who is as good as the last of them.
SHARP = {**EXPLOIT, "cut_off": 1.0, "augmentation": 0.0}


def known(selector, utility, *, durations=None, examples=None, population=None, round=0):  # noqa: A002
    """The state after a round in which clients 0 to k-1 replied; everybody has 10 examples."""
    state = selector.start(torch.full((population or len(utility),), 10))
    ids = list(range(len(utility)))
    window = replies(ids, utility=utility, durations=durations, examples=examples, round=round)
    return selector.observe(state, window)


def mask(*bits):
    return np.array(bits, dtype=bool)


def test_it_asks_for_the_utility_and_for_no_losses():
    selector = Oort(count=2)
    assert selector.reports == {"utility"}
    assert selector.candidates(known(selector, [1.0, 2.0, 3.0]), turn([True] * 3, 2)) is None


def test_scores_by_hand():
    selector = Oort(count=2, clip=0.75)
    # Utilities times examples: 10, 40, 30, 60, 80; clipped at the value of rank int(5 * .75) = 3 from 0, which is 60;
    # from 10 to 60: 0, .6, .4, 1, 1.
    state = known(
        selector, [1.0, 2.0, 3.0, 4.0, 4.0], examples=[10, 20, 10, 15, 20], durations=[40, 50, 20, 80, 30], round=3
    )
    bonus = math.sqrt(0.1 * math.log(10) / 4)  # t = 10 in the tenth round, t_i = 4 of the fourth
    # T is the duration of rank int(5 * .3) = 1: 30.
    wanted = [bonus * (3 / 4) ** 2, (0.6 + bonus) * (3 / 5) ** 2, 0.4 + bonus, (1 + bonus) * (3 / 8) ** 2, 1 + bonus]
    np.testing.assert_allclose(selector.scores(state, mask(1, 1, 1, 1, 1), 9), wanted)
    # Clipped and scaled over those that can be selected, 10, 30 and 80 with the bound 80 of rank int(3 * .75) = 2: 0,
    # 2/7 and 1. T stays that of all.
    wanted = [bonus * (3 / 4) ** 2, 0, 2 / 7 + bonus, 0, 1 + bonus]
    np.testing.assert_allclose(selector.scores(state, mask(1, 0, 1, 0, 1), 9), wanted)
    # A threshold of 100 punishes nobody; neither do equal durations.
    free = {**state, "threshold": torch.tensor(100.0, dtype=torch.float64)}
    wanted = [bonus + utility for utility in (0, 0.6, 0.4, 1, 1)]
    np.testing.assert_allclose(selector.scores(free, mask(1, 1, 1, 1, 1), 9), wanted)
    equal = {**state, "durations": torch.full((5,), 7)}
    np.testing.assert_allclose(selector.scores(equal, mask(1, 1, 1, 1, 1), 9), wanted)


def test_equal_utilities_are_all_one_and_the_long_absent_come_first():
    selector = Oort(count=1, **SHARP)
    state = known(selector, [2.0, 2.0, 2.0])
    state = selector.observe(state, replies([0, 2], utility=[2.0, 2.0], round=5))
    # t = 10; t_i = 6, 1, 6.
    late, early = (1 + math.sqrt(0.1 * math.log(10) / t) for t in (6, 1))
    np.testing.assert_allclose(selector.scores(state, mask(1, 1, 1), 9), [late, early, late])
    assert select(selector, state, turn([True] * 3, 1, round=9))[0] == [1]


def test_the_best_are_exploited():
    selector = Oort(count=2, **SHARP)
    state = known(selector, [1.0, 4.0, 2.0, 3.0])
    assert select(selector, state, turn([True] * 4, 2, round=1))[0] == [1, 3]
    assert select(selector, state, turn([True, False, True, True], 2, round=1))[0] == [2, 3]
    # Half as useful by the losses, but with four times the examples.
    state = selector.observe(state, replies([0], utility=[2.0], examples=[40]))
    assert select(selector, state, turn([True] * 4, 2, round=1))[0] == [0, 1]


def test_of_two_replies_in_a_window_the_last_counts():
    selector = Oort(count=1, **SHARP)
    state = known(selector, [3.0, 2.0, 1.0])
    state = selector.observe(state, replies([0, 2, 2], utility=[1.0, 9.0, 2.5], durations=[1, 5, 1]))
    assert state["replies"].tolist() == [2, 1, 3]
    assert state["utility"].tolist() == [10, 20, 25]
    assert state["durations"].tolist() == [1, 1, 1]


def test_exploitation_is_in_proportion_to_the_scores_down_to_the_cut_off():
    # In the first round there is no bonus: scores 0, .25, .5, .75, 1.
    free = turn([True] * 5, 1)

    def law(selector):
        state, counts = known(selector, [0.0, 1.0, 2.0, 3.0, 4.0]), Counter()
        for number in range(1200):
            ids, _ = select(selector, {**state, "selections": torch.tensor(number)}, free)
            counts[ids[0]] += 1
        return counts

    # Half of the score of the best: 2, 3 and 4 with odds 2 : 3 : 4 of 9. Fixed seeds; a right sampler is below 1e-3 for
    # one in a thousand.
    counts = law(Oort(count=1, **EXPLOIT, cut_off=0.5, augmentation=0.0))
    assert counts.keys() == {2, 3, 4}
    assert stats.chisquare([counts[i] for i in (2, 3, 4)], [1200 * odds / 9 for odds in (2, 3, 4)]).pvalue > 1e-3
    # Four times as many as wanted, whatever they score: 1 to 4 with odds 1 : 2 : 3 : 4 of 10.
    counts = law(Oort(count=1, **EXPLOIT, cut_off=1.0, augmentation=4.0))
    assert counts.keys() == {1, 2, 3, 4}
    assert stats.chisquare([counts[i] for i in (1, 2, 3, 4)], [120, 240, 360, 480]).pvalue > 1e-3


def test_who_scores_nothing_is_taken_only_where_others_do_not_suffice():
    selector = Oort(count=3, **EXPLOIT)
    state = known(selector, [0.0, 0.0, 0.0, 1.0, 2.0])
    # Scores 0, 0, 0, .5, 1: ties to the smaller id, never; they are as likely.
    third = Counter()
    for number in range(60):
        ids, _ = select(selector, {**state, "selections": torch.tensor(number)}, turn([True] * 5, 3))
        assert ids[1:] == [3, 4]
        third[ids[0]] += 1
    assert third.keys() == {0}


def test_the_first_rounds_explore_in_proportion_to_examples():
    selector = Oort(count=1)
    sizes, counts = torch.tensor([1, 2, 3, 4]), Counter()
    state = selector.start(sizes)
    for number in range(1000):
        counts[select(selector, {**state, "selections": torch.tensor(number)}, turn([True] * 4, 1))[0][0]] += 1
    assert stats.chisquare([counts[i] for i in range(4)], [100, 200, 300, 400]).pvalue > 1e-3


@pytest.mark.parametrize(("round", "explored"), [(0, 9), (1, 5), (2, 4), (9, 4)])
def test_the_share_of_exploration_decays_to_its_floor(round, explored):  # noqa: A002
    selector = Oort(count=10, exploration=0.9, exploration_decay=0.5, exploration_floor=0.35)
    state = known(selector, [1.0] * 20, population=40)
    counts = set()
    for number in range(30):
        ids, _ = select(selector, {**state, "selections": torch.tensor(number)}, turn([True] * 40, 10, round=round))
        counts.add(sum(client >= 20 for client in ids))
    # 10 * (.9, .45, max(.225, .35), .35), the halves either way.
    assert counts == ({9} if round == 0 else {explored - 1, explored})


def test_one_at_a_time_explores_as_often_as_the_share_says():
    selector = Oort(count=1, exploration=0.4, exploration_decay=1.0)
    state = known(selector, [1.0] * 10, population=20)
    explored = 0
    for number in range(500):
        (client,), _ = select(selector, {**state, "selections": torch.tensor(number)}, turn([True] * 20, 1))
        explored += client >= 10
    # 200 expected, with a standard deviation of sqrt(500 * .4 * .6) = 11.
    assert 160 < explored < 240


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_when_one_kind_is_short_the_other_fills_up(share):
    selector = Oort(count=3, exploration=share, exploration_decay=1.0, exploration_floor=0.0)
    few_known = known(selector, [1.0, 2.0], population=6)
    ids, _ = select(selector, few_known, turn([True] * 6, 4))
    assert sum(client < 2 for client in ids) == (2 if share == 0 else 0)
    few_unknown = known(selector, [1.0, 2.0, 3.0, 4.0, 5.0], population=6)
    ids, _ = select(selector, few_unknown, turn([True] * 6, 4))
    assert (5 in ids) == (share == 1)
    all_known = known(selector, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    assert len(select(selector, all_known, turn([True] * 6, 4))[0]) == 4


def test_the_blacklist_bars_those_with_most_replies():
    selector = Oort(count=1, **SHARP, blacklist_rounds=1, blacklist_share=0.5)
    state = known(selector, [1.0, 2.0, 3.0, 4.0])
    free = turn([True] * 4, 1)
    assert select(selector, state, free)[0] == [3]
    state = selector.observe(state, replies([3], utility=[4.0]))
    assert select(selector, state, free)[0] == [2]
    state = selector.observe(state, replies([2], utility=[3.0]))
    assert select(selector, state, free)[0] == [1]
    # Three have replied twice and half of four may be barred: those with the smaller ids.
    state = selector.observe(state, replies([1], utility=[2.0]))
    assert select(selector, state, free)[0] == [3]
    # Unless one has replied more often.
    state = selector.observe(state, replies([3], utility=[4.0]))
    assert select(selector, state, free)[0] == [2]


def test_a_blacklist_that_leaves_too_few_is_overlooked():
    selector = Oort(count=2, **SHARP, blacklist_rounds=1, blacklist_share=1.0)
    state = known(selector, [1.0, 2.0, 3.0, 4.0])
    state = selector.observe(state, replies([1, 2, 3], utility=[2.0, 3.0, 4.0]))
    assert select(selector, state, turn([True] * 4, 1))[0] == [0]
    assert select(selector, state, turn([True] * 4, 2))[0] == [2, 3]
    state = selector.observe(state, replies([0], utility=[1.0]))
    assert select(selector, state, turn([True] * 4, 2))[0] == [2, 3]
    nobody = Oort(count=2, **SHARP, blacklist_rounds=1, blacklist_share=0.0)
    assert select(nobody, state, turn([True] * 4, 1))[0] == [3]


def thresholds(selector, earned):
    """The pacer's threshold in each round, when the exploited reply of a round earns so much."""
    state = known(selector, [1.0, 1.0])
    found = []
    for number, utility in enumerate(earned):
        _, state = select(selector, state, turn([True, True], 1, round=number))
        found.append(float(state["threshold"]))
        state = selector.observe(state, replies([0], utility=[utility], round=number))
    return found


def test_the_pacer_compares_two_windows_of_rounds():
    pacer = {"pacer_step": 2, "pacer_delta": 10.0, "round_threshold": 25.0}
    # Windows of two rounds: 2; 2.125, 6 % more: flat; 3, 41 % more: neither; 21, six times as much more: sharp; 21
    # again: flat; 3, which is 86 % less: neither.
    earned = [1, 1, 1, 1.125, 1.5, 1.5, 20, 1, 10.5, 10.5, 1, 2, 0, 0]
    assert thresholds(Oort(count=1, **pacer), earned) == [25] * 4 + [35] * 4 + [25] * 2 + [35] * 4
    # Never above 100, nor by itself below pacer_delta; who starts below it does not rise by falling.
    assert thresholds(Oort(count=1, **{**pacer, "round_threshold": 95.0}), [1] * 7) == [95] * 4 + [100] * 3
    rising = [1, 1, 9, 9, 90, 90, 900, 900]
    assert thresholds(Oort(count=1, **pacer), rising)[-1] == 10
    assert thresholds(Oort(count=1, **{**pacer, "round_threshold": 4.0}), rising)[-1] == 4


def test_the_pacer_takes_the_mean_of_exploited_replies_in_a_round_however_often_it_selects():
    selector = Oort(count=1)
    state = known(selector, [1.0, 1.0], population=4)
    _, state = select(selector, state, turn([True] * 4, 1))
    state = selector.observe(state, replies([0], utility=[4.0]))
    _, state = select(selector, state, turn([True] * 4, 1))
    # Client 3 replies for the first time: it was explored.
    state = selector.observe(state, replies([1, 3], utility=[2.0, 9.0]))
    assert state["earned"].tolist() == [60, 2]
    assert state["windows"].tolist() == [0, 0]
    _, state = select(selector, state, turn([True] * 4, 1, round=1))
    assert state["earned"].tolist() == [0, 0]
    assert state["windows"].tolist() == [0, 30]


BASE = {
    "count": 5,
    "exploration": 0.6,
    "exploration_decay": 0.9,
    "exploration_floor": 0.2,
    "clip": 0.9,
    "temporal": 0.1,
    "cut_off": 0.8,
    "augmentation": 1.0,
    "round_threshold": 60.0,
    "round_penalty": 2.0,
    "pacer_step": 4,
    "pacer_delta": 8.0,
    "pacer_flat": 0.1,
    "pacer_sharp": 5.0,
    "blacklist_rounds": 6,
    "blacklist_share": 0.2,
}
OTHER = {
    "count": 6,
    "exploration": 0.8,
    "exploration_decay": 0.7,
    "exploration_floor": 0.4,
    "clip": 0.5,
    "temporal": 1.0,
    "cut_off": 0.4,
    "augmentation": 3.0,
    "round_threshold": 20.0,
    "round_penalty": 0.0,
    "pacer_step": 3,
    "pacer_delta": 20.0,
    "pacer_flat": 0.9,
    "pacer_sharp": 0.2,
    "blacklist_rounds": None,
    "blacklist_share": 0.5,
}


def history(selector, population=30, rounds=30):
    """Who works in a world in which losses fall as a client works, each at its own speed."""
    state, worked, found = selector.start(torch.arange(1, population + 1)), Counter(), []
    for number in range(rounds):
        ids, state = select(selector, state, turn([True] * population, selector.of(population), round=number))
        worked.update(ids)
        utility = [(1 + i % 7) / worked[i] * (1 + 0.5 * math.sin(number)) for i in ids]
        durations = [100 + 37 * i % 90 for i in ids]
        state = selector.observe(state, replies(ids, utility=utility, durations=durations, round=number))
        found.append(ids)
    return found


@pytest.mark.parametrize("option", OTHER)
def test_every_option_moves_something(option):
    assert BASE.keys() == OTHER.keys()
    base = Oort(**BASE)
    assert {field.name for field in fields(base)} == {*BASE, "fraction"}
    assert history(replace(base, **{option: OTHER[option]})) != history(base)


def test_bad_options_are_one_clear_line():
    bad = {"exploration": 1.5, "clip": -0.1, "pacer_step": 0, "round_threshold": 101.0, "blacklist_rounds": -1}
    for option, value in bad.items():
        with pytest.raises(InputError, match=f"^{option} = "):
            Oort(count=1, **{option: value})
