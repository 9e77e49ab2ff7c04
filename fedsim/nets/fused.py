"""Networks whose local training is one compiled loop a client, for `engine.executor = "fused"`.

They are chains of linear layers, perhaps with convolutions and poolings in front (see `fedsim.nets.stages`).

A client's parameters stay in the processor's cache from its first to its last step, where a stack passes over memory
several times a step; and the loop holds no lock of Python's, so that clients are spread over cores. A client's numbers
are made by itself alone: they depend neither on the others nor on how many cores there are.

The values that a search asks for are made so, too, of chains of linear layers alone: each point is read once, and
neither examples nor points are copied.
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
from fedsim.nets.activations import ACTIVATIONS, activates, shape_of
from fedsim.nets.descent import EPSILON, Descended, Descent, Queries, Rule, Shuffles
from fedsim.nets.layers import has_hooks
from fedsim.nets.losses import CrossEntropy, LogCosh, Loss, SquaredError
from fedsim.nets.stack import Layout
from fedsim.nets.stages import Stage, placed, stages_of
from fedsim.parallel.cores import cores, spread

if TYPE_CHECKING:
    from fedsim.nets.kernels.chain import Places, Settings
    from fedsim.nets.kernels.convolution import Stages

LOSSES: dict[type[Loss], str] = {
    CrossEntropy: "CROSS_ENTROPY",
    SquaredError: "SQUARED_ERROR",
    LogCosh: "LOG_COSH",
}
WORTH_SHUFFLING = 20_000
"""Examples of a cohort's steps from which their shuffling is spread over cores."""
SMALL = 1_200_000
"""Multiply-adds of an example up to which networks with convolutions train faster compiled, whatever the batch."""
WORTH_A_CORE = 1_000_000
"""Multiply-adds that a cohort's training, or its queries, must have before they are spread over cores."""
EXAMPLES = 32
"""How many examples a query has in the cache at a time."""
IN_CACHE = 2**18
"""Numbers that a model may have to be evaluated here: of larger ones, a search in place has no memory for a copy."""
NO_ROOM = 0, 0
"""How many vectors gradients, and what a rule remembers, need where steps are fused with gradients."""


@dataclass(frozen=True)
class Linear:
    """A linear layer and the activation of its outputs, None for the last. weight, bias: their names."""

    inputs: int
    outputs: int
    weight: str
    bias: str | None
    activation: nn.Module | None


@dataclass(frozen=True)
class Layers:
    """What a compiled loop is of: stages on images, or none, and a chain of linear layers."""

    stages: Sequence[Stage]
    chain: Sequence[Linear]

    @property
    def operations(self) -> int:
        """Multiply-adds of an example."""
        images = sum(stage.operations for stage in self.stages)
        return images + sum(layer.inputs * layer.outputs for layer in self.chain)


def chain_of(model: nn.Module, layout: Layout) -> list[Linear] | None:
    """The layers of a model that is a chain of linear layers with activations between them; None: it is none."""
    parts = _parts(model)
    if parts and _flattens(parts[0][1]):
        parts = parts[1:]
    found = _chain(parts)
    return found if found and _names(found) == sorted(layout.names) else None


def layers_of(model: nn.Module, layout: Layout, shape: Sequence[int]) -> Layers | None:
    """The layers of a model that there is a loop for, on examples of this shape; None: there is none."""
    if (chain := chain_of(model, layout)) is not None:
        return Layers((), chain)
    parts = _parts(model)
    flat = next((number for number, (_, part) in enumerate(parts) if _flattens(part)), 0)
    stages, chain = stages_of(parts[:flat], shape), _chain(parts[flat + 1 :])
    if not stages or not chain or stages[-1].units != chain[0].inputs:
        return None
    if _names([*stages, *chain]) != sorted(layout.names):
        return None
    return Layers(stages, chain)


def _parts(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The named parts of a sequence; none if it is no sequence, or if others look on."""
    if type(model) is not nn.Sequential:
        return []
    # Not `named_children`, which leaves out a layer that comes again.
    parts = [(name, part) for name, part in model._modules.items() if part is not None]
    return [] if any(has_hooks(part) for _, part in [("", model), *parts]) else parts


def _flattens(part: nn.Module) -> bool:
    """Whether a part makes one vector of all of an example."""
    return type(part) is nn.Flatten and (part.start_dim, part.end_dim) == (1, -1)


def _chain(parts: Sequence[tuple[str, nn.Module]]) -> list[Linear] | None:
    """Parts that are linear layers with activations between them."""
    linear = [(name, part) for name, part in parts[::2] if type(part) is nn.Linear]
    between = [part for _, part in parts[1::2]]
    if len(linear) != len(between) + 1 or not all(activates(part) for part in between):
        return None
    return [
        Linear(
            part.in_features,
            part.out_features,
            f"{name}.weight",
            None if part.bias is None else f"{name}.bias",
            activation,
        )
        for (name, part), activation in zip(linear, [*between, None], strict=True)
    ]


def _names(layers: Sequence[Linear | Stage]) -> list[str]:
    """Of all parameters, sorted."""
    return sorted(name for layer in layers for name in (layer.weight, layer.bias) if name)


def fits(model: nn.Module, layout: Layout, loss: Loss, x: Tensor) -> bool:
    """Whether there is a compiled loop for a model on inputs x that wins, where numba is installed."""
    layers = layers_of(model, layout, x.shape[1:]) if has_kernel(loss) else None
    if layers is None or x.device.type != "cpu" or not x.is_floating_point():
        return False
    return not layers.stages or layers.operations <= SMALL


def has_kernel(loss: Loss) -> bool:
    """Whether there is a compiled form of a loss: of one class or one number an example, all alike."""
    return type(loss) in LOSSES and not loss.places and getattr(loss, "weights", None) is None


def evaluates(model: nn.Module, layout: Layout) -> bool:
    """Whether the compiled loop of a model, where it has one, is for values, too: of linear layers alone, not large."""
    return layout.dimension <= IN_CACHE and chain_of(model, layout) is not None


def installed() -> bool:
    """Whether there is something to compile with."""
    return find_spec("numba") is not None


def fused(model: nn.Module, layout: Layout, loss: Loss, x: Tensor, y: Tensor) -> Fused:
    """The compiled loop of a model on inputs x and targets y. InputError: there is none for it, or here."""
    if not installed():
        raise InputError("engine.executor", "fused", "numba is not installed, which compiles it; take stacked")
    if y.device.type != "cpu":
        raise InputError("engine.executor", "fused", "it is for CPUs; take stacked, or set engine.device = cpu")
    layers = layers_of(model, layout, x.shape[1:])
    if layers is None or not x.is_floating_point():
        known = ", ".join(kind.__name__ for kind in ACTIVATIONS)
        why = f"it is for linear layers with {known} between, after convolutions with stride 1, {known} and pooling"
        raise InputError("engine.executor", "fused", f"{why}; take stacked")
    if not has_kernel(loss):
        of = f" of several {loss.task} an example" if loss.places else " with weights" if type(loss) in LOSSES else ""
        raise InputError(
            "engine.executor", "fused", f"it does not know the loss {type(loss).__name__}{of}; take stacked"
        )
    outputs = layers.chain[-1].outputs
    if not y.is_floating_point() and len(y) and not 0 <= int(y.min()) <= int(y.max()) < outputs:
        raise InputError("problem.model", outputs, f"its outputs are too few for targets up to {int(y.max())}")
    return Fused(layers, layout, loss)


class Fused:
    """Takes all local steps of clients; see the module's text."""

    def __init__(self, layers: Layers, layout: Layout, loss: Loss) -> None:
        from fedsim.nets.kernels import chain, pieces

        self._module, self._layers, self._loss = chain, layers, loss
        self._kind = int(getattr(pieces, LOSSES[type(loss)]))
        begins = np.cumsum([0, *layout.sizes]).tolist()
        self._own = dict(zip(layout.names, begins, strict=False))
        self._operations = layers.operations
        self._shapes = [shape_of(layer.activation) for layer in layers.chain]
        self._placed = lru_cache(maxsize=8)(self._place)
        self.evaluates = not layers.stages and layout.dimension <= IN_CACHE

    def takes(self, rule: Rule) -> bool:
        """Those that are compiled."""
        return rule.optimizer.compiled is not None

    def descend(self, descent: Descent) -> Descended:
        """Take all steps of all clients."""
        rule, start, clients = descent.rule, descent.start, len(descent.steps)
        dtype, rows = start.dtype, descent.index.shape[0]
        end, losses, total = (start.new_empty(shape) for shape in ((clients, start.shape[-1]), rows, clients))
        finite = torch.empty(clients, dtype=torch.bool)
        bits = end.view(torch.int32 if dtype == torch.float32 else torch.int64)
        width, shifted = descent.index.shape[1], descent.shift is not None
        layers, stages, at = self._placed(width, start.element_size(), *_room(rule), shifted)
        x = descent.x.reshape(len(descent.x), -1)
        shift = start.new_empty((0, 1)) if descent.shift is None else _rows(descent.shift)
        vectors = [
            *(_rows(start), shift, end, bits, finite, losses, total, x),
            *_targets(descent.y, dtype),
            *(descent.index, descent.count, torch.argsort(descent.steps, descending=True, stable=True), descent.first),
            descent.steps,
            _rows(torch.as_tensor(descent.rates, dtype=torch.float64)),
        ]
        arrays = [vector.contiguous().numpy() for vector in vectors]
        arrays += [layers, np.array(self._shapes, dtype=arrays[0].dtype)]
        settings = self._settings(rule, arrays[0].dtype.name)
        parts = _dealt(3 * self._operations * rows * width, WORTH_A_CORE, clients)

        def train(first: int) -> None:
            self._module.descend(first, parts, descent.change, *arrays, stages, at, settings)

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
        parts = _dealt(index.numel(), WORTH_SHUFFLING, clients)
        spread(lambda part: shuffle(part, parts, *arrays, shuffles.epochs), range(parts))
        return index, count

    def values(self, queries: Queries) -> Tensor:
        """Evaluate all queries of all clients."""
        from fedsim.nets.kernels import outputs

        points = queries.points
        found = points.new_empty(points.shape[:2])
        # Points that all clients share are read where they are.
        apart = 0 if points.stride(0) == 0 else points.shape[1]
        rows = points[: 1 if apart == 0 else None].flatten(0, 1)
        layers, _, at = self._placed(EXAMPLES, points.element_size(), *NO_ROOM, False)
        x = queries.x.reshape(len(queries.x), -1)
        vectors = [rows, x, *_targets(queries.y, points.dtype), queries.index, queries.begin, queries.count]
        arrays = [vector.contiguous().numpy() for vector in vectors]
        arrays += [layers, np.array(self._shapes, dtype=arrays[0].dtype)]
        share, count = float(getattr(self._loss, "label_smoothing", 0.0)), found.numel()
        parts = _dealt(self._operations * int(queries.count.sum()) * points.shape[1], WORTH_A_CORE, count)

        def evaluate(part: int) -> None:
            first, last = part * count // parts, (part + 1) * count // parts
            outputs.values(first, last, EXAMPLES, apart, *arrays, at, self._kind, share, found.numpy())

        spread(evaluate, range(parts))
        return found

    def _settings(self, rule: Rule, kind: str) -> Settings:
        """kind: of numbers, by NumPy's name."""
        from fedsim.nets.kernels import rules

        own = rule.optimizer.compiled
        assert own is not None
        return self._module.Settings(
            loss=self._kind,
            share=float(getattr(self._loss, "label_smoothing", 0.0)),
            plain=rule.plain,
            decay=float(rule.decay),
            decoupled=float(rule.decoupled),
            clip=float(rule.clip_norm or 0.0),
            epsilon_norm=EPSILON,
            rule=0 if rule.plain else getattr(rules, own.name).address(kind),
            numbers=np.array(own.numbers, dtype=np.float64),
        )

    def _place(
        self, width: int, size: int, gradients: int, remembered: int, shifted: bool
    ) -> tuple[NDArray[np.int64], Stages | None, Places]:
        """The table of the layers, that of stages, and where everything is, for batches of this width of such numbers.

        size: bytes of a number. gradients, remembered: how many vectors as long as the parameters these need.
        """
        from fedsim.nets.kernels import pieces
        from fedsim.nets.kernels.tiles import AT_ONCE, WIDTH

        chain: Any = self._module
        lanes = WIDTH // size

        def filled(count: int, by: int = lanes) -> int:
            return -(-count // by) * by

        stages, linear = self._layers.stages, self._layers.chain
        table = np.zeros((len(stages) + len(linear), chain.FIELDS), dtype=np.int64)
        block = 0
        every: list[Stage | Linear] = [*stages, *linear]
        for fields, layer in zip(table, every, strict=True):
            inputs = layer.patch if isinstance(layer, Stage) else layer.inputs
            row = filled(inputs)
            fields[[chain.INPUTS, chain.OUTPUTS, chain.ROW, chain.OUT_ROW]] = (
                *(inputs, layer.outputs, row, filled(layer.outputs)),
            )
            fields[[chain.WEIGHT, chain.OWN_WEIGHT]] = block, self._own[layer.weight]
            block += filled(layer.outputs, AT_ONCE) * row
            fields[[chain.BIAS, chain.OWN_BIAS]] = -1, -1
            if layer.bias is not None:
                fields[[chain.BIAS, chain.OWN_BIAS]] = block, self._own[layer.bias]
                block += filled(layer.outputs)
        end = block

        def room(numbers: int) -> int:
            nonlocal end
            end += numbers
            return end - numbers

        own = table[len(stages) :]
        for fields, layer in zip(own, linear, strict=True):
            if layer.activation is not None:
                fields[chain.ACTIVATION] = getattr(pieces, ACTIVATIONS[type(layer.activation)])
            fields[chain.HIDDEN] = room(width * fields[chain.ROW])
            fields[chain.SLOPE] = room(width * fields[chain.OUT_ROW])
        made: Stages | None = None
        if stages:
            weights = [tuple(fields) for fields in table[: len(stages), [chain.WEIGHT, chain.BIAS, chain.ROW]].tolist()]
            first = int(own[0, chain.HIDDEN]), int(own[0, chain.ROW])
            made = placed(stages, weights, width, lanes, room, first, np.float32 if size == 4 else np.float64)
        widest = int(own[:, [chain.ROW, chain.OUT_ROW]].max())
        widest = max([widest, *(filled(stage.units) for stage in stages)])
        outputs, delta, other = room(width * int(own[-1, chain.OUT_ROW])), room(width * widest), room(width * widest)
        gradient, memory, shift = room(gradients * block), room(remembered * block), room(block if shifted else 0)
        return table, made, chain.Places(end, block, outputs, delta, other, gradient, memory, shift)


def _room(rule: Rule) -> tuple[int, int]:
    """How many vectors gradients need, and what is remembered."""
    own = rule.optimizer.compiled
    return NO_ROOM if rule.plain or own is None else (1, int(rule.optimizer.vectors) + own.more)


def _dealt(work: int, least: int, items: int) -> int:
    """Into how many parts items are dealt: where there is work for more than one core more than there are cores.

    So one that is late keeps nobody waiting.
    """
    return max(1, min(4 * cores(), items)) if work > least else 1


def _targets(y: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Labels, int64, and targets of a kind, of which one are y and the other none."""
    if y.is_floating_point():
        return y.new_empty(0, dtype=torch.int64), y
    return y, y.new_empty(0, dtype=dtype)


def _rows(vectors: Tensor) -> Tensor:
    """One vector [d] or several [C, d] as rows."""
    return vectors.unsqueeze(0) if vectors.dim() == 1 else vectors
