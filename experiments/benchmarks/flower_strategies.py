"""The benchmark of a strategy's own cost in a Flower app: `python -m experiments.benchmarks.flower_strategies`.

Strategies of ours and Flower's FedAvg over 1,000 nodes of a virtual grid, which answer with the model that is sent,
so that nothing is trained. They take turns, some rounds each, with a bare loop that sends the same messages, receives
the replies and has no strategy. Reported, in processor time a round, the least of the turns: the whole; the strategy's
own cost, that is less the bare loop's; and the ratio of that to Flower's.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from typing import Annotated, Any, Protocol

import numpy as np
import typer
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from rich.console import Console
from rich.table import Table

from fedsim.flower import VirtualGrid, as_flower_strategy

BARE, THEIRS = "messages alone", "Flower's FedAvg"
OURS: dict[str, dict[str, Any]] = {
    "FedAvg": {"strategy": "fedavg"},
    "FedAvg, median": {"strategy": "fedavg", "aggregator": "median"},
    "FedProx, Oort": {"strategy": "fedprox", "selection": {"kind": "oort", "fraction": 1.0}},
}
"""What of ours is measured, as arguments of `as_flower_strategy`."""

app = ClientApp()


class Starting(Protocol):
    """What runs some rounds: a strategy, or the bare loop."""

    def start(self, grid: Grid, initial_arrays: ArrayRecord, num_rounds: int) -> object:
        """Run them."""
        ...


class Bare:
    """Messages and replies of rounds, of which nothing is made."""

    def start(self, grid: Grid, initial_arrays: ArrayRecord, num_rounds: int) -> None:
        """Send everybody the model, so often."""
        for number in range(1, num_rounds + 1):
            content = RecordDict({"arrays": initial_arrays, "config": ConfigRecord({"server-round": number})})
            grid.send_and_receive([Message(content, node, "train") for node in grid.get_node_ids()])


@app.train()
def train(message: Message, context: Context) -> Message:  # noqa: ARG001
    """Answer the model that was sent."""
    metrics = MetricRecord({"num-examples": 20, "train_loss": 1.0})
    return Message(RecordDict({"arrays": message.content["arrays"], "metrics": metrics}), reply_to=message)


def made(name: str) -> Starting:
    """What is measured, by its name in the table."""
    if name == BARE:
        return Bare()
    if name == THEIRS:
        return FedAvg(fraction_evaluate=0.0)
    return as_flower_strategy(**OURS[name], fraction_evaluate=0.0)


def shapes(inputs: int, hidden: int) -> dict[str, tuple[int, ...]]:
    """The arrays of a network with one hidden layer and ten outputs."""
    return {"0.weight": (hidden, inputs), "0.bias": (hidden,), "2.weight": (10, hidden), "2.bias": (10,)}


def cost(name: str, nodes: int, rounds: int, layers: Mapping[str, tuple[int, ...]]) -> float:
    """Seconds of the processor a round."""
    generator = np.random.default_rng(0)
    arrays = {layer: Array(generator.normal(size=shape).astype(np.float32)) for layer, shape in layers.items()}
    with VirtualGrid(app, nodes) as grid:
        before = time.process_time()
        made(name).start(grid=grid, initial_arrays=ArrayRecord(arrays), num_rounds=rounds)
        return (time.process_time() - before) / rounds


def main(
    nodes: Annotated[int, typer.Option(min=2, help="Of the grid, all of them in each round.")] = 1_000,
    rounds: Annotated[int, typer.Option(min=1, help="Of a turn.")] = 6,
    turns: Annotated[int, typer.Option(min=1, help="How often each is measured.")] = 4,
    inputs: Annotated[int, typer.Option(min=1, help="Of the model.")] = 64,
    hidden: Annotated[int, typer.Option(min=1, help="Units of its hidden layer.")] = 64,
) -> None:
    """Print the table."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
    names, layers = (BARE, THEIRS, *OURS), shapes(inputs, hidden)
    for name in names:
        cost(name, 10, 1, layers)  # what is made once for a process
    found = [{name: cost(name, nodes, rounds, layers) for name in names} for _ in range(turns)]
    least = {name: min(turn[name] for turn in found) for name in names}
    table = Table(title=f"{nodes:,} nodes that do nothing, {sum(map(math.prod, layers.values())):,} parameters")
    for column in ("", "ms a round", "own cost, ms", "of Flower's"):
        table.add_column(column, justify="right" if column else "left")
    theirs = least[THEIRS] - least[BARE]
    for name in names:
        own = least[name] - least[BARE]
        cells = ["", ""] if name == BARE else [f"{1000 * own:.0f}", f"{own / theirs:.2f}"]
        table.add_row(name, f"{1000 * least[name]:.0f}", *cells)
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
