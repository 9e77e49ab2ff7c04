"""FedAvg and EvoFed: a tenth and a hundredth of the traffic a round, with the paper's factor and with the best one.

A network of 4,810 parameters, along random signs; rates of the clients are the better of two on the seed 100, what is
told is from the seeds 0 to 2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.table import Table

from experiments.evolution import HERE
from experiments.parts import Claim, Part, accuracies, carry_out
from experiments.studies import Numbers, band, cell, picture
from fedsim.running.stored import open_run
from fedsim.running.sweep import Outcome, Point, expand

CHOOSING, TOLD = range(100, 101), range(3)
RATES = ("0.1", "0.3")
CLIENTS = 20
WAYS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "fedavg": ("FedAvg", ()),
    "tenth": (
        "EvoFed, 481 numbers, optimal",
        ("strategy={kind='evofed', population=481, directions='rademacher', alpha='optimal'}", "client.kind=evofed"),
    ),
    "hundredth": (
        "EvoFed, 48 numbers, optimal",
        ("strategy={kind='evofed', population=48, directions='rademacher', alpha='optimal'}", "client.kind=evofed"),
    ),
    "half": (
        "EvoFed, 481 numbers, alpha 1/2",
        ("strategy={kind='evofed', population=481, directions='rademacher', alpha=0.5}", "client.kind=evofed"),
    ),
    "hundredth_half": (
        "EvoFed, 48 numbers, alpha 1/2",
        ("strategy={kind='evofed', population=48, directions='rademacher', alpha=0.5}", "client.kind=evofed"),
    ),
}
"""The ways, and how the file is changed for each."""
LEVEL, BEHIND = 0.8, 0.03


@dataclass(frozen=True, eq=False)
class Measured:
    """A way with the rate that was chosen. bytes_up: that a client had sent at the evaluations, [T]. accuracy: [S, T].

    ends: 0 where a run has diverged, [S].
    """

    label: str
    chosen: str
    bytes_up: Numbers
    accuracy: Numbers
    ends: Numbers


Results = Mapping[str, Measured]


def runs(name: str, rate: str, seeds: Sequence[int], out: Path) -> list[Point]:
    """A way's runs with a rate, seed by seed."""
    overrides = (*WAYS[name][1], f"client.lr={rate}")
    return expand([HERE / "sketches.toml"], out=out / name / rate, seeds=seeds, overrides=overrides)


def measured(name: str, rate: str, points: Sequence[Point]) -> Measured:
    """What runs came to; curves as far as all have come."""
    rows = [open_run(point.folder).history.rows for point in points]
    shortest = min(len(one) for one in rows)
    judged = [number for number in range(shortest) if rows[0][number].get("test_accuracy") is not None]
    accuracy = np.array([[one[number]["test_accuracy"] for number in judged] for one in rows])
    sent = np.cumsum([row["bytes_up"] for row in rows[0][:shortest]])[judged] / CLIENTS
    return Measured(WAYS[name][0], rate, sent, accuracy, accuracies(points))


def measure(out: Path, *, workers: int | None = None, on_done: Callable[[Outcome], None] | None = None) -> Results:
    """Run what is not finished in `out`, and read it all. FedsimError: a run failed."""
    tried = {name: {rate: runs(name, rate, CHOOSING, out) for rate in RATES} for name in WAYS}
    carry_out([points for rates in tried.values() for points in rates.values()], workers, on_done)
    chosen = {name: max(RATES, key=lambda rate: float(accuracies(tried[name][rate]).mean())) for name in WAYS}
    told = {name: runs(name, rate, TOLD, out) for name, rate in chosen.items()}
    carry_out(told.values(), workers, on_done)
    return {name: measured(name, chosen[name], points) for name, points in told.items()}


def table(results: Results) -> Table:
    """A row a way."""
    laid = Table(
        show_edge=False, caption=f"±: one sample standard deviation over seeds 0 to {len(TOLD) - 1}; 0: diverged"
    )
    for heading in ("way", "lr"):
        laid.add_column(heading)
    for heading in ("test accuracy", "kB up a client", f"kB to {LEVEL}"):
        laid.add_column(heading, justify="right")
    for row in results.values():
        laid.add_row(row.label, row.chosen, cell(row.ends, 3), f"{row.bytes_up[-1] / 1000:,.1f}", kilobytes(row))
    return laid


def spent(row: Measured) -> float:
    """Bytes of a client until the mean accuracy is first at the level; infinite: it never is."""
    there = np.flatnonzero(row.accuracy.mean(axis=0) >= LEVEL)
    return float(row.bytes_up[there[0]]) if len(there) else np.inf


def kilobytes(row: Measured) -> str:
    """The same in words."""
    return f"{spent(row) / 1000:,.0f}" if np.isfinite(spent(row)) else "never"


def draw(results: Results, path: Path) -> None:
    """Accuracy against the bytes that a client has sent."""
    with picture(path, "bytes sent by a client", "test accuracy", log="x", letters=8) as axis:
        for number, row in enumerate(results.values()):
            band(axis, number, row.label, row.bytes_up, row.accuracy)


def saved(results: Results) -> tuple[str, None]:
    """What each has sent until it is at the level, and where each ends."""
    words = (f"{row.label} {kilobytes(row)} kB, at the end {row.ends.mean():.3f}" for row in results.values())
    return "; ".join(words), None


def factor(results: Results) -> tuple[str, bool]:
    """Whether alpha = 1/2 is better than what is best for one round, in each seed."""
    gain = results["half"].ends - results["tenth"].ends
    return f"by {cell(gain, 3)}", bool((gain > 0).all())


def hundredth(results: Results) -> tuple[str, bool]:
    """Whether a hundredth of the traffic is enough."""
    gap = results["fedavg"].ends - results["hundredth_half"].ends
    return f"behind by {cell(gap, 3)}", float(gap.mean()) <= BEHIND


PART = Part(
    HERE,
    "sketches",
    measure,
    table,
    draw,
    (
        Claim(
            "saved",
            f"what clients have sent until {LEVEL}, by FedAvg and by EvoFed, and where each is at the end",
            saved,
        ),
        Claim(
            "hundredth",
            f"EvoFed with a hundredth of FedAvg's numbers ends within {BEHIND} of it, in the mean",
            hundredth,
        ),
        Claim(
            "factor",
            "with ten parameters a direction alpha = 1/2 ends ahead, in each seed, of what is best for one round",
            factor,
        ),
    ),
)
