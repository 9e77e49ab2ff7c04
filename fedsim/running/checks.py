"""Refusals that need the problem: what an experiment asks of it that it does not have."""

from __future__ import annotations

import math

from fedsim.client.bounding import Bounding
from fedsim.client.defence import Defence
from fedsim.client.objective import FLAT
from fedsim.client.training import LocalTraining
from fedsim.compression.feedback import Tracking
from fedsim.configuration.evaluation import Stopping
from fedsim.configuration.tables import PLUGINS, Experiment
from fedsim.core.errors import InputError, naming
from fedsim.core.measures import HIGHER, attack_of, label_of
from fedsim.core.near import name_one
from fedsim.core.plugins import kind_of
from fedsim.core.streams import Streams
from fedsim.core.terminal import note
from fedsim.engine.client import Client
from fedsim.exchange.secure import Secure
from fedsim.nets.private import Private
from fedsim.problems.attacked import certifies, check_attack
from fedsim.problems.base import Problem
from fedsim.problems.black_box import BlackBox
from fedsim.problems.supervised import Supervised
from fedsim.running import promises
from fedsim.running.personal import Whose, hold_judged, hold_newcomers, tuned_leaves
from fedsim.running.secure import check_secure
from fedsim.server.gossip import Gossip
from fedsim.zeroth_order.search import EstimatedSearch

ENDLESS = 2**31
"""A round later than any."""
SHARES = HIGHER - {"cosine"}
"""Words in the names of measures that lie between 0 and 1."""


def check_own(experiment: Experiment, problem: Problem) -> None:
    """Refuse what an experiment says of a problem, where a problem of its user's own takes that one's place."""
    for table in ("problem", "partition"):
        if table in experiment.given:
            named = sorted(name for name in experiment.given if name.startswith(f"{table}."))
            option = next((name for name in named if not name.endswith(".kind")), table)
            plugin, group = getattr(experiment, table), PLUGINS[table][0]
            value = kind_of(group, plugin) if option == table else getattr(plugin, option.partition(".")[2], None)
            to_start = ": problem.start_from(state_dict)" if option == "problem.start" else ""
            raise InputError(option, value, f"the problem is your own, and has its own{to_start}; leave this out")
    precision = str(problem.dtype).removeprefix("torch.")
    for option, held in (("precision", precision), ("device", problem.device.type)):
        wanted = getattr(experiment.engine, option)
        if f"engine.{option}" in experiment.given and wanted not in ("auto", held):
            argument = "dtype=" if option == "precision" else "device="
            remedy = f"the problem is your own, of {held}; make it with another {argument}, or leave this out"
            raise InputError(f"engine.{option}", wanted, remedy)


def check(experiment: Experiment, problem: Problem) -> None:
    """Refuse what does not fit the problem."""
    if not isinstance(problem, Supervised):
        check_asking(experiment.client)
        if isinstance(problem, BlackBox):
            _check_space(experiment.client, problem)
    on = experiment.evaluation.on
    if problem.data is None and on != ("test",):
        raise InputError("evaluation.on", ", ".join(on), "the clients of a black box have no examples; leave it out")
    if isinstance(problem, Supervised) and "test" in on and on != ("test",) and not len(problem.x_test):
        raise InputError("evaluation.on", ", ".join(on), "there is no test example; take train alone")
    if experiment.checkpoint.every and (why := experiment.strategy.unresumable) is not None:
        raise InputError("checkpoint.every", experiment.checkpoint.every, f"no run could go on from there: {why}")
    experiment.selection.check(problem.num_clients)
    at_once = promises.at_once(experiment.selection, problem.num_clients)
    experiment.aggregation.check(experiment.selection.least(problem.num_clients))
    if isinstance(experiment.aggregation, Secure):
        check_secure(experiment, problem)
    if experiment.strategy.in_parts:
        _check_in_parts(experiment)
    _check_sparse(experiment)
    with naming("strategy"):
        experiment.strategy.check(at_once, problem.num_clients, experiment.devices.steady)
    stopping = experiment.stopping
    whose = Whose.of(problem, experiment.strategy, experiment.client, experiment.evaluation)
    measured = measures(experiment, problem)
    if isinstance(problem, Supervised):
        _note_weak(experiment, problem)
        _check_training(experiment, problem)
        _check_divided(experiment.client, problem.model.private)
        if problem.model.private is not None:
            _check_private(experiment, problem)
        if whose.own:
            _check_own_models(experiment, problem, whose)
        if problem.newcomers is not None:
            hold_newcomers(problem.newcomers, experiment.evaluation)
        if not experiment.strategy.for_all or isinstance(experiment.strategy, Gossip):
            _check_selector(experiment, problem)
    elif experiment.evaluation.finetune is not None:
        raise InputError("evaluation.finetune", "given", "there is no model to train; leave it out")
    best = experiment.evaluation.keep_best
    if best is not None and best not in measured:
        raise InputError("evaluation.keep_best", best, name_one(best, measured))
    if problem.trained is not None:
        _check_statistics(experiment)
    if stopping is not None and stopping.watches and stopping.metric not in measured:
        raise InputError("stopping.metric", stopping.metric, name_one(stopping.metric, measured))
    if stopping is not None:
        with naming("stopping"):
            _check_stopping(experiment, stopping)


def measures(experiment: Experiment, problem: Problem) -> list[str]:
    """The names of what an experiment measures, but for counts. InputError: something of it is none of what there is.

    Those of the model for all come first, where there is one.
    """
    evaluation = experiment.evaluation
    trial = evaluation.trial(Streams(experiment.seed))
    whose = Whose.of(problem, experiment.strategy, experiment.client, evaluation)
    with naming("evaluation"):
        found = whose.measures(problem, evaluation)
        if trial is None:
            return found
        if not whose.everybodys:
            raise InputError(*trial.named, "no model is for all clients here; leave it out")
        return found + problem.attacked_measures(trial)


def _note_weak(experiment: Experiment, problem: Supervised) -> None:
    """Say of what layers certificates are weak."""
    certificate = experiment.evaluation.certify
    if certificate is not None and (loose := certifies(certificate, problem.model).loose):
        note(f"certificates are weak, for bounds through {loose[0]} are: normalisation sees all of its inputs at once")


def _check_sparse(experiment: Experiment) -> None:
    """Refuse an aggregator that judges coordinates which most replies leave out.

    An estimate that is tracked by sparse changes is not sparse.
    """
    tracked = False
    for number, transform in enumerate(experiment.transforms):
        tracked |= isinstance(transform, Tracking) and not transform.increments
        if transform.sparse and not tracked and experiment.aggregation.by_coordinates:
            kind = kind_of("aggregators", experiment.aggregation)
            sparse = kind_of("transforms", transform)
            remedy = f"where most clients leave a number out, as transforms.{number} ({sparse}) has them do, it stays 0"
            raise InputError("aggregation.kind", kind, f"{remedy}; take geometric_median or krum, or put ef21 first")


def _check_in_parts(experiment: Experiment) -> None:
    """Refuse an aggregator that wants several replies where a strategy may combine one."""
    try:
        experiment.aggregation.check(1)
    except InputError as error:
        strategy, kind = kind_of("strategies", experiment.strategy), kind_of("aggregators", experiment.aggregation)
        remedy = f"{strategy} combines parts of the replies by themselves, which may be a single one; take mean"
        raise InputError("aggregation.kind", kind, remedy) from error


def _check_stopping(experiment: Experiment, stopping: Stopping) -> None:
    """Refuse an end that never comes."""
    metric, target, often = stopping.metric, stopping.target, _measured(experiment, stopping.metric)
    if stopping.queries is not None and isinstance(experiment.client, LocalTraining):
        kind = kind_of("clients", experiment.client)
        raise InputError("queries", stopping.queries, f"the client {kind} trains, and asks for no values; leave it out")
    if target is not None and often == 1 and experiment.evaluation.rounds == 0:
        raise InputError("target", target, f"{metric} is measured at the end only; give an evaluation.every above 0")
    label = label_of(metric, experiment.evaluation.asked)
    if target is not None and label is not None:
        (best,) = (measure.best for measure in experiment.evaluation.measures if measure.label == label)
        higher = experiment.evaluation.asked[label]
        if best is not None and (target > best if higher else target < best):
            never, other = ("above", "lower") if higher else ("below", "raise")
            raise InputError("target", target, f"{metric} is never {never} {best:g}; {other} it")
    elif target is not None and target > 1.0 and not SHARES.isdisjoint(metric.split("_")):
        raise InputError("target", target, f"{metric} is a share, and never above 1; lower it")
    elif target is not None and target < 0.0 and "loss" in metric.split("_"):
        raise InputError("target", target, f"{metric} is never below 0; raise it")
    if stopping.patience is not None and often is not None and stopping.patience >= often:
        remedy = f"{metric} is measured {often} times only; lower it, or give more rounds"
        raise InputError("patience", stopping.patience, remedy)


def _measured(experiment: Experiment, metric: str) -> int | None:
    """How often at most a metric is measured; None: that is not known beforehand."""
    evaluation, rounds, duration = experiment.evaluation, experiment.rounds, experiment.duration
    if evaluation.every_seconds is not None:
        return None if duration is None else math.floor(duration / evaluation.every_seconds) + 1
    if rounds is None:
        return None
    attacked = attack_of(metric, evaluation.asked) and evaluation.attacks_every is not None
    every = evaluation.attacks_every if attacked else evaluation.rounds
    return -(-rounds // every) if every else 1


def _check_training(experiment: Experiment, problem: Supervised) -> None:
    """Refuse a curriculum or a defence that does not go with the problem."""
    if not isinstance(experiment.client, LocalTraining):
        return
    if experiment.client.of_features:
        problem.features()  # there are some, or a line says why not
    defence, curriculum = experiment.client.defence, experiment.client.curriculum
    if curriculum is not None and curriculum.measure == "error" and not problem.data.labelled:
        raise InputError("client.curriculum.measure", "error", "examples do not have one class each; take loss")
    rule, loss = experiment.client.rule, problem.model.loss
    if "curvature" in rule.needs and not loss.curves:
        raise InputError("client.optimizer", kind_of("optimizers", rule), f"{kind_of('losses', loss)}: {FLAT}")
    if defence is None:
        return
    if defence.of_classes and not problem.data.labelled:
        kind = kind_of("defences", defence)
        raise InputError("client.adversarial.kind", kind, "its loss is about one class an example; take standard")
    last = ENDLESS if experiment.rounds is None else experiment.rounds - 1
    if isinstance(defence, Defence):
        with naming("client.adversarial.attack"):
            if defence.attacked_by.only_judges:
                raise InputError("kind", defence.attacked_by.label, "it only judges models; train against pgd")
            check_attack(defence.attacked_by, problem.data.x, problem.data)
    if isinstance(defence, Bounding):
        defence.hold(problem.model.module, problem.model.layout)
        with naming("client.adversarial"):
            defence.hold_data(problem.data.x)
            defence.hold_rounds(last)
    if not defence.effort(last):
        rounds = "any round" if last == ENDLESS else f"{last + 1} rounds" if last else "the only round"
        remedy = f"{defence.does} nothing in {rounds}, so that nobody is defended"
        remedy += ": look at epsilon, warm_up, an attack's steps and mix, or leave it out"
        raise InputError("client.adversarial", kind_of("defences", defence), remedy)


def _check_divided(client: Client, private: Private | None) -> None:
    """Refuse to train apart what stays with clients where that is nothing."""
    if isinstance(client, LocalTraining) and client.divides and (private is None or not private.own.trained):
        kind = kind_of("clients", client)
        remedy = f"the client {kind} trains what stays with it by itself, and here nothing does; take body"
        raise InputError("problem.shared", "all", remedy)


def _check_private(experiment: Experiment, problem: Supervised) -> None:
    """Refuse what does not go with models of which something stays with each client."""
    client = experiment.client
    if client.own_models or not experiment.strategy.for_all:
        kind = kind_of("clients", client)
        other = "sgd" if experiment.strategy.for_all else "sgd with strategy.kind = fedavg"
        remedy = f"has whole models of the clients' own, and here a part of one stays with them; take {other}, or let"
        let = 'nothing stay: problem.shared = "all", and problem.normalisation not local'
        raise InputError("client.kind", kind, f"{remedy} {let}")
    if not isinstance(client, LocalTraining) or not client.descends:
        kind = kind_of("clients", client)
        remedy = "does more with a model than local training, which alone trains what stays with a client; take sgd"
        raise InputError("client.kind", kind, remedy)
    if any(client.rule.kept(problem.dimension).values()):
        remedy = "keeps something of each parameter, of which here are other ones that stay with a client; let it not"
        raise InputError("client.optimizer", kind_of("optimizers", client.rule), remedy)


def _check_selector(experiment: Experiment, problem: Supervised) -> None:
    """Refuse a selector that asks about the server's model where that is none for all clients."""
    if promises.goes_by_losses(experiment.selection, problem.sizes):
        kind = kind_of("selectors", experiment.selection)
        remedy = "it goes by clients' losses under a model for all, and there is none here; take uniform"
        raise InputError("selection.kind", kind, remedy)


def _check_own_models(experiment: Experiment, problem: Supervised, whose: Whose) -> None:
    """Refuse what does not go with models of the clients' own."""
    evaluation = experiment.evaluation
    if "train" in evaluation.on and not whose.everybodys:
        remedy = "each client has a model of its own, and no model is for all; leave it out"
        raise InputError("evaluation.on", ", ".join(evaluation.on), remedy)
    best = evaluation.keep_best
    if best is not None and (not whose.everybodys or not {"personal", "newcomer"}.isdisjoint(best.split("_"))):
        remedy = "is of models of the clients' own, of which none is written; leave it out"
        raise InputError("evaluation.keep_best", evaluation.keep_best, remedy)
    if evaluation.finetune is not None:
        tuned_leaves(evaluation.finetune, problem)
    hold_judged(problem, evaluation.clients, evaluation.on)


def _check_statistics(experiment: Experiment) -> None:
    """Refuse what would take running statistics of batch normalisation for parameters."""
    frozen = (
        'batch normalisation has running statistics, which are none; set problem.normalisation.statistics = "frozen"'
    )
    if not experiment.client.keeps_statistics:
        kind = kind_of("clients", experiment.client)
        raise InputError("client.kind", kind, f"it takes all numbers for parameters, and {frozen}")
    for option in ("transforms", "order_transforms"):
        for number, transform in enumerate(getattr(experiment, option)):
            if not transform.keeps_statistics:
                kind = kind_of("transforms", transform)
                raise InputError(f"{option}.{number}.kind", kind, f"it changes all numbers alike, and {frozen}")


def _check_space(client: Client, problem: BlackBox) -> None:
    """Refuse a client that searches along slopes where variables have none."""
    if problem.space is None or problem.relax or not client.takes_slopes or not problem.space.discrete:
        return
    remedy = "whole numbers and categories have no slopes, by which this client searches; take clients values, genetic "
    remedy += "or fedes, or make the problem with relax = True"
    raise InputError("client.kind", kind_of("clients", client), f"{', '.join(problem.space.discrete)}: {remedy}")


def check_asking(client: Client) -> None:
    """Refuse a client that wants more of a black box than values."""
    if not client.values_only:
        if not isinstance(client, EstimatedSearch):
            kind = kind_of("clients", client)
            raise InputError("client.kind", kind, "it needs gradients, and this problem only tells values; use fedzo")
        kind = kind_of("estimators", client.made["estimator"])
        raise InputError(
            "client.estimator.kind", kind, "it needs derivatives, and this problem only tells values; use differences"
        )
    if client.batch_size != "full":
        raise InputError("client.batch_size", client.batch_size, "a black box has no examples to sample; remove it")
