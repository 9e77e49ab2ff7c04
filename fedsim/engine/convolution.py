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

from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

CACHE = {"cpu": 3 * 2**19}
"""Bytes of columns at a time: on a CPU half of a core's own cache, elsewhere as many as `MEMORY`."""
MEMORY = 2**28

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

    weight: [C, out, in, *kernel], bias: [C, out]. Can be differentiated once, backward or forward.
    """
    high, wide = geometry.padding
    images = x.permute(0, 2, 3, 4, 1)
    if high or wide:
        images = functional.pad(images, (0, 0, wide, wide, high, high))
    weights = weight.flatten(2)
    if bias is not None:
        weights = torch.cat((weights, bias.unsqueeze(2)), dim=2)
    out: Tensor = _Convolution.apply(images.contiguous(), weights, geometry)  # type: ignore[no-untyped-call]
    return out.permute(0, 4, 1, 2, 3)


class _Convolution(torch.autograd.Function):
    """The products of the module's text: x [C, in, H, W, B] to [C, out, H', W', B], weights [C, out, length of a column]."""

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
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """d x and d W, as far as they are asked for."""
        x, weights = ctx.saved_tensors
        grad, grad_x, grad_weights = grad.contiguous(), None, None
        if ctx.needs_input_grad[1]:
            grad_weights = torch.empty_like(weights, memory_format=torch.contiguous_format)
            for (clients, rows), columns in _columns(_windows(x, ctx.geometry), weights.shape[2]):
                out = grad[clients, :, rows].flatten(2)
                _multiply(grad_weights[clients], out, columns.mT, beta=1 if rows.start else 0)
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
    memory: Tensor | None = None
    kernel = windows.shape[1:4].numel()
    for clients, rows in _blocks(windows):
        patches = windows[clients, ..., rows, :, :]
        shape = len(patches), length, patches.shape[4:].numel()
        if memory is None:
            memory = windows.new_ones(shape)
        columns = memory if memory.shape == shape else windows.new_ones(shape)
        columns[:, :kernel].view(patches.shape).copy_(patches)
        yield (clients, rows), columns


def _blocks(windows: Tensor) -> Iterator[Block]:
    """What columns are made of together; how one client's rows are parted does not depend on its company."""
    room = CACHE.get(windows.device.type, MEMORY)
    height = windows.shape[4]
    row = windows[:1, ..., :1, :, :].numel() * windows.element_size()
    together, high = max(1, room // (row * height)), min(height, max(1, room // row))
    for first in range(0, len(windows), together):
        for top in range(0, height, high):
            yield slice(first, first + together), slice(top, top + high)


def _to_input(grad: Tensor, x: Tensor, weights: Tensor, geometry: Geometry) -> Tensor:
    """The gradient of x: that of the columns, added up over the kernel's rows, in long runs, and then over the rest."""
    (rows_of_kernel, width_of_kernel), (step, step_aside), _, (gap, gap_aside) = geometry
    found = torch.zeros_like(x)
    windows = _windows(found, geometry)
    length = windows.shape[1:4].numel()
    for clients, rows in _blocks(windows):
        shape = windows[clients, ..., rows, :, :].shape
        flat = grad[clients, :, rows].flatten(2)
        patches = torch.empty((shape[0], length, flat.shape[2]), dtype=x.dtype, device=x.device)
        _multiply(patches, weights[clients, :, :length].mT, flat, beta=0)
        patches = patches.view(shape)
        count, width = shape[4:6]
        span, reach = (count - 1) * step + 1, (width - 1) * step_aside + 1
        strips = x.new_zeros(*shape[:2], width_of_kernel, span + (rows_of_kernel - 1) * gap, *shape[5:])
        for number, part in enumerate(patches.unbind(2)):
            strips[:, :, :, number * gap : number * gap + span : step] += part
        target = found[clients, :, rows.start * step : rows.start * step + strips.shape[3]]
        for number, part in enumerate(strips.unbind(2)):
            target[:, :, :, number * gap_aside : number * gap_aside + reach : step_aside] += part
    return found


def _multiply(out: Tensor, left: Tensor, right: Tensor, beta: int) -> None:
    """Out <- beta out + left right, each client's bits the same in any company.

    A product with a single row is made as one of two, because of a single client another kernel would make it.
    """
    if left.shape[1] > 1:
        out.baddbmm_(left, right, beta=beta)
    else:
        row = torch.bmm(left.repeat(1, 2, 1), right)[:, :1]
        out.copy_(out + row if beta else row)
