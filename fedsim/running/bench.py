"""What a strategy that distils works with: the problem's public inputs, and a network as the executor chooses one."""

from __future__ import annotations

from fedsim.configuration.tables import Experiment
from fedsim.core.errors import InputError
from fedsim.core.plugins import kind_of
from fedsim.core.terminal import without_notes
from fedsim.engine.executor import choose_network
from fedsim.engine.options import Choice
from fedsim.problems.base import Problem
from fedsim.problems.supervised import Supervised
from fedsim.server.distillation import Bench


def bench_of(experiment: Experiment, problem: Problem) -> Bench | None:
    """What the experiment's server has to train the model itself; None: its strategy does not distil.

    InputError: it does, and there are no public inputs, or no model for all whose outputs are classes.
    """
    strategy = experiment.strategy
    if not strategy.distils:
        return None
    kind, option = kind_of("strategies", strategy), "strategy.kind"
    if not isinstance(problem, Supervised):
        raise InputError(option, kind, "it distils models, and this problem has none; take another strategy")
    if problem.model.loss.task != "classes":
        held = problem.model.loss.task
        raise InputError(option, kind, f"it distils probabilities of classes, and the targets are {held}; take fedavg")
    if problem.model.private is not None:
        raise InputError(option, kind, "it distils whole models, and here a part stays with each client; share all")
    if problem.public is None:
        remedy = f'{kind} needs inputs without labels; say which, as {{ kind = "held_out", examples = 500 }}'
        raise InputError("problem.public", "(nothing)", f"{remedy}, or in Python supervised(..., public=x)")
    chosen = experiment.engine.executor
    return bench_for(problem, chosen if chosen in ("stacked", "loop") else "auto")


def bench_for(problem: Supervised, choice: Choice) -> Bench:
    """What a server works with on a problem that has public inputs."""
    assert problem.public is not None
    with without_notes():  # the executor has said what there is to say
        _, network = choose_network(problem.model, problem.data, choice)
    return Bench(network, problem.public, problem.model.footprint.activations)
