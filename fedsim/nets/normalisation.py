"""Batch normalisation of clients' batches, each by its own statistics, with running ones that are part of the model.

In a training pass (see `fedsim.nets.dropout`) the n numbers x of a channel in a client's batch, padding left out, give

    mean = sum x / n;  var = sum (x - mean)^2 / n;  y = (x - mean) / sqrt(var + eps) * weight + bias
    running mean <- (1 - momentum) running mean + momentum mean
    running var  <- (1 - momentum) running var  + momentum var n / (n - 1)

as in PyTorch, and outside of one y is made by the running ones. Of a single number (n = 1) PyTorch refuses to train;
here it is normalised by the running statistics, which then stay as they are.

The running statistics follow the trained parameters in the model's vector, so they are averaged, sent, counted and kept
as those are. `Statistics` says what the vector has of them:

`averaged` mean and variance. The mean of variances is not the variance of all examples together: means that differ
           count for nothing.
`pooled`   mean and second moment, variance + mean^2, whose weighted means are those of all examples together, by the
           law of total variance.
`frozen`   nothing: they stay what they are at the start, in training too.

Two clients' statistics never meet, and padding is left out by selection: its square may be infinite, and no product
with a mask would make 0 of that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedsim.core.errors import InputError
from fedsim.nets.dropout import training
from fedsim.nets.layers import has_hooks
from fedsim.nets.modes import twice

Statistics = Literal["averaged", "pooled", "frozen"]
MEAN, SECOND = "running_mean", "running_var"
"""Names of the running statistics, as in PyTorch's layers; in the vector the second may be another than the variance.
"""
DIMENSIONS: Mapping[type[nn.Module], tuple[int, ...]] = {
    nn.BatchNorm1d: (2, 3),
    nn.BatchNorm2d: (4,),
    nn.BatchNorm3d: (5,),
}
"""How many axes a batch has for each of PyTorch's layers."""


class BatchNorm(nn.Module):
    """See the module's text. Inputs [B, F, ...] of F channels; `stacked` is for those of k clients.

    weight, bias: [F] each, or None. running_mean, running_var: [F], the second as `statistics` says.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, layer: nn.modules.batchnorm._NormBase, momentum: float) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.register_buffer(MEAN, layer.running_mean)
        self.register_buffer(SECOND, layer.running_var)
        self.eps, self.momentum, self.dimensions = layer.eps, momentum, DIMENSIONS[type(layer)]
        self.statistics: Statistics = "averaged"

    @classmethod
    def of(cls, layer: nn.modules.batchnorm._NormBase, name: str) -> nn.Module:
        """What stands for a layer of PyTorch's. InputError: it is of another kind, or has options it cannot have."""
        batches, fault = isinstance(layer, nn.modules.batchnorm._BatchNorm), None
        if not batches and not layer.track_running_stats:
            return layer  # of one example at a time, and keeps nothing
        if not batches:
            fault = "it keeps running statistics; set track_running_stats = False"
        elif type(layer) not in DIMENSIONS:
            fault = "its statistics are not those of one client's batch; take BatchNorm1d, BatchNorm2d or BatchNorm3d"
        elif not layer.track_running_stats:
            fault = "what it makes of an example depends on which are judged together; set track_running_stats"
        elif layer.momentum is None:
            fault = "a cumulative mean goes by a count of batches, which clients do not share; give it a momentum"
        elif has_hooks(layer):
            fault = "it has hooks, which the layer in its place would not have; take them off"
        if fault is not None:
            raise InputError("problem.model", f"{type(layer).__name__} ({name})", fault)
        return cls(layer, float(layer.momentum or 0.0))

    @property
    def carried(self) -> bool:
        """Whether the statistics are part of the vector."""
        return self.statistics != "frozen"

    def become(self, statistics: Statistics) -> None:
        """Have the same statistics in another form, in place."""
        variance = self._variance(self.running_mean, self.running_var)
        self.statistics = statistics
        self.running_var = self._second(self.running_mean, variance)

    def _variance(self, mean: Tensor, second: Tensor) -> Tensor:
        """The variance that running statistics [..., F] come to: never below 0, which means of others may be."""
        return (second - mean.square() if self.statistics == "pooled" else second).clamp(min=0.0)

    def _second(self, mean: Tensor, variance: Tensor) -> Tensor:
        """What stands for a variance [..., F] in the vector."""
        return variance + mean.square() if self.statistics == "pooled" else variance

    def forward(self, x: Tensor) -> Tensor:
        """Normalise one client's batch [B, F, ...]."""
        if x.dim() not in self.dimensions:
            raise ValueError(f"expected a batch of {' or '.join(map(str, self.dimensions))} axes, got {x.dim()}")
        now, mean, second = training(), self.running_mean, self.running_var
        if now is None or not self.carried:
            return self._by(x, mean, self._variance(mean, second))
        if now.real is not None or now.mapped:
            weight, bias = (None if own is None else own.unsqueeze(0) for own in (self.weight, self.bias))
            real = None if now.real is None else now.real.view(1, -1)
            return self._by_batch(x.unsqueeze(0), weight, bias, mean.unsqueeze(0), second.unsqueeze(0), real).squeeze(0)
        variance = self._variance(mean, second)
        if x.numel() == x.shape[1]:
            return self._by(x, mean, variance)
        out = functional.batch_norm(x, mean, variance, self.weight, self.bias, True, self.momentum, self.eps)
        second.copy_(self._second(mean, variance))
        return out

    def stacked(self, named: Mapping[str, Tensor], prefix: str, x: Tensor) -> Tensor:
        """Normalise batches [k, B, F, ...] of k clients; their weights and statistics, [k, F] each, are `named`."""
        weight, bias = named.get(f"{prefix}weight"), named.get(f"{prefix}bias")
        now = training()
        if not self.carried:
            mean, variance = (part.expand(len(x), -1) for part in (self.running_mean, self.running_var))
            return _scaled(x, weight, bias, mean, variance, self.eps)
        mean, second = named[f"{prefix}{MEAN}"], named[f"{prefix}{SECOND}"]
        if now is None:
            return _scaled(x, weight, bias, mean, self._variance(mean, second), self.eps)
        return self._by_batch(x, weight, bias, mean, second, now.real)

    def _by(self, x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        """Normalise a batch [B, F, ...] by given statistics."""
        return functional.batch_norm(x, mean, variance, self.weight, self.bias, False, 0.0, self.eps)

    def _by_batch(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, second: Tensor, real: Tensor | None
    ) -> Tensor:
        """Normalise batches [k, B, F, ...] by their own statistics, and move running ones [k, F] along, in place.

        real: which of the B places are examples, bool [k, B]; None: all.
        """
        variance = self._variance(mean, second)
        # Differentiated twice are its own steps: its backward pass takes what it has kept for constants.
        normalise: Any = _Normalised.forward if twice() else _Normalised.apply
        made = normalise(x, weight, bias, mean, variance, real, self.eps)
        # Within `vmap` nothing else says that no gradient goes through what running statistics are made of.
        out, own_mean, own_variance, count, *_ = made[0], *(one.detach() for one in made[1:])
        several = count > 1.0
        unbiased = own_variance * (count / (count - 1.0).clamp(min=1.0))
        moved = torch.where(several, mean + self.momentum * (own_mean - mean), mean)
        varied = variance + self.momentum * (unbiased - variance)
        second.copy_(torch.where(several, self._second(moved, varied), second))
        mean.copy_(moved)
        normalised: Tensor = out
        return normalised


def layers_of(model: nn.Module) -> dict[str, BatchNorm]:
    """The batch normalisation of a prepared model, by name."""
    return {name: part for name, part in model.named_modules() if isinstance(part, BatchNorm)}


def statistics_of(model: nn.Module) -> dict[str, Tensor]:
    """The running statistics of a prepared model that are part of its vector, by name, in their order there."""
    return {
        f"{name}.{own}" if name else own: part.get_buffer(own)
        for name, part in layers_of(model).items()
        if part.carried
        for own in (MEAN, SECOND)
    }


def vector_parts(model: nn.Module) -> dict[str, Tensor]:
    """What a prepared model's vector is made of, by name: its trained parameters, then its statistics."""
    trained = {name: own for name, own in model.named_parameters() if own.requires_grad}
    return {**trained, **statistics_of(model)}


def _scaled(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, variance: Tensor, eps: float
) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias: x [k, B, F, ...], all others [k, F]."""
    scale = 1.0 / (variance + eps).sqrt()
    centred = x - _along(mean, x)
    out = centred * _along(scale if weight is None else scale * weight, x)
    return out if bias is None else out + _along(bias, x)


def _along(numbers: Tensor, x: Tensor) -> Tensor:
    """Numbers [k, F] of each channel, to be broadcast against x [k, B, F, ...]."""
    return numbers.view(len(numbers), 1, -1, *(1,) * (x.dim() - 3))


class _Normalised(torch.autograd.Function):
    """Batches [k, B, F, ...] by their own statistics, or the running ones [k, F] where there is a single number.

    Beside them the batches' mean and variance [k, F] and how many numbers these are of, [k, 1]. Differentiated is what
    is normalised, and its weight and bias.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        variance: Tensor,
        real: Tensor | None,
        eps: float,
    ) -> tuple[Tensor, ...]:
        """Two passes: the mean, then the mean of the squares of what is left."""
        places = x.shape[3:].numel()
        if real is None:
            count = x.new_full((len(x), 1), x.shape[1] * places)
        else:
            count = (real.sum(dim=1, keepdim=True) * places).to(x.dtype)
        x = _chosen(x, real)
        axes = (1, *range(3, x.dim()))
        own_mean = x.sum(axes) / count
        several = count > 1.0
        centred = _chosen(x - _along(torch.where(several, own_mean, mean), x), real)
        own_variance = (centred * centred).sum(axes) / count
        scale = 1.0 / (torch.where(several, own_variance, variance) + eps).sqrt()
        factor = _along(scale if weight is None else scale * weight, x)
        out = centred * factor if bias is None else torch.addcmul(_along(bias, x), centred, factor)
        return out, own_mean, own_variance, count, centred, scale

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keep what was normalised, and how."""
        _, weight, bias, _, _, real, _ = inputs
        _, *others = output
        ctx.mark_non_differentiable(*others)
        ctx.set_materialize_grads(False)
        ctx.biased = bias is not None
        ctx.save_for_backward(weight, real, others[2], others[3], others[4])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        """From g, that of the outputs, with c = x - mean, s = 1 / sqrt(var + eps) and sums over a channel's n numbers.

        dbias = sum g;  dweight = s sum g c;  dx = weight s (g - dbias / n - c s^2 sum g c / n), without the last two
        terms where the statistics are the running ones.
        """
        weight, real, count, centred, scale = ctx.saved_tensors
        grad = _chosen(grad, real)
        axes = (1, *range(3, grad.dim()))
        total, along = grad.sum(axes), (grad * centred).sum(axes)
        factor = scale if weight is None else scale * weight
        own = torch.where(count > 1.0, factor / count, 0.0)
        dx, dweight = None, None if weight is None else along * scale
        if ctx.needs_input_grad[0]:
            dx = torch.addcmul(_along(-own * total, grad), grad, _along(factor, grad))
            dx = _chosen(torch.addcmul(dx, centred, _along(-own * scale * scale * along, grad)), real)
        return dx, dweight, total if ctx.biased else None, None, None, None, None


def _chosen(x: Tensor, real: Tensor | None) -> Tensor:
    """X [k, B, ...] with 0 where `real`, bool [k, B], is not."""
    return x if real is None else torch.where(real.view(*real.shape, *(1,) * (x.dim() - 2)), x, 0.0)
