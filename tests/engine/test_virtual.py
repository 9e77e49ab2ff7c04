"""The virtual engine: what a window holds, when it closes, and what must not depend on how work is executed."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from tallies import Recorder, recorded, spread, taking, tally

import fedsim
from fedsim.core.clock import ticks
from fedsim.core.errors import DivergedError, InputError, StalledError
from fedsim.engine.executor import Executor
from fedsim.engine.virtual import VirtualEngine
from fedsim.exchange.actions import SCORE
from fedsim.exchange.messages import Order
from fedsim.exchange.windows import All, Enough, Every, First
from fedsim.running.build import build_simulation
from fedsim.running.simulation import Simulation
from fedsim.testing.problems import small_experiment as small
from fedsim.testing.problems import small_problem

EVERYBODY = {"kind": "uniform", "fraction": 1.0}
ASYNCHRONOUS: dict[str, dict[str, Any]] = {
    "fedfix": {"kind": "fedfix", "window": 0.3},
    "fedfix observed": {"kind": "fedfix", "window": 0.3, "frequency": "observed"},
    "fedavg_async": {"kind": "fedavg_async"},
    "fedavg_async observed": {"kind": "fedavg_async", "frequency": "observed"},
    "fedbuff": {"kind": "fedbuff", "size": 3},
    "fedbuff window": {"kind": "fedbuff", "size": 3, "restart": "window"},
    "fedasync": {"kind": "fedasync"},
}
OBSERVING = [name for name in ASYNCHRONOUS if name not in {"fedfix", "fedavg_async"}]
SYNCHRONOUS: dict[str, dict[str, Any]] = {
    "fedavg": {"kind": "fedavg"},
    "fedavg deadline": {"kind": "fedavg", "deadline": 0.5},
    "fedavg first": {"kind": "fedavg", "first": 3},
}
EVERY = ASYNCHRONOUS | SYNCHRONOUS
COINS = {"kind": "bernoulli", "probability": 0.4, "period": 0.7}
WAVES = {"kind": "diurnal", "mean": 0.5, "amplitude": 0.5, "day": 4.0, "period": 0.5}
REPAIRED = {"mean_seconds": 1.0, "repair_seconds": 0.4}


def made(name: str, dtype: torch.dtype = torch.float64, rounds: int | None = 12, **tables: Any) -> Simulation:
    tables = {"strategy": EVERY[name], "selection": EVERYBODY, "devices": spread(80), **tables}
    return build_simulation(small(rounds, **tables), small_problem(dtype))


def final(simulated: Simulation) -> torch.Tensor:
    for _ in simulated:
        pass
    return simulated.state.params


# --- Windows


def engine(folder, *seconds: float) -> VirtualEngine:
    """An engine whose clients 0, 1, ... take so many seconds."""
    return tally(len(seconds), rounds=1, devices=taking(folder, *seconds)).parts.engine


def order(machine: VirtualEngine, clients: list[int], late: str = "keep", number: int = 0) -> None:
    params = machine.executor.problem.initial()
    machine.submit(
        Order("train", torch.tensor(clients, dtype=torch.int64), {"params": params}, round=number, late=late)
    )


def taken(machine: VirtualEngine, window: Any, number: int = 0, until: int | None = None) -> list[int] | None:
    replies = machine.collect(window, number, until)
    return None if replies is None else replies.clients.tolist()


def test_ties_go_to_the_smaller_id_whoever_started_first(tmp_path):
    """Client 2 starts at 0 and takes 0.6 s; at 0.3 s client 1 does, then client 0, who take 0.3 s each."""
    machine = engine(tmp_path, 0.3, 0.3, 0.6)
    order(machine, [2])
    assert taken(machine, Every(0.3)) == []
    order(machine, [1])
    order(machine, [0])
    assert [taken(machine, First(1)) for _ in range(3)] == [[0], [1], [2]]
    assert machine.now == ticks(0.6)


def test_a_count_with_more_arriving_at_one_tick_leaves_them_for_the_next(tmp_path):
    machine = engine(tmp_path, 1.0, 1.0, 1.0, 1.0, 2.0)
    order(machine, [0, 1, 2, 3, 4])
    assert taken(machine, First(3)) == [0, 1, 2]
    assert machine.now == ticks(1.0)
    assert machine.in_flight == 2
    # Client 3 has been there since 1 s, client 4 comes at 2 s.
    assert taken(machine, First(2)) == [3, 4]
    assert machine.now == ticks(2.0)


@pytest.mark.parametrize(
    ("window", "clients", "end"),
    [
        (All(), [0, 1, 2], 0.9),
        (All(0.6), [0, 1], 0.6),
        (All(0.599999999), [0], 0.599999999),
        (All(0.9), [0, 1, 2], 0.9),
        (All(5.0), [0, 1, 2], 0.9),
        (First(2), [0, 1], 0.6),
        (First(2, deadline=0.6), [0, 1], 0.6),
        (First(2, deadline=0.5), [0], 0.5),
        (First(3, deadline=0.3), [0], 0.3),
        (First(3, deadline=0.2), [], 0.2),
        (Every(0.6), [0, 1], 0.6),
        (Every(0.2), [], 0.2),
        (Every(2.0), [0, 1, 2], 2.0),
        # Looked at after 1.5 times 0.3 s: two are late; after 2 times: one is, a reply at that very time is not.
        (Enough(0.5, 2), [0], 0.45),
        (Enough(0.5, 1), [0, 1, 2], 0.9),
        (Enough(1.0, 1), [0, 1], 0.6),
        (Enough(0.999999, 1), [0, 1, 2], 0.9),
        (Enough(1.0, 0), [0, 1, 2], 0.9),
        (Enough(1.0, 0, excused=frozenset({2})), [0, 1], 0.6),
        (Enough(0.5, 1, excused=frozenset({1})), [0], 0.45),
        (Enough(1.0, 1, frozenset({2})), [0, 1, 2], 0.9),
        (Enough(1.0, 1, frozenset({2}), frozenset({2})), [0, 1, 2], 0.9),
        (Enough(1.0, 0, frozenset({1}), frozenset({2})), [0, 1], 0.6),
        (Enough(3.0, 2), [0, 1, 2], 0.9),
        (Enough(0.0, -1), [0, 1, 2], 0.9),
    ],
)
def test_what_a_window_holds_and_when_it_closes(tmp_path, window, clients, end):
    """Replies are due at 0.3, 0.6 and 0.9 s."""
    for late in ("keep", "cancel"):
        machine = engine(tmp_path, 0.3, 0.6, 0.9)
        order(machine, [0, 1, 2], late)
        assert taken(machine, window) == clients
        assert machine.now == ticks(end)
        assert machine.in_flight == (3 - len(clients) if late == "keep" else 0)
        assert machine.free().count == (len(clients) if late == "keep" else 3)
        assert machine.ledger.late == (0 if late == "keep" else 3 - len(clients))


def test_windows_follow_one_another(tmp_path):
    """A window opens where the one before has closed: 0.25, 0.5, 0.75, 1.0 s."""
    machine = engine(tmp_path, 0.3, 0.6, 0.9)
    order(machine, [0, 1, 2])
    assert [taken(machine, Every(0.25)) for _ in range(4)] == [[], [0], [1], [2]]
    assert machine.now == ticks(1.0)


def test_an_open_window_stays_open_until_its_own_end(tmp_path):
    """Looked into at 0.2, 0.5 and 0.6 s, a window from 0 to 0.6 s closes at 0.6 s with all that is in it."""
    for window in (Every(0.6), First(2), First(3, deadline=0.6), Enough(1.0, 1)):
        machine = engine(tmp_path, 0.3, 0.6, 0.9)
        order(machine, [0, 1, 2])
        for look in (0.2, 0.5):
            assert taken(machine, window, until=ticks(look)) is None
            assert machine.now == ticks(look)
            assert machine.in_flight == 3
        assert taken(machine, window, until=ticks(0.6)) == [0, 1]
        assert machine.now == ticks(0.6)


@pytest.mark.parametrize("deadline", [0.4, 0.5])
@pytest.mark.parametrize(("refill", "clients"), [(False, [3, 4]), (True, [3, 4, 4])])
def test_a_count_that_is_not_reached_by_its_deadline_closes_then(refill, clients, deadline):
    """tau = 1, 0.8, 0.6, 0.4, 0.2 s: client 3 is in at 0.4 s, client 4 at 0.2 s and with refill again at 0.4 s."""
    simulated = tally(5, rounds=1, strategy={"kind": "fedbuff", "size": 5}, devices=spread(80))
    recorder = Recorder(simulated)
    ask = recorder.ask
    recorder.ask = lambda state, chosen: (ask(state, chosen)[0], First(5, deadline, refill))
    final(simulated)
    (moment,) = recorder.told
    assert moment.now == ticks(deadline)
    assert moment.replies.clients.tolist() == clients


def test_time_does_not_go_back_to_a_reply_that_came_while_losses_were_asked_for(tmp_path):
    """Client 0 answers at 0.3 s; meanwhile the losses of client 1 are waited for, until 0.6 s."""
    machine = engine(tmp_path, 0.3, 0.6)
    order(machine, [0])
    params = machine.executor.problem.initial()
    machine.submit(Order(SCORE, torch.tensor([1]), {"params": params}))
    assert taken(machine, All()) == [1]
    order(machine, [])
    assert taken(machine, First(1)) == [0]
    assert machine.now == ticks(0.6)


def test_staleness_and_versions_are_counted_by_round(tmp_path):
    machine = engine(tmp_path, 0.3, 0.6)
    order(machine, [0, 1])
    assert taken(machine, First(1), number=0) == [0]
    order(machine, [0], number=1)
    replies = machine.collect(First(2), 4)
    assert replies.clients.tolist() == [0, 1]
    assert replies.versions.tolist() == [1, 0]
    assert replies.staleness.tolist() == [3, 4]
    assert machine.ledger.staleness == 7
    assert machine.trace.staleness == {0: 1, 3: 1, 4: 1}
    assert machine.trace.participation == [2, 1]


# --- Failures


def failing(machine: VirtualEngine, moments: dict[int, float], repair: float | None = None) -> None:
    """Let clients fail so many seconds after they have started."""

    def failures(clients: np.ndarray, durations: np.ndarray, turn: int) -> np.ndarray:
        return np.array([ticks(moments[client]) if client in moments else -1 for client in clients.tolist()])

    machine.fleet.failures = failures
    machine.fleet.repair = None if repair is None else ticks(repair)


@pytest.mark.parametrize("window", [All(), First(3), Enough(1.5, 0)])
@pytest.mark.parametrize(
    ("moments", "end", "clients"),
    [
        ({2: 0.7}, 0.7, [0, 1]),
        ({2: 0.5}, 0.6, [0, 1]),
        ({1: 0.2, 2: 0.1}, 0.3, [0]),
        ({0: 0.1, 1: 0.2, 2: 0.4}, 0.4, []),
    ],
)
def test_a_synchronous_round_closes_when_the_last_has_answered_or_failed(tmp_path, window, moments, end, clients):
    machine = engine(tmp_path, 0.3, 0.6, 0.9)
    failing(machine, moments)
    order(machine, [0, 1, 2], "cancel")
    assert taken(machine, window) == clients
    assert machine.now == ticks(end)
    assert machine.ledger.lost == len(moments)
    assert sorted(machine.trace.lost) == sorted(moments)
    assert machine.free().count == len(clients)
    assert machine.in_flight == 0
    summary = machine.trace.summary([0.5, 0.25, 0.25], machine.now)
    assert summary["lost_weight"] == sum([0.5, 0.25, 0.25][client] for client in moments)


def test_who_fails_is_late(tmp_path):
    """Client 0 answers at 0.3 s; client 1 fails, and that is all that a window can do without, or not."""
    for moment, most, end, clients in ((0.2, 1, 0.6, [0, 2]), (0.2, 0, 0.6, [0, 2]), (0.7, 0, 0.7, [0, 2])):
        machine = engine(tmp_path, 0.3, 0.9, 0.4)
        failing(machine, {1: moment})
        order(machine, [0, 1, 2], "cancel")
        assert taken(machine, Enough(1.0, most)) == clients
        assert machine.now == ticks(end if most else max(moment, 0.4))


@pytest.mark.parametrize("window", [All(0.5), First(3, deadline=0.5)])
@pytest.mark.parametrize(("moments", "end", "lost"), [({1: 0.55, 2: 0.7}, 0.5, 0), ({1: 0.35, 2: 0.4}, 0.4, 2)])
def test_a_deadline_is_not_put_off_for_those_that_would_fail_after_it(tmp_path, window, moments, end, lost):
    """Client 0 answers at 0.3 s, and nobody else will."""
    machine = engine(tmp_path, 0.3, 0.6, 0.9)
    failing(machine, moments)
    order(machine, [0, 1, 2], "cancel")
    assert taken(machine, window) == [0]
    assert machine.now == ticks(end)
    assert (machine.ledger.lost, machine.ledger.late, machine.free().count) == (lost, 2 - lost, 3 - lost)


def test_repair_brings_clients_back(tmp_path):
    """Client 1 fails at 0.2 s and is repaired at 0.7 s; it is not lost."""
    machine = engine(tmp_path, 0.3, 0.6)
    failing(machine, {1: 0.2}, repair=0.5)
    order(machine, [0, 1], "cancel")
    assert taken(machine, All()) == [0]
    assert machine.free().mask.tolist() == [True, False]
    assert taken(machine, Every(0.399999999)) == []
    assert machine.free().mask.tolist() == [True, False]
    assert taken(machine, Every(1e-9)) == []
    assert machine.now == ticks(0.7)
    assert machine.free().mask.tolist() == [True, True]
    assert machine.in_flight == 0
    assert machine.ledger.lost == 0
    assert machine.trace.lost == []


def test_who_would_have_failed_after_being_cancelled_has_not(tmp_path):
    machine = engine(tmp_path, 0.3, 0.6)
    failing(machine, {1: 0.5})
    order(machine, [0, 1], "cancel")
    assert taken(machine, First(1)) == [0]
    assert taken(machine, Every(2.0)) == []
    assert (machine.free().count, machine.in_flight, machine.ledger.lost) == (2, 0, 0)


def test_a_window_that_can_never_close_is_stalled(tmp_path):
    machine = engine(tmp_path, 0.3, 0.6)
    failing(machine, {1: 0.5})
    order(machine, [0, 1])
    assert machine.collect(First(2), 0) is None
    assert machine.now == ticks(0.5)
    with pytest.raises(StalledError, match="never closes"):
        machine.collect(First(2), 0)


@pytest.mark.parametrize("name", ["fedfix observed", "fedbuff", "fedbuff window", "fedavg_async observed", "fedavg"])
@pytest.mark.parametrize("every", [{"every": 1}, {"every_seconds": 0.5}])
@pytest.mark.parametrize("availability", ["always", {**COINS, "period": 0.5}], ids=["awake", "asleep"])
@pytest.mark.timeout(10)
def test_a_run_in_which_everybody_is_lost_ends_with_what_it_has(name, every, availability):
    """Also where the model would be judged, or clients that are lost would wake, for ever."""
    devices = {**spread(80), "failure": {"mean_seconds": 1.0}, "availability": availability}
    experiment = small(10_000, strategy=EVERY[name], selection=EVERYBODY, devices=devices, evaluation=every)
    result = fedsim.run(experiment, problem=small_problem(), save=False)
    assert result.status == "stalled"
    assert len(result.history) > 0
    assert result.summary["rounds"] > 0
    assert torch.isfinite(result.params).all()


def test_what_is_lost_is_in_the_run_folder(tmp_path):
    devices = {**spread(80), "failure": {"mean_seconds": 4.0}}
    experiment = small(12, strategy=EVERY["fedfix observed"], selection=EVERYBODY, devices=devices)
    simulated = build_simulation(experiment, small_problem())
    final(simulated)
    lost = simulated.parts.engine.trace.lost
    assert 0 < len(lost) < 6
    assert simulated.parts.engine.ledger.lost == len(lost)
    result = fedsim.run(experiment, problem=small_problem(), out=tmp_path / "run")
    sizes = [7, 3, 12, 1, 5, 9]
    assert result.summary["lost_weight"] == pytest.approx(sum(sizes[client] for client in lost) / 37)


@pytest.mark.parametrize("name", [*OBSERVING, *SYNCHRONOUS])
@pytest.mark.parametrize(
    "devices",
    [{"availability": COINS}, {"availability": WAVES}, {"failure": REPAIRED}],
    ids=["bernoulli", "diurnal", "repair"],
)
def test_runs_go_on_with_clients_that_sleep_or_fail(name, devices):
    """Everybody takes part now and then, but for those that are always too late."""
    simulated = made(name, rounds=40, devices={**spread(80), **devices})
    told = recorded(simulated)
    assert simulated.round == 40
    assert torch.isfinite(simulated.state.params).all()
    late = {"fedavg deadline": {0, 1, 2, 3}}.get(name, set())
    assert {client for moment in told for client in moment.replies.clients.tolist()} == set(range(6)) - late
    assert simulated.parts.engine.ledger.lost == 0


def test_clients_that_sleep_or_are_repaired_start_when_others_do():
    """Whoever starts is awake then, and nobody is at work twice."""
    simulated = made("fedbuff", rounds=40, devices={**spread(80), "availability": COINS})
    machine, seen = simulated.parts.engine, []
    submit = machine.submit

    def submitted(orders: Order) -> None:
        asked = orders.clients.numpy()
        assert machine.fleet.available(machine.now)[asked].all()
        assert machine.free().mask[asked].all()
        seen.extend(asked.tolist())
        submit(orders)

    machine.submit = submitted
    final(simulated)
    assert len(seen) >= 120


# --- Judging the model, and the end


@pytest.mark.parametrize(
    ("name", "devices", "every"),
    [
        *((name, {}, (0.05, 0.3, 0.37, 1.0, 50.0)) for name in EVERY),
        *((name, {"availability": COINS}, (0.05, 0.37)) for name in [*OBSERVING, *SYNCHRONOUS]),
        *((name, {"failure": REPAIRED}, (0.05, 0.37)) for name in [*OBSERVING, *SYNCHRONOUS]),
    ],
)
def test_when_the_model_is_judged_changes_nothing_of_the_run(name, devices, every):
    devices = {**spread(80), **devices}
    plain = made(name, devices=devices)
    end = final(plain)
    for seconds in every:
        judged = made(name, devices=devices, evaluation={"every_seconds": seconds})
        assert torch.equal(end, final(judged)), seconds
        assert plain.parts.engine.now == judged.parts.engine.now, seconds
        assert plain.parts.engine.ledger == judged.parts.engine.ledger, seconds


def test_a_look_at_a_windows_end_sees_the_new_model_and_one_before_it_the_old():
    """Windows of 0.5 s, looks every 0.25 s."""
    simulated = made("fedfix", rounds=3, strategy={"kind": "fedfix"}, evaluation={"every_seconds": 0.25})
    models = [simulated.state.params]
    found = []
    for row in simulated:
        found.append((row["time"], row["round"]))
        if row["round"] == len(models):
            models.append(simulated.params)
        assert torch.equal(simulated.params, models[row["round"]])
    assert found == [(0.25, 0), (0.5, 1), (0.75, 1), (1.0, 2), (1.25, 2), (1.5, 3)]
    assert len({tuple(model.tolist()) for model in models}) == 4


def test_the_look_at_the_moment_of_several_steps_sees_the_last():
    """Six equal clients, each reply a step: at 1 s there are six steps."""
    rows = list(made("fedavg_async", devices=spread(0), evaluation={"every_seconds": 1.0}))
    assert [(row["time"], row["round"]) for row in rows] == [(1.0, 6), (2.0, 12)]


@pytest.mark.parametrize(
    ("tables", "expected"),
    [
        # Rounds of 1 s.
        ({"strategy": "fedavg", "duration": 3.0}, [(1.0, 1), (2.0, 2), (3.0, 3)]),
        # The orders of a round that is not completed are in a row of their own, at the end.
        ({"strategy": "fedavg", "duration": 3.5}, [(1.0, 1), (2.0, 2), (3.0, 3), (3.5, 3)]),
        ({"strategy": "fedavg", "duration": 2.999999999}, [(1.0, 1), (2.0, 2), (2.999999999, 2)]),
        ({"strategy": "fedavg", "duration": 3.0, "rounds": 2}, [(1.0, 1), (2.0, 2)]),
        ({"strategy": "fedavg", "duration": 2.0, "rounds": 5}, [(1.0, 1), (2.0, 2)]),
        (
            {"strategy": "fedavg", "duration": 2.5, "evaluation": {"every_seconds": 1.0}},
            [(1.0, 1), (2.0, 2), (2.5, 2)],
        ),
        ({"strategy": "fedavg", "duration": 2.0, "evaluation": {"every_seconds": 1.0}}, [(1.0, 1), (2.0, 2)]),
        # Windows of 0.2 s.
        (
            {"strategy": {"kind": "fedfix", "window": 0.2}, "duration": 1.0, "evaluation": {"every": 2}},
            [(0.4, 2), (0.8, 4), (1.0, 5)],
        ),
        (
            {"strategy": {"kind": "fedfix", "window": 0.2}, "duration": 0.7, "evaluation": {"every": 2}},
            [(0.4, 2), (0.7, 3)],
        ),
        (
            {"strategy": {"kind": "fedfix", "window": 0.2}, "duration": 0.9, "evaluation": {"every_seconds": 0.5}},
            [(0.5, 2), (0.9, 4)],
        ),
        (
            {"strategy": {"kind": "fedfix", "window": 0.2}, "duration": 9.0, "rounds": 3, "evaluation": {"every": 0}},
            [(0.6, 3)],
        ),
    ],
)
def test_a_run_ends_at_its_duration_or_after_its_rounds_whichever_is_first(tables, expected):
    tables = {"rounds": None, "selection": EVERYBODY, "devices": spread(80), "evaluation": {"every": 1}, **tables}
    rows = list(build_simulation(small(**tables), small_problem()))
    assert [(row["time"], row["round"]) for row in rows] == expected


@pytest.mark.parametrize("name", EVERY)
def test_a_run_goes_on_from_any_row_also_within_a_window(name):
    """Looks every 0.17 s, most of them while a window is open."""
    tables = {"rounds": None, "duration": 2.0, "evaluation": {"every_seconds": 0.17}}
    whole = made(name, **tables)
    snapshots, rows = [], []
    for row in whole:
        snapshots.append(whole.snapshot())
        rows.append({**row, "wall": 0})
    assert len(rows) == 12  # 11 x 0.17 = 1.87, and the end
    for number in (1, 4, 9):
        again = made(name, **tables)
        again.restore(snapshots[number])
        assert [{**row, "wall": 0} for row in again] == rows[number + 1 :]
        assert torch.equal(again.state.params, whole.state.params)


@pytest.mark.parametrize(("duration", "replies"), [(11.9, 132), (12.0, 137)])
def test_what_is_due_at_the_end_of_an_asynchronous_run_is_in_it(duration, replies):
    """floor(T / tau) replies, tau = 1, 0.8, 0.6, 0.4, 0.2: 12 + 15 + 20 + 30 + 60 in 12 s, five of them at 12 s."""
    strategy = {"kind": "fedavg_async", "weights": "identical"}
    simulated = tally(5, duration=duration, strategy=strategy, selection=EVERYBODY, devices=spread(80))
    assert final(simulated).sum() == replies
    assert simulated.round == replies
    assert simulated.parts.engine.now == ticks(duration)


# --- Execution


@pytest.mark.parametrize("name", ASYNCHRONOUS)
def test_which_replies_are_computed_together_changes_no_bit(name, monkeypatch):
    client = {"kind": "sgd", "epochs": 2, "batch_size": 4, "lr": 0.1, "optimizer": {"kind": "sgd", "momentum": 0.9}}
    tables = {"client": client, "rounds": 20, "dtype": torch.float32, "engine": {"executor": "stacked"}}
    together = final(made(name, **tables))
    monkeypatch.setattr(Executor, "together", property(lambda self: 1))
    assert torch.equal(final(made(name, **tables)), together)


@pytest.mark.parametrize("name", ["fedfix", "fedbuff", "fedavg_async"])
def test_replies_are_computed_many_at_a_time(name, monkeypatch):
    """200 clients and more than a thousand replies, which do not fill the memory budget."""
    strategy = EVERY[name] | ({"size": 20} if name == "fedbuff" else {})
    simulated = tally(200, duration=5.0, strategy=strategy, selection=EVERYBODY, devices=spread(80))
    executor, sizes = simulated.parts.engine.executor, []
    execute = executor.execute
    monkeypatch.setattr(executor, "execute", lambda job: sizes.append(len(job)) or execute(job))
    final(simulated)
    replies = simulated.parts.engine.ledger.clients
    assert replies > 1000
    assert len(sizes) < replies / 40
    # Nothing is computed twice, and nothing that was not asked for.
    assert replies <= sum(sizes) <= replies + 200


def test_every_byte_is_in_some_row():
    """Rounds of 1 s to 2.5 s: what is sent for the third is in the last row."""
    simulated = made("fedavg", rounds=None, duration=2.5, devices={})
    rows = list(simulated)
    for name in ("bytes_up", "bytes_down", "clients"):
        assert sum(row[name] for row in rows) == getattr(simulated.parts.engine.ledger, name)
    assert rows[-1]["bytes_down"] > 0


# --- Asking for losses, then training


BAD = {"kind": "sgd", "epochs": 12, "lr": 1e30, "weight_decay": 1.0}
"""Weights grow by 1e30 a step, and are beyond double precision after eleven."""
SCORED = {"kind": "power_of_choice", "count": 2, "pool": 6}


def test_to_be_asked_for_a_loss_is_no_participation():
    simulated = made("fedavg", rounds=4, selection=SCORED, devices={})
    rows = list(simulated)
    machine = simulated.parts.engine
    assert sum(row["clients"] for row in rows) == sum(machine.trace.participation) == 4 * 2
    assert machine.trace.staleness == {0: 8}
    # Six are asked and two train: d numbers go down to each, one loss and d numbers come up.
    d = simulated.params.numel() * simulated.params.element_size()
    assert machine.ledger.bytes_down == 4 * (6 + 2) * d
    assert machine.ledger.bytes_up == 4 * (6 * simulated.params.element_size() + 2 * d)


def test_who_fails_while_losses_are_asked_for_is_not_sent_to_train():
    """With a mean time to failure of 2 s and orders of 1 s, 39 % of those asked and of those trained fail."""
    asked, trained = 0, 0
    for seed in range(40):
        devices = {"failure": {"mean_seconds": 2.0, "repair_seconds": 1.0}}
        simulated = made("fedavg", rounds=10, seed=seed, selection=SCORED, devices=devices)
        machine, submit = simulated.parts.engine, simulated.parts.engine.submit

        def submitted(orders: Order, machine: Any = machine, submit: Any = submit) -> None:
            nonlocal trained
            assert machine.free().mask[orders.clients.numpy()].all()
            trained += 0 if orders.action == SCORE else len(orders.clients)
            submit(orders)

        machine.submit = submitted
        final(simulated)
        assert machine._idle_count == machine._idle.sum()
        asked += machine.ledger.clients
    # 1 - exp(-1/2) = 0.3935; of about 700 trained that is known to 0.04 (two standard deviations).
    assert 1 - asked / trained == pytest.approx(0.3935, abs=0.05)


def test_updates_that_are_never_finite_end_a_run_that_asks_for_losses():
    simulated = made("fedbuff", rounds=2, strategy={"kind": "fedbuff", "size": 2}, selection=SCORED, client=BAD)
    with pytest.raises(DivergedError):
        list(simulated)


def test_everybody_asleep_ends_a_run_that_is_judged_in_time(monkeypatch):
    monkeypatch.setattr("fedsim.running.hopeless.RESTS", 50)
    asleep = {"availability": {"kind": "bernoulli", "probability": 1e-12, "period": 1.0}}
    with pytest.raises(StalledError):
        list(made("fedavg", rounds=2, devices=asleep, evaluation={"every_seconds": 1.0}))


# --- Stopping early in virtual time


def test_patience_counts_models_and_not_looks():
    """Rounds of 10.5 s, looks each second: five looks at the first model are one."""
    stopping = {"metric": "test_loss", "patience": 5}
    slow = {"compute": {"kind": "fixed", "seconds": 10.5}}
    plain = {"evaluation": {"every_seconds": 1.0}, "stopping": stopping, "devices": slow}
    simulated = made("fedavg", rounds=4, **plain)
    rows = list(simulated)
    assert simulated.stopped is None
    assert rows[-1]["round"] == 4


def test_a_run_ends_at_the_look_that_reaches_its_target():
    stopping = {"metric": "test_loss", "target": 1e9}
    simulated = made("fedavg", rounds=9, evaluation={"every_seconds": 0.4}, stopping=stopping, devices={})
    assert [row["time"] for row in simulated] == [0.4]
    assert simulated.stopped is not None


def test_rows_of_an_open_window_are_kept_when_the_run_diverges():
    slow = {"compute": {"kind": "fixed", "seconds": 10.0}}
    rows = iter(made("fedavg", rounds=2, devices=slow, client=BAD, evaluation={"every_seconds": 3.0}))
    assert [next(rows)["time"] for _ in range(3)] == [3.0, 6.0, 9.0]
    with pytest.raises(DivergedError):
        next(rows)


def test_an_empty_window_moves_nothing_though_the_server_has_momentum():
    strategy = {"kind": "fedfix", "window": 0.25, "server_optimizer": {"kind": "sgd", "momentum": 0.9}}
    simulated = made("fedfix", rounds=8, strategy=strategy, devices={}, evaluation={"every_seconds": 0.25})
    models = [simulated.state.params, *(simulated.params for _ in simulated)]
    moved = [not torch.equal(before, after) for before, after in pairwise(models)]
    assert moved == [False, False, False, True] * 2


@pytest.mark.parametrize("window", [1e-12, 1e300])
@pytest.mark.parametrize("option", ["duration", "evaluation.every_seconds", "strategy.deadline"])
def test_seconds_that_the_clock_cannot_count_are_refused(option, window):
    table, _, name = option.rpartition(".")
    tables = {table: {name: window, **({"kind": "fedavg"} if table == "strategy" else {})}} if table else {name: window}
    with pytest.raises(InputError, match=option):
        small(**tables)


def test_an_aggregator_that_a_window_cannot_feed_is_refused_before_the_run():
    krum = {"kind": "krum", "malicious": 2}
    with pytest.raises(InputError, match="malicious"):
        made("fedbuff", strategy={"kind": "fedbuff", "size": 3}, aggregation=krum)
