"""One model under the same stragglers: waiting, dropping, FedFix, FedBuff, and gradient codes.

Digits, 64 workers by Dirichlet(0.3), each with one step of gradient descent on its examples a round. A code gives the
sum of all gradients, so its model is that of waiting, round by round, and has its rate; what it changes is when a round
ends. Codes' parameters are those that `fedsim.coding.simulate` finds the fastest on the seeds 100 and 101, on which
rates are chosen, too; what is told is from the seeds 0 to 4. M-SGC trains several models in turn, and is told by the
seconds for each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from rich.table import Table

from experiments.coding import HERE
from experiments.coding.times import codes, designs
from experiments.parts import Claim, Part, carry_out
from experiments.studies import Numbers, band, cell, picture
from fedsim.coding import Cluster, GradientCoding, Multiplexed, Scheme, Uncoded, simulate
from fedsim.core.streams import Streams
from fedsim.devices.compute import Bursty
from fedsim.running.stored import open_run
from fedsim.running.sweep import Outcome, Point, expand

CHOOSING, TOLD = range(100, 102), range(5)
WORKERS, ROUNDS, JOBS = 64, 400, 120
TARGET = 0.9
"""Test accuracy whose time is told."""
RATES = ("0.25", "0.5", "1.0", "2.0")
TRACE = Bursty(seconds=0.1, slowdown=5.0, enter=0.02, leave=0.9)
CLUSTER = Cluster()
LIMITED = ("rounds=none", "duration=400", "evaluation.every_seconds=2")
WAYS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "wait": ("waiting for all", ()),
    "drop": ("dropping who is late", ("strategy.deadline=2.2", *LIMITED)),
    "fedfix": ("FedFix, window 2.2 s", ("strategy.kind=fedfix", "strategy.window=2.2", *LIMITED)),
    "fedbuff": ("FedBuff, 32 replies", ("strategy.kind=fedbuff", "strategy.size=32", *LIMITED)),
}
CODED = {"gc": "GC", "m_sgc": "M-SGC, of each model"}


@dataclass(frozen=True, eq=False)
class Measured:
    """A way with what was chosen for it.

    curves: of each seed, times, divided by how many models are trained in them, and test accuracies, [2, points].
    """

    label: str
    chosen: str
    curves: Sequence[Numbers]
    scheme: Scheme = field(default_factory=partial(Uncoded.among, WORKERS))

    @property
    def reached(self) -> Numbers:
        """Seconds until the target, [S]; infinity where it was not."""
        return np.array([time_to(curve) for curve in self.curves])


Results = Mapping[str, Measured]


def time_to(curve: Numbers) -> float:
    """When the target is reached first."""
    there = np.flatnonzero(curve[1] >= TARGET)
    return float(curve[0, there[0]]) if len(there) else np.inf


def at(curve: Numbers, times: Numbers) -> Numbers:
    """Accuracies at some times, after the first; NaN after the last."""
    place = np.searchsorted(curve[0], times, side="right") - 1
    return np.where(times > curve[0, -1], np.nan, curve[1][np.maximum(place, 0)])


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


def fastest(name: str) -> tuple[str, Scheme]:
    """The code that takes the least time for as many models, and its parameters in words."""
    tried = codes(most=5) if name == "gc" else designs("m")
    return min(tried, key=lambda one: sum(ends(one[1], seed)[JOBS + one[1].delay - 1] for seed in CHOOSING))


def coded(name: str, rate: str, scheme: Scheme, out: Path) -> list[Point]:
    """A code's runs, with the rate of waiting."""
    options: dict[str, object] = {"kind": name}
    if isinstance(scheme, GradientCoding):
        options["stragglers"] = scheme.stragglers
    elif isinstance(scheme, Multiplexed):
        options |= asdict(scheme.bursts)
    code = (f"strategy.code.{option}={value}" for option, value in options.items())
    overrides = ("strategy.kind=gradient_coding", f"strategy.server_lr={rate}", "client=gradient_coding", *code)
    return expand([HERE / "learning.toml"], out=out / name / rate, seeds=TOLD, overrides=overrides)


def measure(out: Path, *, workers: int | None = None, on_done: Callable[[Outcome], None] | None = None) -> Results:
    """Run what is not finished in `out`, and read it all. FedsimError: a run failed."""
    tried = {name: {rate: runs(name, rate, CHOOSING, out) for rate in RATES} for name in WAYS}
    carry_out([points for rates in tried.values() for points in rates.values()], workers, on_done)
    chosen = {name: min(RATES, key=lambda rate: _typical(tried[name][rate])) for name in WAYS}
    told = {name: runs(name, rate, TOLD, out) for name, rate in chosen.items()}
    schemes = {name: fastest(name) for name in CODED}
    told |= {name: coded(name, chosen["wait"], scheme, out) for name, (_, scheme) in schemes.items()}
    carry_out(told.values(), workers, on_done)
    found = {}
    for name, points in told.items():
        curves = [curve_of(point) for point in points]
        if name in CODED:
            words, scheme = schemes[name]
            each = np.array([[scheme.delay + 1.0], [1.0]])
            found[name] = Measured(CODED[name], f"lr {chosen['wait']}, {words}", [one / each for one in curves], scheme)
        else:
            found[name] = Measured(WAYS[name][0], f"lr {chosen[name]}", curves)
    return found


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
        last = np.array([at(curve, np.array([400.0]))[0] for curve in row.curves])
        laid.add_row(
            row.label, row.chosen, cell(row.reached, 1), "ends before" if np.isnan(last).any() else cell(last, 3)
        )
    return laid


def draw(results: Results, path: Path) -> None:
    """Test accuracy against virtual time, mean over the seeds, a line a way."""
    grid = np.arange(5.0, 400.0, 2.0)
    with picture(path, "virtual time (s)", "test accuracy") as axis:
        for number, row in enumerate(results.values()):
            band(axis, number, row.label, grid, np.array([at(curve, grid) for curve in row.curves]))
        axis.set_ylim(bottom=0.4)


def same_clock(results: Results) -> tuple[str, bool]:
    """Whether the simulation of waiting and of codes comes to the times of the runs, but for how chunks are rounded."""
    apart = {}
    for name in ("wait", *CODED):
        scheme, curves = results[name].scheme, results[name].curves
        each = scheme.delay + 1
        told = [ends(scheme, seed)[: curve.shape[1]] for seed, curve in zip(TOLD, curves, strict=True)]
        pairs = zip(told, curves, strict=True)
        apart[results[name].label] = max(float(np.abs(one / each / curve[0] - 1.0).max()) for one, curve in pairs)
    return ", ".join(f"{label} {100 * share:.2g} %" for label, share in apart.items()), max(apart.values()) < 0.01


def exact(results: Results) -> tuple[str, bool]:
    """Whether the code's test accuracy is waiting's, round by round."""
    pairs = zip(results["gc"].curves, results["wait"].curves, strict=True)
    apart = max(float(np.abs(one[1] - other[1][: one.shape[1]]).max()) for one, other in pairs)
    return f"apart by at most {apart:.4f}", apart < 0.01


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
        Claim("clock", "rounds end in runs when the simulation of waiting, GC and M-SGC says, within 1 %", same_clock),
        Claim("exact", "GC's test accuracy is that of waiting, round by round, within 0.01", exact),
        Claim("sooner", f"digits, 64 workers: GC reaches {TARGET} before waiting does, in each of 5 seeds", sooner),
        Claim("others", f"and all ways under the same stragglers: seconds to {TARGET}", others),
    ),
)
