"""LSTMs and GRUs: for a stack of clients, and with dropout between their layers that is drawn by name.

A layer's inputs x_t [B, in] become h_t [B, H], from h_0 = c_0 = 0, for the whole stack by two batched products: one of
all steps with W, one a step with U. sigma is the logistic function, * a product by elements.

LSTM (i, f, g, o by rows of W and U)        GRU (r, z, n)
    a = W x + U h + b                           a = W x + b, e = U h + b'
    c = sigma(a_f) * c + sigma(a_i) * tanh(a_g)     z = sigma(a_z + e_z), n = tanh(a_n + sigma(a_r + e_r) * e_n)
    h = sigma(a_o) * tanh(c)                    h = n + z * (h - n)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from fedsim.nets import products
from fedsim.nets.layers import has_hooks

Weights: TypeAlias = tuple[Tensor, Tensor, Tensor | None, Tensor | None]
"""W [C, gates H, in], U [C, gates H, H] and their biases [C, gates H] of a layer in one direction."""


def lowered(layer: nn.RNNBase, prefix: str) -> Callable[[Mapping[str, Tensor], Tensor], Tensor] | None:
    """The stacked function of an LSTM or a GRU, [C, B, T, in] to [C, B, T, H], without its states."""
    if layer.proj_size or not layer.batch_first:
        return None
    run = _lstm if isinstance(layer, nn.LSTM) else _gru
    ways = ("", "_reverse") if layer.bidirectional else ("",)

    def recurrent(named: Mapping[str, Tensor], x: Tensor) -> Tensor:
        for level in range(layer.num_layers):
            drop = getattr(layer, "drop", None)
            if level and drop is not None:
                x = drop(x)
            found = []
            for way in ways:
                names = (f"{prefix}{kind}_l{level}{way}" for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
                w_in, w_hid, b_in, b_hid = (named.get(name) for name in names)
                assert w_in is not None
                assert w_hid is not None
                one = run((w_in, w_hid, b_in, b_hid), x.flip(2) if way else x)
                found.append(one.flip(2) if way else one)
            x = found[0] if len(found) == 1 else torch.cat(found, dim=3)
        return x

    return recurrent


def _lstm(weights: Weights, x: Tensor) -> Tensor:
    w_in, w_hid, b_in, b_hid = weights
    bias = None if b_in is None or b_hid is None else b_in + b_hid
    steps = products.affine(x.flatten(1, 2), w_in, bias).view(*x.shape[:3], -1)
    hidden = cell = steps.new_zeros(*x.shape[:2], w_hid.shape[2])
    outputs = []
    for step in steps.unbind(2):
        i, f, g, o = products.baddbmm(step, hidden, w_hid.mT).chunk(4, dim=2)
        cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
        hidden = torch.sigmoid(o) * torch.tanh(cell)
        outputs.append(hidden)
    return torch.stack(outputs, dim=2)


def _gru(weights: Weights, x: Tensor) -> Tensor:
    w_in, w_hid, b_in, b_hid = weights
    size = w_hid.shape[2]
    steps = products.affine(x.flatten(1, 2), w_in, b_in).view(*x.shape[:3], -1)
    hidden = steps.new_zeros(*x.shape[:2], size)
    outputs = []
    for step in steps.unbind(2):
        own = products.affine(hidden, w_hid, b_hid)
        # Pieces of rows, as in the LSTM: of whole tensors the last bits would follow the company.
        reset, update = (step[..., : 2 * size] + own[..., : 2 * size]).chunk(2, dim=2)
        new = torch.tanh(step[..., 2 * size :] + torch.sigmoid(reset) * own[..., 2 * size :])
        hidden = new + torch.sigmoid(update) * (hidden - new)
        outputs.append(hidden)
    return torch.stack(outputs, dim=2)


class DroppingLSTM(nn.LSTM):
    """An LSTM with a part `drop` between its layers."""

    drop: nn.Module | None

    def forward(self, x: Tensor, hx: Any = None) -> tuple[Tensor, Any]:  # type: ignore[override]
        """As PyTorch's, of a batch of sequences and, perhaps, states to begin with: outputs and states."""
        if hx is None:
            hx = (zeros(self, x, self.proj_size or self.hidden_size), zeros(self, x, self.hidden_size))
        outputs, hidden, cell = _layer_by_layer(self, x, hx)
        return outputs, (hidden, cell)


class DroppingGRU(nn.GRU):
    """A GRU with a part `drop` between its layers."""

    drop: nn.Module | None

    def forward(self, x: Tensor, hx: Any = None) -> tuple[Tensor, Any]:  # type: ignore[override]
        """As PyTorch's, of a batch of sequences and, perhaps, states to begin with: outputs and states."""
        outputs, hidden = _layer_by_layer(self, x, (zeros(self, x, self.hidden_size) if hx is None else hx,))
        return outputs, hidden


def zeros(layer: nn.RNNBase, x: Tensor, size: int) -> Tensor:
    """States to begin with, of all layers and directions."""
    count = layer.num_layers * (2 if layer.bidirectional else 1)
    return x.new_zeros(count, x.shape[0 if layer.batch_first else 1], size)


def _layer_by_layer(layer: DroppingLSTM | DroppingGRU, x: Tensor, start: Sequence[Tensor]) -> list[Tensor]:
    """Outputs and states, dropout between PyTorch's own layers."""
    run: Any = torch.lstm if isinstance(layer, nn.LSTM) else torch.gru
    ways = 2 if layer.bidirectional else 1
    states = []
    for level in range(layer.num_layers):
        if level and layer.drop is not None:
            x = layer.drop(x)
        own = slice(level * ways, (level + 1) * ways)
        weights = [getattr(layer, name) for names in layer._all_weights[own] for name in names]
        begun = [state[own] for state in start]
        rest = layer.bias, 1, 0.0, layer.training, layer.bidirectional, layer.batch_first
        x, *after = run(x, begun if len(begun) > 1 else begun[0], weights, *rest)
        states.append(after)
    return [x, *(torch.cat(parts) for parts in zip(*states, strict=True))]


DROPPING: Mapping[type[nn.Module], type[nn.Module]] = {nn.LSTM: DroppingLSTM, nn.GRU: DroppingGRU}


def take_over(part: nn.Module) -> bool:
    """Make of an LSTM or a GRU of PyTorch's one of the above, in place; False: it is none, or has hooks."""
    if type(part) not in DROPPING or has_hooks(part):
        return False
    part.__class__ = DROPPING[type(part)]
    return True
