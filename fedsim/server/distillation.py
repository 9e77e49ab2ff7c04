"""What a server has that trains the model itself: inputs that are public, without labels, and a network.

Teachers are models theta_i with outputs z_i and weights w_i that sum to one. What they say of an input together:

    logits          q = softmax(sum_i w_i z_i / T)
    probabilities   q = sum_i w_i softmax(z_i / T)

A student with outputs z loses T^2 KL(q || p), p = softmax(z / T), on it, of several places their mean, whose gradient
by z is T (p - q). Teachers and student are as they are judged: nothing drops out, and batch normalisation goes by
running statistics, which stay; so a student that is its only teacher has no gradient. Hinton, Vinyals and Dean 2015.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fedsim.core.streams import SERVER, Streams
from fedsim.nets.descent import Rule
from fedsim.nets.dropout import Draw
from fedsim.nets.losses import Loss
from fedsim.nets.network import Batch, Network
from fedsim.nets.optimizers import Beginning, Optimizer, Step
from fedsim.parallel.cores import one_core_an_operation, spread

Ensemble = Literal["logits", "probabilities"]
"""Of what the teachers' mean is taken."""
AT_ONCE = 2**22
"""Numbers that a core's pass of teachers makes at once."""
WIDEST = 1024
"""Inputs that a model is shown at once."""


@dataclass(frozen=True)
class Distillation(Loss):
    """T^2 KL(q || softmax(z / T)) of outputs z [..., *places, K] and targets log q of the same shape."""

    temperature: float = 1.0

    def examples(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Losses [C, B] of outputs [C, B, *places, K]."""
        student = torch.log_softmax(outputs / self.temperature, dim=-1)
        each = (targets.exp() * (targets - student)).sum(dim=-1) * self.temperature**2
        return each.flatten(2).mean(dim=2) if each.dim() > 2 else each

    def with_gradient(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Losses, and T (softmax(z / T) - q), of several places its share."""
        gradient = torch.softmax(outputs / self.temperature, dim=-1).sub_(targets.exp())
        places = math.prod(outputs.shape[2:-1])
        return self.examples(outputs, targets), gradient.mul_(self.temperature / places)


@dataclass(frozen=True, eq=False)
class Bench:
    """A server's own network and public inputs.

    network: of one model or of several. inputs: [n, ...]. activations: numbers that a model makes of one of them.
    """

    network: Network
    inputs: Tensor
    activations: int

    def taught(self, start: Tensor, changes: Tensor, weights: Tensor, ensemble: Ensemble, temperature: float) -> Tensor:
        """Log q [n, *places, K] of teachers start + changes, [d] and [C, d], with weights [C]."""
        width, layout = self._width, self.network.layout
        together = max(1, AT_ONCE // (width * self.activations + len(start)))
        parts = torch.split(changes, together)

        def taught(first: int) -> Tensor:
            x = self.inputs[first : first + width]
            said = [self.network.outputs(layout.stack(start + rows), _to_all(x, len(rows))) for rows in parts]
            scaled = torch.cat(said) / temperature
            share = weights.view(-1, *(1,) * (scaled.dim() - 1))
            if ensemble == "logits":
                return torch.log_softmax((share * scaled).sum(dim=0), dim=-1)
            return torch.logsumexp(torch.log_softmax(scaled, dim=-1) + share.log(), dim=0)

        return torch.cat(spread(taught, range(0, len(self.inputs), width)))

    def batches(self, streams: Streams, turn: int, steps: int, size: int) -> Tensor:
        """Which inputs each step is about, int64 [steps, B]: passes over all of them, each in an order of its own."""
        count, owner = len(self.inputs), torch.tensor([SERVER], device=self.inputs.device)
        size = min(size, count)
        passes = range(-(-steps * size // count))
        orders = [streams.permutation("public", owner, count, turn=turn, step=number)[0] for number in passes]
        return torch.cat(orders)[: steps * size].view(steps, size)

    @one_core_an_operation()
    def trained(
        self, params: Tensor, targets: Tensor, batches: Tensor, rule: Optimizer, lr: float, temperature: float
    ) -> Tensor:
        """The student [d] that begins at `params` and learns log q [n, *places, K], a step a batch, int64 [S, B].

        The learning rate falls from lr along half a cosine, which comes to 0 after the last step.
        """
        layout = self.network.layout
        rows = layout.stack(params)
        moved = layout.moved(rows)
        memory = rule.begin(moved, Beginning(torch.tensor([len(self.inputs)], device=params.device)))
        taking = Rule(rule, clip_norm=None, decay=0.0, decoupled=0.0)
        for number, own in enumerate(batches):
            rate = lr * 0.5 * (1.0 + math.cos(math.pi * number / len(batches)))
            _, gradient = self.network.gradients(rows, self._batch(own, targets, temperature))
            taking.take(memory, moved, Step(number, rate, gradient))
        return rows.flat()[0]

    @one_core_an_operation()
    def loss(self, params: Tensor, targets: Tensor, temperature: float) -> float:
        """The mean loss of a student [d] over all inputs that are taught so, log q [n, *places, K]."""
        rows, count = self.network.layout.stack(params), len(self.inputs)
        places = torch.split(torch.arange(count, device=params.device), self._width)
        means = [self.network.values(rows, self._batch(own, targets, temperature)) for own in places]
        return sum(float(mean) * len(own) for mean, own in zip(means, places, strict=True)) / count

    @property
    def _width(self) -> int:
        """How many inputs a model is shown at once: a function of the model alone."""
        return min(max(AT_ONCE // self.activations, 32), WIDEST)

    def _batch(self, own: Tensor, targets: Tensor, temperature: float) -> Batch:
        """The inputs of some places, int64 [B], for one student, and what is taught of them."""
        x, wanted = self.inputs[own].unsqueeze(0), targets[own].unsqueeze(0)
        weight = targets.new_full((1, len(own)), 1.0 / len(own))
        nobody = Draw(Streams(0), torch.tensor([SERVER], device=own.device), 0, 0)  # for nothing is drawn
        return Batch(x, wanted, weight, nobody, Distillation(temperature), padded=False, evaluated=True)


def _to_all(x: Tensor, count: int) -> Tensor:
    """The same inputs [B, ...] for so many models."""
    return x.unsqueeze(0).expand(count, *x.shape)
