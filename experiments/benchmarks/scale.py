"""The benchmark of large numbers: `python -m experiments.benchmarks.scale`.

Populations of a thousand to a million clients of which 100 take part, and one of which all do; examples dealt to
100,000 clients; many runs compared; a long run's rows read. Each has a process of its own. Reported: seconds on the
wall and of the processor, which other work on the machine moves less, and the peak memory of the process.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import tomli_w
import typer
from rich.console import Console
from rich.table import Table

import fedsim
from experiments.benchmarks.rounds import Cost, peak_memory
from fedsim.parallel.cores import one_core_an_operation
from fedsim.problems.datasets import Dataset
from fedsim.problems.partitions.library import IID, Dirichlet, Pathological, Shards
from fedsim.running.build import build_problem, build_simulation
from fedsim.running.history import read_rows

CLIENTS = (1_000, 100_000, 1_000_000)
FEATURES, EXAMPLES = 10, 20
FILE = Path(__file__).parent.parent / "digits_fedavg.toml"
DEALT = {
    "iid": IID(clients=100_000),
    "dirichlet, alpha 0.3, each at least one": Dirichlet(clients=100_000, alpha=0.3, fill="steal"),
    "shards, two each": Shards(clients=100_000),
    "pathological, two classes each": Pathological(clients=100_000, classes_per_client=2),
}


def cost(work: Callable[[], Any]) -> Cost:
    """What this takes."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Cost(time.perf_counter() - wall, time.process_time() - cpu)


def shown(taken: Cost) -> str:
    """Seconds on the wall, and of the processor in parentheses."""
    return f"{taken.wall:.2f} ({taken.cpu:.2f})"


def apart(work: Callable[..., Any], *given: Any) -> Any:
    """What this returns, in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *given).result()


def population(clients: int, cohort: int, turns: int) -> tuple[Cost, Cost, float]:
    """To build a run of so many clients, a round of so many of them (medians), and the peak memory."""
    experiment = fedsim.experiment(
        rounds=10**6,
        problem={
            "dataset": {"kind": "synthetic", "clients": clients, "examples_per_client": EXAMPLES, "test_share": 0.0}
            | {"features": FEATURES},
            "model": "logistic",
        },
        partition={"kind": "natural"},
        selection={"kind": "uniform", "count": cohort},
        client={"kind": "sgd", "epochs": 1, "batch_size": 10, "lr": 0.05},
        evaluation={"every": 0},
    )
    made: list[Any] = []
    built = cost(lambda: made.append(build_simulation(experiment, build_problem(experiment))))
    with one_core_an_operation():
        made[0].step()  # what is made once
        rounds = [cost(made[0].step) for _ in range(turns)]
    median = Cost(statistics.median(one.wall for one in rounds), statistics.median(one.cpu for one in rounds))
    return built, median, peak_memory([os.getpid()])


def populations(turns: int) -> Table:
    """The same round among more and more clients, and one of 100,000."""
    table = Table(title=f"clients of {EXAMPLES} examples of {FEATURES} numbers, logistic regression")
    for column in ("population", "a round", "s to build (CPU)", "ms a round (CPU)", "CPU ratio", "peak MiB"):
        table.add_column(column, justify="right")
    base = 0.0
    for clients, cohort in (*((clients, 100) for clients in CLIENTS), (100_000, 100_000)):
        built, round_, memory = apart(population, clients, cohort, turns if cohort == 100 else max(1, turns // 20))
        base = base or round_.cpu
        ratio = f"{round_.cpu / base:.2f}" if cohort == 100 else ""
        taken = f"{1000 * round_.wall:.1f} ({1000 * round_.cpu:.1f})"
        table.add_row(f"{clients:,}", f"{cohort:,}", shown(built), taken, ratio, f"{memory:.0f}")
    return table


def deal(name: str, examples: int) -> tuple[Cost, float]:
    """To deal so many examples of ten classes to 100,000 clients."""
    y, x = np.random.default_rng(0).integers(0, 10, examples), np.zeros((examples, 1), np.float32)
    data = Dataset("labelled", x, y, x[:1], y[:1], 10)
    return cost(lambda: DEALT[name].split(data, 0)), peak_memory([os.getpid()])


def dealing(examples: int) -> Table:
    """Each partition."""
    table = Table(title=f"{examples:,} examples dealt to 100,000 clients")
    for column in ("partition", "s (CPU)", "peak MiB"):
        table.add_column(column, justify="left" if column == "partition" else "right")
    for name in DEALT:
        taken, memory = apart(deal, name, examples)
        table.add_row(name, shown(taken), f"{memory:.0f}")
    return table


def copies(folder: Path, count: int) -> None:
    """Make so many runs of the digits in a folder, as a sweep leaves them: five seeds of each learning rate."""
    fedsim.run(FILE, out=folder / "made")
    config = tomllib.loads((folder / "made" / "config.toml").read_text())
    for number in range(count):
        run = folder / "runs" / f"lr-{number // 5}" / f"seed-{number % 5}"
        shutil.copytree(folder / "made", run)
        changed = config | {"seed": number % 5, "client": config["client"] | {"lr": (1 + number // 5) / 1000}}
        (run / "config.toml").write_text(tomli_w.dumps(changed))


def compared(count: int) -> Cost:
    """`fedsim compare` of so many runs, from the shell."""
    with TemporaryDirectory() as place:
        copies(Path(place), count)
        command = [sys.executable, "-m", "fedsim", "compare", f"{place}/runs", "--out", f"{place}/a.png"]
        began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
        return Cost(time.perf_counter() - began, cpu)


def read(mebibytes: int) -> tuple[Cost, int, float]:
    """To read a metrics.jsonl of so many MiB; how many rows it has, and the peak memory."""
    names = ("time", "wall", "train_loss", "test_loss", "test_accuracy", "bytes_up", "bytes_down", "queries")
    with TemporaryDirectory() as place:
        path, count = Path(place) / "metrics.jsonl", 0
        with path.open("w") as file:
            while file.tell() < mebibytes * 2**20:
                count += 1
                file.write(f"{json.dumps({'round': count} | dict.fromkeys(names, count / 7))}\n")
        return cost(lambda: read_rows(path)), count, peak_memory([os.getpid()])


def reports(runs: int, mebibytes: int) -> Table:
    """What reads runs."""
    table = Table(title="runs that are read")
    for column in ("", "s (CPU)", "peak MiB"):
        table.add_column(column, justify="right" if column else "left")
    table.add_row(f"fedsim compare, {runs} runs of 100 rounds, 5 seeds each", shown(compared(runs)), "")
    taken, count, memory = apart(read, mebibytes)
    table.add_row(f"metrics.jsonl of {mebibytes} MiB, {count:,} rows", shown(taken), f"{memory:.0f}")
    return table


def main(
    turns: Annotated[int, typer.Option(min=1, help="Rounds of each population.")] = 100,
    examples: Annotated[int, typer.Option(min=200_000, help="Examples that are dealt.")] = 1_000_000,
    runs: Annotated[int, typer.Option(min=1, help="Runs that are compared.")] = 200,
    mebibytes: Annotated[int, typer.Option(min=1, help="Of a run's rows.")] = 200,
) -> None:
    """Print the tables."""
    console = Console(width=110)
    machine = platform.processor() or platform.machine()
    console.print(f"{machine}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    console.print(populations(turns))
    console.print(dealing(examples))
    console.print(reports(runs, mebibytes))


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
