"""The runs of the comparison on synthetic functions, what is measured of them, and what is claimed.

Five clients with quadratics of their own, F = mean_i f_i the same for every heterogeneity C. A method is judged by the
rounds, and by the evaluations of all clients together, until the gap F - F* is a tenth and a hundredth of what it was
at x_0; evaluations outside the methods' published counts (a guard's, SCAFFOLD-I's fresh estimates) are left out, as in
what was published. Every seed has its own functions and its own x_0, the same for all methods.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.studies import Numbers, run_all
from fedsim.running.build import build_problem
from fedsim.running.history import History
from fedsim.running.stored import METRICS
from fedsim.running.sweep import Outcome, Point, expand

HERE = Path(__file__).parent
METHODS = {
    "fzoos": "FZooS",
    "inverse": "FZooS, gamma = 1/t",
    "no_correction": "FZooS without correction",
    "fedzo": "FedZO",
    "fedprox": "FedProx",
    "scaffold_1": "SCAFFOLD-I",
    "scaffold_2": "SCAFFOLD-II",
}
"""What they are called in the table and the picture; an experiment file each, but for `inverse`."""
BASELINES = ("no_correction", "fedzo", "fedprox", "scaffold_1", "scaffold_2")
FILES = {name: "fzoos" if name == "inverse" else name for name in METHODS}
VARIED = {"inverse": ("client.decay=inverse",)}
"""Settings by which a method differs from its file."""
SHARES = (0.1, 0.01)
"""Of the gap at x_0: what is waited for."""


@dataclass(frozen=True)
class Setting:
    """d, C, the number of rounds, and for how many seeds."""

    dimension: int
    heterogeneity: float
    rounds: int
    seeds: int

    @property
    def overrides(self) -> tuple[str, ...]:
        """The setting, as options of the files."""
        return (
            f"problem.dimension={self.dimension}",
            f"problem.heterogeneity={self.heterogeneity}",
            f"rounds={self.rounds}",
        )


SETTINGS = {
    "mild": Setting(50, 0.5, 20, 3),
    "main": Setting(50, 5.0, 20, 3),
    "strong": Setting(50, 50.0, 20, 3),
    "large": Setting(300, 5.0, 30, 2),
    "large_strong": Setting(300, 50.0, 25, 1),
}


@dataclass(frozen=True, eq=False)
class Measured:
    """A method in a setting: [S, rounds + 1], before the first round and after each, over S seeds.

    gap: F - F*. queries: evaluations of all clients together so far, as methods count them. cosine: of the directions
    of a round to the gradient of F, mean over clients and local steps; [S, rounds].
    """

    gap: Numbers
    queries: Numbers
    cosine: Numbers

    def reached(self, share: float) -> Numbers:
        """The first round at which the gap is at most that share of the first, [S]; infinity: at none."""
        there = self.gap <= share * self.gap[:, :1]
        return np.where(there.any(axis=1), there.argmax(axis=1), math.inf)

    def spent(self, share: float) -> Numbers:
        """The evaluations until then, [S]."""
        rounds = self.reached(share)
        return np.array(
            [
                line[int(round_)] if math.isfinite(round_) else math.inf
                for line, round_ in zip(self.queries, rounds, strict=True)
            ]
        )


Results = Mapping[str, Mapping[str, Measured]]
"""By setting and method."""


def measure(
    out: Path,
    *,
    settings: Sequence[str] = tuple(SETTINGS),
    workers: int | None = None,
    on_done: Callable[[Outcome], None] | None = None,
) -> Results:
    """Run what is not finished in `out`, one run folder a seed, and read it all. FedsimError: a run failed."""
    points: dict[tuple[str, str], list[Point]] = {}
    for name in settings:
        setting = SETTINGS[name]
        for method, file in FILES.items():
            points[name, method] = expand(
                [HERE / f"{file}.toml"],
                out=out / name / method,
                seeds=range(setting.seeds),
                overrides=[*setting.overrides, *VARIED.get(method, ())],
            )
    run_all([point for group in points.values() for point in group], workers, on_done)
    return {name: {method: _read(points[name, method]) for method in METHODS} for name in settings}


def _read(points: Sequence[Point]) -> Measured:
    gaps, queries, cosines = list[Numbers](), list[Numbers](), list[Numbers]()
    for point in points:
        history, problem = History(point.folder / METRICS), build_problem(point.experiment)
        before = problem.evaluate(problem.initial(), clients=False, on=())["gap"]
        gaps.append(np.concatenate(([before], history.to_numpy("gap"))))
        counted = history.to_numpy("queries") - history.to_numpy("extra_queries")
        queries.append(np.concatenate(([0.0], counted.cumsum())))
        cosines.append(history.to_numpy("cosine"))
    return Measured(np.stack(gaps), np.stack(queries), np.stack(cosines))


def words(values: Numbers) -> str:
    """One number a seed."""
    return "/".join("never" if math.isinf(value) else f"{value:g}" for value in values)


def _soon(results: Results) -> tuple[str, bool]:
    found = results["main"]["fzoos"]
    rounds, queries = found.reached(0.1), found.spent(0.1)
    return f"rounds {words(rounds)}, evaluations {words(queries)}", bool(
        (rounds <= 5).all() and (queries <= 2700).all()
    )


def _dearer(results: Results) -> tuple[str, bool]:
    ours, other = results["main"]["fzoos"], results["main"]["fedzo"]
    rounds, queries = other.reached(0.1) / ours.reached(0.1), other.spent(0.1) / ours.spent(0.1)
    numbers = f"times the rounds {words(rounds.round(2))}, times the evaluations {words(queries.round(2))}"
    return numbers, bool((rounds >= 1.7).all() and (queries >= 3.0).all())


def _alone(results: Results) -> tuple[str, bool]:
    found = {name: results["main"][name].reached(0.01) for name in ("fzoos", "no_correction", "fedzo")}
    numbers = ", ".join(f"{METHODS[name]} {words(rounds)}" for name, rounds in found.items())
    others = np.isinf(found["no_correction"]).all() and np.isinf(found["fedzo"]).all()
    return numbers, bool(np.isfinite(found["fzoos"]).all() and others)


def _large(results: Results) -> tuple[str, bool]:
    found = {name: results["large"][name].reached(0.1) for name in ("fzoos", *BASELINES)}
    numbers = ", ".join(f"{METHODS[name]} {words(rounds)}" for name, rounds in found.items())
    fewest = all((found["fzoos"] < found[name]).all() for name in BASELINES)
    return numbers, bool((found["fzoos"] <= 10).all() and fewest)


def _strong(results: Results) -> tuple[str, bool]:
    names = ("fzoos", "scaffold_1", "scaffold_2")
    shrunk = {name: results["strong"][name].gap[:, 0] / results["strong"][name].gap[:, 15] for name in names}
    numbers = ", ".join(f"{METHODS[name]} {words(values.round(1))}" for name, values in shrunk.items())
    ahead = all((shrunk["fzoos"] > shrunk[name]).all() for name in names[1:])
    return numbers, bool((shrunk["fzoos"] >= 50.0).all() and ahead)


def _large_strong(results: Results) -> tuple[str, bool]:
    names = ("fzoos", "scaffold_1", "scaffold_2")
    gaps = {name: results["large_strong"][name].gap[:, -1] for name in names}
    numbers = ", ".join(f"{METHODS[name]} {words(values.round(3))}" for name, values in gaps.items())
    start = results["large_strong"]["fzoos"].gap[:, 0]
    return f"from {words(start.round(2))}: {numbers}", all(
        bool((gaps["fzoos"] < gaps[name]).all()) for name in names[1:]
    )


def _published(results: Results) -> tuple[str, bool]:
    gaps = {}
    for setting in ("main", "strong"):
        gaps[setting] = [results[setting][name].gap[:, 15] for name in ("fzoos", "inverse")]
    numbers = "; ".join(
        f"C = {SETTINGS[name].heterogeneity:g}: {words(ours.round(4))} and {words(decayed.round(4))}"
        for name, (ours, decayed) in gaps.items()
    )
    return numbers, all(bool((ours < decayed).all()) for ours, decayed in gaps.values())


@dataclass(frozen=True)
class Claim:
    """text: what is claimed, of which settings. judge: the numbers in words, and whether they bear it out."""

    name: str
    settings: frozenset[str]
    text: str
    judge: Callable[[Results], tuple[str, bool]]


CLAIMS = (
    Claim(
        "fzoos_soon",
        frozenset({"main"}),
        "d = 50, C = 5: FZooS reaches 10 % of the first gap in at most 5 rounds and 2,700 evaluations",
        _soon,
    ),
    Claim(
        "fzoos_dearer",
        frozenset({"main"}),
        "there FedZO takes at least 1.7 times the rounds and 3 times the evaluations",
        _dearer,
    ),
    Claim(
        "fzoos_alone",
        frozenset({"main"}),
        "there FZooS reaches 1 % where FedZO and FZooS without correction do not in 20 rounds",
        _alone,
    ),
    Claim(
        "fzoos_large",
        frozenset({"large"}),
        "d = 300, C = 5: FZooS reaches 10 % in at most 10 rounds and in fewer than every baseline",
        _large,
    ),
    Claim(
        "fzoos_strong",
        frozenset({"strong"}),
        "d = 50, C = 50: in 15 rounds FZooS makes the gap at least 50 times smaller; both SCAFFOLDs less",
        _strong,
    ),
    Claim(
        "fzoos_large_strong",
        frozenset({"large_strong"}),
        "d = 300, C = 50: after 25 rounds FZooS is ahead of both SCAFFOLDs",
        _large_strong,
    ),
    Claim(
        "fzoos_gamma",
        frozenset({"main", "strong"}),
        "gamma = 1 has a smaller gap after 15 rounds than the published 1/t, at C = 5 and C = 50",
        _published,
    ),
)
