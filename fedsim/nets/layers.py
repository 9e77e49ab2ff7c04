"""Layers that are no layers of PyTorch's, and that a stack of models knows how to run; and what is hung on layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


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


class SelfAttention(nn.MultiheadAttention):
    """PyTorch's attention, where it is of a batch-first sequence to all of itself, without its copies.

    `nn.MultiheadAttention` puts the places first, and copies there and back.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Sequences [B, T, width] to the same, or what PyTorch's own makes of any others."""
        masked = key_padding_mask is not None or attn_mask is not None or is_causal
        if masked or need_weights or query is not key or key is not value or query.dim() != 3:
            masks = key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
            return super().forward(query, key, value, *masks)
        batch, length, width = query.shape
        mixed = functional.linear(query, self.in_proj_weight, self.in_proj_bias)
        heads = mixed.view(batch, length, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(*heads)
        found: Tensor = self.out_proj(seen.transpose(1, 2).reshape(batch, length, width))
        return found, None

    @staticmethod
    def suits(part: nn.Module) -> bool:
        """Whether a layer is an attention of which this is the same."""
        return (
            type(part) is nn.MultiheadAttention
            and (part.batch_first and part._qkv_same_embed_dim and not part.add_zero_attn)
            and (part.bias_k is None and part.dropout == 0.0 and not has_hooks(part))
        )


def has_hooks(model: nn.Module) -> bool:
    """Whether something stands around or in place of its forward pass, which only a call of the module itself does."""
    return bool(
        model._forward_hooks or model._forward_pre_hooks or has_backward_hooks(model) or "forward" in vars(model)
    )


def has_backward_hooks(model: nn.Module) -> bool:
    """Whether something stands around its backward pass."""
    return bool(model._backward_hooks or model._backward_pre_hooks)
