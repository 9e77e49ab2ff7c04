"""Privacy of single examples: how a run's local steps are made private, and the account of each client."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fedsim.client.training import LocalTraining
from fedsim.configuration.tables import Experiment
from fedsim.core.errors import InputError, warn
from fedsim.core.plugins import kind_of
from fedsim.exchange.actions import SPREAD
from fedsim.exchange.messages import Order, Replies, Scalar
from fedsim.nets.optimizers import Need
from fedsim.privacy.account import Account, Everyone, Law, Poisson, least_noise
from fedsim.privacy.options import Accounting, Privacy
from fedsim.privacy.release import Kept, bounds_of, spent_columns
from fedsim.privacy.steps import NoisySteps, capacity
from fedsim.problems.base import Problem
from fedsim.running import promises
from fedsim.server.selection.base import Selector
from fedsim.server.selection.poisson import Poisson as PoissonSelection
from fedsim.server.selection.round_robin import RoundRobin

STEPS = "private steps"
"""The name under which the server remembers how many steps each client has been ordered to take, int64 [N]."""
BARE = frozenset({"start-loss", "last-loss", SPREAD})
"""What clients that train tell of their examples without noise, where a strategy asks for it."""
GIVEN: frozenset[Need] = frozenset({"noise", "point", "state", "end"})
"""What optimizers may ask for that takes no second look at examples."""
Spent = tuple[float, int]
"""With which probability a client's examples are in its steps, and how many steps it takes."""


@dataclass(frozen=True)
class StepsGuard:
    """Keeps the account of each client's examples; what clients send is private already.

    client: that trains. sizes: int64 [N], examples of each. width: how many a step is expected to have, at most.
    multiplier: z. room: see `NoisySteps.capacity`.
    """

    options: Privacy
    client: LocalTraining
    sizes: Tensor
    width: int
    multiplier: float
    room: int

    def begin(self, params: Tensor) -> Kept:  # noqa: ARG002
        """That nobody has taken a step."""
        return {STEPS: torch.zeros_like(self.sizes)}

    def ordered(self, kept: Kept, order: Order) -> Kept:
        """What is remembered after an order: its clients' steps, whether or not anything comes of them."""
        steps, clients = kept[STEPS].clone(), order.clients.cpu()
        steps[clients] += self.client.local_steps(self.sizes[clients], order.round, order.config)
        return {**kept, STEPS: steps}

    def release(self, kept: Kept, replies: Replies) -> tuple[Replies, Kept, dict[str, float]]:
        """The replies as they are."""
        return replies, kept, {}

    def columns(self, kept: Kept, rounds: int) -> Mapping[str, float]:  # noqa: ARG002
        """What a row says: the most that a client has spent."""
        if not self.multiplier:
            return {}
        return spent_columns(self.worst(kept[STEPS], self.multiplier), self.options.delta)

    def over(self, kept: Kept, rounds: int) -> str | None:
        """Why no round may follow; None: one may, whoever takes part."""
        budget, ahead = self.options.budget, self.client.local_steps(self.sizes, rounds)
        if budget is None or self.worst(kept[STEPS] + ahead, self.multiplier) <= budget:
            return None
        return f"another round would spend more than epsilon {budget:g}"

    def summary(self, kept: Kept, rounds: int) -> dict[str, Any]:
        """What the summary says, with what each client has spent, in their order."""
        found = {**self.columns(kept, rounds)}
        if not found:
            return {}
        each = [_account(self.options, one, self.multiplier).epsilon(one[1]) for one in self._spent(kept[STEPS])]
        told = {"neighbours": self._neighbours, "accountant": self.options.accountant}
        return {**found, **told, "epsilons": each}

    @property
    def notes(self) -> dict[str, Scalar]:
        """What was decided when the run began."""
        told: dict[str, Scalar] = {"noise_multiplier": self.multiplier, "neighbours": self._neighbours}
        return {**told, "sampling": "poisson", "capacity": self.room}

    def worst(self, steps: Tensor, multiplier: float) -> float:
        """The largest epsilon of clients that have taken so many steps, int64 [N]; infinity without noise."""
        return max((found for _, found in self._largest(steps, multiplier)), default=0.0)

    def _largest(self, steps: Tensor, multiplier: float) -> Iterator[tuple[Spent, float]]:
        """Those of clients of whom one spends most.

        Epsilon grows with the rate and with the steps, so that of most clients it is known to be less; and no more of
        them are looked at than may spend more than the most so far by Renyi divergences, which are quick.
        """
        options = self.options
        quick = ((_account(options, one, multiplier, "rdp").epsilon(one[1]), one) for one in front(self._spent(steps)))
        most = 0.0
        for bound, one in sorted(quick, reverse=True):
            if bound <= most:
                return
            found = min(bound, _account(options, one, multiplier).epsilon(one[1]))
            most = max(most, found)
            yield one, found

    def least(self, steps: Tensor, epsilon: float) -> float:
        """The least z with which no client that takes so many steps, int64 [N], spends more than epsilon."""
        found, multiplier = 0.0, 1.0
        while True:
            (rate, count), _ = max(self._largest(steps, multiplier), key=lambda one: one[1])
            found = max(found, least_noise(self.options.accountant, law_of(rate), count, epsilon, self.options.delta))
            if self.worst(steps, found) <= epsilon:
                return found
            multiplier = found  # another client spends most at this noise

    def _spent(self, steps: Tensor) -> list[Spent]:
        rates = (self.width / self.sizes.double()).clamp(max=1.0).tolist()
        return list(zip(rates, steps.tolist(), strict=True))

    @property
    def _neighbours(self) -> str:
        return "add or remove one example"


def law_of(rate: float) -> Law:
    """By which law an example is in the steps of its client."""
    return Poisson(rate) if rate < 1.0 else Everyone()


def _account(options: Privacy, spent: Spent, multiplier: float, kind: Accounting | None = None) -> Account:
    return Account(kind or options.accountant, law_of(spent[0]), multiplier, options.delta)


def front(spent: Iterable[Spent]) -> list[Spent]:
    """Those of which no other has a rate and steps that are both as large."""
    found = list[Spent]()
    for rate, steps in sorted(set(spent), reverse=True):
        if not found or steps > found[-1][1]:
            found.append((rate, steps))
    return found


def laps_of(selector: Selector, population: int) -> float:
    """In one of how many rounds a client is, at most, where nobody sleeps or fails."""
    if type(selector) is PoissonSelection:
        return selector.groups
    return population / selector.expected(population) if type(selector) is RoundRobin else 1.0


def noisy_steps(experiment: Experiment, problem: Problem) -> NoisySteps | None:
    """How clients' local steps are made private; None: they are not."""
    options = experiment.privacy
    if options is None or options.level != "example":
        return None
    guard = _guard(experiment, problem, options)
    assert problem.model is not None
    clip = options.clip
    bounds = None if clip is None else tuple(bounds_of(options.clipping, problem.model.layout, clip))
    return NoisySteps(bounds, guard.multiplier * (clip or 0.0), guard.room)


def steps_guard(experiment: Experiment, problem: Problem, options: Privacy) -> StepsGuard:
    """What keeps the account of clients' examples. InputError: it does not cover the experiment."""
    _check_client(experiment)
    _check_asked(experiment, problem)
    _check_model(problem)
    if options.delta >= 1.0 / problem.largest:
        warn(
            f"privacy.delta = {options.delta:g} lets one of a client's {problem.largest} examples go unhidden; "
            "take less than 1 / n"
        )
    guard = _guard(experiment, problem, options)
    if guard.multiplier:  # the library is here, or a line says how to have it
        guard.worst(torch.ones_like(guard.sizes), guard.multiplier)
    return guard


def _guard(experiment: Experiment, problem: Problem, options: Privacy) -> StepsGuard:
    client, sizes = experiment.client, problem.sizes
    assert isinstance(client, LocalTraining)
    width = problem.largest if client.batch_size == "full" else min(client.batch_size, problem.largest)
    guard = StepsGuard(options, client, sizes, width, options.noise_multiplier or 0.0, capacity(sizes, width))
    if options.epsilon is None:
        return guard
    if experiment.rounds is None:
        raise InputError("privacy.epsilon", options.epsilon, "it is of a number of rounds; give rounds")
    steady = experiment.devices.steady and not experiment.faults.kinds
    laps = laps_of(experiment.selection, problem.num_clients) if steady else 1.0
    turns = math.ceil(experiment.rounds / laps - 1e-9)
    taken = [client.local_steps(sizes, number) for number in range(turns)]  # which may not grow
    return replace(guard, multiplier=guard.least(torch.stack(taken).sum(dim=0), options.epsilon))


def _check_client(experiment: Experiment) -> None:
    """Refuse clients from whose examples something comes that is no sum with noise."""
    client = experiment.client
    if not isinstance(client, LocalTraining) or not client.by_steps:
        remedy = "it does more with its examples than local steps, to which noise is added; take sgd"
        raise InputError("client.kind", kind_of("clients", client), remedy)
    if client.defence is not None:
        kind = kind_of("defences", client.defence)
        raise InputError("client.adversarial.kind", kind, "steps are on examples as they are; leave it out")
    if client.curriculum is not None:
        raise InputError("client.curriculum", "given", "it chooses examples by their losses; leave it out")
    client.rule.hold_needs("client.optimizer", GIVEN, "training with noise")


def _check_asked(experiment: Experiment, problem: Problem) -> None:
    """Refuse a server that asks for more of examples than what was learnt of them."""
    if bare := sorted(experiment.strategy.up & BARE):
        remedy = f"it asks for {' and '.join(bare)} of clients' examples, to which no noise is added; take fedavg"
        raise InputError("strategy.kind", kind_of("strategies", experiment.strategy), remedy)
    if promises.goes_by_losses(experiment.selection, problem.sizes):
        remedy = "it goes by clients' losses, to which no noise is added; take uniform or poisson"
        raise InputError("selection.kind", kind_of("selectors", experiment.selection), remedy)


def _check_model(problem: Problem) -> None:
    """Refuse layers that mix examples: none has a gradient of its own then."""
    if problem.model is None or problem.data is None:
        raise InputError("privacy.level", "example", "there are no examples; take client")
    if problem.model.layout.normalises:
        remedy = "it mixes examples; normalise by groups or layers, or with problem.normalisation.statistics = frozen"
        raise InputError("problem.model", "batch normalisation", remedy)
