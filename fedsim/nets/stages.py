"""Stages of a network on images, before a chain of linear layers: convolutions with what follows each of them.

What a compiled loop makes of them is in `fedsim.nets.kernels.convolution`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from fedsim.nets.activations import ACTIVATIONS, activates, shape_of

if TYPE_CHECKING:
    from fedsim.nets.kernels.convolution import Stages

Pair = tuple[int, int]
"""Of height and width."""


@dataclass(frozen=True)
class Stage:
    """A convolution with stride 1, an activation or none, a pooling, and another activation or none.

    sides: of the images that come in. window, stride: of the pooling, which without one is of single numbers. maximum:
    whether it takes the largest number, or the mean. weight, bias: names of parameters.
    """

    weight: str
    bias: str | None
    channels: int
    outputs: int
    sides: Pair
    kernel: Pair
    padding: Pair
    dilation: Pair
    inner: nn.Module | None
    maximum: bool
    window: Pair
    stride: Pair
    outer: nn.Module | None

    @property
    def made(self) -> Pair:
        """The sides of what the convolution makes."""
        high, width = (
            side + 2 * padding - gap * (edge - 1)
            for side, padding, gap, edge in zip(self.sides, self.padding, self.dilation, self.kernel, strict=True)
        )
        return high, width

    @property
    def pooled(self) -> Pair:
        """The sides of what comes out."""
        high, width = (
            (side - edge) // step + 1 for side, edge, step in zip(self.made, self.window, self.stride, strict=True)
        )
        return high, width

    @property
    def units(self) -> int:
        """Numbers of an example that come out."""
        return self.outputs * math.prod(self.pooled)

    @property
    def patch(self) -> int:
        """Weights of an output."""
        return self.channels * math.prod(self.kernel)

    @property
    def operations(self) -> int:
        """Multiply-adds of an example."""
        return math.prod(self.made) * self.outputs * self.patch


def stages_of(parts: Sequence[tuple[str, nn.Module]], shape: Sequence[int]) -> list[Stage] | None:
    """The stages that named parts of a model are, on examples of this shape; None: they are none."""
    found: list[Stage] = []
    left = list(parts)
    while left:
        if len(shape) != 3 or (stage := _next(left, (shape[1], shape[2]))) is None or stage.channels != shape[0]:
            return None
        if min(*stage.made, *stage.pooled) < 1:
            return None
        found.append(stage)
        shape = stage.outputs, *stage.pooled
    return found


def _next(parts: list[tuple[str, nn.Module]], sides: Pair) -> Stage | None:
    """The stage at the front of some parts, which it takes from there."""
    name, convolution = parts.pop(0)
    if type(convolution) is not nn.Conv2d or not _simple(convolution):
        return None
    inner = parts.pop(0)[1] if parts and activates(parts[0][1]) else None
    maximum, window, stride = True, (1, 1), (1, 1)
    pooling = parts[0][1] if parts else None
    if isinstance(pooling, nn.MaxPool2d | nn.AvgPool2d):
        if not _plain(pooling):
            return None
        parts.pop(0)
        maximum = type(pooling) is nn.MaxPool2d
        window, stride = _pair(pooling.kernel_size), _pair(pooling.stride)
    outer = parts.pop(0)[1] if parts and activates(parts[0][1]) else None
    if type(inner) is nn.ReLU and outer is None and maximum:
        inner, outer = None, inner  # the same numbers and gradients, from fewer
    return Stage(
        weight=f"{name}.weight",
        bias=None if convolution.bias is None else f"{name}.bias",
        channels=convolution.in_channels,
        outputs=convolution.out_channels,
        sides=sides,
        kernel=_pair(convolution.kernel_size),
        padding=_pair(convolution.padding),
        dilation=_pair(convolution.dilation),
        inner=inner,
        maximum=maximum,
        window=window,
        stride=stride,
        outer=outer,
    )


def _simple(convolution: nn.Conv2d) -> bool:
    """Whether it is one that the loop has: of all channels, at each place, with zeros around."""
    padded = convolution.padding_mode == "zeros" and not isinstance(convolution.padding, str)
    return padded and convolution.groups == 1 and convolution.stride == (1, 1)


def _plain(pooling: nn.MaxPool2d | nn.AvgPool2d) -> bool:
    """Whether it is of windows that lie within the image, all numbers of which count."""
    if type(pooling) not in (nn.MaxPool2d, nn.AvgPool2d):
        return False
    spread = isinstance(pooling, nn.MaxPool2d) and (_pair(pooling.dilation) != (1, 1) or pooling.return_indices)
    divided = isinstance(pooling, nn.AvgPool2d) and pooling.divisor_override is not None
    return _pair(pooling.padding) == (0, 0) and not pooling.ceil_mode and not spread and not divided


def _pair(sides: int | Sequence[int] | str) -> Pair:
    """Of one number for both, or of two."""
    assert not isinstance(sides, str)
    return (sides, sides) if isinstance(sides, int) else (sides[0], sides[1])


def placed(
    stages: Sequence[Stage],
    weights: Sequence[tuple[int, int, int]],
    width: int,
    lanes: int,
    room: Callable[[int], int],
    chain: Pair,
    shapes: type[np.floating],
) -> Stages:
    """The tables of stages, for batches of this width and vectors of so many numbers.

    weights: of each stage where its weights and biases are, and the length of a row. room: takes so many numbers of the
    loop's vector and says where. chain: where the chain's inputs are, and how far apart.
    """
    from fedsim.nets.kernels import convolution, pieces

    def filled(count: int) -> int:
        return -(-count // lanes) * lanes

    def code(activation: nn.Module | None) -> int:
        return -1 if activation is None else int(getattr(pieces, ACTIVATIONS[type(activation)]))

    k = convolution
    table = np.zeros((len(stages), k.FIELDS), dtype=np.int64)
    taps: list[Pair] = []
    longest, images, chosen = 0, 0, 0
    for number, (fields, stage, (weight, bias, row)) in enumerate(zip(table, stages, weights, strict=True)):
        (high, wide), (above, aside) = stage.sides, stage.padding
        pitch = wide + 2 * aside
        image = filled((high + 2 * above) * pitch)
        (below, beside), (tall, broad) = stage.dilation, stage.kernel
        far = [below * j * pitch + beside * i for j in range(tall) for i in range(broad)]
        span = filled((stage.made[0] - 1) * pitch + stage.made[1])
        back = filled((high - 1) * pitch + wide) if number else 0
        first = above * pitch + aside
        margin = filled(max(0, far[-1] - first)) if number else 0
        channel = margin + (max(span, filled(first + back)) if number else span)
        units = filled(stage.units)
        last = number == len(stages) - 1
        values = {
            k.CHANNELS: stage.channels, k.HIGH: high, k.WIDTH: wide, k.PITCH: pitch, k.IMAGE: image,
            k.EXAMPLE: stage.channels * image, k.FIRST: first, k.OUTPUTS: stage.outputs, k.TAPS: len(far),
            k.IMAGES: room(width * stage.channels * image + lanes),
            k.WEIGHT: weight, k.WEIGHT_ROW: row, k.BIAS: bias,
            k.MADE: room(width * stage.outputs * channel), k.CHANNEL: channel, k.MADE_EXAMPLE: stage.outputs * channel,
            k.MARGIN: margin, k.SPAN: span, k.BACK_SPAN: back,
            k.POOL: 0 if stage.maximum else 1, k.TALL: stage.window[0], k.BROAD: stage.window[1],
            k.DOWN: stage.stride[0], k.ASIDE: stage.stride[1],
            k.OUT_HIGH: stage.pooled[0], k.OUT_WIDTH: stage.pooled[1],
            k.POOLED: chain[0] if last else room(width * units), k.ROW: chain[1] if last else units,
            k.CHOSEN: chosen, k.INNER: code(stage.inner), k.OUTER: code(stage.outer),
            k.INNER_SLOPE: room(0 if stage.inner is None else width * stage.outputs * channel),
            k.OUTER_SLOPE: room(0 if stage.outer is None else width * units),
            k.FORTH: len(taps), k.BACK: len(taps) + stage.patch,
        }  # fmt: skip
        fields[list(values)] = list(values.values())
        size = len(far)
        taps += [(i * size + t, i * image + away) for i in range(stage.channels) for t, away in enumerate(far)]
        taps += [(o * row + t, o * channel - away) for o in range(stage.outputs) for t, away in enumerate(far)]
        longest, images = max(longest, span), max(images, stage.channels * back, span)
        chosen += width * stage.units
    numbers = [[shape_of(stage.inner), shape_of(stage.outer)] for stage in stages]
    return k.Stages(
        table, np.array(taps, dtype=np.int64).reshape(-1), np.array(numbers, dtype=shapes),
        room(longest), longest, room(images), chosen,
    )  # fmt: skip
