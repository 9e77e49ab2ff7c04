"""A model in two: what makes features of inputs, and its head, the last layer that has parameters, which reads them.

A sequence of layers is cut before its head, and so is a sequence that its last part is. A module with a forward pass of
its own says its halves itself, by methods, or parts, `features` and `head`: its forward pass is then head(features(x)).
Both halves have the model's own parts, whose parameters keep the names that they have in it.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fedsim.core.errors import InputError, named_line, one_line
from fedsim.nets.attention import EncoderLayer
from fedsim.nets.heads import Taken, bare
from fedsim.nets.layers import has_backward_hooks, has_hooks
from fedsim.nets.sequences import Padded, Steps

DECLARE = "give it methods features(x) and head(z), of which forward is head(features(x))"
"""How a model may be cut that is no sequence of layers."""


class Halves(NamedTuple):
    """Two modules of a model's own parts. features: [B, ...] to what the head reads; head: from there to outputs."""

    features: nn.Module
    head: nn.Module


def halves(model: nn.Module) -> Halves:
    """The model in two. InputError: it cannot be cut."""
    taken = list(model._forward_hooks.values())
    hooked = model._forward_pre_hooks or has_backward_hooks(model) or "forward" in vars(model)
    if hooked or not all(isinstance(hook, Taken) for hook in taken):
        raise _uncut(model, "something is hung on it, and its features are not known; leave that away")
    features, head = _cut(bare(model) if taken else model)
    if taken:  # of what the head gives, not of features
        head = copy.copy(head)
        head._forward_hooks = model._forward_hooks
    return Halves(features, head)


def width_of_features(model: nn.Module, x: Tensor) -> int:
    """How many numbers the head reads of an example, for inputs x [n, ...]. InputError: it cannot be cut."""
    features, head = halves(model)
    try:
        found = features(x)
        outputs = head(found)
    except InputError:
        raise
    except Exception as error:  # of whatever kind is in methods that somebody has written
        raise _uncut(model, f"its features or its head fail: {one_line(named_line(error), 160)}") from error
    if not isinstance(found, Tensor) or not found.is_floating_point() or found.dim() < 2 or len(found) != len(x):
        raise _uncut(model, f"what its head reads is no tensor of floats [{len(x)}, ...]; {DECLARE}")
    with torch.no_grad():
        if not torch.allclose(outputs, model(x), rtol=1e-3, atol=1e-4, equal_nan=True):
            raise _uncut(model, "its forward pass is not head(features(x)); make it that, or name these otherwise")
    if not found.requires_grad:
        raise _uncut(model, "nothing is trained before its head, so that no training moves features; take another one")
    return found[0].numel()


def _cut(model: nn.Module) -> Halves:
    """The halves of a model on which nothing is hung."""
    kind = type(model)
    if isinstance(model, nn.Sequential) and kind.forward in (nn.Sequential.forward, Padded.forward):
        return _sequence(model)
    if callable(getattr(model, "features", None)) and callable(getattr(model, "head", None)):
        return Halves(_Features(model), _Head(model))
    if any(True for part in model.children() for _ in part.parameters()):
        raise _uncut(model, f"has a forward pass of its own, and its features are not known; {DECLARE}")
    return Halves(nn.Sequential(), model)


def _sequence(model: nn.Sequential) -> Halves:
    parts = [(name, part) for name, part in model._modules.items() if part is not None]
    place = max(number for number, (_, part) in enumerate(parts) if any(True for _ in part.parameters()))
    name, last = parts[place]
    if has_hooks(last) and not _is_layer(last):
        raise _uncut(last, "something is hung on it, and its features are not known; leave that away")
    features, head = Halves(nn.Sequential(), last) if _is_layer(last) else _cut(last)
    after = parts[place + 1 :]
    if isinstance(model, Padded) and any(isinstance(part, EncoderLayer | Steps) for _, part in after):
        raise _uncut(model, f"its head reads places, and knows of no padding; {DECLARE}")
    body = copy.copy(model)  # of its own kind, as one that knows padding is
    body._modules = OrderedDict([*parts[:place], (name, features)])
    return Halves(body, nn.Sequential(OrderedDict([(name, head), *after])))


def _is_layer(part: nn.Module) -> bool:
    """Whether all parameters of a part are its own, and of no part of it."""
    return not any(True for inner in part.children() for _ in inner.parameters())


class _Half(nn.Module):
    """A part of a module's forward pass, as a module with the same parts under the same names."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        # The dictionaries themselves: what puts other parameters in their place puts them into both.
        self._parameters, self._buffers, self._modules = model._parameters, model._buffers, model._modules
        self.of: Any
        vars(self)["of"] = model  # no part of it


class _Features(_Half):
    def forward(self, x: Tensor) -> Tensor:
        """Inputs to what the head reads."""
        found: Tensor = self.of.features(x)
        return found


class _Head(_Half):
    def forward(self, z: Tensor) -> Tensor:
        """From there to outputs."""
        found: Tensor = self.of.head(z)
        return found


class Both(_Half):
    """A model that gives what its head reads, [B, ...], beside its outputs. InputError: it cannot be cut."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.halves: Halves
        vars(self)["halves"] = halves(model)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features and outputs of inputs."""
        features: Tensor = self.halves.features(x)
        return features, self.halves.head(features)


def _uncut(model: nn.Module, remedy: str) -> InputError:
    return InputError("problem.model", type(model).__name__, remedy)
