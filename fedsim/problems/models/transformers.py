"""Transformers: an encoder that classifies sequences of tokens or numbers, and a GPT that says what comes next."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from fedsim.core.errors import InputError
from fedsim.core.options import Fraction, NonNegativeInt, PositiveInt, options
from fedsim.nets.attention import EncoderLayer
from fedsim.nets.sequences import Padded, Positions, Steps
from fedsim.problems.models.layers import IDS, deviating, materialise, need_sequences
from fedsim.problems.models.recurrent import READING


@options
class Blocks:
    """What transformers share: layers of attention and two linear layers with GELU, each behind a norm."""

    width: PositiveInt = 64
    """Numbers of each place."""
    layers: PositiveInt = 2
    """Layers, one on the other."""
    heads: PositiveInt = 4
    """Heads of attention, that share the width out."""
    hidden: PositiveInt = 256
    """Units between the two linear layers of a layer."""
    dropout: Fraction = 0.1
    """Share of weights of attention, and of outputs of each part of a layer, that are dropped in training."""
    padding: NonNegativeInt | None = None
    """The token that fills sequences up behind. Not given: the data set's, if it has one."""

    def stack(
        self, kind: str, shape: tuple[int, ...], vocabulary: int, read: nn.Module, outputs: int, *, causal: bool
    ) -> nn.Sequential:
        """All layers, from what is at a place to what is said of it, or of all; on the meta device."""
        need_sequences(kind, shape, vocabulary, self.padding)
        if self.width % self.heads:
            raise InputError(
                "model.heads", self.heads, f"do not share the width {self.width} out; take a divisor of it"
            )
        # So that tokens have length 1, as places have: neither drowns the other.
        deviation = self.width**-0.5
        with torch.device("meta"):
            tokens = vocabulary and deviating(nn.Embedding(vocabulary, self.width, self.padding), deviation)
            blocks = [
                EncoderLayer(
                    *(self.width, self.heads, self.hidden, self.dropout),
                    activation="gelu",
                    batch_first=True,
                    norm_first=True,
                )
                for _ in range(self.layers)
            ]
            for block in blocks:
                block.causal = causal
            layers = [
                tokens or nn.Linear(shape[1], self.width),
                deviating(Positions(shape[0], self.width), deviation),
                nn.Dropout(self.dropout),
                *blocks,
                nn.LayerNorm(self.width),
                read,
                nn.Linear(self.width, outputs),
            ]
            return nn.Sequential(*layers) if self.padding is None else Padded(self.padding, *layers)


@options
class Transformer(Blocks):
    """An encoder (Vaswani et al. 2017, norms first): each place sees all, and what all say is classified.

    Places are learnt.
    """

    read: Literal["last", "mean", "every"] = "mean"
    """Of which places there are outputs: the last, the mean of all, or each one its own, where each has a class."""

    def build(self, shape: tuple[int, ...], outputs: int, vocabulary: int) -> nn.Module:
        """Tokens, int64 [B, T], or numbers [B, T, F] to [B, outputs], or [B, T, outputs] where every place is read."""
        return materialise(self.stack("transformer", shape, vocabulary, READING[self.read](), outputs, causal=False))


@options
class GPT(Blocks):
    """A small GPT (Radford et al. 2019): each place sees itself and those before, and says which token comes next."""

    tied: bool = True
    """What a token is read as, and how it is said, are the same numbers (Press and Wolf 2017)."""

    def build(self, shape: tuple[int, ...], outputs: int, vocabulary: int) -> nn.Module:
        """Tokens, int64 [B, T], to logits of the next one at each place, [B, T, outputs]."""
        if not vocabulary:
            fault = f"reads tokens, but these inputs are numbers of shape {list(shape)}"
            remedy = f"{IDS}use the model mlp" if len(shape) == 1 else "use the model transformer"
            raise InputError("model", "gpt", f"{fault}; {remedy}")
        if self.tied and outputs != vocabulary:
            remedy = f"the {outputs} outputs are not the {vocabulary} tokens that are read; set tied = false"
            raise InputError("model.tied", self.tied, remedy)
        module = materialise(self.stack("gpt", shape, vocabulary, Steps(), outputs, causal=True))
        first, last = module[0], module[-1]
        assert isinstance(first, nn.Embedding)
        if self.tied:
            last.weight = first.weight
        return module
