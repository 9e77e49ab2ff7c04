"""Gradient estimators: what they may ask, and what they give.

An estimator is a plug-in of the group `estimators`. It works on k clients at once and never loops over them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

from torch import Tensor

from fedsim.core.streams import Index, Streams
from fedsim.engine.cohort import Cohort, first
from fedsim.exchange.messages import broken, shown
from fedsim.exchange.transforms import Shapes
from fedsim.nets.network import Batch
from fedsim.zeroth_order import directions

Memory = Mapping[str, Tensor]
"""What the estimator remembers of each client, [k, ...] by name."""


@dataclass(frozen=True)
class Probe:
    """One estimate's access to the functions f_c of the first `count` clients of a cohort.

    batch: the examples that all its values are about; None: all of a client's, or a black box. step: of the local
    steps, from 0; names the draws. point: tells apart several estimates in one step.
    """

    cohort: Cohort
    count: int
    batch: Batch | None
    step: int
    point: str = "estimate"

    @property
    def streams(self) -> Streams:
        """Named draws."""
        return self.cohort.streams

    @property
    def clients(self) -> Tensor:
        """The clients' ids, int64 [k]."""
        return self.cohort.clients[: self.count]

    @property
    def turn(self) -> Index:
        """The number under which each of them draws."""
        return first(self.cohort.turn, self.count)

    def query(self, x: Tensor, *, extra: bool = False) -> Tensor:
        """Values [k, Q] at x [k, Q, d], each counted; extra: outside the method's published count."""
        return self.cohort.query(x, self.batch, extra=extra)

    def differentiate(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Values [k] at x [k, d] and derivatives [k, Q] along v [k, Q, d]; see `Cohort.differentiate`."""
        return self.cohort.differentiate(x, v, self.batch)

    def directions(self, kind: directions.Kind, count: int) -> Tensor:
        """Random directions [k, count, d]."""
        cohort = self.cohort
        return directions.draw(
            kind,
            self.streams,
            f"directions/{self.point}",
            self.clients,
            count,
            cohort.dimension,
            turn=self.turn,
            step=self.step,
            dtype=cohort.dtype,
        )


class Estimate(NamedTuple):
    """A gradient [k, d], a value of f_c near the point [k], and what is remembered, [k, ...] by name."""

    gradient: Tensor
    value: Tensor
    memory: Memory


def estimated(estimator: object, given: Any, x: Tensor) -> Estimate:
    """What an estimator has returned for points x [k, d]. BrokenPromiseError: it is no estimate for them."""
    if not isinstance(given, Estimate) or not isinstance(given.memory, Mapping):
        fault = f"estimate returns {shown(given)}, not an Estimate whose memory has tensors by name"
    elif not isinstance(given.gradient, Tensor) or given.gradient.shape != x.shape:
        fault = f"its gradient at {shown(x)} is {shown(given.gradient)}"
    elif not isinstance(given.value, Tensor) or given.value.shape != x.shape[:1]:
        fault = f"its value at {shown(x)} is {shown(given.value)}; give one number a client"
    else:
        return given
    raise broken("client.estimator", "estimators", estimator, fault)


class Estimator(Protocol):
    """A rule that makes a gradient of values.

    values_only: whether values are all it asks for. needs_base: whether it uses f_c at the point itself, which is then
    evaluated before it, and counted.
    """

    values_only: ClassVar[bool]

    @property
    def needs_base(self) -> bool:
        """Whether it uses the value at the point itself."""
        ...

    def evaluations(self, dimension: int) -> int:
        """How many evaluations one estimate asks for, beside the point itself."""
        ...

    def state(self, dimension: int) -> Shapes:
        """What it remembers of each client between estimates: shapes by name; zeros at first."""
        ...

    def check(self, dimension: int) -> None:
        """Refuse (InputError) options that do not go with so many parameters."""
        ...

    def estimate(self, probe: Probe, x: Tensor, base: Tensor | None, memory: Memory) -> Estimate:
        """Estimate the gradients of f_c at x [k, d]. base: f_c(x), [k], where it is needed."""
        ...
