"""The command line: run, compare, list.

Exit code 0: done. 1: something went wrong inside, or the run diverged; what was logged is kept. 2: an input that
cannot be used, said in one line. 130: interrupted, with a usable run folder.
"""

from __future__ import annotations

import sys
import traceback
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import click
import typer
from rich.console import Console

from fedsim.errors import FedsimError, InputError

if TYPE_CHECKING:
    from fedsim.configuration import Experiment
    from fedsim.runner import Result

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Federated learning with thousands of virtual clients on one machine.",
)

STATUS = {"finished": 0, "stopped": 0, "diverged": 1, "interrupted": 130}

DataDir = Annotated[Path | None, typer.Option(envvar="FEDSIM_DATA", help="Folder in which data files are looked for.")]


@app.command()
def run(
    experiment: Annotated[Path, typer.Argument(help="An experiment file (TOML).")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="table.option=value; may be given several times.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The run's seed, instead of the file's.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Several seeds, as in 0-4 or 0,2,5.")] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder; by default runs/<name>-<n>.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier run in --out.")] = False,
    data_dir: DataDir = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
) -> None:
    """Run an experiment and write its run folder."""
    from fedsim.configuration import load
    from fedsim.runfolder import RunFolder

    overrides = list(settings or [])
    if device is not None:
        overrides.append(f'engine.device="{device}"')
    loaded = load(experiment, overrides=overrides, seed=seed, data_dir=data_dir)
    if seeds is None:
        raise typer.Exit(_execute(loaded, out, force, loaded.name))
    if seed is not None:
        raise InputError("seeds", seeds, "give --seed or --seeds, not both")
    numbers = parse_seeds(seeds)
    RunFolder.check(out, loaded.name, force=force)
    group = RunFolder.create(None, loaded.name) if out is None else RunFolder(out)
    codes = []
    try:
        for number in numbers:
            codes.append(_execute(loaded.with_seed(number), group.path / f"seed-{number}", force, f"seed {number}"))
            if codes[-1] == STATUS["interrupted"]:
                break
    finally:
        group.discard()  # which it does if no run has been left in it
    raise typer.Exit(max(codes))


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or folders that hold runs.")],
    out: Annotated[Path | None, typer.Option(help="Where the picture goes; by default compare.png.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier picture.")] = False,
) -> None:
    """Show runs side by side: a table, and one picture of all. Runs that differ only in their seed are one group."""
    from fedsim.comparison import compare as compare_runs
    from fedsim.comparison import render
    from fedsim.plots import compare_curves
    from fedsim.runfolder import StorageError

    if out is None:
        names = (Path("compare.png" if number == 0 else f"compare-{number}.png") for number in count())
        out = next(path for path in names if force or not path.exists())
    elif out.exists() and not force:
        raise InputError("out", str(out), "this file exists; choose another or pass --force")
    compared = compare_runs(runs)
    Console().print(render(compared))
    try:
        drawn = compare_curves({group.name: [run.rows for run in group.runs] for group in compared.groups}, out)
    except StorageError as error:
        raise InputError("out", str(out), str(error)) from error
    if drawn:
        Console().print(f"picture: {out}", highlight=False, soft_wrap=True)


@app.command("list")
def list_plugins() -> None:
    """List what is installed: strategies, clients, datasets, partitions, models and the rest."""
    from fedsim.registry import GROUPS, names

    console = Console()
    for group in GROUPS:
        console.print(f"[bold]{group}[/bold]: {', '.join(names(group)) or 'none'}", highlight=False)


def parse_seeds(text: str) -> list[int]:
    """Seeds from `0-4` or `0,2,5` or both."""
    found: list[int] = []
    try:
        for part in text.split(","):
            first, dash, last = part.strip().partition("-")
            found += range(int(first), int(last) + 1) if dash else [int(first)]
    except ValueError:
        found = []
    if not found or len(set(found)) < len(found):
        raise InputError("seeds", text, "write different whole numbers, as in 0-4 or 0,2,5")
    return found


def _execute(experiment: Experiment, out: Path | None, force: bool, label: str) -> int:
    """Run one experiment, say what it came to and return the exit code; a bar is drawn where somebody looks."""
    from fedsim.progress import Progress
    from fedsim.runner import run as run_experiment

    if sys.stderr.isatty():
        with Progress(experiment.rounds, label) as bar:
            result = run_experiment(experiment, out=out, force=force, callbacks=[bar])
    else:
        result = run_experiment(experiment, out=out, force=force)
    _say(result)
    return STATUS[result.status]


def _say(result: Result) -> None:
    console = Console(soft_wrap=True, highlight=False)
    summary = result.summary
    measures = [
        f"{name.replace('_', ' ')} {summary[name]:.4f}"
        for name in ("train_loss", "test_loss", "test_accuracy", "client_accuracy_p10")
        if name in summary
    ]
    traffic = (summary["total_bytes_up"] + summary["total_bytes_down"]) / 2**20
    head = f"{result.status}: {summary['rounds']} rounds in {summary['wall']:.1f} s"
    console.print(", ".join([head, *measures, f"{traffic:.1f} MiB exchanged"]))
    if summary["total_failed"]:
        console.print(f"{summary['total_failed']} updates were not finite and were left out")
    if result.reason:
        console.print(result.reason)
    if result.folder is not None:
        console.print(f"run folder: {result.folder}")


def main() -> None:
    """Entry point of the `fedsim` command."""
    try:
        code = app(standalone_mode=False)
    except (InputError, click.UsageError) as error:
        line = error.format_message() if isinstance(error, click.UsageError) else str(error)
        print(f"fedsim: {' '.join(line.split())}", file=sys.stderr)
        code = 2
    except FedsimError as error:
        print(f"fedsim: {error}", file=sys.stderr)
        code = 1
    except (KeyboardInterrupt, click.Abort):
        print("fedsim: interrupted", file=sys.stderr)
        code = STATUS["interrupted"]
    except Exception:
        traceback.print_exc()
        code = 1
    sys.exit(code)
