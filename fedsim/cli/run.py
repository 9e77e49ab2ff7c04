"""`fedsim run`: an experiment, several seeds of it, or the rest of one that was interrupted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import click
import typer

from fedsim.cli.answers import Answer, Json, Quiet, answering
from fedsim.cli.arguments import (
    DataDir,
    Seeds,
    Settings,
    Track,
    experiment_files,
    parse_seeds,
    run_folders,
    with_trackers,
)
from fedsim.cli.report import Report, leave_report, wrote_report
from fedsim.cli.words import STATUS, lines_of, record_of, shares_test_set
from fedsim.core.errors import InputError

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
        Path | None,
        typer.Option(
            help="Go on with the run in this folder, which was interrupted or killed.", autocompletion=run_folders
        ),
    ] = None,
    report: Report = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Run an experiment and write its run folder, or go on with a run."""
    from fedsim.configuration.tables import load
    from fedsim.running.stored import CONFIG

    with answering(quiet, as_json) as answer:
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
            raise typer.Exit(_go_on(answer, resume, same, data_dir, force, report))
        if experiment is None:
            raise click.MissingParameter(param_hint="'EXPERIMENT'", param_type="argument")
        loaded = load(experiment, overrides=overrides, seed=seed, data_dir=data_dir)
        if seeds is None:
            raise typer.Exit(_run_one(answer, loaded, out, force, report))
        if seed is not None:
            raise InputError("seeds", seeds, "give --seed or --seeds, not both")
        raise typer.Exit(_run_seeds(answer, loaded, parse_seeds(seeds), out, force, report))


def _run_one(answer: Answer, experiment: Experiment, out: Path | None, force: bool, report: bool) -> int:
    """Run an experiment and return the exit code."""
    from fedsim.running.runner import run as run_experiment

    return _draw(answer, partial(run_experiment, experiment, out=out, force=force), experiment, report)


def _run_seeds(
    answer: Answer, loaded: Experiment, numbers: Sequence[int], out: Path | None, force: bool, report: bool
) -> int:
    """Run an experiment under several seeds, one after the other, and return the exit code."""
    from fedsim.cli.board import Board
    from fedsim.reports.comparison import ONE_TEST_SET
    from fedsim.running.folder import RunFolder
    from fedsim.running.runner import run as run_experiment
    from fedsim.running.sweep import Outcome, Point

    RunFolder.check(out, loaded.name, force=force)
    group = RunFolder.create(None, loaded.name) if out is None else RunFolder(out)
    points = [Point(loaded.with_seed(number), group.path / f"seed-{number}") for number in numbers]
    codes = []
    try:
        with Board(points, 1) if answer.watched else nullcontext() as board:
            for point in points:
                result = run_experiment(point.experiment, out=point.folder, force=force, group=group.path)
                _tell(answer, result, point.experiment)
                codes.append(STATUS[result.status])
                if result.status == "interrupted":
                    break
                if board is not None:
                    board(Outcome(point, result.status, result.reason, result.summary))
        if report:
            leave_report(group.path, answer)
    finally:
        group.discard()  # which it does if no run has been left in it
    if len(numbers) > 1 and shares_test_set(loaded):
        answer.tell(ONE_TEST_SET)
    answer.place(group.path)
    return max(codes)


def _go_on(
    answer: Answer,
    folder: Path,
    same: Callable[[], Experiment] | None,
    data_dir: Path | None,
    force: bool,
    report: bool,
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
            summary = opened.summary() or {}
        answer.tell(f"{folder}: this run has {ended}; nothing is left to do")
        answer.give(record_of(recorded(folder, data_dir), ended, summary, folder))
        if report:
            leave_report(folder, answer)
        answer.place(folder)
        return 0
    made = experiment or recorded(folder, data_dir)
    begin = partial(resume_run, folder, experiment, data_dir=data_dir, force=force)
    return _draw(answer, begin, made, report)


def _draw(answer: Answer, begin: Callable[..., Result], experiment: Experiment, report: bool) -> int:
    """Have a run go, say what it came to and return the exit code; it is drawn where somebody looks."""
    from fedsim.cli.progress import Progress

    written: list[bool] = []
    if report:
        begin = partial(begin, at_end=lambda folder: written.append(wrote_report(folder)))
    if answer.watched:
        asked = experiment.evaluation.asked
        with Progress(experiment.rounds, experiment.duration, experiment.name, asked) as drawn:
            result = begin(callbacks=[drawn])
    else:
        result = begin()
    folder = _tell(answer, result, experiment)
    if any(written):
        from fedsim.running.stored import REPORT

        answer.tell(f"report: {folder / REPORT}")
    answer.place(folder)
    return STATUS[result.status]


def _tell(answer: Answer, result: Result, experiment: Experiment) -> Path:
    """Say what a run came to, and return its folder."""
    from fedsim.running.runner import unresumable

    for line in lines_of(result):
        answer.tell(line)
    if result.status == "interrupted" and unresumable(experiment) is None:
        answer.tell(f"to go on: fedsim run --resume {result.folder}")
    assert result.folder is not None  # for the command saves what it runs
    answer.give(record_of(experiment, result.status, result.summary, result.folder))
    return result.folder
