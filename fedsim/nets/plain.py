"""All local steps of clients in one loop of PyTorch's own operations, for `engine.executor = "loop"`.

Each client has the numbers, to the bit, that it has step by step through `PlainNetwork`. What is done once a client
instead of at each step, or once a cohort instead of for each client, is beside the arithmetic: parameters stay where
the module has them, and nothing is planned, checked or copied in between.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from fedsim.core.finite import surely_finite
from fedsim.nets.descent import Descended, Descent
from fedsim.nets.dropout import Draw, NamedDropout, drawing
from fedsim.nets.functional import Functional
from fedsim.nets.losses import Loss, weighted
from fedsim.nets.optimizers import corrected, descend_plainly, stepper
from fedsim.nets.stack import Layout, Stack
from fedsim.parallel.cores import spread

WORTH_A_THREAD = 20_000_000
"""Multiply-adds that a step must have, for each core, before threads win more than they lose to Python's lock."""


class PlainLoop:
    """Takes all local steps of clients, one client after the other on each core; see the module's text.

    operations: multiply-adds of a client's step.
    """

    def __init__(self, model: Functional, layout: Layout, loss: Loss, operations: float) -> None:
        self._model, self._layout, self._loss = model, layout, loss
        self._spreads = operations > WORTH_A_THREAD
        self._draws = layout.normalises or any(isinstance(part, NamedDropout) for part in model.parts())

    def descend(self, descent: Descent) -> Descended:
        """Take all steps of all clients."""
        start, clients = descent.start, len(descent.steps)
        counts: list[int] = descent.count.tolist()
        firsts, steps = descent.first.tolist(), descent.steps.tolist()
        end, total = start.new_empty((clients, start.shape[-1])), start.new_zeros(clients)
        losses, finite = start.new_empty(len(counts)), torch.ones(clients, dtype=torch.bool)
        weights = {count: (start.new_ones(1, count) / count) for count in set(counts)}

        def train(client: int) -> None:
            row, begin = slice(client, client + 1), firsts[client]
            for number, loss in enumerate(self._train(descent, client, begin, steps[client], counts, weights, end)):
                losses[begin + number] = loss[0]
                total[row] += loss
            if not surely_finite(end[client]):
                finite[client] = torch.isfinite(end[client]).all()

        longest = torch.argsort(descent.steps, descending=True, stable=True).tolist()
        if self._spreads:
            spread(train, longest)
        else:
            for client in longest:
                train(client)
        return Descended(end, losses, total, finite)

    def _train(
        self,
        descent: Descent,
        client: int,
        begin: int,
        steps: int,
        counts: list[int],
        weights: dict[int, Tensor],
        end: Tensor,
    ) -> list[Tensor]:
        """Take the steps of a client, whose first is row `begin`, to its row of `end`; the losses [1] of each."""
        layout, rule, x, y, draw = self._layout, descent.rule, descent.x, descent.y, descent.draw
        own = _row(descent.start, client)
        # Each in memory of its own, which begins where vectors do.
        begun = layout.named(own)
        copies = [part.clone() for part in begun.values()]
        model, parameters = self._model.bind(copies)
        ended = [*(parameter.data for parameter in parameters), *copies[layout.trained :]]
        rows = Stack([parameter.data.unsqueeze(0) for parameter in parameters])
        shift = None if descent.shift is None else layout.moved(layout.stack(_row(descent.shift, client)))
        take = None if rule.plain else stepper(rule, rows)
        who, turn = draw.clients[client : client + 1], draw.turn
        turn = turn[client : client + 1] if isinstance(turn, Tensor) else turn
        history = []
        for step in range(steps):
            count = counts[begin + step]
            index = descent.index[begin + step, :count]
            named = Draw(draw.streams, who, turn, step)
            with drawing(named, stacked=False) if self._draws else nullcontext():
                outputs = model(x.index_select(0, index))
            targets = y.index_select(0, index).unsqueeze(0)
            loss = weighted(self._loss.examples(outputs.unsqueeze(0), targets), weights[count])
            found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
            gradient, lr = Stack([part.unsqueeze(0) for part in found]), descent.rates[step]
            if take is None:
                descend_plainly(rows, gradient, lr, rule.decay, shift)
            else:
                take(step, rows, corrected(rule, rows, gradient, shift), lr)
            history.append(loss.detach())
        for place, numbers, before in zip(layout.named(end[client]).values(), ended, begun.values(), strict=True):
            if descent.change:
                torch.sub(numbers, before, out=place)
            else:
                place.copy_(numbers)
        return history


def _row(vectors: Tensor, client: int) -> Tensor:
    """The client's own of one vector [d] or several [C, d]."""
    return vectors if vectors.dim() == 1 else vectors[client]
