"""Parameters moved along a named direction in place, and two evaluations on either side of them.

After Malladi et al. 2023 (MeZO): x + radius v, x - radius v and back again, with v drawn anew each time, so that no
second vector of length d is ever made. Each of the three additions rounds: what is left of x afterwards is off by
at most 1.5 units in the last place of |x_i| + radius |v_i|. No rule without a second vector can do better, as
rounding maps several x to one. Either ask for a copy (`exact`), or remove the drift from time to time by `replay_` of
the log from a snapshot, or from the first parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fedsim.core.streams import Streams
from fedsim.zeroth_order.directions import Keys, Sliceable, part
from fedsim.zeroth_order.replay import BLOCK, add_, moved_rows


def perturb_(
    leaves: Sequence[Tensor],
    streams: Streams,
    keys: Keys,
    scale: float | Tensor,
    *,
    kind: Sliceable = "gaussian",
    block: int = BLOCK,
) -> None:
    """Add scale * v in place to the contiguous leaves [C, *shape] of a stack; v runs through them in their order.

    keys: one name, of a direction that all rows share, or C. scale: one number, or [C]; a row keeps its exact bits
    where it is 0. A row gets the same bits whatever the others are and whatever `block`, the numbers of directions
    that exist at a time, is. A matrix [C, d] is a stack of one leaf, with the same result.
    """
    count = len(leaves[0])
    if len(keys) not in (1, count):
        raise ValueError(f"{len(keys)} keys do not name the directions of {count} rows")
    leaf = leaves[0]
    if isinstance(scale, Tensor):
        steps = scale.to(leaf.device, torch.float64).to(leaf.dtype).expand(count)
    else:
        steps = torch.full((count,), scale, dtype=torch.float64, device=leaf.device).to(leaf.dtype)
    chosen = moved_rows(steps)
    if chosen is not None and not len(chosen):
        return
    width = max(1, block // len(keys))
    first = 0
    for leaf in leaves:
        flat = leaf.view(count, leaf.shape[1:].numel())
        for start in range(0, flat.shape[1], width):
            view = flat[:, start : start + width]
            begin = first + start
            vectors = part(kind, streams, keys, begin, begin + view.shape[1], dtype=leaf.dtype, device=leaf.device)
            add_(view, steps, vectors if len(keys) == count else vectors[0], chosen)
        first += flat.shape[1]


def evaluate_pair(
    leaves: Sequence[Tensor],
    streams: Streams,
    keys: Keys,
    radius: float,
    evaluate: Callable[[], Tensor],
    *,
    kind: Sliceable = "gaussian",
    exact: bool = False,
) -> tuple[Tensor, Tensor]:
    """Evaluate at x + radius v and at x - radius v, with the leaves moved in place; see `perturb_`.

    exact: keep a copy of the leaves, evaluate on either side of it and put its bits back; otherwise x comes back with
    the residue of the module's text, and in no more memory than an evaluation takes.
    """
    copies = [leaf.clone() for leaf in leaves] if exact else []

    def move(distance: float) -> None:
        perturb_(leaves, streams, keys, distance, kind=kind)

    def restore() -> None:
        for leaf, copy in zip(leaves, copies, strict=True):
            leaf.copy_(copy)

    move(radius)
    plus = evaluate()
    if exact:
        restore()
        move(-radius)
    else:
        move(-2.0 * radius)
    minus = evaluate()
    if exact:
        restore()
    else:
        move(radius)
    return plus, minus
