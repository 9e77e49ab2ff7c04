"""Outputs of the clients' own models for examples of their own, many clients at once."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from fedsim.engine.cohort import JUDGED
from fedsim.engine.executor import Executor
from fedsim.nets.network import Network
from fedsim.nets.stack import Stack
from fedsim.parallel.cores import one_core_an_operation, spread
from fedsim.problems.base import EVALUATED_AT_ONCE
from fedsim.problems.judged import Rows


@runtime_checkable
class Remembers(Protocol):
    """An engine that knows what its clients remember. executor: says how models are computed."""

    executor: Executor

    def remembered(self, name: str, clients: Tensor) -> tuple[Tensor, Tensor]:
        """What `clients` [C] remember under a name, [C, *shape], and who of them has taken part so far, bool [C].

        Of the others what they would begin with.
        """
        ...


def personal_outputs(executor: Executor, params: Tensor, own: Tensor, rows: Rows, count: Tensor) -> Tensor:
    """Outputs of each client's model for its own examples: [n, ...], one client after the other.

    params: what is shared, [d_s]. own: what the clients have of their own, [N, p]. rows: their examples, one client's
    after the other's; count: how many each has, int64 [N]. A client's numbers do not depend on the others, nor on how
    many cores there are.
    """
    model, network = executor.problem.model, executor.network
    assert model is not None
    assert network is not None
    private = model.private
    assert private is not None
    width = min(JUDGED, max(2, int(count.max())))  # that of no part of the clients, which would change the bits
    together = max(1, EVALUATED_AT_ONCE // (width * model.footprint.activations))
    begin = count.cumsum(0) - count
    having = (count > 0).nonzero().flatten()

    def outputs(clients: Tensor) -> Tensor:
        models = private.layout.stack(private.join(params, own[clients]))
        return _outputs(network, models, rows, begin[clients], count[clients], width)

    with one_core_an_operation():
        return torch.cat(spread(outputs, torch.split(having, together)))


def _outputs(network: Network, models: Stack, rows: Rows, begin: Tensor, count: Tensor, width: int) -> Tensor:
    """The outputs of k clients, one after the other.

    begin, count: where their examples are in `rows`, int64 [k]. width: of so many examples of each at a time.
    """
    numbers, found = rows.numbers, list[Tensor]()
    for first in range(0, int(count.max()), width):
        place = first + torch.arange(width, device=count.device)
        inside = place < count.unsqueeze(1)
        index = numbers[begin.unsqueeze(1) + torch.where(inside, place, 0)]
        found.append(network.outputs(models, rows.x[index]))
    place = torch.arange(len(found) * width, device=count.device)
    return torch.cat(found, dim=1)[place < count.unsqueeze(1)]
