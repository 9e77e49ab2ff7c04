"""Gradient coding's worker: combinations of the gradients of chunks of everybody's examples.

l = sum_j B_j g_j,  g_j = 1/N sum_(k in chunk j) grad loss_k(theta), in each slot; of an idle one zeros
Uplink d + 1 floats a slot: l, and the same combination of losses.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from fedsim.client import Client, Cohort, Cost, Order, Size, Update, options


@options
class GradientCoding(Client):
    """Needs the strategy `gradient_coding`, which says what each does. Dropout is inactive, which no two would share.

    Per step, an order takes the time of a step for each n-th of the data that is gone over, of n clients.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"job-models", "ages", "chunks", "factors", "ends"})
    up: ClassVar[frozenset[str]] = frozenset({"results", "losses"})

    def cost(self, order: Order, examples: Tensor) -> Cost:
        """No local steps; the effort of what is gone over."""
        first, count = spans(order.payload["ends"])
        chunks = order.payload["chunks"][order.clients.to(first.device)]
        over = torch.where(chunks >= 0, count[chunks.clamp(min=0)], 0).sum(dim=(1, 2)).double()
        effort = over * len(order.payload["chunks"]) / count.sum()
        slots, model = chunks.shape[1], order.payload["job-models"][:1]
        reply = {"results": Size.of(model.expand(slots, -1)), "losses": Size.of(model[0, :1].expand(slots))}
        return Cost(torch.zeros_like(examples), reply, effort=effort)

    def train(self, cohort: Cohort) -> Update:
        """Go over the chunks of each slot, as many at once as are about what a client has of its own."""
        models, who = cohort.received("job-models"), cohort.clients
        ages, chunks, factors = (cohort.received(name)[who] for name in ("ages", "chunks", "factors"))
        first, count = spans(cohort.received("ends"))
        whole, longest = int(count.sum()), max(1, int(count.max()))
        together = max(1, cohort.largest // longest)
        results = models.new_zeros(*ages.shape, models.shape[1])
        losses = models.new_zeros(ages.shape)
        place = torch.arange(max(2, longest), device=who.device)  # see `Cohort.batches`
        for slot in range(ages.shape[1]):
            y = cohort.stack(models[ages[:, slot]])
            for begin in range(0, chunks.shape[2], together):
                some = chunks[:, slot, begin : begin + together]
                at = some.clamp(min=0)
                inside = (place < count[at].unsqueeze(2)) & (some >= 0).unsqueeze(2)
                own = factors[:, slot, begin : begin + together].unsqueeze(2).to(models.dtype) / whole
                weight = torch.where(inside, own, 0.0)
                where = torch.where(inside, first[at].unsqueeze(2) + place, 0)
                loss, gradient = cohort.network.gradients(y, cohort.anybodys(where.flatten(1), weight.flatten(1)))
                losses[:, slot] += loss
                results[:, slot] += gradient.flat()
        return Update({"results": results, "losses": losses})


def spans(ends: Tensor) -> tuple[Tensor, Tensor]:
    """Where each chunk begins, and how many examples it has, int64 [K] both."""
    first = torch.cat((torch.zeros_like(ends[:1]), ends[:-1]))
    return first, ends - first
