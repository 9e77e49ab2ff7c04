"""Local search: the steps that a cohort takes along gradients that it has estimated from values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import field
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedsim.core.options import BatchSize, Passes, Rate, options
from fedsim.core.plugins import HasPlugins
from fedsim.core.schedules import Constant, Schedule, scheduled
from fedsim.engine.client import Client
from fedsim.engine.cohort import Cohort
from fedsim.exchange.messages import Cost, Order, Size, Update
from fedsim.exchange.transforms import Shapes
from fedsim.nets.descent import Rule
from fedsim.nets.dropout import Draw
from fedsim.nets.network import Batch
from fedsim.nets.optimizers import Beginning, Need, Optimizer, Step, StepDraws
from fedsim.zeroth_order.estimator import Estimate, Memory, Probe, estimated
from fedsim.zeroth_order.failures import outranked

MEASURE = "measure"
"""The action whose reply is the values of f_c at the candidates that the order carries."""


def batches(cohort: Cohort, batch_size: BatchSize, steps: int) -> Iterator[Batch | None]:
    """What values are about in so many steps: independent batches; None where they are about all that a client has."""
    if batch_size == "full" or not len(cohort):
        yield from [None] * steps
    else:
        yield from cohort.batches(steps=steps, batch_size=batch_size)


GIVEN: frozenset[Need] = frozenset({"noise", "end"})
"""What a search gives an optimizer beside the direction."""


@options
class LocalSearch(HasPlugins, Client):
    """How a client searches: z <- z - lr * direction, so many steps from the server's model."""

    parts: ClassVar[Mapping[str, str]] = {"optimizer": "optimizers"}
    requires: ClassVar[frozenset[str]] = frozenset({"params"})
    accepts: ClassVar[frozenset[str]] = frozenset({"candidates"})
    up: ClassVar[frozenset[str]] = frozenset({"delta", "values"})
    takes_slopes: ClassVar[bool] = True

    steps: Passes = 10
    """T, steps of a round."""
    batch_size: BatchSize = "full"
    """Examples that the values of a step are about, each step an independent batch; full: all of the client's, and all
    that a black box knows.
    """
    lr: Rate | None = None
    """The learning rate. Not given: 0.01, or 1 where the optimizer finds its own."""
    schedule: Schedule = Constant()
    """Factor of lr over the rounds."""
    optimizer: Any = field(default_factory=lambda: {"kind": "adam", "beta2": 0.999})
    """The rule of a step, for which directions are gradients; what it remembers begins anew in every round."""
    project: bool = True
    """Keep z within the problem's box."""
    cosine: bool = False
    """Tell the mean cosine of the directions to the gradient of F, where the problem knows it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.rule.hold_needs("optimizer", GIVEN, "a search along directions that are made of values")

    @property
    def rule(self) -> Optimizer:
        """The optimizer."""
        rule: Optimizer = self.made["optimizer"]
        return rule

    @property
    def values_only(self) -> bool:
        """Values are all that it asks for."""
        return True

    @property
    def same_every_round(self) -> bool:
        """Whether rounds differ in nothing but their draws."""
        return isinstance(self.schedule, Constant)

    def rate(self, cohort: Cohort) -> float:
        """The learning rate in the round of a cohort's order."""
        lr = (self.rule.usual if self.rule.rate_free else 0.01) if self.lr is None else self.lr
        return lr if self.same_every_round else scheduled(lr, self.schedule, cohort.round)

    def declared(self, order: Order, examples: Tensor, queries: int) -> Cost:
        """The cost of a search that asks for so many values and sends the change; or of measuring candidates."""
        nothing = torch.zeros_like(examples)
        if order.action == MEASURE:
            candidates = order.payload["candidates"]
            return Cost(nothing, {"values": Size.of(candidates[:, 0])}, len(candidates), extra=len(candidates))
        steps = nothing if self.batch_size == "full" else nothing + self.steps
        return Cost(steps, {"delta": Size.of(order.payload["params"])}, queries)

    def batches(self, cohort: Cohort) -> Iterator[Batch | None]:
        """What each local step's values are about."""
        return batches(cohort, self.batch_size, self.steps)

    def search(self, cohort: Cohort, start: Tensor, direction: Callable[[Probe, Tensor], Tensor]) -> Tensor:
        """Take the local steps from `start` ([d] or [C, d]): z [C, d].

        direction(probe, z): the direction [C, d] at z, whatever it is made of.
        """
        z = start.expand(len(cohort), -1).clone()
        rows, lr, cosines = cohort.parts(z), self.rate(cohort), list[Tensor]()
        stepper = Rule(self.rule, None, 0.0, 0.0).stepper(rows, Beginning(cohort.examples))
        for step, batch in enumerate(self.batches(cohort)):
            along = direction(Probe(cohort, len(cohort), batch, step), z)
            truth = cohort.truth(z) if self.cosine else None
            if truth is not None:
                cosines.append(torch.cosine_similarity(along, truth, dim=1))
            noise = StepDraws(Draw(cohort.streams, cohort.clients, cohort.turn, step))
            stepper.take(rows, Step(step, lr, cohort.parts(along.clone()), noise=noise))
            if self.project and cohort.bounds is not None:
                z.clamp_(*cohort.bounds)
        if cosines:
            cohort.metrics["cosine"] = torch.stack(cosines).mean(dim=0)
        return stepper.end(rows).flat() if "end" in self.rule.needs else z

    def measure(self, cohort: Cohort) -> Update:
        """Tell the values of f_c at the candidates, those that failed as the worst; the methods' papers count none."""
        candidates = cohort.received("candidates")
        return Update({"values": outranked(cohort.query(candidates.expand(len(cohort), -1, -1), extra=True))})


@options
class EstimatedSearch(LocalSearch):
    """A local search along gradients of an estimator."""

    parts: ClassVar[Mapping[str, str]] = {**LocalSearch.parts, "estimator": "estimators"}

    estimator: Any = "differences"
    """How gradients are made of values."""

    @property
    def values_only(self) -> bool:
        """Whether values are all that its estimator asks for."""
        return bool(self.made["estimator"].values_only)

    def state(self, dimension: int) -> Shapes:
        """What the estimator remembers of each client."""
        estimator = self.made["estimator"]
        estimator.check(dimension)
        shapes: Shapes = estimator.state(dimension)
        return shapes

    def numbers(self, dimension: int, largest: int) -> int:  # noqa: ARG002
        """The directions and the points along them, and a few vectors."""
        return (9 + 2 * int(self.made["estimator"].evaluations(dimension))) * dimension

    def evaluations(self, dimension: int) -> int:
        """What one estimate asks for, the point itself included where it is needed."""
        estimator = self.made["estimator"]
        return int(estimator.evaluations(dimension) + estimator.needs_base)

    def cost(self, order: Order, examples: Tensor) -> Cost:
        """Evaluations of all steps, and d floats."""
        queries = 0 if order.action == MEASURE else self.steps * self.evaluations(order.payload["params"].numel())
        return self.declared(order, examples, queries)

    def estimate(self, probe: Probe, x: Tensor, memory: Memory) -> Estimate:
        """The estimate at x [k, d], and all that is then remembered."""
        estimator = self.made["estimator"]
        base = probe.query(x.unsqueeze(1))[:, 0] if estimator.needs_base else None
        found = estimated(estimator, estimator.estimate(probe, x, base, memory), x)
        return found._replace(memory={**memory, **found.memory})
