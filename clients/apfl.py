"""APFL's client: each client has a model that is mixed with the one for all, and the two are trained together.

On each mini-batch  w <- w - lr grad f_i(w),  vbar = alpha v + (1 - alpha) w,  v <- v - lr alpha grad f_i(vbar)
w from theta is what `sgd` has, and its change is sent; v is kept, and a client is judged by vbar of v and theta. With
mix = "outputs", as in the authors' code, outputs are mixed for the models, alpha v(x) + (1 - alpha) w(x), in training
and in judging, which is another thing where models are not linear. Adaptive, once a round, on its first mini-batch,

    alpha <- clip(alpha - lr (s + alpha_decay alpha), 0, 1)

with s the slope of the loss by alpha, which is the inner product of v - w and the gradient at vbar. Uplink d floats;
each client keeps d, and alpha. Deng et al. 2020, "Adaptive Personalized Federated Learning",
algorithm 1; the decay is the authors' code's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedsim.client import (
    FORWARD,
    Cohort,
    Cost,
    InputError,
    Loss,
    NonNegativeFloat,
    Order,
    PlainStep,
    PlainSteps,
    Shapes,
    Share,
    Stack,
    Update,
    columns,
    inner,
    mix,
    options,
    scaled,
)


@dataclass(frozen=True)
class OfMixture(Loss):
    """A loss of shares alpha [k] of outputs [k, B, ...], the rest of others [k, B, ...]."""

    loss: Loss
    others: Tensor
    alpha: Tensor

    def mixed(self, outputs: Tensor) -> Tensor:
        """The mixture."""
        return torch.lerp(self.others, outputs, columns(self.alpha, outputs))

    def examples(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Losses [k, B]."""
        return self.loss.examples(self.mixed(outputs), targets)

    def with_gradient(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Losses [k, B] and their gradients by the outputs."""
        losses, gradient = self.loss.with_gradient(self.mixed(outputs), targets)
        return losses, gradient.mul_(columns(self.alpha, gradient))


@options
class APFL(PlainSteps):
    """Goes with strategies that average changes, and what these come to is what they would without it."""

    alpha: Share = 0.5
    """The share of a client's own model; 0: that for all alone, 1: local training alone. The first, if adaptive."""
    mix: Literal["parameters", "outputs"] = "parameters"
    """What is mixed: parameters, or what the two models say."""
    adaptive: bool = False
    """Let alpha follow the slope of the client's loss, a step a round; each client keeps its own."""
    alpha_decay: NonNegativeFloat = 0.0
    """What times alpha is added to that slope, which draws to the model for all; the authors' code has 0.02."""

    models: ClassVar[tuple[str, ...]] = ("personal",)
    own_models: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha_decay and not self.adaptive:
            raise InputError("alpha_decay", self.alpha_decay, "alpha stays as it is; set adaptive = true")

    def state(self, dimension: int) -> Shapes:
        """Each client keeps its own model, and how far its alpha has come."""
        return {**super().state(dimension), "personal": (dimension,), **({"way": ()} if self.adaptive else {})}

    def cost(self, order: Order, examples: Tensor) -> Cost:
        """Two gradients a step, of outputs a forward pass more, and once what alpha's slope takes; d floats."""
        cost = super().cost(order, examples)
        beside, once = (1.0, 1.0) if self.mix == "parameters" else (1.0 + FORWARD, 2.0 * FORWARD)
        effort = cost.steps * beside + (once if self.adaptive else 0.0)
        return cost.beside(Cost(torch.zeros_like(examples), {}, effort=effort))

    def numbers(self, dimension: int, largest: int) -> int:
        """Beside, its own model and the mixture."""
        return super().numbers(dimension, largest) + 2 * dimension

    def train(self, cohort: Cohort) -> Update:
        """Train both, and send the change of the model for all."""
        theta, alpha = cohort.received("params"), self._alpha(cohort)
        w, v, losses = cohort.stack(theta), cohort.stack(cohort.state["personal"]), torch.zeros_like(alpha)
        for number, step in enumerate(self.paced(cohort)):
            k = len(step)
            local, own, share = w[:k], v[:k], alpha[:k]
            losses[:k] += step.descend(local)
            slope = self._slope(step, local, own, share) if self.adaptive and number == 0 else None
            self._follow(step, local, own, share)
            if slope is not None:
                share.sub_(step.lr * (slope + self.alpha_decay * share)).clamp_(0.0, 1.0)
        cohort.keep(personal=v.flat(), **({"way": alpha - self.alpha} if self.adaptive else {}))
        return Update({"delta": w.flat() - theta}, {"loss": losses / cohort.steps_taken})

    def personal(self, cohort: Cohort) -> Tensor:
        """The mixture of its own model with the one for all, or its own where outputs are mixed; alpha, if it moves."""
        own, alpha = cohort.state["personal"], self._alpha(cohort)
        if self.adaptive:
            cohort.metrics["alpha"] = alpha
        return own if self.mix == "outputs" else torch.lerp(cohort.received("params"), own, alpha.unsqueeze(1))

    def outputs(self, cohort: Cohort, models: Stack, x: Tensor) -> Tensor:
        """Those of the mixture, or the mixture of those of its own model and of the one for all."""
        own = super().outputs(cohort, models, x)
        if self.mix == "parameters":
            return own
        others = cohort.network.outputs(cohort.stack(cohort.received("params")), x)
        return torch.lerp(others, own, columns(self._alpha(cohort), own))

    def _alpha(self, cohort: Cohort) -> Tensor:
        """Each client's, [C]."""
        alpha = torch.full((len(cohort),), self.alpha, dtype=cohort.dtype, device=cohort.examples.device)
        return (alpha + cohort.state["way"]).clamp(0.0, 1.0) if self.adaptive else alpha

    def _follow(self, step: PlainStep, local: Stack, own: Stack, share: Tensor) -> None:
        """Take a step of the first k clients' own models, in place, where those for all are `local` after theirs."""
        free = replace(step, decay=0.0, shift=None)
        if self.mix == "outputs":
            mixture = self._mixture(step, local, share)
            replace(free, batch=replace(step.batch, loss=mixture)).descend(own)
            return
        mixed = mix(local.copy(), own, share)
        _, gradient = step.network.gradients(mixed, step.batch)
        free.along(scaled(gradient, share), own, mixed)

    def _slope(self, step: PlainStep, local: Stack, own: Stack, share: Tensor) -> Tensor:
        """The derivatives of k clients' losses by their alpha, [k]."""
        network, batch = step.network, step.batch
        if self.mix == "parameters":
            _, gradient = network.gradients(mix(local.copy(), own, share), batch)
            return inner(network.layout.moved(own.minus(local)), gradient)
        mixture, outputs = self._mixture(step, local, share), network.outputs(own, batch.x)
        _, away = network.loss.with_gradient(mixture.mixed(outputs), batch.y)
        away.mul_(batch.weight.view(*batch.weight.shape, *(1,) * (away.dim() - 2)))
        return inner(Stack([away]), Stack([outputs - mixture.others]))

    @staticmethod
    def _mixture(step: PlainStep, local: Stack, share: Tensor) -> OfMixture:
        """The loss of outputs that are mixed with those of the models for all, which are without dropout."""
        return OfMixture(step.network.loss, step.network.outputs(local, step.batch.x), share)
