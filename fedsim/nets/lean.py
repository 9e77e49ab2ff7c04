"""Modules that are called without what PyTorch has around a forward pass.

`nn.Module.__call__` looks for hooks, a layer for its parameters and a module for its parts, by name, at every call:
some microseconds of Python a layer, a tenth of a small network's forward pass. `lean` has the parts of a module called
without, in place, so that the numbers are the same, to the bit. Parameters are read where `functional_call` puts others
in their place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules import module as hooks

from fedsim.nets import recurrence
from fedsim.nets.layers import has_hooks

AROUND = ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks", "_global_backward_pre_hooks")
"""Where PyTorch keeps the hooks of all modules."""


def hears_all() -> bool:
    """Whether somebody hears of the passes of all modules there are."""
    return any(getattr(hooks, name) for name in AROUND)


def lean(model: nn.Module) -> None:
    """Have calls of a module and its parts go straight to their forward passes, where nothing stands in between.

    Whoever hangs something on the module later is not heard, nor who hears of all modules from then on.
    """
    if hears_all():
        return
    for part in model.modules():
        if not has_hooks(part) and _is_plain(type(part)):
            part.__class__ = _leaned(type(part))
        vars(part).update(part._modules)  # where they are found without PyTorch's search


def _is_plain(kind: type[nn.Module]) -> bool:
    """Whether a class of modules is called as PyTorch's are, and nobody hears of its subclasses."""
    heard = any("__init_subclass__" in vars(base) for base in kind.__mro__ if base is not object)
    return type(kind) is type and kind.__call__ is nn.Module.__call__ and not heard


_made: dict[type[nn.Module], type[nn.Module]] = {}


def _leaned(kind: type[nn.Module]) -> type[nn.Module]:
    """The same class, whose call is its forward pass."""
    if kind not in _made:
        own = {"__call__": FORWARD.get(kind, kind.forward), "__module__": kind.__module__}
        _made[kind] = type(kind.__name__, (kind,), own)
    return _made[kind]


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    own: Any = layer._parameters
    return functional.linear(x, own["weight"], own["bias"])


def _conv2d(layer: nn.Conv2d, x: Tensor) -> Tensor:
    own: Any = layer._parameters
    found: Tensor = layer._conv_forward(x, own["weight"], own["bias"])
    return found


def _group_norm(layer: nn.GroupNorm, x: Tensor) -> Tensor:
    if x.dim() < 2 or x.numel() == layer.num_groups:
        return layer.forward(x)  # which refuses groups of a single number
    own = layer._parameters
    return torch.group_norm(x, layer.num_groups, own["weight"], own["bias"], layer.eps, torch.backends.cudnn.enabled)


def _layer_norm(layer: nn.LayerNorm, x: Tensor) -> Tensor:
    own = layer._parameters
    return functional.layer_norm(x, layer.normalized_shape, own["weight"], own["bias"], layer.eps)


def _lstm(layer: nn.LSTM, x: Any, hx: Any = None) -> Any:
    """Of a batch of sequences that begins with zeros; whatever else is PyTorch's own to check."""
    if hx is not None or layer.proj_size or not isinstance(x, Tensor) or x.dim() != 3:
        return layer.forward(x, hx)
    zeros = recurrence.zeros(layer, x, layer.hidden_size)
    own: Any = layer._parameters
    weights = [own[name] for names in layer._all_weights for name in names]
    rest = layer.num_layers, layer.dropout, layer.training, layer.bidirectional, layer.batch_first
    outputs, hidden, cell = torch.lstm(x, (zeros, zeros), weights, layer.bias, *rest)
    return outputs, (hidden, cell)


def _encoder(
    encoder: nn.TransformerEncoder, src: Tensor, mask: Any = None, src_key_padding_mask: Any = None, **given: Any
) -> Tensor:
    """Where no mask has to be made fit for all layers."""
    if mask is not None or src_key_padding_mask is not None or given:
        return encoder.forward(src, mask, src_key_padding_mask, **given)
    for layer in encoder.layers:
        src = layer(src, src_mask=None, is_causal=False, src_key_padding_mask=None)
    return src if encoder.norm is None else encoder.norm(src)


FORWARD: Mapping[type[nn.Module], Callable[..., Any]] = {
    nn.Linear: _linear,
    nn.modules.linear.NonDynamicallyQuantizableLinear: _linear,
    nn.Conv2d: _conv2d,
    nn.GroupNorm: _group_norm,
    nn.LayerNorm: _layer_norm,
    nn.LSTM: _lstm,
    nn.TransformerEncoder: _encoder,
}
"""Layers whose forward pass takes long to find what it needs."""
