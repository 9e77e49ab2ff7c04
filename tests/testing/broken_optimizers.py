"""Rules of a step, each of which breaks one promise, as authors do."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedsim.client import Beginning, Need, Optimizer, Remembered, Stack, Step, options, scaled


@options
class Momentum(Optimizer):
    """A rule that is whole: v <- v / 2 + g."""

    @property
    def vectors(self) -> float:
        """The velocity v."""
        return 1.0

    def begin(self, y: Stack, beginning: Beginning) -> Remembered:
        """A velocity of zeros."""
        return {"v": y.zeros()}

    def step(self, memory: Remembered, rows: Stack, step: Step) -> None:
        """Move."""
        step.move(rows, memory["v"].mul_(0.5).add_(step.gradient))


@options
class PutsMemoryInItsPlace(Momentum):
    """What is not written in place is lost when the next client finishes."""

    def step(self, memory: Remembered, rows: Stack, step: Step) -> None:
        """Move."""
        pairs = zip(memory["v"].leaves, step.gradient.leaves, strict=True)
        memory["v"] = Stack([0.5 * v + g for v, g in pairs])
        step.move(rows, memory["v"])


@options
class HasOneNormForAll(Optimizer):
    """A norm over the stack."""

    def step(self, memory: Remembered, rows: Stack, step: Step) -> None:
        """Move by a gradient of length 1."""
        norm = float(sum(leaf.square().sum() for leaf in step.gradient.leaves)) ** 0.5 + 1e-12
        step.move(rows, step.gradient, per=norm)


@options
class DividesByNothing(Optimizer):
    """0 / 0 where there is nothing to learn."""

    def step(self, memory: Remembered, rows: Stack, step: Step) -> None:
        """Move by the signs, as somebody writes them who knows of no zeros."""
        step.move(rows, step.gradient, over=[leaf.abs() for leaf in step.gradient.leaves])


@options
class DeclaresNothing(Momentum):
    """It remembers a vector."""

    @property
    def vectors(self) -> float:
        """None."""
        return 0.0


@options
class KeepsWhatItDoesNotName(Momentum):
    """It keeps more than `kept` says."""

    def keep(self, memory: Remembered, rows: Stack) -> Mapping[str, Tensor]:
        """The sums of the velocities."""
        return {"sum": torch.stack([leaf.flatten(1).sum(dim=1) for leaf in memory["v"].leaves]).sum(dim=0)}


@options
class NeedsStateForNothing(Momentum):
    """It asks for what it does not use."""

    @property
    def needs(self) -> frozenset[Need]:
        """What clients keep."""
        return frozenset({"state"})


@options
class DrawsFromTheProcess(Optimizer):
    """Noise of the global generator."""

    def step(self, memory: Remembered, rows: Stack, step: Step) -> None:
        """Move by a disturbed gradient."""
        step.move(rows, Stack([leaf * torch.rand_like(leaf) for leaf in step.gradient.leaves]))


@options
class RoundsItsRate(Optimizer):
    """A number of Python that becomes a tensor has single precision."""

    def step(self, memory: Remembered, rows: Stack, step: Step) -> None:
        """Move by a rate of its own making."""
        rate = torch.as_tensor(step.lr).to(rows.leaves[0]).expand(len(rows))
        rows.add_(scaled(step.gradient, rate), -1.0)


@options
class AsksTheFirst(Momentum):
    """There may be no client."""

    def begin(self, y: Stack, beginning: Beginning) -> Remembered:
        """A velocity of the shapes of the first."""
        return {"v": Stack([leaf[0].expand_as(leaf).clone().zero_() for leaf in y.leaves])}
