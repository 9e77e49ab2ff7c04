"""Chains of linear layers whose local training is one compiled loop a client, for `engine.executor = "fused"`.

A client's parameters stay in the processor's cache from its first to its last step, where a stack passes over memory
several times a step; and the loop holds no lock of Python's, so that clients are spread over cores. A client's numbers
are made by itself alone: they depend neither on the others nor on how many cores there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedsim.core.errors import InputError
from fedsim.nets.descent import EPSILON, Descended, Descent, Rule, Shuffles
from fedsim.nets.layers import has_hooks
from fedsim.nets.losses import CrossEntropy, LabelSmoothing, LogCosh, Loss, SquaredError
from fedsim.nets.stack import Layout
from fedsim.parallel.cores import cores, spread

if TYPE_CHECKING:
    from fedsim.nets.kernels.chain import Places, Settings

ACTIVATIONS: dict[type[nn.Module], str] = {
    nn.ReLU: "RELU",
    nn.LeakyReLU: "LEAKY_RELU",
    nn.Tanh: "TANH",
    nn.Sigmoid: "SIGMOID",
    nn.ELU: "ELU",
    nn.SiLU: "SILU",
    nn.GELU: "GELU",
}
"""What may follow a linear layer, and what `fedsim.nets.kernels.pieces` calls it."""
LOSSES: dict[type[Loss], str] = {
    CrossEntropy: "CROSS_ENTROPY",
    LabelSmoothing: "CROSS_ENTROPY",
    SquaredError: "SQUARED_ERROR",
    LogCosh: "LOG_COSH",
}
WORTH_SHUFFLING = 20_000
"""Examples of a cohort's steps from which their shuffling is spread over cores."""
WORTH_A_CORE = 1_000_000
"""Multiply-adds that a cohort's training must have before its clients are spread over cores."""


@dataclass(frozen=True)
class Linear:
    """A linear layer and the activation of its outputs, None for the last. weight, bias: their names."""

    inputs: int
    outputs: int
    weight: str
    bias: str | None
    activation: nn.Module | None


def chain_of(model: nn.Module, layout: Layout) -> list[Linear] | None:
    """The layers of a model that is a chain of linear layers with activations between them; None: it is none."""
    if type(model) is not nn.Sequential:
        return None
    # Not `named_children`, which leaves out a layer that comes again.
    parts = [(name, part) for name, part in model._modules.items() if part is not None]
    if any(has_hooks(part) for _, part in [("", model), *parts]):
        return None
    if parts and type(parts[0][1]) is nn.Flatten and (parts[0][1].start_dim, parts[0][1].end_dim) == (1, -1):
        parts = parts[1:]
    linear = [(name, part) for name, part in parts[::2] if type(part) is nn.Linear]
    between = [part for _, part in parts[1::2]]
    if len(linear) != len(between) + 1:
        return None
    if not all(type(part) in ACTIVATIONS and getattr(part, "approximate", "none") == "none" for part in between):
        return None
    found = [
        Linear(
            part.in_features,
            part.out_features,
            f"{name}.weight",
            None if part.bias is None else f"{name}.bias",
            activation,
        )
        for (name, part), activation in zip(linear, [*between, None], strict=True)
    ]
    named = sorted(name for layer in found for name in (layer.weight, layer.bias) if name)
    return found if named == sorted(layout.names) else None


def fits(model: nn.Module, layout: Layout, loss: Loss, x: Tensor) -> bool:
    """Whether there is a compiled loop for a model on inputs x, where numba is installed."""
    known = type(loss) in LOSSES and chain_of(model, layout) is not None
    return known and x.device.type == "cpu" and x.is_floating_point()


def installed() -> bool:
    """Whether there is something to compile with."""
    return find_spec("numba") is not None


def fused(model: nn.Module, layout: Layout, loss: Loss, x: Tensor, y: Tensor) -> Fused:
    """The compiled loop of a model on inputs x and targets y. InputError: there is none for it, or here."""
    if not installed():
        raise InputError("engine.executor", "fused", "numba is not installed, which compiles it; take stacked")
    if y.device.type != "cpu":
        raise InputError("engine.executor", "fused", "it is for CPUs; take stacked, or set engine.device = cpu")
    layers = chain_of(model, layout)
    if layers is None or not x.is_floating_point():
        known = ", ".join(kind.__name__ for kind in ACTIVATIONS)
        raise InputError("engine.executor", "fused", f"it is for linear layers with {known} between; take stacked")
    if type(loss) not in LOSSES:
        raise InputError("engine.executor", "fused", f"it does not know the loss {type(loss).__name__}; take stacked")
    outputs = layers[-1].outputs
    if not y.is_floating_point() and len(y) and not 0 <= int(y.min()) <= int(y.max()) < outputs:
        raise InputError("problem.model", outputs, f"its outputs are too few for targets up to {int(y.max())}")
    return Fused(layers, layout, loss)


class Fused:
    """Takes all local steps of clients; see the module's text."""

    def __init__(self, layers: Sequence[Linear], layout: Layout, loss: Loss) -> None:
        from fedsim.nets.kernels import chain, pieces

        self._chain, self._layers, self._loss = chain, tuple(layers), loss
        self._kind = int(getattr(pieces, LOSSES[type(loss)]))
        codes = [ACTIVATIONS[type(layer.activation)] if layer.activation is not None else "RELU" for layer in layers]
        self._codes = [int(getattr(pieces, name)) for name in codes]
        begins = np.cumsum([0, *layout.sizes]).tolist()
        self._own = dict(zip(layout.names, begins, strict=False))
        self._operations = sum(layer.inputs * layer.outputs for layer in layers)
        self._shapes = [
            float(getattr(layer.activation, "negative_slope", getattr(layer.activation, "alpha", 0.0)))
            for layer in layers
        ]
        self._placed = lru_cache(maxsize=8)(self._place)

    def descend(self, descent: Descent) -> Descended:
        """Take all steps of all clients."""
        rule, start, clients = descent.rule, descent.start, len(descent.steps)
        dtype, rows = start.dtype, descent.index.shape[0]
        end, losses, total = (start.new_empty(shape) for shape in ((clients, start.shape[-1]), rows, clients))
        finite = torch.empty(clients, dtype=torch.bool)
        bits = end.view(torch.int32 if dtype == torch.float32 else torch.int64)
        layers, at = self._placed(descent.index.shape[1], start.element_size(), rule, descent.shift is not None)
        x = descent.x.reshape(len(descent.x), -1)
        nothing = torch.empty(0, dtype=dtype)
        real = descent.y.is_floating_point()
        shift = nothing.view(0, 1) if descent.shift is None else _rows(descent.shift)
        vectors = [
            *(_rows(start), shift, end, bits, finite, losses, total, x),
            *(torch.empty(0, dtype=torch.int64) if real else descent.y, descent.y if real else nothing),
            *(descent.index, descent.count, torch.argsort(descent.steps, descending=True, stable=True), descent.first),
            descent.steps,
            torch.tensor(descent.rates, dtype=torch.float64),
        ]
        arrays = [vector.contiguous().numpy() for vector in vectors]
        arrays += [layers, np.array(self._shapes, dtype=arrays[0].dtype)]
        settings = self._settings(rule)
        parts = 1
        if 3 * self._operations * rows * descent.index.shape[1] > WORTH_A_CORE:
            parts = max(1, min(4 * cores(), clients))  # more than cores, so that one that is late keeps nobody waiting

        def train(first: int) -> None:
            self._chain.descend(first, parts, descent.change, *arrays, at, settings)

        spread(train, range(parts))
        return Descended(end, losses, total, finite)

    def shuffle(self, shuffles: Shuffles) -> tuple[Tensor, Tensor]:
        """Shuffle and cut the examples of all clients."""
        from fedsim.nets.kernels.shuffles import shuffle

        clients = len(shuffles.examples)
        index = shuffles.order.new_empty((shuffles.rows, shuffles.width))
        count = shuffles.order.new_empty(shuffles.rows)
        words = [
            word.numpy().view(np.uint64) for word in (shuffles.owners, shuffles.turns, shuffles.low, shuffles.high)
        ]
        others = (shuffles.order, shuffles.begin, shuffles.examples, shuffles.first, index, count)
        arrays = [*words, *(vector.contiguous().numpy() for vector in others)]
        parts = min(4 * cores(), clients) if index.numel() > WORTH_SHUFFLING else 1
        spread(lambda part: shuffle(part, parts, *arrays, shuffles.epochs), range(parts))
        return index, count

    def _settings(self, rule: Rule) -> Settings:
        from fedsim.nets.kernels import rules

        return self._chain.Settings(
            loss=self._kind,
            share=float(getattr(self._loss, "share", 0.0)),
            optimizer=int(getattr(rules, rule.optimizer.upper())),
            plain=rule.plain,
            decay=float(rule.decay),
            decoupled=float(rule.decoupled),
            clip=float(rule.clip_norm or 0.0),
            epsilon_norm=EPSILON,
            momentum=float(rule.momentum),
            nesterov=rule.nesterov,
            beta1=float(rule.beta1),
            beta2=float(rule.beta2),
            epsilon=float(rule.epsilon),
        )

    def _place(self, width: int, size: int, rule: Rule, shifted: bool) -> tuple[NDArray[np.int64], Places]:
        """The table of the layers and where everything is, for batches of this width of numbers of so many bytes."""
        from fedsim.nets.kernels.tiles import AT_ONCE, WIDTH

        chain: Any = self._chain
        lanes = WIDTH // size

        def filled(count: int, by: int = lanes) -> int:
            return -(-count // by) * by

        table = np.zeros((len(self._layers), chain.FIELDS), dtype=np.int64)
        block = 0
        for fields, layer, code in zip(table, self._layers, self._codes, strict=True):
            row = filled(layer.inputs)
            fields[[chain.INPUTS, chain.OUTPUTS, chain.ROW, chain.OUT_ROW]] = (
                *(layer.inputs, layer.outputs, row, filled(layer.outputs)),
            )
            fields[[chain.WEIGHT, chain.OWN_WEIGHT]] = block, self._own[layer.weight]
            block += filled(layer.outputs, AT_ONCE) * row
            fields[[chain.BIAS, chain.OWN_BIAS, chain.ACTIVATION]] = -1, -1, code
            if layer.bias is not None:
                fields[[chain.BIAS, chain.OWN_BIAS]] = block, self._own[layer.bias]
                block += filled(layer.outputs)
        end = block

        def room(numbers: int) -> int:
            nonlocal end
            end += numbers
            return end - numbers

        for fields in table:
            fields[chain.HIDDEN] = room(width * fields[chain.ROW])
            fields[chain.SLOPE] = room(width * fields[chain.OUT_ROW])
        widest = int(table[:, [chain.ROW, chain.OUT_ROW]].max())
        outputs, delta, other = room(width * int(table[-1, chain.OUT_ROW])), room(width * widest), room(width * widest)
        gradient = room(0 if rule.plain else block)
        first = room(0 if rule.plain else block)
        second = room(block if rule.optimizer == "adam" else 0)
        shift = room(block if shifted else 0)
        return table, chain.Places(end, block, outputs, delta, other, gradient, first, second, shift)


def _rows(vectors: Tensor) -> Tensor:
    """One vector [d] or several [C, d] as rows."""
    return vectors.unsqueeze(0) if vectors.dim() == 1 else vectors
