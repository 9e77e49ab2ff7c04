"""Privacy of a run: which account covers it, what it has spent, and which experiments no account covers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fedsim.configuration.tables import Experiment
from fedsim.core.errors import InputError, warn
from fedsim.core.plugins import kind_of
from fedsim.core.streams import Streams
from fedsim.exchange.aggregation import WeightedMean
from fedsim.exchange.messages import Order, Replies, Scalar
from fedsim.exchange.transforms import Noise
from fedsim.exchange.windows import All, Window
from fedsim.privacy.account import Account, Everyone, Fixed, Law, Poisson, least_noise
from fedsim.privacy.banded import optimal, toeplitz
from fedsim.privacy.options import Privacy
from fedsim.privacy.release import Kept, Release, count_noise, spent_columns
from fedsim.problems.base import Problem
from fedsim.running.private_steps import StepsGuard, laps_of, steps_guard
from fedsim.server.selection.poisson import Poisson as PoissonSelection
from fedsim.server.selection.round_robin import RoundRobin
from fedsim.server.selection.uniform import Uniform


@dataclass(frozen=True)
class Sums:
    """How clients come into the sums of a run: by which law, and of so many rounds how many count.

    laps: a client is in one round of so many, at most, as groups and round robin have it.
    """

    law: Law
    laps: float = 1.0

    def of(self, rounds: int) -> int:
        """How many sums count."""
        return math.ceil(rounds / self.laps - 1e-9)


@dataclass(frozen=True)
class Guard:
    """What stands between clients' changes and the strategy, and keeps the account."""

    options: Privacy
    account: Account
    sums: Sums
    make: Release

    def begin(self, params: Tensor) -> Kept:
        """What the server remembers for it at first; params: the model [d]."""
        return self.make.begin(params)

    def release(self, kept: Kept, replies: Replies) -> tuple[Replies, Kept, dict[str, float]]:
        """What the strategy is told of a round's replies, what is remembered, and what was observed."""
        return self.make(kept, replies)

    def ordered(self, kept: Kept, order: Order) -> Kept:  # noqa: ARG002
        """What is remembered after an order: what it was."""
        return kept

    def columns(self, kept: Kept, rounds: int) -> Mapping[str, float]:  # noqa: ARG002
        """What a row says after so many rounds."""
        return spent_columns(self.account.epsilon(self.sums.of(rounds)), self.account.delta)

    def over(self, kept: Kept, rounds: int) -> str | None:  # noqa: ARG002
        """Why no round may follow so many; None: one may."""
        budget = self.options.budget
        if budget is None or self.account.epsilon(self.sums.of(rounds + 1)) <= budget:
            return None
        return f"another round would spend more than epsilon {budget:g}"

    def summary(self, kept: Kept, rounds: int) -> dict[str, Any]:
        """What the summary says after so many rounds; nothing of noise 0, which hides nobody."""
        found = {**self.columns(kept, rounds)}
        if not found:
            return {}
        relation = f"{self.account.law.relation} client"
        return {**found, "neighbours": relation, "accountant": self.options.accountant}

    @property
    def notes(self) -> dict[str, Scalar]:
        """What was decided when the run began."""
        law = self.account.law
        found: dict[str, Scalar] = {"noise_multiplier": self.account.multiplier, "neighbours": f"{law.relation} client"}
        return found | {"sampling": type(law).__name__.lower(), "expected_cohort": self.make.cohort}


AnyGuard = Guard | StepsGuard
"""What keeps a run private, and its account."""


def guard_of(experiment: Experiment, problem: Problem) -> AnyGuard | None:
    """What keeps a run's clients or examples private; None: nothing is to. InputError: no account covers it."""
    options = experiment.privacy
    if options is None:
        return None
    if options.level == "example":
        return steps_guard(experiment, problem, options)
    _check_sum(experiment, problem)
    sums, cohort = _sums(experiment, problem)
    _check_memory(experiment, problem, sums)
    population = problem.num_clients
    if options.delta >= 1.0 / population:
        warn(f"privacy.delta = {options.delta:g} lets one of {population} clients go unhidden; take less than 1 / N")
    multiplier = options.noise_multiplier
    if multiplier is None:
        if experiment.rounds is None:
            raise InputError("privacy.epsilon", options.epsilon, "it is of a number of rounds; give rounds")
        assert options.epsilon is not None
        multiplier = least_noise(
            options.accountant, sums.law, sums.of(experiment.rounds), options.epsilon, options.delta
        )
    account = Account(options.accountant, sums.law, multiplier, options.delta)
    if multiplier:
        account.epsilon(1)  # the library is here, or a line says how to have it
    adaptive = options.adaptive
    if adaptive is not None and multiplier >= 2.0 * count_noise(adaptive, cohort):
        remedy = f"it is to be above half the noise multiplier, {multiplier / 2.0:.4g}; raise it, or lower the noise"
        raise InputError("privacy.adaptive.count_noise", count_noise(adaptive, cohort), remedy)
    assert problem.model is not None
    made = Release(
        options, multiplier, cohort, problem.model.layout, Streams(experiment.seed), _factor(experiment, options)
    )
    return Guard(options, account, sums, made)


def check_window(experiment: Experiment, window: Window) -> None:
    """Refuse selections and accounts of whole rounds where the server looks again before all have answered."""
    if isinstance(window, All):
        return
    strategy = kind_of("strategies", experiment.strategy)
    if experiment.selection.synchronous:
        kind = kind_of("selectors", experiment.selection)
        remedy = f"it is for rounds that wait for all, and {strategy} does not; take uniform"
        raise InputError("selection.kind", kind, remedy)
    options = experiment.privacy
    if options is not None and options.level == "example":
        for option in ("epsilon", "budget"):
            if (value := getattr(options, option)) is not None:
                remedy = f"{strategy} does not wait for all of a round, in which a client may train more than once"
                raise InputError(f"privacy.{option}", value, f"{remedy}; give noise_multiplier alone")
    elif options is not None:
        remedy = "it does not wait for all of a round, and no account here covers that; take fedavg"
        raise InputError("strategy.kind", strategy, remedy)


def _check_sum(experiment: Experiment, problem: Problem) -> None:
    """Refuse what is no plain sum of changes."""
    strategy, kind = experiment.strategy, kind_of("strategies", experiment.strategy)
    if strategy.summed is None or strategy.up != {"delta"} or strategy.distils:
        remedy = "it does more with replies than to add up their changes, which no account here covers; take fedavg"
        raise InputError("strategy.kind", kind, remedy)
    if strategy.summed != "uniform":
        remedy = "a client of many examples would outweigh the noise, and how many there are is private; take uniform"
        raise InputError("strategy.weighting", strategy.summed, remedy)
    if type(experiment.aggregation) is not WeightedMean:
        kind = kind_of("aggregators", experiment.aggregation)
        raise InputError("aggregation.kind", kind, "changes are clipped one by one and summed as they are; take mean")
    if problem.model is None or problem.trained is not None:
        value = kind_of("problems", experiment.problem)
        remedy = "has running statistics of its examples, or no model; take a model without batch normalisation"
        raise InputError("problem.kind", value, remedy)
    assert experiment.privacy is not None
    for number, transform in enumerate(experiment.transforms):
        if isinstance(transform, Noise):
            remedy = "changes are clipped after it, which noise must not be; privacy adds its own: leave it out"
            raise InputError(f"transforms.{number}.kind", kind_of("transforms", transform), remedy)
        if experiment.privacy.where == "clients":
            remedy = "clients' noise comes last and fills all numbers; leave it out, or take privacy.where = server"
            raise InputError(f"transforms.{number}.kind", kind_of("transforms", transform), remedy)


def _sums(experiment: Experiment, problem: Problem) -> tuple[Sums, float]:
    """How clients come into sums, and how many are expected. InputError: by a law that no account covers."""
    selector, population, options = experiment.selection, problem.num_clients, experiment.privacy
    assert options is not None
    kind, cohort = kind_of("selectors", selector), selector.expected(population)
    steady = experiment.devices.steady and not experiment.faults.kinds
    apart = laps_of(selector, population)
    if type(selector) is PoissonSelection:
        sums = Sums(Poisson(selector.fraction), apart)
    elif type(selector) is RoundRobin or (type(selector) is Uniform and cohort == population):
        sums = Sums(Everyone(), apart)
    elif type(selector) is Uniform:
        sums = Sums(Fixed(population, int(cohort)))
    else:
        remedy = "whom it selects depends on what clients have, or no account knows its law; take poisson or uniform"
        raise InputError("selection.kind", kind, remedy)
    if type(selector) is not PoissonSelection and not steady:
        remedy = "clients sleep or fail, so that others take their place more often; take poisson"
        raise InputError("selection.kind", kind, remedy)
    if options.bands is not None and math.floor(apart + 1e-9) < options.bands:
        remedy = "a client may take part twice within so many rounds; take round_robin, or poisson with groups"
        raise InputError("privacy.bands", options.bands, remedy)
    return sums, cohort


def _check_memory(experiment: Experiment, problem: Problem, sums: Sums) -> None:
    """Refuse clients that remember something where the proof for that is of independent coins."""
    assert problem.model is not None
    dimension = problem.dimension
    remembers = bool(experiment.client.state(dimension)) or problem.model.private is not None
    if isinstance(sums.law, Fixed) and (remembers or any(one.state(dimension) for one in experiment.transforms)):
        remedy = "clients remember something, which the account of a fixed number of them does not cover; take poisson"
        raise InputError("selection.kind", kind_of("selectors", experiment.selection), remedy)


def _factor(experiment: Experiment, options: Privacy) -> Any:
    """C of banded noise, [T, T]; None: noise is independent."""
    if options.bands is None:
        return None
    if experiment.rounds is None:
        raise InputError("privacy.mechanism", "banded", "its noise is made for a number of rounds; give rounds")
    return (toeplitz if options.factor == "toeplitz" else optimal)(experiment.rounds, options.bands)
