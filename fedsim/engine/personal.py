"""Outputs of the clients' own models for examples of their own, many clients at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from fedsim.engine.cohort import JUDGED
from fedsim.engine.executor import Executor, Individuals, Tune
from fedsim.engine.store import Memories
from fedsim.engine.trace import Trace
from fedsim.exchange.messages import Order
from fedsim.nets.plain import WORTH_A_THREAD
from fedsim.nets.stack import Stack
from fedsim.parallel.cores import cores, one_core_an_operation, spread
from fedsim.problems.base import EVALUATED_AT_ONCE
from fedsim.problems.judged import Rows

Made = TypeVar("Made")


@runtime_checkable
class Remembers(Protocol):
    """An engine that knows what its clients remember. executor: says how models are computed."""

    executor: Executor
    trace: Trace

    def memories(self) -> Memories:
        """What clients remember now; to be read, and only until time goes on."""
        ...


@dataclass(frozen=True)
class Tuning:
    """How clients' models are trained before they are judged. steps: how many it takes each, newcomers last, int64."""

    tune: Tune
    steps: Tensor


@dataclass(frozen=True, eq=False)
class Owned:
    """The clients' own models, of which none is made before it is asked for.

    order: what the server would send clients next. store: what they remember. tuning: how models are trained before
    they are judged; None: they are not. first: the number of the first of them. begins: what they have, whatever they
    would remember, by name.
    """

    executor: Executor
    order: Order
    store: Memories
    tuning: Tuning | None = None
    first: int = 0
    begins: Mapping[str, Tensor] = field(default_factory=dict)

    def models(self, clients: Tensor) -> Stack:
        """The models of `clients` [k], whatever stays with them included, as rows of the whole layout.

        Where they are trained before, clients are sorted by the steps that it takes, longest first.
        """
        return self._own(clients).models

    def told(self, clients: Tensor) -> dict[str, Tensor]:
        """What the algorithm tells of clients beside their models, [k] by name."""
        if not self.executor.client.own_models:
            return {}
        parts = torch.split(clients, self.executor.chunk)
        with one_core_an_operation():
            found = spread(lambda part: self._own(part.to(self.executor.problem.device), tuned=False).told, parts)
        return {name: torch.cat([part[name] for part in found]) for name in found[0]}

    def _own(self, clients: Tensor, *, tuned: bool = True) -> Individuals:
        tune = self.tuning.tune if tuned and self.tuning is not None else None
        if tune is None:  # which may begin where they lie, and end there
            state = {name: self.store.lend(name, clients) for name in self.store.shapes}
        else:
            state = {name: self.store.look(name, clients)[0] for name in self.store.shapes}
        state |= {name: row.expand(len(clients), *row.shape).clone() for name, row in self.begins.items()}
        return self.executor.own_models(self.order, clients, state, tune)

    def each(self, clients: Tensor, width: int, do: Callable[[Tensor, Stack], Tensor]) -> list[tuple[Tensor, Tensor]]:
        """What is made of the models of some clients and of the clients themselves, in parts that fit into memory.

        Of each part the clients, and what was made. width: examples that a client's model has at once.
        """
        return self._each([clients], width, lambda part, own: do(part, own.models))

    def _each(
        self, groups: Iterable[Tensor], width: int, do: Callable[[Tensor, Individuals], Made]
    ) -> list[tuple[Tensor, Made]]:
        """The same of groups of clients, of which no part has some of two."""
        if self.tuning is None:
            groups = [self.store.along(own) for own in groups]
        else:
            steps = self.tuning.steps
            groups = [own[torch.argsort(steps[own], descending=True, stable=True)] for own in groups]
        model = self.executor.problem.model
        assert model is not None
        together = max(1, EVALUATED_AT_ONCE // (width * model.footprint.activations))
        if self.tuning is not None or self.executor.client.own_models:
            together = min(together, self.executor.chunk)
        work = width * model.footprint.operations
        parts = [part for group in groups for part in self._parts(group, together, work)]
        with one_core_an_operation():
            return list(zip(parts, spread(lambda part: do(part, self._own(part)), parts), strict=True))

    def _parts(self, clients: Tensor, together: int, work: int) -> list[Tensor]:
        """The clients, so many together at most, and on each core some, where a thread is worth it.

        work: multiply-adds of each. Where they are sorted by steps, longest first, all parts have some of the longest.
        """
        many = -(-len(clients) // together)
        if self.executor.problem.device.type == "cpu" and len(clients) // cores() * work > WORTH_A_THREAD:
            many = max(many, min(cores(), len(clients)))
        if self.tuning is None:
            return list(torch.tensor_split(clients, many))
        return [clients[first::many] for first in range(many)]

    def outputs(self, rows: Rows, count: Tensor) -> Tensor:
        """Outputs of each client's model for its own examples: [n, ...], one client after the other.

        rows: their examples, one client's after the other's; count: how many each has, int64 [N], from the first of
        them. A client's numbers do not depend on the others, nor on how many cores there are.
        """
        return self.outputs_and_told(rows, count)[0]

    def outputs_and_told(self, rows: Rows, count: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The same, and what `told` has of all these clients, of whom each is asked for its model once."""
        width = min(JUDGED, max(2, int(count.max())))  # that of no part of the clients, which would change the bits
        begin = count.cumsum(0) - count

        def outputs(clients: Tensor, own: Individuals) -> tuple[Tensor, dict[str, Tensor]]:
            place = clients - self.first
            return _outputs(own, rows, begin[place], count[place], width), own.told

        found = self._each([self.first + group for group in _alike(count, width)], width, outputs)
        together = torch.cat([outputs for _, (outputs, _) in found])
        told = self._gathered([(clients, said) for clients, (_, said) in found], count)
        order = torch.cat([clients for clients, _ in found]) - self.first
        if bool((order.diff() > 0).all()):
            return together, told
        sizes = count[order]
        moved = torch.repeat_interleave(begin[order] - (sizes.cumsum(0) - sizes), sizes)
        place = moved + torch.arange(len(together), device=count.device)
        return torch.empty_like(together).index_copy_(0, place, together), told

    def _gathered(self, found: list[tuple[Tensor, dict[str, Tensor]]], count: Tensor) -> dict[str, Tensor]:
        """What is told of all clients, [N] by name, of those with examples as it was found."""
        if not self.executor.client.own_models or not found[0][1]:
            return {}
        others = self.first + (count == 0).nonzero().flatten()
        if len(others):
            found = [*found, (others, self.told(others))]
        order = torch.argsort(torch.cat([clients for clients, _ in found]))
        return {name: torch.cat([said[name] for _, said in found])[order] for name in found[0][1]}


def _outputs(own: Individuals, rows: Rows, begin: Tensor, count: Tensor, width: int) -> Tensor:
    """The outputs of k clients, one after the other.

    begin, count: where their examples are in `rows`, int64 [k]. width: of so many examples of each at a time.
    """
    place = torch.arange(width * -(-int(count.max()) // width), device=count.device)
    inside = place < count.unsqueeze(1)
    index = _selected(rows.numbers, begin.unsqueeze(1) + torch.where(inside, place, 0))
    found = [own.outputs(_selected(rows.x, part)) for part in torch.split(index, width, dim=1)]
    together = (found[0] if len(found) == 1 else torch.cat(found, dim=1)).flatten(0, 1)
    return together if bool(inside.all()) else together.index_select(0, inside.flatten().nonzero().flatten())


def _selected(rows: Tensor, index: Tensor) -> Tensor:
    """Rows [k, B, ...] by their numbers [k, B], in a quarter of the time that indexing takes."""
    return rows.index_select(0, index.flatten()).view(*index.shape, *rows.shape[1:])


def _alike(count: Tensor, width: int) -> list[Tensor]:
    """Those who have examples, int64 [k] each, together with whom it takes at most twice as many batches of a width."""
    batches = -(-count // width)
    most = int(batches.max())
    if most == 1:
        return [count.nonzero().flatten()]
    rank = torch.bucketize(batches, torch.tensor([2**power for power in range(most.bit_length())], device=count.device))
    groups = [((rank == number) & (count > 0)).nonzero().flatten() for number in range(most.bit_length() + 1)]
    return [group for group in groups if len(group)]
