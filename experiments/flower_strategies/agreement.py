"""One strategy, one arithmetic of clients, four places: `python -m experiments.flower_strategies.agreement`.

FedAvg, FedAvgM, SCAFFOLD and FedAvg with the median run for some rounds in one process, where clients are a stack of
PyTorch's; and in the app `experiments/flower_apps/linear`, whose clients are NumPy's, in messages: on a virtual grid,
on Ray, and on a SuperLink with SuperNodes in processes of their own. Three clients, all in each round, in single
precision. Reported: by how much the largest parameter's difference is off from the run in one process. SuperNodes look
for messages every three seconds and start a process for each, so that they take some minutes.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.table import Table
from safetensors.torch import load_file
from torch import nn

import fedsim
from experiments.flower_strategies.places import APP, on_ray, on_super_nodes, virtually
from experiments.studies import console
from fedsim.flower import AppFolder

METHODS = ("FedAvg", "FedAvgM", "SCAFFOLD", "median")
NODES = 3
TOLERANCE = 1e-5
PLACES: dict[str, Callable[[int, Mapping[str, Any]], None]] = {
    "virtual grid": virtually,
    "Ray": on_ray,
    "SuperNodes": on_super_nodes,
}


def in_one_process(rounds: int) -> dict[str, NDArray[np.float32]]:
    """The parameters [d] that each method comes to without messages."""
    with AppFolder.read(APP).on_path():
        server_app, task = (importlib.import_module(f"linear.{name}") for name in ("server_app", "task"))
    problem = problem_of(task)
    found = {}
    for name in METHODS:
        method = server_app.METHODS[name]
        client = {"kind": "scaffold" if name == "SCAFFOLD" else "sgd", "epochs": task.STEPS, "lr": task.RATE}
        experiment = fedsim.experiment(
            rounds=rounds,
            strategy=method["strategy"],
            aggregation=method.get("aggregator", "mean"),
            client={**client, "batch_size": "full"},
        )
        found[name] = fedsim.run(experiment, problem=problem, save=False).params.numpy()
    return found


def problem_of(task: Any) -> Any:
    """The app's clients and its model, as a problem."""
    parts = [task.load_data(partition, NODES) for partition in range(NODES)]
    x, y = (np.concatenate(part) for part in zip(*parts, strict=True))
    ends = np.cumsum([len(labels) for _, labels in parts])
    clients = [np.arange(end - len(labels), end) for end, (_, labels) in zip(ends, parts, strict=True)]
    model = nn.Linear(64, 10)
    model.load_state_dict({name: torch.from_numpy(array) for name, array in task.initial().items()})
    return fedsim.supervised(x, y, model=model, clients=clients, device="cpu")


def differences(place: str, rounds: int, wanted: Mapping[str, NDArray[np.float32]], out: Path) -> dict[str, float]:
    """The largest difference of a parameter, by method, in one of `PLACES`."""
    PLACES[place](NODES, {"methods": " ".join(METHODS), "rounds": rounds, "out": out})
    found = {}
    for name in METHODS:
        arrays = load_file(out / name / "model.safetensors")
        params = np.concatenate([arrays[part].numpy().reshape(-1) for part in ("weight", "bias")])
        found[name] = float(np.abs(params - wanted[name]).max())
    return found


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Of each method.")] = 20,
    place: Annotated[list[str] | None, typer.Option(help=f"One of: {', '.join(PLACES)}. By default all.")] = None,
) -> None:
    """Print the table; exit code 1 where a difference is above 1e-5."""
    wanted = in_one_process(rounds)
    table, worst = Table(title=f"largest difference from one process after {rounds} rounds"), 0.0
    for column in ("", *METHODS):
        table.add_column(column, justify="right" if column else "left")
    for name in place or PLACES:
        with TemporaryDirectory() as folder:
            found = differences(name, rounds, wanted, Path(folder) / "out")
        table.add_row(name, *(f"{found[method]:.1e}" for method in METHODS))
        worst = max(worst, *found.values())
    size = ", ".join(f"{method} {np.abs(params).max():.2f}" for method, params in wanted.items())
    console(100).print(table, f"largest parameters: {size}")
    if worst > TOLERANCE:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
