"""How long the steps of EF21 may be, by its theory, from the smoothness of the clients' functions.

gamma = 1 / (L + M xi(p delta)),  xi(delta) = (1 + sqrt(1 - delta)) / delta - 1
L_i is how fast the gradient of client i's function changes at most, L that of their mean. M is the quadratic mean of
the L_i, or with EF21-W, whose clients weigh by them, the arithmetic one, which is smaller unless all are alike. delta:
what a compressor keeps of a square at least. p: the share of clients that reply in a round. Richtarik et al. 2021;
weights: Richtarik et al. 2024.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from fedsim.core.errors import InputError


def xi(delta: float) -> float:
    """How much shorter a compressor that keeps delta makes steps; 0 where nothing is lost."""
    return (1.0 + math.sqrt(1.0 - delta)) / delta - 1.0


def ef21_step(
    smoothness: Sequence[float], whole: float, delta: float, *, weighted: bool = False, share: float = 1.0
) -> float:
    """gamma, by which the mean of the clients' gradients is multiplied.

    smoothness: L_i of each client. whole: L. weighted: clients weigh by them (option `smoothness` of the transform
    `ef21`). share: p. InputError: a number is out of its range.
    """
    for option, value in (("delta", delta), ("share", share)):
        if not 0.0 < value <= 1.0:
            raise InputError(option, value, "take a share above 0, and at most 1")
    if not smoothness or not all(0.0 < one < math.inf for one in (*smoothness, whole)):
        raise InputError("smoothness", smoothness, "take a number above 0 for each client, and for their mean")
    mean = sum(smoothness) / len(smoothness) if weighted else math.hypot(*smoothness) / math.sqrt(len(smoothness))
    return 1.0 / (whole + mean * xi(share * delta))
