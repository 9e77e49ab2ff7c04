"""Which example stands in which mini-batch of which client, for a whole cohort at once.

Rows of a cohort are sorted by their number of local steps, longest first, so that the clients that are
still at work at step s are the first `active[s]` rows. The plan is therefore packed: the batches of step s
are rows `start[s] : start[s] + active[s]` of `index` and `count`, and nothing is stored, gathered or
multiplied for clients that have finished.

A loop that takes all steps of one client after the other has another plan: its rows go client by client, in whatever
order the clients are.

Every client reshuffles its examples in each epoch with its own named draws; its last batch of an epoch may be
partial, and `Plan.weights` are 0 in the padded places and 1/count in the others. A `Course` has clients
pass over some of their examples instead, as a curriculum does.

Where accounts of privacy ask for it, each example of a client is in each of as many steps by a coin of its own: none of
them may be, and weights are 1 over how many are expected.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from fedsim.core.errors import FedsimError
from fedsim.core.streams import Index, Streams
from fedsim.nets.descent import Compiled, Shuffles
from fedsim.nets.products import BLOCK

DRAWN = 2**22
"""Coins that are thrown at once."""


@dataclass(frozen=True)
class Plan:
    """The mini-batches of a cohort; R is the sum over clients of their local steps.

    index: int64 [R, B], examples by their number in the problem's data, of which the first `count`, int64 [R], are
    taken and the others are padding. active: how many rows work at each step. start: where the rows of each step begin.
    expected: int64 [R], how many examples were to be expected where coins decide; None: they do not.
    """

    index: Tensor
    count: Tensor
    active: list[int]
    start: list[int]
    expected: Tensor | None = None

    def weights(self, dtype: torch.dtype) -> Tensor:
        """What each place counts in its row's loss: [R, B], 1/count or 1/expected for examples and 0 for padding."""
        real = torch.arange(self.index.shape[1], device=self.index.device) < self.count.unsqueeze(1)
        total = self.count if self.expected is None else self.expected
        return real.to(dtype) / total.unsqueeze(1).to(dtype)

    def widths(self) -> list[int]:
        """How many places the examples of each step take, in whole blocks of products."""
        number = torch.repeat_interleave(torch.tensor(self.active, device=self.count.device))
        most = self.count.new_zeros(len(self.active)).scatter_reduce_(0, number, self.count, "amax")
        return [min(self.index.shape[1], max(1, -(-many // BLOCK)) * BLOCK) for many in most.tolist()]

    def padded(self) -> list[bool]:
        """Whether there is padding in the rows of each step, asked of the device once for all."""
        partial = [0, *(self.count < self.index.shape[1]).cumsum(0).tolist()]
        rows = zip(self.start, self.active, strict=True)
        return [partial[begin + working] > partial[begin] for begin, working in rows]


@dataclass(frozen=True)
class ClientPlan:
    """The same batches, client by client: rows first[c], first[c] + 1, ... are those of client c, int64 [C].

    index: int64 [R, B] and count: int64 [R] as of `Plan`. steps: int64 [C].
    """

    index: Tensor
    count: Tensor
    first: Tensor
    steps: Tensor


@dataclass(frozen=True)
class Course:
    """Passes over the first examples of an order of each client's own, instead of epochs.

    rank: int64 [sum of examples], client after client: where each of its examples stands in the order, from 0. passes:
    int64 [C], how many passes each makes. taken: int64 [sum of passes], client after client: how many examples, from
    the order's first, a pass is over; at least 1. steps: int64 [C], after how many steps it stops, at most those of
    its passes.
    """

    rank: Tensor
    passes: Tensor
    taken: Tensor
    steps: Tensor


def steps_of(examples: Tensor, epochs: int | None, steps: int | None, batch_size: int | None) -> Tensor:
    """Local steps of clients with so many examples: int64 [C]; `batch_size` None is the full batch."""
    if steps is not None:
        return torch.full_like(examples, steps)
    assert epochs is not None
    per_epoch = torch.ones_like(examples) if batch_size is None else -(-examples // batch_size)
    return epochs * per_epoch


@dataclass(frozen=True, eq=False)
class Batching:
    """Whose examples are cut into batches, and how.

    clients, begin, examples: int64 [C] on one device; client c owns order[begin[c] : begin[c] + examples[c]]. turn: the
    number under which clients draw, one or int64 [C]. With `epochs`, E passes, each freshly shuffled, the last batch
    possibly partial; with a `course`, its passes. With `steps`, each step draws `batch_size` of the client's examples
    without replacement, independently of the other steps (all of them where it has fewer). Every row of a plan is
    `batch_size` wide, so that a client's products have the same shapes, and so the same bits, in any cohort. Padding
    stands on an example of the same client, so that one client's bad numbers stay its own.

    capacity: where coins decide, room for the examples of a step, which is then how wide a plan is; an example of a
    client with n is in a step with probability batch_size / n. None: they do not.
    """

    streams: Streams
    clients: Tensor
    order: Tensor
    begin: Tensor
    examples: Tensor
    epochs: int | None
    steps: int | None
    batch_size: int
    turn: Index
    course: Course | None = None
    capacity: int | None = None

    @property
    def expected(self) -> Tensor:
        """How many examples are expected in a step of each client where coins decide, int64 [C]."""
        return self.examples.clamp(max=self.batch_size)

    @property
    def taken(self) -> Tensor:
        """The steps of each client, int64 [C]."""
        if self.course is not None:
            return self.course.steps
        return steps_of(self.examples, self.epochs, self.steps, self.batch_size)


def plan_batches(batching: Batching) -> Plan:
    """Shuffle and cut the examples of a cohort, whose clients are sorted by their steps, longest first."""
    active, start, length = _prefixes(batching.taken)
    device = batching.clients.device
    begins = torch.tensor(start, dtype=torch.int64, device=device)
    working = torch.tensor(active, dtype=torch.int64, device=device)
    number = torch.repeat_interleave(working)
    row = torch.arange(length, device=device) - begins[number]
    if batching.capacity is not None:
        place, count = _coins(batching, batching.capacity, row, number)
        index = batching.order[batching.begin[row].unsqueeze(1) + place]
        return Plan(index, count, active, start, batching.expected[row])
    if batching.steps is not None:
        place, count = (part.transpose(0, 1).flatten(0, 1) for part in _draws(batching, batching.steps))
    else:
        place, count = _passes(batching, lambda step, row: begins[step] + row, length)
    return Plan(batching.order[batching.begin[row].unsqueeze(1) + place], count, active, start)


def plan_clients(batching: Batching, loop: Compiled | None = None) -> ClientPlan:
    """The batches of `plan_batches`, client by client. loop: what shuffles whole epochs faster, to the same end."""
    taken = batching.taken
    first = taken.cumsum(0) - taken
    length = int(taken.sum())
    if loop is not None and batching.epochs is not None and batching.course is None:
        index, count = loop.shuffle(_shuffles(batching, batching.epochs, first, length))
        return ClientPlan(index, count, first, taken)
    if batching.steps is not None:
        place, count = (part.flatten(0, 1) for part in _draws(batching, batching.steps))
    else:
        place, count = _passes(batching, lambda step, row: first[row] + step, length)
    owner = torch.repeat_interleave(taken)
    return ClientPlan(batching.order[batching.begin[owner].unsqueeze(1) + place], count, first, taken)


def _shuffles(batching: Batching, epochs: int, first: Tensor, length: int) -> Shuffles:
    """What a loop has to shuffle, with the words that name the draws."""
    clients = batching.clients
    owners, low, high = batching.streams.keyed("batches", clients)
    turns, low, high = (
        word if isinstance(word, Tensor) else torch.full_like(clients, word) for word in (batching.turn, low, high)
    )
    own = batching.order, batching.begin, batching.examples
    return Shuffles(owners, turns, low, high, *own, first, length, epochs, batching.batch_size)


def _passes(batching: Batching, row_of: Callable[[Tensor, Tensor], Tensor], length: int) -> tuple[Tensor, Tensor]:
    """Of every row of the plan, which of its client's examples it has, [R, B] (0 in padding), and how many, [R].

    row_of: the plan's row of a step of a client, by their numbers. length: R.
    """
    examples, course, width = batching.examples, batching.course, batching.batch_size
    passes = batching.epochs if course is None else course.passes
    assert passes is not None
    count = examples * passes
    keys = batching.streams.ragged_bits("batches", batching.clients, count, turn=batching.turn)
    device = examples.device
    # One element for each (client, epoch, example): its client's row, its place in its epoch, and a random key.
    row = torch.repeat_interleave(count)
    position = torch.arange(len(row), device=device) - torch.repeat_interleave(count.cumsum(0) - count, count)
    size = examples[row]
    epoch, slot = position // size, position % size
    epoch_begin = torch.arange(len(row), device=device) - slot
    if course is None:
        first = epoch * (-(-size // width))
    else:
        number = (course.passes.cumsum(0) - course.passes)[row] + epoch
        first_example = (examples.cumsum(0) - examples)[row]
        size = course.taken[number]
        # An example that is left out has a key above all others.
        keys = torch.where(course.rank[first_example + slot] < size, keys, 1 << 32)
        first = _first_steps(course, width)[number]
    # Sorting (epoch, key) shuffles every epoch; equal keys keep their order.
    shuffled = torch.sort((epoch_begin << 33) | keys, stable=True).indices - epoch_begin
    step = first + slot // width
    if course is not None:
        kept = (slot < size) & (step < course.steps[row])
        row, slot, size, shuffled, step = (values[kept] for values in (row, slot, size, shuffled, step))
    packed = row_of(step, row)
    column = slot % width
    place = torch.zeros(length * width, dtype=torch.int64, device=device)
    place[packed * width + column] = shuffled
    counts = torch.zeros(length, dtype=torch.int64, device=device)
    counts[packed] = torch.clamp(size - (slot - column), max=width)
    return place.view(length, width), counts


def _first_steps(course: Course, width: int) -> Tensor:
    """The step of its client at which each pass begins, int64 [sum of passes]."""
    steps = -(-course.taken // width)
    before = steps.cumsum(0) - steps
    first = course.passes.cumsum(0) - course.passes
    return before - torch.repeat_interleave(before[first], course.passes)


def _draws(batching: Batching, steps: int) -> tuple[Tensor, Tensor]:
    """The same for independent batches, [C, S, B] and [C, S]: Floyd's sampling without replacement, by columns.

    Column j of B draws t in 0 .. n-B+j and takes it, or n-B+j if t is taken already; every set of B is equally likely.
    """
    clients, examples, width = batching.clients, batching.examples, batching.batch_size
    number = len(clients)
    words = batching.streams.bits("batches", clients, steps * width, turn=batching.turn).view(number, steps, width)
    place = torch.empty_like(words)
    size = examples.view(-1, 1)
    # Where everybody has at most a batch, nothing is drawn.
    for column in range(width if bool((examples > width).any()) else 0):
        last = size - width + column
        drawn = (words[:, :, column] * (last + 1).clamp(min=1)) >> 32
        taken = (place[:, :, :column] == drawn.unsqueeze(2)).any(dim=2)
        place[:, :, column] = torch.where(taken, last, drawn)
    everything = torch.arange(width, device=clients.device).expand_as(place)
    few = (size <= width).unsqueeze(2)
    place = torch.where(few, torch.minimum(everything, (size - 1).unsqueeze(2)), place)
    return place, examples.clamp(max=width).unsqueeze(1).expand(number, steps)


def _coins(batching: Batching, capacity: int, owner: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """The same where coins decide, [R, capacity] and [R], of rows that are a step of a client each, int64 [R].

    FedsimError: more examples were drawn than there is room for, which must not be left out, lest the account is wrong.
    """
    device = owner.device
    place = torch.zeros((len(owner), capacity), dtype=torch.int64, device=device)
    counts = torch.zeros(len(owner), dtype=torch.int64, device=device)
    many = max(1, DRAWN // max(1, int(batching.examples.max()))) if len(owner) else 1
    for first in range(0, len(owner), many):
        who, number = owner[first : first + many], step[first : first + many]
        size = batching.examples[who]
        turn = batching.turn[who] if isinstance(batching.turn, Tensor) else batching.turn
        words = batching.streams.ragged_bits("coins", batching.clients[who], size, turn=turn, step=number)
        row = torch.repeat_interleave(size)
        slot = torch.arange(len(row), device=device) - (size.cumsum(0) - size)[row]
        heads = words * size[row] < batching.batch_size << 32
        row, slot = row[heads], slot[heads]
        count = torch.bincount(row, minlength=len(who))
        if int(count.max()) > capacity:
            raise FedsimError(f"a step drew {int(count.max())} examples, with room for {capacity}; take another seed")
        column = torch.arange(len(row), device=device) - (count.cumsum(0) - count)[row]
        place[first + row, column] = slot
        counts[first : first + many] = count
    # Padding stands on an example that was drawn, if one was: of no other may anything come through, not even a NaN.
    real = torch.arange(capacity, device=device) < counts.unsqueeze(1)
    return torch.where(real, place, place[:, :1]), counts


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
