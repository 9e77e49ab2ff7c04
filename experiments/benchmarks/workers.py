"""The benchmark of worker processes: `python -m experiments.benchmarks.workers`.

Start: seconds until two processes have begun, loaded PyTorch and done a task each. Round trips: tasks a second that do
nothing, in one process. Transfer: MB a second each way, of what is sent to one process and comes back: arrays, tensors
and bytes. Slow clients: the seconds of a round of eight clients, each of which keeps Python busy, with executor
`stacked` and with `process`, turn by turn, and the median over turns of their ratio.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

import fedsim
from clients.sgd import Sgd
from fedsim.core.options import PositiveFloat, options
from fedsim.engine.cohort import Cohort
from fedsim.exchange.messages import Update
from fedsim.parallel.workers import Workers, take_cores
from fedsim.running.build import build_problem, build_simulation
from fedsim.running.simulation import Simulation

CLIENTS = 8
TRIPS = 2000
SIZES = (2**16, 2**20, 2**24)
"""Bytes that are sent."""


@options
class Slow(Sgd):
    """Plain training, and before it Python is busy for each client."""

    busy: PositiveFloat = 0.05
    """Seconds of one core for each client."""

    def train(self, cohort: Cohort) -> Update:
        """Train the cohort."""
        end = time.process_time() + self.busy * len(cohort)
        while time.process_time() < end:
            pass
        return super().train(cohort)


def same(_: None, task: Any) -> Any:
    """A task that is its own outcome."""
    return task


def seconds(work: Callable[[], object]) -> float:
    """How long this takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def slow_rounds(executor: str) -> Simulation:
    """Rounds of slow clients."""
    experiment = fedsim.experiment(
        rounds=10**6,
        problem={"dataset": {"kind": "synthetic", "features": 8, "clients": CLIENTS, "examples_per_client": 20}},
        partition="natural",
        client={"kind": "experiments.benchmarks.workers:Slow", "epochs": 1},
        evaluation={"every": 0},
        engine={"executor": executor, "device": "cpu"} | ({"workers": 2} if executor == "process" else {}),
    )
    return build_simulation(experiment, build_problem(experiment), own=False)


def main(turns: Annotated[int, typer.Option(help="How often each is measured.")] = 5) -> None:
    """Print the tables."""
    console = Console()
    started = Table(title="Two processes", show_header=False)
    with Workers(2, take_cores, 1) as workers:
        started.add_row("start, s", f"{seconds(lambda: workers.map(same, range(2))):.2f}")
    with Workers(1, take_cores, 1) as workers:
        workers.map(same, [torch.ones(1)])
        trips = [TRIPS / seconds(lambda: workers.map(same, range(TRIPS))) for _ in range(turns)]
        started.add_row("round trips a second", f"{statistics.median(trips):.0f}")
        console.print(started)
        moved = Table("MB a second each way", "array", "tensor", "bytes")
        for size in SIZES:
            row = []
            for value in (np.ones(size, np.uint8), torch.ones(size, dtype=torch.uint8), bytes(size)):
                workers.map(same, [value])
                taken = [seconds(lambda: workers.map(same, [value])) for _ in range(5 * turns)]  # noqa: B023
                row.append(f"{size / statistics.median(taken) / 1e6:.0f}")
            moved.add_row(f"{size / 2**20:g} MiB", *row)
        console.print(moved)
    simulations = [slow_rounds(executor) for executor in ("stacked", "process")]
    found = []
    for turn in range(turns + 1):
        taken = [seconds(simulation.step) for simulation in simulations]
        if turn:  # the first starts the processes
            found.append(taken)
    stacked, process = (statistics.median(values) for values in zip(*found, strict=True))
    slow = Table(f"{CLIENTS} slow clients", "s, stacked", "s, two processes", "ratio")
    slow.add_row("", f"{stacked:.2f}", f"{process:.2f}", f"{statistics.median(a / b for a, b in found):.2f}")
    console.print(slow)


if __name__ == "__main__":
    typer.run(main)
