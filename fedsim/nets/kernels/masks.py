"""What dropout keeps: draws of Philox held to a threshold in one pass, with the bits of `fedsim.core.streams`."""

from __future__ import annotations

import numpy as np

from fedsim.nets.kernels.compiling import entry
from fedsim.nets.kernels.shuffles import mixed


@entry
def keep(owners, turns, low, high, step, threshold, kept):
    """Which words of a client's draw are at least `threshold`: bool [k, n], written.

    owners, turns, low, high: uint64 [k], which name the clients' draws with the step (see `fedsim.core.streams`).
    """
    count = kept.shape[1]
    for c in range(len(kept)):
        for block in range(count // 4):
            at = 4 * block
            w0, w1, w2, w3 = mixed(np.uint64(block), owners[c], turns[c], step, low[c], high[c])
            kept[c, at] = w0 >= threshold
            kept[c, at + 1] = w1 >= threshold
            kept[c, at + 2] = w2 >= threshold
            kept[c, at + 3] = w3 >= threshold
        words = mixed(np.uint64(count // 4), owners[c], turns[c], step, low[c], high[c])
        for place in range(count % 4):
            kept[c, count - count % 4 + place] = words[place] >= threshold
