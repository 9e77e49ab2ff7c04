"""Windows on a Flower grid: where nodes take the time that virtual devices declare, a run is that of virtual time."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from flwr.app import Array, ArrayRecord, Context, RecordDict
from local_grid import Clock, LocalGrid, TimedGrid, engine_of, grid_of, partitions, tiny

import fedsim
from fedsim.core.clock import ticks
from fedsim.core.errors import InputError, StalledError
from fedsim.exchange.actions import REPORT_UTILITY
from fedsim.exchange.messages import Order
from fedsim.exchange.windows import All, Enough, Every, First
from fedsim.flower import GridError, client_app, run_on_ray, server_app
from fedsim.running.build import build_problem, build_simulation

pytestmark = pytest.mark.usefixtures("local_flower")

# Client i of five takes 1 - 0.2 i seconds: 1.0, 0.8, 0.6, 0.4, 0.2.
SECONDS = [1.0, 0.8, 0.6, 0.4, 0.2]
DEVICES = {"compute": {"kind": "fixed", "spread": 80.0}}
ALL = {"kind": "uniform", "fraction": 1.0}


@pytest.fixture
def clock(monkeypatch):
    """Time that passes in steps of 10 ms, of which all that happens here is a multiple."""
    made = Clock()
    monkeypatch.setattr("fedsim.flower.windows.time", made)
    monkeypatch.setattr("fedsim.flower.nodes.time", made)
    monkeypatch.setattr("fedsim.flower.nodes.PAUSES", (0.01, 0.01))
    return made


def five(strategy="fedavg", client="sgd", **tables):
    """An experiment of five clients that are at work all the time."""
    partition = {"kind": "dirichlet", "clients": 5, "alpha": 0.3, "min_size": 1}
    return tiny(strategy, client, **({"partition": partition, "selection": ALL} | tables))


def timed(clock, *, nodes=5, seconds=SECONDS, experiment=None, **kwargs):
    """An engine over nodes whose clients take so long, and its grid without the messages of the beginning."""
    experiment = five() if experiment is None else experiment
    grid = TimedGrid(client_app(experiment), partitions(nodes), clock, seconds)
    engine = engine_of(experiment, grid, **kwargs)
    grid.seen.clear()
    return engine, grid


def order(engine, clients=range(5), **kwargs):
    params = engine.executor.problem.initial()
    orders = Order("train", torch.tensor(list(clients), dtype=torch.int64), {"params": params}, **kwargs)
    engine.submit(orders)
    return orders


RUNS = {
    "synchronous": {"strategy": "fedavg"},
    "deadline": {"strategy": {"kind": "fedavg", "deadline": 0.5}},
    "first": {"strategy": {"kind": "fedavg", "first": 2}},
    "fedfix": {"strategy": {"kind": "fedfix", "window": 0.5}},
    # Nobody is done in the first of these windows.
    "fedfix_short": {"strategy": {"kind": "fedfix", "window": 0.1}},
    "fedfix_selected": {
        "strategy": {"kind": "fedfix", "window": 0.5, "frequency": "observed"},
        "selection": {"kind": "uniform", "count": 3},
    },
    "fedbuff": {"strategy": {"kind": "fedbuff", "size": 3}},
    "fedbuff_window": {"strategy": {"kind": "fedbuff", "size": 3, "restart": "window", "weights": "unbiased"}},
    "fedasync": {"strategy": {"kind": "fedasync"}},
    "fedavg_async": {"strategy": {"kind": "fedavg_async", "frequency": "observed"}},
    "median": {"strategy": {"kind": "fedbuff", "size": 3}, "aggregation": "median"},
    "scaffold": {"strategy": "scaffold", "client": "scaffold"},
    "scores": {
        "strategy": {"kind": "fedbuff", "size": 2},
        "selection": {"kind": "power_of_choice", "count": 2, "pool": 3},
    },
    "utility": {"strategy": "fedasync", "selection": {"kind": "oort", "count": 2}},
}


def seen(engine: Any) -> dict[str, Any]:
    """A trace, without the ends of work that no window has taken: replies that lie on a grid have no time yet."""
    summary = engine.trace.summary([0.2] * 5, engine.now)
    timeline = [entry | ({"end": None} if entry["outcome"] == "working" else {}) for entry in summary["timeline"]]
    return summary | {"timeline": timeline}


@pytest.mark.parametrize("name", RUNS)
def test_nodes_that_take_declared_times_give_the_run_of_virtual_time(name, clock):
    ends = {"rounds": 1000, "duration": 5.0, "evaluation": {"every_seconds": 0.75}}
    experiment = five(devices=DEVICES, **ends, **RUNS[name])
    problem = build_problem(experiment)
    virtual = build_simulation(experiment, problem)
    engine, _ = timed(clock, experiment=experiment, problem=problem)
    real = build_simulation(experiment, problem, lambda *_: engine)
    expected, found = list(virtual), list(real)
    assert (virtual.params - problem.initial()).norm() > 0.1, "nothing was learnt, so nothing is compared"
    # 0.75, 1.5, ... 4.5, and the end.
    assert [row["time"] for row in found] == [0.75, 1.5, 2.25, 3.0, 3.75, 4.5, 5.0]
    for ours, theirs in zip(expected, found, strict=True):
        assert theirs | {"wall": 0.0} == pytest.approx(ours | {"wall": 0.0}, abs=1e-6)
    torch.testing.assert_close(real.params, virtual.params, rtol=0.0, atol=1e-6)
    assert seen(engine) == seen(virtual.parts.engine)
    assert engine.ledger == virtual.parts.engine.ledger


def test_orders_that_go_on_are_a_message_a_client(clock):
    engine, grid = timed(clock, nodes=2)
    order(engine, [1, 2, 4], round=3, late="keep", turn=2**31 + 9, config={REPORT_UTILITY: True})
    found = [(message.metadata.dst_node_id, dict(message.content["order"])) for message in grid.seen]
    rest = {"action": "train", "turn": 2**31 + 9, "late": "keep"}
    # Node 1007 is partition 0 of 2, which has the even clients.
    assert found == [(1000, {"clients": [1]} | rest), (1007, {"clients": [2]} | rest), (1007, {"clients": [4]} | rest)]
    replies = engine.collect(Every(1.0), 3)
    assert replies.clients.tolist() == [1, 2, 4]
    assert replies.payload["utility"].shape == (3, 1)
    assert replies.versions.tolist() == [3, 3, 3]


def test_a_client_draws_by_its_orders_turn(clock):
    engine, _ = timed(clock)
    found = []
    for turn in (-1, 2**31, 2**31 + 1, 2**31):
        order(engine, [1], late="keep", turn=turn)
        found.append(engine.collect(First(1), 0).payload["delta"])
    assert torch.equal(found[1], found[3])
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[1], found[2])


def test_time_is_the_wall_clocks(clock):
    engine, _ = timed(clock)
    assert engine.now == 0
    clock.sleep(12.5)
    order(engine, [1])
    replies = engine.collect(All(), 0)
    assert replies.durations.tolist() == [ticks(0.8)]
    assert engine.now == ticks(13.3)  # 12.5 + 0.8


def test_a_reply_takes_a_tick_at_least(clock):
    engine, _ = timed(clock, seconds=[0.0] * 5)
    order(engine, [1], late="keep")
    assert engine.collect(First(1), 0).durations.tolist() == [1]


@pytest.mark.parametrize(
    ("window", "clients", "closes"),
    [
        (All(), [0, 1, 2, 3, 4], 1.0),
        (All(0.6), [2, 3, 4], 0.6),
        (Every(0.4), [3, 4], 0.4),
        (Every(1.5), [0, 1, 2, 3, 4], 1.5),
        (First(1), [4], 0.2),
        (First(3), [2, 3, 4], 0.6),
        (First(3, deadline=0.5), [3, 4], 0.5),
        (First(3, deadline=0.9), [2, 3, 4], 0.6),
        (Enough(2.5, 2), [2, 3, 4], 0.7),
        (Enough(2.5, 1), [0, 1, 2, 3, 4], 1.0),
        (Enough(2.5, 1, excused=frozenset({0})), [2, 3, 4], 0.7),
        (Enough(2.5, 2, needed=frozenset({0})), [0, 1, 2, 3, 4], 1.0),
    ],
)
@pytest.mark.parametrize("late", ["cancel", "keep"])
def test_windows_close_when_they_say(window, clients, closes, late, clock):
    engine, _ = timed(clock)
    order(engine, late=late)
    replies = engine.collect(window, 0)
    assert (replies.clients.tolist(), engine.now) == (clients, ticks(closes))
    assert replies.durations.tolist() == [ticks(SECONDS[client]) for client in clients]
    left = 5 - len(clients)
    cancelled = left if late == "cancel" else 0
    assert (engine.in_flight, engine.ledger.late, engine.trace.late) == (left - cancelled, cancelled, cancelled)
    assert engine.free().count == 5 - engine.in_flight
    assert engine.ledger.clients == len(clients)
    assert engine.ledger.bytes_up == len(clients) * 4 * engine.executor.problem.dimension


def test_replies_that_go_on_are_in_the_window_in_which_they_arrive(clock):
    engine, _ = timed(clock)
    order(engine, late="keep")
    assert engine.collect(Every(0.5), 0).clients.tolist() == [3, 4]
    order(engine, [3, 4], round=1, late="keep")
    # From 0.5 to 0.8: client 2 at 0.6, 4 again at 0.7, and 1 at 0.8, the very end. At work are 0 and again 3.
    replies = engine.collect(Every(0.3), 1)
    assert replies.clients.tolist() == [1, 2, 4]
    assert replies.staleness.tolist() == [1, 1, 0]
    assert [replies.orders[origin].round for origin in replies.origin] == [0, 0, 1]
    assert (engine.ledger.late, engine.ledger.staleness, engine.in_flight) == (2, 2, 2)


def test_a_window_stays_open_while_time_is_told(clock):
    engine, _ = timed(clock)
    order(engine, late="keep")
    assert engine.collect(Every(0.5), 0, until=ticks(0.3)) is None
    assert engine.now == ticks(0.3)
    clock.sleep(0.05)  # the server is busy
    replies = engine.collect(Every(0.5), 0, until=ticks(0.9))
    # It opened at 0 and closes at 0.5, not at 0.35 + 0.5.
    assert (engine.now, replies.clients.tolist()) == (ticks(0.5), [3, 4])


def test_a_time_that_is_over_is_told_before_a_window_closes(clock):
    engine, _ = timed(clock)
    order(engine, [4], late="keep")
    clock.sleep(0.4)
    order(engine, [], late="keep")
    # The reply of 0.2 is there, but first the server is to look at the model as of 0.1; time does not go back to it.
    assert engine.collect(First(1), 0, until=ticks(0.1)) is None
    assert engine.now == ticks(0.4)
    assert engine.collect(First(1), 0, until=ticks(0.4)).clients.tolist() == [4]


def test_what_came_while_the_server_was_busy_is_seen_late(clock):
    engine, _ = timed(clock)
    order(engine, late="keep")
    clock.sleep(0.7)
    # The windows' ends are held; what is seen at the first look after 0.7 s has come by then: 4, 3 and 2.
    replies = engine.collect(Every(0.5), 0)
    assert (engine.now, replies.clients.tolist()) == (ticks(0.5), [2, 3, 4])
    assert replies.durations.tolist() == [ticks(0.5)] * 3
    order(engine, [4], round=1, late="keep")
    assert engine.now == ticks(0.7)
    # Until 1.2 s: client 1 at 0.8, 4 at 0.9 and 0 at 1.0.
    assert engine.collect(Every(0.5), 1).clients.tolist() == [0, 1, 4]


def test_ties_are_broken_by_client_within_and_between_messages(clock):
    engine, _ = timed(clock, nodes=2, seconds=[0.3] * 5)
    order(engine)
    # Partition 0 has 0, 2, 4 and partition 1 has 1, 3; all are in at 0.3.
    replies = engine.collect(First(3), 0)
    assert replies.clients.tolist() == [0, 1, 2]
    assert (engine.ledger.clients, engine.ledger.late, engine.free().count) == (3, 2, 5)


def test_every_reply_of_a_message_counts(clock):
    engine, _ = timed(clock, nodes=2)
    order(engine, [0, 1, 2, 4], round=3)
    assert engine.collect(All(), 5).staleness.tolist() == [2] * 4
    assert (engine.ledger.clients, engine.ledger.late, engine.ledger.staleness) == (4, 4, 8)
    assert engine.ledger.bytes_up == engine.ledger.bytes_down == 4 * 4 * engine.executor.problem.dimension


def test_a_reply_that_is_in_waits_for_the_next_window(clock):
    engine, _ = timed(clock, seconds=[0.3] * 5)
    order(engine, late="keep")
    assert engine.collect(First(2), 0).clients.tolist() == [0, 1]
    assert (engine.in_flight, engine.settled()) == (3, False)
    assert engine.collect(First(3), 1).clients.tolist() == [2, 3, 4]
    assert (engine.in_flight, engine.settled()) == (0, True)
    assert engine.now == ticks(0.3)


def test_who_was_told_to_stop_is_never_heard_of_again(clock):
    engine, grid = timed(clock)
    order(engine)
    engine.collect(All(0.5), 0)
    order(engine, [0], round=1)
    # Its first reply would be there at 1.0, its second is at 1.5.
    assert engine.collect(All(), 1).versions.tolist() == [1]
    assert engine.now == ticks(1.5)
    # Of the messages 1 and 2 for the clients 0 to 4, and the last, those of 0, 1 and 2 are left where they are.
    assert len(grid.replies) == 3


def test_updates_that_are_not_finite_count_and_are_left_out(clock):
    class Broken(TimedGrid):
        def reply(self, message, context):
            reply = super().reply(message, context)
            if message.metadata.message_type == "train" and message.content["order"]["clients"] == [3]:
                rows = reply.content["arrays"]["delta"].numpy()
                rows[0, 5] = float("inf")
                reply.content["arrays"] = ArrayRecord({"delta": Array(rows)})
            return reply

    experiment = five()
    engine = engine_of(experiment, Broken(client_app(experiment), partitions(5), clock, SECONDS))
    order(engine, late="keep")
    replies = engine.collect(First(2), 0)
    assert (replies.clients.tolist(), replies.failed.tolist()) == ([4], [3])
    assert (engine.ledger.clients, engine.ledger.failed, engine.free().count) == (2, 1, 2)
    assert (engine.trace.participation, dict(engine.trace.staleness)) == ([0, 0, 0, 0, 1], {0: 1})


@pytest.mark.parametrize(
    ("window", "silent", "moment"),
    [
        # A round must be complete after 1 s; the clients 1 and 3 have answered at 0.8 and 0.4.
        (All(), "0, 2", 1.0),
        # The last reply is that of client 1 at 0.8, and 1 s later there is no other.
        (First(4), "0, 2", 1.8),
    ],
)
def test_silence_ends_after_the_timeout(window, silent, moment, clock):
    engine, _ = timed(clock, seconds=[None, 0.8, None, 0.4, 0.2], timeout=1.0)
    order(engine, late="keep")
    with pytest.raises(GridError, match=f"^no reply within 1 s from partition {silent}$"):
        engine.collect(window, 0)
    assert engine.now == ticks(moment)


def test_a_window_of_time_does_not_mind_silence(clock):
    engine, _ = timed(clock, seconds=[None] * 5, timeout=1.0)
    order(engine, late="keep")
    replies = engine.collect(Every(3.0), 0)
    assert (len(replies), engine.now) == (0, ticks(3.0))
    assert replies.payload["delta"].shape == (0, engine.executor.problem.dimension)
    assert replies.combine(torch.zeros(0)).shape == (engine.executor.problem.dimension,)


def test_a_window_that_nobody_can_fill_is_an_error(clock):
    engine, _ = timed(clock)
    order(engine, [3, 4], late="keep")
    with pytest.raises(StalledError, match=r"^2 replies are in and nobody is at work: a window that waits for 3"):
        engine.collect(First(3), 0)
    assert engine.rest() is False


def test_asynchronous_runs_are_not_saved_and_not_taken_over(clock):
    experiment = five({"kind": "fedbuff", "size": 2}, devices=DEVICES)
    problem = build_problem(experiment)
    engine, _ = timed(clock, experiment=experiment, problem=problem)
    real = build_simulation(experiment, problem, lambda *_: engine)
    real.step()
    with pytest.raises(GridError, match="clients are at work on their nodes; take a snapshot between synchronous"):
        real.snapshot()
    virtual = build_simulation(experiment, problem)
    virtual.step()
    with pytest.raises(GridError, match="clients were at work when this snapshot was taken"):
        real.restore(virtual.snapshot())


def test_clients_that_remember_are_refused_where_they_would_forget(clock):
    experiment = five("scaffold", "scaffold")
    engine, _ = timed(clock, experiment=experiment, nodes=4)
    control = {"control": torch.zeros(engine.executor.problem.dimension)}
    params = {"params": engine.executor.problem.initial()}
    orders = Order("train", torch.tensor([1]), params | control)
    with pytest.raises(GridError, match="5 of them share 4 nodes; give each client a node of its own"):
        engine.submit(replace(orders, late="keep"))
    engine.submit(orders)
    for window in (First(1), All(2.0)):
        with pytest.raises(GridError, match="cannot be told to forget what was late; wait for all replies"):
            engine.collect(window, 0)
    assert engine.collect(All(), 0).clients.tolist() == [1]


def test_virtual_devices_are_refused(monkeypatch):
    experiment = five(devices=DEVICES | {"jitter": 0.1})
    complaint = r"^devices = compute, jitter: describe virtual devices, and on Flower time is real; remove them$"
    with pytest.raises(InputError, match=complaint):
        server_app(experiment)
    with monkeypatch.context() as patched:
        patched.setattr("importlib.util.find_spec", lambda name: name)  # Ray need not be there for that
        with pytest.raises(InputError, match=complaint):
            run_on_ray(experiment)
    config = {"experiment": "digits_fedavg.toml", "overrides": "devices.jitter=0.1"}
    with pytest.raises(InputError, match=r"^devices = jitter: "):
        server_app()(LocalGrid(client_app(), [], config), Context(1, 1, {}, RecordDict(), config))


@pytest.mark.parametrize("strategy", ["fedavg_async", {"kind": "fedfix", "weights": "identical"}])
def test_strategies_that_need_declared_durations_say_so(strategy):
    experiment = five(strategy)
    app = server_app(experiment, save=False)
    with pytest.raises(InputError, match=r"^strategy\.frequency = declared: durations are random or unknown here"):
        app(grid_of(experiment), Context(1, 1, {}, RecordDict(), {}))


def test_a_run_says_how_far_it_is(clock, capsys):
    experiment = five({"kind": "fedbuff", "size": 2}, rounds=20, evaluation={"every": 5, "metrics": "f1_macro"})
    grid = TimedGrid(client_app(experiment), partitions(5), clock, SECONDS)
    server_app(experiment, save=False)(grid, Context(1, 1, {}, RecordDict(), {}))
    said = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in said] == ["round 5/20", "round 10/20", "round 15/20", "round 20/20"]
    assert all(", test_f1_macro 0." in line for line in said)
    tables = {"strategy": {"kind": "fedfix", "window": 0.5}, "evaluation": {"every_seconds": 1.0}}
    timed_ = fedsim.experiment(**{**experiment.resolved(), "duration": 2.0, **tables} | {"rounds": 1000})
    grid = TimedGrid(client_app(timed_), partitions(5), clock, SECONDS)
    server_app(timed_, save=False)(grid, Context(1, 1, {}, RecordDict(), {}))
    assert len(capsys.readouterr().out.splitlines()) == 2
