"""`fedsim flower run`: a Flower app's folder in this process, without Ray and without a SuperLink."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedsim.core.errors import FedsimError, InputError
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
    workers: Annotated[
        int, typer.Option(min=0, help="Processes that do the clients' work; 0: this one. The result is the same.")
    ] = 0,
    worlds: Annotated[
        int | None,
        typer.Option(min=1, help="How many module worlds the nodes share; by default each has its own."),
    ] = None,
    node_config: Annotated[
        list[str] | None,
        typer.Option(
            "--node-config",
            help="As for flower-supernode, of every node: name=value ..., or a TOML file; {partition-id}: its number.",
        ),
    ] = None,
    real_time: Annotated[
        bool, typer.Option("--real-time", help="Nodes take the seconds that they really take; timeouts count these.")
    ] = False,
    call_limit: Annotated[
        float | None,
        typer.Option(help="Seconds after which a worker that is still at a call is ended; its reply is an error."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Begins the generators of Python, NumPy and PyTorch.")] = 0,
) -> None:
    """Run a Flower app. What it prints and writes is its own; at the end there is a summary.

    Exit code 1: the server app has failed, or all replies, or all to `train` messages, are errors.
    """
    from fedsim.flower import AppFolder, simulate
    from fedsim.flower.folder import node_config as read

    folder = AppFolder.read(path, run_config or [])
    number = nodes or folder.nodes or NODES
    try:
        with folder.on_path():
            result = simulate(
                folder.server,
                folder.client,
                number,
                run_config=folder.run_config,
                seed=seed,
                workers=workers,
                worlds=worlds,
                node_config=read(node_config or []),
                real_time=real_time,
                call_limit=call_limit,
            )
    except InputError:
        raise
    except FedsimError as error:
        tell("\n".join((f"fedsim: {error}", *getattr(error, "__notes__", ()))), "stderr")
        raise typer.Exit(1) from error
    except (Exception, SystemExit) as error:  # whose author needs all of it
        tell(traceback.format_exc(), "stderr")
        raise typer.Exit(1) from error
    tell("\n".join(summary(result, number)))
    if result.failed:
        raise typer.Exit(1)


def summary(result: AppResult, nodes: int) -> list[str]:
    """Lines about a run: how much was done, the last metrics of each kind, and what went wrong."""
    lines = [f"{nodes} nodes, {len(result.seconds)} rounds, {len(result.exchanges)} messages in {result.wall:.1f} s"]
    for kind, rounds in result.history.items():
        last = max(rounds, default=0)
        if rounds.get(last):  # an app may have no metrics
            told = ", ".join(f"{name} {_written(value)}" for name, value in rounds[last].items())
            lines.append(f"{kind}, round {last}: {told}")
    late = [exchange for exchange in result.exchanges if exchange.overdue]
    if late:
        allowed = min(exchange.allowed for exchange in late)
        lines.append(
            f"{len(late)} replies took longer than the timeout of {allowed:g} s by the wall clock, and were counted "
            "all the same; --real-time leaves such replies out"
        )
    if result.errors:
        lines.append(result.trouble)
    return lines


def _written(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
