"""Batches by coins: every example by its own, in every step."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fedsim.core.errors import FedsimError
from fedsim.core.streams import Streams
from fedsim.engine import batches
from fedsim.engine.batches import Batching, plan_batches


def batching(examples: list[int], steps: int, width: int, capacity: int) -> Batching:
    sizes = torch.tensor(examples)
    order = torch.arange(int(sizes.sum()))
    begin = sizes.cumsum(0) - sizes
    return Batching(Streams(1), torch.arange(len(sizes)), order, begin, sizes, None, steps, width, 0, None, capacity)


def test_each_example_is_in_a_step_with_the_same_probability():
    """3 of 12, over 3,000 steps: 0.25 with a deviation of 0.008, and the number drawn has that of a binomial, 1.5."""
    plan = plan_batches(batching([12], 3000, 3, 12))
    real = torch.arange(12) < plan.count.unsqueeze(1)
    share = torch.bincount(plan.index[real], minlength=12) / 3000
    assert torch.allclose(share, torch.full((12,), 0.25), atol=0.04)
    assert float(plan.count.double().mean()) == pytest.approx(3.0, abs=0.12)
    assert float(plan.count.double().std()) == pytest.approx(1.5, abs=0.08)
    assert int(plan.count.min()) == 0  # with probability 0.032
    assert plan.expected is not None
    assert set(plan.expected.tolist()) == {3}
    weights = plan.weights(torch.float64)
    assert torch.equal(weights, real.double() / 3)
    assert all(len(set(row[:count].tolist())) == count for row, count in zip(plan.index, plan.count, strict=True))


def test_a_client_draws_the_same_in_any_company_however_many_coins_are_thrown_at_once(monkeypatch):
    whole = batching([9, 7, 5], 20, 2, 9)
    plan = plan_batches(whole)
    for row in range(3):
        part = slice(row, row + 1)
        own = {name: getattr(whole, name)[part] for name in ("clients", "begin", "examples")}
        alone = plan_batches(replace(whole, **own))
        assert torch.equal(alone.index, plan.index[row::3])
        assert torch.equal(alone.count, plan.count[row::3])
    monkeypatch.setattr(batches, "DRAWN", 20)
    assert torch.equal(plan_batches(whole).index, plan.index)


def test_who_has_no_more_than_a_batch_has_all_of_it_in_order():
    plan = plan_batches(batching([4, 3], 2, 4, 4))
    assert plan.count.tolist() == [4, 3, 4, 3]
    assert plan.index.tolist()[:2] == [[0, 1, 2, 3], [4, 5, 6, 4]]


def test_padding_stands_on_an_example_that_was_drawn():
    plan = plan_batches(batching([12], 200, 3, 12))
    for index, count in zip(plan.index.tolist(), plan.count.tolist(), strict=True):
        assert not count or set(index[count:]) <= {index[0]}


def test_more_than_there_is_room_for_is_an_error():
    with pytest.raises(FedsimError, match=r"a step drew \d+ examples, with room for 2; take another seed"):
        plan_batches(batching([12], 200, 3, 2))
