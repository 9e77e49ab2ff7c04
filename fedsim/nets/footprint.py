"""What one example costs a model: numbers made by its forward pass, and multiply-adds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Footprint:
    """activations: numbers that the forward pass of one example makes, unfolded patches of convolutions included.

    operations: its multiply-adds; every parameter counts at least once.
    """

    activations: int
    operations: int


def footprint(model: nn.Module, example: Tensor) -> Footprint:
    """Run `model` on one example, [1, ...], and count."""
    activations, operations = example.numel(), sum(parameter.numel() for parameter in model.parameters())

    def count(part: nn.Module, inputs: tuple[Tensor, ...], output: object) -> None:  # noqa: ARG001
        nonlocal activations, operations
        if not isinstance(output, Tensor):
            return
        activations += output.numel()
        if isinstance(part, nn.Conv2d):
            positions = output[0, 0].numel()
            activations += positions * part.weight[0].numel()
            operations += (positions - 1) * part.weight.numel()

    hooks = [part.register_forward_hook(count) for part in model.modules()]
    try:
        with torch.no_grad():
            model(example)
    finally:
        for hook in hooks:
            hook.remove()
    return Footprint(activations, operations)
