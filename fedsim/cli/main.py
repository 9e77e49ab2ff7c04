"""The command line: run, sweep, compare, list, describe, new, schema, flower.

Exit code 0: done. 1: something went wrong inside, or the run diverged; what was logged is kept. 2: an input that
cannot be used, said in one line. 130: interrupted, with a usable run folder.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import click
import typer
from rich.console import Console

from fedsim.cli import flower
from fedsim.cli.describe import describe
from fedsim.cli.new import new
from fedsim.cli.progress import SweepProgress
from fedsim.cli.words import STATUS, _say, _say_outcome, sweep_table
from fedsim.core.errors import FedsimError, InputError, one_line
from fedsim.core.version import __version__

if TYPE_CHECKING:
    from fedsim.configuration.tables import Experiment
    from fedsim.running.result import Result

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(flower.app, name="flower")

DataDir = Annotated[Path | None, typer.Option(envvar="FEDSIM_DATA", help="Folder in which data files are looked for.")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="table.option=value; may be given several times.")]
Seeds = Annotated[str | None, typer.Option(help="Several seeds, as in 0-4 or 0,2,5.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"fedsim {__version__}")
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Federated learning with thousands of virtual clients on one machine."""


@app.command()
def run(
    experiment: Annotated[
        Path | None, typer.Argument(help="An experiment file (TOML); with --resume not needed.")
    ] = None,
    settings: Settings = None,
    seed: Annotated[int | None, typer.Option(help="The run's seed, instead of the file's.")] = None,
    seeds: Seeds = None,
    out: Annotated[Path | None, typer.Option(help="The run folder; by default runs/<name>-<n>.")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an earlier run in --out; with --resume, under other versions.")
    ] = False,
    data_dir: DataDir = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with the run in this folder, which was interrupted or killed.")
    ] = None,
) -> None:
    """Run an experiment and write its run folder, or go on with a run."""
    from fedsim.configuration.tables import load
    from fedsim.running.folder import CONFIG, RunFolder

    overrides = list(settings or [])
    if device is not None:
        overrides.append(f'engine.device="{device}"')
    if resume is not None:
        for option, given in (("out", out), ("seeds", seeds)):
            if given is not None:
                raise InputError(option, str(given), "--resume goes on with one run, in its folder; leave this out")
        same = None
        if experiment is not None or overrides or seed is not None:
            same = load(experiment or resume / CONFIG, overrides=overrides, seed=seed, data_dir=data_dir)
        raise typer.Exit(_go_on(resume, same, data_dir, force))
    if experiment is None:
        raise click.MissingParameter(param_hint="'EXPERIMENT'", param_type="argument")
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
def sweep(
    experiments: Annotated[list[Path], typer.Argument(help="Experiment files (TOML).")],
    grid: Annotated[
        list[str] | None,
        typer.Option(help="table.option=value,value,...; given several times, all combinations are run."),
    ] = None,
    seeds: Seeds = None,
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option(help="Folder of all runs; by default runs/sweep-<n>.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; by default one a core.")] = None,
    stack: Annotated[
        bool, typer.Option("--stack", help="Run the seeds of a black box together, as one stack in one process.")
    ] = False,
    data_dir: DataDir = None,
) -> None:
    """Run files under every combination of a grid and every seed. With the same --out it goes on where it ended."""
    from fedsim.parallel.cores import cores
    from fedsim.running.folder import RunFolder
    from fedsim.running.sweep import expand, parse_grid, run_points

    values = parse_grid(grid or [])
    numbers = [] if seeds is None else parse_seeds(seeds)
    group = RunFolder.create(None, "sweep") if out is None else RunFolder(out)
    try:
        points = expand(
            experiments, out=group.path, grid=values, seeds=numbers, overrides=settings or [], data_dir=data_dir
        )
        bar = SweepProgress(len(points), workers or cores()) if sys.stderr.isatty() else nullcontext(_say_outcome)
        with bar as heard:
            outcomes = run_points(points, workers=workers, on_done=heard, stack=stack)
    except KeyboardInterrupt:
        print(f"fedsim: interrupted; the same command with --out {group.path} goes on", file=sys.stderr)
        raise typer.Exit(STATUS["interrupted"]) from None
    finally:
        group.discard()  # which it does if no run has been left in it
    Console(width=None if sys.stdout.isatty() else 200).print(sweep_table(outcomes))
    found = Counter(outcome.status for outcome in outcomes)
    skipped = sum(outcome.skipped for outcome in outcomes)
    counted = [f"{number} {status}" for status, number in found.items()]
    print(f"{', '.join(counted)}{f' ({skipped} of them before)' if skipped else ''}")
    print(f"sweep folder: {group.path}")
    raise typer.Exit(max(STATUS[status] for status in found))


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or folders that hold runs.")],
    out: Annotated[Path | None, typer.Option(help="Where the picture goes; by default compare.png.")] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="measure=level, as in test_accuracy=0.9: what it took to get there; may be given several times."
        ),
    ] = None,
    along: Annotated[
        list[str] | None,
        typer.Option(help="What curves are drawn against: round, time, queries, bytes; may be given several times."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier picture.")] = False,
) -> None:
    """Show runs side by side: a table, and pictures of all. Runs that differ only in their seed are one group."""
    from fedsim.core.files import StorageError
    from fedsim.reports.comparison import compare as compare_runs
    from fedsim.reports.comparison import parse_targets
    from fedsim.reports.pictures import draw, places
    from fedsim.reports.table import render

    def taken(path: Path) -> Path | None:
        return next((place for place in places(path) if place.exists()), None)

    if out is None:
        names = (Path("compare.png" if number == 0 else f"compare-{number}.png") for number in count())
        out = next(path for path in names if force or taken(path) is None)
    elif (present := taken(out)) is not None and not force:
        raise InputError("out", str(present), "this file exists; choose another or pass --force")
    compared = compare_runs(runs, targets=parse_targets(target or []), along=along or [])
    Console().print(render(compared))
    try:
        drawn = draw(compared, out)
    except StorageError as error:
        raise InputError("out", str(out), str(error)) from error
    for path in drawn:
        Console().print(f"picture: {path}", highlight=False, soft_wrap=True)


@app.command("list")
def list_plugins() -> None:
    """List what is installed: strategies, clients, datasets, partitions, models and the rest."""
    from fedsim.core.plugins import GROUPS, names

    console = Console()
    for group in GROUPS:
        console.print(f"[bold]{group}[/bold]: {', '.join(names(group)) or 'none'}", highlight=False)


app.command()(describe)
app.command()(new)


@app.command()
def schema() -> None:
    """Print a JSON Schema of experiment files, by which an editor completes and checks them.

    It knows what is installed: fedsim schema > fedsim.schema.json. A file that begins with #:schema
    ./fedsim.schema.json is checked by it.
    """
    from fedsim.cli.schema import document

    print(json.dumps(document(), indent=1))


def parse_seeds(text: str) -> list[int]:
    """Seeds from `0-4` or `0,2,5` or both."""
    found: list[int] = []
    try:
        for part in text.split(","):
            first, dash, last = part.strip().partition("-")
            numbers = range(int(first), int(last if dash else first) + 1)
            if not numbers:
                raise ValueError("an empty range")
            found += numbers
    except ValueError:
        found = []
    if not found or len(set(found)) < len(found):
        raise InputError("seeds", text, "write different whole numbers, as in 0-4 or 0,2,5")
    return found


def _execute(experiment: Experiment, out: Path | None, force: bool, label: str) -> int:
    """Run one experiment, say what it came to and return the exit code."""
    from fedsim.running.runner import run as run_experiment

    return _watch(partial(run_experiment, experiment, out=out, force=force), experiment, label)


def _go_on(folder: Path, experiment: Experiment | None, data_dir: Path | None, force: bool) -> int:
    """Go on with the run in a folder, say what it came to and return the exit code. experiment: what it must be."""
    from fedsim.running.folder import open_run
    from fedsim.running.resume import hold_same, recorded
    from fedsim.running.resume import resume as resume_run

    ended = open_run(folder).ended()
    if ended is not None:
        if experiment is not None:
            hold_same(folder, experiment, data_dir)
        print(f"{folder}: this run has {ended}; nothing is left to do")
        return 0
    made = experiment or recorded(folder, data_dir)
    begin = partial(resume_run, folder, experiment, data_dir=data_dir, force=force)
    return _watch(begin, made, made.name)


def _watch(begin: Callable[..., Result], experiment: Experiment, label: str) -> int:
    """Have a run go, say what it came to and return the exit code; a bar is drawn where somebody looks."""
    from fedsim.cli.progress import Progress as RoundProgress
    from fedsim.running.runner import unresumable

    if sys.stderr.isatty():
        with RoundProgress(experiment.rounds, experiment.duration, label) as bar:
            result = begin(callbacks=[bar])
    else:
        result = begin()
    _say(result)
    if result.status == "interrupted" and unresumable(experiment) is None:
        print(f"to go on: fedsim run --resume {result.folder}")
    return STATUS[result.status]


def main() -> None:
    """Entry point of the `fedsim` command."""
    try:
        code = app(standalone_mode=False)
    except (InputError, click.UsageError) as error:
        line = error.format_message() if isinstance(error, click.UsageError) else str(error)
        print(f"fedsim: {one_line(line)}", file=sys.stderr)
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
