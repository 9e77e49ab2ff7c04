"""The plan of mini-batches: what each client sees, in words of a plain loop."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from fedsim.core.streams import Streams
from fedsim.engine.batches import Batching, ClientPlan, Course, Plan, plan_batches, plan_clients
from fedsim.nets import fused as module
from fedsim.nets.fused import fused
from fedsim.nets.losses import CrossEntropy
from fedsim.nets.stack import Layout
from fedsim.running.lockstep import JointStreams

SIZES = torch.tensor([9, 7, 4, 1])
ORDER = torch.arange(100, 121)
BEGIN = SIZES.cumsum(0) - SIZES
CLIENTS = torch.tensor([5, 2, 8, 3])


def batching(**settings: Any) -> Batching:
    return Batching(Streams(0), CLIENTS, ORDER, BEGIN, SIZES, turn=1, **settings)


def plan(**settings: Any) -> Plan:
    return plan_batches(batching(**settings))


def batches_of(made: Plan, row: int) -> list[list[int]]:
    """The examples of each step of one client, padding left out."""
    found = []
    for start, active in zip(made.start, made.active, strict=True):
        if row < active:
            found.append(made.index[start + row][: made.count[start + row]].tolist())
    return found


def test_an_epoch_sees_each_example_once_and_keeps_the_last_partial_batch():
    made = plan(epochs=2, steps=None, batch_size=4)
    for row, size in enumerate(SIZES.tolist()):
        own = ORDER[BEGIN[row] : BEGIN[row] + size].tolist()
        batches = batches_of(made, row)
        half = len(batches) // 2
        for epoch in (batches[:half], batches[half:]):
            assert sorted(example for batch in epoch for example in batch) == own
            assert [len(batch) for batch in epoch] == [4] * (size // 4) + ([size % 4] if size % 4 else [])


def test_active_clients_are_a_prefix_that_shrinks():
    # Steps: 2 x ceil(n / 4) = 6, 4, 2, 2.
    assert plan(epochs=2, steps=None, batch_size=4).active == [4, 4, 2, 2, 1, 1]


def test_weights_of_a_row_are_one_over_its_count():
    made = plan(epochs=1, steps=None, batch_size=4)
    weights = made.weights(torch.float64)
    assert torch.equal((weights > 0).sum(dim=1), made.count)
    assert torch.allclose(weights.sum(dim=1), torch.ones(len(weights), dtype=torch.float64))
    assert set(made.count.tolist()) == {4, 3, 1}


def test_a_step_is_padded_where_a_row_of_it_is():
    # Of 9, 7, 4 and 1 examples batches of 4 have 4, 4, 4, 1 at the first step, then 4, 3, and last 1.
    assert plan(epochs=1, steps=None, batch_size=4).padded() == [True, True, True]
    whole = plan(epochs=1, steps=None, batch_size=1)
    assert whole.padded() == [False] * 9
    drawn = batching(epochs=None, steps=2, batch_size=4)
    assert plan_batches(replace(drawn, examples=torch.full((4,), 4), begin=torch.arange(4))).padded() == [False, False]
    two = replace(batching(epochs=2, steps=None, batch_size=4), examples=torch.tensor([8, 7, 4, 1]))
    assert plan_batches(two).padded() == [True, True, False, True]


def test_epochs_and_rounds_and_clients_shuffle_differently():
    made = plan(epochs=2, steps=None, batch_size=9)
    first, second = batches_of(made, 0)
    assert first != second
    assert first != sorted(first)
    ranks = [[example - int(BEGIN[row]) - 100 for example in batches_of(made, row)[0]][:4] for row in (0, 1)]
    assert ranks[0] != ranks[1]


def test_steps_draw_independent_batches_without_replacement():
    made = plan(epochs=None, steps=6, batch_size=4)
    assert made.active == [4] * 6
    for row, size in enumerate(SIZES.tolist()):
        own = set(ORDER[BEGIN[row] : BEGIN[row] + size].tolist())
        batches = batches_of(made, row)
        for batch in batches:
            assert len(batch) == len(set(batch)) == min(4, size)
            assert set(batch) <= own
        if size > 4:
            assert len({tuple(sorted(batch)) for batch in batches}) > 1


def test_rows_that_are_not_sorted_are_refused():
    with pytest.raises(ValueError, match="longest first"):
        plan_batches(replace(batching(epochs=1, steps=None, batch_size=2), examples=SIZES.flip(0)))


COURSE = Course(
    rank=torch.cat([torch.arange(size).flip(0) for size in SIZES.tolist()]),
    passes=torch.tensor([2, 2, 1, 1]),
    taken=torch.tensor([9, 3, 5, 7, 2, 1]),
    steps=torch.tensor([4, 4, 1, 1]),
)


def by_client(made: Plan) -> list[tuple[list[list[int]], list[int]]]:
    rows = [
        torch.tensor([start + row for start, active in zip(made.start, made.active, strict=True) if row < active])
        for row in range(len(SIZES))
    ]
    return [(made.index[own].tolist(), made.count[own].tolist()) for own in rows]


def listed(made: ClientPlan) -> list[tuple[list[list[int]], list[int]]]:
    each = zip(torch.split(made.index, made.steps.tolist()), torch.split(made.count, made.steps.tolist()), strict=True)
    assert made.first.tolist() == [0, *made.steps.cumsum(0)[:-1].tolist()]
    return [(index.tolist(), count.tolist()) for index, count in each]


@pytest.mark.parametrize("batch_size", [1, 4, 9])
@pytest.mark.parametrize(
    "passes", [{"epochs": 3}, {"steps": 6}, {"course": COURSE}], ids=["epochs", "steps", "course"]
)  # fmt: skip
def test_batches_client_by_client_are_those_step_by_step(passes, batch_size):
    if "course" in passes and batch_size == 1:
        batch_size = 2  # of one there would be more steps
    settings = {"epochs": None, "steps": None, "batch_size": batch_size, **passes}
    found = plan_clients(batching(**settings))
    assert listed(found) == by_client(plan(**settings))


@pytest.mark.xdist_group("fused")
@pytest.mark.parametrize("batch_size", [1, 4, 400])
@pytest.mark.parametrize("turn", [3, torch.tensor([2**31, 7, 7, 1, 0])], ids=["one", "each"])
@pytest.mark.parametrize("streams", [Streams(5), JointStreams((4, 9), 50)], ids=["one", "joint"])
def test_compiled_shuffles_are_the_plain_ones(streams, turn, batch_size, monkeypatch):
    pytest.importorskip("numba")
    sizes = torch.tensor([3, 0, 301, 1, 77])
    order = torch.randperm(400, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Linear(2, 2))
    layout, x = Layout.of(dict(model.named_parameters())), torch.zeros(1, 2)
    loop = fused(model, layout, CrossEntropy(), x, torch.zeros(1, dtype=torch.int64))
    monkeypatch.setattr(module, "WORTH_SHUFFLING", 0)
    plain, compiled = (
        plan_clients(
            Batching(
                *(streams, torch.tensor([5, 90, 8, 3, 61]), order, sizes.cumsum(0) - sizes, sizes),
                epochs=3, steps=None, batch_size=batch_size, turn=turn,
            ),
            own,
        )
        for own in (None, loop)
    )  # fmt: skip
    for name in ("index", "count", "first", "steps"):
        assert torch.equal(getattr(plain, name), getattr(compiled, name))


def test_independent_batches_are_fair_and_the_same_in_any_company():
    """3 of 5 examples, 2,000 times: each of 10 sets has mean 200 and deviation 13.4; five of these are 67."""
    together = plan_batches(Batching(
        Streams(0), torch.tensor([4, 9]), torch.arange(10), torch.tensor([0, 5]), torch.tensor([5, 5]),
        epochs=None, steps=2000, batch_size=3, turn=0,
    ))  # fmt: skip
    alone = plan_batches(Batching(
        Streams(0), torch.tensor([9]), torch.arange(10), torch.tensor([5]), torch.tensor([5]),
        epochs=None, steps=2000, batch_size=3, turn=0,
    ))  # fmt: skip
    assert torch.equal(together.index[1::2], alone.index)
    counts = Counter(tuple(sorted(batch)) for batch in alone.index.tolist())
    assert len(counts) == 10
    assert all(len(set(batch)) == 3 and abs(count - 200) < 67 for batch, count in counts.items())
