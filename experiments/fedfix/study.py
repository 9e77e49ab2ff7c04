"""The runs of the comparison, what is measured of them, and what is claimed.

20 clients train logistic regression on Fashion-MNIST, ten plain steps of 64 examples at a time; the classes of each
are drawn from Dir(0.1). The fastest takes a fifth of the slowest one's virtual second. After every virtual second t =
1 .. T the global model is judged on the training examples of all clients, which have equally many. The weight that is
applied in a second differs between the schemes by a factor of up to 41, so that at one learning rate they would differ
in little but the size of their steps: every scheme takes the rate of a factor-2 grid with the least training loss, mean
over time and seeds.

S seeds; each deals the data anew, the same for all schemes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

import fedsim
from experiments.studies import Numbers, run_all
from fedsim.client import LocalTraining
from fedsim.problems.modules import load_start
from fedsim.problems.supervised import Supervised
from fedsim.running.build import build_fleet, build_problem
from fedsim.running.history import History
from fedsim.running.stored import METRICS, MODEL
from fedsim.running.sweep import Outcome, Point, expand

HERE = Path(__file__).parent
SCHEMES = {
    "fedavg": "FedAvg",
    "fedfix_08": "FedFix, window 0.8",
    "fedfix_05": "FedFix, window 0.5",
    "fedfix_02": "FedFix, window 0.2",
    "fedbuff_10": "FedBuff, 10 replies, identical weights",
    "fedbuff_5": "FedBuff, 5 replies, identical weights",
    "async_unbiased": "asynchronous FedAvg, unbiased weights",
    "async_identical": "asynchronous FedAvg, identical weights",
}
"""The experiment files, and what they are called in the table and the picture."""
WEIGHTED = ("fedfix_05", "fedbuff_10", "async_unbiased")
"""Those whose weights can be unbiased and identical."""
FACTORS = (0.5, 1.0, 2.0)
"""The grid: the learning rate of a file, as it is set, times these."""
LEVEL = 0.5
"""The training loss that is waited for."""
LATE = 30
"""Evaluations after so many seconds are the tail."""
SETTLED = 20
"""After so many seconds the loss should be steady."""
MAJORITY = 0.8
"""Share of the seeds in which one scheme must be better than another."""
EQUAL = 0.007
"""Mean training losses over time that differ by less count as equal."""


@dataclass(frozen=True)
class Part:
    """Runs that differ from the files in settings. tuned: over a grid of rates around theirs, not at theirs alone."""

    schemes: tuple[str, ...]
    settings: tuple[str, ...] = ()
    tuned: bool = False


_BY_CLASS = "devices.compute.by=label"
PARTS = {
    "unequal": Part(tuple(SCHEMES), tuned=True),
    "equal": Part(("fedfix_05",), ("devices.compute.spread=0", "client.lr=0.02"), tuned=True),
    "momentum": Part(("fedavg", "fedfix_05", "async_unbiased"), ("client.lr=0.001", "client.optimizer.momentum=0.9")),
    "by_class": Part(("fedavg",), (_BY_CLASS,)),
    "by_class_unbiased": Part(WEIGHTED, (_BY_CLASS, "strategy.weights=unbiased")),
    "by_class_identical": Part(WEIGHTED, (_BY_CLASS, "strategy.weights=identical")),
}
"""unequal: the comparison. equal: all clients take one second, which changes nothing for FedAvg, as its rounds take so
long anyway. momentum: one rate for all, and momentum. by_class: the lower the classes of a client, the slower it is."""


@dataclass(frozen=True, eq=False)
class Measured:
    """A scheme at one learning rate.

    lr: the rate. loss, accuracy, own: [S, T], of the training examples of all clients, of the test set, and the mean
    over the clients of that of their own test examples; where a run had diverged, the loss is infinite and the
    accuracy 0. points: the S runs.
    """

    lr: float
    loss: Numbers
    accuracy: Numbers
    own: Numbers
    points: tuple[Point, ...]

    @property
    def area(self) -> Numbers:
        """The mean loss over time, [S]."""
        return _over_time(self.loss)

    @property
    def tail(self) -> Numbers:
        """The mean loss over the last seconds, [S]."""
        return _over_time(self.loss[:, LATE:])

    @property
    def restlessness(self) -> Numbers:
        """By how much the loss changes in a second after it should be steady, mean of the absolute values, [S]."""
        return _over_time(np.abs(np.diff(self.loss[:, SETTLED:], axis=1)))

    @property
    def reached(self) -> float:
        """The first second at which the mean loss over the seeds is at most `LEVEL`; infinity: at none."""
        there = np.flatnonzero(self.loss.mean(axis=0) <= LEVEL)
        return float(there[0] + 1) if len(there) else math.inf


def _over_time(curves: Numbers) -> Numbers:
    """Mean of each seed's, [S]."""
    means: Numbers = curves.mean(axis=1)
    return means


Results = Mapping[str, Mapping[str, Sequence[Measured]]]
"""By part and scheme: a measurement for each learning rate, ascending."""


@dataclass(frozen=True)
class Claim:
    """text: what is claimed. judge: the numbers in words, and whether they bear it out."""

    name: str
    text: str
    judge: Callable[[Results], tuple[str, bool]]


def best(measured: Sequence[Measured]) -> Measured:
    """The learning rate with the least training loss, mean over time and seeds."""
    return min(measured, key=lambda one: float(one.area.mean()))


def measure(
    out: Path,
    *,
    data_dir: Path | None,
    seeds: Sequence[int],
    workers: int | None = None,
    on_done: Callable[[Outcome], None] | None = None,
) -> Results:
    """Run what is not finished in `out`, one run folder a seed, and read it all. FedsimError: a run failed."""
    points: dict[tuple[str, str, float], list[Point]] = {}
    for name, part in PARTS.items():
        for scheme in part.schemes:
            file = HERE / f"{scheme}.toml"
            trained = fedsim.load(file, overrides=part.settings).client
            assert isinstance(trained, LocalTraining)
            own = trained.base
            for lr in [own * factor for factor in FACTORS] if part.tuned else [own]:
                points[name, scheme, lr] = expand(
                    [file],
                    out=out / name,
                    grid={"client.lr": [f"{lr:g}"]},
                    seeds=seeds,
                    overrides=part.settings,
                    data_dir=data_dir,
                )
    everything = [point for group in points.values() for point in group]
    run_all(everything, workers, on_done, accepted=("finished", "diverged"))
    return {
        name: {
            scheme: [_read(lr, group) for (of, by, lr), group in points.items() if (of, by) == (name, scheme)]
            for scheme in part.schemes
        }
        for name, part in PARTS.items()
    }


def _read(lr: float, points: Sequence[Point]) -> Measured:
    """The curves of the runs of a scheme."""
    duration = points[0].experiment.duration
    assert duration is not None
    histories = [History(point.folder / METRICS) for point in points]

    def curves(column: str, absent: float) -> Numbers:
        found = np.full((len(points), round(duration)), absent)
        for line, history in zip(found, histories, strict=True):
            values = history.to_numpy(column) if len(history) else np.empty(0)
            line[: len(values)] = values
        return found

    return Measured(
        lr,
        curves("global_train_loss", np.inf),
        curves("test_accuracy", 0.0),
        curves("client_accuracy_mean", 0.0),
        tuple(points),
    )


def _tuned(results: Results) -> tuple[str, bool]:
    """The best rates, and whether they stand in the middle of the grid, which is the file's."""
    found = {scheme: best(grid).lr for scheme, grid in results["unequal"].items()}
    inside = all(best(grid) is grid[len(grid) // 2] for part in results.values() for grid in part.values())
    return ", ".join(f"{SCHEMES[scheme]} {lr:g}" for scheme, lr in found.items()), inside


def _ordered(results: Results) -> tuple[str, bool]:
    """The means, and in how many seeds each is lower than the next."""
    tuned = {scheme: best(results["unequal"][scheme]) for scheme in ("fedfix_05", "fedavg", "async_unbiased")}
    areas = [one.area for one in tuned.values()]
    lower = [int((one < next_one).sum()) for one, next_one in pairwise(areas)]
    numbers = ", ".join(f"{SCHEMES[scheme]} {one.area.mean():.3f}" for scheme, one in tuned.items())
    seeds = len(areas[0])
    return f"{numbers}; in order in {lower[0]} and {lower[1]} of {seeds} seeds", min(lower) >= MAJORITY * seeds


def _sooner(results: Results) -> tuple[str, bool]:
    """The two times."""
    fix, wait = (best(results["unequal"][scheme]).reached for scheme in ("fedfix_05", "fedavg"))
    return f"{fix:g} s and {wait:g} s", math.isfinite(fix) and fix <= 0.9 * wait


def _restless(results: Results) -> tuple[str, bool]:
    """The mean changes of the loss in a second."""
    found = {scheme: float(one.restlessness.mean()) for scheme, (one,) in results["momentum"].items()}
    numbers = ", ".join(f"{SCHEMES[scheme]} {value:.4f}" for scheme, value in found.items())
    return numbers, found["async_unbiased"] > 20.0 * found["fedavg"]


def _no_gain(results: Results) -> tuple[str, bool]:
    """The two mean losses over time."""
    fix, wait = best(results["equal"]["fedfix_05"]).area, best(results["unequal"]["fedavg"]).area
    return f"{fix.mean():.4f} and {wait.mean():.4f}", float((fix - wait).mean()) >= -EQUAL


def _biased(results: Results) -> tuple[str, bool]:
    """By how much more than under FedAvg slower clients are behind, median over the seeds.

    Not the mean, since the last models of single runs may be off by more than what is looked for.
    """
    unbiased, identical = results["by_class_unbiased"], results["by_class_identical"]
    schemes = [*results["by_class"].values(), *unbiased.values(), *identical.values()]
    reference, *gaps = behind([one for (one,) in schemes])
    fair, unfair = (np.array(part) - reference for part in (gaps[: len(unbiased)], gaps[len(unbiased) :]))
    agreed = (unfair > fair).mean(axis=1)
    alike, balanced = np.median(unfair, axis=1), np.median(fair, axis=1)
    numbers = "; ".join(
        f"{scheme.partition('_')[0]} {one:+.3f} and {other:+.3f}"
        for scheme, one, other in zip(identical, alike, balanced, strict=True)
    )
    holds = bool((agreed >= MAJORITY).all() and (2.0 * np.abs(balanced) < alike).all())
    return f"FedAvg {np.median(reference):.3f}; beyond that {numbers}", holds


def behind(measured: Sequence[Measured]) -> list[Numbers]:
    """By how much the slower half of the clients loses more than the faster half under the final models, [S] each."""
    gaps = [np.empty(len(one.points)) for one in measured]
    for seed, first in enumerate(measured[0].points):
        problem = build_problem(first.experiment)
        assert isinstance(problem, Supervised)
        everyone = torch.arange(problem.num_clients)
        durations = build_fleet(first.experiment, problem).declared(np.ones(problem.num_clients), 0, 0)
        assert durations is not None
        fast, slow = torch.from_numpy(durations.argsort()).chunk(2)
        for gap, one in zip(gaps, measured, strict=True):
            problem.start_from(load_start(one.points[seed].folder / MODEL))
            losses = problem.losses(problem.initial(), everyone)[:, 0]
            gap[seed] = losses[slow].mean() - losses[fast].mean()
    return gaps


CLAIMS = (
    Claim("tuned", "the files' learning rates are the best of a factor-2 grid", _tuned),
    Claim(
        "ordered",
        "mean training loss over 40 s: FedFix, window 0.5, below FedAvg, below asynchronous FedAvg with unbiased"
        " weights, in 4 of 5 seeds",
        _ordered,
    ),
    Claim("sooner", "FedFix, window 0.5, reaches a training loss of 0.5 in 90 % of FedAvg's time or less", _sooner),
    Claim(
        "restless",
        "with momentum 0.9 at one learning rate, 0.001, the training loss of asynchronous FedAvg changes by more than"
        " 20 times as much a second as FedAvg's, after 20 s",
        _restless,
    ),
    Claim(
        "no_gain",
        "where all clients are equally fast, FedFix, window 0.5, has no lower mean training loss than FedAvg, but for"
        " 0.007",
        _no_gain,
    ),
    Claim(
        "biased",
        "where speed goes with class, identical weights leave the slower half of the clients further behind than FedAvg"
        " does, more so than unbiased weights in 4 of 5 seeds, and in the median by more than twice as much",
        _biased,
    ),
)
