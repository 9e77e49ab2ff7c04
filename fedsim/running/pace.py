"""How often the global model is judged where nobody has said it: as seldom as keeps that cheap beside the training.

A rule about declared work, in multiply-adds, so that it is the same on every machine; about one round, so that a run
that is to have more rounds has had the rows of the longer one. A step costs three forward passes of its examples.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import count as numbers

from fedsim.configuration.evaluation import Evaluation
from fedsim.configuration.tables import Experiment
from fedsim.core.streams import Streams
from fedsim.engine.executor import operations_beside
from fedsim.engine.returned import declared
from fedsim.exchange.actions import FORWARD
from fedsim.exchange.messages import Order
from fedsim.exchange.windows import First, Window
from fedsim.problems.base import Problem
from fedsim.problems.supervised import Supervised
from fedsim.running.personal import Whose, tuning_of
from fedsim.running.promises import at_once

SHARE = 0.2
"""Of the work of the local training, what judging may take; half of it each where models are attacked, too."""
CHEAP = 500_000_000
"""Multiply-adds a round that judging may take in any case: some hundredths of a second on one core."""


@dataclass(frozen=True)
class Pace:
    """How often a model is judged, and why.

    evaluation: the options with what was decided. examples: that are judged, once each. share: what judging after each
    round would have taken of the work of the local training.
    """

    evaluation: Evaluation
    examples: int = 0
    share: float = 0.0

    @property
    def notes(self) -> dict[str, int]:
        """What was decided, by its option."""
        chosen = {"every": self.evaluation.every, "attacks_every": self.evaluation.attacks_every}
        return {name: value for name, value in chosen.items() if value is not None}

    def line(self, given: Evaluation) -> str | None:
        """What is to be said where it differs from a judgement of each round that nobody has forbidden."""
        every, attacks = self.evaluation.rounds, self.evaluation.attacks_every
        if given.every is None and every > 1:
            return (
                f"the model is judged every {every} rounds and at the end: its {self.examples:,} examples take "
                f"{self.share:.2g} times a round's training; say evaluation.every for another pace"
            )
        if given.attacks_every is None and attacks is not None and attacks > every:
            return (
                f"the model is attacked every {attacks} rounds and at the end: attacks take more than their share of "
                "the training; say evaluation.attacks_every for another pace"
            )
        return None


def pace(experiment: Experiment, problem: Problem, orders: Order, window: Window) -> Pace:
    """Decide how often the model is judged where the experiment does not say it.

    `every` is the least of 1, 2, 5, 10, 20, 50 and so on at which judging takes at most `SHARE` of the multiply-adds of
    the local training, or `CHEAP`, and divides `attacks_every` where that is given; `attacks_every` a multiple of it,
    likewise. 1 where a measure decides something, the end of the run or which model is kept. orders: to all clients,
    as the first round begins; window: when that closes.
    """
    given = experiment.evaluation
    if not isinstance(problem, Supervised) or given.every_seconds is not None:
        return Pace(given)
    trial, stopping = given.trial(Streams(experiment.seed)), experiment.stopping
    if given.keep_best is not None or (stopping is not None and stopping.watches):
        return Pace(replace(given, every=given.rounds))
    operations = problem.model.footprint.operations
    training = _training(experiment, problem, orders, window)
    allowed = max(CHEAP, SHARE * training / (1 if trial is None else 2))
    examples = _judged(experiment, problem)
    every, attacks_every = given.every, given.attacks_every
    if every is None:
        every = _least(operations * examples, allowed, 1, attacks_every or 0)
    if trial is not None and attacks_every is None and every:
        passes = sum(1.0 + attack.gradients / FORWARD for attack in trial.attacks)
        passes += 0.0 if trial.certify is None else trial.certify.passes(problem.model.footprint.outputs)
        attacks_every = _least(operations * passes * problem.attacked_examples(trial), allowed, every)
    decided = replace(given, every=every, attacks_every=attacks_every)
    return Pace(decided, examples, operations * examples / max(training, 1.0))


def _judged(experiment: Experiment, problem: Supervised) -> int:
    """How many examples judging sends through models; a step of fine-tuning sends its own three times."""
    given = experiment.evaluation
    whose = Whose.of(problem, experiment.strategy, experiment.client, given)
    clients, found = whose.clients(problem, given), 0
    if whose.everybodys:
        found += problem.judged_examples(given.on, clients=clients)
    if whose.own and clients:
        found += sum(len(rows) for rows, _ in problem.judged.by_clients(given.on).values())
    if problem.newcomers is not None:
        found += sum(len(rows) for rows, _ in problem.newcomers.by_clients(given.on).values())
    if not clients or given.finetune is None:
        return found
    width, sizes = given.finetune.batch_size, problem.sizes_on_device
    steps = tuning_of(given.finetune).local_steps(sizes)
    return found + 3 * int((steps * (sizes if width == "full" else sizes.clamp(max=width))).sum())


def _training(experiment: Experiment, problem: Supervised, orders: Order, window: Window) -> float:
    """Multiply-adds that the work of a round's clients of mean size comes to, as they declare it."""
    client, examples = experiment.client, problem.sizes_on_device[orders.clients]
    cost = declared(client, orders, examples)
    steps = cost.steps.double() if cost.effort is None else cost.steps + cost.effort
    passes = steps / FORWARD + cost.queries
    width = examples if client.batch_size == "full" else examples.clamp(max=client.batch_size)
    working = at_once(experiment.selection, problem.num_clients)
    if isinstance(window, First):
        working = min(working, window.count)
    beside = 0 if client.values_only else operations_beside(client, problem)
    examples_passed = working * float((passes * width).mean())
    return problem.model.footprint.operations * examples_passed + working * beside * float(cost.steps.double().mean())


def _least(work: float, allowed: float, unit: int, divides: int = 0) -> int:
    """The least of 1, 2, 5, 10 and so on, times `unit`, after which so much work is allowed.

    divides: a number that it has to divide, and that it is itself where none does; 0: none.
    """
    ladder = (unit * digit * int(10**power) for power in numbers() for digit in (1, 2, 5))
    if not divides:
        return next(every for every in ladder if work <= every * allowed)
    fits = (every for every in ladder if every >= divides or (divides % every == 0 and work <= every * allowed))
    return min(next(fits), divides)
