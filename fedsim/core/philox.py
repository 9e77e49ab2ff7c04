"""Philox4x32-10 (Salmon et al. 2011), the counter-based generator of all named draws, where nothing but NumPy is there.

The 64-bit key is a hash of (seed, purpose); the four counter words are (block, client, turn, step).
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

MASK = 0xFFFFFFFF
# Multipliers and Weyl increments of Philox4x32 (Random123).
M0, M1 = 0xD2511F53, 0xCD9E8D57
W0, W1 = 0x9E3779B9, 0xBB67AE85


@lru_cache(maxsize=1024)
def key_of(seed: int, purpose: str) -> int:
    """The key under which draws for a purpose are made, 64 bits."""
    digest = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def mixed(x0: Any, x1: Any, x2: Any, x3: Any, k0: Any, k1: Any, rounds: int = 10) -> tuple[Any, Any, Any, Any]:
    """Four 32-bit counter words and two key words to four words: uint64 arrays, or int64 tensors, that broadcast."""
    for _ in range(rounds):
        # In int64 the product wraps; its low 64 bits are those of the unsigned product.
        p0, p1 = x0 * M0, x2 * M1
        x0, x1, x2, x3 = (
            ((p1 >> 32) & MASK) ^ x1 ^ k0,
            p1 & MASK,
            ((p0 >> 32) & MASK) ^ x3 ^ k1,
            p0 & MASK,
        )
        k0, k1 = (k0 + W0) & MASK, (k1 + W1) & MASK
    return x0, x1, x2, x3


def words(seed: int, purpose: str, client: int, count: int, *, turn: int = 0) -> NDArray[np.int64]:
    """The `count` words that `Streams(seed).bits` draws for one client: int64 [count] in [0, 2^32)."""
    key = key_of(seed, purpose)
    block = np.arange(-(-count // 4), dtype=np.uint64)
    owner, turns, step = (np.full(1, word, np.uint64) for word in (client, turn, 0))
    found = np.broadcast_arrays(*mixed(block, owner, turns, step, key & MASK, key >> 32))
    return np.stack(found, axis=1).reshape(-1)[:count].astype(np.int64)
