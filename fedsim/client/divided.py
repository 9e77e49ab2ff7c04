"""Rules that are made for some leaves and have another rule, any of the group, move the others."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from fedsim.core.errors import InputError
from fedsim.core.options import PositiveFloat, options
from fedsim.core.plugins import HasPlugins
from fedsim.nets.optimizers import NEEDS, Beginning, Need, Objective, Optimizer, Remembered, Step, StepDraws
from fedsim.nets.stack import Stack, put, take

OTHERS = "others "
"""Before the name of what the other rule remembers."""


@dataclass(frozen=True)
class PartialObjective:
    """The `Objective` of some leaves, by their numbers, where the others stay as they are in `rows`."""

    objective: Objective
    rows: Stack
    numbers: Sequence[int]

    def again(self, at: Stack) -> tuple[Tensor, Stack]:
        """Losses [k] and the leaves' gradients where they are at another point."""
        losses, gradient = self.objective.again(put(self.rows, self.numbers, at))
        return losses, take(gradient, self.numbers)

    def product(self, at: Stack, v: Stack) -> Stack:
        """Products with the Hessians of the leaves."""
        along = put(self.rows.zeros(), self.numbers, v)
        return take(self.objective.product(put(self.rows, self.numbers, at), along), self.numbers)

    def whole(self, at: Stack, rows: Tensor) -> Stack:
        """The leaves' gradients over all examples of some clients."""
        return take(self.objective.whole(put(self.rows, self.numbers, at), rows), self.numbers)


@options
class Divided(HasPlugins, Optimizer):
    """What such a rule has; a subclass says which leaves are its own, and how they move."""

    parts: ClassVar[Mapping[str, str]] = {"others": "optimizers"}
    shrinks: ClassVar[bool] = True

    others: Any = "adam"
    """The rule of the other leaves."""
    others_rate: PositiveFloat = 0.1
    """The learning rate of that, times lr."""

    def __post_init__(self) -> None:
        super().__post_init__()
        # Outputs are of all leaves, and so is a gradient elsewhere than where all of them are.
        self.other.hold_needs("others", frozenset(NEEDS) - {"outputs", "curvature", "ahead"}, "a rule of some leaves")
        if self.other.kept(1) != self.other.kept(2):
            raise InputError("others", self.others, "it keeps numbers of all leaves; take one that does not")

    @abstractmethod
    def own(self, shapes: Sequence[tuple[int, ...]]) -> Sequence[int]:
        """The numbers of the leaves that it moves itself, of those of these shapes."""

    def begin_own(self, y: Stack, beginning: Beginning) -> Remembered:  # noqa: ARG002
        """What is remembered of them at the beginning; y has them alone."""
        return {}

    @abstractmethod
    def step_own(self, memory: Remembered, rows: Stack, step: Step) -> None:
        """Take a step of them in place, as `step` has it, once they are shrunk; there is at least one."""

    @property
    def other(self) -> Optimizer:
        """The rule of the other leaves."""
        other: Optimizer = self.made["others"]
        return other

    @property
    def needs(self) -> frozenset[Need]:
        """What the other rule needs."""
        return self.other.needs

    @property
    def decoupled(self) -> bool:
        """All leaves shrink by their own rates."""
        return True

    @property
    def effort(self) -> float:
        """What the other rule takes, with the gradient of all leaves."""
        return self.other.effort

    @property
    def passes(self) -> float:
        """What the other rule takes."""
        return self.other.passes

    def kept(self, dimension: int) -> Mapping[str, tuple[int, ...]]:
        """What clients keep of the other rule."""
        return {OTHERS + name: shape for name, shape in self.other.kept(dimension).items()}

    def begin(self, y: Stack, beginning: Beginning) -> Remembered:
        """What both remember."""
        own, others = self._divided(y)
        kept = {name.removeprefix(OTHERS): part for name, part in beginning.kept.items()}
        remembered = self.begin_own(take(y, own), beginning) if own else {}
        if others:
            second = self.other.begin(take(y, others), replace(beginning, kept=kept))
            remembered |= {OTHERS + name: part for name, part in second.items()}
        return remembered

    def point(self, memory: Remembered, rows: Stack, number: int, noise: StepDraws) -> Stack:
        """Where the other rule wants its gradient; the other leaves are where they are."""
        _, others = self._divided(rows)
        if not others:
            return rows
        at = self.other.point(_of_others(memory), take(rows, others), number, _named(noise))
        return put(rows, others, at)

    def step(self, memory: Remembered, rows: Stack, step: Step) -> None:
        """The step of the other rule, which may ask for gradients where all leaves are, and then its own."""
        own, others = self._divided(rows)
        if others:
            rate = step.lr * self.others_rate
            objective = None if step.objective is None else PartialObjective(step.objective, rows, others)
            noise = None if step.noise is None else _named(step.noise)
            gradient, moving = take(step.gradient, others), take(rows, others)
            part = replace(step, lr=rate, gradient=gradient, noise=noise, objective=objective)
            if step.decay and not self.other.shrinks:
                part.shrink(moving, step.decay)
            self.other.step(_of_others(memory), moving, part)
        if own:
            moving = take(rows, own)
            if step.decay:
                step.shrink(moving, step.decay)
            self.step_own(memory, moving, replace(step, gradient=take(step.gradient, own)))

    def end(self, memory: Remembered, rows: Stack) -> Stack:
        """What the other rule sends of its leaves, and where the others are."""
        _, others = self._divided(rows)
        return put(rows, others, self.other.end(_of_others(memory), take(rows, others))) if others else rows

    def keep(self, memory: Remembered, rows: Stack) -> Mapping[str, Tensor]:
        """What clients keep of the other rule."""
        _, others = self._divided(rows)
        kept = self.other.keep(_of_others(memory), take(rows, others)) if others else {}
        return {OTHERS + name: part for name, part in kept.items()}

    def operations(self, shapes: Sequence[tuple[int, ...]]) -> int:
        """What products of the other rule take; a subclass adds its own."""
        own = self.own(shapes)
        return self.other.operations([shape for number, shape in enumerate(shapes) if number not in own])

    def _divided(self, rows: Stack) -> tuple[Sequence[int], list[int]]:
        """The numbers of its own leaves, and those of the others."""
        own = self.own([leaf.shape[1:] for leaf in rows.leaves])
        return own, [number for number in range(len(rows.leaves)) if number not in own]


def matrices(shapes: Sequence[tuple[int, ...]]) -> list[int]:
    """The numbers of the leaves with two axes or more."""
    return [number for number, shape in enumerate(shapes) if len(shape) > 1]


def _of_others(memory: Remembered) -> Remembered:
    return {name.removeprefix(OTHERS): part for name, part in memory.items() if name.startswith(OTHERS)}


def _named(noise: StepDraws) -> StepDraws:
    """Draws that are not those of the rule that has the other leaves."""
    return replace(noise, owner=f"{noise.owner}/others")
