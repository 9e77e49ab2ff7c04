"""Models of text: a character LSTM that predicts the next character."""

from __future__ import annotations

import torch
from torch import nn

from fedsim.core.errors import InputError
from fedsim.core.options import PositiveInt, options
from fedsim.nets.sequences import LastStep
from fedsim.problems.models.layers import materialise


@options
class LSTM:
    """The Shakespeare model of the FedProx paper (Li et al. 2020): embedding, stacked LSTM, linear."""

    embedding: PositiveInt = 8
    """Numbers that a character becomes."""
    hidden: PositiveInt = 100
    """Units of a layer."""
    layers: PositiveInt = 2
    """LSTM layers, one on the other."""

    def build(self, shape: tuple[int, ...], outputs: int, vocabulary: int) -> nn.Module:  # noqa: ARG002
        """Characters, int64 [B, T] below `vocabulary`, to the next one's logits [B, vocabulary]."""
        if not vocabulary or len(shape) != 1:
            remedy = f"reads sequences of characters, but these inputs are numbers of shape {list(shape)}"
            raise InputError("model", "lstm", f"{remedy}; use a model of numbers, such as mlp")
        with torch.device("meta"):
            module = nn.Sequential(
                nn.Embedding(vocabulary, self.embedding),
                nn.LSTM(self.embedding, self.hidden, self.layers, batch_first=True),
                LastStep(),
                nn.Linear(self.hidden, vocabulary),
            )
        return materialise(module)
