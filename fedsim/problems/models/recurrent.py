"""Recurrent models of sequences: LSTM and GRU, of tokens or of numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import nn

from fedsim.core.errors import InputError
from fedsim.core.options import Fraction, NonNegativeInt, PositiveInt, options
from fedsim.nets.sequences import LastStep, MeanStep, Padded, Steps
from fedsim.problems.models.layers import materialise, need_sequences

READING: Mapping[str, type[Steps]] = {"last": LastStep, "mean": MeanStep, "every": Steps}
"""What is read of the steps of a sequence."""


@options
class Recurrent:
    """What recurrent models share."""

    kind: ClassVar[str]
    layer: ClassVar[type[nn.LSTM | nn.GRU]]

    embedding: PositiveInt = 8
    """Numbers that a character, or what is measured at a step, becomes."""
    hidden: PositiveInt = 100
    """Units of a layer."""
    layers: PositiveInt = 2
    """Layers, one on the other."""
    dropout: Fraction = 0.0
    """Share of each layer's outputs that the next one does not get."""
    read: Literal["last", "mean", "every"] = "last"
    """Of which steps there are outputs: the last, the mean of all, or each one its own, where each has a class."""
    padding: NonNegativeInt | None = None
    """The token that fills sequences up behind. Not given: the data set's, if it has one."""

    def build(self, shape: tuple[int, ...], outputs: int, vocabulary: int) -> nn.Module:
        """Tokens, int64 [B, T], or numbers [B, T, F] to [B, outputs], or [B, T, outputs] where every step is read."""
        need_sequences(self.kind, shape, vocabulary, self.padding)
        if self.dropout and self.layers == 1:
            raise InputError("model.dropout", self.dropout, "is between layers, and there is one; remove it")
        with torch.device("meta"):
            first = nn.Embedding(vocabulary, self.embedding, self.padding) if vocabulary else None
            layers = [
                nn.Linear(shape[1], self.embedding) if first is None else first,
                self.layer(self.embedding, self.hidden, self.layers, batch_first=True, dropout=self.dropout),
                READING[self.read](),
                nn.Linear(self.hidden, outputs),
            ]
            module = nn.Sequential(*layers) if self.padding is None else Padded(self.padding, *layers)
        return materialise(module)


@options
class LSTM(Recurrent):
    """The Shakespeare model of the FedProx paper (Li et al. 2020): embedding, stacked LSTM, linear."""

    kind = "lstm"
    layer = nn.LSTM


@options
class GRU(Recurrent):
    """The same with gated recurrent units (Cho et al. 2014): embedding, stacked GRU, linear."""

    kind = "gru"
    layer = nn.GRU
