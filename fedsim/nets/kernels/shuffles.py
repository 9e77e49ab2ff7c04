"""Shuffles of clients' examples, cut into batches, with the numbers of `fedsim.engine.batches`."""

from __future__ import annotations

import numpy as np

from fedsim.nets.kernels.compiling import entry, part

# Not from `fedsim.core.philox`: what is kept of a kernel follows the files of this folder only.
MASK, HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
M0, M1, W0, W1 = (np.uint64(word) for word in (0xD2511F53, 0xCD9E8D57, 0x9E3779B9, 0xBB67AE85))
ONE, NOTHING = np.uint64(1), np.uint64(0)


@part
def mixed(x0, x1, x2, x3, k0, k1):
    """Philox4x32-10: see `fedsim.core.philox.mixed`."""
    for _ in range(10):
        p0, p1 = x0 * M0, x2 * M1
        x0, x1, x2, x3 = (p1 >> HALF) ^ x1 ^ k0, p1 & MASK, (p0 >> HALF) ^ x3 ^ k1, p0 & MASK
        k0, k1 = (k0 + W0) & MASK, (k1 + W1) & MASK
    return x0, x1, x2, x3


@entry
def shuffle(first, stride, owners, turns, low, high, order, begin, examples, first_row, index, count, epochs):
    """Shuffle for clients first, first + stride, ...: see `fedsim.nets.descent.Shuffles`.

    index: int64 [R, B] and count: int64 [R] are written. An example's key is a word of its client's draw, the examples
    of its passes one after the other; of equal keys the one that comes first stays first.
    """
    width = index.shape[1]
    for c in range(first, len(examples), stride):
        size, row, block = examples[c], first_row[c], NOTHING
        keys, words, used = np.empty(size, np.uint64), np.empty(4, np.uint64), 4
        for _ in range(epochs):
            for slot in range(size):
                if used == 4:
                    words[0], words[1], words[2], words[3] = mixed(block, owners[c], turns[c], NOTHING, low[c], high[c])
                    block, used = block + ONE, 0
                keys[slot] = (words[used] << HALF) | np.uint64(slot)
                used += 1
            keys.sort()
            for slot in range(0, size, width):
                taken = min(width, size - slot)
                for place in range(taken):
                    index[row, place] = order[begin[c] + np.int64(keys[slot + place] & MASK)]
                index[row, taken:] = order[begin[c]]
                count[row] = taken
                row += 1
