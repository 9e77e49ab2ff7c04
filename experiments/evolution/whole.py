"""Whole numbers in black boxes: an ellipsoid of ten coordinates, five of them whole, by three kinds of CMA-ES.

F = sum_j 100^(j/9) (x_j - c_j)^2 within -10 .. 10, from 5 with a deviation of 2, whole numbers at c_j = 1, -2, 3, 0, 2;
4,000 evaluations, ten seeds; nothing is chosen. There is one client, so that F is what it says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

import fedsim
from experiments.evolution import HERE
from experiments.parts import Claim, Part
from experiments.studies import Numbers, picture
from fedsim.plots.style import BRIGHT, STYLES
from fedsim.problems.black_box import BlackBox
from fedsim.running.build import build_simulation
from fedsim.running.sweep import Outcome

SEEDS, EVALUATIONS, TARGET = range(10), 4000, 1e-8
WHOLE = (1.0, -2.0, 3.0, 0.0, 2.0)
CENTRES = (*WHOLE, 0.5, -1.5, 2.5, 1.25, -0.75)
SPACE: Mapping[str, Any] = {
    f"x{place}": ("int", -10, 10) if place < len(WHOLE) else (-10, 10) for place in range(len(CENTRES))
}
ROUNDED: Mapping[str, Any] = dict.fromkeys(SPACE, (-10, 10))
WAYS: Mapping[str, tuple[str, str, Mapping[str, Any]]] = {
    "margin": ("CMA-ES with margin", "cma_es_margin", SPACE),
    "package": ("pycma's whole numbers", "cma_es", SPACE),
    "rounded": ("pycma, rounded in the function", "cma_es", ROUNDED),
}
"""Ways: what they are called, the strategy, and the variables."""


def ellipsoid(values: Mapping[str, float]) -> float:
    """F, of whole numbers rounded."""
    x = np.array(list(values.values()), dtype=np.float64)
    x[: len(WHOLE)] = np.rint(x[: len(WHOLE)])
    return float((100.0 ** (np.arange(len(x)) / (len(x) - 1)) * (x - CENTRES) ** 2).sum())


def problem(space: Mapping[str, Any]) -> BlackBox:
    """The black box of some variables."""
    return fedsim.black_box([ellipsoid], space=space, start=dict.fromkeys(space, 5), device="cpu")


def searched(way: str, seed: int, evaluations: int = EVALUATIONS) -> Numbers:
    """The lowest value so far, after each round."""
    _, kind, space = WAYS[way]
    made = fedsim.experiment(
        rounds=evaluations // 10,
        seed=seed,
        strategy={"kind": kind, "sigma": 0.1, "population": 10},
        client="values",
        evaluation={"every": 0},
    )
    lowest = [row["lowest_value"] for row in build_simulation(made, problem(space))]
    return np.minimum.accumulate(lowest)


@dataclass(frozen=True, eq=False)
class Measured:
    """A way. lowest: [S, T]."""

    label: str
    lowest: Numbers

    @property
    def reached(self) -> Numbers:
        """Evaluations until the target, [S]; infinite: never."""
        there = self.lowest <= TARGET
        return np.where(there.any(axis=1), 10.0 * (there.argmax(axis=1) + 1), np.inf)


Results = Mapping[str, Measured]


def measure(out: Path, *, workers: int | None = None, on_done: Callable[[Outcome], None] | None = None) -> Results:  # noqa: ARG001
    """Search, which takes about two minutes, and needs no folder."""
    return {way: Measured(told[0], np.array([searched(way, seed) for seed in SEEDS])) for way, told in WAYS.items()}


def table(results: Results) -> Table:
    """A row a way."""
    laid = Table(show_edge=False, caption=f"of seeds 0 to {len(SEEDS) - 1}; target {TARGET:g}")
    laid.add_column("way")
    for heading in ("reached", "median evaluations of these", "median at the end"):
        laid.add_column(heading, justify="right")
    for row in results.values():
        there = row.reached[np.isfinite(row.reached)]
        median = f"{np.median(there):,.0f}" if len(there) else ""
        laid.add_row(row.label, f"{len(there)} of {len(SEEDS)}", median, f"{np.median(row.lowest[:, -1]):.1e}")
    return laid


def draw(results: Results, path: Path) -> None:
    """The lowest value so far against evaluations, the median over the seeds, and each seed thinly."""
    with picture(path, "evaluations", "lowest value so far", log="y", loc="lower left") as axis:
        for number, row in enumerate(results.values()):
            where, floor = 10.0 * np.arange(1, row.lowest.shape[1] + 1), np.maximum(row.lowest, 1e-12)
            axis.plot(where, floor.T, color=BRIGHT[number], linewidth=0.4, alpha=0.35)
            axis.plot(
                where, np.median(floor, axis=0), STYLES[number], color=BRIGHT[number], linewidth=1.8, label=row.label
            )


def often(results: Results) -> tuple[str, bool]:
    """Whether those that know of whole numbers reach the target more often than the one that does not."""
    counts = {way: int(np.isfinite(row.reached).sum()) for way, row in results.items()}
    words = ", ".join(f"{results[way].label} {count}" for way, count in counts.items())
    return f"{words}, of {len(SEEDS)}", min(counts["margin"], counts["package"]) > counts["rounded"]


PART = Part(
    HERE,
    "whole",
    measure,
    table,
    draw,
    (
        Claim(
            "often",
            f"on an ellipsoid with five whole numbers of ten, CMA-ES with margin and pycma's reach {TARGET:g} in more "
            "seeds than rounding in the function",
            often,
        ),
    ),
)
