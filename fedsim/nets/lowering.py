"""Lowering: a module for one client to a function for a stack of clients.

Every parameter gains a leading axis [C, ...] and every input becomes [C, B, ...]. Linear, convolution, normalisation,
embedding, attention and recurrent layers become batched products, whose rows do not depend on how many clients are
stacked; layers without parameters see the clients' examples as one long batch. Images keep this shape, but lie in
memory as the convolutions left them (see `fedsim.nets.convolution`). Anything else, a module with a `forward` of
its own, goes through `torch.func.functional_call` under `vmap`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from fedsim.core.errors import InputError
from fedsim.nets import attention, ghost, products, recurrence
from fedsim.nets.attention import Attention, EncoderLayer
from fedsim.nets.convolution import Geometry, batch_last, convolve
from fedsim.nets.dropout import NamedDropout, mapped, training
from fedsim.nets.elementwise import in_whole_registers
from fedsim.nets.functional import Functional
from fedsim.nets.heads import Taken, bare, taken_of
from fedsim.nets.layers import Residual, has_backward_hooks, has_hooks
from fedsim.nets.normalisation import BatchNorm, statistics_of
from fedsim.nets.sequences import LastStep, MeanStep, Padded, Positions, Steps
from fedsim.nets.stack import Layout
from fedsim.nets.together import hiding

WORTH_A_CALL = 10_000_000
"""Multiply-adds from which a convolutional network's forward pass is faster for one client than for a stack of them."""
WORTH_A_STEP = 50_000
"""The same of a network with LSTMs, for one step of its sequences."""
WORTH_A_LAYER = 40_000_000
"""The same of a network with attention and without dropout, whose masks a stack draws in one call."""

Lowered = Callable[[Mapping[str, Tensor], Tensor], Tensor]
"""(parameters by name, each [C, ...]; inputs [C, B, ...]) -> outputs [C, B, ...]."""

Reader = Callable[[Mapping[str, Tensor], Tensor, Tensor | None], Tensor]
"""The same of layers that read places [..., T, width], with what is padding among them, [..., T], or None."""

ELEMENTWISE = (nn.Identity, nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.Hardtanh, NamedDropout)
EXPONENTIAL = (nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Softplus)
"""Elementwise as well, but the last bits would follow the place in the tensor."""
ACTIVATIONS: Mapping[Any, Lowered] = {
    functional.relu: lambda _, x: torch.relu(x),
    functional.gelu: lambda _, x: in_whole_registers(functional.gelu, x),
}
"""Those that an encoder layer has by name."""
IMAGEWISE = (
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.ZeroPad2d,
    nn.Upsample,
)


class Names:
    """What a model calls the parameters of a stack: all names that it has for them, and those of what is frozen.

    aliases: the names that a stack has, by other names for the same.
    """

    def __init__(self, model: nn.Module, layout: Layout) -> None:
        self._layout = layout
        first: dict[int, str] = {}
        parameters = list(model.named_parameters(remove_duplicate=False))
        every = [*parameters, *model.named_buffers(remove_duplicate=False)]
        for name, own in every:
            first.setdefault(id(own), name)
        shared = {name: first[id(own)] for name, own in every}
        self.aliases = {name: own for name, own in shared.items() if name != own and own in layout.names}
        # Frozen parameters are no part of the vector; every client has the same.
        self._frozen = {name: own.detach() for name, own in parameters if shared[name] not in layout.names}

    def of(self, leaves: Sequence[Tensor], clients: int) -> dict[str, Tensor]:
        """Parameters by name, each [C, ...], of a stack's leaves for so many clients."""
        named = dict(zip(self._layout.names, leaves, strict=True))
        named |= {name: named[own] for name, own in self.aliases.items()}
        return named | {name: own.expand(clients, *own.shape) for name, own in self._frozen.items()}


def loses_to_a_loop(model: nn.Module, operations: int) -> bool:
    """Whether PyTorch's own CPU kernels, which a stack cannot use, make a loop over the clients the faster way.

    operations: multiply-adds of a forward pass of one client's batch, of recurrent layers those of one step. With
    LSTMs, convolutions and attention the loop runs at the speed of the arithmetic where a batch is enough work for one
    call; GRUs have no such kernels.
    """
    kinds = [type(part) for part in model.modules()]
    if any(issubclass(kind, nn.RNN) for kind in kinds):
        return True
    recurrent = any(issubclass(kind, nn.LSTM) for kind in kinds)
    convolutional = any(issubclass(kind, nn.modules.conv._ConvNd) for kind in kinds)
    attentive = any(issubclass(kind, Attention) for kind in kinds)
    attentive &= not any(isinstance(part, NamedDropout) and part.p > 0 for part in model.modules())
    limits = ((recurrent, WORTH_A_STEP), (convolutional, WORTH_A_CALL), (attentive, WORTH_A_LAYER))
    return any(there and operations > limit for there, limit in limits)


def lower(model: nn.Module, prefix: str = "") -> Lowered:
    """The stacked function of `model`; `prefix` is the name of the module within the whole model."""
    taken = taken_of(model)
    if taken is not None and type(model) is nn.Sequential:
        return _headed(taken, lower(bare(model), prefix))
    if has_hooks(model):
        return _vmapped(model, prefix)
    if type(model) is nn.Sequential and _reads_steps(model):
        return _in_turn([lower(part, f"{prefix}{name}.") for name, part in _pooled_first(model)])
    if type(model) is Residual and not any(getattr(part, "inplace", False) for part in model.modules()):
        body, shortcut = lower(model.body, f"{prefix}body."), lower(model.shortcut, f"{prefix}shortcut.")
        return lambda named, x: torch.relu(body(named, x) + shortcut(named, x))
    if type(model) in ELEMENTWISE:
        return lambda _, x: model(x)
    if type(model) in EXPONENTIAL:
        return lambda _, x: in_whole_registers(model, x)
    if type(model) in IMAGEWISE:
        return _imagewise(model)
    if type(model) is nn.Flatten:
        # One more axis in front; negative ones count from the end.
        first, last = (axis + 1 if axis >= 0 else axis for axis in (model.start_dim, model.end_dim))
        return lambda _, x: x.flatten(first, last)
    reader = _reader(model, prefix)
    if reader is not None:
        return lambda named, x: reader(named, x, None)
    for kind, maker in LAYERS:
        if type(model) is kind:
            lowered = maker(model, prefix)
            if lowered is not None:
                return lowered
    return _vmapped(model, prefix)


def _headed(taken: Taken, lowered: Lowered) -> Lowered:
    def headed(named: Mapping[str, Tensor], x: Tensor) -> Tensor:
        returned = lowered(named, x)
        outputs = taken.shaped(returned.flatten(0, 1))
        return outputs.view(*returned.shape[:2], *outputs.shape[1:])

    return headed


class Stackable(TorchFunctionMode):
    """Within this block a call that a stack would make otherwise than a model alone is an InputError.

    `vmap` forgets the padding of an embedding, whose row is to have no gradient. Gradients by the frequency of a token
    would count those of the examples that fill a batch up, too.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """See the class."""
        kwargs = kwargs or {}
        given = dict(zip(EMBEDDINGS.get(func, ()), args, strict=False)) | kwargs
        padding = given.get("padding_idx")
        forgotten = func is not functional.embedding_bag and padding is not None
        if func in EMBEDDINGS and (given.get("scale_grad_by_freq") or (forgotten and (func, padding) != NO_PADDING)):
            option = "scale_grad_by_freq" if given.get("scale_grad_by_freq") else "padding_idx"
            raise InputError("engine.executor", "stacked", f"an embedding has {option} in a forward pass; use 'loop'")
        return func(*args, **kwargs)


EMBEDDINGS: Mapping[Any, tuple[str, ...]] = {
    functional.embedding: ("input", "weight", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq"),
    functional.embedding_bag: ("input", "weight", "offsets", "max_norm", "norm_type", "scale_grad_by_freq"),
    torch.embedding: ("weight", "indices", "padding_idx", "scale_grad_by_freq"),
}
"""Functions, and the names of their first arguments."""
NO_PADDING = (torch.embedding, -1)
"""What says to this function, and to no other, that there is none."""


def _in_turn(stages: Sequence[Lowered]) -> Lowered:
    def in_turn(named: Mapping[str, Tensor], x: Tensor) -> Tensor:
        for stage in stages:
            x = stage(named, x)
        return x

    return in_turn


def _reads_steps(model: nn.Sequential) -> bool:
    """Whether `Steps` follow every recurrent layer of a sequence: lowered, it gives its outputs without its states."""
    parts = list(model)
    after = zip(parts, [*parts[1:], None], strict=False)
    return all(isinstance(following, Steps) for part, following in after if isinstance(part, nn.RNNBase))


def _pooled_first(model: nn.Sequential) -> list[tuple[str, nn.Module]]:
    """The named parts, ReLU after a maximum pooling that follows it: the same numbers and gradients, from fewer."""
    parts = [(name, part) for name, part in model._modules.items() if part is not None]
    for place, ((_, part), (_, following)) in enumerate(itertools.pairwise(tuple(parts))):
        plain = not has_hooks(part) and not has_hooks(following)
        if type(part) is nn.ReLU and type(following) is nn.MaxPool2d and plain:
            parts[place : place + 2] = parts[place + 1], parts[place]
    return parts


def _linear(layer: nn.Linear, prefix: str) -> Lowered:
    def linear(named: Mapping[str, Tensor], x: Tensor) -> Tensor:
        rows = products.affine(x.flatten(1, -2), named[f"{prefix}weight"], named.get(f"{prefix}bias"))
        return ghost.noted(
            rows.view(*x.shape[:-1], layer.out_features),
            lambda: {f"{prefix}weight": ghost.Products(x), f"{prefix}bias": ghost.SHIFT},
        )

    return linear


def _imagewise(layer: nn.Module) -> Lowered:
    """A layer that treats every channel of every image alike: they stand in the order in which they lie in memory."""

    def imagewise(_: Mapping[str, Tensor], x: Tensor) -> Tensor:
        if batch_last(x):
            images: Tensor = layer(x.transpose(1, 2).flatten(0, 1))
            return images.view(x.shape[0], x.shape[2], *images.shape[1:]).transpose(1, 2)
        images = layer(x.flatten(0, 1))
        return images.view(*x.shape[:2], *images.shape[1:])

    return imagewise


def _conv2d(layer: nn.Conv2d, prefix: str) -> Lowered | None:
    if layer.groups != 1 or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        return None
    geometry = Geometry(
        *(cast("tuple[int, int]", sides) for sides in (layer.kernel_size, layer.stride, layer.padding, layer.dilation))
    )

    def conv2d(named: Mapping[str, Tensor], x: Tensor) -> Tensor:
        return ghost.noted(
            convolve(x, named[f"{prefix}weight"], named.get(f"{prefix}bias"), geometry),
            lambda: {f"{prefix}weight": ghost.Patches(x, geometry), f"{prefix}bias": ghost.CHANNELS},
        )

    return conv2d


def _group_norm(layer: nn.GroupNorm, prefix: str) -> Lowered:
    def group_norm(named: Mapping[str, Tensor], x: Tensor) -> Tensor:
        out = functional.group_norm(x.flatten(0, 1), layer.num_groups, eps=layer.eps).view_as(x)
        return _affine(named, prefix, out, layer.affine, (-1,) + (1,) * (x.dim() - 3))

    return group_norm


def _layer_norm(layer: nn.LayerNorm, prefix: str) -> Lowered:
    def layer_norm(named: Mapping[str, Tensor], x: Tensor) -> Tensor:
        out = functional.layer_norm(x, layer.normalized_shape, eps=layer.eps)
        return _affine(named, prefix, out, layer.elementwise_affine, layer.normalized_shape)

    return layer_norm


def _affine(named: Mapping[str, Tensor], prefix: str, x: Tensor, affine: bool, shape: tuple[int, ...]) -> Tensor:
    """X * weight + bias, where a client's weight has `shape` against the last axes of x."""
    if not affine:
        return x
    ones = (1,) * (x.dim() - 1 - len(shape))
    out = x * named[f"{prefix}weight"].view(len(x), *ones, *shape)
    bias = named.get(f"{prefix}bias")
    out = out if bias is None else out + bias.view(len(x), *ones, *shape)

    def parts() -> dict[str, ghost.Part]:
        own = (*ones[1:], *(out.shape[2] if side == -1 else side for side in shape))
        return {f"{prefix}weight": ghost.summed(own, x), f"{prefix}bias": ghost.summed(own)}

    return ghost.noted(out, parts)


def _embedding(layer: nn.Embedding, prefix: str) -> Lowered | None:
    if layer.max_norm is not None or layer.sparse or layer.scale_grad_by_freq:
        return None

    def embedding(named: Mapping[str, Tensor], x: Tensor) -> Tensor:
        table = named[f"{prefix}weight"]
        base = torch.arange(len(table), device=x.device).view(-1, *(1,) * (x.dim() - 1))
        found = ghost.noted(
            functional.embedding(x + base * layer.num_embeddings, table.flatten(0, 1)),
            lambda: {f"{prefix}weight": ghost.Rows(x, layer.num_embeddings)},
        )
        if layer.padding_idx is None:
            return found
        padded: Tensor = _Padded.apply(found, x.unsqueeze(-1) == layer.padding_idx)  # type: ignore[no-untyped-call]
        return padded

    return embedding


class _Padded(torch.autograd.Function):
    """Rows of an embedding, of which those that are padding pass no gradient back; forward mode knows no padding."""

    @staticmethod
    def forward(rows: Tensor, padding: Tensor) -> Tensor:  # noqa: ARG004
        """The rows."""
        return rows.view_as(rows)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        """Keep which are padding."""
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """What is not of padding."""
        (padding,) = ctx.saved_tensors
        return grad.masked_fill(padding, 0.0), None

    @staticmethod
    def jvp(ctx: Any, drows: Tensor, _: None) -> Tensor:  # noqa: ARG004
        """The derivative of the rows."""
        return drows.view_as(drows)


def _positions(_: Positions, prefix: str) -> Lowered:
    def positions(named: Mapping[str, Tensor], x: Tensor) -> Tensor:
        weight, length = named[f"{prefix}weight"], x.shape[2]
        rest = weight.shape[1] - length
        part = ghost.Small(lambda delta: functional.pad(delta, (0, 0, 0, rest)))
        return ghost.noted(x + weight[:, None, :length], lambda: {f"{prefix}weight": part})

    return positions


def _steps(layer: Steps, prefix: str) -> Reader:  # noqa: ARG001
    return lambda _, x, padding: layer.read(x, padding)


def _encoder_layer(layer: EncoderLayer, prefix: str) -> Reader | None:
    """Its parts, each for the stack, put together as it says itself."""
    parts = {name: lower(part, f"{prefix}{name}.") for name, part in layer.named_children() if name != "self_attn"}
    if layer.activation in ACTIVATIONS:
        parts["activation"] = ACTIVATIONS[layer.activation]
    attend = attention.lowered(layer.self_attn, f"{prefix}self_attn.")
    if attend is None or "activation" not in parts:
        return None

    def encoder_layer(named: Mapping[str, Tensor], x: Tensor, padding: Tensor | None) -> Tensor:
        own: dict[str, attention.Part] = {name: partial(part, named) for name, part in parts.items()}
        return layer.compute(own | {"self_attn": lambda x: attend(named, x, padding, causal=layer.causal)}, x)

    return encoder_layer


def _encoder(encoder: nn.TransformerEncoder, prefix: str) -> Lowered:
    """Its layers, which see no mask, and its norm."""
    last = [] if encoder.norm is None else [("norm", encoder.norm)]
    layers = [(f"layers.{place}", layer) for place, layer in enumerate(encoder.layers)]
    return _in_turn([lower(part, f"{prefix}{name}.") for name, part in [*layers, *last]])


def _padded(model: Padded, prefix: str) -> Lowered | None:
    """Its layers, of which those that read places know where padding is."""
    parts = [(f"{prefix}{name}.", part) for name, part in model._modules.items() if part is not None]
    stages = [(isinstance(part, EncoderLayer | Steps), _reader(part, name), lower(part, name)) for name, part in parts]
    if not _reads_steps(model) or any(reads and reader is None for reads, reader, _ in stages):
        return None

    def padded(named: Mapping[str, Tensor], x: Tensor) -> Tensor:
        padding = x == model.padding
        for _, reader, stage in stages:
            x = stage(named, x) if reader is None else reader(named, x, padding)
        return x

    return padded


def _reader(model: nn.Module, prefix: str) -> Reader | None:
    """The stacked function of a layer that reads places, if it is one."""
    if has_hooks(model):
        return None
    return next((make(model, prefix) for kind, make in READERS if type(model) is kind), None)


def _vmapped(model: nn.Module, prefix: str) -> Lowered:
    if any(has_backward_hooks(part) for part in model.modules()):
        raise InputError("engine.executor", "stacked", "a module has hooks on its backward pass; use executor = 'loop'")
    statistics = statistics_of(model)
    names = [*(name for name, _ in model.named_parameters()), *statistics]
    functional_model: Callable[..., Tensor] = Functional(model) if names else lambda _, x: model(x)
    # Products with a dimension of 1, and convolutions, are made by other kernels for a single client.
    company_matters = any(1 in own.shape or own.dim() > 2 for own in model.parameters())

    def vmapped(named: Mapping[str, Tensor], x: Tensor) -> Tensor:
        clients, own, now = len(x), {name: named[prefix + name] for name in names}, training()
        real = None if now is None else now.real
        if clients == 1 and company_matters:
            own = {name: one.repeat(2, 1) if name in statistics else products.pair(one) for name, one in own.items()}
            x, real = products.pair(x), None if real is None else products.pair(real)

        def call(own: Mapping[str, Tensor], x: Tensor, real: Tensor | None) -> Tensor:
            with nullcontext() if now is None else mapped(now, real):
                return functional_model(own, x)

        with hiding():
            outputs: Tensor = vmap(call, in_dims=(0, 0, None if real is None else 0))(own, x, real)
        if len(x) > clients:
            for name in statistics:
                named[prefix + name].copy_(own[name][:1])
        return outputs[:clients]

    return vmapped


def _batch_norm(layer: BatchNorm, prefix: str) -> Lowered:
    return lambda named, x: layer.stacked(named, prefix, x)


LAYERS: tuple[tuple[type[nn.Module], Callable[..., Lowered | None]], ...] = (
    (nn.Linear, _linear),
    (nn.Conv2d, _conv2d),
    (nn.GroupNorm, _group_norm),
    (nn.LayerNorm, _layer_norm),
    (BatchNorm, _batch_norm),
    (nn.Embedding, _embedding),
    (nn.LSTM, recurrence.lowered),
    (nn.GRU, recurrence.lowered),
    (recurrence.DroppingLSTM, recurrence.lowered),
    (recurrence.DroppingGRU, recurrence.lowered),
    (nn.TransformerEncoder, _encoder),
    (Positions, _positions),
    (Padded, _padded),
)
READERS: tuple[tuple[type[nn.Module], Callable[..., Reader | None]], ...] = (
    (EncoderLayer, _encoder_layer),
    (LastStep, _steps),
    (MeanStep, _steps),
    (Steps, _steps),
)
