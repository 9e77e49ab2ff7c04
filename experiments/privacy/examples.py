"""Privacy of single examples: what it costs in accuracy to hide each of a client's digits, also from the server.

Ten clients with 144 digits each, logistic regression, 30 rounds of an epoch by batches of 32 by coins, so that a digit
is in each of 150 steps with probability 0.22; delta 1e-3. Rates were chosen by the seeds 10 and 11, for each way; what
is told is of the seeds 0 to 2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from rich.table import Table

from experiments.parts import Claim, Part, accuracies, carry_out
from experiments.studies import Numbers, cell, picture
from fedsim.plots.style import BRIGHT, INK
from fedsim.running.stored import open_run
from fedsim.running.sweep import Outcome, Point, expand

HERE = Path(__file__).parent
CHOOSING, TOLD = range(10, 12), range(3)
RATES = ("0.125", "0.25", "0.5", "1.0", "2.0", "4.0")
DELTA = 1e-3
FEW = "partition.clients=100"
"""A hundred clients, with 14 or 15 digits each; batches are a fifth of that, as of ten clients."""


def _private(options: str) -> str:
    return f"privacy={{level='example', delta={DELTA}, {options}}}"


WAYS: Mapping[str, tuple[str, ...]] = {
    "no privacy": (),
    "z = 1": (_private("clip=1.0, noise_multiplier=1.0"),),
    "z = 2": (_private("clip=1.0, noise_multiplier=2.0"),),
    "z = 4": (_private("clip=1.0, noise_multiplier=4.0"),),
    "z = 8": (_private("clip=1.0, noise_multiplier=8.0"),),
    "z = 16": (_private("clip=1.0, noise_multiplier=16.0"),),
    "z = 4, C = 0.1": (_private("clip=0.1, noise_multiplier=4.0"),),
    "z = 4, by layers": (_private("clip=1.0, clipping='layers', noise_multiplier=4.0"),),
    "z = 4, 100 clients": (FEW, "client.batch_size=3", _private("clip=1.0, noise_multiplier=4.0")),
    "no privacy, 100 clients": (FEW, "client.batch_size=3"),
}
"""What is compared, and how the file is changed for each."""
CURVE = ("z = 1", "z = 2", "z = 4", "z = 8", "z = 16")


@dataclass(frozen=True, eq=False)
class Measured:
    """Of a way what was chosen, and of its seeds test accuracies after the last round, [S], and epsilon; inf: none."""

    rate: str
    accuracy: Numbers
    epsilon: float


Results = Mapping[str, Measured]


def runs(way: str, rate: str, seeds: range, out: Path) -> list[Point]:
    """A way's runs with a rate, seed by seed."""
    overrides = (f"client.lr={rate}", *WAYS[way])
    return expand([HERE / "examples.toml"], out=out / way / rate, seeds=seeds, overrides=overrides)


def measure(out: Path, *, workers: int | None = None, on_done: Callable[[Outcome], None] | None = None) -> Results:
    """Run what is not finished in `out`, and read it all. FedsimError: a run failed."""
    tried = {way: {rate: runs(way, rate, CHOOSING, out) for rate in RATES} for way in WAYS}
    carry_out([points for rates in tried.values() for points in rates.values()], workers, on_done)
    chosen = {way: max(RATES, key=lambda rate: float(accuracies(tried[way][rate]).mean())) for way in WAYS}
    told = {way: runs(way, rate, TOLD, out) for way, rate in chosen.items()}
    carry_out(told.values(), workers, on_done)
    return {
        way: Measured(
            chosen[way], accuracies(points), (open_run(points[0].folder).summary() or {}).get("epsilon", np.inf)
        )
        for way, points in told.items()
    }


def table(results: Results) -> Table:
    """A row a way."""
    laid = Table(show_edge=False, caption=f"±: one sample standard deviation over seeds 0 to {len(TOLD) - 1}")
    laid.add_column("way")
    for heading in ("lr", "epsilon", "test accuracy"):
        laid.add_column(heading, justify="right")
    for way, row in results.items():
        laid.add_row(way, row.rate, f"{row.epsilon:.2f}", cell(row.accuracy, 3))
    return laid


def draw(results: Results, path: Path) -> None:
    """Test accuracy against epsilon, a point a way with the deviation over the seeds, a line through noises of one C.

    What has no epsilon is a level.
    """
    with picture(path, "epsilon, at delta = 0.001, by single digits", "test accuracy", log="x", letters=8) as axis:
        line = [results[way] for way in CURVE]
        axis.plot([row.epsilon for row in line], [row.accuracy.mean() for row in line], color=BRIGHT[0], linewidth=1.4)
        for number, (way, row) in enumerate(results.items()):
            mean, deviation = row.accuracy.mean(), row.accuracy.std(ddof=1)
            if np.isinf(row.epsilon):
                axis.axhline(mean, linestyle=":" if "100" in way else "--", color=INK, linewidth=1.0, label=way)
                continue
            colour = BRIGHT[0] if way in CURVE else BRIGHT[(number - len(CURVE)) % len(BRIGHT)]
            label = None if way in CURVE[1:] else "C = 1, z = 1, 2, ..., 16" if way in CURVE else way
            axis.errorbar(row.epsilon, mean, deviation, fmt="o", markersize=5, color=colour, label=label)


def falls(results: Results) -> tuple[str, bool]:
    """Whether accuracy falls as the noise grows."""
    means = [float(results[way].accuracy.mean()) for way in ("no privacy", "z = 2", "z = 8", "z = 16")]
    words = ", ".join(f"{way} {cell(results[way].accuracy, 3)}" for way in ("no privacy", *CURVE))
    return words, all(one > other for one, other in pairwise(means))


def useful(results: Results) -> tuple[str, bool]:
    """Whether epsilon of at most 3 leaves a model within 5 points of that without privacy."""
    row, free = results["z = 4"], results["no privacy"]
    words = f"epsilon {row.epsilon:.2f}: {cell(row.accuracy, 3)} of {cell(free.accuracy, 3)}"
    return words, row.epsilon <= 3.0 and float(free.accuracy.mean() - row.accuracy.mean()) <= 0.05


def many(results: Results) -> tuple[str, bool]:
    """Whether fewer examples a client cost accuracy at no larger epsilon."""
    few, ten = results["z = 4, 100 clients"], results["z = 4"]
    words = f"{cell(few.accuracy, 3)} at {few.epsilon:.2f}, {cell(ten.accuracy, 3)} at {ten.epsilon:.2f}"
    return words, float(few.accuracy.mean()) < float(ten.accuracy.mean())


def others(results: Results) -> tuple[str, None]:
    """What other bounds do at the same noise."""
    ways = ("z = 4", "z = 4, C = 0.1", "z = 4, by layers")
    return ", ".join(f"{way} {cell(results[way].accuracy, 3)}" for way in ways), None


PART = Part(
    HERE,
    "examples",
    measure,
    table,
    draw,
    (
        Claim("falls", "digits, DP-SGD in 10 clients: accuracy falls from none to z = 2, 8 and 16", falls),
        Claim("useful", "z = 4 spends at most epsilon 3 at delta 1e-3 and ends within 0.05 of no privacy", useful),
        Claim("many", "the same digits at 100 clients, whose noises are drawn apart, end lower at z = 4", many),
        Claim("others", "and other bounds at z = 4: test accuracy", others),
    ),
)
