"""Runs of FedAvg, q-FedAvg, TERM and AFL, how clients' losses are spread under them, and what is claimed.

Losses are those of the model for all on each client's training examples, which is what the methods go by; accuracies on
what each client keeps apart. As whoever trains less has losses that are more alike, methods are also compared where the
mean of the clients' losses is the same. Three seeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import fedsim
from experiments.studies import Numbers, cell
from fedsim.problems.supervised import Supervised
from fedsim.running.build import build_problem

FILE = Path(__file__).parent / "fairness.toml"
SEEDS = range(3)
ROUNDS, MOST = 100, 1000
"""After how many rounds is looked, and how many there are at most until the mean is as below."""
MEAN = 0.65
"""The mean of the clients' losses at which methods are compared."""
WAYS: Mapping[str, tuple[str, ...]] = {
    "FedAvg": (),
    "FedAvg by examples": ("strategy.weighting=examples",),
    "q-FedAvg, q = 0.1": ("strategy={kind='qfedavg', q=0.1, client_lr=0.05}",),
    "q-FedAvg, q = 1": ("strategy={kind='qfedavg', q=1.0, client_lr=0.05}",),
    "TERM, t = 1": ("strategy={kind='term', t=1.0, weighting='uniform'}",),
    "TERM, t = 5": ("strategy={kind='term', t=5.0, weighting='uniform'}",),
    "TERM, t = -1": ("strategy={kind='term', t=-1.0, weighting='uniform'}",),
    "AFL, lambda_lr = 0.01": ("strategy={kind='afl', lambda_lr=0.01}",),
    "AFL, lambda_lr = 0.1": ("strategy={kind='afl', lambda_lr=0.1}",),
}
"""The methods, and how the file is changed for each."""
HALF = 0.6
"""What share of FedAvg's deviation TERM and AFL leave, at the same mean, where they do what they are for."""
NAME = "fairness"
CLAIM = (
    f"where the mean of the clients' losses is {MEAN}, TERM with t = 5 and AFL with lambda_lr = 0.01 leave at most "
    f"{HALF} of FedAvg's deviation between them, and q-FedAvg with q = 1 more than that, mean over seeds 0 to 2"
)


@dataclass(frozen=True)
class Seen:
    """What is seen of a run. end: after `ROUNDS` rounds; alike: at the first round where the mean is at most `MEAN`.

    Each [4]: mean, largest and standard deviation of the clients' losses, and the worst of their accuracies. rounds:
    that first round.
    """

    end: Numbers
    alike: Numbers
    rounds: int


Results = Mapping[str, list[Seen]]
"""Of the seeds, by method."""


def seen(way: str, seed: int, rounds: int = ROUNDS, mean: float = MEAN) -> Seen:
    """Run a method until both is seen."""
    problem = build_problem(fedsim.load(FILE, overrides=[f"seed={seed}"]))
    assert isinstance(problem, Supervised)
    everybody, told, first = torch.arange(problem.num_clients), list[Numbers](), list[int]()

    def look(now: fedsim.Round) -> bool:
        losses = problem.losses(now.params, everybody)[:, 0]
        told.append(np.array([*summary(losses), now.row["client_accuracy_worst"]]))
        if not first and told[-1][0] <= mean:
            first.append(len(told))
        return bool(first) and len(told) >= rounds

    loaded = fedsim.load(FILE, overrides=[f"seed={seed}", f"rounds={MOST}", *WAYS[way]])
    fedsim.run(loaded, callbacks=[look], save=False)
    return Seen(told[rounds - 1], told[first[0] - 1], first[0])


def summary(losses: Tensor) -> tuple[float, float, float]:
    """Mean, largest and standard deviation of losses [N]."""
    return float(losses.mean()), float(losses.max()), float(losses.std(correction=0))


def measure() -> Results:
    """Run everything, which takes about a minute."""
    return {way: [seen(way, seed) for seed in SEEDS] for way in WAYS}


def judge(results: Results) -> tuple[str, bool]:
    """The numbers in words, and whether they bear the claim out."""
    left = {way: float(np.mean([one.alike[2] for one in found])) for way, found in results.items()}
    share = {way: deviation / left["FedAvg"] for way, deviation in left.items()}
    held = max(share["TERM, t = 5"], share["AFL, lambda_lr = 0.01"]) <= HALF < share["q-FedAvg, q = 1"]
    words = [f"{way} {cell(np.array([one.alike[2] for one in found]), 3)}" for way, found in results.items()]
    return "; ".join(words), held


def rows(results: Results) -> list[str]:
    """The rows of the page's table."""
    lines = []
    for way, found in results.items():
        end, alike = (np.array([getattr(one, name) for one in found]) for name in ("end", "alike"))
        cells = [*(cell(end[:, place], 2) for place in range(4)), f"{np.mean([one.rounds for one in found]):.0f}"]
        lines.append(" | ".join(["", way, *cells, *(cell(alike[:, place], 2) for place in (1, 2, 3)), ""]).strip())
    return lines


if __name__ == "__main__":
    print("\n".join(rows(measure())))
