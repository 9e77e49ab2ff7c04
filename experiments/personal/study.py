"""Runs of every method in a setting: rates and knobs chosen on some seeds, and what is told on others.

Whose models are judged is told by the columns: `client_accuracy` is that of the model for all on each client's own
examples, `personal_accuracy` that of the client's own model on the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.table import Table

from experiments.parts import carry_out
from experiments.personal import HERE
from experiments.personal.methods import METHODS, Choice, Method
from experiments.studies import Numbers, cell
from fedsim.plots.style import BRIGHT, INK, plain, save
from fedsim.reports.statistics import Difference, difference, holm
from fedsim.running.stored import open_run
from fedsim.running.sweep import Outcome, Point, expand

TOLD = range(5)
"""Seeds of which is told."""
LEVEL = 0.05
"""The p of a paired t below which one method is called ahead of another."""
COLUMNS = ("accuracy", "accuracy_mean", "accuracy_p10")
"""What is told of a row: over all examples together, the mean of the clients, and their tenth percentile."""


@dataclass(frozen=True)
class Setting:
    """Where methods are compared. name: of its file. rates: that are tried. batch: examples of a step of fine-tuning.

    choosing: seeds by which rates and knobs are chosen. methods: which are compared there.
    """

    name: str
    rates: tuple[str, ...]
    batch: str
    choosing: Sequence[int] = range(100, 102)
    methods: tuple[str, ...] = tuple(METHODS)


@dataclass(frozen=True, eq=False)
class Row:
    """A row of a table. label: the method, and whether clients have tuned. values: by `COLUMNS`, of the seeds, [S]."""

    label: str
    choice: Choice
    values: Mapping[str, Numbers]

    @property
    def final(self) -> Numbers:
        """Accuracies over the examples of all clients together, [S]."""
        return self.values["accuracy"]


BASES = {"fedavg+": "FedAvg + fine-tuning", "local": "local training"}
"""What every method has to beat, by their names in results."""
Results = Mapping[str, Row]
"""Rows by the method's name, with `+` after those that clients have tuned."""


def columns_of(method: Method) -> Mapping[str, str]:
    """By the end of a row's name, whose columns it has."""
    return {"": "personal"} if method.alone else {"": "client", "+": "personal"}


def runs(
    name: str, choice: Choice, setting: Setting, seeds: Sequence[int], out: Path, data_dir: Path | None
) -> list[Point]:
    """A method's runs with a choice, seed by seed."""
    place = out / name / "_".join(choice.values())
    overrides = METHODS[name].overrides(choice, setting.batch)
    return expand([HERE / f"{setting.name}.toml"], out=place, seeds=seeds, overrides=overrides, data_dir=data_dir)


def read(points: Sequence[Point], whose: str) -> dict[str, Numbers]:
    """What runs came to, by `COLUMNS`; 0 where one has diverged."""
    found = [open_run(point.folder).summary() or {} for point in points]
    return {
        column: np.array([one[f"{whose}_{column}"] if one["status"] == "finished" else 0.0 for one in found])
        for column in COLUMNS
    }


def measure(
    setting: Setting,
    out: Path,
    *,
    data_dir: Path | None = None,
    workers: int | None = None,
    on_done: Callable[[Outcome], None] | None = None,
) -> Results:
    """Run what is not finished in `out`, and read it all. FedsimError: a run failed.

    For each row the choice with the best mean accuracy on the seeds that choose; of equal ones the first.
    """
    tried = {
        name: [
            (choice, runs(name, choice, setting, setting.choosing, out, data_dir))
            for choice in METHODS[name].choices(setting.rates)
        ]
        for name in setting.methods
    }
    carry_out([points for choices in tried.values() for _, points in choices], workers, on_done)
    chosen = {
        (name, end): max(choices, key=lambda one: read(one[1], whose)["accuracy"].mean())[0]
        for name, choices in tried.items()
        for end, whose in columns_of(METHODS[name]).items()
    }
    told = {key: runs(key[0], choice, setting, TOLD, out, data_dir) for key, choice in chosen.items()}
    carry_out([list({point.folder: point for points in told.values() for point in points}.values())], workers, on_done)
    return {
        name + end: Row(
            METHODS[name].label + (" + fine-tuning" if end else ""),
            chosen[name, end],
            read(points, columns_of(METHODS[name])[end]),
        )
        for (name, end), points in told.items()
    }


def table(results: Results) -> Table:
    """A row a method, the best first, with how far it is ahead of the two that every method has to beat."""
    seeds = len(next(iter(results.values())).final)
    caption = (
        f"±: one sample standard deviation over seeds 0 to {seeds - 1}; ahead: difference of the means, with the p of"
        " a paired t after Holm's correction for all tests against that baseline"
    )
    laid = Table(show_edge=False, caption=caption)
    laid.add_column("method")
    bases = {name: told for name, told in BASES.items() if name in results}
    for heading in (
        "chosen",
        "accuracy",
        "mean of clients",
        "tenth percentile",
        *(f"of {one}" for one in bases.values()),
    ):
        laid.add_column(heading, justify="right")
    against = [against_all(results, base) for base in bases]
    for name, row in sorted(results.items(), key=lambda one: -one[1].final.mean()):
        chosen = ", ".join(f"{knob} {value}" for knob, value in row.choice.items())
        apart = (f"{found[name][0]:+.3f} ({found[name][1]:.2g})" if name in found else "-" for found in against)
        laid.add_row(row.label, chosen, *(cell(row.values[column], 3) for column in COLUMNS), *apart)
    return laid


def draw(results: Results, path: Path) -> None:
    """Accuracies of the seeds, and their mean, a line a method; and the tenth percentile of its clients."""
    from matplotlib.figure import Figure

    order = sorted(results.values(), key=lambda row: row.final.mean())
    figure = Figure(figsize=(9.0, 0.28 * len(order) + 1.6), layout="constrained")
    axes, places = figure.subplots(1, 2, sharey=True), np.arange(len(order))
    told = {"accuracy": "accuracy over all clients' own examples", "accuracy_p10": "tenth percentile of the clients"}
    for axis, (column, said) in zip(axes, told.items(), strict=True):
        for place, row in zip(places, order, strict=True):
            values = row.values[column]
            axis.plot(values, np.full(len(values), place), "o", color=BRIGHT[0], markersize=3, alpha=0.5)
            axis.plot([values.mean()], [place], "D", color=INK, markersize=4)
        axis.set_xlabel(said, color=INK)
        plain(axis, grid="x")
    axes[0].set_yticks(places, [row.label for row in order], fontsize=8)
    save(figure, path)


def paired(results: Results, one: str, other: str) -> Difference:
    """The accuracies of two rows, seed by seed."""
    first, second = (dict(enumerate(results[name].final.tolist())) for name in (one, other))
    return difference(first, second, lower=False)


def against_all(results: Results, base: str) -> dict[str, tuple[float, float]]:
    """How far each other row is ahead of one, and p of the paired t, corrected by Holm's rule over all of them.

    A row without a spread in its differences is not tested: its p is 1.
    """
    found = {name: paired(results, name, base) for name in results if name != base}
    chances = holm([1.0 if one.p is None else one.p for one in found.values()])
    return {name: (one.mean, p) for (name, one), p in zip(found.items(), chances, strict=True)}


def ahead(results: Results, one: str, other: str) -> tuple[str, bool]:
    """By how much a row is ahead of another, with p of a paired t, and whether it is ahead below `LEVEL`."""
    found = paired(results, one, other)
    p = "" if found.p is None else f", p {found.p:.3f}"
    return (
        f"{results[one].label} {found.mean:+.3f} on {results[other].label}{p}",
        found.sign > 0 and found.p is not None and found.p < LEVEL,
    )
