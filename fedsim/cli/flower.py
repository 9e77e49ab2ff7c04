"""`fedsim flower run`: a Flower app's folder in this process, without Ray and without a SuperLink."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedsim.core.terminal import tell

if TYPE_CHECKING:
    from fedsim.flower import AppResult

NODES = 10
"""How many nodes where neither the command nor the app's folder says so."""

app = typer.Typer(no_args_is_help=True, help="Flower apps, unchanged, in this process.")


@app.callback()
def flower() -> None:
    """Flower apps, unchanged, in this process."""


@app.command()
def run(
    path: Annotated[Path, typer.Argument(help="The folder of a Flower app, with its pyproject.toml.")],
    nodes: Annotated[int | None, typer.Option(min=1, help="Nodes; by default what the folder says, or 10.")] = None,
    run_config: Annotated[
        list[str] | None,
        typer.Option("--run-config", "-c", help="As for flwr run: name=value ..., or a TOML file."),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that do the clients' work; 1: this one.")] = 1,
    seed: Annotated[int, typer.Option(help="Begins the generators of Python, NumPy and PyTorch.")] = 0,
) -> None:
    """Run a Flower app. What it prints and writes is its own; at the end there is a summary.

    Exit code 1: the server app has failed, or all replies, or all to `train` messages, are errors.
    """
    from fedsim.flower import AppFolder, simulate

    folder = AppFolder.read(path, run_config or [])
    number = nodes or folder.nodes or NODES
    with folder.on_path():
        result = simulate(
            folder.server, folder.client, number, run_config=folder.run_config, seed=seed, workers=workers
        )
    tell("\n".join(summary(result, number)))
    if result.failed:
        raise typer.Exit(1)


def summary(result: AppResult, nodes: int) -> list[str]:
    """Lines about a run: how much was done, the last metrics of each kind, and what went wrong."""
    lines = [f"{nodes} nodes, {len(result.seconds)} rounds, {len(result.exchanges)} messages in {result.wall:.1f} s"]
    for kind, rounds in result.history.items():
        if rounds:
            last = max(rounds)
            told = ", ".join(f"{name} {_written(value)}" for name, value in rounds[last].items())
            lines.append(f"{kind}, round {last}: {told}")
    if result.errors:
        first = result.errors[0]
        lines.append(f"{len(result.errors)} replies are errors; the first, of node {first.node}: {first.error.strip()}")
    return lines


def _written(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
