"""In a virtual grid's time an app under an asynchronous strategy goes through what a run in one process goes through.

Clients and arithmetic are the same: linear regression by full gradient steps. Node p takes `DURATIONS[p]` seconds, so
that replies come half a second apart, and some at the same time.
"""

import itertools

import numpy as np
import pytest
import torch
from apps.own import with_numpy
from apps.own.running import watched
from flwr.app import MetricRecord
from torch import nn

import fedsim
from fedsim.flower import as_flower_strategy
from strategies.fedasync import FedAsync
from strategies.fedavg import FedAvg
from strategies.fedavg_async import FedAvgAsync
from strategies.fedbuff import FedBuff
from strategies.fedfix import FedFix

NODES = 4
DURATIONS = {0: 2.0, 1: 1.5, 2: 1.0, 3: 0.5}
DEVICES = {"compute": {"kind": "fixed", "seconds": 2.0, "spread": 75.0}}
"""The same of a run in one process: from 2 s down to 25 % of that, evenly."""
CLIENTS = {"kind": "sgd", "lr": 0.05, "epochs": 3}
"""`with_numpy.client` with its rate of 0.1, whose loss is half of a squared error's."""


def problem():
    inputs, targets = (np.concatenate(parts) for parts in zip(*map(with_numpy.data, range(NODES)), strict=True))
    ends = np.cumsum([0, *(6 + 2 * node for node in range(NODES))])
    model = nn.Linear(3, 1, dtype=torch.float64)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    own = [range(begin, end) for begin, end in itertools.pairwise(ends)]
    return fedsim.supervised(
        inputs, targets, model=model, clients=own, loss="squared_error", dtype=torch.float64, device="cpu"
    )


def in_one_process(strategy, rounds, **parts):
    return fedsim.run(
        problem=problem(), strategy=strategy, client=CLIENTS, devices=DEVICES, rounds=rounds, save=False, **parts
    )


def in_an_app(strategy, rounds, selection=None, durations=DURATIONS, fraction_evaluate=0.0, **options):
    made = as_flower_strategy(strategy, selection=selection, fraction_evaluate=fraction_evaluate, **options)
    return watched(made, with_numpy.app, with_numpy.initial(), rounds=rounds, durations=durations)


def vector(result):
    return np.concatenate([array.numpy() for array in result.arrays.values()])


def timeline(trace):
    """What clients did; of what goes on at the end nobody knows on a grid when it will."""
    return [entry for entry in trace["timeline"] if entry["outcome"] != "working"]


SAME = {
    "fedfix": (FedFix(window=0.5, weighting="uniform"), {}),
    "fedfix observed": (FedFix(window=0.75, weights="identical", frequency="observed"), {}),
    "fedfix, momentum": (
        FedFix(window=1.0, weighting="uniform", server_optimizer={"kind": "sgd", "momentum": 0.5}),
        {},
    ),
    "fedbuff": (FedBuff(size=2), {}),
    "fedbuff of three": (FedBuff(size=3, server_lr=0.7), {}),
    "fedbuff, windows": (FedBuff(size=2, restart="window"), {}),
    "fedbuff unbiased": (FedBuff(size=3, weights="unbiased", weighting="uniform"), {}),
    "fedasync": (FedAsync(proximal_mu=0.0), {}),
    "fedavg_async": (FedAvgAsync(frequency="observed", weighting="uniform"), {}),
    "fedavg_async identical": (FedAvgAsync(weights="identical"), {}),
    "fedbuff of some": (FedBuff(size=2), {"selection": {"kind": "uniform", "count": 3}, "seed": 5}),
    "fedavg of some": (FedAvg(), {"selection": {"kind": "uniform", "count": 3}, "seed": 5}),
    "median": (FedBuff(size=3), {"aggregator": "median"}),
}


@pytest.mark.parametrize("name", SAME)
def test_it_is_what_one_process_comes_to_in_the_same_order_and_at_the_same_times(name):
    strategy, options = SAME[name]
    parts = dict(options)
    if "aggregator" in parts:
        parts["aggregation"] = parts.pop("aggregator")
    wanted = in_one_process(strategy, 12, **parts)
    found, engine = in_an_app(strategy, 12, **options)
    np.testing.assert_allclose(vector(found), wanted.params.numpy(), rtol=0.0, atol=1e-9)
    assert np.abs(vector(found)).min() > 1e-2
    trace = engine.trace.summary([0.25] * NODES, engine.now)
    for part in ("staleness", "participation", "late", "selected", "until"):
        assert trace[part] == wanted.trace[part], part
    assert timeline(trace) == timeline(wanted.trace)
    told = found.train_metrics_clientapp
    assert list(told) == list(range(1, 13))
    assert [told[number]["staleness"] for number in told] == pytest.approx(list(wanted.history["staleness"]))
    assert [told[number]["replies"] for number in told] == list(wanted.history["clients"])


def rounds_of(closes, durations, number):
    """Who is in each round of those that stop to wait: a node that is late works on, and starts when it is done.

    closes: from the arrivals of those at work, ascending, when a round ends.
    """
    now, busy, found = 0.0, dict.fromkeys(durations, 0.0), []
    for _ in range(number):
        started = [node for node in durations if busy[node] <= now]
        if not started:
            now = min(busy.values())
            started = [node for node in durations if busy[node] <= now]
        due = {node: now + durations[node] for node in started}
        busy |= due
        end, most = closes(sorted(due.values()), now)
        arrived = [node for node in sorted(started, key=lambda node: (due[node], node)) if due[node] <= end][:most]
        found.append((end, sorted(arrived)))
        now = end
    return found


WAITING = {
    "deadline": (FedAvg(deadline=1.2), lambda due, now: (min(now + 1.2, due[-1]), None)),
    "first": (FedAvg(first=3), lambda due, now: (due[min(3, len(due)) - 1], 3)),
    "both": (FedAvg(first=2, deadline=0.8), lambda due, now: (min(now + 0.8, due[min(2, len(due)) - 1]), 2)),
}


@pytest.mark.parametrize("name", WAITING)
def test_who_is_late_is_left_out_and_works_on(name):
    strategy, closes = WAITING[name]
    who = []

    def noted(contents, key):
        who.append(sorted((int(content["metrics"][key]) - 6) // 2 for content in contents))
        return MetricRecord({})

    made = as_flower_strategy(strategy, fraction_evaluate=0.0, train_metrics_aggr_fn=noted)
    found, engine = watched(made, with_numpy.app, with_numpy.initial(), rounds=12, durations=DURATIONS)
    wanted = rounds_of(closes, DURATIONS, 12)
    w, c = np.zeros(3), np.zeros(1)
    for _, arrived in wanted:
        if arrived:
            moved = zip(*(with_numpy.moved(node, w, c) for node in arrived), strict=True)
            w, c = (np.average(np.stack(part), axis=0, weights=[6 + 2 * n for n in arrived]) for part in moved)
    assert who == [arrived for _, arrived in wanted if arrived]
    assert engine.now / 1e9 == pytest.approx(wanted[-1][0])
    np.testing.assert_allclose(vector(found), np.concatenate([w, c]), atol=1e-12)


@pytest.mark.parametrize(
    "strategy", [FedBuff(size=2), FedAvgAsync(weights="identical"), FedFix(window=0.7, weighting="uniform")]
)
@pytest.mark.parametrize("duration", [5.0, 5.25])
def test_a_duration_ends_a_run_at_that_second(strategy, duration):
    wanted = in_one_process(strategy, None, duration=duration)
    found, engine = in_an_app(strategy, None, duration=duration)
    assert engine.now == duration * 10**9 == wanted.trace["until"] * 10**9
    np.testing.assert_allclose(vector(found), wanted.params.numpy(), rtol=0.0, atol=1e-9)
    assert list(found.train_metrics_clientapp) == list(range(1, 1 + wanted.history["round"][-1]))


def test_rounds_and_a_duration_end_a_run_with_what_comes_first():
    assert in_an_app(FedAvg(), 3, duration=100.0)[1].now == 6 * 10**9
    found, engine = in_an_app(FedAvg(), 10, duration=5.0)
    assert list(found.train_metrics_clientapp) == [1, 2]
    assert engine.now == 5 * 10**9


@pytest.mark.parametrize("strategy", [FedAvg(), FedBuff(size=2)])
def test_the_model_is_judged_as_often_as_is_asked_and_at_the_end(strategy):
    seen = []

    def evaluate(number, arrays):
        seen.append((number, np.concatenate([array.numpy() for array in arrays.values()])))
        return MetricRecord({"loss": float(number)})

    made = as_flower_strategy(strategy, evaluate_every=3, fraction_evaluate=1.0)
    options = {"rounds": 8, "durations": DURATIONS, "start": {"evaluate_fn": evaluate}}
    found, _ = watched(made, with_numpy.app, with_numpy.initial(), **options)
    assert [number for number, _ in seen] == [0, 3, 6, 8] == list(found.evaluate_metrics_serverapp)
    assert list(found.evaluate_metrics_clientapp) == [3, 6, 8]
    assert list(found.train_metrics_clientapp) == list(range(1, 9))
    assert (seen[-1][1] == vector(found)).all()
    # The nodes that evaluate say what the model is worth to them.
    if isinstance(strategy, FedAvg):
        losses = [with_numpy.loss(node, seen[1][1][:3], seen[1][1][3:]) for node in range(NODES)]
        assert found.evaluate_metrics_clientapp[3]["eval_loss"] == pytest.approx(
            np.average(losses, weights=[6, 8, 10, 12])
        )


def test_nodes_that_evaluate_do_not_change_who_trains_when_they_are_quick():
    """The order of versions stays: here nobody takes time to evaluate, as nobody is free."""
    strategy = FedBuff(size=2)
    plain, engine = in_an_app(strategy, 12)
    judged, other = in_an_app(strategy, 12, fraction_evaluate=1.0, evaluate_every=12)
    assert (vector(plain) == vector(judged)).all()
    assert engine.trace.staleness == other.trace.staleness
    assert list(judged.evaluate_metrics_clientapp) == [12]


def test_what_clients_weigh_is_known_when_they_have_answered():
    """From the second round on FedFix's weights are by examples, as in one process."""
    strategy = FedFix(window=2.0)
    wanted = in_one_process(strategy, 1)
    found, _ = in_an_app(strategy, 1)
    # In the window of 2 s node p takes part once, so that c_p is 1; all have answered before the weights are taken.
    np.testing.assert_allclose(vector(found), wanted.params.numpy(), rtol=0.0, atol=1e-9)
