"""The benchmark of Flower apps: `python -m experiments.benchmarks.flower_apps`.

The same app (`peers/flower_ray_app.py`: a PyTorch client app and stock FedAvg, 100 nodes of the digits, all in each
round) under Flower's simulation on Ray, with two actors, and under `fedsim.flower.simulate`, in one process and with
two workers; the app's own loop over the clients on one core, without Flower, below which no single process can go; and,
for those who only bring a strategy, stock FedAvg over fedsim's own clients, executed as a stack. Each engine has a
process of its own, but for the loop and the stack, which have the benchmark's; when all are warm they take turns, a
round each, so that a machine that slows down slows all of them. Reported: the median time of a round, the median over
turns of Ray's time to this one's, the seconds from starting until every node has answered a first message (of the
loop and the stack, until their data are dealt), and the accuracy in the end, the same but for our own clients, who draw
other batches.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Annotated, Any, ClassVar

import typer
from rich.console import Console
from rich.table import Table

from experiments.benchmarks.engine import Fedsim
from experiments.benchmarks.peers.flower_ray import FlowerRay
from experiments.benchmarks.peers.plain import PlainLoop
from experiments.benchmarks.peers.works import digits

RAY = "Flower Ray (2 actors)"
ENGINES = {
    RAY: ("ray", 2),
    "fedsim (1 process)": ("here", 0),
    "fedsim (2 workers)": ("here", 2),
    "the app's loop alone": ("loop", 1),
    "flwr:FedAvg, our clients": ("stack", 1),
}
"""What runs, and over how many processes."""


class FlowerHere(FlowerRay):
    """The same app in fedsim's processes. cpus: workers; 0: the process itself."""

    app: ClassVar[str] = "experiments.benchmarks.flower_apps"


def serve(descriptor: int, path: str, cpus: int) -> None:
    """Do what `flower_ray_app.serve` does, with another engine in the place of Flower's."""
    from experiments.benchmarks.peers import flower_ray_app
    from fedsim.flower import simulate

    def engine(server_app: Any, client_app: Any, *, num_supernodes: int, backend_config: object) -> None:  # noqa: ARG001
        simulate(server_app, client_app, num_supernodes, workers=cpus)

    flower_ray_app.serve(descriptor, path, cpus, engine)


def peer(name: str) -> FlowerRay | PlainLoop | Fedsim:
    """An engine, not started."""
    kind, cpus = ENGINES[name]
    if kind == "loop":
        return PlainLoop(digits(), cpus)
    if kind == "stack":
        return Fedsim(digits(), "auto", strategy="flwr:FedAvg")
    return (FlowerRay if kind == "ray" else FlowerHere)(digits(), cpus)


def main(
    turns: Annotated[int, typer.Option(min=3, help="Rounds of each engine.")] = 25,
    starts: Annotated[int, typer.Option(min=1, help="How often each engine is started.")] = 3,
) -> None:
    """Print the benchmark table."""
    started: dict[str, list[float]] = {name: [] for name in ENGINES}
    rounds: dict[str, list[float]] = {name: [] for name in ENGINES}
    for _ in range(starts):
        for name in ENGINES:  # each alone, for another's processes go on waking up when it says that it has started
            with _started(name) as (_, taken):
                started[name].append(taken)
    with ExitStack() as stack:
        peers = {name: stack.enter_context(_started(name))[0] for name in ENGINES}
        for engine in peers.values():
            engine.round()
        for _ in range(turns):
            for name, engine in peers.items():
                rounds[name].append(_timed(engine.round))
        accuracies = {name: engine.accuracy() for name, engine in peers.items()}
    table = Table(title=f"digits, MLP 64-64-10, 100 nodes, {turns} rounds")
    for column in ("engine", "ms a round", "Ray / this", "start s", "Ray / this", "accuracy"):
        table.add_column(column, justify="left" if column == "engine" else "right")
    for name in ENGINES:
        pairs = zip(rounds[RAY], rounds[name], strict=True)
        beginnings = zip(started[RAY], started[name], strict=True)
        table.add_row(
            name,
            f"{1000 * statistics.median(rounds[name]):.0f}",
            f"{statistics.median(theirs / ours for theirs, ours in pairs):.2f}",
            f"{statistics.median(started[name]):.1f}",
            f"{statistics.median(theirs / ours for theirs, ours in beginnings):.1f}",
            f"{accuracies[name]:.4f}",
        )
    Console(width=100).print(table)


@contextmanager
def _started(name: str) -> Iterator[tuple[FlowerRay | PlainLoop | Fedsim, float]]:
    """An engine at work, which ends with this block, and the seconds that it took to start."""
    engine, before = peer(name), time.perf_counter()
    if (why := engine.missing()) is not None:  # ours begins, to find out
        raise typer.BadParameter(f"{name}: {why}")
    try:
        engine.start()
        yield engine, time.perf_counter() - before
    finally:
        engine.stop()


def _timed(call: Any) -> float:
    before = time.perf_counter()
    call()
    return time.perf_counter() - before


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
