"""The benchmark of asynchronous runs: `python -m experiments.benchmarks.events`.

First the event loop: 10,000 clients in flight whose work is nothing (an update of 10 ones), so that what is measured
is select, ask, submit, collect, tell, ledger and trace. Beside it, turn by turn, a loop that only pushes to and pops
from a heap. Reported: completions a second, medians over the turns, and how much memory all the turns together added.

Then real work: 100 clients on the digits, all of them in flight, the slowest taking five times as long as the fastest
(F-80), under each window, turn by turn with the synchronous run. Reported: wall time of a client's update, and its
ratio to the synchronous one's, the median over turns of the ratio within a turn.
"""

from __future__ import annotations

import heapq
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import fedsim
from experiments.benchmarks.peers.works import digits as make_digits
from fedsim.client import Client
from fedsim.core.options import options
from fedsim.engine.cohort import Cohort
from fedsim.exchange.messages import Cost, Order, Size, Update
from fedsim.parallel.cores import one_core_an_operation
from fedsim.problems.supervised import Supervised
from fedsim.running.build import build_simulation
from fedsim.running.simulation import Simulation

CLIENTS = 10_000
SYNCHRONOUS = "All, FedAvg"
UPDATES: dict[str, dict[str, Any]] = {
    SYNCHRONOUS: {"kind": "fedavg"},
    "Every(0.5), FedFix": {"kind": "fedfix", "window": 0.5},
    "Every(0.2), FedFix": {"kind": "fedfix", "window": 0.2},
    "First(10), FedBuff": {"kind": "fedbuff", "size": 10, "restart": "window"},
    "First(10) refilled, FedBuff": {"kind": "fedbuff", "size": 10},
    "First(1), FedAvg": {"kind": "fedavg_async"},
}
STRATEGIES: dict[str, dict[str, Any]] = {
    "Every(0.01), FedFix": {"kind": "fedfix", "window": 0.01},
    "First(10), FedBuff": {"kind": "fedbuff", "size": 10, "restart": "window"},
    "First(10) refilled, FedBuff": {"kind": "fedbuff", "size": 10},
    "First(1), FedAvg": {"kind": "fedavg_async"},
}
COUNTS = {
    "Every(0.01), FedFix": 100,
    "First(10), FedBuff": 10,
    "First(10) refilled, FedBuff": 10,
    "First(1), FedAvg": 1,
}
"""Completions a window, for the heap beside it; of FedFix about."""


@options
class Idle(Client):
    """Delta_i = 1, without a local step."""

    requires: ClassVar[frozenset[str]] = frozenset({"params"})
    up: ClassVar[frozenset[str]] = frozenset({"delta"})
    same_every_round: ClassVar[bool] = True

    def cost(self, order: Order, examples: Tensor) -> Cost:
        """No step; d floats."""
        return Cost(torch.zeros_like(examples), {"delta": Size.of(order.payload["params"])})

    def train(self, cohort: Cohort) -> Update:
        """Send ones."""
        params = cohort.received("params")
        return Update({"delta": torch.ones((len(cohort), params.shape[-1]))})


def problem() -> Supervised:
    """10,000 clients of one example each, and a model of 10 parameters."""
    return fedsim.supervised(
        np.zeros((CLIENTS, 9)), np.zeros(CLIENTS), model=nn.Linear(9, 1), clients=np.arange(CLIENTS).reshape(-1, 1)
    )


def simulation(shared: Supervised, strategy: dict[str, Any]) -> Simulation:
    """An endless run of these clients, half of them up to five times as fast as the others."""
    experiment = fedsim.experiment(
        duration=1e6,
        strategy=strategy,
        evaluation={"every": 0},
        devices={"compute": {"kind": "fixed", "spread": 80.0}},
    )
    return build_simulation(replace(experiment, client=Idle()), shared)


def heap_loop(count: int, completions: int) -> int:
    """Pop `count` clients and push them again, and so on: what no event loop can do without."""
    durations = [1.0 - 0.8 * client / (CLIENTS - 1) for client in range(CLIENTS)]
    heap = [(duration, client) for client, duration in enumerate(durations)]
    heapq.heapify(heap)
    done = 0
    while done < completions:
        popped = [heapq.heappop(heap) for _ in range(count)]
        now = popped[-1][0]
        for _, client in popped:
            heapq.heappush(heap, (now + durations[client], client))
        done += count
    return done


def rate(act: Callable[[], int]) -> float:
    """Completions a second of what returns how many there were."""
    began = time.perf_counter()
    done = act()
    return done / (time.perf_counter() - began)


def turns(simulated: Simulation, completions: int) -> int:
    """Go on until so many replies have been taken."""
    ledger = simulated.parts.engine.ledger
    before = ledger.clients
    with one_core_an_operation():
        while ledger.clients - before < completions:
            simulated.complete_round()
    return ledger.clients - before


def digits(strategy: dict[str, Any]) -> Simulation:
    """A run of 100 clients on the digits: an MLP, five local epochs of batches of 4; never judged."""
    work = make_digits()
    shared = fedsim.supervised(work.x, work.y, model=work.model(), clients=work.clients, device="cpu")
    experiment = fedsim.experiment(
        duration=1e6,
        strategy=strategy,
        client={"kind": "sgd", "epochs": work.epochs, "batch_size": work.batch_size, "lr": 0.01},
        evaluation={"every": 0},
        devices={"compute": {"kind": "fixed", "spread": 80.0}},
    )
    return build_simulation(experiment, shared)


def updates(number: int, console: Console) -> None:
    """Print what a client's update costs under each window."""
    running = {name: digits(strategy) for name, strategy in UPDATES.items()}
    for simulated in running.values():
        turns(simulated, 1_000)
    found: dict[str, list[float]] = {name: [] for name in running}
    for _ in range(number):
        for name, simulated in running.items():
            found[name].append(1e6 / rate(lambda simulated=simulated: turns(simulated, 2_000)))  # type: ignore[misc]
    table = Table(title=f"100 clients on the digits, F-80; {number} turns of 2,000 client updates")
    table.add_column("window")
    for column in ("µs a client update", "times the synchronous"):
        table.add_column(column, justify="right")
    for name, times in found.items():
        ratio = statistics.median(own / base for own, base in zip(times, found[SYNCHRONOUS], strict=True))
        table.add_row(name, f"{statistics.median(times):,.0f}", f"{ratio:.2f}")
    console.print(table)


def main(
    number: Annotated[int, typer.Option("--turns", help="How often each is measured.")] = 5,
    completions: Annotated[int, typer.Option(help="Completions a turn.")] = 50_000,
) -> None:
    """Print the table."""
    shared = problem()
    running = {name: simulation(shared, strategy) for name, strategy in STRATEGIES.items()}
    for simulated in running.values():
        turns(simulated, CLIENTS)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in STRATEGIES}
    for _ in range(number):
        for name, simulated in running.items():
            ours = rate(lambda simulated=simulated: turns(simulated, completions))  # type: ignore[misc]
            bare = rate(lambda name=name: heap_loop(COUNTS[name], completions))  # type: ignore[misc]
            found[name].append((ours, bare))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    table = Table(title=f"{CLIENTS:,} clients in flight, no work; {number} turns of {completions:,} completions")
    table.add_column("window")
    for column in ("completions a second", "heap alone", "ratio"):
        table.add_column(column, justify="right")
    for name, pairs in found.items():
        ours, bare = (statistics.median(values) for values in zip(*pairs, strict=True))
        ratio = statistics.median(a / b for a, b in pairs)
        table.add_row(name, f"{ours:,.0f}", f"{bare:,.0f}", f"{ratio:.2f}")
    console = Console()
    console.print(table)
    console.print(f"memory grew by {grown:.0f} MiB over {number * completions * len(STRATEGIES):,} completions")
    updates(number, console)


if __name__ == "__main__":
    typer.run(main)
