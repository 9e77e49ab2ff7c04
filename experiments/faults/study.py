"""The runs of FedAvg among liars, what is measured of them, and what is claimed.

Thirty clients with equal shares of the shuffled digits, all of them in every round; nine of them, drawn by the seed,
always lie: they send their update times -1, or times -10. Three seeds. Aggregators that are told how many may be
anything are told nine; Bulyan is told six, the most that thirty replies allow it, so that its guarantee does not hold
here. Every aggregator is held against itself among honest clients: what it costs where nobody lies is not the question.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.studies import Numbers, cell, run_all
from fedsim.running.history import History
from fedsim.running.stored import METRICS
from fedsim.running.sweep import Outcome, expand

FILE = Path(__file__).parent / "liars.toml"
SEEDS = range(3)
AGGREGATORS = {
    "mean": "'mean'",
    "median": "'median'",
    "trimmed_mean": "{kind = 'trimmed_mean', beta = 0.3}",
    "krum": "{kind = 'krum', malicious = 9}",
    "multi_krum": "{kind = 'multi_krum', malicious = 9, keep = 12}",
    "geometric_median": "'geometric_median'",
    "bulyan": "{kind = 'bulyan', malicious = 6}",
}
"""The aggregators, as TOML."""
LIES = {
    "honest": "{}",
    "times -1": "{sign_flip = {rate = 1.0, share = 0.3}}",
    "times -10": "{scale = {rate = 1.0, share = 0.3, factor = -10.0}}",
}
"""What liars send, as tables of faults."""
HELD = 0.04
"""The loss of test accuracy up to which an aggregator holds."""
LOST = 0.2
"""Test accuracy of a model that has learnt next to nothing: one in ten is right by chance."""

Results = Mapping[tuple[str, str], Numbers]
"""Final test accuracy of the seeds, [S], by lie and aggregator."""


@dataclass(frozen=True)
class Claim:
    """text: what is claimed. judge: the numbers in words, and whether they bear it out."""

    name: str
    text: str
    judge: Callable[[Results], tuple[str, bool]]


def measure(out: Path, workers: int | None = None, on_done: Callable[[Outcome], None] | None = None) -> Results:
    """Run what is not finished in `out`, one run folder a seed, and read it all. FedsimError: a run failed."""
    points = {
        (lie, name): expand(
            [FILE],
            out=out / lie.replace(" ", "_") / name,
            seeds=SEEDS,
            overrides=[f"faults={faults}", f"aggregation={aggregator}"],
        )
        for lie, faults in LIES.items()
        for name, aggregator in AGGREGATORS.items()
    }
    everything = [point for group in points.values() for point in group]
    run_all(everything, workers, on_done, accepted=("finished", "diverged"))
    return {
        case: np.array([History(point.folder / METRICS).last("test_accuracy") for point in group])
        for case, group in points.items()
    }


def _mean_falls(results: Results) -> tuple[str, bool]:
    """What is left to the weighted mean."""
    honest, flipped, scaled = (results[lie, "mean"] for lie in LIES)
    told = ", ".join(f"{lie} {cell(results[lie, 'mean'], 3)}" for lie in LIES)
    return told, bool((honest - flipped).mean() > HELD and scaled.max() < LOST)


def _others_hold(results: Results) -> tuple[str, bool]:
    """What is left to the robust aggregators."""
    robust = [name for name in AGGREGATORS if name != "mean"]
    told = [f"{name} {', '.join(cell(results[lie, name], 3) for lie in LIES)}" for name in robust]
    worst = max(
        float((results["honest", name] - results[lie, name]).mean()) for name in robust for lie in list(LIES)[1:]
    )
    return f"{'; '.join(told)}; {worst:.3f} at most", worst <= HELD


CLAIMS = (
    Claim(
        "faults_mean",
        f"signs flipped by 9 of 30 clients cost FedAvg more than {HELD} of its test accuracy, mean over seeds 0 to 2, "
        f"and updates times -10 leave less than {LOST} of it in each",
        _mean_falls,
    ),
    Claim(
        "faults_robust",
        f"neither costs FedAvg more than {HELD} with any robust aggregator (honest, times -1, times -10)",
        _others_hold,
    ),
)
