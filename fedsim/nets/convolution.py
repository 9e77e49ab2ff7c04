"""Convolutions of a stack of clients: weights times patches, one batched product a layer.

Images are [C, B, channels, height, width] to their callers and lie in memory as [C, channels, height, width, B], the
batch innermost. So patches are copied in runs of B numbers or more, the product's result is the next layer's input as
it stands, and pooling runs over the batch. With i the channel, (j, k) the place within the kernel, s the stride and d
the dilation, the patches of client c are the columns

    X[c, (i, j, k), (h, w, b)] = x[c, b, i, h s + j d, w s + k d],   X[c, last, :] = 1 for the bias

    out = W X,   d W = d out X^T,   d X = W^T d out,   d x: each number of d X added to where it was copied from

Columns are made of a few clients, or of a few rows of one client's output, at a time, so that they stay in the cache,
and made again in the backward pass rather than kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from fedsim.nets import products
from fedsim.nets.modes import twice

CACHE = {"cpu": 3 * 2**19}
"""Bytes of columns at a time, by the type of the device: few enough for a core's own cache."""
MEMORY = 2**28
"""The same on devices that have no such cache."""

Block: TypeAlias = tuple[slice, slice]
"""Clients, and rows of their output."""


class Geometry(NamedTuple):
    """Where patches lie, along (height, width) each."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]


def batch_last(x: Tensor) -> bool:
    """Whether x [C, B, channels, height, width] lies in memory as `convolve` leaves its results."""
    return x.dim() == 5 and x.permute(0, 2, 3, 4, 1).is_contiguous()


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """Each client's convolution with zero padding: x [C, B, in, H, W] to [C, B, out, H', W'].

    weight: [C, out, in, *kernel], bias: [C, out]. Can be differentiated once, backward or forward, and in a block of
    `second_order` twice.
    """
    if twice():
        return _unfolded(x, weight, bias, geometry)
    images = _laid(x, geometry)
    weights, apart = weight.flatten(2), not torch.is_grad_enabled()
    if bias is not None and not apart:  # a column of ones has its gradient, for a copy of all weights
        weights = torch.cat((weights, bias.unsqueeze(2)), dim=2)
    out: Tensor = _Convolution.apply(images, weights, geometry)  # type: ignore[no-untyped-call]
    if bias is not None and apart:
        out = out + bias.view(*bias.shape, 1, 1, 1)
    return out.permute(0, 4, 1, 2, 3)


def weight_gradient(x: Tensor, grad: Tensor, geometry: Geometry) -> Tensor:
    """The gradient [C, out, in, *kernel] of the weight, of that of the outputs, grad [C, B, out, H', W']."""
    channels, (high, wide) = x.shape[2], geometry.kernel
    back = grad.permute(0, 2, 3, 4, 1).contiguous()
    found = _to_weights(_laid(x, geometry), back, channels * high * wide, geometry)
    return found.view(*found.shape[:2], channels, high, wide)


def _laid(x: Tensor, geometry: Geometry) -> Tensor:
    """Images [C, B, channels, H, W] with their rim, as they lie in memory."""
    high, wide = geometry.padding
    images = x.permute(0, 2, 3, 4, 1)
    if high or wide:
        images = functional.pad(images, (0, 0, wide, wide, high, high))
    return images.contiguous()


def _unfolded(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """The same by PyTorch's own columns, which can be differentiated as often as one likes and take their memory."""
    kernel, stride, padding, dilation = geometry
    sides = [
        (side + 2 * rim - gap * (edge - 1) - 1) // step + 1
        for side, rim, gap, edge, step in zip(x.shape[3:], padding, dilation, kernel, stride, strict=True)
    ]
    columns = functional.unfold(x.flatten(0, 1), kernel, dilation, padding, stride)
    columns = columns.view(*x.shape[:2], *columns.shape[1:]).transpose(1, 2).flatten(2)
    weights = weight.flatten(2)
    out = products.bmm(weights, columns) if bias is None else products.baddbmm(bias.unsqueeze(2), weights, columns)
    return out.view(len(x), weights.shape[1], x.shape[1], *sides).transpose(1, 2)


class _Convolution(torch.autograd.Function):
    """The module's products: x [C, in, H, W, B] and W [C, out, length of a column] to [C, out, H', W', B]."""

    @staticmethod
    def forward(x: Tensor, weights: Tensor, geometry: Geometry) -> Tensor:
        """W X."""
        windows = _windows(x, geometry)
        out = x.new_empty(len(x), weights.shape[1], *windows.shape[4:])
        for (clients, rows), columns in _columns(windows, weights.shape[2]):
            _multiply(out[clients, :, rows].flatten(2), weights[clients], columns, beta=0)
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        """Keep the input and the weights."""
        x, weights, ctx.geometry = inputs
        ctx.save_for_backward(x, weights)
        ctx.save_for_forward(x, weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """What is asked for of d x and d W."""
        x, weights = ctx.saved_tensors
        grad, grad_x, grad_weights = grad.contiguous(), None, None
        if ctx.needs_input_grad[1]:
            grad_weights = _to_weights(x, grad, weights.shape[2], ctx.geometry)
        if ctx.needs_input_grad[0]:
            grad_x = _to_input(grad, x, weights, ctx.geometry)
        return grad_x, grad_weights, None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor | None, dweights: Tensor | None, _: None) -> Tensor:
        """The derivative along a direction: W dX, without the ones, and dW X."""
        x, weights = ctx.saved_tensors
        terms = []
        if dx is not None:
            length = x.shape[1] * ctx.geometry.kernel[0] * ctx.geometry.kernel[1]
            terms.append(_Convolution.forward(dx.contiguous(), weights[:, :, :length], ctx.geometry))
        if dweights is not None:
            terms.append(_Convolution.forward(x, dweights, ctx.geometry))
        return terms[0] if len(terms) == 1 else terms[0] + terms[1]


def _to_weights(x: Tensor, grad: Tensor, length: int, geometry: Geometry) -> Tensor:
    """The gradient of weights [C, out, length]: x [C, in, H, W, B] with its rim, grad [C, out, H', W', B]."""
    found = grad.new_empty(len(x), grad.shape[1], length)
    for (clients, rows), columns in _columns(_windows(x, geometry), length):
        out = grad[clients, :, rows].flatten(2)
        _multiply(found[clients], out, columns.mT, beta=1 if rows.start else 0)
    return found


def _windows(x: Tensor, geometry: Geometry) -> Tensor:
    """The patches of x [C, in, H, W, B] where they lie: a view [C, in, *kernel, H', W', B]."""
    clients, channels, *sides, batch = x.shape
    kernel, steps, _, gaps = geometry
    counts = [
        (side - gap * (edge - 1) - 1) // step + 1
        for side, gap, edge, step in zip(sides, gaps, kernel, steps, strict=True)
    ]
    *front, row, column, last = x.stride()
    inner, outer = (row * gaps[0], column * gaps[1]), (row * steps[0], column * steps[1])
    return x.as_strided((clients, channels, *kernel, *counts, batch), (*front, *inner, *outer, last))


def _columns(windows: Tensor, length: int) -> Iterator[tuple[Block, Tensor]]:
    """Block by block its columns [c, length, h W' B], until the next are made."""
    kernel = windows.shape[1:4].numel()
    for block, patches, columns in _parted(windows, length):
        columns[:, :kernel].view(patches.shape).copy_(patches)
        columns[:, kernel:].fill_(1)
        yield block, columns


def _parted(windows: Tensor, length: int) -> Iterator[tuple[Block, Tensor, Tensor]]:
    """Block by block its windows, and memory for its columns [c, length, h W' B] that the next one's take over."""
    memory: Tensor | None = None
    for clients, rows in _blocks(windows):
        part = windows[clients, ..., rows, :, :]
        shape = len(part), length, part.shape[4:].numel()
        if memory is None:  # of the first, which no other is larger than
            memory = windows.new_empty(math.prod(shape))
        yield (clients, rows), part, memory[: math.prod(shape)].view(shape)


def _blocks(windows: Tensor) -> Iterator[Block]:
    """What columns are made of together; how one client's rows are parted does not depend on its company."""
    room = CACHE.get(windows.device.type, MEMORY)
    height = windows.shape[4]
    row = max(1, windows.shape[1:4].numel() * windows.shape[5:].numel() * windows.element_size())
    together, high = max(1, room // (row * height)), min(height, max(1, room // row))
    for first in range(0, len(windows), together):
        for top in range(0, height, high):
            yield slice(first, first + together), slice(top, top + high)


def _to_input(grad: Tensor, x: Tensor, weights: Tensor, geometry: Geometry) -> Tensor:
    """The gradient of x: that of the columns, added up over the kernel's rows, in long runs, and then along them."""
    _, (down, aside), _, (gap_down, gap_aside) = geometry
    found = torch.zeros_like(x)
    windows = _windows(found, geometry)
    length = windows.shape[1:4].numel()
    for (clients, rows), part, columns in _parted(windows, length):
        _multiply(columns, weights[clients, :, :length].mT, grad[clients, :, rows].flatten(2), beta=0)
        count, channels, high, wide, height, width, batch = part.shape
        span, reach = (height - 1) * down + 1, (width - 1) * aside + 1
        strips = x.new_zeros(count, channels, wide, span + (high - 1) * gap_down, width, batch)
        for number, own in enumerate(columns.view(part.shape).unbind(2)):
            first = number * gap_down
            strips[:, :, :, first : first + span : down].add_(own)
        top = rows.start * down
        images = found[clients, :, top : top + strips.shape[3]]
        for number, own in enumerate(strips.unbind(2)):
            first = number * gap_aside
            images[:, :, :, first : first + reach : aside].add_(own)
    return found


def _multiply(out: Tensor, left: Tensor, right: Tensor, beta: int) -> None:
    """Out <- beta out + left right, each client's bits the same in any company.

    A product with a single row is made as one of two, because of a single client another kernel would make it.
    """
    if left.shape[1] > 1:
        products.baddbmm_(out, left, right, beta=beta)
    else:
        row = products.bmm(left.repeat(1, 2, 1), right)[:, :1]
        out.copy_(out + row if beta else row)
