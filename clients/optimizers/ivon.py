"""IVON: variational online Newton, which learns how surely each number is known, from gradients at points around it.

n = e / sqrt(N (h + prior)), e ~ N(0, 1);  g = grad f(y + n);  f = n g (h + prior) N, N the client's examples
m <- beta1 m + (1 - beta1) g;  h <- beta2 h + (1 - beta2) f + (1 - beta2)^2 / 2 (h - f)^2 / (h + prior), from h0
y <- y - lr (h0 + prior) (m / (1 - beta1^t) + prior y) / (h + prior),  t = 1, 2, ... within the round
The posterior is normal, with the mean y and the precision N (h + prior). Memory: m, h and n. Shen et al. 2024.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from fedsim.client import (
    Beginning,
    Fraction,
    Need,
    NonNegativeFloat,
    Optimizer,
    PositiveFloat,
    PositiveInt,
    Remembered,
    Stack,
    Step,
    StepDraws,
    columns,
    options,
)


@options
class Ivon(Optimizer):
    """A client sends its mean, and to a strategy that merges by it, as fedivon, the precision h + prior.

    On quadratic functions with a diagonal Hessian f is that on average. h + prior at most halves in a step.
    """

    beta1: Fraction = 0.9
    """How slowly m moves."""
    beta2: Fraction = 0.99
    """How slowly h moves. The authors' 0.99999 is for a hundred thousand steps in a row: in the few of a round h would
    stay at h0; where clients keep their own, 0.999 averages over more batches.
    """
    h0: PositiveFloat = 1.0
    """Where h begins; the rate is in units of it. Points are 1 / sqrt(N h0) away: with 14 examples take 100 or more."""
    prior: NonNegativeFloat = 1e-4
    """The precision of a prior around 0, for each example: a weight decay of the posterior's own."""
    samples: PositiveInt = 1
    """How many points a step's gradient is the mean of; each costs a gradient."""
    clip_radius: PositiveFloat | None = None
    """The most that a number's quotient in the step is, either way. Not given: there is no bound."""
    precision: Literal["round", "client"] = "round"
    """Whose h is: it begins anew in each round, or each client goes on with its own, which takes d numbers of each."""

    @property
    def needs(self) -> frozenset[Need]:
        """Gradients at drawn points, of further samples on the same batch, and what clients keep."""
        needs: set[Need] = {"point", "noise"}
        if self.samples > 1:
            needs.add("again")
        if self.precision == "client":
            needs.add("state")
        return frozenset(needs)

    @property
    def decoupled(self) -> bool:
        """Decay is about the mean, not about the points."""
        return True

    @property
    def vectors(self) -> float:
        """M, h and n."""
        return 3.0

    @property
    def effort(self) -> float:
        """A gradient a sample."""
        return float(self.samples)

    @property
    def precise(self) -> bool:
        """It is."""
        return True

    def kept(self, dimension: int) -> Mapping[str, tuple[int, ...]]:
        """The precision h + prior, which is above 0 once it is known."""
        return {"precision": (dimension,)} if self.precision == "client" else {}

    def begin(self, y: Stack, beginning: Beginning) -> Remembered:
        """No momentum; h as it was kept, or h0."""
        memory = {"m": y.zeros(), "n": y.zeros(), "h": Stack([torch.full_like(leaf, self.h0) for leaf in y.leaves])}
        for kept in beginning.kept.values():
            sizes = [leaf.shape[1:].numel() for leaf in y.leaves]
            parts = torch.split(kept, [*sizes, kept.shape[1] - sum(sizes)], dim=1)
            for leaf, part in zip(memory["h"].leaves, parts[: len(sizes)], strict=True):
                known = part.view(leaf.shape)
                leaf.copy_(torch.where(known > 0.0, known - self.prior, leaf))
            memory["kept"] = Stack([kept])
        return memory | {"N": Stack([beginning.examples.to(y.leaves[0])])}

    def point(self, memory: Remembered, rows: Stack, number: int, noise: StepDraws) -> Stack:  # noqa: ARG002
        """A draw of the posterior, which is noted."""
        for noted, drawn in zip(memory["n"].leaves, self._drawn(memory, rows, noise, 0), strict=True):
            noted.copy_(drawn)
        return Stack(torch._foreach_add(rows.leaves, memory["n"].leaves))

    def step(self, memory: Remembered, rows: Stack, step: Step) -> None:
        """Move the momentum, h, and then the mean."""
        mean, curvature, gradient = memory["m"].leaves, memory["h"].leaves, step.gradient.leaves
        product = torch._foreach_mul(memory["n"].leaves, gradient)
        for sample in range(1, self.samples):
            assert step.noise is not None
            assert step.objective is not None
            noise = self._drawn(memory, rows, step.noise, sample)
            _, further = step.objective.again(Stack(torch._foreach_add(rows.leaves, noise)))
            torch._foreach_add_(gradient, further.leaves)
            torch._foreach_addcmul_(product, noise, further.leaves)
        torch._foreach_div_(gradient, self.samples)
        torch._foreach_lerp_(mean, gradient, 1.0 - self.beta1)
        (examples,) = memory["N"].leaves
        for h, found in zip(curvature, product, strict=True):
            precision = h + self.prior
            found.mul_(precision).mul_(columns(examples / self.samples, h))
            correction = (h - found).square_().div_(precision).mul_((1.0 - self.beta2) ** 2 / 2.0)
            h.lerp_(found, 1.0 - self.beta2).add_(correction)
        along = Stack(torch._foreach_div(mean, 1.0 - self.beta1 ** (step.number + 1))).add_(rows, self.prior)
        torch._foreach_div_(along.leaves, torch._foreach_add(curvature, self.prior))
        if self.clip_radius is not None:
            torch._foreach_clamp_max_(along.leaves, self.clip_radius)
            torch._foreach_clamp_min_(along.leaves, -self.clip_radius)
        step.move(rows, along, per=1.0 / (self.h0 + self.prior))

    def keep(self, memory: Remembered, rows: Stack) -> Mapping[str, Tensor]:  # noqa: ARG002
        """The precision; of running statistics, which follow, nothing."""
        if self.precision == "round":
            return {}
        (kept,), known = memory["kept"].leaves, self.told(memory).flat()
        return {"precision": torch.cat((known, kept[:, known.shape[1] :]), dim=1)}

    def told(self, memory: Remembered) -> Stack:
        """The precision h + prior."""
        return Stack(torch._foreach_add(memory["h"].leaves, self.prior))

    def _drawn(self, memory: Remembered, rows: Stack, noise: StepDraws, sample: int) -> list[Tensor]:
        """Normal numbers of the posterior's deviation."""
        (examples,) = memory["N"].leaves
        drawn = noise.normal(f"sample {sample}", rows)
        return [
            part / (columns(examples, h) * (h + self.prior)).sqrt_()
            for part, h in zip(drawn.leaves, memory["h"].leaves, strict=True)
        ]
