"""Gradient coding: exact steps of the full gradient, whoever is late, in the time that is reckoned for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedsim.coding import Cluster, simulate
from fedsim.core.clock import ticks
from fedsim.core.errors import InputError, StalledError
from fedsim.core.streams import Streams
from fedsim.devices.compute import Bursty
from fedsim.problems.supervised import Supervised
from fedsim.running.build import build_simulation
from fedsim.running.simulation import Simulation
from fedsim.server import scheme_of
from fedsim.testing.problems import small_experiment, small_problem
from fedsim.testing.rounds import exchange, fail
from strategies import gradient_coding
from strategies.gradient_coding import GradientCoding

ALL = {"kind": "uniform", "fraction": 1.0}
BURSTY = {"kind": "bursty", "seconds": 0.1, "slowdown": 5.0, "enter": 0.2, "leave": 0.7}
DEVICES = {"compute": BURSTY, "per": "step", "overhead": 10.0}
N, D, K = 6, 83, 8
CODES: dict[str, dict[str, Any]] = {
    "nobody": {"kind": "gc", "stragglers": 0},
    "cyclic": {"kind": "gc", "stragglers": 2},
    "repetition": {"kind": "gc", "stragglers": 1, "code": "repetition"},
    "repeating": {"kind": "sr_sgc", "burst": 1, "window": 2, "most": 3},
    "multiplexed": {"kind": "m_sgc", "burst": 1, "window": 2, "most": 2},
    "longer": {"kind": "m_sgc", "burst": 2, "window": 3, "most": 3},
}


def made(code: dict[str, Any], rounds: int = K, problem: Supervised | None = None, **tables: Any) -> Simulation:
    strategy = {"kind": "gradient_coding", "server_lr": 0.5, "code": code, **tables.pop("strategy", {})}
    tables = {"client": "gradient_coding", "selection": ALL, "devices": DEVICES, **tables}
    experiment = small_experiment(rounds, strategy=strategy, **tables)
    return build_simulation(experiment, small_problem(torch.float64) if problem is None else problem)


def descent(rounds: int) -> list[Tensor]:
    """Gradient descent on all examples: the model after 0, 1, ... rounds."""
    client = {"kind": "sgd", "steps": 1, "batch_size": "full", "lr": 0.5}
    experiment = small_experiment(rounds, strategy="fedavg", client=client, selection=ALL)
    simulation = build_simulation(experiment, small_problem(torch.float64))
    found = [simulation.state.params]
    for _ in simulation:
        found.append(simulation.state.params)
    return found


@pytest.mark.parametrize("name", CODES)
def test_every_model_goes_down_the_full_gradient_whoever_is_late(name):
    simulation, exact = made(CODES[name]), descent(K)
    delay = scheme_of(simulation.parts.strategy.code, N, 0).delay
    late = 0
    for number, row in enumerate(simulation):
        late += row["late"]
        # Job t is the step that its model, one of T + 1, takes after t // (T + 1) others; it is known T rounds later.
        steps = max(0, number - delay) // (delay + 1) + (number >= delay)
        torch.testing.assert_close(simulation.state.params, exact[steps], rtol=0.0, atol=1e-11)
        assert row.get("undecoded", 0.0) == 0.0
        assert ("train_loss" in row) == (number >= delay)
    assert (late > 0) == (name != "nobody"), "nobody was late, so nothing is shown"


@pytest.mark.parametrize("name", CODES)
def test_rounds_end_when_the_simulation_of_codes_says(name):
    simulation = made(CODES[name])
    scheme = scheme_of(simulation.parts.strategy.code, N, 0)
    slow = Bursty(**{option: value for option, value in BURSTY.items() if option != "kind"}).slow(N, Streams(0))
    timed = simulate(scheme, Cluster(1.0, 0.1, 5.0, 1.0), slow, K + 4)
    # Chunks have whole numbers of examples, 92 in all, and what is simulated has shares.
    assert [row["time"] for row in simulation] == pytest.approx(timed.ends[:K], rel=0.01)


def test_the_mean_loss_and_the_load_are_told():
    simulation = made(CODES["cyclic"], rounds=1, devices={})
    problem = simulation.parts.problem
    before = simulation.state.params
    (row,) = simulation
    losses = problem.losses(before, torch.arange(N), None, Streams(0), 0)[:, 0]
    assert row["train_loss"] == pytest.approx(float((losses * problem.sizes).sum() / problem.sizes.sum()), abs=1e-12)
    # All six answer at once, each with 3 of 6 chunks.
    assert row["load"] == pytest.approx(3.0)


def test_bytes_are_models_tasks_and_results():
    (row,) = made(CODES["cyclic"], rounds=1, devices={})
    assert row["bytes_up"] == N * 8 * (D + 1)
    # The model, where 6 chunks end, and of the only slot its age, 3 chunks and 3 factors.
    assert row["bytes_down"] == N * 8 * (D + 6 + 1 + 3 + 3)
    (row,) = made(CODES["longer"], rounds=1, devices={})
    assert row["bytes_up"] == N * 4 * 8 * (D + 1)
    # 4 models, 12 chunks of workers' own and 2 groups of 6, 4 slots of combinations of up to 4 chunks.
    assert row["bytes_down"] == N * 8 * (4 * D + 24 + 4 * (1 + 4 + 4))


def test_what_is_not_known_is_told_and_moves_nothing():
    """Two of six fail where one may be late, so that all are waited for in vain."""
    simulation = made({"kind": "gc", "stragglers": 1}, devices={})
    strategy, state = simulation.parts.strategy, simulation.state
    for clients, known in (([4], True), ([2, 4], False), ([0, 1, 2, 3, 4, 5], False)):
        fail(simulation, *clients)
        _, replies = exchange(simulation, state, torch.arange(N))
        later, metrics, done = strategy.tell(state, replies)
        assert done
        assert metrics["undecoded"] == (0.0 if known else 1.0)
        assert torch.equal(later.params, state.params) != known
        assert later.round == 1


def test_a_run_in_which_nothing_can_be_known_any_more_is_ended(monkeypatch):
    monkeypatch.setattr(gradient_coding, "IN_VAIN", 3)
    simulation = made({"kind": "gc", "stragglers": 1}, rounds=20, devices={})
    rows = iter(simulation)
    next(rows)
    fail(simulation, 2, 4)
    with pytest.raises(StalledError, match="no gradient was known in 3 rounds in a row"):
        list(rows)
    assert simulation.state.round == 3


def test_who_is_away_is_late_already():
    strategy = GradientCoding(code={"kind": "gc", "stragglers": 2})
    problem = small_problem(torch.float64)
    state = strategy.seeded(strategy.init(problem), Streams(0))
    order, window = strategy.ask(state, torch.tensor([0, 2, 3, 4, 5]))
    assert order.clients.tolist() == [0, 2, 3, 4, 5]
    assert (window.most, window.needed, window.excused) == (1, frozenset(), frozenset())
    _, window = strategy.ask(state, torch.tensor([0]))
    assert not window.without({5})


def test_a_burst_that_goes_on_is_waited_for():
    """B = 1, W = 2: who was late in the last round must not be late again, and of others lambda less those may be."""
    strategy = GradientCoding(code={"kind": "m_sgc", "burst": 1, "window": 2, "most": 2})
    problem = small_problem(torch.float64)
    state = strategy.seeded(strategy.init(problem), Streams(0))
    for late, most in (([], 2), ([3], 1), ([3, 5], 0)):
        simulation = made({"kind": "m_sgc", "burst": 1, "window": 2, "most": 2}, devices={})
        fail(simulation, *late)
        _, replies = exchange(simulation, state, torch.arange(N))
        later, _, _ = strategy.tell(state, replies)
        _, window = strategy.ask(later, torch.arange(N))
        assert (window.most, window.needed, window.excused) == (most, frozenset(late), frozenset(late))
        assert window.end(ticks(1.0), ticks(2.0)) == ticks(3.0)


def test_dropout_is_inactive_so_that_a_chunk_has_one_gradient():
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)).double()
    one, two = (made(CODES[name], 3, small_problem(torch.float64, model)) for name in ("nobody", "cyclic"))
    for _ in zip(one, two, strict=True):
        torch.testing.assert_close(one.state.params, two.state.params, rtol=0.0, atol=1e-11)


def test_momentum_is_each_models_own():
    plain = {"kind": "gc", "stragglers": 1}
    server = {"strategy": {"server_optimizer": {"kind": "sgd", "momentum": 0.9}, "server_lr": 0.1}}
    one, two = made(plain, rounds=4, **server), made(CODES["multiplexed"], rounds=8, **server)
    exact = [simulation.state.params for simulation in (one,) for _ in simulation]
    found = [two.state.params for _ in two]
    for number in range(4):
        torch.testing.assert_close(found[1 + 2 * number], exact[number], rtol=0.0, atol=1e-11)


@pytest.mark.parametrize(
    ("code", "tables", "line"),
    [
        ({"kind": "gc", "stragglers": 6}, {}, "strategy.code.stragglers = 6: of 6 workers 0 to 5 may be late"),
        ({"kind": "gc", "stragglers": 3, "code": "repetition"}, {}, "do not divide into groups of 4"),
        ({"kind": "m_sgc", "burst": 2, "window": 2}, {}, "strategy.code.window = 2: a window is longer than a burst"),
        (
            {"kind": "sr_sgc", "burst": 2, "window": 4},
            {},
            "strategy.code.window = 4: must be 1 more than a multiple",
        ),
        ({"kind": "m_sgc", "most": 7}, {}, "strategy.code.most = 7: of 6 workers 0 to 6 may be late"),
        ("ldpc", {}, "kind = ldpc: not one of gc, m_sgc, sr_sgc|code.kind = ldpc"),
        (
            {"kind": "gc"},
            {"selection": {"kind": "uniform", "count": 3}},
            "strategy.code = gc: only 3 of 6 clients are selected",
        ),
        ({"kind": "gc"}, {"aggregation": "median"}, "this strategy averages nothing"),
        ({"kind": "gc"}, {"client": {"kind": "sgd", "epochs": 1}}, "kind = sgd"),
        ({"kind": "gc"}, {"strategy": {"patience": -1.0}}, "patience = -1"),
    ],
)
def test_what_there_is_not_is_refused(code, tables, line):
    with pytest.raises(InputError, match=line):
        made(code, **tables)


def test_rounding_in_single_precision_is_amplified_by_a_factor_that_stays_small():
    """64 workers of whom 5 are late: the decoded sum of float32 results, against that of float64 ones."""
    scheme = scheme_of(GradientCoding(code={"kind": "gc", "stragglers": 5}).code, 64, 1)
    random = np.random.default_rng(0)
    chunks = random.standard_normal((64, 50))
    came = np.ones((64, 1), dtype=bool)
    came[random.choice(64, 5, replace=False)] = False
    factors = scheme.decode(came)
    results = np.einsum("npk,kd->npd", scheme.combinations, chunks)
    exact = np.einsum("np,npd->d", factors, results)
    assert exact == pytest.approx(chunks.sum(axis=0), abs=1e-9)
    rounded = np.einsum("np,npd->d", factors, results.astype(np.float32).astype(np.float64))
    assert np.linalg.norm(rounded - exact) < 1e-4 * np.linalg.norm(exact)
