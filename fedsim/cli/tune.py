"""`fedsim tune`: a search over the options of an experiment."""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from fedsim.cli.arguments import DataDir, Seeds, Settings, experiment_files, parse_seeds
from fedsim.cli.console import Console
from fedsim.cli.words import STATUS
from fedsim.core.html import cell
from fedsim.core.terminal import printable, tell

if TYPE_CHECKING:
    from fedsim.running.study import Study, Trial

SHOWN = 10
"""Trials in the table of the best."""


def tune(
    experiment: Annotated[Path, typer.Argument(help="An experiment file (TOML).", autocompletion=experiment_files)],
    space: Annotated[
        list[str] | None,
        typer.Option(
            help="table.option=LOW..HIGH, log:LOW..HIGH, int:LOW..HIGH, int-log:LOW..HIGH, or values A,B,C; once an"
            " option."
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help="What is looked at; by default accuracy (or loss) on examples set aside, or a function's value."
        ),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="Trials in all; by default 20, of a grid all of it.")
    ] = None,
    seeds: Seeds = None,
    sampler: Annotated[str, typer.Option(help="Who proposes: tpe, random or grid.")] = "tpe",
    pruner: Annotated[str, typer.Option(help="Who gives trials up: median, hyperband or none.")] = "median",
    draws: Annotated[int, typer.Option(help="The sampler's seed.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Processes that work on trials side by side.")] = 1,
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option(help="The search's folder; by default runs/tune-<n>.")] = None,
    on_test: Annotated[
        bool, typer.Option("--on-test", help="Choose by the test set all the same; nothing is then left to judge by.")
    ] = False,
    data_dir: DataDir = None,
) -> None:
    """Search for the best options of an experiment. With the same --out a search goes on where it was left.

    Trials are judged on examples that nobody trains on (partition.validation); the best options are then run once with
    all of them, and judged on the test set. Needs pip install "fedsim-lab[tune]".
    """
    from fedsim.running.folder import RunFolder
    from fedsim.running.study import read_study
    from fedsim.tuning.search import tune as search

    numbers = () if seeds is None else tuple(parse_seeds(seeds))
    group = RunFolder.create(None, "tune") if out is None else RunFolder(out)
    try:
        with _Progress() if sys.stderr.isatty() else nullcontext(_say) as heard:
            found = search(
                experiment,
                space or [],
                metric=metric,
                trials=trials,
                seeds=numbers,
                sampler=sampler,
                pruner=pruner,
                draws=draws,
                workers=workers,
                out=group.path,
                on_test=on_test,
                on_trial=heard,
                overrides=settings or [],
                data_dir=data_dir,
            )
    except KeyboardInterrupt:
        left = read_study(group.path)
        if left is not None:
            _show(left)
            tell(f"fedsim: interrupted; the same command with --out {group.path} goes on", "stderr")
        raise typer.Exit(STATUS["interrupted"]) from None
    finally:
        group.discard()  # which it does if the search has not begun
    _show(found)
    raise typer.Exit(0 if found.best is not None else STATUS["failed"])


def _show(study: Study) -> None:
    """Say what a search has come to."""
    if study.best is not None:
        Console(width=None if sys.stdout.isatty() else 200).print(_table(study))
    states = Counter(trial.state for trial in study.trials)
    tell(", ".join(f"{number} {state}" for state, number in states.items()) or "no trial")
    if study.best is None:
        for trial in study.trials[:1]:
            tell(_line(trial, study))
    if study.importance is not None and len(study.importance) > 1:
        shares = sorted(study.importance.items(), key=lambda entry: -entry[1])
        tell(f"importance: {', '.join(f'{option} {share:.0%}' for option, share in shares)}")
    if study.test is not None:
        from fedsim.reports.numbers import Spread

        spreads = {name: Spread(values) for name, values in study.test.items()}
        said = (
            f"{name.replace('_', ' ')} {spread.mean:.4f}"
            + ("" if spread.deviation is None else f" ± {spread.deviation:.4f}")
            for name, spread in spreads.items()
        )
        tell(f"on the test set, trained on all: {', '.join(said)}")
    if study.best is not None:
        tell(f"best options: {study.folder / 'best.toml'}")
    tell(f"search folder: {study.folder}")


def _table(study: Study) -> Table:
    """The best trials, the best first."""
    table = Table(show_edge=False)
    table.add_column("trial", justify="right")
    for option in study.space:
        table.add_column(Text(printable(option)), justify="right", no_wrap=True)
    for heading in (study.metric.replace("_", " "), "rounds", "seconds"):
        table.add_column(heading, justify="right", no_wrap=True)
    for trial in study.ranked[:SHOWN]:
        tried = [Text(printable(cell(trial.options[option]))) for option in study.space]
        table.add_row(str(trial.number), *tried, _value(trial), str(trial.rounds), f"{trial.seconds:.1f}")
    if len(study.seeds) > 1:
        table.caption = "±: one sample standard deviation over the seeds"
    return table


def _value(trial: Trial) -> str:
    from fedsim.reports.numbers import Spread

    spread = Spread(trial.values)
    return f"{spread.mean:.4f}" + ("" if spread.deviation is None else f" ± {spread.deviation:.4f}")


def _line(trial: Trial, study: Study) -> str:
    """A trial in a line."""
    tried = ", ".join(f"{option} {cell(value)}" for option, value in trial.options.items())
    came = trial.reason if trial.value is None else f"{study.metric.replace('_', ' ')} {_value(trial)}"
    if trial.value is not None and trial.reason:
        came += f" ({trial.reason})"
    return f"trial {trial.number}: {tried}: {came or trial.state}"


def _say(trial: Trial, study: Study) -> None:
    tell(_line(trial, study))


class _Progress:
    """Called with every trial: draws trials done, the best so far and the time gone, on standard error."""

    def __init__(self) -> None:
        self._bar = Bar(
            TextColumn("trials"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[now]}", markup=False),
            TimeElapsedColumn(),
            console=Console(stderr=True, soft_wrap=True),
            transient=True,
        )
        self._task = self._bar.add_task("", total=None, now="")

    def __enter__(self) -> _Progress:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def __call__(self, trial: Trial, study: Study) -> None:
        """Move the bar; say what failed above it."""
        if trial.state == "failed":
            self._bar.console.print(_line(trial, study))
        done = sum(one.state != "running" for one in study.trials)
        best = study.best_trial
        said = "" if best is None else f"best {cell(best.value)} of trial {best.number}"
        self._bar.update(self._task, completed=done, now=said)
