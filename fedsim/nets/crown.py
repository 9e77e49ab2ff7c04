"""Tighter bounds of margins, by lines below and above each ReLU: CROWN, for chains of linear layers and ReLU.

A margin is bounded from below by a function A h + const of what a layer reads, from the last layer, A = w_y - w_j, to
the inputs. Through a linear layer  const += A b,  A <- A W.  Through a ReLU whose input lies between l and u, unit by
unit: of slope 1 where l >= 0 and 0 where u <= 0; between, above it lies the line of slope s = u / (u - l) that is 0 at
l, and below it that of slope 1 where u > -l, else 0:  const += min(A, 0) (-s l),  A <- max(A, 0) below + min(A, 0) s.
In the box of inputs it is at least  A c + const - |A| r.  Zhang et al. 2018.

Where the inputs of ReLUs lie is found in the same way, or, which is cheaper, by intervals: that is CROWN-IBP
(Zhang et al. 2020). Cost: K rows of each example through the network, backwards.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedsim.core.errors import InputError
from fedsim.nets import products
from fedsim.nets.bounds import Bounds, Box, Named, along
from fedsim.nets.dropout import NamedDropout

Affine = tuple[Tensor, Tensor]
"""Weights [k, out, in] and a bias [k, out] of the models' layer."""
PASSED_OVER = (nn.Flatten, nn.Identity, NamedDropout)
"""What changes no number of a chain."""


class Crown:
    """The bounds of a chain. InputError: the model is none."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        parts = [(prefix, part) for prefix, part in bounds.parts if type(part) not in PASSED_OVER]
        for place, (prefix, part) in enumerate(parts):
            if type(part) is not (nn.ReLU if place % 2 else nn.Linear):
                layer = f"{type(part).__name__} ({prefix.removesuffix('.')})"
                raise InputError("problem.model", layer, "crown knows linear layers with ReLU between; take ibp alone")
        if len(parts) % 2 == 0:
            raise InputError("problem.model", "ReLU", "crown needs a linear layer at the end; take ibp alone")
        self._prefixes = [prefix for prefix, _ in parts[::2]]

    def margins(self, named: Named, box: Box, targets: Tensor, *, intervals: bool = False) -> Tensor:
        """Lower bounds [k, B, K] of the margins z_y - z_j; 0 for y itself. intervals: as CROWN-IBP."""
        box = Box(box.lower.flatten(2), box.upper.flatten(2))
        layers = [self._layer(named, prefix) for prefix in self._prefixes]
        found = _between(layers[:-1], box, intervals=intervals)
        weight, bias = self.bounds.last(named, targets)
        return _least(weight, bias, layers[:-1], found, box)

    @staticmethod
    def _layer(named: Named, prefix: str) -> Affine:
        weight, bias = named[f"{prefix}weight"], named.get(f"{prefix}bias")
        return weight, weight.new_zeros(weight.shape[:2]) if bias is None else bias


def _between(layers: Sequence[Affine], box: Box, *, intervals: bool) -> list[Box]:
    """Where the inputs of the ReLUs after some layers may be, [k, B, h] each."""
    found: list[Box] = []
    inside = box
    for number, (weight, bias) in enumerate(layers):
        centre = products.affine(inside.centre, weight, bias)
        radius = products.affine(inside.radius, weight.abs(), None)
        lower, upper = centre - radius, centre + radius
        if number and not intervals:
            examples = inside.lower.shape[1]
            rows = torch.cat((weight, -weight), dim=1).unsqueeze(1).expand(-1, examples, -1, -1)
            shift = torch.cat((bias, -bias), dim=1).unsqueeze(1).expand(-1, examples, -1)
            least, most = _least(rows, shift, layers[:number], found, box).chunk(2, dim=2)
            lower, upper = torch.maximum(lower, least), torch.minimum(upper, -most)
        found.append(Box(lower, upper))
        inside = Box(torch.relu(lower), torch.relu(upper))
    return found


def _least(a: Tensor, const: Tensor, layers: Sequence[Affine], between: Sequence[Box], box: Box) -> Tensor:
    """Lower bounds [k, B, R] of A h + const, R rows A [k, B, R, h], h what comes of these layers and their ReLUs."""
    for (weight, bias), inputs in zip(reversed(layers), reversed(between), strict=True):
        low, high = inputs.lower, inputs.upper
        crosses = (low < 0) & (high > 0)
        active = (low >= 0).to(low.dtype)
        above = torch.where(crosses, high / torch.where(crosses, high - low, 1.0), active)
        below = torch.where(crosses, (high > -low).to(low.dtype), active)
        down, up = a.clamp(max=0.0), a.clamp(min=0.0)
        const = const + along(down, torch.where(crosses, -above * low, 0.0))
        a = up * below.unsqueeze(2) + down * above.unsqueeze(2)
        rows = a.flatten(1, 2)
        const = const + products.bmm(rows, bias.unsqueeze(2)).view_as(const)
        a = products.bmm(rows, weight).view(*a.shape[:3], -1)
    return along(a, box.centre) + const - along(a.abs(), box.radius)
