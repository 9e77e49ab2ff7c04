"""Layers of sequences that are none of PyTorch's and that a stack of models knows how to run.

All say what they do of the last axes, [..., T, width], so that they do the same for one client and for a stack.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fedsim.nets.attention import EncoderLayer


class Steps(nn.Module):
    """What a layer says at each place of a sequence: the output of a recurrent layer, without its states, or x itself.

    Sequences [..., T, H] to the same. padding: which places say nothing, [..., T]; None: all say something.
    """

    def forward(self, outputs: Tensor | tuple[Tensor, Any], padding: Tensor | None = None) -> Tensor:
        """See the class."""
        return self.read(outputs[0] if isinstance(outputs, tuple) else outputs, padding)

    def read(self, x: Tensor, padding: Tensor | None) -> Tensor:  # noqa: ARG002
        """What is read of the places."""
        return x


class LastStep(Steps):
    """The last place that is no padding: [..., T, H] to [..., H]; of nothing but padding the first."""

    def read(self, x: Tensor, padding: Tensor | None) -> Tensor:
        """See the class."""
        if padding is None:
            return x[..., -1, :]
        places = torch.arange(x.shape[-2], device=x.device)
        last = places.masked_fill(padding, 0).amax(dim=-1)
        return x.gather(-2, last[..., None, None].expand(*last.shape, 1, x.shape[-1])).squeeze(-2)


class MeanStep(Steps):
    """The mean of the places that are no padding: [..., T, H] to [..., H]; of nothing but padding 0."""

    def read(self, x: Tensor, padding: Tensor | None) -> Tensor:
        """See the class."""
        if padding is None:
            return x.mean(dim=-2)
        count = (~padding).sum(dim=-1, keepdim=True).clamp(min=1)
        return x.masked_fill(padding.unsqueeze(-1), 0.0).sum(dim=-2) / count


class Positions(nn.Module):
    """X + a vector for each place: [..., T, width] of at most `length` places."""

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(length, width))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return x + self.weight[: x.shape[-2]]


class Padded(nn.Sequential):
    """Layers of sequences of tokens [B, T], of which one, `padding`, says nothing: who reads places knows where it is.

    It stands behind what is said: places and steps are counted from the front.
    """

    def __init__(self, padding: int, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        """What the layers make of tokens."""
        padding = x == self.padding
        for layer in self:
            if isinstance(layer, EncoderLayer):
                x = layer(x, src_key_padding_mask=padding)
            else:
                x = layer(x, padding) if isinstance(layer, Steps) else layer(x)
        return x
