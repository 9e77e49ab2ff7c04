"""The benchmark of seeds in one stack: `python -m experiments.benchmarks.seeds`.

The files of experiments/fzoos (5 clients, a quadratic each, d = 50, 10 local steps), and functions so small that all of
the time goes into calls (d = 10, 4 directions), under ten seeds: once in one stack, once as ten runs one after the
other, turn by turn, in one process, nothing written. Reported: seconds of each, medians over the turns, and the median
over turns of their ratio within a turn.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

import fedsim
from fedsim.running.seeds import run_seeds

FOLDER = Path(__file__).parent.parent / "fzoos"
SMALL = ["problem.dimension=10", "client.estimator.directions=gaussian", "client.estimator.count=4"]
CASES: dict[str, tuple[str, list[str]]] = {
    "FedZO": ("fedzo", ["rounds=20"]),
    "FedZO, small": ("fedzo", ["rounds=20", *SMALL]),
    "SCAFFOLD": ("scaffold_1", ["rounds=20"]),
    "SCAFFOLD, small": ("scaffold_1", ["rounds=20", *SMALL]),
    "FZooS, 200 features": (
        "fzoos",
        ["rounds=10", "client.features=200", "client.feature_points=40", "client.history=200", "client.neighbours=30"],
    ),
    "FZooS": ("fzoos", ["rounds=2"]),
}


def seconds(work: Callable[[], object]) -> float:
    """How long this takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main(
    turns: Annotated[int, typer.Option(help="How often each is measured.")] = 3,
    seeds: Annotated[int, typer.Option(help="How many seeds.")] = 10,
    case: Annotated[list[str] | None, typer.Option(help="Only these rows of the table.")] = None,
) -> None:
    """Print the table."""
    table = Table(title=f"{seeds} seeds, {turns} turns")
    table.add_column("method")
    for column in ("s in one stack", "s one by one", "ratio"):
        table.add_column(column, justify="right")
    numbers = list(range(seeds))
    for name in case or CASES:
        file, overrides = CASES[name]
        experiment = fedsim.load(FOLDER / f"{file}.toml", overrides=[*overrides, "client.cosine=false"])
        single = [experiment.with_seed(number) for number in numbers]
        fedsim.run(single[0], save=False)  # what is made once for a process
        found = []
        for _ in range(turns):
            stacked = seconds(lambda: run_seeds(experiment, numbers, save=False))  # noqa: B023
            apart = seconds(lambda: [fedsim.run(one, save=False) for one in single])  # noqa: B023
            found.append((stacked, apart))
        ours, theirs = (statistics.median(values) for values in zip(*found, strict=True))
        ratio = statistics.median(a / b for a, b in found)
        table.add_row(name, f"{ours:.2f}", f"{theirs:.2f}", f"{ratio:.2f}")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
