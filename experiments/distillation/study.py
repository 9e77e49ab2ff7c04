"""The runs of FedAvg and FedDF on digits, what is measured of them, and what is claimed.

Twenty clients by Dirichlet(0.1) of the label, a network of 64 units. Ten rounds of 10 clients with 5 local epochs, or
one round of all with 50. FedDF takes 300 steps a round, on 300 digits that no client then has, or on as many images of
noise, where clients have all. Five seeds; FedAvg is beside each on the same examples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from experiments.studies import Numbers, cell, run_all
from fedsim.running.history import History
from fedsim.running.stored import METRICS
from fedsim.running.sweep import Outcome, expand

FILE = Path(__file__).parent / "distillation.toml"
SEEDS = range(5)
SETTINGS: Mapping[str, tuple[str, ...]] = {
    "ten rounds": (),
    "one round": ("rounds=1", "selection.count=20", "client.epochs=50"),
}
NOISE = "problem.public.kind=noise"
PROBABILITIES = ("strategy.teacher=probabilities", "strategy.teacher_weighting=examples")
WAYS: Mapping[str, tuple[str, ...]] = {
    "FedAvg": ("strategy.kind=fedavg",),
    "FedDF": (),
    "FedDF, probabilities by examples": PROBABILITIES,
    "FedAvg, all examples": ("strategy.kind=fedavg", NOISE),
    "FedDF, noise": (NOISE,),
    "FedDF, noise, probabilities by examples": (NOISE, *PROBABILITIES),
}
"""What the server does, and how the file is changed for it."""
AHEAD, WITHIN, BEHIND = 0.1, 0.05, 0.1
CLAIM = (
    "in one round FedDF of probabilities by examples, on digits, ends ahead of FedAvg in each of seeds 0 to 4, by "
    f"{AHEAD} or more in the mean; in ten rounds FedDF as published ends within {WITHIN} of FedAvg, and that of "
    f"probabilities by {BEHIND} or more behind, in the mean"
)

Results = Mapping[tuple[str, str], Numbers]
"""Test accuracy at the end, of the seeds, [S], by setting and way."""


def measure(out: Path, workers: int | None = None, on_done: Callable[[Outcome], None] | None = None) -> Results:
    """Run what is not finished in `out`, one run folder a seed, and read it all. FedsimError: a run failed."""
    points = {
        (setting, way): expand([FILE], out=out / f"{number}{place}", seeds=SEEDS, overrides=(*changes, *others))
        for number, (setting, changes) in enumerate(SETTINGS.items())
        for place, (way, others) in enumerate(WAYS.items())
    }
    run_all([point for group in points.values() for point in group], workers, on_done)
    return {
        key: np.array([History(point.folder / METRICS).last("test_accuracy") for point in group])
        for key, group in points.items()
    }


def judge(results: Results) -> tuple[str, bool]:
    """The numbers in words, and whether they bear the claim out."""
    teaching = "FedDF, probabilities by examples"
    once = results["one round", teaching] - results["one round", "FedAvg"]
    often = {way: results["ten rounds", way] - results["ten rounds", "FedAvg"] for way in ("FedDF", teaching)}
    held = (
        bool((once > 0).all())
        and float(once.mean()) >= AHEAD
        and abs(float(often["FedDF"].mean())) <= WITHIN
        and float(often[teaching].mean()) <= -BEHIND
    )
    told = (f"{setting}: {way} {cell(found, 3)}" for (setting, way), found in results.items())
    return "; ".join(told), held
