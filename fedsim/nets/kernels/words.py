"""Words of Philox as uniform numbers, with the bits of `fedsim.core.streams`."""

from __future__ import annotations

import numpy as np

from fedsim.nets.kernels.compiling import entry
from fedsim.nets.kernels.shuffles import HALF, M0, M1, MASK, W0, W1

WORD = np.uint32


@entry
def uniform(owners, turns, low, high, step, found):
    """(word + 1/2) / 2^32 of the words of a client's draw: [k, n], written; n is a multiple of 4.

    owners, turns, low, high: uint64 [k], which name the clients' draws with the step (see `fedsim.core.streams`). First
    come all blocks' first words, then their second ones: so that a round of many blocks is taken at once.
    """
    blocks = found.shape[1] // 4
    x0, x1, x2, x3 = (np.empty(blocks, WORD), np.empty(blocks, WORD), np.empty(blocks, WORD), np.empty(blocks, WORD))
    for c in range(len(found)):
        for b in range(blocks):
            x0[b], x1[b], x2[b], x3[b] = b, owners[c], turns[c], step
        k0, k1 = low[c], high[c]
        for _ in range(10):
            key0, key1 = WORD(k0), WORD(k1)
            for b in range(blocks):
                p0, p1 = np.uint64(x0[b]) * M0, np.uint64(x2[b]) * M1
                x0[b], x2[b] = WORD(p1 >> HALF) ^ x1[b] ^ key0, WORD(p0 >> HALF) ^ x3[b] ^ key1
                x1[b], x3[b] = WORD(p1), WORD(p0)
            k0, k1 = (k0 + W0) & MASK, (k1 + W1) & MASK
        for b in range(blocks):
            found[c, b] = (np.float64(x0[b]) + 0.5) * 2.0**-32
            found[c, blocks + b] = (np.float64(x1[b]) + 0.5) * 2.0**-32
            found[c, 2 * blocks + b] = (np.float64(x2[b]) + 0.5) * 2.0**-32
            found[c, 3 * blocks + b] = (np.float64(x3[b]) + 0.5) * 2.0**-32
