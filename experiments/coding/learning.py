"""One model under the same stragglers: waiting, dropping, FedFix, FedBuff, and a gradient code.

Digits, 64 workers by Dirichlet(0.3), each with one step of gradient descent on its examples a round. A code gives the
sum of all gradients, so its model is that of waiting, round by round; what it changes is when a round ends, which
`fedsim.coding.simulate` says for the same trace. Rates, and the code's s, are the best of a grid on the seeds 100 and
101; what is told is from the seeds 0 to 4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.table import Table

from experiments.coding import HERE
from experiments.coding.times import codes
from experiments.parts import Claim, Part, carry_out
from experiments.studies import Numbers, band, cell
from fedsim.coding import Cluster, Scheme, Uncoded, simulate
from fedsim.core.streams import Streams
from fedsim.devices.compute import Bursty
from fedsim.plots.style import INK, plain, save
from fedsim.running.stored import open_run
from fedsim.running.sweep import Outcome, Point, expand

CHOOSING, TOLD = range(100, 102), range(5)
WORKERS, ROUNDS = 64, 400
TARGET = 0.9
"""Test accuracy whose time is told."""
RATES = ("0.25", "0.5", "1.0", "2.0")
TRACE = Bursty(seconds=1.1, slowdown=5.0, enter=0.02, leave=0.9)
CLUSTER = Cluster()
LIMITED = ("rounds=none", "duration=400", "evaluation.every_seconds=2")
WAYS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "wait": ("waiting for all", ()),
    "drop": ("dropping who is late", ("strategy.deadline=2.2", *LIMITED)),
    "fedfix": ("FedFix, window 2.2 s", ("strategy.kind=fedfix", "strategy.window=2.2", *LIMITED)),
    "fedbuff": ("FedBuff, 32 replies", ("strategy.kind=fedbuff", "strategy.size=32", *LIMITED)),
}
CODED = "GC"


@dataclass(frozen=True, eq=False)
class Measured:
    """A way with what was chosen for it. curves: of each seed, times and test accuracies, [2, points]."""

    label: str
    chosen: str
    curves: Sequence[Numbers]

    @property
    def reached(self) -> Numbers:
        """Seconds until the target, [S]; infinity where it was not."""
        return np.array([time_to(curve) for curve in self.curves])


Results = Mapping[str, Measured]


def time_to(curve: Numbers) -> float:
    """When the target is reached first."""
    there = np.flatnonzero(curve[1] >= TARGET)
    return float(curve[0, there[0]]) if len(there) else np.inf


def curve_of(point: Point) -> Numbers:
    """Times and accuracies of a run; empty where it has diverged."""
    rows = open_run(point.folder).history.rows
    return np.array([(row["time"], row["test_accuracy"]) for row in rows if row.get("test_accuracy") is not None]).T


def ends(scheme: Scheme, seed: int) -> Numbers:
    """The seconds at which a scheme's rounds are over on the trace of a seed's run, [R]."""
    return simulate(scheme, CLUSTER, TRACE.slow(WORKERS, Streams(seed)), ROUNDS).ends


def runs(name: str, rate: str, seeds: Sequence[int], out: Path) -> list[Point]:
    """A way's runs with a rate, seed by seed."""
    overrides = (f"client.lr={rate}", *WAYS[name][1])
    return expand([HERE / "learning.toml"], out=out / name / rate, seeds=seeds, overrides=overrides)


def measure(out: Path, *, workers: int | None = None, on_done: Callable[[Outcome], None] | None = None) -> Results:
    """Run what is not finished in `out`, and read it all. FedsimError: a run failed."""
    tried = {name: {rate: runs(name, rate, CHOOSING, out) for rate in RATES} for name in WAYS}
    carry_out([points for rates in tried.values() for points in rates.values()], workers, on_done)
    chosen = {name: min(RATES, key=lambda rate: _typical(tried[name][rate])) for name in WAYS}
    told = {name: runs(name, rate, TOLD, out) for name, rate in chosen.items()}
    carry_out(told.values(), workers, on_done)
    found = {
        name: Measured(WAYS[name][0], f"lr {chosen[name]}", [curve_of(point) for point in points])
        for name, points in told.items()
    }
    name, code = min(codes(most=5), key=lambda one: sum(ends(one[1], seed)[-1] for seed in CHOOSING))
    curves = [
        np.stack((ends(code, seed)[: curve.shape[1]], curve[1]))
        for seed, curve in zip(TOLD, found["wait"].curves, strict=True)
    ]
    return {**found, "gc": Measured(CODED, f"lr {chosen['wait']}, {name}", curves)}


def _typical(points: Sequence[Point]) -> float:
    """The mean time to the target; infinity where one seed does not come there."""
    return float(np.mean([time_to(curve_of(point)) for point in points]))


def table(results: Results) -> Table:
    """A row a way."""
    laid = Table(show_edge=False, caption=f"±: one sample standard deviation over seeds 0 to {len(TOLD) - 1}")
    for heading in ("way", "chosen"):
        laid.add_column(heading)
    for heading in (f"seconds to {TARGET:g}", "accuracy after 400 s"):
        laid.add_column(heading, justify="right")
    for row in sorted(results.values(), key=lambda one: one.reached.mean()):
        last = np.array([curve[1, np.searchsorted(curve[0], 400.0, side="right") - 1] for curve in row.curves])
        laid.add_row(row.label, row.chosen, cell(row.reached, 1), cell(last, 3))
    return laid


def draw(results: Results, path: Path) -> None:
    """Test accuracy against virtual time, mean over the seeds, a line a way."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axis, grid = figure.subplots(), np.arange(5.0, 400.0, 2.0)
    for number, row in enumerate(results.values()):
        at = [curve[1][np.maximum(np.searchsorted(curve[0], grid, side="right") - 1, 0)] for curve in row.curves]
        band(axis, number, row.label, grid, np.array(at))
    axis.set_xlabel("virtual time (s)", color=INK)
    axis.set_ylabel("test accuracy", color=INK)
    axis.set_ylim(bottom=0.4)
    axis.legend(frameon=False, fontsize=9, labelcolor=INK)
    plain(axis, grid="both")
    save(figure, path)


def same_clock(results: Results) -> tuple[str, bool]:
    """Whether the simulation of waiting comes to the times of the runs."""
    apart = [
        float(np.abs(ends(Uncoded.among(WORKERS), seed)[: curve.shape[1]] - curve[0]).max())
        for seed, curve in zip(TOLD, results["wait"].curves, strict=True)
    ]
    return f"apart by at most {max(apart):.1g} s", max(apart) < 1e-6


def sooner(results: Results) -> tuple[str, bool]:
    """Whether the code is sooner there than waiting, in each seed."""
    share = results["gc"].reached / results["wait"].reached
    return f"{share.mean():.2f} of waiting's time ({', '.join(f'{one:.2f}' for one in share)})", bool((share < 1).all())


def others(results: Results) -> tuple[str, None]:
    """The seconds of all."""
    return ", ".join(f"{row.label} {cell(row.reached, 1)}" for row in results.values()), None


PART = Part(
    HERE,
    "learning",
    measure,
    table,
    draw,
    (
        Claim("clock", "waiting ends its rounds at the same times in runs and in the simulation of codes", same_clock),
        Claim("sooner", f"digits, 64 workers: GC reaches {TARGET} before waiting does, in each of 5 seeds", sooner),
        Claim("others", f"and all ways under the same stragglers: seconds to {TARGET}", others),
    ),
)
