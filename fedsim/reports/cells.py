"""The numbers of a comparison in a few letters."""

from __future__ import annotations

import math

from fedsim.core.measures import Asked, is_measure, lower_is_better
from fedsim.reports.numbers import Group, Spread
from fedsim.reports.statistics import Interval, Kind, Reached


def measure_of(label: str) -> str | None:
    """Name the measure whose final or best value a label is about; None: it is about what the run cost."""
    column, _, which = label.partition(", ")
    return column if which in ("final", "best") else None


def seeds(group: Group) -> str:
    """Say how many seeds a group has, and which."""
    given = [run.seed for run in group.runs]
    numbers = [seed for seed in given if seed is not None]
    if len(numbers) < len(given) or not numbers:
        return str(len(given))
    row = numbers == list(range(numbers[0], numbers[0] + len(numbers))) and len(numbers) > 2
    which = f"{numbers[0]} to {numbers[-1]}" if row else ", ".join(map(str, numbers))
    return f"{len(numbers)} ({which})"


def cell(label: str, spread: Spread | None, runs: int, asked: Asked) -> str:
    """Write mean ± standard deviation; n where not every run of the group has the number.

    asked: which way measures improve that were asked for.
    """
    if spread is None:
        return "-"
    if not math.isfinite(spread.mean):
        return "not finite"
    measure = measure_of(label)
    if measure is None:
        text = _cost(spread.mean)
        deviation = "" if spread.deviation is None else _cost(spread.deviation)
    else:
        form = _form(measure, asked)
        text = f"{spread.mean:{form}}"
        deviation = "" if spread.deviation is None else f"{spread.deviation:{form.replace('4g', '2g')}}"
    if deviation:
        text += f" ± {deviation}"
    return text if len(spread.values) == runs else f"{text} (n = {len(spread.values)} of {runs})"


def _cost(number: float) -> str:
    """Write whole numbers whole, and others with two decimals, or two digits where they are small."""
    if number.is_integer():
        return f"{number:,.0f}"
    return f"{number:,.2f}" if number >= 0.1 else f"{number:.2g}"


def cell_interval(label: str, found: Interval | None, kind: Kind, asked: Asked) -> str:
    """Write where the mean is; by which rule, where it is not the one that is asked for."""
    if found is None:
        return "-"
    if found.kind == "equal":
        return "all equal"
    form = _form(measure_of(label) or label, asked)
    return f"{found.low:{form}} to {found.high:{form}}{'' if found.kind == kind else f' ({found.kind})'}"


def cell_spent(spent: Reached | None) -> str:
    """Write what it took to reach a target, or within what it was not."""
    if spent is None:
        return "-"
    median, came, runs = spent.median, sum(spent.reached), len(spent.reached)
    text = f"not in {_cost(max(spent.values))}" if median is None else _cost(median)
    return text if came == runs or runs == 1 else f"{text} ({came} of {runs})"


def _form(measure: str, asked: Asked) -> str:
    """How a measure is written: shares with four decimals, others with four digits."""
    return ".4f" if is_measure(measure, asked) and not lower_is_better(measure, asked) else ".4g"
