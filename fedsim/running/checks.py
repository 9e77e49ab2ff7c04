"""Refusals that need the problem: what an experiment asks of it that it does not have."""

from __future__ import annotations

from fedsim.client.training import LocalTraining
from fedsim.configuration.tables import Experiment
from fedsim.core.errors import InputError, naming
from fedsim.core.near import name_one
from fedsim.core.plugins import kind_of
from fedsim.core.streams import Streams
from fedsim.problems.attacked import check_attack
from fedsim.problems.base import Problem
from fedsim.problems.supervised import Supervised
from fedsim.zeroth_order.search import EstimatedSearch


def check(experiment: Experiment, problem: Problem) -> None:
    """Refuse what does not fit the problem."""
    if not isinstance(problem, Supervised):
        _check_asking(experiment)
    experiment.selection.check(problem.num_clients)
    experiment.aggregation.check(experiment.selection.least(problem.num_clients))
    at_once = experiment.selection.of(problem.num_clients)
    with naming("strategy"):
        experiment.strategy.check(at_once, problem.num_clients, experiment.devices.steady)
    stopping = experiment.stopping
    measured = problem.measures(experiment.evaluation.clients, experiment.evaluation.on)
    trial = experiment.evaluation.trial(Streams(experiment.seed))
    if trial is not None:
        with naming("evaluation"):
            measured += problem.attacked_measures(trial)
    if isinstance(problem, Supervised):
        _check_training(experiment, problem)
    if stopping is not None and stopping.watches and stopping.metric not in measured:
        raise InputError("stopping.metric", stopping.metric, name_one(stopping.metric, measured))


def _check_training(experiment: Experiment, problem: Supervised) -> None:
    """Refuse a curriculum or a defence that does not go with the problem."""
    if not isinstance(experiment.client, LocalTraining):
        return
    defence, curriculum = experiment.client.defence, experiment.client.curriculum
    if curriculum is not None and curriculum.measure == "error" and not problem.judged.has_accuracy:
        raise InputError("client.curriculum.measure", "error", "a regression has no predictions; take loss")
    if defence is None:
        return
    if defence.of_classes and not problem.judged.has_accuracy:
        kind = kind_of("defences", defence)
        raise InputError("client.adversarial.kind", kind, "its loss is about classes; take standard")
    with naming("client.adversarial.attack"):
        if defence.attacked_by.only_judges:
            raise InputError("kind", defence.attacked_by.label, "it only judges models; train against pgd")
        check_attack(defence.attacked_by, problem.data.x, problem.data.num_classes)


def _check_asking(experiment: Experiment) -> None:
    """Refuse clients that want more of a black box than values."""
    client = experiment.client
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
