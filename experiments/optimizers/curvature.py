"""Rules that ask for more than a gradient: how good they are per gradient, and per second, beside SGD and Adam.

The digits (digits.toml), every rule for as many rounds as `BUDGET` rounds of SGD have gradients: a step counts what the
rule declares, its passes over all examples beside. A rule's rate is the best of its grid on the seeds 100 and 101, by
the accuracy at the end; what is told of it is from the seeds 0 to 4, of which each has another first model, another
deal and other batches. Seconds are those of a round of each rule in turn, in one process, the least of `TURNS`; clients
are stacked, whatever the rule. 359 test examples: one is 0.0028.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.table import Table

from experiments.optimizers import HERE
from experiments.parts import Claim, Part, carry_out
from experiments.studies import Numbers, band, cell
from fedsim.client import LocalTraining
from fedsim.configuration.tables import load
from fedsim.core.files import write_whole
from fedsim.plots.style import INK, plain, save
from fedsim.running.build import build_problem, build_simulation
from fedsim.running.stored import open_run
from fedsim.running.sweep import Outcome, Point, expand

CHOOSING, TOLD = range(100, 102), range(5)
"""Seeds by which rates are chosen, and those of which is told."""
BUDGET = 60
"""Rounds of SGD."""
TURNS = 5
"""Rounds of each rule that are timed."""
EXECUTOR = "engine.executor=stacked"


@dataclass(frozen=True)
class Rule:
    """A rule and its grid of rates. optimizer: as an experiment has it."""

    label: str
    optimizer: str
    rates: tuple[float, ...]


RULES = {
    "sgd": Rule("SGD", "sgd", (0.03, 0.1, 0.3, 1.0)),
    "adam": Rule("Adam", "adam", (0.003, 0.01, 0.03, 0.1)),
    "adahessian": Rule("AdaHessian", "adahessian", (0.001, 0.003, 0.01, 0.03, 0.1)),
    "adahessian_floor": Rule(
        "AdaHessian, epsilon 0.1", "{ kind = 'adahessian', epsilon = 0.1 }", (0.01, 0.03, 0.1, 0.3)
    ),
    "oasis": Rule("OASIS, first step", "oasis", (0.0001, 0.001, 0.01, 0.1)),
    "ai_sarah": Rule("AI-SARAH", "ai_sarah", (0.1, 0.3, 1.0)),
    "sso": Rule("SSO, 4 steps", "sso", (0.03, 0.1, 0.3)),
    "egn": Rule("Gauss-Newton", "egn", (0.1, 0.3, 1.0)),
}


@dataclass(frozen=True, eq=False)
class Measured:
    """A rule within the budget; where a run had diverged its accuracies are 0.

    gradients: of a round, in SGD's. seconds: of a round. choosing: accuracies at the end, [rates, 2]; told: after each
    round at the chosen rate, [5, T].
    """

    gradients: float
    seconds: float
    choosing: Numbers
    told: Numbers

    @property
    def chosen(self) -> int:
        """The place in the grid of the best mean accuracy of the seeds that choose."""
        return int(self.choosing.mean(axis=1).argmax())

    def after(self, amount: float, each: float) -> Numbers:
        """Accuracies [5] after so much of what `each` round takes; before the first round is over, 0."""
        rounds = min(int(amount / each + 1e-9), self.told.shape[1])
        found: Numbers = self.told[:, rounds - 1] if rounds else np.zeros(len(self.told))
        return found


Results = Mapping[str, Measured]


def gradients(name: str) -> float:
    """What a round of a rule takes, in rounds of SGD: of 5 epochs, so that a pass is a fifth of them."""
    client = load(HERE / "digits.toml", overrides=[f"client.optimizer={RULES[name].optimizer}"]).client
    assert isinstance(client, LocalTraining)
    assert client.epochs is not None
    return client.rule.effort + client.rule.passes / client.epochs


def points(name: str, out: Path, rates: Sequence[float], seeds: Sequence[int], budget: float) -> list[Point]:
    """A rule's runs, rate by rate and seed by seed."""
    return expand(
        [HERE / "digits.toml"],
        out=out / name,
        grid={"client.lr": [f"{rate:g}" for rate in rates]},
        seeds=seeds,
        overrides=(
            f"client.optimizer={RULES[name].optimizer}",
            f"rounds={max(1, int(budget / gradients(name)))}",
            "evaluation.every=1",
            EXECUTOR,
        ),
    )


def accuracies(own: Sequence[Point]) -> Numbers:
    """Test accuracies after each round, [runs, T]; zeros where a run has diverged."""
    found = []
    for point in own:
        run = open_run(point.folder)
        rows = [row["test_accuracy"] for row in run.rows() if "test_accuracy" in row]
        rounds = int(run.config()["rounds"])
        finished = (run.summary() or {}).get("status") == "finished"
        found.append(np.array(rows[-rounds:]) if finished else np.zeros(rounds))
    return np.array(found)


def seconds(names: Sequence[str], turns: int) -> dict[str, float]:
    """What a round takes, the least of so many, the rules in turn; a first round of each is not counted."""
    made = [f"client.optimizer={RULES[name].optimizer}" for name in names]
    experiments = [load(HERE / "digits.toml", overrides=[own, EXECUTOR]) for own in made]
    every = [build_simulation(experiment, build_problem(experiment)) for experiment in experiments]
    least = dict.fromkeys(names, float("inf"))
    for turn in range(turns + 1):
        for name, simulation in zip(names, every, strict=True):
            begin = time.perf_counter()
            simulation.step()
            if turn:
                least[name] = min(least[name], time.perf_counter() - begin)
    return least


def measure(
    out: Path,
    *,
    rules: Sequence[str] = tuple(RULES),
    budget: float = BUDGET,
    turns: int = TURNS,
    workers: int | None = None,
    on_done: Callable[[Outcome], None] | None = None,
) -> Results:
    """Run what is not finished in `out`, one run folder a seed, and read it all. FedsimError: a run failed."""
    choosing = {name: points(name, out, RULES[name].rates, CHOOSING, budget) for name in rules}
    carry_out(choosing.values(), workers, on_done)
    ended = {name: accuracies(own)[:, -1].reshape(-1, len(CHOOSING)) for name, own in choosing.items()}
    best = {name: RULES[name].rates[int(found.mean(axis=1).argmax())] for name, found in ended.items()}
    told = {name: points(name, out, [best[name]], TOLD, budget) for name in rules}
    carry_out(told.values(), workers, on_done)
    kept = out / "seconds.json"
    if not kept.exists():
        write_whole(kept, json.dumps(seconds(rules, turns), indent=2).encode())
    times = json.loads(kept.read_text())
    return {name: Measured(gradients(name), times[name], ended[name], accuracies(told[name])) for name in rules}


def table(results: Results) -> Table:
    """A row a rule: at the budget's gradients and a third of them, and at as many seconds as SGD takes for both."""
    laid = Table(
        show_edge=False, caption="accuracy, seeds 0 to 4; ±: one sample standard deviation; rates: of 100 and 101"
    )
    laid.add_column("rule")
    for heading in (
        "rate",
        "gradients a round",
        "seconds a round",
        "same gradients",
        "a third",
        "same seconds",
        "a third",
    ):
        laid.add_column(heading, justify="right")
    for name, one in sorted(results.items(), key=lambda item: -item[1].told[:, -1].mean()):
        by_gradient = [cell(one.after(share * BUDGET, one.gradients), 3) for share in (1.0, 1 / 3)]
        by_second = [cell(in_seconds(results, name, share), 3) for share in (1.0, 1 / 3)]
        costs = f"{one.gradients / results['sgd'].gradients:.1f}", f"{one.seconds / results['sgd'].seconds:.1f}"
        laid.add_row(RULES[name].label, f"{RULES[name].rates[one.chosen]:g}", *costs, *by_gradient, *by_second)
    return laid


def in_seconds(results: Results, name: str, share: float) -> Numbers:
    """A rule's accuracies after a share of the seconds that SGD takes for all of the budget's rounds."""
    return results[name].after(share * BUDGET * results["sgd"].seconds, results[name].seconds)


def draw(results: Results, path: Path) -> None:
    """Accuracy against gradients, and against seconds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for place, (name, one) in enumerate(results.items()):
        rounds = np.arange(1, one.told.shape[1] + 1)
        for axis, each in ((left, one.gradients), (right, one.seconds / results["sgd"].seconds)):
            band(axis, place, RULES[name].label, rounds * each, one.told)
    left.set_xlabel("gradients, in rounds of SGD", color=INK)
    right.set_xlabel("time, in rounds of SGD", color=INK)
    left.set_ylabel("test accuracy", color=INK)
    left.legend(frameon=False, fontsize=8, labelcolor=INK, loc="lower right")
    for axis in (left, right):
        axis.set_xlim(0.0, BUDGET)
        axis.set_ylim(0.3, 1.0)
        plain(axis, grid="both")
    save(figure, path)


SECOND = ("adahessian", "adahessian_floor", "oasis", "ai_sarah", "egn")
"""Rules that measure curvature."""


def _told(found: Mapping[str, float]) -> str:
    return ", ".join(f"{RULES[name].label} {value:.3f}" for name, value in found.items())


def per_gradient(results: Results) -> tuple[str, bool]:
    """Whether one of the rules that measure curvature is ahead of SGD and Adam at a third of the gradients."""
    found = {name: float(one.after(BUDGET / 3, one.gradients).mean()) for name, one in results.items()}
    return _told(found), max(found[name] for name in SECOND) > max(found["sgd"], found["adam"])


def per_second(results: Results) -> tuple[str, bool]:
    """Whether none of them is, at a third of the seconds."""
    found = {name: float(in_seconds(results, name, 1 / 3).mean()) for name in results}
    return _told(found), max(found[name] for name in SECOND) <= max(found["sgd"], found["adam"])


def declared(results: Results) -> tuple[str, bool | None]:
    """What a declared gradient takes in seconds, in Adam's, whose step is not fused with it; nothing is demanded."""
    adam = results["adam"].seconds
    return _told({name: one.seconds / adam / one.gradients for name, one in results.items()}), None


PART = Part(
    HERE,
    "curvature",
    measure,
    table,
    draw,
    (
        Claim(
            "curvature_per_gradient",
            "digits, rates of other seeds: at as many gradients as 20 rounds of SGD have, one of AdaHessian, OASIS,"
            " AI-SARAH and Gauss-Newton is ahead of SGD and Adam",
            per_gradient,
        ),
        Claim("curvature_per_second", "and at as many seconds as those take, none of them is", per_second),
        Claim(
            "curvature_declared",
            "and seconds that a declared gradient takes, in those of Adam, on a machine that others worked on, too",
            declared,
        ),
    ),
)
