"""What the commands say: one line of a run, tables of a sweep, exit codes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from fedsim.core.terminal import printable
from fedsim.running.endings import ENDED

if TYPE_CHECKING:
    from fedsim.configuration.tables import Experiment
    from fedsim.core.measures import Asked
    from fedsim.running.result import Result
    from fedsim.running.sweep import Outcome

STATUS = {**{status: int(not well) for status, well in ENDED.items()}, "failed": 1, "interrupted": 130}
"""The exit code of a command after a run, or a point of a sweep, that ended so."""
MEASURES = (
    *("train_loss", "global_train_loss", "validation_loss", "validation_accuracy", "test_loss", "test_accuracy"),
    *("client_accuracy_p10", "validation_personal_loss", "validation_personal_accuracy", "validation_personal_gain"),
    *("personal_loss", "personal_accuracy", "personal_accuracy_p10", "personal_gain"),
    *("newcomer_loss", "newcomer_accuracy", "value", "gap"),
)
"""What is said of a run, where it was measured."""


def lines_of(result: Result) -> Iterator[str]:
    """Lines about what a run has come to."""
    summary = result.summary
    queries = [f"{summary['total_queries']:,} queries"] if summary["total_queries"] else []
    traffic = size_of(summary["total_bytes_up"] + summary["total_bytes_down"])
    head = f"{result.status}: {summary['rounds']} rounds in {summary['wall']:.1f} s"
    yield ", ".join([head, *measures(summary, result.asked), *queries, f"{traffic} exchanged"])
    if summary["total_failed"]:
        yield f"{summary['total_failed']} updates were not finite, or misshapen, and were left out"
    if summary.get("total_failed_queries"):
        yield f"{summary['total_failed_queries']:,} evaluations gave no finite value"
    if summary.get("failures"):
        yield f"the first failure: {summary['failures'][0]}"
    if summary.get("strays"):
        yield f"{summary['strays']} replies answered nothing that was asked, and were dropped"
    if summary["total_crashed"]:
        yield f"{summary['total_crashed']} orders ended with the failure of the client's machine"
    if summary["total_lost"]:
        share = f"{100 * summary['lost_weight']:.3g} % of the examples"
        yield f"{summary['total_lost']} clients failed for good, and with them {share}"
    if summary["faults"]:
        kinds = ", ".join(f"{number} {kind}" for kind, number in summary["faults"].items())
        yield f"{sum(summary['faults'].values())} replies were faulty on purpose: {kinds}"
    if summary["skipped"]:
        yield f"{summary['skipped']} times too few replies were left for the aggregator, and none was used"
    if result.folder is not None:
        yield f"run folder: {result.folder}"
    kept = result.config["evaluation"].get("keep_best")
    if kept is not None and f"best_{kept}" in summary:
        value, number = number_of(kept, summary[f"best_{kept}"]), summary[f"best_{kept}_round"]
        yield f"best model: {kept.replace('_', ' ')} {value}, after round {number}"
    if result.reason:
        yield result.reason


def record_of(experiment: Experiment, status: str, summary: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What a program is answered about a run."""
    ended = {"status": status, "reason": summary.get("reason", "")}
    return {"folder": folder, "name": experiment.name, "seed": experiment.seed} | ended | {"summary": summary}


def measures(summary: Mapping[str, Any], asked: Asked) -> list[str]:
    """What was measured, each with its name. asked: by which measures a run was asked to be judged, too."""
    from fedsim.core.measures import gains

    told = {**summary, **gains(summary)}
    return [f"{name.replace('_', ' ')} {number_of(name, told[name])}" for name in _said(told, asked)]


def _said(measured: Iterable[str], asked: Asked) -> list[str]:
    """Those of `MEASURES` that were measured, and of what was asked for, and then what was under attacks.

    Of these test accuracies, and training losses.
    """
    from fedsim.core.measures import CENTRAL, attack_of

    found = dict.fromkeys(measured)
    under = [name for name in found if attack_of(name, asked)]
    named = dict.fromkeys((*MEASURES, *(f"{whose}_{label}" for label in asked for whose in CENTRAL)))
    tests = [name for name in under if name.startswith("test_") and name.endswith("_accuracy")]
    losses = [name for name in under if name.startswith("global_train_") and name.endswith("_loss")]
    return [*(name for name in named if name in found), *tests, *losses]


def size_of(count: int) -> str:
    """Bytes in a unit that leaves something before the point."""
    if count < 2**17:
        return f"{count / 2**10:.1f} KiB"
    return f"{count / 2**20:.1f} MiB" if count < 2**37 else f"{count / 2**30:,.1f} GiB"


def number_of(name: str, value: float) -> str:
    """Four digits after the point; of what may be small by design, four in all."""
    return f"{value:.4g}" if name in ("value", "gap") else f"{value:.4f}"


def sweep_table(outcomes: Sequence[Outcome]) -> Table:
    """Lay out a sweep: a line for the seeds of a combination, with mean and sample deviation of their final values."""
    from fedsim.reports.comparison import ONE_TEST_SET

    asked = {label: way for outcome in outcomes for label, way in _asked(outcome).items()}
    said = _said((name for outcome in outcomes for name in outcome.summary), asked)
    names = [name for name in said if not name.startswith("client")]  # four would be too wide
    table = Table(show_edge=False)
    table.add_column("experiment", overflow="fold")
    for heading in ("seeds", *(name.replace("_", " ") for name in names)):
        table.add_column(heading, justify="right", no_wrap=True)
    for group, members in groupby(outcomes, key=lambda outcome: outcome.point.folder.parent):
        ran = list(members)
        others = Counter(outcome.status for outcome in ran if STATUS[outcome.status])
        seeds = f"{len(ran)}{''.join(f' ({number} {status})' for status, number in others.items())}"
        cells = [[outcome.summary[name] for outcome in ran if name in outcome.summary] for name in names]
        table.add_row(Text(printable("/".join(group.parts[-2:]))), seeds, *map(_cell, cells))
    if len({outcome.point.folder.parent for outcome in outcomes}) < len(outcomes):
        table.caption = "±: one sample standard deviation over the seeds"
        if any(shares_test_set(outcome.point.experiment) for outcome in outcomes):
            table.caption += f"\n{ONE_TEST_SET}"
    return table


def shares_test_set(experiment: Experiment) -> bool:
    """Whether runs of an experiment under several seeds are judged on the same test examples."""
    return getattr(experiment.problem, "split", None) == "fixed"


def _cell(values: Sequence[float | None]) -> str:
    """Write mean ± standard deviation. A value that is None was not finite."""
    from fedsim.reports.numbers import Spread

    if not values:
        return "-"
    spread = Spread(tuple(math.nan if value is None else value for value in values))
    if not math.isfinite(spread.mean):
        return "not finite"
    return f"{spread.mean:.4f}" + ("" if spread.deviation is None else f" ± {spread.deviation:.4f}")


def _asked(outcome: Outcome) -> Asked:
    """Which way measures improve that a point of a sweep was asked for."""
    return outcome.point.experiment.evaluation.asked


def outcome_line(outcome: Outcome) -> str:
    """A point of a sweep in a line."""
    head = f"{'/'.join(outcome.point.folder.parts[-3:])}: {outcome.status}"
    if outcome.reason and outcome.status != "stopped":
        return f"{head}: {outcome.reason}"
    return ", ".join([head, *measures(outcome.summary, _asked(outcome)), f"{outcome.summary['wall']:.1f} s"])
