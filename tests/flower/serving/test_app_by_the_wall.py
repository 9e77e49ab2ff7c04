"""An app by the wall clock, which here goes on only while somebody waits: the same runs, seen when somebody looks."""

import numpy as np
import pytest
from apps.own import with_numpy
from apps.own.misbehaving import Guarded, Leaving, misbehaving
from apps.own.running import watched, watched_on
from flwr.serverapp import Grid
from local_grid import Clock

from fedsim.core.errors import StalledError
from fedsim.flower import VirtualGrid, as_flower_strategy
from fedsim.flower.mods import identify
from fedsim.flower.serving.register import LOOK
from strategies.fedavg import FedAvg
from strategies.fedavg_async import FedAvgAsync
from strategies.fedbuff import FedBuff
from strategies.fedfix import FedFix

DURATIONS = {0: 20.0, 1: 15.0, 2: 10.0, 3: 5.0}
SECOND = 10**9


class ByTheWall(Grid):
    """A grid of nodes in virtual time, of which nobody can see that; its time is the clock's."""

    def __init__(self, inner, clock):
        self.inner, self.clock, self.looks = inner, clock, []

    run = property(lambda self: self.inner.run)

    def set_run(self, run): ...

    def create_message(self, *args, **kwargs):
        raise AssertionError("messages are made, pushed and pulled")

    send_and_receive = create_message

    def _now(self):
        self.inner.wait((), self.clock.now)
        return self.inner

    def get_node_ids(self):
        self.looks.append(self.clock.now)
        return self._now().get_node_ids()

    def push_messages(self, messages):
        return self._now().push_messages(messages)

    def pull_messages(self, message_ids):
        there = self._now().wait(list(message_ids), self.clock.now)
        return self.inner.pull_messages(there) if there else []


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    made.monotonic = lambda: made.now / SECOND
    for module in ("windows", "serving.register", "serving.strategy"):
        monkeypatch.setattr(f"fedsim.flower.{module}.time", made)
    return made


def by_the_wall(clock, strategy, app=with_numpy.app, kind=VirtualGrid, rounds=8, timeout=3600.0, nodes=4, **options):
    with kind(app, nodes, durations={node: DURATIONS[node] for node in range(nodes)}, **options) as inner:
        grid = ByTheWall(inner, clock)
        return *watched_on(grid, strategy, with_numpy.initial(), rounds, timeout=timeout), grid


def ours(strategy, **options):
    return as_flower_strategy(strategy, **{"fraction_evaluate": 0.0} | options)


def vector(result):
    return np.concatenate([array.numpy() for array in result.arrays.values()])


@pytest.mark.parametrize(
    "made",
    [
        FedAvg,
        lambda: FedAvg(first=2),
        lambda: FedAvg(deadline=12.0),
        lambda: FedBuff(size=2),
        lambda: FedBuff(size=3, restart="window"),
        lambda: FedAvgAsync(weights="identical"),
        lambda: FedFix(window=11.0, frequency="observed"),
    ],
)
def test_the_order_of_versions_is_that_of_virtual_time(made, clock):
    wanted, virtual = watched(ours(made()), with_numpy.app, with_numpy.initial(), rounds=8, durations=DURATIONS)
    found, engine, grid = by_the_wall(clock, ours(made()))
    np.testing.assert_array_equal(vector(found), vector(wanted))
    assert engine.trace.staleness == virtual.trace.staleness
    assert engine.trace.participation == virtual.trace.participation
    assert (engine.trace._versions, engine.trace._selected) == (virtual.trace._versions, virtual.trace._selected)
    # Between two looks for replies half a second passes at most, once in each window.
    assert virtual.now <= engine.now <= virtual.now + 9 * SECOND // 2
    gaps = np.diff(grid.looks)
    assert gaps.min() >= LOOK * SECOND * 0.999


@pytest.mark.parametrize("made", [FedAvg, lambda: FedBuff(size=2)])
def test_nodes_that_all_go_wrong_end_a_run_with_a_reason(made, clock):
    app = with_numpy.client(mods=[misbehaving({(None, None): "wrong shapes"})])
    error, engine, _ = by_the_wall(clock, ours(made()), app=app, rounds=3)
    assert isinstance(error, StalledError)
    assert engine.trace.failures[0] in str(error)
    assert clock.now < 3600 * SECOND


def test_nodes_that_never_answer_are_given_up_and_end_a_run(clock):
    error, engine, _ = by_the_wall(clock, ours(FedAvg()), rounds=3, timeout=4.0)
    assert isinstance(error, StalledError)
    assert "12 orders brought no reply that was used: 12 were not answered" in str(error)
    assert "has not answered" in engine.trace.failures[0]
    assert engine.ledger.crashed == 12
    assert 12 * SECOND <= clock.now <= 14 * SECOND


@pytest.mark.parametrize("made", [FedAvg, lambda: FedBuff(size=4, restart="window"), lambda: FedBuff(size=2)])
def test_a_run_goes_on_when_all_have_left_and_come_back(made, clock):
    away = dict.fromkeys(range(4), (12.0, 50.0))
    found, engine, _ = by_the_wall(clock, ours(made()), kind=Leaving, away=away, rounds=5)
    assert list(found.train_metrics_clientapp) == [1, 2, 3, 4, 5]
    assert engine.ledger.crashed >= 2
    assert engine.now > 50 * SECOND


def test_nodes_that_never_come_back_end_a_run(clock):
    away = dict.fromkeys(range(4), (12.0, 1e9))
    error, engine, _ = by_the_wall(clock, ours(FedAvg()), kind=Leaving, away=away, rounds=5)
    assert isinstance(error, StalledError)
    assert "nothing has come of waiting 20000 times in a row" in str(error)
    assert engine.now < 2 * 3600 * SECOND


def test_it_waits_for_as_many_nodes_as_are_asked_for(clock):
    away = {2: (0.0, 30.0), 3: (0.0, 40.0)}
    for needed, begins in ((2, 0), (3, 30), (4, 40)):
        clock.now = 0
        found, engine, _ = by_the_wall(
            clock, ours(FedAvg(), min_available_nodes=needed), kind=Leaving, away=away, rounds=1
        )
        assert begins * SECOND <= clock.now - engine.now <= (begins + 1) * SECOND
        assert found.train_metrics_clientapp[1]["replies"] == needed
    clock.now = 0
    with pytest.raises(StalledError, match="3 nodes are connected, and 4 are needed"):
        by_the_wall(clock, ours(FedAvg(), min_available_nodes=4), kind=Leaving, away={3: (0.0, 90.0)}, timeout=60.0)
    assert 60 * SECOND <= clock.now <= 61 * SECOND


def test_nodes_say_which_partition_they_are_before_the_first_round(clock):
    app = with_numpy.client()
    identify(app)
    options = {"selection": {"kind": "uniform", "count": 2}, "identify": True}
    found, engine, _ = by_the_wall(clock, ours(FedAvg(), **options), app=app)
    wanted, virtual = watched(ours(FedAvg(), **options), app, with_numpy.initial(), rounds=8, durations=DURATIONS)
    np.testing.assert_array_equal(vector(found), vector(wanted))
    assert engine.problem.known.tolist() == virtual.problem.known.tolist() == [6, 8, 10, 12]


def test_a_duration_is_of_the_wall(clock):
    found, engine, _ = by_the_wall(clock, ours(FedBuff(size=2), duration=60.0), rounds=None)
    assert engine.now == 60 * SECOND
    assert 8 <= len(found.train_metrics_clientapp) <= 12


def test_who_has_lost_its_number_finishes_what_it_is_at_before_it_gets_another(clock):
    # Nodes 0 and 1 take 20 s and 15 s for an order that a deadline ends after 3 s; then 2 and 3 alone are listed, and
    # get their numbers; from 6 s on all are there, and 0 and 1 are at work.
    class Returning(Guarded):
        def get_node_ids(self):
            found = list(self._nodes)
            return found[:2] if self.now < 3 * SECOND else found[2:] if self.now < 6 * SECOND else found

    _, engine, _ = by_the_wall(clock, ours(FedAvg(deadline=3.0)), kind=Returning, rounds=12)
    ids = list(engine.grid.inner._nodes)
    assert engine.register.nodes == [ids[2], ids[3], ids[1], ids[0]]
    assert engine.trace._selected[:2] == [0, 1]
    assert len(engine.trace._selected) > 8
