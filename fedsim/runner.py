"""Running an experiment: build its parts, go round the loop, and leave a run folder behind."""

from __future__ import annotations

import importlib.metadata
import math
import platform
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.aggregation import Aggregator, WeightedMean
from fedsim.checkpoint import Keeper, warn
from fedsim.configuration import Experiment
from fedsim.devices import Census, Fleet
from fedsim.engine.executor import Executor
from fedsim.engine.process import in_processes
from fedsim.engine.virtual import VirtualEngine
from fedsim.errors import DivergedError, FedsimError, InputError, StalledError, naming
from fedsim.exchange import Count
from fedsim.history import History
from fedsim.loop import Engine, Parts, Row, Simulation, hold_transformable
from fedsim.measures import is_measure, lower_is_better
from fedsim.problems.datasets import Dataset
from fedsim.problems.partition import Partition
from fedsim.problems.problem import Problem
from fedsim.problems.supervised import Supervised, choose_device
from fedsim.registry import DISTRIBUTION
from fedsim.runfolder import CURVES, ENDED, RunFolder, StorageError
from fedsim.streams import Streams
from fedsim.training import LocalTraining
from fedsim.transforms import Chain

TOTALS = (
    *("clients", "failed", "late", "crashed", "lost", "faults"),
    *("bytes_up", "bytes_down", "queries", "extra_queries"),
)
"""Columns of the rows that add up."""
VERSIONED = ("torch", "numpy", "scikit-learn", "flwr-datasets")


@dataclass(frozen=True)
class Round:
    """What a callback sees after every round: the row of metrics, and a copy of the global parameters [d]."""

    row: Row
    params: Tensor


Callback = Callable[[Round], None]
EngineMaker = Callable[[Problem, Aggregator], Engine]
"""Makes an engine for a problem, whose replies are combined by an aggregator."""


@dataclass(frozen=True)
class Result:
    """What a run leaves. status: finished, stopped (early), diverged, stalled or interrupted; reason: why.

    params: the final parameters, [d]. summary: final and best values. folder: the run's, or None. history: the rows.
    """

    params: Tensor
    problem: Problem
    status: str
    reason: str
    summary: dict[str, Any]
    history: History
    folder: Path | None

    def model(self) -> nn.Module:
        """The model with the final parameters, in evaluation mode. FedsimError: the problem has none."""
        if not isinstance(self.problem, Supervised):
            raise FedsimError("this problem has no model; its solution is Result.params")
        return self.problem.module(self.params)


def build_problem(experiment: Experiment) -> Problem:
    """The problem that the experiment describes."""
    try:
        problem: Problem = experiment.problem.build(experiment)
    except MemoryError as error:
        kind = experiment.resolved()["problem"]["kind"]
        remedy = f"does not fit in this machine's memory; make it smaller ({error})"
        raise InputError("problem.kind", kind, remedy) from error
    return problem


def build_executor(experiment: Experiment, problem: Problem, kind: Callable[..., Executor] = Executor) -> Executor:
    """The experiment's executor, for all clients of the problem. kind: what makes it."""
    options, at_once = experiment.engine, experiment.selection.of(problem.num_clients)
    return kind(
        problem,
        experiment.client,
        Streams(experiment.seed),
        choice=options.executor,
        transforms=experiment.transforms,
        memory=options.memory_mib * 2**20,
        state_memory=options.state_mib * 2**20,
        participants=None if experiment.rounds is None else (experiment.rounds + 1) * at_once,
    )


def build_simulation(
    experiment: Experiment, problem: Problem, engine: EngineMaker | None = None, *, own: bool = True
) -> Simulation:
    """The experiment as a simulation on this machine, or over the engine that `engine` makes.

    own: whether the problem may be another than the one that the experiment describes, so that processes which help
    have to be sent it.
    """
    _check(experiment, problem)
    aggregator = experiment.aggregation
    if engine is None:
        kind: Callable[..., Executor] = Executor
        if experiment.engine.executor == "process":
            kind = in_processes(experiment, problem if own else None)
        made: Engine = build_engine(experiment, problem, build_executor(experiment, problem, kind))
    else:
        made = engine(problem, aggregator)
        if experiment.faults.kinds and getattr(made, "faults", None) is None:
            kinds = ", ".join(experiment.faults.kinds)
            raise InputError("faults", kinds, f"{type(made).__name__} has no faults on demand; remove the table")
    simulation = Simulation(
        Parts(
            problem=problem,
            strategy=experiment.strategy,
            selector=experiment.selection,
            engine=made,
            streams=Streams(experiment.seed),
            rounds=experiment.rounds,
            duration=experiment.duration,
            evaluation=experiment.evaluation,
            stopping=experiment.stopping,
            order_transforms=Chain(experiment.order_transforms, "order_transforms"),
            steady=experiment.devices.steady and not experiment.faults.kinds,
        )
    )
    orders, window = experiment.strategy.ask(simulation.state, torch.arange(problem.num_clients))
    hold_transformable(simulation.parts.order_transforms, orders, experiment.strategy)
    if not getattr(experiment.strategy, "aggregates", True) and not isinstance(aggregator, WeightedMean):
        kind = experiment.resolved()["aggregation"]["kind"]
        raise InputError("aggregation.kind", kind, "this strategy averages nothing; leave the table out")
    if isinstance(window, Count):
        aggregator.check(window.count)
    budget = None if experiment.stopping is None else experiment.stopping.queries
    if budget is not None and isinstance(made, VirtualEngine):
        least = made.executor.assign(orders).queries * experiment.selection.of(problem.num_clients)
        if least > budget:
            raise InputError("stopping.queries", budget, f"the clients of one round ask for {least} at least; raise it")
    return simulation


def build_engine(experiment: Experiment, problem: Problem, executor: Executor) -> VirtualEngine:
    """The experiment's engine in this process, with its devices and its faults."""
    with naming("faults"):
        faults = experiment.faults.start(problem.num_clients, Streams(experiment.seed))
    return VirtualEngine(executor, experiment.aggregation, build_fleet(experiment, problem), faults)


def build_fleet(experiment: Experiment, problem: Problem) -> Fleet:
    """The clients' devices, as the experiment describes them."""
    census = Census(problem.sizes, problem.labels())
    return experiment.devices.start(census, Streams(experiment.seed), experiment.data_dir)


def _check(experiment: Experiment, problem: Problem) -> None:
    """Refuse what does not fit the problem."""
    if not isinstance(problem, Supervised):
        _check_asking(experiment)
    experiment.selection.check(problem.num_clients)
    experiment.aggregation.check(experiment.selection.least(problem.num_clients))
    check = getattr(experiment.strategy, "check", None)
    if check is not None:
        at_once = experiment.selection.of(problem.num_clients)
        with naming("strategy"):
            check(at_once, problem.num_clients, experiment.devices.steady)
    stopping = experiment.stopping
    measured = problem.measures(experiment.evaluation.clients, experiment.evaluation.on)
    trial = experiment.evaluation.trial(Streams(experiment.seed))
    if trial is not None:
        with naming("evaluation"):
            measured += problem.attacked_measures(trial)
    if isinstance(problem, Supervised):
        _check_training(experiment, problem)
    if stopping is not None and stopping.watches and stopping.metric not in measured:
        raise InputError("stopping.metric", stopping.metric, f"name one of: {', '.join(measured)}")


def _check_training(experiment: Experiment, problem: Supervised) -> None:
    """Refuse a curriculum or a defence that does not go with the problem."""
    if not isinstance(experiment.client, LocalTraining):
        return
    defence, curriculum = experiment.client.defence, experiment.client.curriculum
    if curriculum is not None and curriculum.measure == "error" and not problem.has_accuracy:
        raise InputError("client.curriculum.measure", "error", "a regression has no predictions; take loss")
    if defence is None:
        return
    if defence.of_classes and not problem.has_accuracy:
        given = experiment.client.adversarial
        kind = given if isinstance(given, str) else given["kind"]
        raise InputError("client.adversarial.kind", kind, "its loss is about classes; take standard")
    with naming("client.adversarial.attack"):
        if getattr(defence.attacked_by, "only_judges", False):
            raise InputError("kind", defence.attacked_by.label, "it only judges models; train against pgd")
        problem.check_attack(defence.attacked_by, problem.x)


def _check_asking(experiment: Experiment) -> None:
    """Refuse clients that want more of a black box than values."""
    client, table = experiment.client, experiment.tables["client"]
    kind = table if isinstance(table, str) else table["kind"]
    if not getattr(client, "black_box", False):
        estimator = getattr(client, "estimator", None)
        if estimator is None:
            raise InputError("client.kind", kind, "it needs gradients, and this problem only tells values; use fedzo")
        inner = estimator if isinstance(estimator, str) else estimator["kind"]
        raise InputError(
            "client.estimator.kind", inner, "it needs derivatives, and this problem only tells values; use differences"
        )
    if getattr(client, "batch_size", "full") != "full":
        raise InputError("client.batch_size", client.batch_size, "a black box has no examples to sample; remove it")


def run(
    experiment: Experiment,
    *,
    problem: Problem | None = None,
    engine: EngineMaker | None = None,
    callbacks: Sequence[Callback] = (),
    out: Path | str | None = None,
    force: bool = False,
    save: bool = True,
) -> Result:
    """Run an experiment.

    problem: your own (see `supervised`) instead of the one that the experiment describes. engine: makes an
    engine to run on instead of this process's. callbacks: called after every round. out: the run folder, by
    default the next `runs/<name>-<n>`; force: replace an earlier run there. save: False writes nothing. A run
    that diverges or is interrupted keeps what it logged; `Result.status` says so. A run that was interrupted or killed
    goes on with `fedsim.resume`; on another engine there are no checkpoints, for what is under way on other machines
    cannot be written down, and seeds that run as one stack would each take their time from all.
    """
    place = None if out is None else Path(out)
    if save:
        RunFolder.check(place, experiment.name, force=force)
    described, own = describe(experiment, problem), problem is not None
    if problem is None:
        problem = build_problem(experiment)
    simulation = build_simulation(experiment, problem, engine, own=own)
    if not save:
        return drive(experiment, simulation, callbacks)
    with RunFolder.create(place, experiment.name, force=force) as folder, recording(folder):
        folder.write_config(described | _notes(experiment, simulation, problem))
        folder.begin()
        return drive(experiment, simulation, callbacks, folder, keeps=engine is None)


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
    except StorageError as error:
        if len(folder.rows()) or folder.has_checkpoint:
            raise
        raise InputError("out", str(folder.path), str(error)) from error
    except Exception:
        folder.write_traceback(traceback.format_exc())
        raise


def drive(
    experiment: Experiment,
    simulation: Simulation,
    callbacks: Sequence[Callback] = (),
    folder: RunFolder | None = None,
    *,
    keeps: bool = False,
) -> Result:
    """Go through a simulation from where it is, write into the folder what it comes to, and return that.

    keeps: write checkpoints, if the strategy can be resumed.
    """
    problem = simulation.parts.problem
    # A number that was not finite is null in the file; rows of an earlier part of the run are read from there.
    earlier = [] if folder is None else folder.rows()
    rows: list[Row] = [{name: math.nan if value is None else value for name, value in row.items()} for row in earlier]
    keeper = None
    if folder is not None and keeps and unresumable(experiment) is None:
        keeper = simulation.between = Keeper(folder, simulation, experiment.checkpoint)
    status, reason = "finished", ""
    try:
        if folder is not None and simulation.round == 0:
            with _only_a_picture():
                problem.illustrate(folder.place, None)
        for row in simulation:
            rows.append(row)
            if folder is not None:
                folder.append(row)
            for callback in callbacks:
                callback(Round(row, simulation.params.clone()))
        if simulation.stopped is not None:
            status, reason = "stopped", simulation.stopped
    except DivergedError as error:
        status, reason = "diverged", str(error)
    except StalledError as error:
        status, reason = "stalled", str(error)
    except KeyboardInterrupt:
        status, reason = "interrupted", f"interrupted after round {simulation.round}"
        if keeper is not None:
            keeper.last()
    ended = simulation.parts.engine
    trace = ended.trace.summary((problem.sizes.double() / problem.sizes.sum()).tolist(), ended.now)
    summary = summarise(rows, status, reason) | {name: trace[name] for name in ("lost_weight", "faults", "skipped")}
    params = simulation.state.params
    if folder is not None:
        folder.write_trace(trace)
        _finish(experiment, problem, params, summary, rows, folder)
    history = History(rows) if folder is None else folder.history
    return Result(params, problem, status, reason, summary, history, None if folder is None else folder.path)


def unresumable(experiment: Experiment) -> str | None:
    """Why a run could not go on from a checkpoint, as its strategy says; None: it could."""
    return getattr(experiment.strategy, "unresumable", None)


@contextmanager
def _only_a_picture() -> Iterator[None]:
    """Within this block whatever fails is said and no more: what a run has come to does not wait for a picture."""
    try:
        yield
    except Exception as error:
        warn(f"a picture is missing: {type(error).__name__}: {error}")


def summarise(rows: Sequence[Row], status: str, reason: str) -> dict[str, Any]:
    """Totals, and of each measure the last and the best value with its round."""
    last = rows[-1] if rows else {}
    summary: dict[str, Any] = {"status": status, "reason": reason, "rounds": last.get("round", 0)}
    summary |= {name: last.get(name, 0.0) for name in ("time", "wall")}
    summary |= {f"total_{name}": sum(row[name] for row in rows) for name in TOTALS}
    for name in sorted({name for row in rows for name in row if is_measure(name)}):
        seen = [(row[name], row["round"]) for row in rows if name in row]
        best = min(seen) if lower_is_better(name) else max(seen, key=lambda pair: (pair[0], -pair[1]))
        summary |= {name: seen[-1][0], f"best_{name}": best[0], f"best_{name}_round": best[1]}
    return summary


def supervised(
    x: Any,
    y: Any,
    *,
    model: nn.Module,
    clients: Iterable[Any],
    test: tuple[Any, Any] | None = None,
    loss: str | None = None,
    device: str = "auto",
    dtype: torch.dtype = torch.float32,
) -> Supervised:
    """A problem from arrays of your own.

    x: inputs [n, ...], floats or integer tokens. y: class numbers [n], or real targets. model: any module whose
    outputs are
    [B, classes] (or [B, 1] for real targets); its parameters are where training starts. clients: for each client the
    indices of its examples. test: inputs and targets to judge the global model on; without it the training examples
    are.
    """
    inputs, targets = _array("x", x), _array("y", y)
    held = (inputs, targets) if test is None else (_array("test", test[0]), _array("test", test[1]))
    classes = 0
    if loss != "squared_error" and np.issubdtype(targets.dtype, np.integer):
        classes = 1 + max(int(part.max()) for part in (targets, held[1]) if part.size)
    else:
        targets, held = targets.astype(np.float64), (held[0], held[1].astype(np.float64))
    dataset = Dataset("own", inputs, targets, *held, num_classes=classes)
    partition = Partition.from_lists(list(clients))
    partition.check(dataset)
    return Supervised(
        dataset,
        partition,
        model,
        loss=loss,
        device=choose_device(device),
        dtype=dtype,
    )


def _array(option: str, values: Any) -> np.ndarray[Any, Any]:
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if np.issubdtype(array.dtype, np.floating):
        return array
    if not np.issubdtype(array.dtype, np.integer):
        raise InputError(option, str(array.dtype), "give numbers: floats, class numbers or tokens")
    return array.astype(np.int64)


def versions() -> dict[str, str]:
    """The versions of what computes, as config.toml notes them: ours under the name that is imported."""
    return {"fedsim": importlib.metadata.version(DISTRIBUTION), **{n: importlib.metadata.version(n) for n in VERSIONED}}


def _notes(experiment: Experiment, simulation: Simulation, problem: Problem) -> dict[str, Any]:
    """What was decided when the run began, for its config.toml."""
    return {
        "resolved": simulation.parts.engine.describe()
        | {"parameters": problem.dimension, "data_dir": str(experiment.data_dir or "")},
        "versions": {"python": platform.python_version(), **versions()},
    }


def _finish(
    experiment: Experiment,
    problem: Problem,
    params: Tensor,
    summary: dict[str, Any],
    rows: Sequence[Row],
    folder: RunFolder,
) -> None:
    # One entry: safetensors writes several in no fixed order.
    folder.write_model(problem.tensors(params), {"run": f"{experiment.name}, seed {experiment.seed}"})
    folder.sync()  # before it is said that the run has ended, and what it could go on from is removed
    folder.write_summary(summary)
    if summary["status"] in ENDED:
        try:
            folder.clear_checkpoints()
        except StorageError as error:
            warn(str(error))
    with _only_a_picture():
        from fedsim import plots

        plots.curves(rows, folder.place(CURVES))
    with _only_a_picture():
        problem.illustrate(folder.place, params)
