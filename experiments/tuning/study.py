"""A search for a learning rate beside a grid of rates: what is found, and how long it takes.

A fifth of each of twenty clients' digits is set aside. The search has 15 trials between rates of 0.001 and 10, and is
interrupted once, after the seventh; the grid has 20 rates, equally far apart by their logarithm, all of whose runs have
all their rounds. Both look at the same two seeds, one process after the other. What is found is judged on other
seeds, with all the training data: the mean test accuracy of the rate that the search chose, and the best that
any rate of the grid comes to there, be it the one that the grid would have chosen or not.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import fedsim
from experiments.studies import Numbers, cell
from fedsim.configuration.tables import override
from fedsim.running.study import Study, Trial

FILE = Path(__file__).parent / "digits.toml"
SEEDS, OTHERS = (0, 1), (2, 3, 4)
"""By which rates are chosen, and by which they are judged."""
LOW, HIGH, POINTS, TRIALS = 1e-3, 10.0, 20, 15
WITHIN, SHARE = 0.01, 0.6
NAME = "tuning"
CLAIM = (
    f"in {TRIALS} trials, interrupted once, a search finds a learning rate whose test accuracy, of digits and with all "
    f"training data, is within {WITHIN:.0%} of the best of a grid of {POINTS} rates, mean over seeds {OTHERS[0]} to "
    f"{OTHERS[-1]} that neither has looked at, in at most {SHARE} of the grid's time"
)


@dataclass(frozen=True)
class Results:
    """rates: of the grid; accuracy: the test accuracies of each, [R, S], and of the rate that was found, [S].

    seconds, rounds: that the search and the grid took.
    """

    found: float
    rates: Numbers
    accuracy: Numbers
    accuracy_found: Numbers
    seconds: tuple[float, float]
    rounds: tuple[int, int]


def grid() -> list[float]:
    """The rates of the grid."""
    return [float(f"{rate:.4g}") for rate in np.geomspace(LOW, HIGH, POINTS)]


def measure(out: Path, experiment: fedsim.Experiment | None = None) -> Results:
    """Search, try the grid, and judge all rates under other seeds. The folder must be empty, as time is taken."""
    made = fedsim.load(FILE) if experiment is None else experiment

    def interrupted(trial: Trial, _: Study) -> None:
        if trial.number == TRIALS // 2 - 1:
            raise KeyboardInterrupt

    space = {"client.lr": f"log:{LOW}..{HIGH}"}
    began = time.perf_counter()
    with suppress(KeyboardInterrupt):
        fedsim.tune(made, space, seeds=SEEDS, trials=TRIALS, out=out / "search", on_trial=interrupted)
    searched = fedsim.tune(made, space, seeds=SEEDS, trials=TRIALS, out=out / "search")
    between = time.perf_counter()
    tried = fedsim.tune(made, {"client.lr": grid()}, seeds=SEEDS, sampler="grid", pruner="none", out=out / "grid")
    ended = time.perf_counter()
    assert searched.best_trial is not None
    found = float(searched.best_trial.options["client.lr"])
    return Results(
        found,
        np.array(grid()),
        np.array([judged(made, rate) for rate in grid()]),
        np.array(judged(made, found)),
        (between - began, ended - between),
        (sum(trial.rounds for trial in searched.trials), sum(trial.rounds for trial in tried.trials)),
    )


def judged(made: fedsim.Experiment, rate: float) -> list[float]:
    """Test accuracies under the other seeds, with all the training data."""
    settings = [f"client.lr={rate}", "partition.validation=none", "evaluation.on=test", "evaluation.every=0"]
    last = fedsim.experiment(**override(made.resolved(), settings))
    runs = [fedsim.run(last.with_seed(seed), save=False) for seed in OTHERS]
    return [float(run.summary.get("test_accuracy", 0.0)) for run in runs]


def judge(results: Results) -> tuple[str, bool]:
    """The numbers in words, and whether they bear the claim out."""
    means = results.accuracy.mean(axis=1)
    best = int(means.argmax())
    found, share = results.accuracy_found, results.seconds[0] / results.seconds[1]
    said = (
        f"rate {results.found:.3g}: {cell(found, 3)}; best of the grid {results.rates[best]:.3g}: "
        f"{cell(results.accuracy[best], 3)}; {results.seconds[0]:.0f} s and {results.seconds[1]:.0f} s, {share:.2f} of "
        f"it; {results.rounds[0]:,} and {results.rounds[1]:,} rounds"
    )
    return said, bool(found.mean() >= means[best] - WITHIN and share <= SHARE)
