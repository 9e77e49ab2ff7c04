"""What the JAX peer compiles: networks from PyTorch's modules, a step of SGD, and a round in two forms."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import torch
from jax import lax
from jax import numpy as jnp
from jax.sharding import AxisType, PartitionSpec
from torch import Tensor, nn

Array = Any
Parameters = list[Array]
Apply = Callable[[Sequence[Array], Array], Array]
CLIENTS, ALL = PartitionSpec("clients"), PartitionSpec()


@dataclass(frozen=True)
class Network:
    """A module in JAX.

    names, initial: its parameters, weights of linear layers as [in, out] and of convolutions as [k, k, in, out]. apply:
    from parameters and inputs [B, ...], images with channels last, to logits.
    """

    names: Sequence[str]
    initial: Parameters
    apply: Apply

    def state_dict(self, values: Parameters) -> dict[str, Tensor]:
        """Parameters as the module's."""
        turned = (np.transpose(value, range(value.ndim)[::-1] if value.ndim < 4 else (3, 2, 0, 1)) for value in values)
        return {name: torch.tensor(np.ascontiguousarray(value)) for name, value in zip(self.names, turned, strict=True)}


def network(module: nn.Module) -> Network:
    """Translate a row of layers."""
    assert isinstance(module, nn.Sequential)
    layers = list(module)
    named = {name: value.detach().numpy() for name, value in module.named_parameters()}
    initial = [jnp.asarray(value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T) for value in named.values()]

    def apply(parameters: Sequence[Array], x: Array) -> Array:
        values = iter(parameters)
        for layer in layers:
            x = _applied(layer, values, x)
        return x

    return Network(list(named), initial, apply)


def _applied(layer: nn.Module, values: Iterator[Array], x: Array) -> Array:
    match layer:
        case nn.Linear():
            return x @ next(values) + next(values)
        case nn.ReLU():
            return jax.nn.relu(x)
        case nn.Conv2d():
            padding = [(int(side), int(side)) for side in layer.padding]
            filtered = lax.conv_general_dilated(
                x, next(values), layer.stride, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            return filtered + next(values)
        case nn.MaxPool2d():
            # Of 2x2. The maximum of a reshaped array: XLA's own pooling has a slow derivative on a CPU.
            batch, height, width, channels = x.shape
            return x.reshape(batch, height // 2, 2, width // 2, 2, channels).max((2, 4))
        case nn.Flatten():
            return jnp.moveaxis(x, -1, 1).reshape(len(x), -1)
    raise NotImplementedError(layer)


def descend(apply: Apply, lr: float, local: Parameters, x: Array, y: Array, weights: Array) -> Parameters:
    """Take a step on a batch: x [B, ...], y [B, classes] of zeros and one 1, weights [B] of sum 1; 0 of padding."""

    def loss(local: Parameters) -> Array:
        logits = apply(local, x)
        return (weights * (jax.nn.logsumexp(logits, axis=-1) - (logits * y).sum(-1))).sum()

    return [value - lr * gradient for value, gradient in zip(local, jax.grad(loss)(local), strict=True)]


def side_by_side(apply: Apply, lr: float, devices: int) -> Callable[..., Parameters]:
    """Compile a round (theta, x, y, buckets), with rows and weights [C, S, B] and shares [C] of each bucket."""

    def train(theta: Parameters, x: Array, y: Array, rows: Array, weights: Array) -> Parameters:
        def step(local: Parameters, batch: tuple[Array, Array]) -> tuple[Parameters, None]:
            return descend(apply, lr, local, x[batch[0]], y[batch[0]], batch[1]), None

        trained: Parameters = lax.scan(step, theta, (rows, weights))[0]
        return trained

    def round_(theta: Parameters, x: Array, y: Array, buckets: Any) -> Parameters:
        mean = [jnp.zeros_like(value) for value in theta]
        for rows, weights, shares in buckets:
            trained = jax.vmap(train, in_axes=(None, None, None, 0, 0))(theta, x, y, rows, weights)
            mean = [value + jnp.tensordot(shares, own, axes=1) for value, own in zip(mean, trained, strict=True)]
        return mean

    return _over(devices, round_, (ALL, ALL, ALL, CLIENTS))


def one_by_one(apply: Apply, lr: float, devices: int) -> Callable[..., Parameters]:
    """Compile a round (theta, x, y, (rows, weights), (first, steps, shares)), with rows and weights [sum of steps, B].

    A client's batches are `steps` ones from `first` on.
    """

    def round_(theta: Parameters, x: Array, y: Array, batches: Any, clients: Any) -> Parameters:
        def client(mean: Parameters, own: tuple[Array, Array, Array]) -> tuple[Parameters, None]:
            first, steps, share = own

            def step(place: Array, local: Parameters) -> Parameters:
                rows, weights = (lax.dynamic_index_in_dim(part, place, keepdims=False) for part in batches)
                return descend(apply, lr, local, x[rows], y[rows], weights)

            local = lax.fori_loop(first, first + steps, step, theta)
            return [value + share * mine for value, mine in zip(mean, local, strict=True)], None

        zeros = [jnp.zeros_like(value) for value in theta]
        mean: Parameters = lax.scan(client, zeros, clients)[0]
        return mean

    return _over(devices, round_, (ALL, ALL, ALL, ALL, CLIENTS))


def _over(devices: int, round_: Callable[..., Parameters], specs: tuple[Any, ...]) -> Callable[..., Parameters]:
    """Compile a round whose clients are dealt to devices, which each average theirs."""
    if devices == 1:
        compiled: Callable[..., Parameters] = jax.jit(round_)
        return compiled

    def part(*arguments: Any) -> Parameters:
        return [lax.psum(value, "clients") for value in round_(*arguments)]

    mesh = jax.make_mesh((devices,), ("clients",), axis_types=(AxisType.Auto,))
    dealt: Callable[..., Parameters] = jax.jit(
        jax.shard_map(part, mesh=mesh, in_specs=specs, out_specs=ALL, check_vma=False)
    )
    return dealt
