"""A pole on a cart, in plain Python, balanced by networks that evolve: clients are places to start from.

A tanh network of 8 units, 58 numbers, looks at four and pushes left or right, 50 times a second; it has fallen at 12
degrees or 2.4 metres, and is done after 500 steps. 40 clients have a start each; three of them, others in each round,
rank 40 networks, and five of these once more. The power is the best of a grid on the seeds 100 and 101.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

import fedsim
from experiments.evolution import HERE
from experiments.parts import Claim, Part
from experiments.studies import Numbers, band, cell, picture
from fedsim.running.sweep import Outcome

CHOOSING, TOLD = range(100, 102), range(3)
POWERS = (0.05, 0.2, 0.5)
STARTS, GENERATIONS, LONGEST, LEVEL = 40, 12, 500, 475
WIDTH, NUMBERS = 8, 58


@dataclass(frozen=True)
class CartPole:
    """Minus the steps that a network stays up from a start (x, x', angle, angle')."""

    start: tuple[float, float, float, float]

    def __call__(self, weights: Any) -> float:
        """Of the weights [58]."""
        w = weights.tolist()
        first = [[*w[4 * unit : 4 * unit + 4], w[32 + unit]] for unit in range(WIDTH)]
        last = [right - left for left, right in zip(w[40:48], w[48:56], strict=True)]
        x, v, a, o = self.start
        for step in range(LONGEST):
            push = w[57] - w[56]
            for (p, q, r, s, b), weight in zip(first, last, strict=True):
                push += weight * math.tanh(p * x + q * v + r * a + s * o + b)
            force = 10.0 if push > 0 else -10.0
            sine, cosine = math.sin(a), math.cos(a)
            pull = (force + 0.05 * o * o * sine) / 1.1
            turn = (9.8 * sine - cosine * pull) / (0.5 * (4.0 / 3.0 - 0.1 * cosine * cosine / 1.1))
            speed = pull - 0.05 * turn * cosine / 1.1
            x, v, a, o = x + 0.02 * v, v + 0.02 * speed, a + 0.02 * o, o + 0.02 * turn
            if abs(x) > 2.4 or abs(a) > 12.0 * math.pi / 180.0:
                return -float(step + 1)
        return -float(LONGEST)


def functions(seed: int) -> list[CartPole]:
    """The clients' starts, uniform within 0.05."""
    random = np.random.Generator(np.random.PCG64([seed, 11]))
    drawn = random.uniform(-0.05, 0.05, size=(STARTS, 4)).tolist()
    return [CartPole((x, v, a, o)) for x, v, a, o in drawn]


def evolved(power: float, seed: int, generations: int = GENERATIONS) -> tuple[Numbers, Numbers]:
    """Of the elite after each generation the mean steps from all starts; and how many genes it has."""
    problem = fedsim.black_box(functions(seed), dimension=NUMBERS, kind="scalar", bounds=None, device="cpu")
    made = fedsim.experiment(
        rounds=2 * generations,
        seed=seed,
        strategy={
            "kind": "genetic", "population": 40, "truncation": 8, "candidates": 5, "spread": 0.5, "power": power
        },
        client="genetic",
        selection={"kind": "uniform", "count": 3},
        evaluation={"every": 2, "clients": False},
    )  # fmt: skip
    rows = fedsim.run(made, problem=problem, save=False).history.rows[1::2]
    return -np.array([row["value"] for row in rows]), np.array([row["genes"] for row in rows], dtype=np.float64)


@dataclass(frozen=True, eq=False)
class Measured:
    """A power. steps, genes: after each generation, [S, T]."""

    label: str
    steps: Numbers
    genes: Numbers


Results = Mapping[str, Measured]


def taken(power: float, seeds: Sequence[int]) -> Measured:
    """What a power comes to."""
    found = [evolved(power, seed) for seed in seeds]
    return Measured(f"power {power:g}", *(np.array(part) for part in zip(*found, strict=True)))


def measure(out: Path, *, workers: int | None = None, on_done: Callable[[Outcome], None] | None = None) -> Results:  # noqa: ARG001
    """Evolve, which takes about a minute, and needs no folder."""
    chosen = max(POWERS, key=lambda power: float(taken(power, CHOOSING).steps[:, -3:].mean()))
    others = {f"power {power:g}": taken(power, TOLD) for power in POWERS if power != chosen}
    return {"chosen": taken(chosen, TOLD), **others}


def table(results: Results) -> Table:
    """A row a power."""
    laid = Table(show_edge=False, caption=f"mean of {STARTS} starts; ±: over seeds 0 to {len(TOLD) - 1}")
    laid.add_column("power")
    for heading in ("steps after 1", "3", "6", f"{GENERATIONS}", "genes"):
        laid.add_column(heading, justify="right")
    for name, row in results.items():
        cells = [cell(row.steps[:, generation - 1], 0) for generation in (1, 3, 6, GENERATIONS)]
        label = f"{row.label}, chosen" if name == "chosen" else row.label
        laid.add_row(label, *cells, cell(row.genes[:, -1], 1))
    return laid


def draw(results: Results, path: Path) -> None:
    """Steps against generations, a line a power."""
    with picture(path, "generation", f"steps that the elite stays up, of {LONGEST}", loc="lower right") as axis:
        for number, row in enumerate(results.values()):
            band(axis, number, row.label, np.arange(1.0, row.steps.shape[1] + 1), row.steps)
        axis.set_ylim(0, LONGEST + 20)


def balances(results: Results) -> tuple[str, bool]:
    """Whether every seed's elite stays up for nearly all steps at some time."""
    best = results["chosen"].steps.max(axis=1)
    words = f"{results['chosen'].label}: {', '.join(f'{one:.0f}' for one in best)}"
    return words, bool((best >= LEVEL).all())


PART = Part(
    HERE,
    "cartpole",
    measure,
    table,
    draw,
    (
        Claim(
            "balances",
            f"within {GENERATIONS} generations the elite stays up for {LEVEL} of {LONGEST} steps, mean over all "
            f"starts, in each of {len(TOLD)} seeds",
            balances,
        ),
    ),
)
