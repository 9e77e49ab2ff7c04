"""Local search: the steps that a cohort takes along gradients that it has estimated from values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from fedsim.core.errors import InputError
from fedsim.core.options import BatchSize, Fraction, Passes, PositiveFloat, Rate, options
from fedsim.core.plugins import HasPlugins
from fedsim.core.schedules import Constant, Schedule, scheduled
from fedsim.engine.client import Client
from fedsim.engine.cohort import Cohort
from fedsim.exchange.messages import Cost, Order, Size, Update
from fedsim.exchange.transforms import Shapes
from fedsim.nets.network import Batch
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


@options
class LocalSearch(Client):
    """How a client searches: z <- z - lr * direction, so many steps from the server's model.

    Optimizers begin anew in every round.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"params"})
    accepts: ClassVar[frozenset[str]] = frozenset({"candidates"})
    up: ClassVar[frozenset[str]] = frozenset({"delta", "values"})

    steps: Passes = 10
    """T, steps of a round."""
    batch_size: BatchSize = "full"
    """Examples that the values of a step are about, each step an independent batch; full: all of the client's, and all
    that a black box knows.
    """
    lr: Rate = 0.01
    """The learning rate."""
    schedule: Schedule = Constant()
    """Factor of lr over the rounds."""
    optimizer: Literal["sgd", "adam"] = "adam"
    """sgd, or adam (bias-corrected; Kingma and Ba 2015)."""
    beta1: Fraction = 0.9
    """Of adam, how slowly the mean direction moves."""
    beta2: Fraction = 0.999
    """Of adam, how slowly the mean square moves."""
    epsilon: PositiveFloat = 1e-8
    """Of adam, added to the root of the mean square."""
    project: bool = True
    """Keep z within the problem's box."""
    cosine: bool = False
    """Tell the mean cosine of the directions to the gradient of F, where the problem knows it."""

    def __post_init__(self) -> None:
        if self.optimizer == "sgd":
            for name, default in (("beta1", 0.9), ("beta2", 0.999), ("epsilon", 1e-8)):
                if getattr(self, name) != default:
                    raise InputError(name, getattr(self, name), "is an option of optimizer = 'adam' only")

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
        return self.lr if self.same_every_round else scheduled(self.lr, self.schedule, cohort.round)

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
        mean, square = torch.zeros_like(z), torch.zeros_like(z)
        lr, cosines = self.rate(cohort), list[Tensor]()
        for step, batch in enumerate(self.batches(cohort)):
            along = direction(Probe(cohort, len(cohort), batch, step), z)
            truth = cohort.truth(z) if self.cosine else None
            if truth is not None:
                cosines.append(torch.cosine_similarity(along, truth, dim=1))
            if self.optimizer == "adam":
                mean.lerp_(along, 1.0 - self.beta1)
                square.mul_(self.beta2).addcmul_(along, along, value=1.0 - self.beta2)
                scale = (square / (1.0 - self.beta2 ** (step + 1))).sqrt_().add_(self.epsilon)
                along = mean / (1.0 - self.beta1 ** (step + 1)) / scale
            z.add_(along, alpha=-lr)
            if self.project and cohort.bounds is not None:
                z.clamp_(*cohort.bounds)
        if cosines:
            cohort.metrics["cosine"] = torch.stack(cosines).mean(dim=0)
        return z

    def measure(self, cohort: Cohort) -> Update:
        """Tell the values of f_c at the candidates, those that failed as the worst; the methods' papers count none."""
        candidates = cohort.received("candidates")
        return Update({"values": outranked(cohort.query(candidates.expand(len(cohort), -1, -1), extra=True))})


@options
class EstimatedSearch(HasPlugins, LocalSearch):
    """A local search along gradients of an estimator."""

    parts: ClassVar[Mapping[str, str]] = {"estimator": "estimators"}

    estimator: Any = "differences"
    """How gradients are made of values."""

    def __post_init__(self) -> None:
        LocalSearch.__post_init__(self)
        HasPlugins.__post_init__(self)

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
