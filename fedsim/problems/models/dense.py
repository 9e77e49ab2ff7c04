"""Models of fully connected layers: logistic regression and the multi-layer perceptron."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import torch
from torch import nn

from fedsim.core.options import Counts, options
from fedsim.problems.models.layers import Start, drawn_by, materialise, need_numbers, stay_zero

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}


@options
class Logistic:
    """One linear layer on the flattened input: W x + b."""

    zero: bool = True
    """Start at W = 0, b = 0, the customary start of this convex problem; otherwise at random."""

    def build(self, shape: tuple[int, ...], outputs: int, vocabulary: int) -> nn.Module:
        """[B, *shape] to [B, outputs]."""
        need_numbers("logistic", shape, vocabulary)
        with torch.device("meta"):
            linear = nn.Linear(math.prod(shape), outputs)
            module = nn.Sequential(nn.Flatten(), stay_zero(linear) if self.zero else linear)
        return materialise(module)


@options
class MLP:
    """Fully connected layers of `hidden` units with an activation after each, then a linear layer."""

    hidden: Counts = (64,)
    """Units of each hidden layer."""
    activation: Literal["relu", "tanh"] = "relu"
    """What follows each of them."""
    norm: Literal["none", "batch", "layer"] = "none"
    """What normalises the input, and each hidden layer before its activation."""
    init: Start = "usual"
    """How weights are drawn: usual, or ibp, of all but the last layer for training by interval bounds."""

    def build(self, shape: tuple[int, ...], outputs: int, vocabulary: int) -> nn.Module:
        """[B, *shape] to [B, outputs]."""
        need_numbers("mlp", shape, vocabulary)
        layers: list[nn.Module] = [nn.Flatten()]
        with torch.device("meta"):
            layers += self._norm(math.prod(shape))
            for inputs, units in pairwise((math.prod(shape), *self.hidden)):
                layers += [nn.Linear(inputs, units), *self._norm(units), ACTIVATIONS[self.activation]()]
            layers.append(nn.Linear((math.prod(shape), *self.hidden)[-1], outputs))
        return materialise(drawn_by(self.init, nn.Sequential(*layers)))

    def _norm(self, units: int) -> list[nn.Module]:
        if self.norm == "none":
            return []
        return [nn.BatchNorm1d(units) if self.norm == "batch" else nn.LayerNorm(units)]
