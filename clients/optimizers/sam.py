"""SAM: steps along the gradient at the worst point nearby, so that they end where the loss is flat around them.

e = rho g / (|g| + 1e-16), g the gradient of the client's loss at y;  then the step of `base` from y by the gradient at
y + e, on the same mini-batch. Adaptive (ASAM): e = rho t^2 g / (|t g| + 1e-16), t = |y| + eta of each weight and 1 of
biases. Norms are over all of a client's parameters. Only the second gradient is clipped, and has decay and corrections.
Memory: that of base, and y + e. Two gradients a step. Foret et al. 2021; Kwon et al. 2021 (ASAM); of clients Caldarola
et al. 2022 (FedSAM, FedASAM), who take for weights what is called so, here what has two axes or more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from fedsim.client import (
    Beginning,
    CompiledRule,
    HasPlugins,
    InputError,
    Need,
    NonNegativeFloat,
    Optimizer,
    Remembered,
    Stack,
    Step,
    matrices,
    norms,
    options,
    scale,
)


@options
class Sam(HasPlugins, Optimizer):
    """With rho = 0 it is base, to the bit."""

    parts: ClassVar[Mapping[str, str]] = {"base": "optimizers"}
    shrinks: ClassVar[bool] = True

    rho: NonNegativeFloat = 0.1
    """How far the point is, the length of e; adaptive, in units of the weights, where five times as much is usual."""
    adaptive: bool = False
    """Whether e is longer where weights are large, so that their scale does not matter."""
    eta: NonNegativeFloat = 0.01
    """Of adaptive: what a weight of 0 counts as."""
    base: Any = "sgd"
    """The rule that steps by the second gradient: any that needs no more than a gradient."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.inner.hold_needs("base", frozenset(), "a rule that looks ahead")
        if self.eta != 0.01 and not self.adaptive:
            raise InputError("eta", self.eta, "is an option of adaptive = true only; leave it out")
        if self.adaptive and not self.rho:
            raise InputError("adaptive", self.adaptive, "says how far ahead to look, and rho = 0 looks nowhere")

    @property
    def inner(self) -> Optimizer:
        """The rule `base`."""
        inner: Optimizer = self.made["base"]
        return inner

    @property
    def usual(self) -> float:
        """That of base."""
        return self.inner.usual

    @property
    def rate_free(self) -> bool:
        """If base is."""
        return self.inner.rate_free

    @property
    def needs(self) -> frozenset[Need]:
        """The gradient ahead."""
        return frozenset({"ahead"}) if self.rho else frozenset()

    @property
    def decoupled(self) -> bool:
        """If that of base is."""
        return self.inner.decoupled

    @property
    def vectors(self) -> float:
        """Those of base, the point, and t."""
        return self.inner.vectors + (self.rho > 0.0) + self.adaptive

    @property
    def effort(self) -> float:
        """That of base, and a gradient."""
        return self.inner.effort + (self.rho > 0.0)

    def operations(self, shapes: Sequence[tuple[int, ...]]) -> int:
        """Those of base."""
        return self.inner.operations(shapes)

    @property
    def plain(self) -> bool:
        """If base is, and there is no look ahead."""
        return self.inner.plain and not self.rho

    @property
    def compiled(self) -> CompiledRule | None:
        """That of base, without a look ahead."""
        return None if self.rho else self.inner.compiled

    def begin(self, y: Stack, beginning: Beginning) -> Remembered:
        """What base remembers."""
        return self.inner.begin(y, beginning)

    def ahead(self, rows: Stack, gradient: Stack) -> Stack:
        """Y + e; t g is made in the gradient's place."""
        weights = matrices([leaf.shape[1:] for leaf in rows.leaves]) if self.adaptive else []
        sizes = {number: rows.leaves[number].abs().add_(self.eta) for number in weights}
        for number, t in sizes.items():
            gradient.leaves[number].mul_(t)
        scale(gradient, self.rho / (norms(gradient) + 1e-16))
        for number, t in sizes.items():
            gradient.leaves[number].mul_(t)
        return gradient.add_(rows)

    def step(self, memory: Remembered, rows: Stack, step: Step) -> None:
        """The step of base from y."""
        if step.decay and not self.inner.shrinks:
            step.shrink(rows, step.decay)
        self.inner.step(memory, rows, step)

    def weights(self, steps: Tensor, shrinkage: float) -> Tensor | None:
        """As of base: a step ahead is a gradient, too."""
        return self.inner.weights(steps, shrinkage)
