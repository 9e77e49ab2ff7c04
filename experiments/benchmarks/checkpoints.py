"""The benchmark of checkpoints: `python -m experiments.benchmarks.checkpoints`.

An experiment with checkpoints as they are by default and without any, turn by turn, in one process, each in its own run
folder. Reported: seconds on the wall of each, without pictures, medians over the turns; the median over turns of
their ratio within a turn; and what one checkpoint of the last round takes: bytes, and milliseconds to write and read.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, TypeVar

import typer
from rich.console import Console
from rich.table import Table

import fedsim
from fedsim.configuration.tables import Checkpointing
from fedsim.running.build import build_problem, build_simulation
from fedsim.running.checkpoint import Checkpoint, read, write

FILE = Path(__file__).parent.parent / "digits_fedavg.toml"
Made = TypeVar("Made")


def timed(work: Callable[[], Made]) -> tuple[float, Made]:
    """How many seconds this takes, and what it returns."""
    began = time.perf_counter()
    made = work()
    return time.perf_counter() - began, made


def wall(experiment: fedsim.Experiment) -> float:
    """Seconds of all rounds."""
    with TemporaryDirectory() as place:
        seconds: float = fedsim.run(experiment, out=Path(place) / "run").summary["wall"]
        return seconds


def main(
    file: Annotated[Path, typer.Argument(help="An experiment file.")] = FILE,
    turns: Annotated[int, typer.Option(help="How often each is measured.")] = 5,
    rounds: Annotated[int, typer.Option(help="Of a run.")] = 400,
) -> None:
    """Print the table."""
    loaded = fedsim.load(file, overrides=[f"rounds={rounds}", "evaluation.every=10"])
    never = replace(loaded, checkpoint=Checkpointing(every=0))
    wall(replace(never, rounds=2))  # what is made once for a process
    found = [(wall(loaded), wall(never)) for _ in range(turns)]
    simulation = build_simulation(loaded, build_problem(loaded))
    for _ in simulation:
        pass
    with TemporaryDirectory() as place:
        writes, reads = [], []
        for _ in range(turns):
            taken, path = timed(lambda: write(Path(place), rounds, Checkpoint(simulation.snapshot(copy=False), 0, 0)))
            writes.append(taken)
            reads.append(timed(lambda: read(path))[0])  # noqa: B023
        size = path.stat().st_size
    table = Table(title=f"{loaded.name}, {rounds} rounds, {turns} turns")
    for column in ("s with", "s without", "ratio", "KiB", "ms to write", "ms to read"):
        table.add_column(column, justify="right")
    own, other = (statistics.median(seconds) for seconds in zip(*found, strict=True))
    ratio = statistics.median(one / two for one, two in found)
    milliseconds = [f"{1000 * statistics.median(taken):.1f}" for taken in (writes, reads)]
    table.add_row(f"{own:.2f}", f"{other:.2f}", f"{ratio:.3f}", f"{size / 1024:.0f}", *milliseconds)
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
