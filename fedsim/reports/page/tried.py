"""What was tried: the trials of a search, or groups whose options differ, and what came of each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fedsim.core.measures import first, lower_is_better
from fedsim.core.terminal import printable
from fedsim.reports.cells import measure_of
from fedsim.reports.comparison import Comparison
from fedsim.reports.numbers import Spread
from fedsim.reports.page.columns import shortened
from fedsim.reports.page.tables import Cell, Line, Table
from fedsim.running.study import Study, Trial

FEWEST = 3
"""Of fewer groups a picture of what was tried says nothing."""
MOST = 8
"""So many options are drawn, of a search the most important ones."""
WIDE = 30.0
"""Beyond this ratio of the largest to the least the axis of an option is logarithmic."""


def main(comparison: Comparison) -> tuple[str, dict[int, Spread]] | None:
    """The first of what is said of runs that all groups have, with its finite values by the group's place."""
    for measure in first(comparison.asked):
        label = f"{measure}, final"
        spreads = {
            place: spread
            for place, group in enumerate(comparison.groups)
            if (spread := group.numbers.get(label)) is not None and math.isfinite(spread.mean)
        }
        if spreads and len(spreads) == len(comparison.groups):
            return label, spreads
    return None


def tried(comparison: Comparison, study: Study | None) -> dict[str, Any] | None:
    """What is drawn of it, as JSON takes it; None: there is nothing to draw.

    axes: the options; lines: of each trial or group its values, in their order, and the outcome, None where it has
    none. group: the place of a group. importance: of options their shares.
    """
    if study is not None:
        return _searched(study)
    found = main(comparison)
    options = [
        name for name in comparison.differing if name not in ("name", "rounds") and not name.startswith("versions.")
    ]
    if found is None or len(comparison.groups) < FEWEST or not options:
        return None
    label, spreads = found
    options = options[:MOST]
    lines = [
        {
            "name": group.name,
            "group": place,
            "state": "complete",
            "values": [_value(group.runs[0].config.get(option)) for option in options],
            "outcome": shortened(spreads[place].mean),
        }
        for place, group in enumerate(comparison.groups)
    ]
    lower = lower_is_better(measure_of(label) or label, comparison.asked)
    return _drawn(options, lines, label, lower=lower) | {"importance": None}


def _searched(study: Study) -> dict[str, Any]:
    options = sorted(study.space, key=lambda option: -(study.importance or {}).get(option, 0.0))[:MOST]
    lines = [
        {
            "name": f"trial {trial.number}",
            "group": None,
            "state": trial.state,
            "values": [_value(trial.options.get(option)) for option in options],
            "outcome": shortened(trial.value),
        }
        for trial in study.trials
    ]
    importance = None if study.importance is None else {name: shortened(x) for name, x in study.importance.items()}
    return _drawn(options, lines, study.metric, lower=not study.higher_is_better) | {"importance": importance}


def _drawn(options: Sequence[str], lines: Sequence[Mapping[str, Any]], metric: str, *, lower: bool) -> dict[str, Any]:
    columns = [[line["values"][place] for line in lines] for place in range(len(options))]
    axes = [{"name": option, "log": _is_wide(column)} for option, column in zip(options, columns, strict=True)]
    return {"axes": axes, "lines": lines, "metric": metric, "better": "lower" if lower else "higher"}


def _value(value: Any) -> float | int | str | None:
    """A number, or a text; None where the option is absent."""
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return shortened(value)
    return printable(str(value))


def _is_wide(values: Sequence[Any]) -> bool:
    """Whether values are positive numbers over more than one power of ten and a half."""
    numbers = [value for value in values if isinstance(value, int | float)]
    return len(numbers) == len(values) and bool(numbers) and min(numbers) > 0 and max(numbers) > WIDE * min(numbers)


def trials(study: Study) -> Table:
    """A line a trial, the best first."""
    others = [trial for trial in study.trials if trial.value is None]
    heads = ("trial", "state", *map(printable, study.space), study.metric, "seeds", "rounds", "seconds")
    lines = [_line(trial, study) for trial in [*study.ranked, *others]]
    return Table("trials", "What was tried", heads, tuple(lines))


def _line(trial: Trial, study: Study) -> Line:
    state = f"{trial.state}: {trial.reason}" if trial.reason else trial.state
    cells = [Cell(printable(state))]
    for option in study.space:
        value = _value(trial.options.get(option))
        cells.append(Cell("–" if value is None else str(value), value if isinstance(value, int | float) else None))
    best = trial.number == study.best
    cells.append(Cell("–" if trial.value is None else f"{trial.value:.4g}", trial.value, best))
    cells += [Cell(str(len(trial.values)), len(trial.values)), Cell(f"{trial.rounds:,}", trial.rounds)]
    return Line(str(trial.number), (*cells, Cell(f"{trial.seconds:.1f}", trial.seconds)))


def search_lines(study: Study) -> list[str]:
    """How a search was made, what is best, and what the test set says of it."""
    way = "higher" if study.higher_is_better else "lower"
    said = [
        f"{len(study.trials)} trials, proposed by {study.sampler}, given up by {study.pruner}.",
        f"Chosen by {study.metric} ({way} is better), over {len(study.seeds)} seeds.",
    ]
    best = study.best_trial
    if best is not None and best.value is not None:
        options = ", ".join(f"{name} = {value}" for name, value in best.options.items())
        said.append(f"Best: trial {best.number}, {study.metric} {best.value:.4g}, with {options}.")
    if study.test is not None:
        measures = [f"{name} {sum(values) / len(values):.4g}" for name, values in study.test.items() if values]
        said.append(f"On the test set, which nothing was chosen by, the best comes to {', '.join(measures)}.")
    return [printable(line) for line in said]
