"""Which of several parameters each layer takes, so that all layers together take the fewest bits.

min sum_l b_l(c_l) subject to sum_l e_l(c_l) <= E, by a dynamic programme over layers, in which what is left of E is
counted in equal parts. Errors are rounded up to whole parts: E is held to, and what is found takes no more bits than
the fewest at an E of as many parts fewer as there are layers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PARTS = 10_000
"""Of what may be left out."""


def allot(errors: NDArray[np.float64], bits: NDArray[np.int64], most: float, usual: int) -> NDArray[np.int64]:
    """The place of the parameter of each layer, int64 [L].

    errors, bits: of each layer with each parameter, [L, K]. most: E. usual: the place of the one that all layers would
    have, which they keep where that is within E, too, at fewer bits. Where nothing is, each takes what errs least.
    """
    parts = _parts(errors, most)
    least, chosen = np.zeros(PARTS + 1), list[NDArray[np.int64]]()  # the fewest bits by what is left of E
    for own, sizes in zip(parts, bits.tolist(), strict=True):
        best, taken = np.full(PARTS + 1, np.inf), np.zeros(PARTS + 1, dtype=np.int64)
        for place, (part, size) in enumerate(zip(own.tolist(), sizes, strict=True)):
            found = least[: max(0, PARTS + 1 - part)] + size
            fewer = found < best[part:]
            best[part:][fewer] = found[fewer]
            taken[part:][fewer] = place
        least = best
        chosen.append(taken)
    if np.isinf(least[-1]):
        by_bits = np.argsort(bits, axis=1, kind="stable")
        ordered = np.nan_to_num(np.take_along_axis(errors, by_bits, axis=1), nan=np.inf)
        return np.take_along_axis(by_bits, ordered.argmin(axis=1, keepdims=True), axis=1)[:, 0]
    if errors[:, usual].sum() <= most and bits[:, usual].sum() < least[-1]:
        return np.full(len(bits), usual)
    found, left = np.zeros(len(bits), dtype=np.int64), PARTS
    for layer in reversed(range(len(bits))):
        found[layer] = chosen[layer][left]
        left -= parts[layer, found[layer]]
    return found


def _parts(errors: NDArray[np.float64], most: float) -> NDArray[np.int64]:
    """Errors in whole parts of E; more than there are where one is above E, or is no number."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        parts = np.where(errors == 0.0, 0.0, np.ceil(errors * (np.float64(PARTS) / most)))
    return np.nan_to_num(parts, nan=PARTS + 1).clip(max=PARTS + 1).astype(np.int64)
