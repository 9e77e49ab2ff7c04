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
from fedsim.nets.optimizers import Beginning, Step, descend_plainly
from fedsim.nets.stack import Layout, Stack
from fedsim.parallel.cores import spread

WORTH_A_THREAD = 20_000_000
"""Multiply-adds that a step must have, for each core, before threads win more than they lose to Python's lock."""

NOT_DRAWING = nullcontext()

StepBy = Callable[[int, Sequence[Tensor], float], None]
"""Takes a step: its number, the gradient, the learning rate."""


class PlainLoop:
    """Takes all local steps of clients, one client after the other on each core; see the module's text.

    operations: multiply-adds of a client's step.
    """

    def __init__(self, model: Functional, layout: Layout, loss: Loss, operations: float) -> None:
        self._model, self._layout, self._loss = model, layout, loss
        self._spreads = operations > WORTH_A_THREAD
        dropout = [part for part in model.parts() if isinstance(part, NamedDropout)]
        self._draws = layout.normalises or any(part.p > 0.0 for part in dropout)

    def takes(self, rule: Rule) -> bool:
        """Those that ask for nothing but gradients."""
        return not rule.optimizer.needs

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
        weights = {count: start.new_ones(count) / count for count in set(counts)}
        together = list(self._layout.named(start).values()) if start.dim() == 1 else None
        losses, ends = [start] * len(counts), found.params.unbind()

        def train(client: int) -> None:
            rows = slice(firsts[client], firsts[client] + steps[client])
            leaves = list(self._layout.named(start[client]).values()) if together is None else together
            losses[rows] = self._train(descent, client, leaves, rows, counts[rows], weights, ends[client])

        longest = torch.argsort(descent.steps, descending=True, stable=True).tolist()
        if self._spreads:
            spread(train, longest)
        else:
            for client in longest:
                train(client)
        if not surely_finite(found.params):
            found.finite.copy_(torch.isfinite(found.params).all(dim=1))
        for count, weight in weights.items():
            own = [row for row, other in enumerate(counts) if other == count]
            found.losses[own] = weighted(torch.stack([losses[row] for row in own]), weight.expand(len(own), -1))
        for first, several, total in zip(firsts, steps, found.total, strict=True):
            for loss in found.losses[first : first + several].unbind():
                total += loss
        return found

    def _train(
        self,
        descent: Descent,
        client: int,
        leaves: Sequence[Tensor],
        rows: slice,
        counts: list[int],
        weights: Mapping[int, Tensor],
        end: Tensor,
    ) -> list[Tensor]:
        """Take the steps of a client, which have these rows: the losses of their examples.

        leaves: where it begins. counts: how many examples each step has. weights: what each of that many counts.
        end: [d], where it is written where it ends.
        """
        layout, rule, x, y, draw = self._layout, descent.rule, descent.x, descent.y, descent.draw
        model, parameters, places = self._model.own(leaves)
        moved = places[: layout.trained]
        shift = None if descent.shift is None else _row(descent.shift, client)
        if rule.plain:
            step_by = self._plainly(rule, moved, shift)
        else:
            step_by = self._stepper(rule, moved, shift, Beginning(descent.examples[client : client + 1]))
        who, turn = draw.clients[client : client + 1], draw.turn
        turn = turn[client : client + 1] if isinstance(turn, Tensor) else turn
        # Asked for here, at once: what is done between two passes is in no cache, and takes some ten times as long.
        index = [row[:count] for row, count in zip(descent.index[rows].unbind(), counts, strict=True)]
        targets = y.index_select(0, torch.cat(index)).split_with_sizes(counts)
        rates = descent.rates[client].tolist() if isinstance(descent.rates, Tensor) else descent.rates
        found = []
        for step, (row, own, count) in enumerate(zip(index, targets, counts, strict=True)):
            with drawing(Draw(draw.streams, who, turn, step), stacked=False) if self._draws else NOT_DRAWING:
                outputs = model(x.index_select(0, row))
            losses = self._loss.examples(outputs, own)
            step_by(step, weighted_gradient(losses, weights[count], parameters), rates[step])
            found.append(losses.detach())
        self._model.write(end)
        if descent.change:
            end.sub_(_row(descent.start, client))
        return found

    def _plainly(self, rule: Rule, places: Sequence[Tensor], shift: Tensor | None) -> StepBy:
        """The step of a rule without memory, which goes by element and asks for no axis of clients."""
        rows = Stack(places)
        shifts = None if shift is None else self._layout.moved(Stack(self._layout.named(shift).values()))

        def step_by(step: int, gradient: Sequence[Tensor], lr: float) -> None:  # noqa: ARG001
            descend_plainly(rows, Stack(gradient), lr, rule.decay, shifts)

        return step_by

    def _stepper(self, rule: Rule, places: Sequence[Tensor], shift: Tensor | None, beginning: Beginning) -> StepBy:
        """The step of a rule of any kind, for a stack of one client."""
        rows = Stack([place.unsqueeze(0) for place in places])
        shifts = None if shift is None else self._layout.moved(self._layout.stack(shift))
        stepper = rule.stepper(rows, beginning)

        def step_by(step: int, gradient: Sequence[Tensor], lr: float) -> None:
            own = Stack([part.unsqueeze(0) for part in gradient])
            stepper.take(rows, Step(step, lr, rule.corrected(rows, own, shifts)))

        return step_by


def _row(vectors: Tensor, client: int) -> Tensor:
    """The client's own of one vector [d] or several [C, d]."""
    return vectors if vectors.dim() == 1 else vectors[client]
