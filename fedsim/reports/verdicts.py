"""Which of several groups is better, as far as their seeds can tell.

Every pair of groups is tested on every measure that is asked for; all these tests are one family, over which p is
corrected by Holm's rule. So the chance that a comparison calls anything better where nothing is, is at most 1 - level.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import combinations
from typing import Any

from fedsim.core.measures import Asked, lower_is_better
from fedsim.reports.cells import measure_of
from fedsim.reports.numbers import Group
from fedsim.reports.statistics import LEVEL, ONE_SEED, Difference, difference, holm

POINTS = frozenset({"accuracy", "success"})
"""Words of measures of which a hundredth is called a point."""
ALL = 4
"""Of more groups than so many only the pairs with the best are shown."""
NEAREST = 5
"""And so many of these, with the highest p, are put into words."""


@dataclass(frozen=True)
class Pair:
    """Two groups by one number, such as `test_accuracy, final`.

    difference: of `one` from `other`. lower: whether less is better. level: of confidence. family: how many tests p is
    corrected for; p and ranks are so, where there are any.
    """

    label: str
    one: str
    other: str
    difference: Difference
    lower: bool
    level: float
    family: int = 0
    p: float | None = None
    ranks: float | None = None

    @property
    def ahead(self) -> str | None:
        """Who has the better mean, or ranks, be it by chance; None: neither."""
        if self.difference.sign == 0:
            return None
        return self.one if (self.difference.sign < 0) == self.lower else self.other

    @property
    def better(self) -> str | None:
        """Who is better; None: these seeds cannot tell."""
        return self.ahead if self.p is not None and self.p <= 1 - self.level else None

    def __str__(self) -> str:
        """The verdict in a sentence."""
        found, ahead = self.difference, self.ahead
        if found.p is None or self.p is None or ahead is None:
            return f"{self.label}: {self.one} and {self.other}: no test, as {found.why}"
        behind = self.other if ahead == self.one else self.one
        holds = self.better is not None
        size = ""
        if found.interval is not None:
            unit = 100.0 if not POINTS.isdisjoint(self.label.partition(",")[0].split("_")) else 1.0
            turn = -unit if found.sign < 0 else unit
            ends = sorted((turn * found.interval.low, turn * found.interval.high))
            level = "" if self.level == LEVEL else f"{100 * self.level:g} %: "
            middle, low, high = _rounded(turn * found.mean, *ends)
            size = f"{' by' if holds else ''} {middle}{' points' if unit > 1 else ''} ({level}{low} to {high})"
        chance = f"{_chance(self.p)}{' after Holm' if self.family > 1 else ''}"
        if holds:
            return f"{self.label}: {ahead} is better than {behind}{size}, {chance}, {self._seeds()}"
        apart = f": {ahead} is ahead by{size}, {chance}" if size else f": {chance}"
        return f"{self.label}: {self._seeds()} cannot tell {ahead} and {behind} apart{apart}"

    def _seeds(self) -> str:
        numbers = self.difference.seeds
        if self.difference.test == "Wilcoxon":
            return f"{numbers[0]} paired seeds by their ranks"
        if len(numbers) == 1:
            return f"{numbers[0]} paired seeds"
        return f"{numbers[0]} and {numbers[1]} unpaired seeds"


@dataclass(frozen=True)
class Verdicts:
    """All pairs of the groups by all numbers that were tested, in their order."""

    pairs: tuple[Pair, ...]

    def told(self, label: str, name: str) -> bool:
        """Whether a group is better by a number than every other one that has it."""
        met = [pair for pair in self.pairs if pair.label == label and name in (pair.one, pair.other)]
        return bool(met) and all(pair.better == name for pair in met)

    @property
    def notes(self) -> list[str]:
        """What bold means where there are tests: by which, and corrected for how many."""
        done = [pair for pair in self.pairs if pair.p is not None]
        if not done:
            return []
        names = " or ".join(dict.fromkeys(str(pair.difference.test) for pair in done))
        corrected = f" after Holm's correction for {done[0].family} tests" if done[0].family > 1 else ""
        return [f"bold: better than every other, by {names}, p at most {1 - done[0].level:g}{corrected}"]

    @property
    def lines(self) -> list[str]:
        """The verdicts, a line each; of many groups those about the best one."""
        return [line for label in dict.fromkeys(pair.label for pair in self.pairs) for line in self._lines(label)]

    def _lines(self, label: str) -> list[str]:
        pairs = [pair for pair in self.pairs if pair.label == label]
        reasons = {pair.difference.why for pair in pairs}
        if len(reasons) == 1 and "" not in reasons:
            hint = "; run several seeds, as with --seeds 0-4" if reasons == {ONE_SEED} else ""
            return [f"{label}: no test, as {reasons.pop()}{hint}"]
        if len(pairs) == 1:
            return [str(pairs[0])]
        best = _best(pairs)
        met = [pair for pair in pairs if best in (pair.one, pair.other)]
        tied = [pair.other if pair.one == best else pair.one for pair in met if pair.better != best]
        if tied:
            more = f" and {len(tied) - NEAREST} more" if len(tied) > NEAREST else ""
            head = f"{label}: {best} is ahead, but is not told from {', '.join(tied[:NEAREST])}{more}"
        else:
            head = f"{label}: {best} is better than each of the other {len(met)}"
        shown = self.shown(label)
        near = sorted(shown, key=lambda pair: -1.0 if pair.difference.p is None else -pair.difference.p)[:NEAREST]
        return [head, *(str(pair) for pair in shown if len(met) < ALL or pair in near)]

    def shown(self, label: str) -> list[Pair]:
        """The pairs by a number; of more than `ALL` groups those with the best."""
        pairs = [pair for pair in self.pairs if pair.label == label]
        if len(pairs) <= ALL * (ALL - 1) // 2:
            return pairs
        best = _best(pairs)
        return [pair for pair in pairs if best in (pair.one, pair.other)]

    def __str__(self) -> str:
        return "\n".join(self.lines)

    def _repr_html_(self) -> str:
        return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in self.lines)}</ul>"

    @property
    def records(self) -> list[dict[str, Any]]:
        """A row a pair and number; p_holm and p_ranks_holm are corrected, p and p_ranks are not."""
        rows = []
        for pair in self.pairs:
            found = pair.difference
            between = (math.nan, math.nan) if found.interval is None else (found.interval.low, found.interval.high)
            row: dict[str, Any] = {"number": pair.label, "group": pair.one, "other": pair.other, "test": found.test}
            row |= {"seeds": found.seeds[0], "other_seeds": found.seeds[-1], "difference": found.mean}
            row |= {"low": between[0], "high": between[1], "level": pair.level, "hedges_g": found.effect}
            row |= {"p": found.p, "p_holm": pair.p, "p_ranks": found.ranks, "p_ranks_holm": pair.ranks}
            rows.append({**row, "better": pair.better, "why_no_test": found.why})
        return rows

    def to_pandas(self) -> Any:
        """The `records` as a DataFrame."""
        import pandas

        return pandas.DataFrame(self.records)


def judge(groups: Sequence[Group], labels: Sequence[str], asked: Asked, level: float) -> Verdicts:
    """Compare all pairs of groups by the numbers that these labels name; groups that lack one are left out of it."""
    pairs: list[Pair] = []
    for label in labels:
        lower = lower_is_better(measure_of(label) or label, asked)
        having = [(group.name, values) for group in groups if (values := group.by_seed(label))]
        pairs += (
            Pair(label, name, other, difference(values, others, lower=lower, level=level), lower, level)
            for (name, values), (other, others) in combinations(having, 2)
        )
    found = [(place, pair.difference.p) for place, pair in enumerate(pairs) if pair.difference.p is not None]
    ranked = [(place, pair.difference.ranks) for place, pair in enumerate(pairs) if pair.difference.ranks is not None]
    for (place, _), p in zip(found, holm([p for _, p in found]), strict=True):
        pairs[place] = replace(pairs[place], p=p, family=len(found))
    for (place, _), p in zip(ranked, holm([p for _, p in ranked]), strict=True):
        pairs[place] = replace(pairs[place], ranks=p)
    return Verdicts(tuple(pairs))


def _best(pairs: Sequence[Pair]) -> str:
    """Who is ahead most often; of several the first."""
    wins = Counter(pair.ahead for pair in pairs)
    return max(dict.fromkeys(name for pair in pairs for name in (pair.one, pair.other)), key=wins.__getitem__)


def _chance(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def _rounded(middle: float, low: float, high: float) -> tuple[str, str, str]:
    """Three numbers to as many digits as say where the middle is: two of half the distance of low and high."""
    digits = 1 - math.floor(math.log10((high - low) / 2)) if high > low else 4
    if digits > 6:
        return f"{middle:.3g}", f"{low:.3g}", f"{high:.3g}"
    digits = max(0, digits)
    first, second, third = (f"{round(number, digits) + 0.0:,.{digits}f}" for number in (middle, low, high))
    return first, second, third
