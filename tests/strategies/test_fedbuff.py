"""FedBuff: who is in the buffer, from which model and with which weight; discounts of staleness."""

from __future__ import annotations

import pytest
import torch
from tallies import recorded, spread, taking, tally

from fedsim.core.clock import ticks
from fedsim.running.build import build_simulation
from fedsim.server.staleness import Constant, Hinge, Polynomial
from fedsim.testing.problems import small_experiment as small
from fedsim.testing.problems import small_problem

EVERYBODY = {"kind": "uniform", "fraction": 1.0}


@pytest.mark.parametrize(
    ("discount", "staleness", "factor"),
    [
        (Polynomial(), 0, 1.0),
        (Polynomial(), 3, 0.5),
        (Polynomial(exponent=1.0), 3, 0.25),
        (Polynomial(exponent=0.0), 7, 1.0),
        (Hinge(), 0, 1.0),
        (Hinge(), 4, 1.0),
        (Hinge(), 5, 1 / 11),
        (Hinge(slope=4.0, threshold=2), 4, 1 / 9),
        (Constant(), 9, 1.0),
    ],
)
def test_discounts(discount, staleness, factor):
    """(1 + 3)^-1/2 = 1/2; 1 / (10 (5 - 4) + 1) = 1/11; 1 / (4 (4 - 2) + 1) = 1/9."""
    found = discount.factor(torch.tensor([staleness, 0]))
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx([factor, 1.0])


def fast_and_slow(folder, **strategy):
    """A simulation of two clients that train on small batches and take 1 s and 0.3 s."""
    experiment = small(
        4,
        strategy={"kind": "fedbuff", **strategy},
        selection=EVERYBODY,
        devices=taking(folder, 1.0, 0.3),
        client={"kind": "sgd", "steps": 1, "batch_size": 2, "lr": 0.1},
    )
    return build_simulation(experiment, small_problem(sizes=(20, 20)))


def test_a_client_starts_again_at_once_and_may_be_in_a_buffer_twice(tmp_path):
    """Arrivals: 1 at 0.3, 0.6, 0.9, 0 at 1.0, 1 at 1.2 s. A buffer of two closes at 0.6 and at 1.0 s."""
    first, second = recorded(fast_and_slow(tmp_path, size=2))[:2]
    assert (first.now, second.now) == (ticks(0.6), ticks(1.0))
    assert first.replies.clients.tolist() == [1, 1]
    assert first.replies.versions.tolist() == [0, 0]
    # Both from the same model, but on other batches.
    assert torch.equal(first.replies.sent("params"), first.before.params.expand(2, -1))
    rows = first.replies.payload["delta"]
    assert not torch.allclose(rows[0], rows[1], rtol=1e-3)
    step = first.after.params - first.before.params
    assert torch.allclose(step, rows.mean(dim=0), rtol=1e-9, atol=1e-12)
    # Client 1 started again at 0.6 s, after the server's step; client 0 had started before it.
    assert second.replies.clients.tolist() == [0, 1]
    assert second.replies.versions.tolist() == [0, 1]
    assert second.replies.durations.tolist() == [ticks(1.0), ticks(0.3)]
    assert torch.equal(second.replies.sent("params"), torch.stack([first.before.params, first.after.params]))
    # s(1)/2 = 2^-1/2 / 2 and s(0)/2.
    factors = torch.tensor([0.5**0.5, 1.0], dtype=torch.float64, device=rows.device) / 2
    step = second.after.params - second.before.params
    assert torch.allclose(step, factors @ second.replies.payload["delta"], rtol=1e-9, atol=1e-12)


def test_with_restart_at_the_window_clients_wait_for_the_buffer(tmp_path):
    """A buffer of two closes at 1.0 with 1 (since 0.3) and 0; both start again then."""
    told = recorded(fast_and_slow(tmp_path, size=2, restart="window"))
    assert [moment.now for moment in told] == [ticks(number) for number in (1, 2, 3, 4)]
    for number, moment in enumerate(told):
        assert moment.replies.clients.tolist() == [0, 1]
        assert moment.replies.versions.tolist() == [number, number]


@pytest.mark.parametrize("restart", ["arrival", "window"])
def test_who_arrives_with_a_full_buffer_is_in_the_next(restart):
    """Five equal clients, buffers of two: 0, 1 and 2, 3 at 1 s; then 4, who was there at 1 s too, with 0 at 2 s.

    The fifth has 3, who came at 2 s. On arrival 4 has started again at 1 s, so that it is there at 2 s, too; else only
    when its buffer has closed, at 2 s, so that the fifth waits for 0 at 3 s.
    """
    strategy = {"kind": "fedbuff", "size": 2, "restart": restart, "staleness": "constant"}
    told = recorded(tally(5, rounds=5, strategy=strategy, selection=EVERYBODY, devices=spread(0)))
    arrival = restart == "arrival"
    last = [3, 4] if arrival else [0, 3]
    assert [moment.replies.clients.tolist() for moment in told] == [[0, 1], [2, 3], [0, 4], [1, 2], last]
    assert [moment.now for moment in told] == [ticks(second) for second in (1, 1, 2, 2, 2 if arrival else 3)]
    # Who fills a buffer starts with its step done; on arrival, who does not fill it starts from the step before.
    versions = [[0, 0], [0, 0], [0, 0], [1, 1], [2, 2]] if arrival else [[0, 0], [0, 0], [1, 0], [1, 2], [3, 2]]
    assert [moment.replies.versions.tolist() for moment in told] == versions


def test_identical_weights_are_one_over_the_size_and_discounts_multiply_them():
    """tau = 1, 0.5 s: 1 at 0.5, then 0 and 1 at 1.0, and so on; size 1 makes every reply a step.

    Client 0's reply is one step old at first and two later (two of client 1's since), client 1's none or one.
    """
    strategy = {"kind": "fedbuff", "size": 1}
    told = recorded(tally(2, rounds=31, strategy=strategy, selection=EVERYBODY, devices=spread(50)))
    total = torch.zeros(2, dtype=torch.float64)
    for moment in told:
        for client, stale in zip(moment.replies.clients.tolist(), moment.replies.staleness.tolist(), strict=True):
            total[client] += (1 + stale) ** -0.5
    assert told[-1].after.params.tolist() == pytest.approx(total.tolist())
    assert {stale for moment in told for stale in moment.replies.staleness.tolist()} == {0, 1, 2}
