"""Activations of which compiled loops have the derivative."""

from __future__ import annotations

from torch import nn

ACTIVATIONS: dict[type[nn.Module], str] = {
    nn.ReLU: "RELU",
    nn.LeakyReLU: "LEAKY_RELU",
    nn.Tanh: "TANH",
    nn.Sigmoid: "SIGMOID",
    nn.ELU: "ELU",
    nn.SiLU: "SILU",
    nn.GELU: "GELU",
}
"""What may follow a layer with parameters, and what `fedsim.nets.kernels.pieces` calls it."""


def activates(part: nn.Module) -> bool:
    """Whether a part of a model is one of them."""
    return type(part) in ACTIVATIONS and getattr(part, "approximate", "none") == "none"


def shape_of(activation: nn.Module | None) -> float:
    """The number that an activation has of its own, 0 without."""
    return float(getattr(activation, "negative_slope", getattr(activation, "alpha", 0.0)))
