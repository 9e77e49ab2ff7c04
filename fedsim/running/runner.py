"""Running an experiment: build its parts, go round the loop, and leave a run folder behind."""

from __future__ import annotations

import importlib.metadata
import platform
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.configuration.tables import Experiment, load
from fedsim.configuration.tables import experiment as checked
from fedsim.core.blame import is_theirs
from fedsim.core.errors import DivergedError, FedsimError, InputError, StalledError, one_line, warn
from fedsim.core.files import GoneError, StorageError, path_of, write_whole
from fedsim.core.machine import processor
from fedsim.core.measures import NOTHING, Asked, noted
from fedsim.core.memory import no_room
from fedsim.core.plugins import DISTRIBUTION
from fedsim.core.terminal import note
from fedsim.parallel.arithmetic import arithmetic, hold_pinned
from fedsim.parallel.cores import at_most
from fedsim.plots import curves, personal
from fedsim.plots.personal import PERSONAL
from fedsim.problems.base import Problem
from fedsim.problems.supervised import Supervised
from fedsim.running.best import Best
from fedsim.running.build import EngineMaker, build_problem, build_simulation
from fedsim.running.checkpoint import Keeper
from fedsim.running.checks import check_own
from fedsim.running.clients import columns_of, write_clients
from fedsim.running.endings import ENDED
from fedsim.running.folder import RunFolder
from fedsim.running.history import History, Row, finite_or_nan
from fedsim.running.personal import Newcomers, OwnModels, own_models
from fedsim.running.result import Callback, Result, Round
from fedsim.running.simulation import Simulation
from fedsim.running.stored import CLIENTS, CURVES, NEWCOMERS, TRACEBACK
from fedsim.running.summary import summarise
from fedsim.running.tracking import Telling, check_trackers, telling

AtEnd = Callable[[Path], object]
"""What is called with a run folder when all is there that a run leaves."""
VERSIONED = ("torch", "numpy", "scikit-learn", "pandas", "pillow")


def run(
    experiment: Experiment | Path | str | None = None,
    *,
    problem: Any = None,
    callbacks: Sequence[Callback] = (),
    out: Path | str | None = None,
    force: bool = False,
    save: bool = True,
    data_dir: Path | str | None = None,
    group: Path | str | None = None,
    at_end: AtEnd | None = None,
    **parts: Any,
) -> Result:
    """Run an experiment: one that is made, the path of an experiment file, or its parts by name.

    parts: as for `fedsim.experiment`, objects or tables: `run(strategy=FedBuff(size=5), client=Sgd(epochs=1),
    problem=problem, rounds=50)`. problem: your own (of `fedsim.supervised` or `fedsim.black_box`), instead of the one
    that the experiment describes; or, among parts, a table or an object that describes one. callbacks: called with
    every row: of each round, or, where clients work on between rounds (asynchronous strategies) or time says when the
    model is judged, of each evaluation; one that returns True ends the run. out: the run folder, by default the next
    `runs/<name>-<n>`; force: replace an earlier run there. save: False writes nothing. data_dir: where data files are
    looked for. group: a folder of several runs, `out` among them, which trackers show as runs that belong together.
    at_end: called with the run folder when all else is there, before trackers are told of its files.

    A run that diverges or is interrupted keeps what it logged; `Result.status` says so. A run that was interrupted or
    killed goes on with `fedsim.resume`. InputError: an option cannot be used.
    """
    own = problem if isinstance(problem, Problem) else None
    if problem is not None and own is None:
        parts["problem"] = problem
    made = _experiment(experiment, parts, data_dir, own)
    if not save and (out is not None or force):
        option, value = ("out", str(out)) if out is not None else ("force", force)
        raise InputError(option, value, "save = False says that nothing is written; leave one of the two out")
    return execute(made, problem=own, callbacks=callbacks, out=out, force=force, save=save, group=group, at_end=at_end)


def execute(
    experiment: Experiment,
    *,
    problem: Problem | None = None,
    engine: EngineMaker | None = None,
    callbacks: Sequence[Callback] = (),
    out: Path | str | None = None,
    force: bool = False,
    save: bool = True,
    group: Path | str | None = None,
    at_end: AtEnd | None = None,
) -> Result:
    """Run an experiment on this process's engine, or on the one that `engine` makes; the rest as for `run`.

    On another engine there are no checkpoints, for what is under way on other machines cannot be written down, and
    seeds that run as one stack would each take their time from all.
    """
    hold_pinned()
    place = None if out is None else path_of(out, "out")
    together = None if group is None else path_of(group, "group")
    check_trackers(experiment, saved=save)
    if save:
        RunFolder.check(place, experiment.name, force=force)
    described, own = describe(experiment, problem), problem is not None
    _hold_callable(callbacks)
    if problem is not None:
        check_own(experiment, problem)
    with at_most(experiment.engine.cores):
        with _telling(place, experiment.name, force) if save else nullcontext():
            if problem is None:
                problem = build_problem(experiment)
            simulation = build_simulation(experiment, problem, engine, own=own)
        config = described | _notes(experiment, simulation, problem)
        if (line := simulation.pace.line(experiment.evaluation)) is not None:
            note(line)
        if not save:
            if experiment.evaluation.keep_best is not None:
                remedy = "with save=False no model is kept; leave one of the two out"
                raise InputError("evaluation.keep_best", experiment.evaluation.keep_best, remedy)
            return drive(experiment, problem, simulation, config, callbacks, group=together)
        with RunFolder.create(place, experiment.name, force=force) as folder, recording(folder):
            data = problem.provenance()
            config |= {"data": data} if data else {}
            folder.write_config(config)
            folder.begin()
            keeps = engine is None
            return drive(
                experiment, problem, simulation, config, callbacks, folder, keeps=keeps, group=together, at_end=at_end
            )


def _hold_callable(callbacks: Any) -> None:
    """Refuse callbacks that are none before a run calls them."""
    if not isinstance(callbacks, Sequence) or not all(map(callable, callbacks)):
        shown = getattr(callbacks, "__name__", type(callbacks).__name__)
        raise InputError("callbacks", shown, "give a list of functions: callbacks=[watch]")


def _experiment(given: Any, parts: dict[str, Any], data_dir: Path | str | None, own: Problem | None) -> Experiment:
    """The experiment that somebody wants to run. own: their problem, if they have handed one over."""
    if given is None and (parts or own is not None):
        return checked(data_dir=data_dir, **parts)
    if not isinstance(given, Experiment | Path | str):
        shown = "(nothing)" if given is None else type(given).__name__
        remedy = "name a file, hand over an experiment, or its parts by name: run(client=..., rounds=50)"
        raise InputError("experiment", shown, remedy)
    for name, value in parts.items():
        remedy = "the experiment says this; change it there: fedsim.load(path, overrides=...), fedsim.experiment(...)"
        raise InputError(name, value if isinstance(value, str | int | float) else type(value).__name__, remedy)
    if not isinstance(given, Experiment):
        return load(given, data_dir=data_dir)
    return given if data_dir is None else replace(given, data_dir=path_of(data_dir, "data_dir"))


def describe(experiment: Experiment, problem: Problem | None) -> dict[str, Any]:
    """The experiment's tables, as its run folder has them. problem: your own, if it runs on one."""
    described = experiment.resolved()
    if problem is not None:  # what the experiment says of data, model and device has nothing to do with this run
        described.pop("partition", None)
        described["problem"] = {"kind": "own"}
        described["engine"] |= {"device": problem.device.type, "precision": str(problem.dtype).removeprefix("torch.")}
    return described


@contextmanager
def recording(folder: RunFolder) -> Iterator[None]:
    """Leave in the folder the traceback of what fails in this block; that nothing can be written at all is an input."""
    try:
        yield
    except InputError:
        raise
    except GoneError:
        raise
    except StorageError as error:
        if len(folder.rows()) or folder.has_checkpoint:
            raise
        raise InputError("out", str(folder.path), str(error)) from error
    except (Exception, SystemExit) as error:
        folder.write_traceback(traceback.format_exc())
        error.add_note(f"the traceback is in {folder.path / TRACEBACK}")
        raise


@contextmanager
def _telling(place: Path | None, name: str, force: bool) -> Iterator[None]:
    """Leave a folder with the traceback where code that is not ours fails in this block, before a run has begun."""
    try:
        yield
    except FedsimError:
        raise
    except (Exception, SystemExit) as error:
        if is_theirs(error):
            with RunFolder.create(place, name, force=force) as folder:
                write_whole(folder.path / TRACEBACK, traceback.format_exc().encode())
            error.add_note(f"the traceback is in {folder.path / TRACEBACK}")
        raise


def drive(
    experiment: Experiment,
    problem: Problem,
    simulation: Simulation,
    config: Mapping[str, Any],
    callbacks: Sequence[Callback] = (),
    folder: RunFolder | None = None,
    *,
    keeps: bool = False,
    group: Path | None = None,
    at_end: AtEnd | None = None,
) -> Result:
    """Go through a simulation from where it is, write into the folder what it comes to, and return that.

    config: the experiment's tables and notes. keeps: write checkpoints, if the strategy can be resumed. group,
    at_end: see `run`.
    """
    rows = finite_or_nan([] if folder is None else folder.rows())  # those of an earlier part of the run
    with telling(experiment, config, tuple(rows), folder, group) as told:
        return _drive(
            experiment, problem, simulation, config, callbacks, folder, rows, told, keeps=keeps, at_end=at_end
        )


def _drive(
    experiment: Experiment,
    problem: Problem,
    simulation: Simulation,
    config: Mapping[str, Any],
    callbacks: Sequence[Callback],
    folder: RunFolder | None,
    rows: list[Row],
    told: Telling,
    *,
    keeps: bool,
    at_end: AtEnd | None,
) -> Result:
    """See `drive`. rows: those of an earlier part of the run, to which the others are added. told: the trackers."""
    keeper = None
    if folder is not None and keeps and unresumable(experiment) is None:
        keeper = simulation.between = Keeper(folder, simulation, experiment.checkpoint)
    keeps_best, asked = experiment.evaluation.keep_best, experiment.evaluation.asked
    best = None if folder is None or keeps_best is None else Best(keeps_best, asked, problem, folder, rows)
    status, reason = "finished", ""
    try:
        for row in simulation:
            rows.append(row)
            if folder is not None:
                folder.append(row)
            told.row(row)
            if best is not None:
                best(row, simulation.params)
            answers = [callback(Round(row, simulation.params.clone())) for callback in callbacks]
            ending = [
                callback
                for callback, answer in zip(callbacks, answers, strict=True)
                if isinstance(answer, bool | np.bool_) and answer
            ]
            if ending:
                status, reason = "stopped", str(getattr(ending[0], "reason", "a callback has ended it"))
                break
        else:
            if simulation.stopped is not None:
                status, reason = "stopped", simulation.stopped
            elif simulation.vain is not None:
                status, reason = simulation.vain
    except DivergedError as error:
        status, reason = "diverged", str(error)
    except StalledError as error:
        status, reason = "stalled", str(error)
    except (MemoryError, RuntimeError) as error:
        if not no_room(error):
            raise
        remedy = "take a smaller model, client.batch_size or engine.memory_mib"
        raise FedsimError(
            f"no memory is left in round {simulation.round + 1}; {remedy} ({one_line(error, 120)})"
        ) from error
    except KeyboardInterrupt:
        status, reason = "interrupted", f"interrupted after round {simulation.round}"
        if keeper is not None:
            keeper.last()
    trace, summary = outcome(simulation, rows, status, reason)
    if problem.names is not None:
        trace["clients"] = list(problem.names)
    params = simulation.state.params
    owned = own = newcomers = None
    parts, clients = simulation.parts, simulation.parts.whose.clients(problem, experiment.evaluation)
    if ENDED.get(status) and isinstance(problem, Supervised):
        if parts.whose.own:
            owned = own_models(parts.engine, problem, parts.strategy, simulation.state, parts.tuning)
            owned.executor.close()  # nobody takes part any more, and a result may be kept for long
        if parts.whose.newcomers:
            newcomers = Newcomers.of(problem, parts.strategy, simulation.state, owned)
        if owned is not None:
            everybodys, participation = params if parts.whose.everybodys else None, parts.engine.trace.participation
            own = OwnModels(problem, owned, everybodys, participation, experiment.evaluation, newcomers)
    if folder is not None:
        folder.write_trace(trace)
        if keeper is not None and status == "finished" and simulation.round == experiment.rounds:
            keeper.end()
        # One entry: safetensors writes several in no fixed order.
        run = {"run": f"{experiment.name}, seed {experiment.seed}"}
        folder.write_model(problem.tensors(params), run)
        if own is not None and (tensors := own.tensors()):
            folder.write_own(tensors, run)
        pictures: list[Callable[[], object]] = [partial(problem.illustrate, folder.place, params)]
        if ENDED.get(status) and clients:
            with not_needed(CLIENTS):
                metrics, on = experiment.evaluation.measures, experiment.evaluation.on
                judged = partial(problem.client_measures, params, metrics, on) if own is None else own.client_measures
                if measured := judged():
                    columns = columns_of(measured, problem.names)
                    write_clients(columns, folder)
                    if own is not None:
                        pictures.append(lambda: personal(columns, folder.place(PERSONAL)))
        if newcomers is not None:
            with not_needed(NEWCOMERS):
                measured = newcomers.each(experiment.evaluation)
                write_clients(columns_of(measured, newcomers.names, problem.num_clients), folder, NEWCOMERS)
        finish(folder, rows, summary, asked, pictures)
        if at_end is not None:
            at_end(folder.path)
    told.end(status, reason, summary)
    history = History(rows) if folder is None else folder.history
    tables = {name: table for name, table in config.items() if name != "resolved"}
    place = None if folder is None else folder.path
    return Result(params, problem, status, reason, summary, history, place, tables, trace, own, asked)


def outcome(
    simulation: Simulation, rows: Sequence[Row], status: str, reason: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What has happened in a run, as trace.json has it, and what it came to, as summary.json has it."""
    engine, sizes = simulation.parts.engine, simulation.parts.problem.sizes.double()
    trace = engine.trace.summary((sizes / sizes.sum()).tolist(), engine.now)
    counted = ("lost_weight", "faults", "skipped", "failures", "strays")
    told = {name: trace[name] for name in counted if name in trace}
    asked = simulation.parts.evaluation.asked
    return trace, summarise(rows, status, reason, asked) | simulation.counts | told | simulation.privacy


def finish(
    folder: RunFolder,
    rows: Sequence[Row],
    summary: Mapping[str, Any],
    asked: Asked = NOTHING,
    pictures: Sequence[Callable[[], object]] = (),
) -> None:
    """Draw the pictures of a run, and write the summary last: what has one is whole, and what has none goes on.

    asked: which way measures improve that were asked for. pictures: draw further ones.
    """
    folder.sync()  # pictures come after all that counts: to load what draws them takes longer than many a round
    for draw in (lambda: curves(rows, folder.place(CURVES), asked), *pictures):
        with not_needed("a picture"):
            draw()
    folder.write_summary(summary)
    if summary["status"] in ENDED:
        try:
            folder.tidy()
        except StorageError as error:
            warn(str(error))


def unresumable(experiment: Experiment) -> str | None:
    """Why a run could not go on from a checkpoint, as its strategy says; None: it could."""
    return experiment.strategy.unresumable


@contextmanager
def not_needed(what: str) -> Iterator[None]:
    """Within this block whatever fails is said and no more: what a run has come to does not wait for a picture."""
    try:
        yield
    except Exception as error:
        warn(f"{what} is missing: {type(error).__name__}: {error}")


def versions() -> dict[str, str]:
    """The versions of what computes, as config.toml notes them: ours under the name that is imported."""
    compiler = ("numba",) if find_spec("numba") is not None else ()
    found = {name: importlib.metadata.version(name) for name in (*VERSIONED, *compiler)}
    return {"fedsim": importlib.metadata.version(DISTRIBUTION), **found}


def _notes(experiment: Experiment, simulation: Simulation, problem: Problem) -> dict[str, Any]:
    """What was decided when the run began, for its config.toml."""
    return {
        "resolved": simulation.parts.engine.describe()
        | ({"evaluation": dict(judged)} if (judged := simulation.pace.notes) else {})
        | ({"metrics": noted(asked)} if (asked := experiment.evaluation.asked) else {})
        | ({} if (guard := simulation.parts.privacy) is None else {"privacy": guard.notes})
        | {"parameters": problem.dimension, "data_dir": _absolute(experiment.data_dir), "processor": processor()},
        "versions": {"python": platform.python_version(), **versions()},
        "arithmetic": arithmetic(),
    }


def _absolute(folder: Path | None) -> str:
    """A folder as it is found from anywhere; empty for none."""
    return "" if folder is None else str(folder.absolute())
