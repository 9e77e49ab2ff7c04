"""Training passes, and dropout by named draws, the same in every network.

`torch.nn.Dropout` would read the global generator. `fedsim.nets.prepared` puts a `NamedDropout` in its place: in
local step s of round r, the mask of client c in the n-th call of the layer called `name` is a draw named
(`dropout/name/n`, r, s, c). Attention and recurrent layers, which drop out on their own, have one as a part `drop`.
Outside a `drawing` block a model is evaluated, and dropout does nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.core.streams import Index, Streams
from fedsim.nets.together import hidden, together

WORTH_COMPILING = 50_000
"""Numbers that clients draw in one call from which that is compiled; NumPy takes a millisecond for them."""


@dataclass(frozen=True)
class Draw:
    """Whose draws are to be made: of `clients` [k], in local step `step` of a turn, one or int64 [k].

    within: what their names begin with, where they are for another pass than the step's own.
    """

    streams: Streams
    clients: Tensor
    turn: Index
    step: int
    within: str = ""


@dataclass(frozen=True)
class Training:
    """A forward pass in training. stacked: whether inputs have a leading client axis.

    real: which places of the batches are examples, bool [k, B], or [B] in a pass that is `mapped` over clients by
    `vmap`; None: all are, none is padding. calls: how often each layer has drawn so far.
    """

    draw: Draw
    stacked: bool
    real: Tensor | None = None
    mapped: bool = False
    calls: Counter[str] = field(default_factory=Counter)


_training: ContextVar[Training | None] = ContextVar("fedsim_training", default=None)


def training() -> Training | None:
    """The training pass that is under way; None: the model is evaluated."""
    return _training.get()


@contextmanager
def drawing(draw: Draw, *, stacked: bool, real: Tensor | None = None) -> Iterator[None]:
    """Within this block models are trained: dropout draws, and batches are normalised by themselves; see `Training`."""
    with _within(Training(draw, stacked, real)):
        yield


@contextmanager
def mapped(now: Training, real: Tensor | None) -> Iterator[None]:
    """Within this block a training pass is that of one client of those that `vmap` maps over."""
    with _within(replace(now, stacked=False, real=real, mapped=True)):
        yield


@contextmanager
def _within(now: Training) -> Iterator[None]:
    token = _training.set(now)
    try:
        yield
    finally:
        _training.reset(token)


class NamedDropout(nn.Module):
    """Zero each input with probability p and scale the others by 1 / (1 - p)."""

    def __init__(self, p: float, name: str, inplace: bool = False) -> None:
        super().__init__()
        self.p, self.name, self.inplace = p, name, inplace

    @property
    def active(self) -> bool:
        """Whether anything is dropped now."""
        return training() is not None and self.p > 0.0

    def forward(self, x: Tensor) -> Tensor:
        """Inputs [k, B, ...] in a stack, whose first axis `vmap` may hide, [B, ...] for one client."""
        current = training()
        if current is None or self.p == 0.0:
            return x
        share = 1.0 - self.p or 1.0  # of those that are kept; where none is, all are zero
        draw, call = current.draw, current.calls[self.name]
        current.calls[self.name] += 1

        def of_stack(rows: Tensor) -> Tensor:
            found = keep(draw, f"{draw.within}dropout/{self.name}/{call}", rows.shape[1:].numel(), self.p).to(
                rows.dtype
            )
            return found.view(-1, *rows.shape[1:]).expand(rows.shape)  # of a client that has itself for company, one

        if hidden():
            kept = together(of_stack, x.detach())
        else:
            kept = of_stack(x) if current.stacked else of_stack(x.unsqueeze(0)).squeeze(0)
        return x.mul_(kept).div_(share) if self.inplace else x * kept / share


def keep(draw: Draw, name: str, count: int, p: float) -> Tensor:
    """Which of so many numbers each client keeps, bool [k, count]: those whose uniform draws of this name reach p."""
    # The first 24 bits of a word are a uniform number in single precision, as p is then.
    threshold = math.ceil(float(np.float32(p)) * 2**24) * 2**8
    clients = draw.clients
    if clients.device.type != "cpu" or len(clients) * count < WORTH_COMPILING or find_spec("numba") is None:
        return draw.streams.bits(name, clients, count, turn=draw.turn, step=draw.step) >= threshold
    from fedsim.nets.kernels import masks

    owners, low, high = draw.streams.keyed(name, clients)
    named = (word if isinstance(word, Tensor) else torch.full_like(clients, word) for word in (draw.turn, low, high))
    kept = torch.empty((len(clients), count), dtype=torch.bool)
    words = [word.contiguous().numpy().view(np.uint64) for word in (owners, *named)]
    masks.keep(*words, np.uint64(draw.step), np.uint64(threshold), kept.numpy())
    return kept
