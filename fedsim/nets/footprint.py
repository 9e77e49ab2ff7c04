"""What one example costs a model: numbers made by its forward pass, and multiply-adds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fedsim.nets.attention import Attention


@dataclass(frozen=True)
class Footprint:
    """activations: numbers that the forward pass of one example makes, unfolded patches of convolutions included.

    operations: its multiply-adds; every parameter counts at least once, those of recurrent layers for all their steps.
    outputs: numbers that the model gives.
    """

    activations: int
    operations: int
    outputs: int


class Beside(NamedTuple):
    """What a step takes of a client beside the gradient: numbers that it has at once, and multiply-adds."""

    numbers: int = 0
    operations: int = 0


def footprint(model: nn.Module, example: Tensor) -> Footprint:
    """Run `model` on one example, [1, ...], and count."""
    activations, operations = example.numel(), sum(parameter.numel() for parameter in model.parameters())

    def count(part: nn.Module, inputs: tuple[Tensor, ...], output: object) -> None:
        nonlocal activations, operations
        if isinstance(part, Attention):
            tokens, width = inputs[0].numel() // inputs[0].shape[-1], inputs[0].shape[-1]
            pairs = tokens * inputs[0].shape[-2]
            activations += 4 * inputs[0].numel() + (3 * pairs * part.num_heads if part.drop is not None else 0)
            operations += (tokens - 1) * part.in_proj_weight.numel() + 2 * pairs * width
        elif isinstance(part, nn.GRU) and isinstance(output, tuple):
            activations += 10 * part.num_layers * output[0].numel()  # of each step what gates and states are made of
        if not isinstance(output, Tensor):
            return
        activations += output.numel()
        if isinstance(part, nn.Conv2d):
            positions = output[0, 0].numel()
            activations += positions * part.weight[0].numel()
            operations += (positions - 1) * part.weight.numel()
        elif isinstance(part, nn.Linear):
            operations += (output.numel() // part.out_features - 1) * part.weight.numel()

    hooks = [part.register_forward_hook(count) for part in model.modules()]
    try:
        with torch.no_grad():
            outputs: Tensor = model(example)
    finally:
        for hook in hooks:
            hook.remove()
    return Footprint(activations, operations, outputs.numel())
