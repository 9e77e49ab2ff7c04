"""The runs of FedAvg over unlike sensors, what is measured of them, and what is claimed.

Ten clients have 120 digits each to train on and 59 to be judged on, read with a sensor of their own: each pixel times
exp(0.8 z), plus z', of its own z and z'. A network of 64 units is normalised by batches before and after its first
layer, or not at all. What decides is what clients share of normalisation: its statistics belong to their sensors. Three
seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from experiments.studies import Numbers, cell, run_all
from fedsim.running.history import History
from fedsim.running.stored import METRICS
from fedsim.running.sweep import Outcome, expand

FILE = Path(__file__).parent / "sensors.toml"
SEEDS = range(3)
WAYS: Mapping[str, tuple[str, ...]] = {
    "local_statistics": (),
    "local": ("problem.normalisation.statistics=local",),
    "averaged": ("problem.normalisation.statistics=averaged",),
    "pooled": ("problem.normalisation.statistics=pooled",),
    "no normalisation": ("problem.normalisation=none", "problem.model.norm=none"),
}
"""What clients share of normalisation, and how the file is changed for it."""
EXPECTED = {"local_statistics": 0.961, "local": 0.953, "averaged": 0.101, "no normalisation": 0.849}
"""What a prototype came to, of other code and other draws by the same rules. Of ten classes 0.101 is chance."""
WITHIN = 0.02
"""How near the mean of the seeds comes to that."""
NAME = "sensors"
CLAIM = (
    "clients with unlike sensors are right on 0.961 of their own tests where statistics stay with them, on 0.953 where "
    f"all of normalisation does, on 0.101 with averaged statistics, on 0.849 without normalisation, within {WITHIN}, "
    "and with pooled statistics on less than that, mean over seeds 0 to 2"
)

Results = Mapping[str, Numbers]
"""Accuracy of the seeds, [S], the mean over the clients' own tests, by what is shared."""


def measure(out: Path, workers: int | None = None, on_done: Callable[[Outcome], None] | None = None) -> Results:
    """Run what is not finished in `out`, one run folder a seed, and read it all. FedsimError: a run failed."""
    points = {
        way: expand([FILE], out=out / way.replace(" ", "_"), seeds=SEEDS, overrides=changes)
        for way, changes in WAYS.items()
    }
    run_all([point for group in points.values() for point in group], workers, on_done)
    return {
        way: np.array([accuracy(History(point.folder / METRICS)) for point in group]) for way, group in points.items()
    }


def accuracy(history: History) -> float:
    """The mean of the clients' accuracies on their own tests, by their own models or by the one for all."""
    column = "personal_accuracy_mean" if "personal_accuracy_mean" in history.columns else "client_accuracy_mean"
    return float(history.last(column))


def judge(results: Results) -> tuple[str, bool]:
    """The numbers in words, and whether they bear the claim out."""
    means = {way: float(found.mean()) for way, found in results.items()}
    near = all(abs(means[way] - expected) <= WITHIN for way, expected in EXPECTED.items())
    worse = means["pooled"] < means["no normalisation"]
    return "; ".join(f"{way} {cell(found, 3)}" for way, found in results.items()), near and worse
