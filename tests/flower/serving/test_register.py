"""Nodes that come and go: who has which number, who takes part, and that nobody is ever given a second order."""

import itertools
import random

import numpy as np
import pytest
from apps.own import with_numpy
from apps.own.misbehaving import Guarded
from apps.own.running import watched

from fedsim.core.errors import InputError
from fedsim.flower import VirtualGrid, as_flower_strategy
from fedsim.flower.mods import identify
from strategies.fedavg import FedAvg
from strategies.fedavg_async import FedAvgAsync
from strategies.fedbuff import FedBuff
from strategies.fedfix import FedFix

DURATIONS = {0: 2.0, 1: 1.5, 2: 1.0, 3: 0.5}


def schedule(seed, nodes=6):
    """Durations with ties, and for some nodes a time when they are away."""
    draw = random.Random(seed)
    durations = {node: draw.choice([0.5, 1.0, 1.0, 1.5, 3.0, 8.0]) for node in range(nodes)}
    away = {node: (begin, begin + draw.uniform(0.5, 6)) for node in range(nodes) if (begin := draw.uniform(0, 20)) < 10}
    return durations, away


SCHEDULES = {
    "all": ({}, FedAvg),
    "deadline": ({}, lambda: FedAvg(deadline=1.2)),
    "over-selection": ({"selection": {"kind": "uniform", "count": 4}}, lambda: FedAvg(first=2, deadline=2.0)),
    "buffer": ({}, lambda: FedBuff(size=3)),
    "buffer of some": ({"selection": {"kind": "uniform", "count": 3}}, lambda: FedBuff(size=2, restart="window")),
    "windows": ({}, lambda: FedFix(window=0.8, frequency="observed")),
    "each": ({"selection": {"kind": "uniform", "count": 4}}, lambda: FedAvgAsync(frequency="observed")),
    "losses": ({"selection": {"kind": "power_of_choice", "pool": 4, "count": 2}}, lambda: FedAvg(first=1)),
}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", SCHEDULES)
def test_no_node_is_given_an_order_while_it_has_one(kind, seed):
    options, made = SCHEDULES[kind]
    durations, away = schedule(seed)
    strategy = as_flower_strategy(made(), fraction_evaluate=0.7, seed=seed, **options)
    options = {"nodes": 6, "rounds": 15, "durations": durations, "away": away, "kind": Guarded}
    result, engine = watched(strategy, with_numpy.app, with_numpy.initial(), start={"timeout": 4.0 + seed}, **options)
    assert len(result.train_metrics_clientapp) >= 10
    assert {"train", "evaluate"} == engine.grid.kinds
    assert 2 <= engine.grid.most <= 6


class Growing(VirtualGrid):
    """A grid whose nodes join, and leave, at set times. times: (from, to) by partition, in seconds."""

    def __init__(self, *given, times, **named):
        super().__init__(*given, **named)
        self.times = times

    def get_node_ids(self):
        nodes = zip(super().get_node_ids(), itertools.count(), strict=False)
        now = self.now / 10**9
        return [
            node for node, row in nodes if self.times.get(row, (0, 1e9))[0] <= now < self.times.get(row, (0, 1e9))[1]
        ]


def test_numbers_stay_and_newcomers_get_the_next():
    # Partition 0 comes at 3 s, 1 is away from 2 s to 5 s.
    times = {0: (3.0, 1e9), 1: (0.0, 2.0)}
    seen = []

    class Twice(Growing):
        def get_node_ids(self):
            found = super().get_node_ids()
            back = list(self._nodes)[1]
            return [*found, back] if self.now >= 5 * 10**9 and back not in found else found

    def noted(contents, key):
        seen.append(sorted(int(content["metrics"][key]) for content in contents))
        return with_numpy.MetricRecord({})

    strategy = as_flower_strategy(FedAvg(), fraction_evaluate=0.0, train_metrics_aggr_fn=noted)
    durations = dict.fromkeys(range(4), 1.0)
    _, engine = watched(
        strategy, with_numpy.app, with_numpy.initial(), rounds=7, kind=Twice, times=times, durations=durations
    )
    # Node p has 6 + 2p examples.
    assert seen == [[8, 10, 12]] * 2 + [[10, 12]] + [[6, 10, 12]] * 2 + [[6, 8, 10, 12]] * 2
    ids = list(engine.grid._nodes)
    assert engine.register.nodes == [ids[1], ids[2], ids[3], ids[0]]
    assert engine.problem.known.tolist() == [8, 10, 12, 6]
    assert engine.trace.participation == [4, 7, 7, 4]


NEWCOMERS = {
    "fedavg": {"strategy": "fedavg"},
    "fedprox": {"strategy": {"kind": "fedprox", "proximal_mu": 0.1}},
    "fedfix": {"strategy": {"kind": "fedfix", "window": 1.0, "frequency": "observed"}},
    "fedfix declared": {"strategy": {"kind": "fedfix", "window": 1.0}},
    "fedbuff": {"strategy": {"kind": "fedbuff", "size": 2, "weights": "unbiased"}},
    "fedasync": {"strategy": "fedasync"},
    "fedavg_async": {"strategy": {"kind": "fedavg_async", "frequency": "observed"}},
    "oort": {"strategy": "fedavg", "selection": {"kind": "oort", "count": 2}},
    "power_of_choice": {"strategy": "fedavg", "selection": {"kind": "power_of_choice", "pool": 3, "count": 2}},
    "round_robin": {"strategy": "fedavg", "selection": {"kind": "round_robin", "count": 2}},
    "weighted": {"strategy": "fedavg", "selection": {"kind": "weighted", "count": 2}},
    "fastest": {"strategy": "fedavg", "selection": {"kind": "fastest", "count": 2}},
    "curriculum": {"strategy": "fedavg", "selection": {"kind": "curriculum", "count": 3, "rounds": 4}},
}


@pytest.mark.parametrize("name", NEWCOMERS)
def test_who_comes_later_takes_part(name):
    strategy = as_flower_strategy(fraction_evaluate=0.0, **NEWCOMERS[name])
    options = {"kind": Growing, "times": {3: (2.5, 1e9)}, "durations": dict.fromkeys(range(4), 1.0)}
    result, engine = watched(strategy, with_numpy.app, with_numpy.initial(), rounds=16, **options)
    assert len(result.train_metrics_clientapp) == 16
    assert min(engine.trace.participation) >= 1
    assert len(engine.trace.participation) == 4
    assert np.isfinite(result.arrays["0"].numpy()).all()


def identified(mapping=None):
    """An app that says which partition its nodes are, or what else `mapping` says."""

    app = with_numpy.client()
    if mapping is None:
        identify(app)
        return app

    @app.query("identify")
    def said(message, context):
        partition = mapping[context.node_config["partition-id"]]
        if partition is None:
            raise ValueError("nobody")
        config = with_numpy.ConfigRecord({"partition-id": partition, "num-partitions": 9})
        return with_numpy.Message(with_numpy.RecordDict({"config": config}), reply_to=message)

    return app


class Shuffled(VirtualGrid):
    """A grid that lists its nodes in another order."""

    order = (2, 0, 3, 1)

    def get_node_ids(self):
        found = super().get_node_ids()
        return [found[row] for row in self.order]


def test_nodes_are_numbered_by_their_partitions_where_they_say_them():
    ids = {}
    for options, numbers in ({}, [2, 0, 3, 1]), ({"identify": True}, [0, 1, 2, 3]):
        strategy = as_flower_strategy(FedAvg(), fraction_evaluate=0.0, **options)
        _, engine = watched(strategy, identified(), with_numpy.initial(), rounds=1, kind=Shuffled, seed=3)
        nodes = list(engine.grid._nodes)
        assert engine.register.nodes == [nodes[row] for row in numbers]
        ids[len(options)] = engine.problem.known.tolist()
    assert ids == {0: [10, 6, 12, 8], 1: [6, 8, 10, 12]}


def test_the_same_partitions_are_selected_in_each_run_where_nodes_say_them():
    def selected(seed):
        strategy = as_flower_strategy(
            FedAvg(), selection={"kind": "uniform", "count": 2}, identify=True, fraction_evaluate=0.0
        )
        result, engine = watched(
            strategy, identified(), with_numpy.initial(), rounds=6, kind=Shuffled, seed=seed, durations=DURATIONS
        )
        return [array.data for array in result.arrays.values()], engine.trace.participation, engine.now

    assert selected(1) == selected(2)


@pytest.mark.parametrize(
    ("mapping", "said"),
    [
        ([0, 1, None, 3], "does not say which partition"),
        ([0, 1, 1, 3], "are both partition 1"),
        ([0, 1, 9, 3], "which"),
    ],
)
def test_nodes_that_do_not_say_which_partition_they_are_are_refused_at_the_beginning(mapping, said):
    strategy = as_flower_strategy(FedAvg(), identify=True)
    with pytest.raises(InputError, match=f"^identify = True: node .*{said}"):
        watched(strategy, identified(mapping), with_numpy.initial(), rounds=1)


def test_newcomers_that_cannot_be_numbered_are_told_and_left_out():
    # Partition 2 comes at 2 s and says nothing; 3 comes at 4 s and says that it is 1, which leaves at 6 s.
    times = {1: (0.0, 6.0), 2: (2.0, 1e9), 3: (4.0, 1e9)}
    strategy = as_flower_strategy(FedAvg(), identify=True, fraction_evaluate=0.0)
    options = {"kind": Growing, "times": times, "durations": dict.fromkeys(range(4), 1.0)}
    app = identified([0, 1, None, 1])
    _, engine = watched(strategy, app, with_numpy.initial(), rounds=10, **options)
    nodes = list(engine.grid._nodes)
    assert engine.register.nodes == [nodes[0], nodes[3]]
    assert engine.trace.participation == [10, 10]
    silent, double = engine.trace.failures
    assert f"node {nodes[2]} does not say which partition it is" in silent
    assert f"node {nodes[3]} and node {nodes[1]} are both partition 1" in double
    # From 6 s on number 1 is partition 3, with 12 examples.
    assert engine.problem.known.tolist() == [6, 12]


def test_others_take_the_places_of_those_who_have_all_gone():
    times = {0: (0.0, 3.0), 1: (0.0, 3.0), 2: (3.0, 1e9), 3: (3.0, 1e9)}
    strategy = as_flower_strategy(FedAvg(), fraction_evaluate=0.0)
    options = {"kind": Growing, "times": times, "durations": dict.fromkeys(range(4), 1.0)}
    _, engine = watched(strategy, with_numpy.app, with_numpy.initial(), rounds=6, **options)
    assert engine.register.nodes == list(engine.grid._nodes)[2:]
    assert engine.trace.participation == [6, 6]
