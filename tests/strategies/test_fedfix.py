"""FedFix: who is taken in which window, from which model, and what is sent next."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from tallies import Recorder, recorded, spread, taking, tally, taus

from fedsim.core.clock import ticks
from fedsim.running.build import build_simulation
from fedsim.testing.problems import small_experiment as small
from fedsim.testing.problems import small_problem

EVERYBODY = {"kind": "uniform", "fraction": 1.0}


@pytest.mark.parametrize("weights", ["unbiased", "identical"])
@pytest.mark.parametrize(
    ("population", "percent", "window"), [(20, 80, 0.2), (20, 80, 0.5), (11, 50, 0.1), (5, 80, 0.3), (5, 0, 0.4)]
)
def test_every_reply_is_c_minus_one_rounds_stale(population, percent, window, weights):
    strategy = {"kind": "fedfix", "window": window, "weights": weights}
    told = recorded(tally(population, rounds=40, strategy=strategy, selection=EVERYBODY, devices=spread(percent)))
    count = [math.ceil(tau / Fraction(str(window))) for tau in taus(population, percent)]
    seen = set()
    for number, moment in enumerate(told, 1):
        assert moment.now == number * ticks(window)
        for client, stale in zip(moment.replies.clients.tolist(), moment.replies.staleness.tolist(), strict=True):
            assert stale == count[client] - 1
            seen.add(client)
    assert seen == set(range(population))


@pytest.mark.parametrize(
    ("tau", "window", "number"),
    [
        # Whole quotients, which floating point misses: 0.1 + 0.1 + 0.1 > 0.3, 0.7 / 0.1 < 7.
        (0.3, 0.1, 3),
        (0.7, 0.1, 7),
        (0.6, 0.2, 3),
        (0.9, 0.3, 3),
        (1.1, 0.1, 11),
        (2.3, 0.1, 23),
        (0.1, 0.1, 1),
        # One tick later, and one earlier.
        (0.300000001, 0.1, 4),
        (0.299999999, 0.1, 3),
    ],
)
def test_a_reply_that_is_due_when_the_window_ends_is_in_it(tmp_path, tau, window, number):
    """Also the thirtieth: client 0 is taken in each `number`-th window and in no other."""
    strategy = {"kind": "fedfix", "window": window}
    simulated = tally(2, rounds=30 * number, strategy=strategy, selection=EVERYBODY, devices=taking(tmp_path, tau, 5.0))
    taken = [moment.after.round for moment in recorded(simulated) if 0 in moment.replies.clients.tolist()]
    assert taken == [number * place for place in range(1, 31)]


def test_a_client_is_not_interrupted_and_its_change_is_from_the_model_it_was_sent():
    """tau = 1 s, windows of 0.4 s: client 0 is taken in the third, at 1.2 s, trained from theta^0, and sent theta^3."""
    experiment = small(
        3, strategy={"kind": "fedfix", "window": 0.4}, selection=EVERYBODY, devices=spread(80), evaluation={"every": 0}
    )
    simulated, alone = build_simulation(experiment, small_problem()), build_simulation(experiment, small_problem())
    start = simulated.state.params
    told = recorded(simulated)
    assert [0 in moment.replies.clients.tolist() for moment in told] == [False, False, True]
    third = told[2]
    assert third.now == ticks(1.2)
    assert torch.equal(third.replies.sent("params")[0], start)
    assert not torch.equal(start, third.before.params)
    # Its own work from theta^0, in the first round.
    executor = alone.parts.engine.executor
    orders, _ = alone.parts.strategy.ask(alone.state, torch.tensor([0]))
    delta = executor.execute(executor.assign(orders)).payload["delta"][0]
    assert torch.equal(third.replies.payload["delta"][0], delta)
    # d_i = p_i c_i with p = n / 37: c = 3 for 1 and 0.84 s, 2 for 0.68, 0.52 s, 1 for 0.36 and 0.2 s; clients 2 and 3
    # are taken in windows 2 and 4.
    assert third.replies.clients.tolist() == [0, 1, 4, 5]
    weights = torch.tensor([7 * 3, 3 * 3, 5, 9], dtype=torch.float64, device=delta.device) / 37
    step = third.after.params - third.before.params
    assert torch.allclose(step, weights @ third.replies.payload["delta"], rtol=1e-6, atol=1e-9)
    sent = third.after
    assert sent.round == 3
    orders, _ = simulated.parts.strategy.ask(sent, torch.tensor([0]))
    assert orders.round == 3
    assert torch.equal(orders.payload["params"], third.after.params)


def test_clients_start_again_when_the_window_has_closed_and_only_those_that_were_taken():
    """c = 3, 3, 2, 2, 1, 1 for tau from 1 to 0.2 s in windows of 0.4 s."""
    simulated = tally(6, rounds=6, strategy={"kind": "fedfix", "window": 0.4}, selection=EVERYBODY, devices=spread(80))
    recorder = Recorder(simulated)
    ask, sent = recorder.ask, []
    recorder.ask = lambda state, chosen: sent.append((state.round, chosen.tolist())) or ask(state, chosen)
    for _ in simulated:
        pass
    assert sent == [
        (0, [0, 1, 2, 3, 4, 5]),
        (1, [4, 5]),
        (2, [2, 3, 4, 5]),
        (3, [0, 1, 4, 5]),
        (4, [2, 3, 4, 5]),
        (5, [4, 5]),
    ]
    for moment, (number, _) in zip(recorder.told, sent, strict=True):
        assert moment.before.round == number


def test_windows_in_which_nothing_arrives_pass_and_leave_the_model():
    """tau = 1 s in windows of 0.3 s: c = 4, and windows 1 to 3 are empty."""
    told = recorded(tally(3, rounds=4, strategy={"kind": "fedfix", "window": 0.3}, selection=EVERYBODY))
    assert [len(moment.replies) for moment in told] == [0, 0, 0, 3]
    assert [moment.now for moment in told] == [ticks(0.3), ticks(0.6), ticks(0.9), ticks(1.2)]
    assert [bool(moment.after.params.any()) for moment in told] == [False, False, False, True]
    # d_i = p c = 4/3.
    assert told[3].after.params.tolist() == pytest.approx([4 / 3] * 3)
