"""FedAvg with clients that are slow: deadlines and over-selection."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tallies import Recorder, recorded, spread, taking, tally

import fedsim
from fedsim.core.clock import ticks
from fedsim.exchange.windows import All
from fedsim.running.build import build_simulation
from fedsim.running.simulation import Simulation
from fedsim.testing.problems import DEVICE, blobs, mlp
from fedsim.testing.problems import small_experiment as small

EVERYBODY = {"kind": "uniform", "fraction": 1.0}


def final(simulated: Simulation) -> torch.Tensor:
    for _ in simulated:
        pass
    return simulated.state.params


def test_exactly_the_first_replies_are_used_and_the_others_counted_late():
    """Of four selected clients, the smaller id is the slower: the two largest are used, at the third's time."""
    simulated = tally(
        8,
        rounds=25,
        strategy={"kind": "fedavg", "first": 2},
        selection={"kind": "uniform", "count": 4},
        devices=spread(80),
    )
    recorder = Recorder(simulated)
    ask, chosen = recorder.ask, []
    recorder.ask = lambda state, clients: chosen.append(clients.tolist()) or ask(state, clients)
    rows = list(simulated)
    assert len({tuple(clients) for clients in chosen}) > 10
    before = 0
    for moment, clients in zip(recorder.told, chosen, strict=True):
        assert moment.replies.clients.tolist() == clients[2:]
        assert moment.now - before == int(moment.replies.durations[0])
        before = moment.now
    ledger = simulated.parts.engine.ledger
    assert (ledger.clients, ledger.late, ledger.failed) == (50, 50, 0)
    assert (ledger.bytes_down, ledger.bytes_up) == (25 * 4 * 8 * 8, 25 * 2 * 8 * 8)
    assert [row["late"] for row in rows] == [2] * 25
    assert simulated.state.params.sum() == pytest.approx(25, rel=1e-6)


def test_the_first_by_the_deadline():
    """tau = 1, 0.8, 0.6, 0.4, 0.2 s: at 0.5 s two are in; the first two at 0.4 s; nobody waits for a third."""
    for options, time, clients in (
        ({"deadline": 0.5, "first": 3}, 0.5, [3, 4]),
        ({"deadline": 0.5, "first": 2}, 0.4, [3, 4]),
        ({"deadline": 0.4}, 0.4, [3, 4]),
        ({"deadline": 0.399999999}, 0.399999999, [4]),
        ({"deadline": 7.0}, 1.0, [0, 1, 2, 3, 4]),
        ({"first": 5}, 1.0, [0, 1, 2, 3, 4]),
    ):
        simulated = tally(5, rounds=1, strategy={"kind": "fedavg", **options}, selection=EVERYBODY, devices=spread(80))
        (moment,) = recorded(simulated)
        assert moment.replies.clients.tolist() == clients
        assert moment.now == ticks(time)


def test_the_first_where_all_arrive_at_once_are_those_with_the_smallest_ids():
    (moment,) = recorded(tally(5, rounds=1, strategy={"kind": "fedavg", "first": 3}, selection=EVERYBODY))
    assert moment.replies.clients.tolist() == [0, 1, 2]


def test_late_clients_are_free_in_the_next_round(tmp_path):
    """tau = 3, 1, 1 s; a deadline of 1 s: client 0 starts anew in every round and is never in time."""
    strategy = {"kind": "fedavg", "deadline": 1.0}
    simulated = tally(3, rounds=4, strategy=strategy, selection=EVERYBODY, devices=taking(tmp_path, 3.0, 1.0, 1.0))
    assert final(simulated).tolist() == pytest.approx([0.0, 2.0, 2.0])
    assert simulated.parts.engine.ledger.late == 4
    assert simulated.parts.engine.ledger.bytes_down == 4 * 3 * 3 * 8
    trace = simulated.parts.engine.trace.summary([1 / 3] * 3, simulated.parts.engine.now)
    own = [(entry["start"], entry["end"], entry["outcome"]) for entry in trace["timeline"] if entry["client"] == 0]
    assert own == [(float(number), float(number + 1), "cancelled") for number in range(4)]


@pytest.mark.parametrize("kind", ["fedavg", "scaffold"])
def test_cancelled_work_changes_neither_the_model_nor_what_clients_remember(kind, tmp_path):
    """Clients 0 and 3 are late in rounds of 0.5 s: whatever their examples, the run is the same to the last bit."""
    client = {"kind": {"fedavg": "sgd"}.get(kind, kind), "epochs": 2, "batch_size": 4, "lr": 0.1}
    devices = taking(tmp_path, 1.0, 0.2, 0.3, 1.0, 0.4, 0.5)
    experiment = small(4, strategy={"kind": kind}, client=client, selection=EVERYBODY, devices=devices)
    params, remembered = [], []
    for factor in (1.0, 100.0):
        data = blobs()
        data["x"][np.concatenate([data["clients"][0], data["clients"][3]])] *= factor
        problem = fedsim.supervised(**data, model=mlp(), dtype=torch.float64, device=DEVICE)
        simulated = build_simulation(experiment, problem)
        recorder = Recorder(simulated)
        ask = recorder.ask
        recorder.ask = lambda state, chosen, ask=ask: (ask(state, chosen)[0], All(0.5))
        params.append(final(simulated))
        remembered.append(simulated.parts.engine.executor.store.snapshot())
        assert simulated.parts.engine.now == ticks(2.0)
    assert torch.equal(*params)
    if kind == "scaffold":
        first, second = remembered
        assert first["clients"].sort().values.tolist() == [1, 2, 4, 5]
        assert torch.equal(first["clients"], second["clients"])
        assert torch.equal(first["control"], second["control"])
