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
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.table import Table
from safetensors.torch import load_file
from torch import nn

import fedsim
from experiments.flower_strategies.places import APP, WORK, on_ray, on_super_nodes, virtually
from experiments.studies import console
from fedsim.flower import AppFolder

METHODS = ("FedAvg", "FedAvgM", "SCAFFOLD", "median")
NODES, ROUNDS = 3, 20
TOLERANCE = 1e-5
CLAIM = (
    f"{', '.join(METHODS)}: after {ROUNDS} rounds no parameter on a virtual grid, on Ray and on 3 SuperNodes is off "
    f"from the stacked run in one process by {TOLERANCE:g}"
)
PLACES: dict[str, Callable[[int, Mapping[str, Any]], None]] = {
    "virtual grid": virtually,
    "Ray": on_ray,
    "SuperNodes": on_super_nodes,
}
Results = Mapping[str, Mapping[str, float]]
"""Largest differences of a parameter, by place and method."""


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
    """The largest difference of a parameter, by method, in one of `PLACES`; in `out` a run that is finished is kept."""
    if not all((out / name / WORK).is_file() for name in METHODS):
        PLACES[place](NODES, {"methods": " ".join(METHODS), "rounds": rounds, "out": out})
    found = {}
    for name in METHODS:
        arrays = load_file(out / name / "model.safetensors")
        params = np.concatenate([arrays[part].numpy().reshape(-1) for part in ("weight", "bias")])
        found[name] = float(np.abs(params - wanted[name]).max())
    return found


def measure(out: Path, rounds: int = ROUNDS) -> Results:
    """Run what is not finished in `out`, and compare it all."""
    wanted = in_one_process(rounds)
    return {place: differences(place, rounds, wanted, out / place.replace(" ", "_")) for place in PLACES}


def judge(results: Results) -> tuple[str, bool]:
    """The differences in words, and whether they are small enough."""
    told = (f"{place} {', '.join(f'{found[name]:.1e}' for name in METHODS)}" for place, found in results.items())
    return "; ".join(told), max(max(found.values()) for found in results.values()) < TOLERANCE


def main(
    out: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("runs/flower_strategies/agreement"),
    rounds: Annotated[int, typer.Option(min=1, help="Of each method.")] = ROUNDS,
) -> None:
    """Print the table; exit code 1 where a difference is too large."""
    results = measure(out.absolute(), rounds)
    table = Table(title=f"largest difference from one process after {rounds} rounds")
    for column in ("", *METHODS):
        table.add_column(column, justify="right" if column else "left")
    for place, found in results.items():
        table.add_row(place, *(f"{found[method]:.1e}" for method in METHODS))
    console(100).print(table)
    if not judge(results)[1]:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
