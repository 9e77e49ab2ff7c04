"""Layers that are no layers of PyTorch's, and that a stack of models knows how to run."""

from __future__ import annotations

from typing import Any

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


class LastStep(nn.Module):
    """The last step of a batch-first `nn.LSTM`'s output."""

    def forward(self, outputs: tuple[Tensor, Any]) -> Tensor:
        """Take what the LSTM returns, (output [B, T, H], its final states), and give [B, H]."""
        return outputs[0][:, -1]
