"""Going on with a run that was interrupted or killed, from its last checkpoint, in its folder.

What is left behind is, to the bit, what the run would have left without the interruption: the model, the trace, and the
metrics and the summary but for the time on the wall. How it was executed is taken from its config.toml, whatever the
machine would choose now; a checkpoint is sought by `fedsim.running.checkpoint.newest`, and a run without one begins
again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedsim.configuration.tables import NOTES, Experiment
from fedsim.configuration.tables import experiment as checked
from fedsim.core.errors import InputError, named_line, naming
from fedsim.core.files import path_of
from fedsim.parallel.arithmetic import arithmetic, hold_pinned
from fedsim.parallel.cores import at_most
from fedsim.problems.base import Problem
from fedsim.running.build import build_problem, build_simulation
from fedsim.running.checkpoint import Checkpoint, UnusableError, newest
from fedsim.running.checks import check_own
from fedsim.running.folder import RunFolder
from fedsim.running.more_rounds import begin_again, end_of, hold_extensible, more_rounds
from fedsim.running.result import Callback, Result
from fedsim.running.runner import AtEnd, describe, drive, execute, recording, unresumable, versions
from fedsim.running.simulation import Simulation
from fedsim.running.stored import CONFIG, METRICS, open_run
from fedsim.running.summary import TOTALS
from fedsim.running.tracking import check_trackers

DECIDING = ("fedsim", "torch", "numpy")
"""What decides the last bits of results."""
FREE = ("checkpoint", "engine.cores", "track")
"""Tables and options that change no result, and need not be as they were."""
OWN = {"kind": "own"}
TEXTS = ("executor", "device", "data_dir")
"""What is noted as text."""
JUDGED = {"every", "attacks_every"}
"""What is noted of how often the model is judged."""


def resume(
    folder: Path | str,
    experiment: Experiment | None = None,
    *,
    problem: Problem | None = None,
    callbacks: Sequence[Callback] = (),
    data_dir: Path | str | None = None,
    force: bool = False,
    anew: bool = False,
    group: Path | str | None = None,
    at_end: AtEnd | None = None,
) -> Result:
    """Go on with the run in a folder.

    experiment: what it must be, if given; only how often there are checkpoints, on how many cores, and its trackers may
    be others.
    problem: your own, for a run that was on one. callbacks: called with every row that is still to come. data_dir:
    where data files are, by default where they were. force: go on under other versions, too. anew: begin the experiment
    again where there is no run, or one that cannot go on. group, at_end: see `fedsim.run`.
    InputError: there is no run here, it has ended, it is another experiment, or it cannot go on, and why.
    """
    path, together = path_of(folder, "run"), None if group is None else path_of(group, "group")
    if not anew:
        return _resume(path, experiment, problem, callbacks, data_dir, force, together, at_end)
    if experiment is None:
        raise InputError("anew", anew, "name the experiment that is to begin")
    if (path / CONFIG).is_file():
        try:
            return _resume(path, experiment, problem, callbacks, data_dir, force, together, at_end)
        except UnusableError:
            pass
    return execute(
        experiment, problem=problem, callbacks=callbacks, out=path, force=True, group=together, at_end=at_end
    )


def recorded(folder: Path, data_dir: Path | str | None = None) -> Experiment:
    """The experiment that is run in a folder; of a run on a problem of your own, everything else."""
    config = open_run(folder).config()
    resolved = _noted(folder, config, "resolved")
    tables = {name: table for name, table in config.items() if (name, table) != ("problem", OWN)}
    found = data_dir or resolved.get("data_dir") or None
    return checked(data_dir=found, **tables)


def hold_acceptable(folder: Path, *, force: bool = False, more: bool = False) -> None:
    """Refuse a folder whose run cannot go on, before anything that its config.toml names is loaded. InputError.

    more: as it has ended, it can only have more rounds.
    """
    with RunFolder.reopen(folder) as opened:
        _accept(opened, force=force, more=more)


def hold_same(folder: Path, experiment: Experiment, data_dir: Path | str | None = None) -> None:
    """Refuse another experiment than the one that is run in a folder: an InputError names what differs first."""
    _hold_same(folder, describe(recorded(folder, data_dir), None), describe(experiment, None))


def _resume(
    path: Path,
    experiment: Experiment | None,
    problem: Problem | None,
    callbacks: Sequence[Callback],
    data_dir: Path | str | None,
    force: bool,
    group: Path | None,
    at_end: AtEnd | None,
) -> Result:
    with RunFolder.reopen(path) as folder, recording(folder):
        accepted = _accept(folder, force=force, more=experiment is not None)
        config, found = accepted.config, accepted.checkpoint
        if (config.get("problem") == OWN) != (problem is not None):
            wanted = (
                "it has one already; leave yours out" if problem else "pass yours: fedsim.resume(folder, problem=...)"
            )
            raise InputError("problem", str(path), f"of this run: {wanted}")
        made = recorded(path, data_dir)
        if experiment is not None:
            if problem is not None:
                check_own(experiment, problem)
            rounds = more_rounds(made, experiment) if accepted.ended else None
            if rounds is not None:
                hold_extensible(_pinned(made, accepted.resolved), rounds)
                made = replace(made, rounds=rounds)
                config = config | {"rounds": rounds}
            _hold_same(path, describe(made, problem), describe(experiment, problem))
            if accepted.ended and rounds is None:
                raise InputError("resume", str(path), f"this run has {accepted.ended}; nothing is left to do")
            made = replace(made, checkpoint=experiment.checkpoint, track=experiment.track)
            made = replace(made, data_dir=experiment.data_dir or made.data_dir)
            made = replace(made, engine=replace(made.engine, cores=experiment.engine.cores))
        check_trackers(made, saved=True)
        if (why := unresumable(made)) is not None:
            raise UnusableError("resume", str(path), f"such a run cannot go on: {why}")
        pinned = _pinned(made, accepted.resolved)
        own = problem is not None
        with at_most(pinned.engine.cores):
            if problem is None:
                problem = build_problem(pinned)
            else:
                check_own(pinned, problem)
            simulation = build_simulation(pinned, problem, own=own)
            _hold_alike(path, accepted, simulation, problem)
            if found is None:
                folder.rewind()
            else:
                with _of_this_run(path):
                    simulation.restore(found.snapshot)
                if accepted.ended:
                    begin_again(folder, found, config)
                folder.rewind(found.position, found.rows, accepted.damaged)
            return drive(made, problem, simulation, config, callbacks, folder, keeps=True, group=group, at_end=at_end)


@dataclass(frozen=True)
class _Accepted:
    """What is in a folder whose run can go on.

    damaged: checkpoints after the one that it goes on from. ended: how the run has ended that is to have more rounds.
    """

    ended: str | None
    config: dict[str, Any]
    resolved: dict[str, Any]
    data: dict[str, Any]
    checkpoint: Checkpoint | None
    damaged: list[Path]


def _accept(folder: RunFolder, *, force: bool, more: bool = False) -> _Accepted:
    """Read all that a run goes on from, and hold it to what the run has written, before any plug-in is loaded.

    Nothing is executed and nothing changed. more: a run that has finished may be to have more rounds. InputError: it
    cannot go on, and why.
    """
    path, config = folder.path, folder.config()
    resolved, versions_before, arithmetic_before, data = (_noted(path, config, name) for name in NOTES)
    ended = folder.ended()
    if ended is not None and not more:
        folder.tidy()
        raise InputError("resume", str(path), f"this run has {ended}; nothing is left to do")
    if "nodes" in resolved:
        raise UnusableError("resume", str(path), "this run is one on Flower's nodes; start it there again")
    found, damaged = newest(folder) if ended is None else (end_of(folder), [])
    if found is not None:
        _hold_unchanged(path, config, found.config)
        _hold_rows(folder, found.rows)
    if not force:
        deciding = (*DECIDING, "numba") if resolved.get("executor") == "fused" else DECIDING
        for table, before, now in (
            ("versions", versions_before, {name: version for name, version in versions().items() if name in deciding}),
            ("arithmetic", arithmetic_before, arithmetic()),
        ):
            _hold_unmoved(table, before, now)
    hold_pinned()
    return _Accepted(ended, config, resolved, data, found, damaged)


def _hold_rows(folder: RunFolder, number: int) -> None:
    """Refuse a metrics.jsonl whose first rows are not those of a run."""
    rows = folder.rows()[:number]
    for line, row in enumerate(rows, 1):
        absent = [name for name in ("round", "time", "wall", *TOTALS) if row.get(name) is None]
        if absent:
            raise InputError("metrics", str(folder.path / METRICS), f"line {line} has no {absent[0]}, which runs write")
    if len(rows) < number:
        raise InputError("metrics", str(folder.path / METRICS), f"{len(rows)} rows are left of {number}; begin again")


def _noted(path: Path, config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A table that the run itself has written into its config.toml."""
    found = config.get(name, {})
    if not isinstance(found, dict) or not all(isinstance(found.get(text, ""), str) for text in TEXTS):
        raise InputError(name, str(path / CONFIG), "is not as the run has written it; change it back")
    return found


def _hold_unchanged(path: Path, now: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    """Refuse a config.toml that is another than when the checkpoint was written, naming what differs first."""
    for option, wanted, found in differences(now, before):
        if not is_free(option) and option.partition(".")[0] not in NOTES:
            remedy = f"in {path / CONFIG} this was {found!r} so far; change it back, or run it in a new folder"
            raise InputError(option, wanted, remedy)


def _pinned(made: Experiment, resolved: Mapping[str, Any]) -> Experiment:
    """The experiment, executed as the run was begun."""
    options: Any = made.engine
    executor, device = (resolved.get(name, getattr(options, name)) for name in ("executor", "device"))
    engine = replace(options, executor=executor, device=device.partition(":")[0])
    noted = resolved.get("evaluation", {})
    if not isinstance(noted, dict) or not noted.keys() <= JUDGED:
        raise InputError("resolved.evaluation", str(noted), "is not as the run has written it; change it back")
    with naming("resolved.evaluation"):
        judged = replace(made.evaluation, **noted)
    return replace(made, engine=engine, evaluation=judged)


def _hold_same(path: Path, here: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Refuse another experiment than the one that is run here, naming what differs first."""
    for option, wanted, found in differences(given, here):
        if is_free(option):
            continue
        raise InputError(option, wanted, f"the run in {path} has {found!r}; leave this out, or run it in a new folder")


def is_free(option: str) -> bool:
    """Whether an option changes no result."""
    return option in FREE or option.partition(".")[0] in FREE


def differences(first: Any, second: Any, name: str = "") -> Iterable[tuple[str, Any, Any]]:
    """What differs in two values of TOML: the names, and both values."""
    if isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        first, second = (dict(enumerate(values)) for values in (first, second))
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        for key in {**first, **second}:
            inner = f"{name}.{key}" if name else str(key)
            yield from differences(first.get(key, "(nothing)"), second.get(key, "(nothing)"), inner)
    elif first != second:
        yield name, first, second


def _hold_unmoved(table: str, before: Mapping[str, Any], now: Mapping[str, str]) -> None:
    """Refuse to go on where other bits may be computed than when the run began. table: of config.toml."""
    for name, value in now.items():
        if before.get(name, value) != value:
            remedy = f"the run began with {before[name]}, and results could differ; go back to that, or pass --force"
            raise UnusableError(f"{table}.{name}", value, remedy)


def _hold_alike(path: Path, accepted: _Accepted, simulation: Simulation, problem: Problem) -> None:
    """Refuse to go on where work would be executed in another way, or is about another problem or other data."""
    resolved, found = accepted.resolved, accepted.checkpoint
    now = simulation.parts.engine.describe() | {"parameters": problem.dimension}
    for name, value in now.items():
        if resolved.get(name, value) != value:
            raise UnusableError(f"resolved.{name}", value, f"the run began with {resolved[name]}; go on as it began")
    if found is not None:
        with _of_this_run(path):
            clients = len(found.snapshot["engine"]["trace"].participation)
        if clients != problem.num_clients:
            raise InputError("problem", problem.num_clients, f"the run began with {clients} clients; give it the same")
    before, here = accepted.data.get("sha256"), problem.provenance().get("sha256")
    if before is not None and before != here:
        raise InputError("data.sha256", here, f"the run began with other data, {before}; go on with those")


@contextmanager
def _of_this_run(path: Path) -> Iterator[None]:
    """Say in one line what a checkpoint lacks, or has in another form than this run's: whoever wrote it."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        remedy = f"its checkpoint is none of such a run of this version ({named_line(error)}); begin again"
        raise UnusableError("resume", str(path), remedy) from error
