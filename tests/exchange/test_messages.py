"""Orders, replies and what is made of them."""

from __future__ import annotations

import math

import pytest
import torch

from fedsim.exchange.aggregation import Median
from fedsim.exchange.messages import Order, Replies, finite_rows, joined, payload_bytes


def orders(number: int, clients: list[int], value: float = 0.0, **options) -> Order:
    return Order("train", torch.tensor(clients), {"params": torch.full((2,), value)}, round=number, **options)


def replies(clients: list[int], rows: list[list[float]], **fields) -> Replies:
    """Replies to one order of round 0, in round 0."""
    count = len(clients)
    defaults = {
        "payload": {"delta": torch.tensor(rows, dtype=torch.float64).reshape(count, 2)},
        "metrics": {"loss": torch.arange(1.0, count + 1.0)} if count else {},
        "examples": torch.tensor([10 * (client + 1) for client in clients], dtype=torch.int64),
        "failed": torch.zeros(0, dtype=torch.int64),
        "round": 0,
        "versions": torch.zeros(count, dtype=torch.int64),
        "durations": torch.arange(1, count + 1),
        "orders": [orders(0, clients)],
        "origin": [0] * count,
    }
    return Replies(torch.tensor(clients, dtype=torch.int64), **(defaults | fields))


def test_bytes_are_those_of_the_payload_unless_transforms_say_otherwise():
    """Two floats of 4 bytes, and one number of 8."""
    payload = {"a": torch.zeros(2), "b": torch.zeros((), dtype=torch.int64)}
    assert payload_bytes(payload) == 16
    assert orders(0, [1]).nbytes == 8
    assert orders(0, [1], encoded=3).nbytes == 3
    assert orders(0, [1], encoded=0).nbytes == 0


def test_clients_draw_under_the_round_unless_told_another_number():
    assert orders(7, [1]).turn == 7
    assert orders(7, [1], turn=0).turn == 0


def test_staleness_is_counted_from_the_version_to_the_servers_round():
    found = replies([1, 2, 4], [[0, 0]] * 3, round=5, versions=torch.tensor([5, 3, 0]))
    assert found.staleness.tolist() == [0, 2, 5]


def test_weights_by_examples_or_the_same():
    """20, 30 and 50 examples."""
    found = replies([1, 2, 4], [[0, 0]] * 3)
    assert found.weights("examples").tolist() == pytest.approx([0.2, 0.3, 0.5], rel=1e-12)
    assert found.weights("uniform").tolist() == pytest.approx([1 / 3] * 3, rel=1e-12)
    assert found.weights("examples").dtype == torch.float64


def test_the_combination_is_the_weighted_sum_times_the_scale():
    """2 x (0.5 (1, 2) + 1.5 (3, 4)) = (10, 14), for weights that sum to 2."""
    found = replies([0, 1], [[1, 2], [3, 4]])
    weights = torch.tensor([0.5, 1.5], dtype=torch.float64)
    assert found.combine(weights, 2.0).tolist() == pytest.approx([10.0, 14.0])
    assert found.combine(weights, rows=2 * found.payload["delta"]).tolist() == pytest.approx([10.0, 14.0])


def test_a_robust_centre_is_stepped_to_with_the_length_that_the_weights_say():
    """The median of three rows is (3, 4), the weights sum to 2."""
    found = replies([0, 1, 2], [[1, 9], [3, 4], [50, 2]], aggregator=Median())
    weights = torch.tensor([0.5, 1.0, 0.5], dtype=torch.float64)
    assert found.combine(weights).tolist() == pytest.approx([6.0, 8.0])


def test_nothing_combines_to_zero():
    nobody = replies([], [])
    assert nobody.combine(torch.zeros(0, dtype=torch.float64)).tolist() == [0.0, 0.0]
    assert nobody.mean("loss") is None
    assert len(nobody) == 0


def test_means_of_metrics_are_weighted_by_examples():
    """Losses 1, 2, 3 at 20, 30, 50 examples: (20 + 60 + 150) / 100."""
    found = replies([1, 2, 4], [[0, 0]] * 3)
    assert found.mean("loss") == pytest.approx(2.3)
    assert found.mean("accuracy") is None


def test_a_part_of_the_replies_has_its_own_rows_of_everything():
    first, second = orders(0, [1, 4], 0.5), orders(2, [2], 2.5)
    whole = replies(
        [1, 2, 4],
        [[1, 1], [2, 2], [4, 4]],
        round=3,
        versions=torch.tensor([0, 2, 0]),
        orders=[first, second],
        origin=[0, 1, 0],
    )
    part = whole.where(torch.tensor([False, True, True]))
    assert part.clients.tolist() == [2, 4]
    assert part.payload["delta"].tolist() == [[2, 2], [4, 4]]
    assert part.metrics["loss"].tolist() == [2, 3]
    assert part.examples.tolist() == [30, 50]
    assert part.staleness.tolist() == [1, 3]
    assert part.durations.tolist() == [2, 3]
    assert part.sent("params").tolist() == [[2.5, 2.5], [0.5, 0.5]]


def test_all_of_the_replies_are_these_themselves_and_their_rows_are_not_copied():
    whole = replies([1, 2], [[1.0, 2.0], [3.0, 4.0]])
    assert whole.where(torch.tensor([True, True])) is whole


def test_replies_of_several_windows_as_those_of_one():
    """Client 3 is in two windows and keeps their order; windows without replies count, too."""
    late = replies(
        [1, 3],
        [[10, 10], [30, 30]],
        round=4,
        versions=torch.tensor([2, 3]),
        orders=[orders(2, [1], 0.2), orders(3, [3], 0.3)],
        origin=[0, 1],
        failed=torch.tensor([0]),
    )
    early = replies([3], [[3, 3]], round=4, orders=[orders(0, [3], 0.1)], failed=torch.tensor([7]))
    nobody = replies([], [], round=4, failed=torch.tensor([5]), orders=[], origin=[])
    whole = joined([nobody, early, late])
    assert whole.clients.tolist() == [1, 3, 3]
    assert whole.payload["delta"].tolist() == [[10, 10], [3, 3], [30, 30]]
    assert whole.versions.tolist() == [2, 0, 3]
    assert whole.staleness.tolist() == [2, 4, 1]
    assert whole.failed.tolist() == [0, 5, 7]
    assert whole.examples.tolist() == [20, 40, 40]
    assert whole.metrics["loss"].tolist() == [1, 1, 2]
    assert whole.durations.tolist() == [1, 1, 2]
    assert whole.sent("params")[:, 0].tolist() == pytest.approx([0.2, 0.1, 0.3])
    assert len(joined([nobody, nobody])) == 0
    assert joined([nobody, nobody]).failed.tolist() == [5, 5]
    assert joined([late]) is late


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_rows_that_are_not_finite_are_found_in_any_tensor(bad):
    first, second = torch.zeros(4, 3), torch.zeros(4, 2, 2)
    first[1, 2] = second[3, 0, 1] = bad
    assert finite_rows([first, second], first).tolist() == [True, False, True, False]
    assert finite_rows([first], first).tolist() == [True, False, True, True]


def test_rows_whose_sum_is_too_large_are_finite():
    huge = torch.full((2, 3), 3e38)
    assert not torch.isfinite(huge.sum())
    assert finite_rows([huge], huge).tolist() == [True, True]
