"""Per-FedAvg's client: it trains the model that is best after a step of everybody's own.

u = y - inner_lr grad f_i(y; b1),  g = grad f_i(u; b2)
y <- y - lr g                                first order (fo)
y <- y - lr (g - inner_lr H_i(y; b3) g)      with the Hessian (hf), or H g by a difference of gradients (hf_difference)
Three mini-batches, drawn independently. Uplink d floats, and nothing is kept: each client's own model is what
evaluation.finetune makes of the one for all. Fallah et al. 2020, "Personalized Federated Learning with Theoretical
Guarantees: A Model-Agnostic Meta-Learning Approach", algorithm 1 and section 5.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from itertools import repeat
from typing import Literal

import torch
from torch import Tensor

from fedsim.client import (
    Batch,
    Cohort,
    Cost,
    InputError,
    NonNegativeFloat,
    Order,
    PlainSteps,
    PositiveFloat,
    Stack,
    Update,
    norms,
    options,
    scaled,
    without_fast_paths,
)


@options
class PerFedAvg(PlainSteps):
    """Goes with strategies that average changes."""

    inner_lr: NonNegativeFloat
    """The rate of the step that it reckons with: that of evaluation.finetune; 0: none, as FedAvg."""
    form: Literal["fo", "hf", "hf_difference"] = "fo"
    """fo: as if the inner step were a shift by a constant; hf: with products with Hessians; hf_difference: with
    differences of gradients for them.
    """
    radius: PositiveFloat | None = None
    """How far from the model the gradients of a difference are taken, by the l2 norm. Not given: 0.01."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.radius is not None and self.form != "hf_difference":
            raise InputError("radius", self.radius, "only form = hf_difference asks for it; leave it out")

    @property
    def for_tuning(self) -> bool:
        """It is, but for steps of no length."""
        return self.inner_lr > 0.0

    @property
    def draws(self) -> int:
        """Mini-batches of a step."""
        return 2 if self.form == "fo" else 3

    def cost(self, order: Order, examples: Tensor) -> Cost:
        """A gradient on each mini-batch, on the third one more, or what takes as long as two; and d floats."""
        cost = super().cost(order, examples)
        effort = None if self.form == "fo" else 1.0 * cost.steps
        return cost.beside(Cost((self.draws - 1) * cost.steps, {}, effort=effort))

    def numbers(self, dimension: int, largest: int) -> int:
        """Beside, the model after the inner step, and a product."""
        return super().numbers(dimension, largest) + 2 * dimension

    def train(self, cohort: Cohort) -> Update:
        """Train by gradients after inner steps, and send the change."""
        theta, network, passes = cohort.received("params"), cohort.network, self.passes(cohort)
        with cohort.apart("inner"):
            inner = cohort.batches(**passes)
        curved: Iterable[Batch | None] = repeat(None)
        if self.form != "fo":
            with cohort.apart("curvature"):
                curved = cohort.batches(**passes)
        y, losses = cohort.stack(theta), torch.zeros(len(cohort), dtype=cohort.dtype, device=theta.device)
        with without_fast_paths if self.form == "hf" else nullcontext():
            for step, first, third in zip(self.paced(cohort), inner, curved, strict=False):
                rows = y[: len(step)]
                adapted = rows.copy()
                network.descend(adapted, first, self.inner_lr)
                loss, gradient = network.gradients(adapted, step.batch)
                if third is not None:
                    gradient.add_(self._product(cohort, rows, third, gradient), alpha=-self.inner_lr)
                step.along(gradient, rows, adapted)
                losses[: len(step)] += loss
        return Update({"delta": y.flat() - theta}, {"loss": losses * self.draws / cohort.steps_taken})

    def _product(self, cohort: Cohort, y: Stack, batch: Batch, v: Stack) -> Stack:
        """H_i(y; b) v, of the first k clients."""
        network = cohort.network
        if self.form == "hf":
            return network.products(y, batch, v)[2]
        length = norms(v)
        scale = (0.01 if self.radius is None else self.radius) / length.clamp(min=torch.finfo(length.dtype).eps)
        way = [*scaled(v, scale).leaves, *(torch.zeros_like(leaf) for leaf in y.leaves[len(v.leaves) :])]
        ahead, behind = (y.copy().add_(Stack(way), alpha=sign) for sign in (1.0, -1.0))
        (_, there), (_, back) = (network.gradients(at, batch) for at in (ahead, behind))
        return scaled(there.minus(back), 0.5 / scale)
