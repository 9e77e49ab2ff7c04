"""What asynchronous strategies promise together: how clients weigh in the long run, and the limits they share."""

from __future__ import annotations

import math
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tallies import recorded, spread, tally, taus, weights

import fedsim
from fedsim.core.clock import ticks
from fedsim.core.errors import InputError
from fedsim.running.build import build_simulation
from fedsim.running.simulation import Simulation
from fedsim.server.participation import observed_weights, shares
from fedsim.server.strategy import ServerState
from fedsim.testing.problems import DEVICE, small_problem
from fedsim.testing.problems import small_experiment as small

EVERYBODY = {"kind": "uniform", "fraction": 1.0}
FULL = {"kind": "sgd", "epochs": 2, "batch_size": "full", "lr": 0.1}


def final(simulated: Simulation) -> torch.Tensor:
    for _ in simulated:
        pass
    return simulated.state.params


def windows(tau: Fraction, window: float) -> int:
    """c = ceil(tau / window) in exact arithmetic."""
    return math.ceil(tau / Fraction(str(window)))


SETTINGS = [
    ([1] * 20, 80, 0.2),
    ([1] * 20, 80, 0.5),
    ([1] * 20, 80, 0.8),
    ([1] * 11, 50, 0.1),
    ([3, 1, 4, 1, 5], 80, 0.2),
    ([3, 1, 4, 1, 5], 80, 0.3),
    ([2, 7], 0, 1.0),
    ([2, 7], 0, 0.4),
]


@pytest.mark.parametrize("frequency", ["declared", "observed"])
@pytest.mark.parametrize(("sizes", "percent", "window"), SETTINGS)
def test_under_fedfix_each_client_weighs_p_i_a_window(sizes, percent, window, frequency):
    """A reply every c windows of weight p c: p a window, but for those of a reply that has not come yet.

    A clock of floats gets the fastest of the first setting wrong. It works for 1 - 0.8 s and is looked at after n
    windows of 0.2 s: neither is exact, and c = 1 only if they agree.
    """
    strategy = {"kind": "fedfix", "window": window, "frequency": frequency}
    found = weights(tally(sizes, rounds=60, strategy=strategy, selection=EVERYBODY, devices=spread(percent)))
    c = np.array([windows(tau, window) for tau in taus(len(sizes), percent)])
    assert found == pytest.approx(np.array(sizes) / sum(sizes) * c * (60 // c), rel=1e-6)


def test_weights_of_the_same_p_for_all_clients_whatever_their_sizes():
    strategy = {"kind": "fedfix", "window": 0.2, "weighting": "uniform"}
    found = weights(tally([3, 1, 4, 1, 5], rounds=60, strategy=strategy, selection=EVERYBODY, devices=spread(80)))
    assert found / 60 == pytest.approx(np.full(5, 0.2), rel=1e-6)


# What is observed is off by O(1/n) in window n, so its mean by about ln(1200)/1200 = 0.006.
@pytest.mark.parametrize(
    ("frequency", "rounds", "tolerance"),
    [("declared", 60, 1e-8), ("observed", 120, 0.05), pytest.param("observed", 1200, 0.01, marks=pytest.mark.slow)],
)
def test_identical_weights_under_fedfix_are_inverse_to_the_number_of_windows(frequency, rounds, tolerance):
    """c = 5, 4, 3, 2, 1 for tau = 1 ... 0.2 s; a client's share is (1/c) / sum (1/c), and all add up to 1 a window."""
    strategy = {"kind": "fedfix", "window": 0.2, "weights": "identical", "frequency": frequency}
    found = weights(tally(5, rounds=rounds, strategy=strategy, selection=EVERYBODY, devices=spread(80))) / rounds
    inverse = 1.0 / np.array([5, 4, 3, 2, 1])
    assert found == pytest.approx(inverse / inverse.sum(), rel=tolerance)


def test_where_durations_vary_each_reply_of_fedfix_weighs_for_the_windows_that_it_took():
    """c_1 + ... + c_k is the window in which reply k is taken: clients weigh exactly p up to their last reply."""
    sizes, rounds = [3, 1, 4, 1, 5], 200
    devices = {**spread(80), "jitter": 0.5}
    simulated = tally(
        sizes, rounds=rounds, strategy={"kind": "fedfix", "window": 0.2}, selection=EVERYBODY, devices=devices
    )
    told = recorded(simulated)
    last = {client: moment.after.round for moment in told for client in moment.replies.clients.tolist()}
    p, found = np.array(sizes) / sum(sizes), simulated.state.params.cpu().numpy()
    assert found == pytest.approx(p * [last[client] for client in range(5)], rel=1e-6)
    assert min(last.values()) > rounds - 30


@pytest.mark.parametrize(("sizes", "seconds"), [([1] * 5, 12), ([3, 1, 4, 1, 5], 12), ([1] * 20, 5)])
def test_under_asynchronous_fedavg_each_client_weighs_p_i_a_step(sizes, seconds):
    """floor(T / tau) replies, each of weight p tau sum (1 / tau).

    Of five clients 12 s are whole works of all: 12 + 15 + 20 + 30 + 60 = 137 replies, of which p is each one's part.
    """
    exact = taus(len(sizes), 80)
    replies = [math.floor(seconds / tau) for tau in exact]
    found = weights(tally(sizes, rounds=sum(replies), strategy="fedavg_async", selection=EVERYBODY, devices=spread(80)))
    rate, p = sum(1 / tau for tau in exact), np.array(sizes) / sum(sizes)
    assert found == pytest.approx(p * [float(tau * rate * count) for tau, count in zip(exact, replies, strict=True)])
    if len(sizes) == 5:
        assert found == pytest.approx(137 * p)


# What is observed is off by O(1/n) after n replies.
@pytest.mark.parametrize(
    ("sizes", "rounds", "tolerance"),
    [
        ([3, 1, 4, 1, 5], 137, 0.03),
        *(
            pytest.param(sizes, rounds, 4e-3, marks=pytest.mark.slow)
            for sizes, rounds in (([1] * 5, 1096), ([3, 1, 4, 1, 5], 1096), ([1] * 20, 4130))
        ),
    ],
)
def test_where_frequencies_are_observed_each_client_comes_to_weigh_p_i_a_step(sizes, rounds, tolerance):
    strategy = {"kind": "fedavg_async", "frequency": "observed"}
    found = weights(tally(sizes, rounds=rounds, strategy=strategy, selection=EVERYBODY, devices=spread(80)))
    assert found / rounds == pytest.approx(np.array(sizes) / sum(sizes), abs=tolerance)


def test_identical_weights_of_asynchronous_fedavg_count_replies():
    """137 replies in 12 s, each of weight 1."""
    strategy = {"kind": "fedavg_async", "weights": "identical"}
    found = weights(tally(5, rounds=137, strategy=strategy, selection=EVERYBODY, devices=spread(80)))
    assert found.tolist() == [12, 15, 20, 30, 60]


# What is observed is off by O(1/n) in step n.
@pytest.mark.parametrize("restart", ["arrival", "window"])
@pytest.mark.parametrize(
    ("size", "rounds", "tolerance"),
    [
        (1, 300, 0.015),
        (3, 150, 0.01),
        (10, 50, 4e-3),
        *(pytest.param(*long, 4e-3, marks=pytest.mark.slow) for long in ((1, 1500), (3, 1000), (10, 500))),
    ],
)
def test_unbiased_weights_of_a_buffer_come_to_p_i_a_step(size, rounds, tolerance, restart):
    """The fastest of ten replies five times as often as the slowest."""
    sizes = [1, 2] * 5
    strategy = {"kind": "fedbuff", "size": size, "restart": restart, "staleness": "constant", "weights": "unbiased"}
    found = weights(tally(sizes, rounds=rounds, strategy=strategy, selection=EVERYBODY, devices=spread(80)))
    assert found / rounds == pytest.approx(np.array(sizes) / 15, abs=tolerance)


def test_shares():
    sizes = SimpleNamespace(sizes=torch.tensor([5, 2, 1, 2]))
    assert shares(sizes, "examples").tolist() == [0.5, 0.2, 0.1, 0.2]
    assert shares(sizes, "uniform").tolist() == [0.25] * 4


def test_observed_weights():
    """After 10 rounds with 10, 5 and 10 replies: p / f = .5, .25 / .5, .25 / 1; in all 2.5 a round, so 0.4 each."""
    memory = {"shares": torch.tensor([0.5, 0.25, 0.25]).double(), "counts": torch.tensor([9, 4, 9])}
    state = ServerState(torch.zeros(1), round=9, memory=memory)
    everybody = SimpleNamespace(clients=torch.arange(3))
    unbiased, counts = observed_weights("unbiased", state, everybody, 0.01)
    assert unbiased.tolist() == [0.5, 0.5, 0.25]
    assert counts["counts"].tolist() == [10, 5, 10]
    assert memory["counts"].tolist() == [9, 4, 9]
    assert observed_weights("unbiased", state, everybody, 0.8)[0].tolist() == [0.5, 0.25 / 0.8, 0.25]
    assert observed_weights("identical", state, everybody, 0.01)[0].tolist() == [0.4, 0.4, 0.4]


@pytest.mark.parametrize(
    ("strategy", "total"),
    [
        ({"kind": "fedavg"}, 1.0),
        ({"kind": "fedfix", "window": 0.2}, 5.0),
        ({"kind": "fedfix", "window": 0.5}, 2.0),
        ({"kind": "fedavg_async"}, 1 + 5 / 4 + 5 / 3 + 5 / 2 + 5),
    ],
)
def test_the_total_weight_a_second(strategy, total):
    """1 / max tau, 1 / window, sum 1 / tau for tau = 1, 0.8, 0.6, 0.4, 0.2 s."""
    simulated = tally(5, duration=120.0, strategy=strategy, selection=EVERYBODY, devices=spread(80))
    assert weights(simulated).sum() / 120 == pytest.approx(total, rel=0.01)


# --- Limits that are other strategies


def train(strategy: dict, dtype: torch.dtype = torch.float32, rounds: int = 4, **tables) -> torch.Tensor:
    tables = {"selection": EVERYBODY, "devices": spread(80), **tables}
    return final(build_simulation(small(rounds, strategy=strategy, **tables), small_problem(dtype)))


LOCAL = [{}, {"optimizer": {"kind": "sgd", "momentum": 0.9}}, {"proximal_mu": 0.5}]


@pytest.mark.parametrize("weighting", ["examples", "uniform"])
@pytest.mark.parametrize("client", LOCAL)
@pytest.mark.parametrize("window", [1.0, 1.5])
def test_fedfix_with_a_window_for_the_slowest_is_fedavg_to_the_last_bit(window, client, weighting):
    client = {"kind": "sgd", "epochs": 2, "batch_size": 4, "lr": 0.1, **client}
    synchronous = train({"kind": "fedavg", "weighting": weighting}, client=client)
    for frequency in ("declared", "observed"):
        strategy = {"kind": "fedfix", "window": window, "weighting": weighting, "frequency": frequency}
        assert torch.equal(train(strategy, client=client), synchronous)


@pytest.mark.parametrize("client", LOCAL)
@pytest.mark.parametrize("weights", ["identical", "unbiased"])
def test_a_buffer_for_everybody_is_fedavg_to_the_last_bit(weights, client):
    client = {"kind": "sgd", "epochs": 2, "batch_size": 4, "lr": 0.1, **client}
    buffered = {"kind": "fedbuff", "size": 6, "restart": "window", "weighting": "uniform", "weights": weights}
    for staleness in ("constant", "polynomial"):
        found = train({**buffered, "staleness": staleness}, client=client)
        assert torch.equal(found, train({"kind": "fedavg", "weighting": "uniform"}, client=client))


def test_fedfix_where_all_are_equally_slow_is_fedavg_with_a_larger_step_now_and_then():
    """tau = 1 s in windows of 0.5 s: c = 2, so weights 2p in every second window, and nobody in the others."""
    same = {"devices": spread(0), "client": FULL, "dtype": torch.float64}
    found = train({"kind": "fedfix", "window": 0.5}, rounds=8, **same)
    assert torch.equal(found, train({"kind": "fedfix", "window": 0.5}, rounds=9, **same))
    assert torch.allclose(found, train({"kind": "fedavg", "server_lr": 2.0}, rounds=4, **same), rtol=1e-10, atol=1e-12)


def test_a_buffer_of_one_is_asynchronous_fedavg_with_equal_weights():
    """Each reply moves the model by its whole change; the two name their draws differently, so batches are full."""
    buffered = {"kind": "fedbuff", "size": 1, "staleness": "constant"}
    single = {"kind": "fedavg_async", "weights": "identical"}
    found, wanted = (train(strategy, torch.float64, 25, client=FULL) for strategy in (buffered, single))
    assert torch.allclose(found, wanted, rtol=1e-10, atol=1e-12)


# --- Where they end


@pytest.mark.parametrize(
    ("strategy", "end", "heaviest"),
    [
        ({"kind": "fedfix", "window": 0.2, "weights": "unbiased"}, 1 / 2, 2.5),
        ({"kind": "fedfix", "window": 0.2, "weights": "identical"}, 5 / 6, 5 / 6),
        ({"kind": "fedavg_async", "weights": "unbiased"}, 1 / 2, 3.0),
        ({"kind": "fedavg_async", "weights": "identical"}, 5 / 6, 1.0),
    ],
)
def test_the_bias_on_two_quadratics(strategy, end, heaviest):
    """f_i = (theta - a_i)^2 / 2, a = (0, 1), tau = (1, 0.2) s, one step of eta: client 1 replies five times as often.

    The steps of a period add up to 0: d_0 theta + 5 d_1 (theta - 1) = 0, each theta somewhere in the period. With
    5 d_1 = d_0 that is 1/2, with d_1 = d_0 it is 5/6. Within a period theta moves down only by client 0's step, by less
    than eta d_0 as |theta| <= 1, and as far up in all others; so its values differ by less than eta d_0, which is the
    tolerance. d_0 = p c = 2.5, 1 / (1/5 + 1) = 5/6, p tau sum (1/tau) = 0.5 * 6 = 3, and 1.
    """
    eta, rounds, root = 0.03, 200, float(np.sqrt(0.5))
    # (root w - root a)^2 is (w - a)^2 / 2.
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    problem = fedsim.supervised(
        np.array([[root], [root]]),
        np.array([0.0, root]),
        model=model,
        clients=[[0], [1]],
        dtype=torch.float64,
        device=DEVICE,
    )
    client = {"kind": "sgd", "steps": 1, "batch_size": "full", "lr": eta}
    # A step takes the model about eta of the way; of the way, which is less than 1, exp(-eta rounds) is left.
    experiment = small(rounds, strategy=strategy, client=client, selection=EVERYBODY, devices=spread(80))
    found = float(final(build_simulation(experiment, problem)))
    assert found == pytest.approx(end, abs=eta * heaviest + math.exp(-eta * rounds))


# --- What is combined with them


STRATEGIES = {
    "fedfix": {"kind": "fedfix"},
    "fedbuff": {"kind": "fedbuff", "size": 3},
    "fedavg_async": {"kind": "fedavg_async"},
    "fedasync": {"kind": "fedasync"},
}
OPTIMIZERS = [{"server_optimizer": {"kind": "sgd", "momentum": 0.5}}, {"server_optimizer": "adam", "server_lr": 0.01}]
PARTS = {
    "proximal": {"client": {"kind": "sgd", "epochs": 2, "batch_size": 4, "lr": 0.1, "proximal_mu": 0.5}},
    "median": {"aggregation": "median"},
    "noise": {"order_transforms": [{"kind": "noise", "std": 0.01}]},
}


@pytest.mark.parametrize("kind", STRATEGIES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_server_optimizers_work_in_asynchronous_runs_too(kind, optimizer):
    moved = train(STRATEGIES[kind] | optimizer, rounds=12)
    assert torch.isfinite(moved).all()
    assert not torch.allclose(moved, train(STRATEGIES[kind], rounds=12), rtol=1e-3)


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        ("fedfix", "proximal"),
        ("fedfix", "median"),
        ("fedfix", "noise"),
        ("fedbuff", "proximal"),
        ("fedbuff", "median"),
        ("fedbuff", "noise"),
        ("fedavg_async", "proximal"),
        ("fedavg_async", "noise"),
        ("fedasync", "noise"),
    ],
)
def test_other_parts_work_in_asynchronous_runs_too(kind, part):
    moved = train(STRATEGIES[kind], rounds=12, **PARTS[part])
    assert torch.isfinite(moved).all()
    assert not torch.allclose(moved, train(STRATEGIES[kind], rounds=12), rtol=1e-3)


@pytest.mark.parametrize("aggregation", ["median", "trimmed_mean", "geometric_median"])
def test_a_window_in_which_nobody_is_outvoted_is_skipped_and_counted(aggregation):
    """On steady devices, too: the windows of FedFix hold now one reply, now many."""
    parts = {"selection": EVERYBODY, "devices": spread(80), "evaluation": {"every": 1}}
    experiment = small(12, strategy={"kind": "fedfix", "window": 0.3}, aggregation=aggregation, **parts)
    simulation = build_simulation(experiment, small_problem())
    before, few, many = simulation.state.params, 0, 0
    for row in simulation:
        moved, before = not torch.equal(before, simulation.params), simulation.params
        assert moved is (row["clients"] >= 3)
        few, many = few + (0 < row["clients"] < 3), many + moved
    assert few
    assert many
    assert simulation.parts.engine.trace.skipped == few


# --- What is refused


@pytest.mark.parametrize(
    ("tables", "option"),
    [
        ({"strategy": {"kind": "fedfix", "window": 0.0}}, "strategy.window"),
        ({"strategy": {"kind": "fedfix", "window": -0.5}}, "strategy.window"),
        ({"strategy": {"kind": "fedfix", "window": 1e-10}}, "strategy.window"),
        ({"strategy": {"kind": "fedbuff", "size": 0}}, "strategy.size"),
        ({"strategy": {"kind": "fedbuff", "size": 7}}, "strategy.size"),
        ({"strategy": {"kind": "fedbuff", "size": 5}, "selection": {"kind": "uniform", "count": 4}}, "strategy.size"),
        ({"strategy": {"kind": "fedbuff", "floor": 0.1}}, "strategy.floor"),
        ({"strategy": {"kind": "fedavg_async", "floor": 0.1}}, "strategy.floor"),
        ({"strategy": {"kind": "fedavg_async", "weights": "identical", "floor": 0.1}}, "strategy.floor"),
        ({"strategy": {"kind": "fedavg_async", "weights": "identical", "frequency": "observed"}}, "strategy.frequency"),
        ({"strategy": {"kind": "fedfix", "floor": 0.1}}, "strategy.floor"),
        (
            {"strategy": {"kind": "fedfix", "weights": "identical", "frequency": "observed", "floor": 0.1}},
            "strategy.floor",
        ),
        ({"strategy": {"kind": "fedavg", "deadline": 0.1}}, "strategy.deadline"),
        ({"strategy": {"kind": "fedavg", "first": 5}, "selection": {"kind": "uniform", "count": 4}}, "strategy.first"),
        ({"strategy": {"kind": "fedfix"}, "selection": {"kind": "uniform", "count": 4}}, "strategy.frequency"),
        ({"strategy": {"kind": "fedavg_async"}, "selection": {"kind": "uniform", "count": 4}}, "strategy.frequency"),
        ({"strategy": {"kind": "fedavg_async"}, "devices": {"jitter": 0.1}}, "strategy.frequency"),
        (
            {"strategy": {"kind": "fedfix", "weights": "identical"}, "devices": {"jitter": 0.1}},
            "strategy.frequency",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_anything_runs(tables, option, tmp_path):
    with pytest.raises(InputError) as refusal:
        fedsim.run(
            small(**{"selection": EVERYBODY, "devices": spread(80), **tables}),
            problem=small_problem(),
            out=tmp_path / "run",
        )
    assert refusal.value.option == option
    assert not (tmp_path / "run").exists()


def test_the_nearest_to_what_is_refused_is_not():
    """A buffer for all that work, a deadline that the fastest meets exactly, FedFix with durations that vary."""
    for tables in (
        {"strategy": {"kind": "fedbuff", "size": 4}, "selection": {"kind": "uniform", "count": 4}},
        {"strategy": {"kind": "fedavg", "deadline": 0.2}},
        {"strategy": {"kind": "fedavg", "first": 4}, "selection": {"kind": "uniform", "count": 4}},
        {"strategy": {"kind": "fedfix"}, "devices": {"jitter": 0.1}},
    ):
        simulated = build_simulation(
            small(**{"selection": EVERYBODY, "devices": spread(80), **tables}), small_problem()
        )
        assert torch.isfinite(final(simulated)).all()
        assert simulated.parts.engine.now > ticks(0.1)
