"""Gaussian noise of clients' own in every local step, by name, in the time that a step of a small model leaves for it.

As `Streams.normal`, by Box and Muller's rule, but in the numbers' own precision, a vector register at a time; and the
words of Philox, which are the same wherever they are made, are compiled where there are many.
"""

from __future__ import annotations

import math
from functools import cache
from importlib.util import find_spec

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.core.streams import Index
from fedsim.nets.dropout import Draw

WORTH_COMPILING = 4_000
"""Numbers that clients draw in one call from which their words are compiled; to load that takes a while."""


def normal(draw: Draw, name: str, count: int, deviation: Tensor) -> Tensor:
    """So many normal numbers of each client, [k, count], with its own standard deviation, [k], in whose precision."""
    half = -(-count // 2)
    words = _uniform(draw, f"{draw.within}{name}", 2 * half, deviation.dtype)
    radius = words[:, :half].log().mul_(-2.0).sqrt_().mul_(deviation.unsqueeze(1))
    angle = words[:, half : 2 * half] * (2.0 * math.pi)
    return torch.cat((angle.cos().mul_(radius), angle.sin_().mul_(radius)), dim=1)[:, :count]


def _uniform(draw: Draw, name: str, count: int, dtype: torch.dtype) -> Tensor:
    """Numbers in (0, 1] of each client, [k, count] or some more: (word + 1/2) / 2^32, all blocks' first words first."""
    clients, wide = draw.clients, count + -count % 4
    if clients.device.type != "cpu" or len(clients) * wide < WORTH_COMPILING or not _compiles():
        words = draw.streams.bits(name, clients, wide, turn=draw.turn, step=draw.step)
        return words.view(len(clients), -1, 4).mT.flatten(1).to(torch.float64).add_(0.5).mul_(2.0**-32).to(dtype)
    from fedsim.nets.kernels import words as compiled

    owners, low, high = draw.streams.keyed(name, clients)
    named = [_each(word, len(clients)) for word in (owners, draw.turn, low, high)]
    found = torch.empty((len(clients), wide), dtype=dtype)
    compiled.uniform(*named, np.uint64(draw.step), found.numpy())
    return found


def _each(word: Index, count: int) -> NDArray[np.uint64]:
    """A word of each of so many clients."""
    if isinstance(word, Tensor):
        return word.contiguous().numpy().view(np.uint64)
    return np.full(count, word, dtype=np.uint64)


@cache
def _compiles() -> bool:
    return find_spec("numba") is not None
