"""The two applications of the comparison: attacks on classifiers, and metrics that have no gradient.

attack: ten classifiers of MNIST's digits that were trained on seven classes each; an image has been attacked when their
mean margin is below 0, and the run ends. Ten images, one run each. metric: one minus precision, recall, F1 or Jaccard
index of the last layer of a network under a perturbation, on the test examples of seven clients with three classes
each; three seeds. Methods and their settings are those of the synthetic functions, but for five local steps in attacks,
as published, and 2,000 shared features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.fzoos.study import FILES, HERE, METHODS
from experiments.studies import Numbers
from fedsim.running.build import build_problem
from fedsim.running.history import History
from fedsim.running.stored import METRICS
from fedsim.running.sweep import Point, expand

COMPARED = ("fzoos", "fedzo", "fedprox", "scaffold_1", "scaffold_2")
IMAGES = range(10)
MEASURES = ("precision", "recall", "f1", "jaccard")
SEEDS = range(3)
FEATURES = {"fzoos": ("client.features=2000",)}
ATTACK = ("client.steps=5", "rounds=30", "stopping={metric = 'attack_success', target = 1.0}")
METRIC = ("rounds=15",)
ENDED = ("finished", "stopped")
"""How runs may end: those of attacks do when an image is fooled."""
ATTACK_CLAIM = "10 images of MNIST, portion 0.7: at equal evaluations FZooS's success rate is ahead of its rivals'"
METRIC_CLAIM = "FZooS improves precision, recall, F1 and Jaccard index, each with the fewest evaluations"


@dataclass(frozen=True)
class Attacks:
    """spent: evaluations of all clients until an image was fooled, one an image; infinity: never."""

    spent: Numbers

    def success(self, budget: float) -> float:
        """The share of the images that so many evaluations suffice for."""
        return float((self.spent <= budget).mean())


@dataclass(frozen=True)
class Scores:
    """value, queries: [S, rounds + 1], 1 - the clients' mean metric, and the evaluations until then."""

    value: Numbers
    queries: Numbers

    def spent(self, level: float) -> float:
        """Evaluations until the value is at most `level`, mean over the seeds; infinity: some never are."""
        there = self.value <= level
        if not there.any(axis=1).all():
            return math.inf
        return float(self.queries[np.arange(len(there)), there.argmax(axis=1)].mean())


def attack_points(out: Path, data_dir: Path) -> dict[str, list[Point]]:
    """The runs of each method."""
    return {
        method: [
            point
            for image in IMAGES
            for point in expand(
                [HERE / f"{FILES[method]}.toml"],
                out=out / "attack" / f"image-{image}",
                seeds=[0],
                overrides=[
                    f"problem={{kind = 'evasion', dataset = 'mnist', epochs = 5, image = {image}}}",
                    *ATTACK,
                    *FEATURES.get(method, ()),
                ],
                data_dir=data_dir,
            )
        ]
        for method in COMPARED
    }


def metric_points(out: Path) -> dict[tuple[str, str], list[Point]]:
    """The runs of each metric and method."""
    return {
        (measure, method): expand(
            [HERE / f"{FILES[method]}.toml"],
            out=out / "metric" / measure,
            seeds=SEEDS,
            overrides=[f"problem={{kind = 'metric', measure = '{measure}'}}", *METRIC, *FEATURES.get(method, ())],
        )
        for measure in MEASURES
        for method in COMPARED
    }


def attacks(points: Mapping[str, Sequence[Point]]) -> dict[str, Attacks]:
    """What the attacks came to."""
    found = {}
    for method, runs in points.items():
        spent = []
        for run in runs:
            history = History(run.folder / METRICS)
            fooled = history.last("attack_success") >= 1.0
            spent.append(float(_queries(history)[-1]) if fooled else math.inf)
        found[method] = Attacks(np.array(spent))
    return found


def scores(points: Mapping[tuple[str, str], Sequence[Point]]) -> dict[str, dict[str, Scores]]:
    """What became of the metrics, by metric and method."""
    found: dict[str, dict[str, Scores]] = {}
    for (measure, method), runs in points.items():
        problem = build_problem(runs[0].experiment)
        start = problem.evaluate(problem.initial(), clients=False, on=())["value"]
        histories = [History(run.folder / METRICS) for run in runs]
        values = [np.concatenate(([start], history.to_numpy("value"))) for history in histories]
        queries = [np.concatenate(([0.0], _queries(history))) for history in histories]
        found.setdefault(measure, {})[method] = Scores(np.stack(values), np.stack(queries))
    return found


def _queries(history: History) -> Numbers:
    """Evaluations of all clients after each round, as methods count them."""
    counted: Numbers = (history.to_numpy("queries") - history.to_numpy("extra_queries")).cumsum()
    return counted


def _number(value: float) -> str:
    return "never" if math.isinf(value) else f"{value:,.0f}"


def attack_claim(found: Mapping[str, Attacks]) -> tuple[str, bool]:
    """FZooS's success rate is never behind at equal evaluations, and ahead of each rival at some."""
    budgets = sorted({spent for one in found.values() for spent in one.spent if math.isfinite(spent)})
    ours = [found["fzoos"].success(budget) for budget in budgets]
    held = True
    for method in COMPARED[1:]:
        others = [found[method].success(budget) for budget in budgets]
        held &= all(own >= other for own, other in zip(ours, others, strict=True)) and max(ours) > 0.0
        held &= any(own > other for own, other in zip(ours, others, strict=True))
    words = []
    for method, one in found.items():
        fooled = f"{np.isfinite(one.spent).sum()} of {len(one.spent)}"
        words.append(f"{METHODS[method]} {fooled}, median {_number(float(np.median(one.spent)))} evaluations")
    return "; ".join(words), held


def metric_claim(found: Mapping[str, Mapping[str, Scores]]) -> tuple[str, bool]:
    """FZooS improves each metric, and reaches the best value of each rival with the fewest evaluations."""
    held, words = True, []
    for measure, methods in found.items():
        ours = methods["fzoos"]
        start, end = float(ours.value[0, 0]), float(ours.value[:, -1].mean())
        # What everybody can be asked to reach: half of what FZooS gains.
        level = start - 0.5 * (start - end)
        spent = {method: one.spent(level) for method, one in methods.items()}
        held &= (
            bool((ours.value[:, -1] < ours.value[:, 0]).all()) and min(spent, key=lambda name: spent[name]) == "fzoos"
        )
        told = ", ".join(f"{METHODS[name]} {_number(value)}" for name, value in spent.items())
        words.append(f"{measure}: 1 - metric {start:.3f} to {end:.3f}; evaluations to {level:.3f}: {told}")
    return "; ".join(words), held
