"""Gaussian noise of clients' own in every local step, by name, in the time that a step of a small model leaves for it.

As `Streams.normal`, by Box and Muller's rule, but in the numbers' own precision, a vector register at a time; and the
words of Philox, which are the same wherever they are made, are compiled where there are many.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.core.streams import Index
from fedsim.nets.dropout import Draw

TOGETHER = 2**16
"""Numbers that are turned at once: they stay in a core's cache meanwhile."""
WORTH_COMPILING = 4_000
"""Numbers that clients draw in one call from which their words are compiled; to load that takes a while."""


def normal(draw: Draw, name: str, count: int, deviation: Tensor) -> Tensor:
    """So many normal numbers of each client, [k, count], with its own standard deviation, [k], in whose precision."""
    wide = count + -count % 4
    half, scale = wide // 2, (-2.0 * deviation.square()).unsqueeze(1)
    found = deviation.new_empty(len(draw.clients), wide)
    height = max(1, TOGETHER // max(1, wide))
    write, cosines = _polar(draw, f"{draw.within}{name}", wide), deviation.new_empty(min(height, len(found)), half)
    for first in range(0, len(found), height):
        rows = slice(first, first + height)
        own = found[rows]
        write(rows, own)
        radius, angle = own[:, :half], own[:, half:]
        radius.log_().mul_(scale[rows]).sqrt_()
        cosine = torch.cos(angle, out=cosines[: len(own)])
        angle.sin_().mul_(radius)
        radius.mul_(cosine)
    return found[:, :count]


def _polar(draw: Draw, name: str, count: int) -> Callable[[slice, Tensor], None]:
    """What writes for the clients of some rows numbers in (0, 1], and after them as many angles, count in all, over 4.

    Each is (word + 1/2) / 2^32, angles times 2 pi. All blocks' first words come first, then their second ones.
    """
    clients, turn, step = draw.clients, draw.turn, draw.step
    if clients.device.type != "cpu" or len(clients) * count < WORTH_COMPILING or not _compiles():

        def write(rows: slice, found: Tensor) -> None:
            now = turn[rows] if isinstance(turn, Tensor) else turn
            words = draw.streams.bits(name, clients[rows], count, turn=now, step=step)
            numbers = words.view(len(found), -1, 4).mT.flatten(1).to(torch.float64).add_(0.5).mul_(2.0**-32)
            numbers[:, count // 2 :].mul_(2.0 * math.pi)
            found.copy_(numbers)

        return write
    from fedsim.nets.kernels import words as compiled

    owners, low, high = draw.streams.keyed(name, clients)
    named = [_each(word, len(clients)) for word in (owners, turn, low, high)]
    number = np.uint64(step)
    return lambda rows, found: compiled.polar(*(word[rows] for word in named), number, found.numpy())


def _each(word: Index, count: int) -> NDArray[np.uint64]:
    """A word of each of so many clients."""
    if isinstance(word, Tensor):
        return word.contiguous().numpy().view(np.uint64)
    return np.full(count, word, dtype=np.uint64)


@cache
def _compiles() -> bool:
    return find_spec("numba") is not None
