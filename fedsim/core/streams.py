"""Named random streams: a draw has a name, not a turn.

One counter-based generator, Philox4x32-10 (see `fedsim.core.philox`), on integer tensors. The numbers of client `c`
depend only on (run seed, purpose, turn, step, c) and on their position in the draw: not on which
other clients are drawn for in the same call, on what was drawn before, or on the device. No global generator
is read or written.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from fedsim.core.philox import MASK, key_of, mixed

SERVER = 2**32 - 1
"""The client id under which the server draws."""

Index = int | Tensor


@dataclass(frozen=True)
class Streams:
    """All random numbers of a run. `seed`: the run's seed, any integer. within: what all names begin with."""

    seed: int
    within: str = field(default="", kw_only=True)

    def derive(self, purpose: str, *, turn: int = 0, step: int = 0) -> int:
        """A 64-bit seed for a library that wants one, named like a draw."""
        return key_of(self.seed, f"{self.within}{purpose}/{turn}/{step}")

    def seed_of(self, purpose: str, *, turn: int = 0, step: int = 0) -> int:
        """The same as a seed of other streams, which a tensor of int64 has room for: 63 bits of it."""
        return self.derive(purpose, turn=turn, step=step) >> 1

    def apart(self, name: str) -> Self:
        """The same with names of their own, which begin so."""
        return replace(self, within=f"{self.within}{name}/")

    def generator(self, purpose: str, *, turn: int = 0, step: int = 0) -> np.random.Generator:
        """A NumPy generator of its own for work on the host that is not per client, such as a partition."""
        return np.random.Generator(np.random.Philox(self.derive(purpose, turn=turn, step=step)))

    def keyed(self, name: str, owners: Tensor) -> tuple[Tensor, Index, Index]:
        """What names the draws of `owners`, int64 of any shape: their counter word, and the two words of their key.

        name: what is hashed with the seed. The words of the key are numbers, or of the owners' shape where the runs of
        several seeds draw together (see `fedsim.running.lockstep`).
        """
        key = key_of(self.seed, self.within + name)
        return owners, key & MASK, key >> 32

    def bits(
        self,
        purpose: str,
        clients: Tensor,
        count: int,
        *,
        turn: Index = 0,
        step: Index = 0,
    ) -> Tensor:
        """Draw `count` 32-bit words a client: int64 [C, count] in [0, 2^32).

        clients: int64 [C], ids below 2^32. turn, step: one number, or a tensor of [C] or [C, 1].
        """
        owners, low, high = self.keyed(purpose, clients.unsqueeze(1))
        blocks = torch.arange(-(-count // 4), device=clients.device)
        words = philox(blocks.unsqueeze(0), owners, _column(turn), _column(step), low, high)
        return torch.stack(words, dim=2).flatten(1)[:, :count]

    def ragged_bits(
        self,
        purpose: str,
        clients: Tensor,
        counts: Tensor,
        *,
        turn: Index = 0,
        step: Index = 0,
    ) -> Tensor:
        """Draw `counts[c]` words for client c, one client after the other: int64 [sum of counts].

        The same words as the first `counts[c]` of `bits`, without drawing what a shorter client has no use for.
        turn, step: one number, or int64 [C].
        """
        blocks = -(-counts // 4)
        first = blocks.cumsum(0) - blocks
        owner = torch.repeat_interleave(blocks)
        block = torch.arange(len(owner), device=clients.device) - first[owner]
        turns, steps = (word[owner] if isinstance(word, Tensor) else word for word in (turn, step))
        owners, low, high = self.keyed(purpose, clients[owner])
        words = torch.stack(philox(block, owners, turns, steps, low, high), dim=1)
        kept = block.unsqueeze(1) * 4 + torch.arange(4, device=clients.device) < counts[owner].unsqueeze(1)
        return words[kept]

    def uniform(
        self,
        purpose: str,
        clients: Tensor,
        shape: Sequence[int] = (),
        *,
        turn: Index = 0,
        step: Index = 0,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Draw uniform numbers in [0, 1): [C, *shape]. Single precision has 24 bits, double 53."""
        count = math.prod(shape)
        if dtype == torch.float64:
            wide = self.bits(purpose, clients, 2 * count, turn=turn, step=step)
            high, low = wide[:, :count], wide[:, count:]
            drawn = ((high >> 5) * 2**26 + (low >> 6)).to(torch.float64) * 2.0**-53
        else:
            drawn = (self.bits(purpose, clients, count, turn=turn, step=step) >> 8).to(dtype) * 2.0**-24
        return drawn.reshape(len(clients), *shape)

    def normal(
        self,
        purpose: str,
        clients: Tensor,
        shape: Sequence[int] = (),
        *,
        turn: Index = 0,
        step: Index = 0,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Draw standard normal numbers: [C, *shape], by Box and Muller's rule in double precision."""
        count = math.prod(shape)
        half = -(-count // 2)
        words = self.bits(purpose, clients, 2 * half, turn=turn, step=step).to(torch.float64)
        # (word + 1/2) / 2^32 is never 0, so the logarithm is finite.
        radius = torch.sqrt(-2.0 * torch.log((words[:, :half] + 0.5) * 2.0**-32))
        angle = words[:, half:] * (2.0 * math.pi * 2.0**-32)
        drawn = torch.cat((radius * torch.cos(angle), radius * torch.sin(angle)), dim=1)
        return drawn[:, :count].to(dtype).reshape(len(clients), *shape)

    def integers(
        self,
        purpose: str,
        clients: Tensor,
        shape: Sequence[int],
        high: Index,
        *,
        turn: Index = 0,
        step: Index = 0,
    ) -> Tensor:
        """Draw integers in [0, high): int64 [C, *shape]. high: up to 2^31, one number or a tensor [C].

        A word is scaled by multiplication, so a value's probability is off by at most high / 2^32.
        """
        words = self.bits(purpose, clients, math.prod(shape), turn=turn, step=step)
        return ((words * _column(high)) >> 32).reshape(len(clients), *shape)

    def permutation(
        self,
        purpose: str,
        clients: Tensor,
        size: int,
        *,
        turn: Index = 0,
        step: Index = 0,
    ) -> Tensor:
        """Draw an order of 0 .. size-1 for each client: int64 [C, size]; ties of 32-bit keys keep their order."""
        words = self.bits(purpose, clients, size, turn=turn, step=step)
        return torch.argsort(words, dim=1, stable=True)


def philox(
    c0: Tensor, c1: Tensor, c2: Index, c3: Index, k0: Index, k1: Index, rounds: int = 10
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32: four 32-bit counter words (int64 tensors, broadcast) and two key words (the same) to four words.

    On the CPU it is computed by NumPy, which takes half the time for many words and a quarter for a few.
    """
    x0, x1, x2, x3 = (_words(counter, c1.device) for counter in (c0, c1, c2, c3))
    k0, k1 = (_words(key, c1.device) if isinstance(key, Tensor) else key for key in (k0, k1))
    x0, x1, x2, x3 = mixed(x0, x1, x2, x3, k0, k1, rounds)
    if isinstance(x0, Tensor):
        return x0, x1, x2, x3
    first, second, third, fourth = (torch.from_numpy(words.view(np.int64)) for words in (x0, x1, x2, x3))
    return first, second, third, fourth


def _words(counter: Index, device: torch.device) -> Any:
    """A word as numbers to compute with: unsigned and NumPy's on the CPU, else a tensor."""
    if device.type != "cpu":
        # Made where it is needed: a number that is sent there would be waited for.
        return counter if isinstance(counter, Tensor) else torch.full((), counter, device=device)
    numbers = counter.numpy() if isinstance(counter, Tensor) else np.full(1, counter)
    return numbers.astype(np.uint64)


def _column(index: Index) -> Index:
    return index.reshape(-1, 1) if isinstance(index, Tensor) else index
