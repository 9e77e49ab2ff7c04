"""Local training: the steps that a cohort takes on its own data, shared by every client that trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from fedsim.engine.batches import steps_of
from fedsim.engine.cohort import Cohort
from fedsim.engine.network import Batch
from fedsim.engine.stack import Stack
from fedsim.errors import InputError
from fedsim.exchange import Cost, Orders
from fedsim.options import BatchSize, Count, Fraction, NonNegative, Positive, options
from fedsim.schedules import Constant, Schedule

EPSILON = 1e-12


@options
class LocalTraining:
    """How a client trains: y <- y - lr * direction, over mini-batches of its own examples.

    epochs, or steps: passes over the data, each freshly shuffled, the last batch possibly partial; or so many steps,
    each on an independent batch. batch_size: examples, or "full". lr times schedule's factor: the rate in a round.
    optimizer: sgd (momentum, Nesterov's form), adam (bias-corrected; Kingma and Ba 2015) or lion (sign of an
    interpolated
    momentum; Chen et al. 2023), fresh in every round. weight_decay: added to the gradient for sgd and adam, decoupled
    for lion. clip_norm: bound of the l2 norm of the gradient of the client's loss, before decay and corrections.
    """

    epochs: Count | None = None
    steps: Count | None = None
    batch_size: BatchSize = 32
    lr: Positive = 0.1
    schedule: Schedule = Constant()
    optimizer: Literal["sgd", "adam", "lion"] = "sgd"
    momentum: Fraction = 0.0
    nesterov: bool = False
    beta1: Fraction = 0.9
    beta2: Fraction = 0.99
    epsilon: Positive = 1e-8
    weight_decay: NonNegative = 0.0
    clip_norm: Positive | None = None

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise InputError(
                "epochs", self.epochs, "give exactly one of epochs and steps (--set client.epochs=none takes one away)"
            )
        if self.nesterov and self.momentum == 0.0:
            raise InputError("nesterov", True, "needs a momentum above 0")
        if self.optimizer == "sgd":
            for name, default in (("beta1", 0.9), ("beta2", 0.99), ("epsilon", 1e-8)):
                if getattr(self, name) != default:
                    raise InputError(name, getattr(self, name), "is an option of optimizer = 'adam' or 'lion' only")
        if self.momentum and self.optimizer != "sgd":
            raise InputError("momentum", self.momentum, "is an option of optimizer = 'sgd' only")

    @property
    def plain(self) -> bool:
        """Whether a step is a multiple of the gradient, so that it may be fused with it."""
        return self.optimizer == "sgd" and self.momentum == 0.0 and self.clip_norm is None

    @property
    def same_every_round(self) -> bool:
        """Whether rounds differ in nothing but their draws."""
        return isinstance(self.schedule, Constant)

    def rate(self, cohort: Cohort) -> float:
        """The learning rate in the round of a cohort's order."""
        return self.lr if self.same_every_round else self.lr * self.schedule.factor(cohort.round)

    def local_steps(self, examples: Tensor) -> Tensor:
        """How many steps clients with so many examples take: int64 [C]."""
        return steps_of(examples, self.epochs, self.steps, self._width)

    def cost(self, orders: Orders, examples: Tensor) -> Cost:
        """Steps, and one vector the size of the parameters sent up."""
        params = orders.payload["params"]
        return Cost(self.local_steps(examples), params.numel() * params.element_size())

    def descend(
        self, cohort: Cohort, start: Tensor, *, decay: float = 0.0, shift: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Train from `start` ([d] or [C, d]) on f_i(y) + decay/2 |y|^2 - <shift, y>.

        decay and shift ([d] or [C, d]) are added to every gradient: grad f_i(y) + decay y - shift.
        Returns y [C, d] and the mean loss over the steps [C], taken before each step.
        """
        y = cohort.stack(start)
        fixed = None if shift is None else cohort.stack(shift)
        rule = None if self.plain else self._rule(y)
        lr = self.rate(cohort)
        coupled = decay + (self.weight_decay if self.optimizer != "lion" else 0.0)
        decoupled = self.weight_decay if self.optimizer == "lion" else 0.0
        losses = torch.zeros(len(cohort), dtype=y.leaves[0].dtype, device=y.leaves[0].device)
        rows, fixed_rows = y, fixed
        for step, batch in enumerate(cohort.batches(epochs=self.epochs, steps=self.steps, batch_size=self._width)):
            active = len(batch)
            if active != len(rows):
                rows, fixed_rows = y[:active], None if fixed is None else fixed[:active]
            if rule is None:
                loss = cohort.network.descend(rows, batch, lr, coupled, fixed_rows)
            else:
                loss, gradient = self._gradient(cohort, rows, batch, coupled, fixed_rows)
                if decoupled:
                    rows.mul_(1.0 - lr * decoupled)
                rule(step, rows, gradient, lr)
            losses[:active] += loss
        return y.flat(), losses / cohort.steps_taken.clamp(min=1)

    @property
    def _width(self) -> int | None:
        return None if self.batch_size == "full" else self.batch_size

    def _gradient(
        self, cohort: Cohort, rows: Stack, batch: Batch, decay: float, shift: Stack | None
    ) -> tuple[Tensor, Stack]:
        loss, gradient = cohort.network.gradients(rows, batch)
        if self.clip_norm is not None:
            squares = [leaf.reshape(len(leaf), -1).square().sum(dim=1) for leaf in gradient.leaves]
            norm = torch.stack(squares, dim=1).sum(dim=1).sqrt()
            factor = torch.clamp(self.clip_norm / (norm + EPSILON), max=1.0)
            for leaf in gradient.leaves:
                leaf.mul_(factor.view(-1, *(1,) * (leaf.dim() - 1)))
        if decay:
            gradient.add_(rows, alpha=decay)
        if shift is not None:
            gradient.add_(shift, alpha=-1.0)
        return loss, gradient

    def _rule(self, y: Stack) -> Callable[[int, Stack, Stack, float], None]:
        """The elementwise step (step number, y, gradient, lr) of the chosen optimizer, with fresh memory."""
        first = Stack([torch.zeros_like(leaf) for leaf in y.leaves])
        second = Stack([torch.zeros_like(leaf) for leaf in y.leaves]) if self.optimizer == "adam" else first

        def sgd(step: int, rows: Stack, gradient: Stack, lr: float) -> None:  # noqa: ARG001
            velocity = first[: len(rows)]
            if self.momentum:
                velocity.mul_(self.momentum).add_(gradient)
                gradient = gradient.add_(velocity, self.momentum) if self.nesterov else velocity
            rows.add_(gradient, -lr)

        def adam(step: int, rows: Stack, gradient: Stack, lr: float) -> None:
            mean, square = first[: len(rows)].leaves, second[: len(rows)].leaves
            torch._foreach_lerp_(mean, gradient.leaves, 1.0 - self.beta1)
            torch._foreach_mul_(square, self.beta2)
            torch._foreach_addcmul_(square, gradient.leaves, gradient.leaves, 1.0 - self.beta2)
            scale = torch._foreach_div(square, 1.0 - self.beta2 ** (step + 1))
            torch._foreach_sqrt_(scale)
            torch._foreach_add_(scale, self.epsilon)
            torch._foreach_addcdiv_(rows.leaves, mean, scale, -lr / (1.0 - self.beta1 ** (step + 1)))

        def lion(step: int, rows: Stack, gradient: Stack, lr: float) -> None:  # noqa: ARG001
            mean = first[: len(rows)].leaves
            direction = torch._foreach_lerp(mean, gradient.leaves, 1.0 - self.beta1)
            torch._foreach_add_(rows.leaves, [part.sign_() for part in direction], alpha=-lr)
            torch._foreach_lerp_(mean, gradient.leaves, 1.0 - self.beta2)

        return {"sgd": sgd, "adam": adam, "lion": lion}[self.optimizer]
