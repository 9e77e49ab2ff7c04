"""Replay: a model rebuilt from where it began and a log of scalars.

    x <- x - rate * a_j * w_j,    j = 0, 1, ... in the order of the log

with w_j the dual of the direction v_j that the j-th key names (of gaussian and rademacher directions v_j itself).
The step rate * a_j is computed in double precision and rounded once to the dtype of x. Floating-point addition
does not commute: the same log in the same order gives the same bits, in another order it differs by rounding.

Directions are drawn a block of x at a time, and no second vector of length d is ever made.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedsim.core.streams import Streams
from fedsim.zeroth_order.directions import Keys, Sliceable, dual, part

BLOCK = 2**14
"""Numbers of directions that exist at a time."""


def replay_(
    rows: Tensor,
    streams: Streams,
    keys: Keys,
    scalars: Tensor,
    *,
    rate: float = 1.0,
    kind: Sliceable = "gaussian",
    block: int = BLOCK,
    begin: int = 0,
) -> Tensor:
    """Apply a log of J contributions in place to x [d], or to rows [k, d]; return it.

    keys: J names, of directions that all rows share. scalars: [J], or [J, k] for each row its own. A row keeps its
    exact bits where its scalar is 0, and gets the same bits whatever the other rows are and whatever `block` is. begin:
    where in the directions the first number of x is, which may be a part of a model.
    """
    rows_ = rows.unsqueeze(0) if rows.dim() == 1 else rows
    count, dimension = rows_.shape
    steps = scalars.to(rows.device, torch.float64).mul(rate).to(rows.dtype)
    steps = (steps.unsqueeze(1) if steps.dim() == 1 else steps).expand(-1, count)
    if len(keys) != len(steps):
        raise ValueError(f"{len(keys)} keys do not name {len(steps)} contributions")
    if rows.device.type == "cpu":
        live = (steps != 0).any(dim=1)
        steps, keys = steps[live], keys[live]
    chosen = [moved_rows(step) for step in steps]
    width = min(dimension, block)
    together = max(1, block // max(1, width))
    for start in range(0, dimension, max(1, width)):
        view = rows_[:, start : start + width]
        for first in range(0, len(steps), together):
            named = keys[first : first + together]
            place = begin + start
            vectors = part(kind, streams, named, place, place + view.shape[1], dtype=rows.dtype, device=rows.device)
            for number, vector in enumerate(dual(kind, vectors), start=first):
                add_(view, -steps[number], vector, chosen[number])
    return rows


def moved_rows(steps: Tensor) -> Tensor | None:
    """The rows with steps [k] other than 0: None for all of them, else int64; on a GPU, not to wait, bool [k]."""
    if steps.device.type != "cpu":
        return steps != 0
    chosen = steps.nonzero().squeeze(1)
    return None if len(chosen) == len(steps) else chosen


def add_(rows: Tensor, steps: Tensor, vectors: Tensor, chosen: Tensor | None) -> None:
    """Add steps [k] times vectors, [n] or [k, n], to the chosen rows of [k, n] in place; the others keep their bits.

    Left-out rows are not given 0 times something, which would turn -0 into 0.
    """
    # Product and sum are rounded one after the other: a fused kernel may round once or twice by the place in memory.
    height = max(1, 4 * BLOCK // max(1, rows.shape[1]))
    if chosen is None or chosen.dtype == torch.bool:
        for start in range(0, len(rows), height):
            group = slice(start, start + height)
            product = steps[group].unsqueeze(1) * (vectors[group] if vectors.dim() == 2 else vectors)
            if chosen is None:
                rows[group].add_(product)
            else:
                rows[group] = torch.where(chosen[group].unsqueeze(1), product.add_(rows[group]), rows[group])
    else:
        for some in torch.split(chosen, height):
            product = steps[some].unsqueeze(1) * (vectors[some] if vectors.dim() == 2 else vectors)
            rows.index_copy_(0, some, product.add_(rows[some]))
