"""Steps by theory where clients' smoothness is uneven: EF21, and EF21-W, which may take longer ones.

Least squares of ten clients in eight dimensions, whose constants lie between 1 and 100, measured; the two largest
numbers of each message cross. Rounds until the mean of the estimates is a millionth of the first gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.table import Table
from torch import nn

import fedsim
from experiments.parts import Claim, Part
from experiments.studies import Numbers, cell, picture
from fedsim.compression.steps import ef21_step
from fedsim.plots.style import BRIGHT
from fedsim.problems.smoothness import smoothness
from fedsim.problems.supervised import Supervised
from fedsim.running.sweep import Outcome

HERE = Path(__file__).parent
SEEDS = range(5)
CLIENTS, NUMBERS, KEPT = 10, 8, 2
SPREADS = {
    "all alike": np.ones(CLIENTS),
    "1 to 100": np.geomspace(1.0, 100.0, CLIENTS),
    "one of 100": np.array([1.0] * (CLIENTS - 1) + [100.0]),
}
"""The clients' constants, but for what is drawn."""
WAYS = {"EF21": False, "EF21-W": True}
MOST = 20_000


@dataclass(frozen=True, eq=False)
class Measured:
    """rounds, steps: until the end, and gamma, [S] each. curve: of the first seed, |h| / |h_1| after each round."""

    rounds: Numbers
    steps: Numbers
    curve: Numbers


Results = Mapping[tuple[str, str], Measured]
"""By spread and way."""


def problem_of(spread: str, seed: int) -> Supervised:
    """Least squares, of each client about an optimum of its own."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(CLIENTS, 4 * NUMBERS, NUMBERS)) * np.sqrt(SPREADS[spread])[:, None, None]
    y = (x * generator.normal(size=(CLIENTS, 1, NUMBERS))).sum(axis=2)
    own = np.arange(x[..., 0].size).reshape(CLIENTS, -1)
    model = nn.Linear(NUMBERS, 1, bias=False)
    nn.init.zeros_(model.weight)
    flat = x.reshape(-1, NUMBERS)
    return fedsim.supervised(flat, y.ravel(), model=model, clients=list(own), loss="squared_error", dtype=torch.float64)


def run(spread: str, way: str, seed: int) -> tuple[float, float, Numbers]:
    """Rounds, the step, and how far the mean of the estimates has come down after each round."""
    problem, weighted = problem_of(spread, seed), WAYS[way]
    each, whole = smoothness(problem)
    gamma = ef21_step(each.tolist(), whole, KEPT / NUMBERS, weighted=weighted)
    feedback = {"kind": "ef21", "arrives": "increment", "init": "dense"}
    experiment = fedsim.experiment(
        rounds=MOST,
        seed=seed,
        selection={"kind": "uniform", "fraction": 1.0},
        strategy={"kind": "ef21", "report_norms": True},
        client={"kind": "sgd", "steps": 1, "batch_size": "full", "lr": gamma},
        transforms=[feedback | ({"smoothness": each.tolist()} if weighted else {}), {"kind": "top_k", "k": KEPT}],
        evaluation={"every": 0},
    )
    norms = list[float]()

    def look(now: fedsim.Round) -> bool:
        norms.append(now.row["change_norm"])
        return norms[-1] <= 1e-6 * norms[0]

    fedsim.run(experiment, problem=problem, callbacks=[look], save=False)
    return float(len(norms)), gamma, np.array(norms) / norms[0]


def measure(
    out: Path,  # noqa: ARG001  # nothing is kept of runs that take a second
    *,
    workers: int | None = None,  # noqa: ARG001
    on_done: Callable[[Outcome], None] | None = None,  # noqa: ARG001
) -> Results:
    """Run everything."""
    found = dict[tuple[str, str], Measured]()
    for spread in SPREADS:
        for way in WAYS:
            rounds, steps, curves = zip(*(run(spread, way, seed) for seed in SEEDS), strict=True)
            found[spread, way] = Measured(np.array(rounds), np.array(steps), curves[0])
    return found


def table(results: Results) -> Table:
    """A row a spread and way."""
    laid = Table(show_edge=False, caption=f"±: one sample standard deviation over seeds 0 to {len(SEEDS) - 1}")
    for heading in ("constants", "way"):
        laid.add_column(heading)
    for heading in ("step", "rounds"):
        laid.add_column(heading, justify="right")
    for (spread, way), row in results.items():
        laid.add_row(spread, way, cell(row.steps, 5), cell(row.rounds, 0))
    return laid


def draw(results: Results, path: Path) -> None:
    """How far the mean of the estimates has come down, of the first seed."""
    with picture(path, "rounds", "|h| of the first", size=(6.4, 3.6), log="y") as axis:
        for number, spread in enumerate(SPREADS):
            for way, style in zip(WAYS, ("-", "--"), strict=True):
                axis.plot(results[spread, way].curve, style, color=BRIGHT[number], label=f"{spread}, {way}")


def fewer(results: Results) -> tuple[str, bool]:
    """Whether rounds become fewer as steps become longer, and stay as many where all are alike."""
    words, held = list[str](), True
    for spread in SPREADS:
        one, other = (results[spread, way] for way in WAYS)
        longer, ratio = float((other.steps / one.steps).mean()), float((one.rounds / other.rounds).mean())
        words.append(f"{spread}: steps {longer:.2f} times as long, {ratio:.2f} times fewer rounds")
        held &= abs(ratio / longer - 1.0) < 0.1
    return "; ".join(words), held


PART = Part(
    HERE,
    "weights",
    measure,
    table,
    draw,
    (
        Claim(
            "steps",
            "least squares, the two largest of eight numbers: by its longer steps EF21-W takes as many times fewer "
            "rounds than EF21 as they are longer, to 10 %, whatever the clients' constants",
            fewer,
        ),
    ),
)
