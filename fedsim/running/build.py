"""From an experiment's tables to the objects that run it: problem, executor, engine and simulation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedsim.client.curriculum import Expert
from fedsim.client.divided import Divided
from fedsim.client.training import LocalTraining
from fedsim.compression.ef14 import EF14
from fedsim.configuration.tables import Experiment, experiment, hold_findable
from fedsim.core.data_files import DataFolder
from fedsim.core.errors import InputError, naming, one_line, warn
from fedsim.core.memory import no_room
from fedsim.core.plugins import kind_of
from fedsim.core.streams import Streams
from fedsim.devices import Census, Fleet
from fedsim.engine.base import Engine
from fedsim.engine.client import Client
from fedsim.engine.executor import Executor
from fedsim.engine.process import ProcessExecutor
from fedsim.engine.virtual import VirtualEngine
from fedsim.exchange.aggregation import Aggregator, WeightedMean
from fedsim.exchange.messages import Size
from fedsim.exchange.transforms import Chain
from fedsim.exchange.windows import First
from fedsim.nets.fused import evaluates
from fedsim.nets.optimizers import Optimizer
from fedsim.parallel.arithmetic import settle
from fedsim.parallel.cores import at_most, cores
from fedsim.parallel.workers import WorkerError, Workers, take_cores
from fedsim.pretrained.expert import expert_losses
from fedsim.problems.base import Problem, Setting, choose_device
from fedsim.problems.supervised import Supervised
from fedsim.running.bench import bench_of
from fedsim.running.checks import check
from fedsim.running.pace import pace
from fedsim.running.personal import Whose, tuning_on
from fedsim.running.private import check_window, guard_of
from fedsim.running.private_steps import noisy_steps
from fedsim.running.promises import asked, at_once, begun
from fedsim.running.secure import hold_window, sealing, secured
from fedsim.running.setup import Setup
from fedsim.running.simulation import Simulation, hold_transformable
from fedsim.server.strategy import ClientRate, ServerStep
from fedsim.zeroth_order.search import LocalSearch


def in_processes(experiment: Experiment, problem: Problem | None) -> Callable[..., ProcessExecutor]:
    """What makes the executor of an experiment from the arguments of an `Executor`.

    problem: your own, which is sent to the processes; None: the one that the experiment describes, which they build.
    InputError: it cannot be sent, or the class of a plug-in is one that processes do not find.
    """
    with at_most(experiment.engine.cores):
        count, tables = experiment.engine.workers or cores(), experiment.resolved()
    hold_findable(tables, "move it to a file's top, or take another engine.executor")
    try:
        workers = Workers(count, _executor, tables, experiment.data_dir, problem)
    except WorkerError as error:
        remedy = f"cannot be sent to processes; take another engine.executor ({error.reason})"
        raise InputError("problem", type(problem).__name__, remedy) from error
    return partial(ProcessExecutor, workers=workers)


def _executor(tables: Mapping[str, Any], data_dir: Path | None, problem: Problem | None) -> Executor:
    """What a process has: an executor of the experiment's clients."""
    take_cores(1)
    made = experiment(data_dir=data_dir, **tables)
    return build_executor(made, build_problem(made) if problem is None else problem)


EngineMaker = Callable[[Problem, Aggregator], Engine]
"""Makes an engine for a problem, whose replies are combined by an aggregator."""


def setting_of(experiment: Experiment) -> Setting:
    """What the experiment's problem is built in."""
    engine, folder = experiment.engine, DataFolder(experiment.data_dir)
    dtype: torch.dtype = getattr(torch, engine.precision)
    return Setting(experiment.seed, experiment.partition, choose_device(engine.device), dtype, folder)


def build_problem(experiment: Experiment) -> Problem:
    """The problem that the experiment describes."""
    try:
        problem: Problem = experiment.problem.build(setting_of(experiment))
    except (MemoryError, RuntimeError) as error:
        if not no_room(error):
            raise
        kind = kind_of("problems", experiment.problem)
        remedy = f"does not fit in this machine's memory; make it smaller ({one_line(error, 120)})"
        raise InputError("problem.kind", kind, remedy) from error
    return problem


def build_executor(experiment: Experiment, problem: Problem, kind: Callable[..., Executor] = Executor) -> Executor:
    """The experiment's executor, for all clients of the problem. kind: what makes it."""
    settle(problem.device, experiment.engine.tf32)
    options, working = experiment.engine, at_once(experiment.selection, problem.num_clients)
    usual = experiment.selection.expected(problem.num_clients)
    _offer_expert(experiment.client, problem)
    with at_most(options.cores):
        return kind(
            problem,
            experiment.client,
            Streams(experiment.seed),
            choice=options.executor,
            transforms=(*experiment.transforms, *sealing(experiment, problem)),
            memory=options.memory_mib * 2**20,
            state_memory=options.state_mib * 2**20,
            participants=None if experiment.rounds is None else (experiment.rounds + 1) * working,
            work=_work(experiment, problem, usual) if options.executor == "auto" else 0.0,
            largest_batch=experiment.strategy.largest_batch,
            noisy=noisy_steps(experiment, problem),
        )


def _work(experiment: Experiment, problem: Problem, working: float) -> float:
    """Multiply-adds in a round of so many clients of mean size, as far as they could be compiled.

    They are those of local training whose steps follow at once, or of the values that are asked for. Counted is the
    first round: what is compiled must not change within a run.
    """
    client, model = experiment.client, problem.model
    if model is None:
        return 0.0
    if client.values_only and evaluates(model.module, model.layout):
        return working * _examples_asked(experiment, problem) * model.footprint.operations
    if not isinstance(client, LocalTraining) or client.rests:
        return 0.0
    steps = working * float(client.local_steps(problem.sizes).double().mean())
    width = problem.largest if client.batch_size == "full" else min(client.batch_size, problem.largest)
    return 3.0 * steps * width * model.footprint.operations


def _examples_asked(experiment: Experiment, problem: Problem) -> float:
    """On how many examples a client of mean size is to evaluate models in the first round, each time counted."""
    client, strategy = experiment.client, experiment.strategy
    everybody = torch.arange(problem.num_clients)
    state = begun(strategy, strategy.init(problem), problem, "init")
    state = begun(strategy, strategy.seeded(state, Streams(experiment.seed)), problem, "seeded")
    order, _ = asked(strategy, strategy.ask(state, everybody), state, everybody)
    queries = client.cost(order, problem.sizes).queries
    width = problem.largest if client.batch_size == "full" else client.batch_size
    return queries * float(problem.sizes.clamp(max=width).double().mean())


def _offer_expert(client: Client, problem: Problem) -> None:
    """Have the problem know how hard its examples are to an expert, where the clients' curriculum asks for that."""
    curriculum = client.curriculum if isinstance(client, LocalTraining) else None
    if curriculum is not None and curriculum.score == "expert" and isinstance(problem, Supervised):
        problem.data.scores.offer(curriculum.expert, partial(_expert_losses, problem, curriculum.expert))


def _expert_losses(problem: Supervised, expert: Expert) -> Tensor:
    with naming("client.curriculum.expert"):
        return expert_losses(problem, expert)


def build_simulation(
    experiment: Experiment, problem: Problem, engine: EngineMaker | None = None, *, own: bool = True
) -> Simulation:
    """The experiment as a simulation on this machine, or over the engine that `engine` makes.

    own: whether the problem may be another than the one that the experiment describes, so that processes which help
    have to be sent it.
    """
    check(experiment, problem)
    bench, guard = bench_of(experiment, problem), guard_of(experiment, problem)
    _warn_of_rate(experiment)
    _warn_of_start(experiment)
    _warn_of_debts(experiment, problem)
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
        Setup(
            problem=problem,
            strategy=experiment.strategy,
            selector=experiment.selection,
            engine=made,
            streams=Streams(experiment.seed),
            rounds=experiment.rounds,
            duration=experiment.duration,
            evaluation=experiment.evaluation,
            stopping=experiment.stopping,
            order_transforms=Chain(experiment.order_transforms, "order_transforms").fitted(
                problem.layout.shapes, Size(problem.dimension, 8 * problem.dtype.itemsize)
            ),
            whose=Whose.of(problem, experiment.strategy, experiment.client, experiment.evaluation),
            tuning=tuning_on(problem, experiment.evaluation.finetune),
            steady=experiment.devices.steady and not experiment.faults.kinds,
            bench=bench,
            secured=secured(experiment, problem, made),
            privacy=guard,
        )
    )
    everybody = torch.arange(problem.num_clients)
    given = experiment.strategy.ask(simulation.state, everybody)
    orders, window = asked(experiment.strategy, given, simulation.state, everybody)
    hold_transformable(simulation.parts.order_transforms, orders, experiment.strategy)
    if not experiment.strategy.aggregates and not isinstance(aggregator, WeightedMean):
        combined = kind_of("aggregators", experiment.aggregation)
        raise InputError("aggregation.kind", combined, "this strategy averages nothing; leave the table out")
    check_window(experiment, window)
    if simulation.parts.secured is not None:
        hold_window(orders, window)
    if isinstance(window, First):
        aggregator.check(window.count)
    simulation.judge_at(pace(experiment, problem, orders, window))
    budget = None if experiment.stopping is None else experiment.stopping.queries
    if budget is not None and isinstance(made, VirtualEngine):
        least = made.executor.assign(orders).cost.queries * experiment.selection.of(problem.num_clients)
        if least > budget:
            raise InputError("stopping.queries", budget, f"the clients of one round ask for {least} at least; raise it")
    return simulation


def _warn_of_debts(experiment: Experiment, problem: Problem) -> None:
    """Say where what feedback owes is paid by other weights than those by which it was left out."""
    weighting = getattr(experiment.strategy, "weighting", "uniform")
    some = experiment.selection.least(problem.num_clients) < problem.num_clients
    for number, transform in enumerate(experiment.transforms):
        if isinstance(transform, EF14) and weighting == "examples" and some and len(set(problem.sizes.tolist())) > 1:
            warn(
                f"transforms.{number}: clients count by their examples among those who answer, which varies from round "
                'to round, and what is owed does not know that; take strategy.weighting = "uniform"'
            )


def _warn_of_rate(experiment: Experiment) -> None:
    """Say where a learning rate multiplies what a rule finds by itself, or is not what the server takes it for."""
    client, strategy = experiment.client, experiment.strategy
    if isinstance(strategy, ClientRate) and isinstance(client, LocalTraining) and client.base != strategy.client_lr:
        taken = f"strategy.client_lr = {strategy.client_lr:g}"
        warn(f"{taken}: the clients' learning rate, client.lr, is {client.base:g}; say the same")
    rates: list[tuple[str, float | None, Any]] = []
    if isinstance(client, LocalTraining | LocalSearch):
        rates.append(("client.lr", client.lr, client.rule))
    if isinstance(strategy, ServerStep):
        rates.append(("strategy.server_lr", strategy.server_lr, strategy.made["server_optimizer"]))
    for option, rate, rule in rates:
        if isinstance(rule, Optimizer) and rule.rate_free and rate not in (None, 1.0):
            kind = kind_of("optimizers", rule)
            warn(f"{option} = {rate}: {kind} finds its own rate, which this multiplies; leave it out, or say 1")
        if isinstance(rule, Divided) and rule.other.rate_free:
            product = (rule.usual if rate is None else rate) * rule.others_rate
            kind, owner = (kind_of("optimizers", one) for one in (rule.other, rule))
            if product != 1.0:
                times = f"{option} times others_rate, {product:g}, multiplies"
                warn(f"{kind}, {owner}'s others, finds its own rate, which {times}")


def _warn_of_start(experiment: Experiment) -> None:
    """Say where a start for clients' own steps is judged as if it were a model to be used."""
    if experiment.client.for_tuning and experiment.evaluation.finetune is None:
        kind = kind_of("clients", experiment.client)
        remedy = "for it to be judged as it is meant give evaluation.finetune, as { steps = 5, lr = 0.1 }"
        warn(f"client.kind = {kind}: trains where each client's own steps are to begin; {remedy}")


def build_engine(experiment: Experiment, problem: Problem, executor: Executor) -> VirtualEngine:
    """The experiment's engine in this process, with its devices and its faults."""
    with naming("faults"):
        faults = experiment.faults.start(problem.num_clients, Streams(experiment.seed))
    return VirtualEngine(executor, experiment.aggregation, build_fleet(experiment, problem), faults)


def build_fleet(experiment: Experiment, problem: Problem) -> Fleet:
    """The clients' devices, as the experiment describes them."""
    census = Census(problem.sizes, problem.labels)
    return experiment.devices.start(census, Streams(experiment.seed), experiment.data_dir)
