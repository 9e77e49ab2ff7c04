"""What a few seeds allow to say: intervals, tests, effects, and medians of what some runs never came to.

All of it is about plain numbers, one a run; SciPy computes what it has. NaN stands for a value that was not finite.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from fedsim.core.errors import InputError
from fedsim.core.near import name_one
from fedsim.core.philox import key_of

Kind = Literal["t", "bootstrap"]
RESAMPLES = 9999
"""So many samples are drawn of a sample for its bootstrap interval."""
FEWEST = 3
"""So many values a bootstrap takes: of two it has three different means to draw."""
RANKS = 6
"""So many pairs a test by ranks takes: five allow it no p below 2 / 2^5 = 0.06."""
LEVEL = 0.95
ONE_SEED = "one seed has no spread"
"""Why one run of each of two groups is no test."""
ROUNDING = 1e-12
"""What differs by less than this share of its size does not differ."""


@dataclass(frozen=True)
class Interval:
    """Where the mean is, with the confidence that was asked for.

    kind: by Student's t or the bootstrap; equal: all values are, and say nothing of how far others would be from them.
    """

    low: float
    high: float
    kind: Literal["t", "bootstrap", "equal"]


def interval(values: Sequence[float], kind: Kind = "t", level: float = LEVEL) -> Interval | None:
    """The interval of the mean of values; None: there is one value, or one that is not finite.

    t: mean ± t(n - 1) s / sqrt(n). bootstrap: bias-corrected and accelerated (Efron 1987), from `RESAMPLES` samples
    with replacement, which are the same for the same values; of fewer than `FEWEST` values it is that of Student's t.
    """
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return None
    sample = np.asarray(values, dtype=np.float64)
    if _is_constant(sample):
        return Interval(float(sample.mean()), float(sample.mean()), "equal")
    if kind == "t" or len(sample) < FEWEST:
        return _by_t(float(sample.mean()), float(sample.var(ddof=1)) / len(sample), len(sample) - 1, level)[0]
    from scipy import stats

    drawn = stats.bootstrap(
        (sample,),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=level,
        method="BCa",
        rng=_drawn("bootstrap"),
    ).confidence_interval
    return Interval(float(drawn.low), float(drawn.high), "bootstrap")


@dataclass(frozen=True)
class Difference:
    """How far the mean of one group is above that of another.

    test: "paired t", "Welch's t" or "Wilcoxon"; None: nothing can be tested, and why says why. seeds: how many pairs
    there are, or how many runs either has. mean: one less other, NaN where it is not finite; sign: 1 where one is above
    the other, -1 below, 0 neither. interval: of the mean, by the test's own t. p: two-sided, by the test. ranks: p of
    Wilcoxon's test beside a paired t, from `RANKS` pairs on. effect: Hedges' g, see `effect_of`.
    """

    test: Literal["paired t", "Welch's t", "Wilcoxon"] | None
    seeds: tuple[int, ...]
    mean: float
    sign: int = 0
    interval: Interval | None = None
    p: float | None = None
    ranks: float | None = None
    effect: float | None = None
    why: str = ""


def difference(
    one: Mapping[Any, float], other: Mapping[Any, float], *, lower: bool, level: float = LEVEL
) -> Difference:
    """Compare two groups, whose values are named by their seeds. lower: whether less is better.

    Values of equal seeds are pairs where the group that has fewer seeds has none that the other lacks: the test is a
    paired t of these. Else it is Welch's, of all values. A value that is not finite is worse than all that are: it has
    no mean, and pairs are compared by their ranks alone (Wilcoxon's signed ranks, exact, from `RANKS` pairs on).
    """
    pairs = [seed for seed in one if seed in other]
    if len(pairs) == min(len(one), len(other)):
        first, second = (np.array([group[seed] for seed in pairs]) for group in (one, other))
        return _paired(first, second, lower, level)
    return _apart(np.array(list(one.values())), np.array(list(other.values())), level)


def _paired(one: Any, other: Any, lower: bool, level: float) -> Difference:
    seeds = (len(one),)
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        return _by_ranks(one, other, math.inf if lower else -math.inf)
    away = one - other
    mean, size = float(away.mean()), max(np.abs(one).max(), np.abs(other).max())
    if np.abs(away).max() <= ROUNDING * size:
        return Difference(None, seeds, mean, why="runs of equal seeds come to the same")
    sign = int(np.sign(mean))
    if len(one) < 2:
        return Difference(None, seeds, mean, sign, why=ONE_SEED)
    if np.ptp(away) <= ROUNDING * size:
        return Difference(None, seeds, mean, sign, why="the difference is the same for every seed")
    between, p = _by_t(mean, float(away.var(ddof=1)) / len(away), len(away) - 1, level)
    effect = effect_of(mean, float(away.std(ddof=1)), len(away) - 1)
    return Difference(
        "paired t", seeds, mean, sign, between, p, _signed_ranks(away) if len(one) >= RANKS else None, effect
    )


def _by_ranks(one: Any, other: Any, worst: float) -> Difference:
    """Compare pairs where values that are not finite stand for the worst."""
    from scipy import stats

    seeds = (len(one),)
    if len(one) < RANKS:
        why = f"values are not finite, and ranks of fewer than {RANKS} pairs say nothing"
        return Difference(None, seeds, math.nan, why=why)
    first, second = (np.where(np.isfinite(values), values, worst) for values in (one, other))
    alike = first == second
    if alike.all():
        return Difference(None, seeds, math.nan, why="runs of equal seeds come to the same")
    away = first[~alike] - second[~alike]
    sign = int(np.sign((np.sign(away) * stats.rankdata(np.abs(away))).sum()))
    return Difference("Wilcoxon", seeds, math.nan, sign, p=_signed_ranks(away))


def _apart(one: Any, other: Any, level: float) -> Difference:
    seeds, mean = (len(one), len(other)), float(one.mean() - other.mean())
    if not math.isfinite(mean):
        return Difference(None, seeds, math.nan, why="values are not finite, and the seeds are no pairs")
    sign = int(np.sign(mean))
    if min(seeds) < 2:
        return Difference(None, seeds, mean, sign, why="the seeds are no pairs, and one run has no spread")
    if _is_constant(one) and _is_constant(other):
        return Difference(None, seeds, mean, sign, why="the seeds are no pairs, and neither group has a spread")
    freedom, spreads = np.array(seeds) - 1, np.array([one.var(ddof=1), other.var(ddof=1)])
    shares = spreads / seeds
    between, p = _by_t(mean, float(shares.sum()), float(shares.sum() ** 2 / (shares**2 / freedom).sum()), level)
    pooled = math.sqrt(float((spreads * freedom).sum() / freedom.sum()))
    return Difference("Welch's t", seeds, mean, sign, between, p, effect=effect_of(mean, pooled, int(freedom.sum())))


def _by_t(mean: float, variance: float, freedom: float, level: float) -> tuple[Interval, float]:
    """The interval of a mean that is estimated with this variance, and p of its being zero. freedom: degrees of it."""
    from scipy.special import stdtr, stdtrit

    error = math.sqrt(variance)
    reach = error * float(stdtrit(freedom, (1 + level) / 2))
    return Interval(mean - reach, mean + reach, "t"), 2 * float(stdtr(freedom, -abs(mean) / error))


def effect_of(mean: float, deviation: float, freedom: int) -> float | None:
    """Hedges' g = J(f) mean / deviation with J(f) = Gamma(f / 2) / (sqrt(f / 2) Gamma((f - 1) / 2)).

    deviation: of the differences of pairs, which makes it Cohen's d_z but for J, or pooled over two groups. freedom: f,
    the degrees of freedom it was estimated with. None: with one of them J is 0.
    """
    if freedom < 2:
        return None
    shrunk = math.exp(math.lgamma(freedom / 2) - math.lgamma((freedom - 1) / 2)) / math.sqrt(freedom / 2)
    return shrunk * mean / deviation


def holm(given: Sequence[float]) -> list[float]:
    """P values after Holm's (1979) correction: the chance to claim anything at all where nothing is, is at most alpha.

    Of m, in rising order: p_(k) <- max over j <= k of min(1, (m - j + 1) p_(j)).
    """
    corrected, highest = [0.0] * len(given), 0.0
    for place, index in enumerate(sorted(range(len(given)), key=given.__getitem__)):
        highest = max(highest, min(1.0, (len(given) - place) * given[index]))
        corrected[index] = highest
    return corrected


@dataclass(frozen=True)
class Reached:
    """What it took the runs of a group to reach a target. values: until then, or all that a run had; reached: whether.

    A run that did not reach it is censored where it ended.
    """

    values: tuple[float, ...]
    reached: tuple[bool, ...]

    @property
    def median(self) -> float | None:
        """What it takes half the runs, after Kaplan and Meier (1958): the first at which no more than half are left.

        None: more than half are left at the end, or fewer than half came there. Where the others ended before, those
        few that went on would speak for all.
        """
        from scipy import stats

        if 2 * sum(self.reached) < len(self.reached):
            return None
        came = [value for value, reached in zip(self.values, self.reached, strict=True) if reached]
        left = [value for value, reached in zip(self.values, self.reached, strict=True) if not reached]
        survival = stats.ecdf(stats.CensoredData(uncensored=came, right=left)).sf
        # Products of fractions: 2 / 3 * 3 / 4 is half but for its last bit.
        below = survival.probabilities <= 0.5 + 1e-12
        return float(survival.quantiles[below][0]) if below.any() else None


def held_level(level: float) -> float:
    """The level of confidence. InputError: it is none that is used."""
    if not 0.5 <= level < 1:
        raise InputError("level", level, "choose one of at least 0.5 and below 1, such as 0.95")
    return level


def held_kind(kind: str) -> Kind:
    """The kind of an interval. InputError: there is none of this name."""
    for known in get_args(Kind):
        if kind == known:
            return known  # type: ignore[no-any-return]
    raise InputError("interval", kind, name_one(kind, get_args(Kind)))


def _signed_ranks(away: Any) -> float:
    """P of Wilcoxon's test of differences without those that are zero.

    Exact; but of 14 and more of which some are equal, from `RESAMPLES` choices of their signs.
    """
    from scipy import stats

    # Differences of shares are often equal but for their last bits, by which ranks must not be chosen.
    even = np.round(away / np.abs(away[np.isfinite(away)]).max(initial=1e-300), 12)
    left = even[even != 0]
    exact: Any = "exact"
    if len(np.unique(np.abs(left))) < len(left):
        exact = stats.PermutationMethod(n_resamples=RESAMPLES, rng=_drawn("signs"))
    return float(stats.wilcoxon(left, method=exact).pvalue)


def _drawn(purpose: str) -> np.random.Generator:
    """The random numbers for a purpose, always the same."""
    return np.random.Generator(np.random.Philox(key_of(0, purpose)))


def _is_constant(values: Any) -> bool:
    """Whether numbers are equal but for their rounding."""
    return bool(np.ptp(values) <= ROUNDING * np.abs(values).max())
