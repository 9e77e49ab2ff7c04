"""Within `vmap`, which hides the clients from a forward pass: what is computed of all of them at once all the same.

A draw is made for all clients of a stack by their names, and a kernel without parameters takes their examples as one
long batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

_hides: ContextVar[bool] = ContextVar("fedsim_hides", default=False)


@contextmanager
def hiding() -> Iterator[None]:
    """Within this block `vmap` hides the clients' axis."""
    token = _hides.set(True)
    try:
        yield
    finally:
        _hides.reset(token)


def hidden() -> bool:
    """Whether tensors have a clients' axis that they do not show."""
    return _hides.get()


def together(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """What a function makes of tensors with their hidden axis in front, [C, ...] to [C, ...], which is hidden again."""
    made: Tensor = _Together.apply(function, *tensors)  # type: ignore[no-untyped-call]
    return made


class _Together(torch.autograd.Function):
    """The way out of `vmap`: a rule for it, in which everything can be differentiated as anywhere."""

    @staticmethod
    def forward(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        """Of tensors that are all clients' alike and depend on no parameter."""
        return function(*(tensor.unsqueeze(0) for tensor in tensors)).squeeze(0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Nothing is kept."""

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], function: Callable[..., Tensor], *tensors: Tensor
    ) -> tuple[Tensor, int]:
        """The function of all clients side by side."""
        rows = [
            tensor.expand(info.batch_size, *tensor.shape) if axis is None else tensor.movedim(axis, 0)
            for tensor, axis in zip(tensors, in_dims[1:], strict=True)
        ]
        return function(*rows), 0
