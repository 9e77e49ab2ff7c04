"""The benchmark of a GPU: `python -m experiments.benchmarks.gpu`, in five minutes; exit code 2 where there is none.

fedsim under its executors beside a plain loop over the clients, all on the same GPU with all examples in its memory.
They come one after the other, because how a GPU computes is set for the whole process: in full precision and in
deterministic ways, the plain loop too, which comes after fedsim; and with TF32 at the end. Each first runs some rounds,
after which accuracies are compared, and then as many as its time has room for, at least three, of which the median
counts.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from experiments.benchmarks.engine import Fedsim
from experiments.benchmarks.peers import works
from experiments.benchmarks.peers.plain import PlainLoop
from experiments.benchmarks.peers.work import Peer, Work

WORKS: Mapping[str, Callable[[], Work]] = {
    "digits": works.digits,
    "digits, batches of 32": lambda: replace(works.digits(), batch_size=32),
    "images": works.images,
    "images, batches of 128": lambda: replace(works.images(), batch_size=128),
}
PLAIN = "plain loop"
ROUNDS = 5
"""Rounds before accuracies are compared and anything is timed."""
LEAST = 3
"""Rounds that are timed at least."""


@dataclass(frozen=True)
class Measured:
    """Seconds of a round, its median; seconds to start; peak memory of the GPU in MiB; accuracy after ROUNDS rounds."""

    seconds: float
    start: float
    memory: float
    accuracy: float


def engines(device: str) -> dict[str, Callable[[Work], Peer]]:
    """Makers of engines on a device by their names in the table, in the order in which they run."""
    made: dict[str, Callable[[Work], Peer]] = {
        "fedsim stacked": lambda work: Fedsim(work, "stacked", device),
        "fedsim loop": lambda work: Fedsim(work, "loop", device),
        PLAIN: lambda work: PlainLoop(work, torch.get_num_threads(), device),
    }
    if device == "cuda":
        made["fedsim stacked, TF32"] = lambda work: Fedsim(work, "stacked", device, tf32=True)
    return made


def measure(engine: Peer, device: str, budget: float) -> Measured:
    """Run an engine for `budget` seconds, its start and first rounds among them, but at least LEAST timed rounds."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    engine.start()
    ready = time.perf_counter()
    for _ in range(ROUNDS):
        engine.round()
    accuracy = engine.accuracy()
    seconds: list[float] = []
    while len(seconds) < LEAST or time.perf_counter() - began < budget:
        before = time.perf_counter()
        engine.round()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - before)
    engine.stop()
    memory = torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else 0.0
    return Measured(statistics.median(seconds), ready - began, memory, accuracy)


def trained(work: Work) -> float:
    """How many images a round trains on, in the mean."""
    return work.epochs * sum(map(len, work.clients)) * work.cohort_size / len(work.clients)


def measured(work: Work, device: str, budget: float) -> dict[str, Measured]:
    """All engines on a work, `budget` seconds each."""
    return {name: measure(make(work), device, budget) for name, make in engines(device).items()}


def table_of(title: str, work: Work, found: Mapping[str, Measured]) -> Table:
    """The rows of one work."""
    table = Table(title=title)
    for column in ("engine", "images a second", "ms a round", "times plain loop", "start s", "peak MiB", "accuracy"):
        table.add_column(column, justify="left" if column == "engine" else "right")
    for name, own in found.items():
        table.add_row(
            name,
            f"{trained(work) / own.seconds:,.0f}",
            f"{1000 * own.seconds:.1f}",
            f"{own.seconds / found[PLAIN].seconds:.2f}",
            f"{own.start:.1f}",
            f"{own.memory:.0f}",
            f"{own.accuracy:.4f}",
        )
    return table


def tables(console: Console, chosen: Mapping[str, Callable[[], Work]], device: str, minutes: float) -> None:
    """Print what is measured on a device, in so many minutes."""
    budget = 60.0 * minutes / (len(chosen) * len(engines(device)))
    for title, make in chosen.items():
        work = make()
        console.print(table_of(title, work, measured(work, device, budget)))


def main(
    minutes: Annotated[float, typer.Option(min=0.1, help="How long all of it may take.")] = 5.0,
    only: Annotated[str, typer.Option(help=f"One of: {'; '.join(WORKS)}. All by default.")] = "",
) -> None:
    """Print the table of this machine's GPU."""
    if only and only not in WORKS:
        raise typer.BadParameter(f"{only} is none of: {'; '.join(WORKS)}")
    if not torch.cuda.is_available():
        typer.echo("there is no CUDA device here, and this benchmark is of one", err=True)
        raise typer.Exit(2)
    console = Console(width=120)
    console.print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}")
    tables(console, {only: WORKS[only]} if only else WORKS, "cuda", minutes)


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
