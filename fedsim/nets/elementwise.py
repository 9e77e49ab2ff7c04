"""Elementwise functions of which a number has the same bits wherever in a tensor it stands.

On a CPU PyTorch computes two vector registers of numbers at once, 32 of float32 with AVX-512, and what is left over at
the end of a tensor one by one. Where both round differently (exponential functions of most kinds; not `exp`, `log`,
`sin`, `cos` and `tanh` themselves, nor arithmetic), the last bits of a client's numbers would depend on whether others
stand behind them: of cohorts of 1 to 8 with rows of 1 to 301 numbers, up to 120 of 210 had other bits in `softplus`
than among 40, and in tensors filled up to a multiple of 32 numbers none had, in either direction.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

AT_ONCE = 32
"""Numbers that are computed at once, or a multiple of them."""


def in_whole_registers(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """An elementwise function of x, of any shape, which may lie in memory in any order of its axes."""
    extra = -x.numel() % AT_ONCE
    if not extra:
        return function(x)
    order = sorted(range(x.dim()), key=x.stride, reverse=True)
    laid = x.permute(order)
    found = function(functional.pad(laid.flatten(), (0, extra)))[: x.numel()].view(laid.shape)
    return found.permute(sorted(range(x.dim()), key=order.__getitem__))
