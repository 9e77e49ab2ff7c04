"""Sweeps: experiment files x the combinations of a grid x seeds, each a run folder, one process a core.

DIR/<experiment name>/<key=value,key2=value2, or base>/seed-<k>/ is the run folder of a point. A point is finished when
its summary says finished, stopped, diverged or stalled, and is then skipped; any other goes on from its last
checkpoint, or begins anew if it has none or is one of a stack. So the same call goes on after whatever ended the one
before, be it SIGKILL: no other file says how far a sweep has come.

A point goes to its process as tables, since the classes of plug-in files cannot be pickled, and every operation takes
one core anyway: its numbers are those of `fedsim run`, whatever the number of processes and the cores of each.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim.core.blame import mistake
from fedsim.core.errors import FedsimError, InputError, one_line
from fedsim.core.files import path_of
from fedsim.parallel.workers import Failed, Lost, Workers, take_cores
from fedsim.running.many import hold_few, length

# What needs PyTorch is imported where it is used: a new process first says how many threads it may have.
if TYPE_CHECKING:
    from fedsim.configuration.tables import Experiment

Ended = tuple[str, str, Mapping[str, Any]]
"""Status, reason and summary of a run."""
LONGEST = 200
"""Bytes that the name of a combination's folder may take; most file systems allow 255."""


@dataclass(frozen=True)
class Point:
    """One run of a sweep, and the folder that is to hold it. group: see `fedsim.run`."""

    experiment: Experiment
    folder: Path
    group: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """What came of a point.

    status: finished, stopped (early), diverged, stalled or failed; reason: why,. summary: as in summary.json,
    empty where it failed. skipped: an earlier sweep had finished it.
    """

    point: Point
    status: str
    reason: str
    summary: Mapping[str, Any]
    skipped: bool = False


def parse_grid(assignments: Iterable[str]) -> dict[str, list[str]]:
    """Read a grid: `client.lr=0.1,0.2` and the like, split at commas outside brackets and quotes.

    Values stay as they are written, in TOML; bare words are strings. InputError: an option without values, with an
    empty one, given twice, or with brackets or quotes that do not match.
    """
    grid: dict[str, list[str]] = {}
    for assignment in assignments:
        name, _, text = assignment.partition("=")
        name = name.strip()
        values = _split(text)
        if not name or not all(values):
            raise InputError("grid", assignment, "write table.option=value,value with brackets and quotes closed")
        if name in grid:
            raise InputError("grid", assignment, f"{name} has values already; write them all after one --grid")
        grid[name] = values
    return grid


def expand(
    experiments: Experiment | Path | str | Sequence[Experiment | Path | str],
    *,
    out: Path | str,
    grid: Mapping[str, Sequence[Any]] | None = None,
    seeds: Sequence[int] = (),
    overrides: Sequence[str] = (),
    data_dir: Path | str | None = None,
) -> list[Point]:
    """Take every experiment under every combination of the grid and every seed: the points, in this order.

    experiments: files, or ones that are made. grid: by `table.option`, its values, numbers and the like or texts as
    after `--set`; they are set after the overrides. seeds: none stands for each experiment's own. Nothing is written.
    InputError names experiment and combination beside the option.
    """
    from fedsim.configuration.tables import Experiment, experiment, load, override

    grid = {} if grid is None else grid
    _hold_grid(grid)
    if "seed" in grid:
        raise InputError("grid", "seed", "runs that differ in their seed are one point of a grid; pass --seeds")
    points = []
    several: list[Any] = [experiments]
    if not isinstance(experiments, Experiment | Path | str) and isinstance(experiments, Iterable):
        several = list(experiments)
    number = len(several) * math.prod(map(len, grid.values())) * max(length(seeds), 1)
    hold_few("seeds" if seeds else "grid", "(all combinations)", number)
    for given in several:
        if not isinstance(given, Experiment | Path | str):
            raise InputError("experiments", type(given).__name__, "name files, or hand over experiments")
        for values in itertools.product(*grid.values()):
            combination = [f"{name}={_written(name, value)}" for name, value in zip(grid, values, strict=True)]
            settings = [*overrides, *combination]
            try:
                if isinstance(given, Experiment) and not settings:
                    loaded = replace(given, data_dir=Path(data_dir)) if data_dir else given
                elif isinstance(given, Experiment):
                    loaded = experiment(data_dir=data_dir or given.data_dir, **override(given.resolved(), settings))
                else:
                    loaded = load(given, overrides=settings, data_dir=data_dir)
            except InputError as error:
                where = ", ".join([given.name if isinstance(given, Experiment) else str(given), *combination])
                raise InputError(error.option, error.value, f"{error.remedy} (in {where})") from error
            group = Path(out) / loaded.name / _folder_name(combination)
            for seed in seeds or [loaded.seed]:
                points.append(Point(loaded.with_seed(seed), group / f"seed-{seed}", Path(out)))
    return points


def _hold_grid(grid: object) -> None:
    """Refuse what is no options with at least one value each."""
    if not isinstance(grid, Mapping):
        raise InputError("grid", type(grid).__name__, "name options with their values: {'client.lr': [0.1, 0.3]}")
    for name, values in grid.items():
        if not isinstance(values, Collection) or isinstance(values, str | Mapping) or not len(values):
            raise InputError("grid", f"{name}: {values!r}", "give a list of at least one value")


def sweep(
    experiments: Experiment | Path | str | Sequence[Experiment | Path | str],
    *,
    grid: Mapping[str, Sequence[Any]] | None = None,
    seeds: Sequence[int] = (),
    overrides: Sequence[str] = (),
    out: Path | str | None = None,
    workers: int | None = None,
    on_done: Callable[[Outcome], None] | None = None,
    stack: bool = False,
    data_dir: Path | str | None = None,
) -> list[Outcome]:
    """Run experiments under every combination of a grid and every seed: the outcomes, for `fedsim.compare`.

    experiments, grid, seeds, overrides, data_dir: see `expand`. out: the folder of all runs, by default the next
    `runs/sweep-<n>`; with the same one a sweep goes on where it ended. workers, on_done, stack: see `run_points`.
    """
    from fedsim.running.folder import RunFolder

    group = RunFolder.create(None, "sweep") if out is None else RunFolder(path_of(out, "out"))
    try:
        points = expand(experiments, out=group.path, grid=grid, seeds=seeds, overrides=overrides, data_dir=data_dir)
        return run_points(points, workers=workers, on_done=on_done, stack=stack)
    finally:
        group.discard()  # which it does if no run has been left in it


def run_points(
    points: Sequence[Point],
    *,
    workers: int | None = None,
    on_done: Callable[[Outcome], None] | None = None,
    stack: bool = False,
) -> list[Outcome]:
    """Run the points that are not finished, `workers` at a time (by default one a core): their outcomes, in order.

    The cores are shared out among those that run at once: two at a time on eight cores have four each.
    on_done: called in this process with each outcome, first with those of points that are skipped. A point that fails
    does not keep others from running; its folder has a traceback.txt where the code failed. A point whose process dies
    is tried once more. When this call ends early (KeyboardInterrupt), or its process does, so do the workers. A script
    that calls it needs `if __name__ == "__main__":`, as every process begins by importing the script. stack: points of
    `expand` that differ only in their seed run as one, in one process (see `fedsim.running.seeds`), and where one of
    them fails all do.
    InputError, before anything runs: two points share a folder, one cannot be written, or holds another experiment; or
    is no black box, and is to be stacked.
    """
    from fedsim.configuration.tables import hold_findable
    from fedsim.parallel.cores import cores
    from fedsim.running.tracking import check_trackers

    for point in points:
        check_trackers(point.experiment, saved=True)
        hold_findable(point.experiment.resolved(), "a sweep runs in several: move it to a file's top")
    if workers is not None and workers < 1:
        raise InputError("workers", workers, "at least one process is needed")
    examples = [point.experiment.name for point in points if not point.experiment.values_only]
    if stack and examples:
        raise InputError("stack", examples[0], "only seeds of black boxes run as one stack; leave --stack out")
    folder, uses = Counter(point.folder for point in points).most_common(1)[0] if points else (None, 0)
    if uses > 1:
        raise InputError("out", str(folder), "two points have this folder; name experiments apart, give values once")
    outcomes: dict[Path, Outcome] = {}

    def done(outcome: Outcome) -> None:
        outcomes[outcome.point.folder] = outcome
        if on_done is not None:
            on_done(outcome)

    earlier = [_earlier(point) for point in points]
    for outcome in filter(None, earlier):
        done(outcome)
    groups: dict[Path, list[Point]] = {}
    for point, before in zip(points, earlier, strict=True):
        if before is None:
            groups.setdefault(point.folder.parent if stack else point.folder, []).append(point)
    if groups:
        processes = min(workers or cores(), len(groups))
        _work_off(list(groups.values()), processes, max(cores() // processes, 1), done)
    return [outcomes[point.folder] for point in points]


def _work_off(groups: Sequence[Sequence[Point]], workers: int, each: int, done: Callable[[Outcome], None]) -> None:
    """Run points, as many at a time as there are workers, on so many cores each. A list has the seeds of a stack."""
    tasks = []
    for group in groups:
        made, folders = group[0].experiment, {point.experiment.seed: point.folder for point in group}
        tasks.append((made.resolved(), made.data_dir, folders, group[0].group))
    with Workers(workers, take_cores, each) as pool, closing(pool.stream(_run, tasks)) as outcomes:
        for number, outcome in outcomes:
            ended = outcome
            if isinstance(outcome, Lost):
                ended = [("failed", f"{outcome.reason}, twice: out of memory?", {})] * len(groups[number])
            elif isinstance(outcome, Failed):
                ended = [("failed", outcome.reason, {})] * len(groups[number])
            for point, came in zip(groups[number], ended, strict=True):
                done(Outcome(point, *came))


def _run(_: None, task: tuple[Mapping[str, Any], Path | None, Mapping[int, Path], Path | None]) -> list[Ended]:
    """Run a point, or several seeds of it as a stack, in a worker.

    task: its tables, data folder, folders by seed, and the folder of its group.
    """
    from fedsim.configuration.tables import experiment
    from fedsim.core.files import write_whole
    from fedsim.running.resume import resume
    from fedsim.running.seeds import run_seeds
    from fedsim.running.stored import TRACEBACK

    tables, data_dir, folders, together = task
    traces = [folder / TRACEBACK for folder in folders.values()]
    for trace in traces:
        trace.unlink(missing_ok=True)  # a run removes only those of runs, not one left by an attempt that came to none
    try:
        made = experiment(data_dir=data_dir, **tables)
        if len(folders) == 1:
            results = [resume(traces[0].parent, made, anew=True, group=together)]
        else:
            results = run_seeds(made, list(folders), out=traces[0].parent.parent, force=True, group=together)
    except FedsimError as error:
        return [("failed", _line(error), {})] * len(folders)
    except Exception as error:
        for trace in traces:
            if not trace.exists():
                trace.parent.mkdir(parents=True, exist_ok=True)
                write_whole(trace, traceback.format_exc().encode())
        return [("failed", f"{_line(error)} (see {trace})", {}) for trace in traces]
    return [(result.status, result.reason, result.summary) for result in results]


def _earlier(point: Point) -> Outcome | None:
    """Tell what an earlier sweep made of the point; None when it is still to be done.

    InputError: the folder cannot be used, or another experiment has been run in it.
    """
    from fedsim.configuration.tables import experiment
    from fedsim.running.folder import RunFolder
    from fedsim.running.stored import CONFIG

    folder = point.folder
    RunFolder.check(folder, point.experiment.name, force=True)
    if not (folder / CONFIG).is_file():
        return None
    try:
        same = _text(experiment(**RunFolder(folder).config())) == _text(point.experiment)
    except InputError:
        same = False
    if not same:
        raise InputError("out", str(folder), "another experiment has been run here; choose another --out")
    stored = RunFolder(folder)
    status, summary = stored.ended(), stored.summary()
    if status is None or summary is None:
        return None
    stored.tidy()
    return Outcome(point, status, str(summary.get("reason", "")), summary, True)


def _text(made: Experiment) -> str:
    from fedsim.running.resume import is_free

    deciding = {
        name: {key: value for key, value in table.items() if not is_free(f"{name}.{key}")}
        if isinstance(table, Mapping)
        else table
        for name, table in made.resolved().items()
        if not is_free(name)
    }
    return json.dumps(deciding, sort_keys=True, default=str)


def _line(error: BaseException) -> str:
    return one_line(error) if isinstance(error, FedsimError) else mistake(error)


def _written(name: str, value: Any) -> str:
    """A value of a grid as it stands after `--set`."""
    if isinstance(value, str):
        return value
    if not isinstance(value, bool | int | float | list | tuple):
        raise InputError(f"grid.{name}", type(value).__name__, "give numbers, lists or texts; of a table its TOML")
    return json.dumps(value)


def _folder_name(combination: Sequence[str]) -> str:
    """Name the folder of a combination of a grid as it is written, but for what file names or shells stumble over."""
    written = re.sub(r"[^\w.,:=+{}\[\]-]", "_", re.sub(r"[\s\"']", "", ",".join(combination)))
    if len(written.encode()) <= LONGEST:
        return written or "base"
    digest = hashlib.blake2b(written.encode(), digest_size=6).hexdigest()
    return f"{written.encode()[: LONGEST - 13].decode(errors='ignore')}-{digest}"


def _split(text: str) -> list[str]:
    """Split at the commas outside brackets and quotes; one empty value where these do not match."""
    values, depth, quote, escaped = [""], 0, "", False
    for letter in text:
        if quote:
            if letter == quote and not escaped:
                quote = ""
            escaped = quote == '"' and letter == "\\" and not escaped
        elif letter in "\"'":
            quote = letter
        else:
            depth += (letter in "[{") - (letter in "]}")
        if letter == "," and not depth and not quote:
            values.append("")
        else:
            values[-1] += letter
    return [""] if depth or quote else [value.strip() for value in values]
