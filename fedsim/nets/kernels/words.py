"""Words of Philox as numbers and angles, with the bits of `fedsim.core.streams`."""

from __future__ import annotations

import math

import numpy as np

from fedsim.nets.kernels.compiling import entry
from fedsim.nets.kernels.shuffles import HALF, M0, M1, W0, W1

WORD = np.uint32
TURN = 2.0 * math.pi


@entry
def polar(owners, turns, low, high, step, found):
    """(word + 1/2) / 2^32 of the words of a client's draw: [k, n], written; n is a multiple of 4.

    owners, turns, low, high: uint64 [k], which name the clients' draws with the step (see `fedsim.core.streams`). First
    come all blocks' first words, then their second ones, so that many blocks are made at once; then third and fourth
    ones times 2 pi.
    """
    blocks = found.shape[1] // 4
    last = WORD(step)
    for c in range(len(found)):
        owner, turn, key0, key1 = WORD(owners[c]), WORD(turns[c]), WORD(low[c]), WORD(high[c])
        for b in range(blocks):
            x0, x1, x2, x3 = WORD(b), owner, turn, last
            k0, k1 = key0, key1
            # As `shuffles.mixed`, which in words of 64 bits takes five times as long, and as a call of its own twice.
            for _ in range(10):
                p0, p1 = np.uint64(x0) * M0, np.uint64(x2) * M1
                x0, x1, x2, x3 = WORD(p1 >> HALF) ^ x1 ^ k0, WORD(p1), WORD(p0 >> HALF) ^ x3 ^ k1, WORD(p0)
                k0, k1 = WORD(k0 + W0), WORD(k1 + W1)
            found[c, b] = (np.float64(x0) + 0.5) * 2.0**-32
            found[c, blocks + b] = (np.float64(x1) + 0.5) * 2.0**-32
            found[c, 2 * blocks + b] = (np.float64(x2) + 0.5) * 2.0**-32 * TURN
            found[c, 3 * blocks + b] = (np.float64(x3) + 0.5) * 2.0**-32 * TURN
