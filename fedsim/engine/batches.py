"""Which example stands in which mini-batch of which client, for a whole cohort at once.

Rows of a cohort are sorted by their number of local steps, longest first, so that the clients that are
still at work at step s are the first `active[s]` rows. The plan is therefore packed: the batches of step s
are rows `start[s] : start[s] + active[s]` of `index` and `weight`, and nothing is stored, gathered or
multiplied for clients that have finished.

Every client reshuffles its examples in each epoch with its own named draws; its last batch of an epoch may be
partial, which each step says with a weight of 0 in the padded places and 1/count in the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from fedsim.streams import Streams


@dataclass(frozen=True)
class Plan:
    """The mini-batches of a cohort; R is the sum over clients of their local steps.

    index: int64 [R, B], examples by their number in the problem's data. weight: [R, B], 1/count or 0.
    active: how many rows work at each step. start: where the rows of each step begin.
    """

    index: Tensor
    weight: Tensor
    active: list[int]
    start: list[int]


def steps_of(examples: Tensor, epochs: int | None, steps: int | None, batch_size: int | None) -> Tensor:
    """Local steps of clients with so many examples: int64 [C]; `batch_size` None is the full batch."""
    if steps is not None:
        return torch.full_like(examples, steps)
    assert epochs is not None
    per_epoch = torch.ones_like(examples) if batch_size is None else -(-examples // batch_size)
    return epochs * per_epoch


def plan_batches(
    streams: Streams,
    clients: Tensor,
    order: Tensor,
    begin: Tensor,
    examples: Tensor,
    *,
    epochs: int | None,
    steps: int | None,
    batch_size: int,
    round: int,  # noqa: A002
    dtype: torch.dtype,
) -> Plan:
    """Shuffle and cut the examples of a cohort.

    clients, begin, examples: int64 [C] on one device, longest first; client c owns
    order[begin[c] : begin[c] + examples[c]]. With `epochs`, E passes, each freshly shuffled, the last batch
    possibly partial. With `steps`, each step draws `batch_size` of the client's examples without
    replacement, independently of the other steps (all of them where it has fewer). Every row of the plan is
    `batch_size` wide, so that a client's products have the same shapes, and so the same bits, in any cohort.
    """
    device = clients.device
    rows = torch.arange(len(clients), device=device)
    passes = epochs if steps is None else steps
    assert passes is not None
    width = batch_size
    per_pass = torch.ones_like(examples) if steps is not None else -(-examples // width)
    active, start, length = _prefixes(per_pass * passes)

    # One element for each (client, pass, example): its client's row, its pass, and a random key.
    count = examples * passes
    row = torch.repeat_interleave(rows, count)
    position = torch.arange(len(row), device=device) - torch.repeat_interleave(count.cumsum(0) - count, count)
    size = examples[row]
    segment_pass = position // size
    segment_begin = torch.arange(len(row), device=device) - position % size
    keys = streams.ragged_bits("batches", clients, count, round=round)
    # Sorting (segment, key) shuffles every segment; equal keys keep their order.
    shuffled = torch.sort((segment_begin << 32) | keys, stable=True).indices
    example = order[begin[row] + (shuffled - segment_begin)]

    slot = position % size
    step = segment_pass if steps is not None else segment_pass * per_pass[row] + slot // width
    column = slot if steps is not None else slot % width
    full = torch.clamp(size - (slot - column), max=width)
    kept = column < width
    place = (torch.as_tensor(start, device=device)[step] + row) * width + column
    index = torch.zeros(length * width, dtype=torch.int64, device=device)
    weight = torch.zeros(length * width, dtype=dtype, device=device)
    if steps is not None:
        place, example, full = place[kept], example[kept], full[kept]
    index[place] = example
    weight[place] = 1.0 / full.to(dtype)
    return Plan(index.view(length, width), weight.view(length, width), active, start)


def _prefixes(steps: Tensor) -> tuple[list[int], list[int], int]:
    """Active clients and first packed row of every step, and the number of packed rows."""
    counts = steps.tolist()
    if any(before < after for before, after in pairwise(counts)):
        raise ValueError("the rows of a cohort must be sorted by their local steps, longest first")
    active: list[int] = []
    working = len(counts)
    for step in range(counts[0] if counts else 0):
        while counts[working - 1] <= step:
            working -= 1
        active.append(working)
    start, total = [], 0
    for working in active:
        start.append(total)
        total += working
    return active, start, total
