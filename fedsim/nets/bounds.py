"""What outputs can be while inputs are anywhere in a box: interval bounds, layer by layer, for a stack of models.

A box is l <= x <= u, with the centre c = (l + u) / 2 and the radius r = (u - l) / 2. Layer by layer:

    linear, convolution    c' = W c + b,  r' = |W| r
    monotone               f(l), f(u): ReLU and its like, pooling, flattening
    GELU, SiLU             the least of f(l), f(u) and, if it lies between, the minimum; the larger of f(l), f(u)
    batch normalisation    the smaller and the larger of f(l), f(u), by its running statistics
    residual sum           l_1 + l_2, u_1 + u_2

Group and layer normalisation of k numbers: x_i - mean has the centre c_i - mean c and the radius
(1 - 1/k) r_i + (sum_j r_j - r_i) / k; the mean of its squares lies between s and S, those of the ends nearest to 0 and
farthest from it; quotients are those of the ends by sqrt(s + eps) or sqrt(S + eps), whichever is farther out, and at
most sqrt(k - 1), which a single number reaches where all others are alike. That holds, and is loose.

The margin of a target y over class j is bounded from below by itself where the last layer is linear, w = W_y - W_j:
m_j >= w c + b_y - b_j - |w| r (elided); otherwise by l_y - u_j, which is never more. Gowal et al. 2018.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import cast

import torch
from torch import Tensor, nn

from fedsim.core.errors import InputError
from fedsim.nets import products
from fedsim.nets.dropout import NamedDropout
from fedsim.nets.layers import Residual, has_hooks
from fedsim.nets.lowering import Names, lower
from fedsim.nets.normalisation import BatchNorm
from fedsim.nets.stack import Layout

Named = Mapping[str, Tensor]


@dataclass(frozen=True)
class Box:
    """Where inputs or what layers make of them may be: lower, upper [k, B, ...]."""

    lower: Tensor
    upper: Tensor

    @classmethod
    def around(cls, x: Tensor, epsilon: float, domain: tuple[float, float] | None) -> Box:
        """All that is within epsilon of x in each number, and within the domain."""
        lower, upper = x - epsilon, x + epsilon
        return cls(lower, upper) if domain is None else cls(lower.clamp(min=domain[0]), upper.clamp(max=domain[1]))

    @property
    def centre(self) -> Tensor:
        """The middle."""
        return (self.lower + self.upper) / 2.0

    @property
    def radius(self) -> Tensor:
        """Half of the width."""
        return (self.upper - self.lower) / 2.0


Rule = Callable[[Named, Box], Box]
"""(parameters by name, each [k, ...]; what comes in) -> what comes out."""

AFFINE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
MONOTONE = (
    *(nn.Identity, nn.Flatten, nn.ReLU, nn.Tanh, nn.Hardtanh, nn.Sigmoid, nn.Softplus, nn.SELU, NamedDropout),
    *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.ZeroPad2d),
)
NORMALISING = (nn.GroupNorm, nn.LayerNorm)
KNOWN = (
    "linear layers, convolutions, residual blocks, pooling, flattening, usual activations, normalisation when judged"
)


class Bounds:
    """The bounds of a model, for stacks of its parameters.

    weights: names of the weights of its linear layers and convolutions. loose: what of it has bounds that are weak.
    InputError: a layer has no rule.
    """

    def __init__(self, model: nn.Module, layout: Layout) -> None:
        self._names = Names(model, layout)
        self.parts = list(_parts(model, ""))
        if type(model) is nn.Sequential and has_hooks(model):
            raise _unruled("", model)
        self._rules = [_rule(part, prefix) for prefix, part in self.parts]
        self._made = lower(model)
        inner = [(prefix + name, part) for prefix, own in self.parts for name, part in _inside(own)]
        self.weights = [name + "weight" for name, part in inner if isinstance(part, AFFINE)]
        self.loose = [_called(name, part) for name, part in inner if isinstance(part, NORMALISING)]
        self._untrainable = [
            _called(name, part)
            for name, part in inner
            if isinstance(part, (*NORMALISING, BatchNorm)) or (isinstance(part, NamedDropout) and part.p > 0.0)
        ]

    def hold_training(self) -> None:
        """InputError: a layer's bounds are for models that are judged alone."""
        for layer in self._untrainable:
            raise InputError("problem.model", layer, "has bounds where models are judged alone; train one without it")

    def named(self, leaves: Sequence[Tensor], clients: int) -> dict[str, Tensor]:
        """Parameters by name, of a stack's leaves."""
        return self._names.of(leaves, clients)

    def exactly(self, named: Named, x: Tensor) -> Tensor:
        """Outputs [k, B, K] for inputs [k, B, ...], without dropout, which may be differentiated."""
        return self._made(named, x)

    def outputs(self, named: Named, box: Box) -> Box:
        """Where outputs may be, [k, B, K]."""
        return self._through(self._rules, named, box)

    def margins(self, named: Named, box: Box, targets: Tensor, *, elide: bool = True) -> Tensor:
        """Lower bounds [k, B, K] of the margins z_y - z_j of targets y [k, B]; 0 for y itself."""
        if elide and type(self.parts[-1][1]) is nn.Linear:
            hidden, (weight, bias) = self._through(self._rules[:-1], named, box), self.last(named, targets)
            return along(weight, hidden.centre) + bias - along(weight.abs(), hidden.radius)
        found = self.outputs(named, box)
        at = targets.unsqueeze(-1)
        return (found.lower.gather(-1, at) - found.upper).scatter(-1, at, 0.0)

    def last(self, named: Named, targets: Tensor) -> tuple[Tensor, Tensor]:
        """w_y - w_j [k, B, K, h] and b_y - b_j [k, B, K] of the last layer, which is linear."""
        prefix = self.parts[-1][0]
        weight, bias = named[f"{prefix}weight"], named.get(f"{prefix}bias")
        client = torch.arange(len(targets), device=targets.device).unsqueeze(1)
        apart = weight[client, targets].unsqueeze(2) - weight.unsqueeze(1)
        if bias is None:
            return apart, weight.new_zeros(apart.shape[:3])
        return apart, bias[client, targets].unsqueeze(2) - bias.unsqueeze(1)

    @staticmethod
    def _through(rules: Sequence[Rule], named: Named, box: Box) -> Box:
        for rule in rules:
            box = rule(named, box)
        return box


def along(rows: Tensor, x: Tensor) -> Tensor:
    """Inner products [k, B, R] of R rows of each example, [k, B, R, h], with x [k, B, h]."""
    return products.bmm(rows.flatten(0, 1), x.reshape(-1, x.shape[2], 1)).view(rows.shape[:3])


def _parts(model: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    """The layers of sequences, and of sequences in them, with what their parameters' names begin with."""
    if type(model) is nn.Sequential and not has_hooks(model):
        for name, part in model._modules.items():
            if part is not None:
                yield from _parts(part, f"{prefix}{name}.")
    else:
        yield prefix, model


def _inside(part: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return ((f"{name}." if name else "", inner) for name, inner in part.named_modules())


def _called(prefix: str, part: nn.Module) -> str:
    return f"{type(part).__name__} ({prefix.removesuffix('.') or 'the model'})"


def _unruled(prefix: str, part: nn.Module) -> InputError:
    return InputError("problem.model", _called(prefix, part), f"has no rule of bounds; there are some for {KNOWN}")


def _rule(part: nn.Module, prefix: str) -> Rule:
    """The rule of a layer."""
    kind = type(part)
    if has_hooks(part):
        raise _unruled(prefix, part)
    if kind in AFFINE:
        return _affine(part, prefix)
    if kind in MONOTONE or _rises(part):
        made = lower(part, prefix)
        return lambda named, box: Box(made(named, box.lower), made(named, box.upper))
    if kind in (nn.GELU, nn.SiLU):
        return _dips(part)
    if kind is BatchNorm:
        return _either_way(part, prefix)
    if kind in NORMALISING:
        return _normalised(part, prefix)
    if kind is Residual:
        body, shortcut = (_sequence(getattr(part, name), f"{prefix}{name}.") for name in ("body", "shortcut"))

        def residual(named: Named, box: Box) -> Box:
            one, other = body(named, box), shortcut(named, box)
            return Box(torch.relu(one.lower + other.lower), torch.relu(one.upper + other.upper))

        return residual
    raise _unruled(prefix, part)


def _rises(part: nn.Module) -> bool:
    """Whether it is an activation that rises, by the number that it has."""
    if type(part) is nn.LeakyReLU:
        return part.negative_slope >= 0.0
    return type(part) is nn.ELU and part.alpha >= 0.0


def _sequence(model: nn.Module, prefix: str) -> Rule:
    rules = [_rule(part, own) for own, part in _parts(model, prefix)]
    return lambda named, box: Bounds._through(rules, named, box)


def _affine(layer: nn.Module, prefix: str) -> Rule:
    made, weight, bias = lower(layer, prefix), f"{prefix}weight", f"{prefix}bias"

    def affine(named: Named, box: Box) -> Box:
        sizes = {weight: named[weight].abs()}
        if bias in named:
            sizes[bias] = torch.zeros_like(named[bias])
        centre, radius = made(named, box.centre), made(sizes, box.radius)
        return Box(centre - radius, centre + radius)

    return affine


def _dips(layer: nn.Module) -> Rule:
    """Of an activation that falls to its minimum and rises from there on."""
    made, least = lower(layer), _minimum(type(layer).__name__, str(getattr(layer, "approximate", "")))

    def dips(named: Named, box: Box) -> Box:
        one, other = made(named, box.lower), made(named, box.upper)
        bottom = made(named, torch.full_like(box.lower, least))
        between = (box.lower < least) & (least < box.upper)
        return Box(torch.where(between, bottom, torch.minimum(one, other)), torch.maximum(one, other))

    return dips


@cache
def _minimum(kind: str, approximate: str) -> float:
    """Where GELU or SiLU is least, by halving where its slope changes sign."""
    layer = nn.SiLU() if kind == "SiLU" else nn.GELU(approximate)
    below, above = -4.0, 0.0
    for _ in range(60):
        middle = (below + above) / 2.0
        at = torch.tensor(middle, dtype=torch.float64, requires_grad=True)
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(layer(at), at)
        below, above = (middle, above) if slope < 0 else (below, middle)
    return (below + above) / 2.0


def _either_way(layer: nn.Module, prefix: str) -> Rule:
    """Of a layer that multiplies and adds, number by number."""
    made = lower(layer, prefix)

    def either_way(named: Named, box: Box) -> Box:
        one, other = made(named, box.lower), made(named, box.upper)
        return Box(torch.minimum(one, other), torch.maximum(one, other))

    return either_way


def _normalised(layer: nn.Module, prefix: str) -> Rule:
    """Of group and layer normalisation; see the module's text."""
    groups = isinstance(layer, nn.GroupNorm)
    apart = cast("int", layer.num_groups) if groups else 0
    shape = (-1,) if groups else cast("tuple[int, ...]", layer.normalized_shape)
    eps = cast("float", layer.eps)

    def normalised(named: Named, box: Box) -> Box:
        x = box.lower
        parted = (*x.shape[:2], apart, -1) if groups else (*x.shape[: x.dim() - len(shape)], -1)
        c, r = box.centre.reshape(parted), box.radius.reshape(parted)
        k = c.shape[-1]
        centre = c - c.mean(dim=-1, keepdim=True)
        radius = (1.0 - 1.0 / k) * r + (r.sum(dim=-1, keepdim=True) - r) / k
        low, high = centre - radius, centre + radius
        far = torch.maximum(low.square(), high.square())
        near = torch.where((low < 0) & (high > 0), 0.0, torch.minimum(low.square(), high.square()))
        small, large = ((square.mean(dim=-1, keepdim=True) + eps).sqrt() for square in (near, far))
        most = math.sqrt(k - 1)
        low = torch.where(low < 0, low / small, low / large).clamp(-most, most).view_as(x)
        high = torch.where(high > 0, high / small, high / large).clamp(-most, most).view_as(x)
        if (weight := named.get(f"{prefix}weight")) is None:
            return Box(low, high)
        trailing = shape if not groups else (-1,) + (1,) * (x.dim() - 3)
        ones = (1,) * (x.dim() - 1 - len(trailing))
        weight = weight.view(len(x), *ones, *trailing)
        bias = named.get(f"{prefix}bias")
        shift = 0.0 if bias is None else bias.view(len(x), *ones, *trailing)
        return Box(
            torch.minimum(weight * low, weight * high) + shift, torch.maximum(weight * low, weight * high) + shift
        )

    return normalised
