"""Normalised gradient descent: steps of one length, whatever the gradient's.

y <- y - lr g / |g|, |g| over all parameters of a client
Memory: none.
"""

from __future__ import annotations

import torch

from fedsim.client import CompiledRule, Optimizer, Remembered, Stack, Step, norms, options, scaled


@options
class Normalised(Optimizer):
    """After K steps a client is no further than K lr from where it began, however its loss is scaled."""

    @property
    def compiled(self) -> CompiledRule:
        """All of it."""
        return CompiledRule("normalised", more=1)

    def step(self, memory: Remembered, rows: Stack, step: Step) -> None:  # noqa: ARG002
        """Move along the gradient's direction; where there is none, stay."""
        length = norms(step.gradient)
        step.move(rows, scaled(step.gradient, torch.where(length > 0, 1.0 / length, 0.0)))
