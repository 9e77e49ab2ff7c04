"""All local steps of clients in one loop of PyTorch's own operations, for `engine.executor = "loop"`.

Each client has the numbers, to the bit, that it has step by step through `PlainNetwork`. What is done once a client
instead of at each step, or once a cohort instead of for each client, is beside the arithmetic: parameters stay where
the module has them, and nothing is planned, checked or copied in between.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from fedsim.core.finite import surely_finite
from fedsim.nets.descent import Descended, Descent, Rule
from fedsim.nets.dropout import Draw, NamedDropout, drawing
from fedsim.nets.functional import Functional
from fedsim.nets.losses import Loss, weighted, weighted_gradient
from fedsim.nets.optimizers import corrected, descend_plainly, stepper
from fedsim.nets.stack import Layout, Stack
from fedsim.parallel.cores import spread

WORTH_A_THREAD = 20_000_000
"""Multiply-adds that a step must have, for each core, before threads win more than they lose to Python's lock."""

Step = Callable[[int, Sequence[Tensor], float], None]
"""Takes a step: its number, the gradient, the learning rate."""


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
        found = Descended(
            start.new_empty((clients, start.shape[-1])),
            start.new_empty(len(counts)),
            start.new_zeros(clients),
            torch.ones(clients, dtype=torch.bool),
        )
        weights = {count: (start.new_ones(1, count) / count) for count in set(counts)}

        def train(client: int) -> None:
            rows = slice(firsts[client], firsts[client] + steps[client])
            self._train(descent, client, rows, counts[rows], weights, found)
            if not surely_finite(found.params[client]):
                found.finite[client] = torch.isfinite(found.params[client]).all()

        longest = torch.argsort(descent.steps, descending=True, stable=True).tolist()
        if self._spreads:
            spread(train, longest)
        else:
            for client in longest:
                train(client)
        return found

    def _train(
        self,
        descent: Descent,
        client: int,
        rows: slice,
        counts: Sequence[int],
        weights: Mapping[int, Tensor],
        found: Descended,
    ) -> None:
        """Take the steps of a client, which have these rows, so many examples each, and write where it ends."""
        layout, rule, x, y, draw = self._layout, descent.rule, descent.x, descent.y, descent.draw
        start = _row(descent.start, client)
        # Each in memory of its own, which begins where vectors do.
        copies = [part.clone() for part in layout.named(start).values()]
        model, parameters = self._model.bind(copies)
        places = [parameter.data for parameter in parameters]
        shift = None if descent.shift is None else _row(descent.shift, client)
        step_by = self._plainly(rule, places, shift) if rule.plain else self._stepper(rule, places, shift)
        who, turn = draw.clients[client : client + 1], draw.turn
        turn = turn[client : client + 1] if isinstance(turn, Tensor) else turn
        history = []
        for step, (row, count) in enumerate(zip(descent.index[rows].unbind(), counts, strict=True)):
            index = row[:count]
            named = Draw(draw.streams, who, turn, step)
            with drawing(named, stacked=False) if self._draws else nullcontext():
                outputs = model(x.index_select(0, index))
            losses = self._loss.examples(outputs, y.index_select(0, index))
            step_by(step, weighted_gradient(losses, weights[count][0], parameters), descent.rates[step])
            history.append(weighted(losses.detach().unsqueeze(0), weights[count]))
        end, total = found.params[client], found.total[client]
        torch.cat([part.reshape(-1) for part in (*places, *copies[layout.trained :])], out=end)
        if descent.change:
            end.sub_(start)
        if history:
            torch.cat(history, out=found.losses[rows])
        for loss in found.losses[rows].unbind():
            total += loss

    def _plainly(self, rule: Rule, places: Sequence[Tensor], shift: Tensor | None) -> Step:
        """The step of a rule without memory, which goes by element and asks for no axis of clients."""
        rows = Stack(places)
        shifts = None if shift is None else self._layout.moved(Stack(self._layout.named(shift).values()))

        def step_by(step: int, gradient: Sequence[Tensor], lr: float) -> None:  # noqa: ARG001
            descend_plainly(rows, Stack(gradient), lr, rule.decay, shifts)

        return step_by

    def _stepper(self, rule: Rule, places: Sequence[Tensor], shift: Tensor | None) -> Step:
        """The step of a rule of any kind, for a stack of one client."""
        rows = Stack([place.unsqueeze(0) for place in places])
        shifts = None if shift is None else self._layout.moved(self._layout.stack(shift))
        take = stepper(rule, rows)

        def step_by(step: int, gradient: Sequence[Tensor], lr: float) -> None:
            own = Stack([part.unsqueeze(0) for part in gradient])
            take(step, rows, corrected(rule, rows, own, shifts), lr)

        return step_by


def _row(vectors: Tensor, client: int) -> Tensor:
    """The client's own of one vector [d] or several [C, d]."""
    return vectors if vectors.dim() == 1 else vectors[client]
