"""The benchmark of FZooS: `python -m experiments.benchmarks.fzoos`.

fedsim, and the same in plain NumPy and SciPy, on the same five quadratics, C = 5, from the same x_0. Each has a process
of its own with all cores, and they take turns of one round. Reported of all rounds: seconds, and seconds of the
processor; the ratio of the seconds to fedsim's (the median over rounds); the peak memory of the process; and after how
many rounds the gap is a tenth and a hundredth of the first.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from rich.console import Console
from rich.table import Table

SIZES = {50: 20, 300: 30}
"""By dimension: rounds."""
FEDSIM, PLAIN = "fedsim", "NumPy"
PATIENCE = 600.0
"""Seconds to wait for a round."""


class Turn(NamedTuple):
    """A round's seconds, those of the processor, the gap after it, and the process's peak memory so far, in MiB."""

    seconds: float
    processor: float
    gap: float
    memory: float


@dataclass
class Measured:
    """The gap at x_0, and the turns."""

    gap: float
    turns: list[Turn] = field(default_factory=list)

    def reached(self, share: float) -> str:
        """After how many rounds the gap is at most that share of the first."""
        gaps = [turn.gap for turn in self.turns]
        return next((str(number) for number, gap in enumerate(gaps, 1) if gap <= share * self.gap), "never")


def engine(name: str, dimension: int, seed: int) -> tuple[Callable[[], object], Callable[[], float]]:
    """What does a round, and what tells the gap."""
    import torch

    import fedsim
    from fedsim.core.streams import Streams
    from fedsim.problems.benchmark_functions import BenchmarkFunctions
    from fedsim.running.build import build_problem, build_simulation

    experiment = fedsim.experiment(
        seed=seed,
        rounds=10**6,
        problem={"kind": "benchmark", "dimension": dimension, "clients": 5, "heterogeneity": 5.0},
        client={"kind": "fzoos"},
        strategy={"kind": "fzoos", "guard": True},
        evaluation={"every": 0},
        engine={"precision": "float64"},
    )
    problem = build_problem(experiment)
    if name == PLAIN:
        from experiments.benchmarks.peers.fzoos import PlainFZooS

        synthetic = BenchmarkFunctions(dimension=dimension, clients=5, heterogeneity=5.0)
        family = synthetic.family(Streams(seed), torch.device("cpu"), torch.float64)
        plain = PlainFZooS(family.scale.numpy(), family.shift.numpy(), problem.initial().numpy(), seed)
        return plain.round, plain.gap
    simulation = build_simulation(experiment, problem)
    return simulation.step, lambda: problem.evaluate(simulation.state.params, clients=False, on=())["gap"]


def serve(connection: Connection, name: str, dimension: int, seed: int) -> None:
    """An engine's process: a round for each word, until there are no more."""
    play, gap = engine(name, dimension, seed)
    connection.send(gap())
    while connection.recv():
        seconds, processor = time.perf_counter(), time.process_time()
        play()
        seconds, processor = time.perf_counter() - seconds, time.process_time() - processor
        # Not getrusage, whose maximum a new process has from the one that started it.
        status = Path("/proc/self/status").read_text()
        memory = next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM"))
        connection.send(Turn(seconds, processor, gap(), memory))


def race(dimension: int, rounds: int, seed: int, names: Sequence[str] = (FEDSIM, PLAIN)) -> dict[str, Measured]:
    """Let the engines take turns."""
    spawn = get_context("spawn")
    running: dict[str, tuple[Connection, Any]] = {}
    found: dict[str, Measured] = {}
    try:
        for name in names:
            here, there = spawn.Pipe()
            process = spawn.Process(target=serve, args=(there, name, dimension, seed))
            process.start()
            there.close()
            running[name] = (here, process)
            found[name] = Measured(_answer(here, name))
        for _ in range(rounds):
            for name, measured in found.items():
                running[name][0].send(True)
                measured.turns.append(_answer(running[name][0], name))
        for here, _ in running.values():
            here.send(False)
        return found
    finally:
        for here, process in running.values():
            here.close()
            process.join(60)
            if process.is_alive():
                process.kill()
                process.join()


def _answer(connection: Connection, name: str) -> Any:
    if not connection.poll(PATIENCE):
        raise TimeoutError(f"{name} did not answer within {PATIENCE:.0f} s")
    try:
        return connection.recv()
    except EOFError as error:
        raise RuntimeError(f"{name} has died; its traceback is above") from error


def table_of(dimension: int, found: dict[str, Measured]) -> Table:
    """A row an engine."""
    ours = found[FEDSIM].turns
    table = Table(title=f"d = {dimension}, C = 5, five clients, {len(ours)} rounds")
    for column in ("engine", "s", "processor s", "times fedsim", "peak MiB", "rounds to 10 %", "to 1 %", "last gap"):
        table.add_column(column, justify="left" if column == "engine" else "right")
    for name, measured in found.items():
        turns = measured.turns
        table.add_row(
            name,
            f"{sum(turn.seconds for turn in turns):.1f}",
            f"{sum(turn.processor for turn in turns):.1f}",
            f"{statistics.median(turn.seconds / our.seconds for turn, our in zip(turns, ours, strict=True)):.2f}",
            f"{turns[-1].memory:.0f}",
            measured.reached(0.1),
            measured.reached(0.01),
            f"{turns[-1].gap:.4f}",
        )
    return table


def main(
    sizes: Annotated[str, typer.Option(help="Dimensions, of 50 and 300, with commas.")] = "50,300",
    rounds: Annotated[int, typer.Option(min=0, help="Rounds; 0: 20 of d = 50, and 30 of d = 300.")] = 0,
    seed: Annotated[int, typer.Option(help="Of the functions, x_0 and all draws.")] = 0,
) -> None:
    """Print the benchmark table."""
    console = Console(width=110)
    console.print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores")
    for size in sizes.split(","):
        if not size.isdigit() or int(size) not in SIZES:
            raise typer.BadParameter(f"{size} is none of {', '.join(map(str, SIZES))}")
        console.print(table_of(int(size), race(int(size), rounds or SIZES[int(size)], seed)))


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
