"""`fedsim run`: an experiment, several seeds of it, or the rest of one that was interrupted."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import click
import typer

from fedsim.cli.arguments import DataDir, Seeds, Settings, Track, experiment_files, parse_seeds, with_trackers
from fedsim.cli.report import Report, leave_report
from fedsim.cli.words import STATUS, say, shares_test_set
from fedsim.core.errors import InputError
from fedsim.core.terminal import tell

if TYPE_CHECKING:
    from fedsim.configuration.tables import Experiment
    from fedsim.running.result import Result


def run(
    experiment: Annotated[
        Path | None,
        typer.Argument(help="An experiment file (TOML); with --resume not needed.", autocompletion=experiment_files),
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
    track: Track = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with the run in this folder, which was interrupted or killed.")
    ] = None,
    report: Report = False,
) -> None:
    """Run an experiment and write its run folder, or go on with a run."""
    from fedsim.configuration.tables import load
    from fedsim.reports.comparison import ONE_TEST_SET
    from fedsim.running.folder import RunFolder
    from fedsim.running.stored import CONFIG

    overrides = with_trackers(settings, track)
    if device is not None:
        overrides.append(f'engine.device="{device}"')
    if resume is not None:
        for option, given in (("out", out), ("seeds", seeds)):
            if given is not None:
                raise InputError(option, str(given), "--resume goes on with one run, in its folder; leave this out")
        same = None
        if experiment is not None or overrides or seed is not None:
            same = partial(load, experiment or resume / CONFIG, overrides=overrides, seed=seed, data_dir=data_dir)
        raise typer.Exit(_go_on(resume, same, data_dir, force, report))
    if experiment is None:
        raise click.MissingParameter(param_hint="'EXPERIMENT'", param_type="argument")
    loaded = load(experiment, overrides=overrides, seed=seed, data_dir=data_dir)
    if seeds is None:
        raise typer.Exit(_execute(loaded, out, force, loaded.name, report=report))
    if seed is not None:
        raise InputError("seeds", seeds, "give --seed or --seeds, not both")
    numbers = parse_seeds(seeds)
    RunFolder.check(out, loaded.name, force=force)
    group = RunFolder.create(None, loaded.name) if out is None else RunFolder(out)
    codes = []
    try:
        for number in numbers:
            place, label = group.path / f"seed-{number}", f"seed {number}"
            codes.append(_execute(loaded.with_seed(number), place, force, label, group=group.path))
            if codes[-1] == STATUS["interrupted"]:
                break
        if report:
            leave_report(group.path)
    finally:
        group.discard()  # which it does if no run has been left in it
    if len(numbers) > 1 and shares_test_set(loaded):
        tell(ONE_TEST_SET)
    raise typer.Exit(max(codes))


def _execute(
    experiment: Experiment,
    out: Path | None,
    force: bool,
    label: str,
    *,
    group: Path | None = None,
    report: bool = False,
) -> int:
    """Run one experiment, say what it came to and return the exit code. group: see `fedsim.run`."""
    from fedsim.running.runner import run as run_experiment

    begin = partial(run_experiment, experiment, out=out, force=force, group=group)
    return _watch(begin, experiment, label, report)


def _go_on(
    folder: Path, same: Callable[[], Experiment] | None, data_dir: Path | None, force: bool, report: bool
) -> int:
    """Go on with the run in a folder, say what it came to and return the exit code. same: makes what it must be."""
    from fedsim.running.folder import RunFolder
    from fedsim.running.more_rounds import more_rounds
    from fedsim.running.resume import hold_acceptable, hold_same, recorded
    from fedsim.running.resume import resume as resume_run
    from fedsim.running.stored import END, open_run

    ended = open_run(folder).ended()
    if ended is None or (same is not None and (folder / END).is_file()):
        hold_acceptable(folder, force=force, more=ended is not None)
    experiment = None if same is None else same()
    if ended is not None and more_rounds(recorded(folder, data_dir), experiment) is None:
        if experiment is not None:
            hold_same(folder, experiment, data_dir)
        with RunFolder.reopen(folder) as opened:
            opened.tidy()
        tell(f"{folder}: this run has {ended}; nothing is left to do")
        if report:
            leave_report(folder)
        return 0
    made = experiment or recorded(folder, data_dir)
    begin = partial(resume_run, folder, experiment, data_dir=data_dir, force=force)
    return _watch(begin, made, made.name, report)


def _watch(begin: Callable[..., Result], experiment: Experiment, label: str, report: bool) -> int:
    """Have a run go, say what it came to and return the exit code; a bar is drawn where somebody looks.

    report: write its page.
    """
    from fedsim.cli.progress import Progress as RoundProgress
    from fedsim.running.runner import unresumable

    if sys.stderr.isatty():
        with RoundProgress(experiment.rounds, experiment.duration, label, experiment.evaluation.asked) as bar:
            result = begin(callbacks=[bar])
    else:
        result = begin()
    say(result)
    if report and result.folder is not None:
        leave_report(result.folder)
    if result.status == "interrupted" and unresumable(experiment) is None:
        tell(f"to go on: fedsim run --resume {result.folder}")
    return STATUS[result.status]
