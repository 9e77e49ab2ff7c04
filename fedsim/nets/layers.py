"""The residual block, which is no layer of PyTorch's and which a stack knows how to run; and what is hung on layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Residual(nn.Module):
    """relu(body(x) + shortcut(x)); an empty `nn.Sequential` is the shortcut that changes nothing."""

    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, inputs: Tensor) -> Tensor:
        """Both branches must give the same shape, which is the shape of the result."""
        return torch.relu(self.body(inputs) + self.shortcut(inputs))


def has_hooks(model: nn.Module) -> bool:
    """Whether something stands around or in place of its forward pass, which only a call of the module itself does."""
    return bool(
        model._forward_hooks or model._forward_pre_hooks or has_backward_hooks(model) or "forward" in vars(model)
    )


def has_backward_hooks(model: nn.Module) -> bool:
    """Whether something stands around its backward pass."""
    return bool(model._backward_hooks or model._backward_pre_hooks)
