"""The server's side: methods of ours, one after the other, from the same model."""

import json
import time
from pathlib import Path
from typing import Any

from flwr.app import Array, ArrayRecord, Context, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp

from fedsim.flower import as_flower_strategy
from linear.task import Arrays, accuracy, initial

METHODS: dict[str, dict[str, Any]] = {
    "FedAvg": {"strategy": {"kind": "fedavg"}},
    "FedAvgM": {"strategy": {"kind": "fedavg", "server_lr": 0.3, "server_optimizer": {"kind": "sgd", "momentum": 0.9}}},
    "SCAFFOLD": {"strategy": {"kind": "scaffold"}},
    "median": {"strategy": {"kind": "fedavg"}, "aggregator": "median"},
    "FedFix": {"strategy": {"kind": "fedfix", "window": 1.0}},
    "FedBuff": {"strategy": {"kind": "fedbuff", "size": 3, "weights": "unbiased"}},
    "FedBuff-2": {"strategy": {"kind": "fedbuff", "size": 2}},
}

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the methods that the run configuration names, when every node has answered once, and has started so."""
    config = context.run_config
    as_flower_strategy("fedavg", fraction_evaluate=0.0, min_available_nodes=config["nodes"]).start(
        grid=grid, initial_arrays=record(initial()), num_rounds=1
    )
    for number, name in enumerate(config["methods"].split()):
        if number:
            time.sleep(config["pause"])
        run(name, grid, config)


def record(model: Arrays) -> ArrayRecord:
    """A model as it is sent."""
    return ArrayRecord({name: Array(array) for name, array in model.items()})


def run(name: str, grid: Grid, config: dict[str, Any]) -> None:
    """Run one of them; its folder has, besides the usual, work.json: who trained from when to when."""
    work = []

    def note(contents: list[RecordDict], weight: str) -> MetricRecord:
        told = [content["metrics"] for content in contents]
        work.extend({key: one[key] for key in ("partition", "began", "ended")} for one in told)
        whole = sum(one[weight] for one in told)
        return MetricRecord({"train_loss": sum(one[weight] * one["train_loss"] for one in told) / whole})

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:  # noqa: ARG001
        return MetricRecord({"accuracy": accuracy({name: array.numpy() for name, array in arrays.items()})})

    folder = Path(config["out"]) / name if config["out"] else None
    timed = {"duration": config["duration"]} if config["duration"] else {}
    strategy = as_flower_strategy(
        **METHODS[name],
        checkpoint=folder,
        train_metrics_aggr_fn=note,
        fraction_evaluate=0.0,
        min_evaluate_nodes=0,
        min_available_nodes=config["nodes"],
        **timed,
    )
    strategy.start(
        grid=grid,
        initial_arrays=record(initial()),
        num_rounds=None if timed else config["rounds"],
        evaluate_fn=evaluate,
    )
    if folder is not None:
        (folder / "work.json").write_text(json.dumps(work), encoding="utf-8")
