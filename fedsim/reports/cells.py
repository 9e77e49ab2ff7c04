"""The numbers of a comparison in a few letters."""

from __future__ import annotations

import math
from collections.abc import Mapping

from fedsim.core.measures import Asked, is_measure, lower_is_better
from fedsim.reports.numbers import Group, Spread


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
        share = is_measure(measure, asked) and not lower_is_better(measure, asked)
        text = f"{spread.mean:{'.4f' if share else '.4g'}}"
        deviation = "" if spread.deviation is None else f"{spread.deviation:{'.4f' if share else '.2g'}}"
    if deviation:
        text += f" ± {deviation}"
    return text if len(spread.values) == runs else f"{text} (n = {len(spread.values)} of {runs})"


def _cost(number: float) -> str:
    """Write whole numbers whole, and others with two decimals, or two digits where they are small."""
    if number.is_integer():
        return f"{number:,.0f}"
    return f"{number:,.2f}" if number >= 0.1 else f"{number:.2g}"


def cell_spent(group: Group, measure: str, label: str, spent: Mapping[str, Spread]) -> str:
    """Write what it took to reach a target; never, where no run did that was measured."""
    runs = len(group.runs)
    if spent or not any(measure in run.history.columns for run in group.runs):
        return cell(label, spent.get(label), runs, group.asked)
    return "never" if runs == 1 else f"never (n = 0 of {runs})"
