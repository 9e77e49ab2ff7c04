"""Who comes furthest for what it costs: Pareto fronts of what groups came to and of what they sent or gave away.

A group is on the front of a measure and a cost where no other one costs at most as much and is at least as good, and
one of the two strictly. It goes by the means over the seeds; whether seeds tell two groups apart, the tests say.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedsim.core.measures import Asked, lower_is_better
from fedsim.plots.costs import Panel
from fedsim.reports.cells import measure_of
from fedsim.reports.numbers import EPSILON, Group

COSTS = ("up (MiB)", "down (MiB)", EPSILON)
"""The numbers that are costs to be weighed against what was reached."""
ALIKE = 1.01
"""Groups whose costs differ by less than this factor cost the same, and there is nothing to weigh."""
ON = "on the front"
"""Where a group is that none leaves behind."""


@dataclass(frozen=True)
class Front:
    """A measure against a cost. behind: of each group that has both, a group that leaves it behind; None: none does."""

    label: str
    cost: str
    behind: Mapping[str, str | None]

    @property
    def on(self) -> list[str]:
        """The groups on the front, from the cheapest on."""
        return [name for name, other in self.behind.items() if other is None]

    @property
    def heading(self) -> str:
        """What the front is of."""
        return f"{self.label} for {self.cost}"

    def cell(self, name: str) -> str:
        """Where a group is."""
        if name not in self.behind:
            return "-"
        other = self.behind[name]
        return ON if other is None else f"behind {other}"


def fronts_of(groups: Sequence[Group], labels: Sequence[str], asked: Asked) -> list[Front]:
    """The fronts of these measures with every cost in which the groups that have both differ."""
    found = []
    for label in labels:
        sign = 1.0 if lower_is_better(measure_of(label) or label, asked) else -1.0
        for cost in COSTS:
            places = [
                (group.numbers[cost].mean, sign * group.numbers[label].mean, place, group.name)
                for place, group in enumerate(groups)
                if all(one in group.numbers and math.isfinite(group.numbers[one].mean) for one in (label, cost))
            ]
            paid = [place[0] for place in places]
            if len(paid) > 1 and max(paid) > ALIKE * min(paid):
                found.append(Front(label, cost, _behind(places)))
    return found


def panels_of(groups: Sequence[Group], fronts: Sequence[Front]) -> list[Panel]:
    """What is drawn of fronts: of each group the values of its runs, without costs where it has none."""
    panels = []
    for front in fronts:
        found = {}
        for group in groups:
            values, costs = group.numbers.get(front.label), group.numbers.get(front.cost)
            if values is not None and math.isfinite(values.mean):
                paid = () if costs is None or not math.isfinite(costs.mean) else costs.values
                found[group.name] = (paid, values.values)
        panels.append(Panel(front.label, front.cost, found, front.on))
    return panels


def records(fronts: Sequence[Front]) -> list[dict[str, Any]]:
    """A table a front, as programs read it."""
    return [
        {"number": front.label, "cost": front.cost, "front": front.on, "behind": dict(front.behind)} for front in fronts
    ]


def _behind(places: Sequence[tuple[float, float, int, str]]) -> dict[str, str | None]:
    """Who leaves whom behind. places: what each has paid, how bad it is, its number and its name."""
    behind: dict[str, str | None] = {}
    best = None
    # From the cheapest on, the better ones first: who is behind at all is so of the best one before it.
    for paid, worse, _, name in sorted(places):
        if best is None or worse < best[1]:
            behind[name], best = None, (paid, worse, name)
        else:
            behind[name] = None if (paid, worse) == best[:2] else best[2]
    return behind
