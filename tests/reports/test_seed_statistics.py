"""Statistics of a few seeds, held against numbers by hand, other libraries' and many data sets in which nothing is."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from fedsim.core.errors import InputError
from fedsim.reports.statistics import (
    Reached,
    difference,
    effect_of,
    held_kind,
    held_level,
    holm,
    interval,
)

A, B = (0.912, 0.921, 0.934, 0.918, 0.951, 0.957), (0.883, 0.902, 0.905, 0.931, 0.912, 0.924)


def seeded(values, first=0):
    return dict(enumerate(values, start=first))


def test_intervals_by_students_t_are_those_of_statsmodels():
    # statsmodels 0.15.0: DescrStatsW(A).tconfint_mean(0.05), and (0.2).
    found = interval(A)
    assert (found.low, found.high, found.kind) == (pytest.approx(0.9127771776), pytest.approx(0.9515561557), "t")
    narrow = interval(A, level=0.8)
    assert (narrow.low, narrow.high) == (pytest.approx(0.9210343085), pytest.approx(0.9432990248))


def test_the_bootstraps_interval_is_scipys_and_the_same_every_time():
    found = interval(A, "bootstrap")
    other = stats.bootstrap((np.array(A),), np.mean, method="BCa", rng=np.random.default_rng(1)).confidence_interval
    assert found == interval(A, "bootstrap")
    assert found.kind == "bootstrap"
    assert (found.low, found.high) == pytest.approx((other.low, other.high), abs=1e-3)
    wide = interval(A, "bootstrap", level=0.99)
    assert wide.low < found.low < np.mean(A) < found.high < wide.high


def test_too_few_equal_and_infinite_values_have_the_interval_that_is_said():
    assert interval([0.5]) is None
    assert interval([0.5, math.nan, 0.7]) is None
    assert interval([0.5, math.inf, 0.7], "bootstrap") is None
    assert interval([0.5, 0.7], "bootstrap") == interval([0.5, 0.7])
    assert interval([0.5, 0.7], "bootstrap").kind == "t"
    for kind in ("t", "bootstrap"):
        equal = interval([0.1 + 0.2, 0.3, 0.3], kind)
        assert (equal.kind, equal.low) == ("equal", equal.high)


def test_equal_seeds_are_pairs():
    # statsmodels: DescrStatsW(A - B).ttest_mean(0) and .tconfint_mean(); pingouin 0.7.0: wilcoxon(A, B).
    found = difference(seeded(A), seeded(B), lower=False)
    assert (found.test, found.seeds, found.sign) == ("paired t", (6,), 1)
    assert found.p == pytest.approx(0.030911956283515767)
    assert (found.interval.low, found.interval.high) == pytest.approx((0.0030934493927, 0.0422398839406))
    assert found.ranks == pytest.approx(0.0625)
    assert found.mean == pytest.approx(np.mean(A) - np.mean(B))
    # Cohen's d_z is 1.215293710007692; J(5) = 0.8408 (Hedges 1981, table 1).
    assert found.effect == pytest.approx(1.215293710007692 * 0.8408, rel=1e-4)
    turned = difference(seeded(B), seeded(A), lower=False)
    assert (turned.p, turned.mean, turned.sign) == (found.p, pytest.approx(-found.mean), -1)
    assert turned.interval.low == pytest.approx(-found.interval.high)
    # The order in which seeds stand says nothing; of the longer group others are left out.
    mixed = {seed: B[seed] for seed in (3, 0, 5, 1, 4, 2)} | {9: 0.1}
    assert difference(seeded(A), mixed, lower=False).p == pytest.approx(found.p)
    assert difference(seeded(A[:5]), seeded(B[:5]), lower=False).ranks is None


def test_other_seeds_are_not_pairs():
    # statsmodels: CompareMeans(A, B).ttest_ind(usevar="unequal") and .tconfint_diff.
    found = difference(seeded(A), seeded(B, first=1), lower=False)
    assert (found.test, found.seeds) == ("Welch's t", (6, 6))
    assert found.p == pytest.approx(0.051981951597471404)
    assert (found.interval.low, found.interval.high) == pytest.approx((-0.0002361212057, 0.0455694544539))
    assert found.ranks is None
    # pingouin: Cohen's d 1.2742262420343158, pooled over both; J(10) = 0.9228.
    assert found.effect == pytest.approx(1.2742262420343158 * 0.9228, rel=1e-4)


def test_hedges_factor_is_that_of_his_table():
    assert [effect_of(1.0, 1.0, freedom) for freedom in (2, 10, 50)] == pytest.approx(
        [0.5642, 0.9228, 0.9849], abs=1e-4
    )
    assert effect_of(1.0, 1.0, 1) is None


@pytest.mark.parametrize(
    ("one", "other", "why"),
    [
        ({0: 1.0}, {0: 2.0}, "one seed has no spread"),
        ({0: 1.0}, {1: 2.0, 2: 3.0}, "the seeds are no pairs, and one run has no spread"),
        ({0: 1.0, 1: 1.0}, {2: 2.0, 3: 2.0}, "the seeds are no pairs, and neither group has a spread"),
        ({0: 0.1, 1: 0.3}, {0: 0.2, 1: 0.4}, "the difference is the same for every seed"),
        ({0: 0.3, 1: 0.5}, {0: 0.1 + 0.2, 1: 0.5}, "runs of equal seeds come to the same"),
        ({0: 1.0, 1: math.nan}, {0: 2.0, 1: 3.0}, "values are not finite, and ranks of fewer than 6 pairs say nothing"),
        ({0: 1.0, 1: math.nan}, {2: 2.0, 3: 3.0}, "values are not finite, and the seeds are no pairs"),
    ],
)
def test_what_cannot_be_tested_says_why(one, other, why):
    found = difference(one, other, lower=False)
    assert (found.test, found.p, found.why) == (None, None, why)


def test_what_is_not_finite_is_the_worst_of_all_ranks():
    # Differences -7, 1, 2, 3, 4, 5, of which the run that diverged has the highest rank, 6: 2 * P(W <= 6) = 28 / 64.
    one, other = [math.nan, 1.0, 2.0, 3.0, 4.0, 5.0], [7.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    found = difference(seeded(one), seeded(other), lower=False)
    assert (found.test, found.sign, found.interval) == ("Wilcoxon", 1, None)
    assert found.p == pytest.approx(28 / 64)
    # Where less is better it is the highest value, and one is worse for every seed: 2 / 2^6.
    assert difference(seeded(one), seeded(other), lower=True).p == pytest.approx(2 / 64)
    # Two that diverged are alike, and say nothing: five are left.
    assert difference(seeded(one), seeded([math.nan, *other[1:]]), lower=False).p == pytest.approx(2 / 32)
    assert difference(seeded([math.nan] * 6), seeded([math.inf] * 6), lower=True).p is None


def test_ranks_of_equal_differences_are_exact_whatever_their_last_bits_are():
    # Five of six differences of 0.1 are above, which in floats are of several sizes: 2 (1 + 6) / 2^6 by their signs.
    base = np.array([0.1, 0.3, 0.6, 0.7, 0.8, 0.9])
    other = base + 0.1 * np.array([1, 1, 1, 1, 1, -1])
    assert len(np.unique(np.abs(other - base))) > 1
    assert difference(seeded(other), seeded(base), lower=False).ranks == pytest.approx(14 / 64)


def test_holms_correction_is_that_of_statsmodels():
    # statsmodels: multipletests(given, method="holm").
    given = [0.013, 0.2, 0.041, 0.0021, 0.03, 0.9]
    assert holm(given) == pytest.approx([0.065, 0.4, 0.123, 0.0126, 0.12, 0.9])
    assert holm([0.04]) == [0.04]
    assert holm([]) == []


def test_nothing_is_found_where_nothing_is():
    """Of 400 comparisons of five alike groups of five seeds, some pair of ten is told apart in at most 5 % + 3 s."""
    draws = np.random.default_rng(0)
    for shared in (0, 1):  # none, or much of the spread is the seed's, and the same for all groups
        wrong = wrong_uncorrected = 0
        for _ in range(200):
            values = draws.normal(size=(5, 5)) + 3 * shared * draws.normal(size=5)
            tested = [
                difference(seeded(one), seeded(other), lower=False).p for one, other in combinations(values.tolist(), 2)
            ]
            wrong += min(holm(tested)) <= 0.05
            wrong_uncorrected += min(tested) <= 0.05
        assert wrong <= 200 * (0.05 + 3 * math.sqrt(0.05 * 0.95 / 200))
        assert wrong_uncorrected > 200 * 0.15


@pytest.mark.parametrize(
    ("kind", "count", "least"), [("t", 5, 0.935), pytest.param("bootstrap", 25, 0.88, marks=pytest.mark.slow)]
)
def test_intervals_cover_the_mean_as_often_as_they_say(kind, count, least):
    draws, runs = np.random.default_rng(0), 1500 if kind == "t" else 150
    found = [interval(values, kind) for values in draws.normal(2.0, 0.5, size=(runs, count)).tolist()]
    assert least <= np.mean([one.low <= 2.0 <= one.high for one in found]) <= 0.985


def test_a_median_counts_those_that_never_came():
    # lifelines 0.30.3: KaplanMeierFitter().fit(values, reached).median_survival_time_.
    assert Reached((3, 5, 8, 8), (True, True, False, False)).median == 5
    assert Reached((3, 5, 8, 8), (True, False, False, False)).median is None
    assert Reached((2, 4, 4, 9, 9, 12), (True, False, True, True, False, True)).median == 9
    assert Reached((7,), (True,)).median == 7
    assert Reached((7, 9), (False, False)).median is None
    early = (True, False, True, True, False, True, True, True)
    assert Reached((2, 3, 3, 5, 6, 8, 8, 9), early).median == 8
    assert Reached((1, 4, 5, 5, 7, 9), (True, False, True, True, True, False)).median == 5
    # lifelines says 68, which is what the only one took that came there.
    assert Reached((60, 68, 66), (False, True, False)).median is None


def test_levels_and_kinds_that_are_none_are_refused():
    for wrong in (0.0, 0.49, 1.0, 95, math.nan):
        with pytest.raises(InputError, match=f"level = {wrong}: choose one of at least 0.5 and below 1"):
            held_level(wrong)
    with pytest.raises(InputError, match="interval = boot: name one of: t, bootstrap; did you mean bootstrap"):
        held_kind("boot")
