"""The genetic algorithm and evolution strategies on the digits: 650 weights, found with losses alone.

300 generations of 100 networks, or 300 rounds of FedES with 100 losses a client, by Adam on the server. The power of
mutations and Adam's rate are the best of a grid on the seeds 100 and 101; what is told is from the seeds 0 to 2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.table import Table

from experiments.evolution import HERE
from experiments.parts import Claim, Part, carry_out
from experiments.studies import Numbers, band, cell, picture
from fedsim.running.stored import open_run
from fedsim.running.sweep import Outcome, Point, expand

CHOOSING, TOLD = range(100, 102), range(3)
GENERATIONS, WEIGHTS = 300, 650
ES = ("strategy={kind='fedes', population=100, sigma=0.05, server_optimizer='adam'}", "client.kind=fedes", "rounds=300")
GRIDS: Mapping[str, tuple[str, str, tuple[str, ...], tuple[str, ...]]] = {
    "genetic": ("genetic algorithm", "strategy.power", ("0.02", "0.05", "0.1"), ()),
    "es": ("evolution strategy", "strategy.server_lr", ("0.01", "0.03", "0.1"), ES),
}
"""Ways: what they are called, the option that is chosen and its values, and how the file is changed."""
LEVEL = 0.9


@dataclass(frozen=True, eq=False)
class Measured:
    """A way with the value that was chosen. evaluations: of a client, [T]; accuracy: [S, T].

    genes: of the elite at the end, [S]; up, down: bytes of a client in all, [S].
    """

    label: str
    chosen: str
    evaluations: Numbers
    accuracy: Numbers
    genes: Numbers
    up: Numbers
    down: Numbers


Results = Mapping[str, Measured]


def runs(name: str, value: str, seeds: Sequence[int], out: Path) -> list[Point]:
    """A way's runs with a value, seed by seed."""
    _, option, _, changes = GRIDS[name]
    return expand(
        [HERE / "digits.toml"], out=out / name / value, seeds=seeds, overrides=(*changes, f"{option}={value}")
    )


def measured(name: str, value: str, points: Sequence[Point]) -> Measured:
    """What runs came to."""
    rows = [open_run(point.folder).history.rows for point in points]
    judged = [number for number, row in enumerate(rows[0]) if row.get("test_accuracy") is not None]
    accuracy = np.array([[one[number]["test_accuracy"] for number in judged] for one in rows])
    asked = np.cumsum([row["queries"] for row in rows[0]])[judged] / 10.0
    genes = np.array([max([row.get("genes") or 0 for row in one[-2:]]) for one in rows], dtype=np.float64)
    up, down = (
        np.array([sum(row[column] for row in one) / 10.0 for one in rows]) for column in ("bytes_up", "bytes_down")
    )
    return Measured(GRIDS[name][0], value, asked, accuracy, genes, up, down)


def measure(out: Path, *, workers: int | None = None, on_done: Callable[[Outcome], None] | None = None) -> Results:
    """Run what is not finished in `out`, and read it all. FedsimError: a run failed."""
    tried = {name: {value: runs(name, value, CHOOSING, out) for value in grid[2]} for name, grid in GRIDS.items()}
    carry_out([points for values in tried.values() for points in values.values()], workers, on_done)
    chosen = {
        name: max(found, key=lambda value: float(measured(name, value, found[value]).accuracy[:, -1].mean()))
        for name, found in tried.items()
    }
    told = {name: runs(name, value, TOLD, out) for name, value in chosen.items()}
    carry_out(told.values(), workers, on_done)
    return {name: measured(name, chosen[name], points) for name, points in told.items()}


def table(results: Results) -> Table:
    """A row a way."""
    laid = Table(show_edge=False, caption=f"±: one sample standard deviation over seeds 0 to {len(TOLD) - 1}")
    for heading in ("way", "chosen"):
        laid.add_column(heading)
    for heading in ("a third of the way", "end", "genes", "kB up", "kB down"):
        laid.add_column(heading, justify="right")
    for name, row in results.items():
        third = row.accuracy[:, len(row.evaluations) // 3 - 1]
        genes = cell(row.genes, 0) if name == "genetic" else ""
        traffic = (cell(row.up / 1000, 0), cell(row.down / 1000, 0))
        laid.add_row(row.label, row.chosen, cell(third, 3), cell(row.accuracy[:, -1], 3), genes, *traffic)
    return laid


def draw(results: Results, path: Path) -> None:
    """Accuracy against a client's evaluations."""
    with picture(path, "evaluations of a client", "test accuracy", loc="lower right") as axis:
        for number, row in enumerate(results.values()):
            band(axis, number, row.label, row.evaluations, row.accuracy)


def learns(results: Results) -> tuple[str, bool]:
    """Whether every seed ends above the level."""
    ends = results["genetic"].accuracy[:, -1]
    return f"{cell(ends, 3)} ({', '.join(f'{one:.3f}' for one in ends)})", bool((ends > LEVEL).all())


def chains(results: Results) -> tuple[str, None]:
    """How long the elite's chain has become."""
    bytes_ = 8 + 12 * results["genetic"].genes
    return f"{cell(bytes_, 0)} bytes, where the weights take {4 * WEIGHTS}", None


def beside(results: Results) -> tuple[str, None]:
    """What strategies come to with as many evaluations."""
    return f"{cell(results['es'].accuracy[:, -1], 3)} after {results['es'].evaluations[-1]:,.0f} evaluations", None


PART = Part(
    HERE,
    "digits",
    measure,
    table,
    draw,
    (
        Claim(
            "learns", f"the genetic algorithm is above {LEVEL} on the digits after {GENERATIONS} generations", learns
        ),
        Claim("chains", "what the elite's chain takes as it crosses, at the end", chains),
        Claim("beside", "what evolution strategies with Adam come to with about as many evaluations", beside),
    ),
)
