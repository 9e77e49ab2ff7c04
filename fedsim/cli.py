"""The command line: run, sweep, compare, list, describe, new, flower.

Exit code 0: done. 1: something went wrong inside, or the run diverged; what was logged is kept. 2: an input that
cannot be used, said in one line. 130: interrupted, with a usable run folder.
"""

from __future__ import annotations

import math
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from itertools import count, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Table
from rich.text import Text

from fedsim import __version__
from fedsim.commands import flower
from fedsim.commands.describe import describe
from fedsim.commands.new import new
from fedsim.errors import FedsimError, InputError

if TYPE_CHECKING:
    from fedsim.configuration import Experiment
    from fedsim.runner import Result
    from fedsim.sweep import Outcome

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(flower.app, name="flower")

STATUS = {"finished": 0, "stopped": 0, "diverged": 1, "stalled": 1, "failed": 1, "interrupted": 130}
MEASURES = ("train_loss", "global_train_loss", "test_loss", "test_accuracy", "client_accuracy_p10", "value", "gap")
"""What is said of a run, where it was measured."""

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
    from fedsim.configuration import load
    from fedsim.runfolder import CONFIG, RunFolder

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
    from fedsim.engine.cores import cores
    from fedsim.runfolder import RunFolder
    from fedsim.sweep import expand, parse_grid
    from fedsim.sweep import sweep as run_points

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
    from fedsim.comparison import compare as compare_runs
    from fedsim.comparison import draw, parse_targets, places, render
    from fedsim.runfolder import StorageError

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
    from fedsim.registry import GROUPS, names

    console = Console()
    for group in GROUPS:
        console.print(f"[bold]{group}[/bold]: {', '.join(names(group)) or 'none'}", highlight=False)


app.command()(describe)
app.command()(new)


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
    from fedsim.runner import run as run_experiment

    return _watch(partial(run_experiment, experiment, out=out, force=force), experiment, label)


def _go_on(folder: Path, experiment: Experiment | None, data_dir: Path | None, force: bool) -> int:
    """Go on with the run in a folder, say what it came to and return the exit code. experiment: what it must be."""
    from fedsim.resuming import hold_same, recorded
    from fedsim.resuming import resume as resume_run
    from fedsim.runfolder import open_run

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
    from fedsim.progress import Progress as RoundProgress
    from fedsim.runner import unresumable

    if sys.stderr.isatty():
        with RoundProgress(experiment.rounds, experiment.duration, label) as bar:
            result = begin(callbacks=[bar])
    else:
        result = begin()
    _say(result)
    if result.status == "interrupted" and unresumable(experiment) is None:
        print(f"to go on: fedsim run --resume {result.folder}")
    return STATUS[result.status]


def _say(result: Result) -> None:
    console = Console(soft_wrap=True, highlight=False)
    summary = result.summary
    queries = [f"{summary['total_queries']:,} queries"] if summary["total_queries"] else []
    traffic = _size(summary["total_bytes_up"] + summary["total_bytes_down"])
    head = f"{result.status}: {summary['rounds']} rounds in {summary['wall']:.1f} s"
    console.print(", ".join([head, *_measures(summary), *queries, f"{traffic} exchanged"]))
    if summary["total_failed"]:
        console.print(f"{summary['total_failed']} updates were not finite, or misshapen, and were left out")
    if summary["total_clients"] == 0:
        console.print("no reply was ever used: the model is the one that the run began with")
    if summary["total_crashed"]:
        console.print(f"{summary['total_crashed']} orders ended with the failure of the client's machine")
    if summary["total_lost"]:
        share = f"{100 * summary['lost_weight']:.3g} % of the examples"
        console.print(f"{summary['total_lost']} clients failed for good, and with them {share}")
    if summary["faults"]:
        kinds = ", ".join(f"{number} {kind}" for kind, number in summary["faults"].items())
        console.print(f"{sum(summary['faults'].values())} replies were faulty on purpose: {kinds}")
    if summary["skipped"]:
        console.print(f"{summary['skipped']} times too few replies were left for the aggregator, and none was used")
    if result.reason:
        console.print(result.reason)
    if result.folder is not None:
        console.print(f"run folder: {result.folder}")


def _measures(summary: Mapping[str, Any]) -> list[str]:
    return [f"{name.replace('_', ' ')} {_number(name, summary[name])}" for name in _said(summary)]


def _said(measured: Iterable[str]) -> list[str]:
    """Those of `MEASURES` that were measured, and then what was under attacks: test accuracies, training losses."""
    from fedsim.measures import attack_of

    found = dict.fromkeys(measured)
    under = [name for name in found if attack_of(name)]
    tests = [name for name in under if name.startswith("test_") and name.endswith("_accuracy")]
    losses = [name for name in under if name.startswith("global_train_") and name.endswith("_loss")]
    return [*(name for name in MEASURES if name in found), *tests, *losses]


def _size(count: int) -> str:
    """Bytes in a unit that leaves something before the point."""
    if count < 2**17:
        return f"{count / 2**10:.1f} KiB"
    return f"{count / 2**20:.1f} MiB"


def _number(name: str, value: float) -> str:
    """Four digits after the point; of what may be small by design, four in all."""
    return f"{value:.4g}" if name in ("value", "gap") else f"{value:.4f}"


class SweepProgress:
    """Called with every outcome of a sweep: draws points done, running and failed and the time left, on standard error.

    Failures are said above the bar, which is taken away at the end.
    """

    def __init__(self, points: int, workers: int) -> None:
        self._points, self._workers = points, workers
        self._skipped, self._failed, self._done = 0, 0, 0
        self._bar = Progress(
            TextColumn("points"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[now]}"),
            _TimeLeft(),
            console=Console(stderr=True, soft_wrap=True, highlight=False),
            transient=True,
        )
        self._began = time.monotonic()
        self._task = self._bar.add_task("", total=points, now="", ends=None)

    def __enter__(self) -> SweepProgress:
        self._bar.start()
        self._show()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def __call__(self, outcome: Outcome) -> None:
        """Move the bar."""
        self._done += 1
        self._skipped += outcome.skipped
        if outcome.status == "failed":
            self._failed += 1
            self._bar.console.print(_outcome_line(outcome), markup=False)
        self._show()

    def _show(self) -> None:
        now, left, done = time.monotonic(), self._points - self._done, self._done - self._skipped
        # As long for each as for those that this sweep has run: those that it skipped took no time.
        ends = now + left * (now - self._began) / done if done else None
        said = f"{min(self._workers, left)} running, {self._failed} failed"
        self._bar.update(self._task, completed=self._done, now=said, ends=ends)


class _TimeLeft(ProgressColumn):
    """Hours, minutes and seconds until the time that the task's field `ends` has, on the monotonic clock."""

    def render(self, task: Task) -> Text:
        ends = task.fields["ends"]
        return Text("" if ends is None else f"{timedelta(seconds=max(0, round(ends - time.monotonic())))} left")


def sweep_table(outcomes: Sequence[Outcome]) -> Table:
    """Lay out a sweep: a line for the seeds of a combination, with mean and sample deviation of their final values."""
    said = _said(name for outcome in outcomes for name in outcome.summary)
    names = [name for name in said if not name.startswith("client")]  # four would be too wide
    table = Table(show_edge=False)
    table.add_column("experiment", overflow="fold")
    for heading in ("seeds", *(name.replace("_", " ") for name in names)):
        table.add_column(heading, justify="right", no_wrap=True)
    for group, members in groupby(outcomes, key=lambda outcome: outcome.point.folder.parent):
        ran = list(members)
        others = Counter(outcome.status for outcome in ran if STATUS[outcome.status])
        seeds = f"{len(ran)}{''.join(f' ({number} {status})' for status, number in others.items())}"
        cells = [[outcome.summary[name] for outcome in ran if name in outcome.summary] for name in names]
        table.add_row(Text("/".join(group.parts[-2:])), seeds, *map(_cell, cells))
    if len({outcome.point.folder.parent for outcome in outcomes}) < len(outcomes):
        table.caption = "±: one sample standard deviation over the seeds"
    return table


def _cell(values: Sequence[float | None]) -> str:
    """Write mean ± standard deviation. A value that is None was not finite."""
    from fedsim.comparison import Spread

    if not values:
        return "-"
    spread = Spread(tuple(math.nan if value is None else value for value in values))
    if not math.isfinite(spread.mean):
        return "not finite"
    return f"{spread.mean:.4f}" + ("" if spread.deviation is None else f" ± {spread.deviation:.4f}")


def _say_outcome(outcome: Outcome) -> None:
    if not outcome.skipped:
        print(_outcome_line(outcome), flush=True)


def _outcome_line(outcome: Outcome) -> str:
    head = f"{'/'.join(outcome.point.folder.parts[-3:])}: {outcome.status}"
    if outcome.status in ("failed", "diverged"):
        return f"{head}: {outcome.reason}"
    return ", ".join([head, *_measures(outcome.summary), f"{outcome.summary['wall']:.1f} s"])


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
