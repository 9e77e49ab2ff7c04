"""`fedsim sweep`: files, combinations of options and seeds, as many at a time as there are cores."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from fedsim.cli.answers import Json, Quiet, answering
from fedsim.cli.arguments import DataDir, Seeds, Settings, Track, experiment_files, parse_seeds, with_trackers
from fedsim.cli.report import Report, leave_report
from fedsim.cli.words import STATUS, outcome_line, record_of, sweep_table
from fedsim.core.terminal import tell


def sweep(
    experiments: Annotated[
        list[Path], typer.Argument(help="Experiment files (TOML).", autocompletion=experiment_files)
    ],
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
    track: Track = None,
    report: Report = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Run files under every combination of a grid and every seed. With the same --out it goes on where it ended."""
    from fedsim.cli.board import Board
    from fedsim.parallel.cores import cores
    from fedsim.running.folder import RunFolder
    from fedsim.running.sweep import Outcome, expand, parse_grid, run_points

    with answering(quiet, as_json) as answer:
        values = parse_grid(grid or [])
        numbers = [] if seeds is None else parse_seeds(seeds)
        group = RunFolder.create(None, "sweep") if out is None else RunFolder(out)

        at_once = (workers or cores()) * (len(numbers) if stack and numbers else 1)
        try:
            points = expand(
                experiments,
                out=group.path,
                grid=values,
                seeds=numbers,
                overrides=with_trackers(settings, track),
                data_dir=data_dir,
            )
            with Board(points, at_once) if answer.watched else nullcontext() as board:

                def done(outcome: Outcome) -> None:
                    made = outcome.point.experiment
                    record = record_of(made, outcome.status, outcome.summary, outcome.point.folder)
                    answer.give(record | {"reason": outcome.reason, "skipped": outcome.skipped})
                    if board is not None:
                        board(outcome)
                    elif not outcome.skipped:
                        answer.tell(outcome_line(outcome))

                outcomes = run_points(points, workers=workers, on_done=done, stack=stack)
        except KeyboardInterrupt:
            tell(f"fedsim: interrupted; the same command with --out {group.path} goes on", "stderr")
            raise typer.Exit(STATUS["interrupted"]) from None
        finally:
            group.discard()  # which it does if no run has been left in it
        answer.lay_out(sweep_table(outcomes))
        found = Counter(outcome.status for outcome in outcomes)
        skipped = sum(outcome.skipped for outcome in outcomes)
        counted = [f"{number} {status}" for status, number in found.items()]
        answer.tell(f"{', '.join(counted)}{f' ({skipped} of them before)' if skipped else ''}")
        answer.tell(f"sweep folder: {group.path}")
        if report:
            leave_report(group.path, answer)
        answer.place(group.path)
        raise typer.Exit(max(STATUS[status] for status in found))
