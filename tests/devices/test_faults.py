"""Faults on demand: what each kind does to a round, whom it befalls, and that every run goes on.

Most runs are of clients that are counted (see `tallies`): each sends the unit vector of its own coordinate, so that
after a round of FedAvg with equal clients theta_i is 1/k for those whose k replies were used.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import tomllib
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
from contract import ROWS, subject
from tallies import Tally, recorded, taking, tally, tally_problem

import fedsim
from fedsim.cli import words
from fedsim.core.clock import SECOND, ticks
from fedsim.core.errors import DivergedError, InputError, StalledError
from fedsim.core.graph import decode, encode
from fedsim.core.streams import Streams
from fedsim.devices.faults import DropBefore, Fate, Faults, NonFinite, Scale, SignFlip, WrongShape
from fedsim.exchange.messages import Order, Update, joined
from fedsim.exchange.windows import All, Every, First
from fedsim.running.build import build_simulation
from fedsim.running.seeds import run_seeds
from fedsim.running.simulation import Simulation
from fedsim.testing.problems import small_experiment as small
from fedsim.testing.problems import small_problem

pytestmark = pytest.mark.usefixtures("unpainted")

KINDS = ("drop_before", "drop_after", "crash", "late", "duplicate", "non_finite", "wrong_shape", "sign_flip", "scale")
SILENT = ("drop_before", "drop_after", "crash")
"""Kinds of which no reply comes."""
SPOILED = ("non_finite", "wrong_shape")
"""Kinds whose reply is left out."""
MIXTURE: dict[str, Any] = {
    "drop_before": 0.04,
    "drop_after": 0.04,
    "crash": {"rate": 0.04, "repair_seconds": 0.3},
    "late": {"rate": 0.03, "seconds": 0.5},
    "duplicate": {"rate": 0.03, "seconds": 0.2},
    "non_finite": 0.03,
    "wrong_shape": 0.03,
    "sign_flip": 0.03,
    "scale": 0.03,
}
"""All kinds, 30 % in all."""
FEDBUFF = {"kind": "fedbuff", "size": 3}


def final(simulated: Simulation) -> torch.Tensor:
    for _ in simulated:
        pass
    return simulated.state.params


def always(kind: str, *clients: int, **options: Any) -> dict[str, Any]:
    """A table in which these clients always have the fault."""
    return {kind: {"rate": 1.0, "clients": list(clients), **options}}


def run_of(row: str, **tables: Any) -> Simulation:
    return build_simulation(small(**{**ROWS[row], **tables}), subject(row).problem())


# --- What each kind does


@pytest.mark.parametrize(
    ("faults", "theta", "up"),
    [
        ({}, [1 / 4] * 4, 16),
        (always("drop_before", 1), [1 / 3, 0, 1 / 3, 1 / 3], 12),
        (always("drop_after", 1), [1 / 3, 0, 1 / 3, 1 / 3], 12),
        (always("crash", 1), [1 / 3, 0, 1 / 3, 1 / 3], 12),
        (always("late", 1, seconds=2.5), [1 / 4] * 4, 16),
        (always("duplicate", 1), [1 / 4] * 4, 20),
        (always("non_finite", 1), [1 / 3, 0, 1 / 3, 1 / 3], 16),
        (always("non_finite", 1, value="inf"), [1 / 3, 0, 1 / 3, 1 / 3], 16),
        (always("wrong_shape", 1), [1 / 3, 0, 1 / 3, 1 / 3], 17),
        (always("sign_flip", 1), [1 / 4, -1 / 4, 1 / 4, 1 / 4], 16),
        (always("scale", 1), [1 / 4, 10 / 4, 1 / 4, 1 / 4], 16),
        (always("scale", 1, factor=-0.5), [1 / 4, -1 / 8, 1 / 4, 1 / 4], 16),
    ],
)
def test_a_round_of_four_clients_of_whom_one_is_faulty(faults, theta, up) -> None:
    """A reply and an order are 4 numbers of 8 bytes each; the order crosses whatever comes of it."""
    simulated = tally(4, rounds=1, faults=faults)
    (row,) = simulated
    assert torch.allclose(simulated.state.params, torch.tensor(theta, dtype=torch.float64), rtol=1e-12)
    assert (row["bytes_down"], row["bytes_up"]) == (16 * 8, up * 8)
    kind = next(iter(faults), None)
    assert row["clients"] == (3 if kind in SILENT else 4)
    assert row["failed"] == (kind in SPOILED)
    assert row["crashed"] == (kind == "crash")
    assert row["lost"] == 0
    assert row["faults"] == (kind is not None)
    assert simulated.parts.engine.trace.faults == ({} if kind is None else {kind: 1})
    # A second for each order, and the late one 2.5 s more.
    assert row["time"] == (3.5 if kind == "late" else 1.0)
    engine = simulated.parts.engine
    assert (engine.in_flight, engine.free().count) == (0, 4)


def test_a_change_beyond_the_range_of_numbers_is_left_out() -> None:
    """1e308 times 1 is a number, times 2 it is not."""

    class Doubled(Tally):
        def train(self, cohort) -> Update:
            return Update({"delta": 2 * super().train(cohort).payload["delta"]})

    experiment = fedsim.experiment(rounds=1, evaluation={"every": 0}, faults=always("scale", 1, factor=1e308))
    simulated = build_simulation(dataclasses.replace(experiment, client=Doubled()), tally_problem([1] * 3))
    (row,) = simulated
    assert simulated.state.params.tolist() == [1, 0, 1]
    assert (row["failed"], row["faults"]) == (1, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_client_remembers_moves_on_if_it_has_done_its_work(kind: str) -> None:
    """SCAFFOLD's control variates after a round: those of a client that did nothing are 0, as before it."""
    rows = {}
    for name, faults in (("well", {}), ("faulty", always(kind, 2))):
        simulated = run_of("scaffold", rounds=1, selection={"kind": "uniform", "fraction": 1.0}, faults=faults)
        final(simulated)
        store = simulated.parts.engine.executor.store.snapshot()
        kept = dict(zip(store["clients"].tolist(), store["control"], strict=True))
        rows[name] = kept.get(2, torch.zeros_like(kept[0]))
    assert rows["well"].abs().max() > 0
    works = kind not in ("drop_before", "crash")
    assert torch.equal(rows["faulty"], rows["well"] if works else torch.zeros_like(rows["well"]))


def test_a_lost_reply_leaves_what_its_client_remembers_to_its_next_order() -> None:
    """Client 2's first reply is lost: in the second round it corrects with the control variate of the first."""
    everybody = {"kind": "uniform", "fraction": 1.0}
    faults = always("drop_after", 2)
    lost, unheard = (run_of("scaffold", rounds=2, selection=everybody, faults=table) for table in (faults, {}))
    drawn = lost.parts.engine.faults.fates
    lost.parts.engine.faults.fates = lambda *given: drawn(*given) if given[-1] == 0 else [Fate()] * 6
    tell, heard = unheard.parts.strategy.tell, []

    class Deaf:
        """A server that does not hear client 2 in the first round."""

        ask = staticmethod(unheard.parts.strategy.ask)
        down = unheard.parts.strategy.down

        @staticmethod
        def tell(state, replies):
            heard.append(len(replies))
            return tell(state, replies.where(replies.clients != 2) if state.round == 0 else replies)

    unheard.parts = dataclasses.replace(unheard.parts, strategy=Deaf())
    assert torch.equal(final(lost), final(unheard))
    assert heard == [6, 6]


def test_a_client_that_breaks_off_does_so_at_a_drawn_moment_and_is_free_once_it_is_repaired() -> None:
    """Client 1, who would take 1 s, breaks off after u s and is away for another 1.5 s: it misses the second round."""
    simulated = tally(3, rounds=3, faults=always("crash", 1, repair_seconds=1.5))
    drawn = Streams(0).uniform("faults/moment", torch.tensor([1]), dtype=torch.float64)
    moment = max(1, int(float(drawn) * SECOND))
    assert 0 < moment < SECOND
    rows = list(simulated)
    # In the third round it breaks off again, if it is back by 2 s.
    back = moment + ticks(1.5) <= ticks(2)
    assert [row["crashed"] for row in rows] == [1, 0, int(back)]
    timeline = simulated.parts.engine.trace.summary([1 / 3] * 3, simulated.parts.engine.now)["timeline"]
    first = next(entry for entry in timeline if entry["client"] == 1)
    assert (first["end"], first["outcome"]) == (moment / SECOND, "failed")


@pytest.mark.parametrize("kind", ["drop_before", "drop_after"])
def test_who_does_not_answer_is_at_work_until_its_reply_would_be_due(tmp_path, kind: str) -> None:
    """Client 1 takes 2 s, client 0 takes 1 s: a round waits for the broken connection, a deadline does not."""
    devices = taking(tmp_path, 1.0, 2.0)
    simulated = tally(2, rounds=1, devices=devices, faults=always(kind, 1))
    (row,) = simulated
    assert row["time"] == 2.0
    trace = simulated.parts.engine.trace.summary([0.5, 0.5], simulated.parts.engine.now)
    assert [(entry["end"], entry["outcome"]) for entry in trace["timeline"]] == [(1.0, "used"), (2.0, "dropped")]
    strategy = {"kind": "fedavg", "deadline": 1.5}
    (row,) = tally(2, rounds=1, strategy=strategy, devices=devices, faults=always(kind, 1))
    assert (row["time"], row["late"], row["faults"]) == (1.5, 1, 0)  # it is told to stop before anything shows


@pytest.mark.parametrize(("deadline", "theta", "late"), [(2.0, [1.0, 0.0], 1), (3.5, [0.5, 0.5], 0)])
def test_a_late_reply_may_be_too_late(deadline: float, theta: list[float], late: int) -> None:
    """Due at 1 s, it comes at 3.5 s."""
    strategy = {"kind": "fedavg", "deadline": deadline}
    simulated = tally(2, rounds=1, strategy=strategy, faults=always("late", 1, seconds=2.5))
    (row,) = simulated
    assert simulated.state.params.tolist() == theta
    assert (row["time"], row["late"], row["faults"]) == (deadline, late, 1)


def test_a_late_reply_of_an_asynchronous_run_is_stale() -> None:
    """Windows of 1 s: client 0 is in each of them, client 1, due at 1 s, comes at 3 s, in the third."""
    strategy = {"kind": "fedfix", "window": 1.0, "frequency": "observed"}
    told = recorded(tally(2, rounds=3, strategy=strategy, faults=always("late", 1, seconds=2.0)))
    assert [moment.replies.clients.tolist() for moment in told] == [[0], [0], [0, 1]]
    assert told[2].replies.staleness.tolist() == [0, 2]
    assert told[2].replies.durations.tolist() == [ticks(1), ticks(3)]


def test_a_copy_costs_bytes_when_it_comes_and_nothing_else() -> None:
    """Rounds of 1 s; the copy of a reply of 1, 2, ... s comes 1.5 s after it: at 2.5, 3.5, ... s."""
    faults = always("duplicate", 1, seconds=1.5)
    simulated, plain = (tally(4, rounds=4, faults=table) for table in (faults, {}))
    rows, expected = list(simulated), list(plain)
    assert torch.equal(simulated.state.params, plain.state.params)
    assert [row["faults"] for row in rows] == [0, 0, 1, 1]
    assert [row["bytes_up"] for row in rows] == [16 * 8, 16 * 8, 20 * 8, 20 * 8]
    assert [row["clients"] for row in rows] == [row["clients"] for row in expected] == [4] * 4


def test_the_reply_of_a_machine_that_has_failed_has_no_fault() -> None:
    simulated = tally(2, rounds=1, faults={"sign_flip": 1.0})
    fleet = simulated.parts.engine.fleet
    fleet.failures = lambda clients, durations, turn: np.where(clients == 1, ticks(0.5), -1)
    (row,) = simulated
    assert simulated.state.params.tolist() == [-1, 0]
    assert (row["crashed"], row["lost"], row["faults"]) == (1, 1, 1)


# --- What arrives


@pytest.mark.parametrize(
    ("fault", "sent", "told"),
    [
        (SignFlip(rate=1), {"delta": [1.5, -2.0]}, {"delta": [-1.5, 2.0]}),
        (Scale(rate=1, factor=-3), {"delta": [1.5], "nu": 2.0}, {"delta": [-4.5], "nu": -6.0}),
        # Integers beside floating numbers are places, names or counts, and stay.
        (
            SignFlip(rate=1),
            {"places": np.int32([3, 4]), "scalars": [1.0, 2.0]},
            {"places": [3, 4], "scalars": [-1, -2]},
        ),
        # Of integers alone all are codes, clipped to -128 .. 127, and to 0 .. 255.
        (SignFlip(rate=1), {"codes": np.int8([-128, -127, 0, 5])}, {"codes": [127, 127, 0, -5]}),
        (Scale(rate=1, factor=2.5), {"codes": np.int8([-100, 1, 3, 60])}, {"codes": [-128, 2, 8, 127]}),
        (SignFlip(rate=1), {"codes": np.uint8([0, 7])}, {"codes": [0, 0]}),
        (Scale(rate=1), {"codes": np.uint8([3, 200])}, {"codes": [30, 255]}),
        (Scale(rate=1), {"codes": np.int64([2**62, -(2**62), 7])}, {"codes": [2**63 - 1, -(2**63), 70]}),
        (SignFlip(rate=1), {"codes": np.int64([-(2**63), 5])}, {"codes": [2**63 - 1, -5]}),
        (NonFinite(rate=1), {"delta": [1.0, 2.0], "n": np.int64([1])}, {"delta": [math.nan, 2.0], "n": [1]}),
        (NonFinite(rate=1, value="inf"), {"loss": 3.0}, {"loss": math.inf}),
        (WrongShape(rate=1), {"delta": [1.0, 2.0], "nu": 4.0}, {"delta": [1.0, 2.0, 0.0], "nu": [4.0, 0.0]}),
    ],
)
def test_what_becomes_of_a_payload(fault, sent, told) -> None:
    payload = {name: torch.as_tensor(value) for name, value in sent.items()}
    before = {name: rows.clone() for name, rows in payload.items()}
    found = fault.told(payload)
    for name, rows in payload.items():
        expected = torch.as_tensor(told[name]).to(rows.dtype)
        assert found[name].dtype == rows.dtype
        assert torch.equal(found[name].nan_to_num(7.0), expected.nan_to_num(7.0))
        assert torch.equal(rows, before[name])  # what was lent is never edited


@pytest.mark.parametrize("fault", [NonFinite(rate=1), DropBefore(rate=1)])
def test_what_cannot_change_is_the_very_same(fault) -> None:
    payload = {"codes": torch.zeros(3, dtype=torch.int8)}
    assert fault.told(payload) is payload


# --- Windows


def order(simulated: Simulation, clients: list[int], late: str = "keep", number: int = 0) -> None:
    payload = {"params": simulated.state.params}
    simulated.parts.engine.submit(Order("train", torch.tensor(clients), payload, round=number, late=late))


def test_a_count_does_not_count_who_will_not_answer() -> None:
    """Of three clients who take 1 s, 0 is not heard: the second reply is client 2's."""
    simulated = tally(3, rounds=1, faults=always("drop_after", 0))
    engine = simulated.parts.engine
    order(simulated, [0, 1, 2])
    replies = engine.collect(First(2), 0)
    assert replies.clients.tolist() == [1, 2]
    assert engine.now == ticks(1)
    assert (engine.in_flight, engine.ledger.faults) == (0, 1)


def test_a_count_that_lacks_replies_goes_on_when_a_client_is_free() -> None:
    """Client 0 is free at 1 s, when it could be sent another order: the window is open still."""
    simulated = tally(2, rounds=1, faults=always("drop_before", 0))
    engine = simulated.parts.engine
    order(simulated, [0, 1])
    assert engine.collect(First(2), 0) is None
    assert engine.now == ticks(1)
    assert engine.free().mask.tolist() == [True, False]
    order(simulated, [0], number=1)
    assert engine.collect(First(2), 1) is None
    assert (engine.now, engine.ledger.faults) == (ticks(2), 2)
    with pytest.raises(StalledError, match="never closes"):
        engine.collect(First(2), 1)


def test_who_is_told_to_stop_has_no_fault_unless_it_was_late() -> None:
    for kind, shown in (("drop_after", 0), ("crash", 0), ("sign_flip", 0), ("late", 1)):
        simulated = tally(2, rounds=1, faults=always(kind, 1), devices={"compute": {"kind": "fixed", "spread": 99.0}})
        engine = simulated.parts.engine
        engine.faults.fates = lambda clients, durations, turn, kind=kind: [
            Fate(kind, ends=-1 if kind in ("sign_flip", "late") else ticks(0.9)) if client == 0 else Fate()
            for client in clients.tolist()
        ]
        engine._kinds = Faults(**{kind: 1.0}).kinds
        order(simulated, [0, 1], "cancel")
        assert engine.collect(First(1), 0).clients.tolist() == [1]  # the fastest takes 0.01 s
        assert engine.collect(Every(5.0), 0).clients.tolist() == []
        assert (engine.ledger.faults, engine.ledger.late, engine.free().count) == (shown, 1, 2)


def test_windows_that_are_joined_have_failed_together() -> None:
    """The replies of client 0, which are left out, to one order after the other."""
    simulated = tally(1, rounds=1, faults={"non_finite": 1.0})
    parts = []
    for number in range(2):
        order(simulated, [0], number=number)
        parts.append(simulated.parts.engine.collect(First(1), number))
    assert joined(parts).failed.tolist() == [0, 0]
    assert joined(parts).spoiled == 2


def test_requests_for_losses_go_through() -> None:
    """Power of choice asks for losses first, and nobody fails to tell: only the three that then train are silent."""
    selection = {"kind": "power_of_choice", "count": 3, "pool": 5}
    experiment = small(1, selection=selection, faults={"drop_before": 1.0})
    (row,) = build_simulation(experiment, small_problem())
    assert (row["faults"], row["clients"]) == (3, 0)
    assert row["bytes_up"] == 5 * 8  # the losses


# --- Whom it befalls


def fates(faults: dict[str, Any], clients: Any, turn: int = 0, seed: int = 0, population: int = 1000) -> list[Fate]:
    made = Faults(**faults).start(population, Streams(seed))
    ids = np.asarray(clients)
    return made.fates(ids, np.full(len(ids), 100), turn)


def test_rates_are_kept_and_nobody_has_two() -> None:
    """Of n = 20,000 orders each kind has p n, within 4 standard deviations sqrt(n p (1 - p))."""
    rates = dict(zip(KINDS, (0.01, 0.02, 0.05, 0.1, 0.2, 0.02, 0.15, 0.05, 0.3), strict=True))
    found = [fate.fault for turn in range(20) for fate in fates(rates, range(1000), turn)]
    for kind, rate in [*rates.items(), (None, 0.1)]:
        assert abs(found.count(kind) - 20_000 * rate) < 4 * math.sqrt(20_000 * rate * (1 - rate))


def test_all_is_settled_by_client_and_turn() -> None:
    whole = fates(MIXTURE, range(1000), turn=3)
    some = [7, 400, 401, 999]
    assert fates(MIXTURE, some, turn=3) == [whole[client] for client in some]
    assert len({tuple(fates(MIXTURE, range(1000), turn)) for turn in (3, 4, 3 + 2**32)}) == 3
    assert fates(MIXTURE, range(1000), turn=3, seed=1) != whole


def test_a_share_of_the_clients_can_have_it() -> None:
    def liars(share: float, seed: int = 0, kind: str = "scale") -> set[int]:
        table = {kind: {"rate": 1.0, "share": share}}
        struck = [fates(table, range(20), turn, seed, 20) for turn in range(3)]
        assert struck[0] == struck[1] == struck[2]
        return {client for client, fate in enumerate(struck[0]) if fate.fault is not None}

    assert len(liars(0.3)) == 6
    assert len(liars(0.001)) == 1
    assert len(liars(1.0)) == 20
    assert liars(0.1) < liars(0.3)
    assert liars(0.3, seed=1) != liars(0.3) != liars(0.3, kind="sign_flip")


def test_named_clients_alone_can_have_it() -> None:
    table = {"sign_flip": {"rate": 1.0, "clients": [0, 2]}, "scale": {"rate": 1.0, "clients": [3]}}
    found = [fate.fault for fate in fates(table, range(5), population=5)]
    assert found == ["sign_flip", None, "sign_flip", "scale", None]


# --- Every run goes on


OFTEN = {"fedavg", "scaffold", "median", "noise", "deadline", "fedfix", "fedbuff", "fedbuff_window", "fedasync"}
OFTEN |= {"fedzo_guard", "fzoos", "one_byte", "fedkseed_pro", "cbo", "fedcbo", "curriculum_async", "sfat", "local"}
"""Rows whose servers wait, count and remember in ways of their own; the others are run once a day."""


def counted(simulated: Simulation) -> dict[str, int]:
    """How many orders are sent, and replies used and left out, from now on."""
    engine, found = simulated.parts.engine, dict.fromkeys(("sent", "used", "failed", "spoiled"), 0)
    submit, collect = engine.submit, engine.collect

    def submitted(orders: Order) -> None:
        found["sent"] += len(orders.clients)
        submit(orders)

    def collected(*given: Any) -> Any:
        replies = collect(*given)
        if replies is not None:
            found["used"] += len(replies)
            found["failed"] += len(replies.failed)
            found["spoiled"] += replies.spoiled
        return replies

    engine.submit, engine.collect = submitted, collected
    return found


@pytest.mark.parametrize("row", [row if row in OFTEN else pytest.param(row, marks=pytest.mark.slow) for row in ROWS])
def test_every_method_goes_on_with_a_third_of_the_orders_faulty_and_the_counts_add_up(row: str) -> None:
    """All orders are used, left out, silent, told to stop or on their way; and each kind is where it belongs."""
    simulated = run_of(row, faults=MIXTURE)
    found = counted(simulated)
    rounds = ROWS[row].get("rounds", 3)
    rows = list(simulated)
    engine = simulated.parts.engine
    kinds, ledger = engine.trace.faults, engine.ledger
    assert simulated.round == rounds
    assert torch.isfinite(simulated.state.params).all()
    assert sum(kinds.values()) == ledger.faults == sum(row["faults"] for row in rows)
    assert set(kinds) <= set(KINDS)
    assert 0 < ledger.faults < found["sent"]
    assert kinds["crash"] == ledger.crashed
    assert kinds["non_finite"] + kinds["wrong_shape"] == found["failed"] == found["spoiled"]
    silent = sum(kinds[kind] for kind in SILENT)
    stopped = ledger.late if "deadline" in ROWS[row].get("strategy", {}) else 0
    assert found["sent"] == found["used"] + found["failed"] + silent + stopped + engine.in_flight


@pytest.mark.parametrize("kind", KINDS)
def test_a_synchronous_run_in_which_everybody_is_faulty_ends_like_others(kind: str) -> None:
    experiment = small(3, faults={kind: 1.0}, evaluation={"every": 1})
    result = fedsim.run(experiment, problem=small_problem(), save=False)
    vain = kind in (*SILENT, *SPOILED)
    assert (result.status, result.summary["rounds"]) == ("stalled" if vain else "finished", 3)
    assert (result.summary["orders"], result.summary["used"]) == (12, 0 if vain else 12)
    lost, spoiled = "12 were not answered, or too late", "12 replies could not be used"
    said = f"12 orders brought no reply that was used: {lost if kind in SILENT else spoiled}"
    assert result.reason == (said if vain else "")
    initial = small_problem().initial()
    assert torch.equal(result.params, initial) == (kind in (*SILENT, *SPOILED))


@pytest.mark.parametrize("kind", [*SILENT, *SPOILED])
@pytest.mark.parametrize("strategy", ["fedavg", FEDBUFF, {**FEDBUFF, "restart": "window"}, "fedasync"], ids=str)
def test_a_run_in_which_nobody_answers_well_comes_to_an_end(strategy, kind) -> None:
    """After 500 orders, or up to 5 more of the 6 clients that were sent theirs at once."""
    everybody = {"kind": "uniform", "fraction": 1.0}
    experiment = small(10_000, strategy=strategy, selection=everybody, faults={kind: 1.0})
    result = fedsim.run(experiment, problem=small_problem(), save=False)
    assert result.status == "stalled"
    number, words = result.reason.split(" ", 1)
    assert 500 <= int(number) <= 505
    ending = f"{number} were not answered, or too late" if kind in SILENT else f"{number} replies could not be used"
    assert words == f"orders in a row brought no reply that was used: {ending}"
    assert torch.equal(result.params, small_problem().initial())


def test_a_time_limit_ends_a_run_in_which_nobody_answers() -> None:
    everybody = {"kind": "uniform", "fraction": 1.0}
    for kind in SILENT:
        experiment = small(None, duration=4.0, strategy=FEDBUFF, selection=everybody, faults={kind: 1.0})
        result = fedsim.run(experiment, problem=small_problem(), save=False)
        assert (result.status, result.summary["time"]) == ("stalled", 4.0)


def test_failing_on_purpose_is_no_divergence_but_failing_is() -> None:
    """A client that always sends NaN by itself is noticed when all others send it on purpose."""

    class Broken(Tally):
        def train(self, cohort) -> Update:
            delta = super().train(cohort).payload["delta"].clone()
            delta[cohort.clients == 0] = torch.nan
            return Update({"delta": delta})

    for faulty, diverges in (((0, 1, 2), True), ((1, 2), True), ((), False)):
        faults = always("non_finite", *faulty) if faulty else {}
        experiment = fedsim.experiment(rounds=1, evaluation={"every": 0}, faults=faults)
        simulated = build_simulation(dataclasses.replace(experiment, client=Broken()), tally_problem([1] * 3))
        if diverges:
            with pytest.raises(DivergedError, match="none of the 1 updates of round 1 is finite"):
                simulated.step()
        else:
            assert simulated.step()["failed"] == 1


# --- Aggregators that need so many replies


KRUM = {"kind": "krum", "malicious": 1}
"""It needs 5 replies."""


@pytest.mark.parametrize(("kind", "rounds"), [("drop_before", 3), ("wrong_shape", 3), ("sign_flip", 0)])
def test_a_round_with_too_few_replies_for_the_aggregator_is_skipped(kind: str, rounds: int) -> None:
    """Of 6 clients two are silent or left out."""
    experiment = small(
        3,
        selection={"kind": "uniform", "fraction": 1.0},
        aggregation=KRUM,
        faults=always(kind, 0, 1),
        strategy={"kind": "fedavg", "server_optimizer": "adam"},
    )
    result = fedsim.run(experiment, problem=small_problem(), save=False)
    assert (result.status, result.summary["skipped"]) == ("stalled" if rounds else "finished", rounds)
    six = "6 were not answered, or too late" if kind == "drop_before" else "6 replies could not be used"
    said = f"18 orders brought no reply that was used: {six}; 12 replies came in 3 rounds that were skipped"
    assert result.reason.startswith(said) == bool(rounds)
    assert torch.equal(result.params, small_problem().initial()) == (rounds > 0)
    line = "3 times too few replies were left for the aggregator, and none was used"
    assert (line in words.lines_of(result)) == (rounds > 0)


def test_where_devices_fail_rounds_are_skipped_as_well() -> None:
    devices = {"failure": {"mean_seconds": 6.0, "repair_seconds": 1.0}}
    experiment = small(12, selection={"kind": "uniform", "fraction": 1.0}, aggregation=KRUM, devices=devices)
    result = fedsim.run(experiment, problem=small_problem(), save=False)
    assert result.status == "finished"
    assert 0 < result.summary["skipped"] < 12


def test_updates_that_are_not_finite_by_themselves_are_no_excuse() -> None:
    class Broken(Tally):
        def train(self, cohort) -> Update:
            delta = super().train(cohort).payload["delta"].clone()
            delta[cohort.clients < 2] = torch.nan
            return Update({"delta": delta})

    experiment = fedsim.experiment(rounds=1, aggregation=KRUM, faults={"duplicate": 0.5}, evaluation={"every": 0})
    simulated = build_simulation(dataclasses.replace(experiment, client=Broken()), tally_problem([1] * 6))
    with pytest.raises(DivergedError, match="2 updates not finite"):
        simulated.step()


# --- How work is executed, and where a run goes on


LOST: dict[str, Any] = MIXTURE | {"drop_after": 0.2}
"""With more work that nobody hears of, which moves on what clients remember."""
METHODS = ["scaffold", "fedbuff", *(pytest.param(row, marks=pytest.mark.slow) for row in ("fedfix", "fzoos_guard"))]
METHODS += ["fedkseed_pro"]


@pytest.mark.parametrize("row", METHODS)
def test_faults_depend_on_nothing_of_how_work_is_executed(row: str) -> None:
    whole = run_of(row, faults=LOST, rounds=8)
    expected = final(whole)
    assert whole.parts.engine.trace.faults["drop_after"] > 0
    for chunk in (1, 2):
        parts = run_of(row, faults=LOST, rounds=8)
        executor = parts.parts.engine.executor
        executor.memory = chunk * executor._row_bytes
        assert torch.equal(final(parts), expected)
        assert parts.parts.engine.ledger == whole.parts.engine.ledger
        assert parts.parts.engine.trace.faults == whole.parts.engine.trace.faults
    loop = run_of(row, faults=LOST, rounds=8, engine={"executor": "loop"})
    assert torch.allclose(final(loop), expected, rtol=0, atol=1e-7 * float(expected.abs().max()))
    assert loop.parts.engine.trace.faults == whole.parts.engine.trace.faults


@pytest.mark.parametrize("seconds", [0.05, 0.37, 1.0])
def test_when_the_model_is_judged_changes_nothing(seconds: float) -> None:
    for row in ("fedbuff", "fedavg"):
        plain = run_of(row, faults=MIXTURE, rounds=8, evaluation={"every": 1})
        judged = run_of(row, faults=MIXTURE, rounds=8, evaluation={"every_seconds": seconds})
        assert torch.equal(final(plain), final(judged))
        assert plain.parts.engine.ledger == judged.parts.engine.ledger
        assert plain.parts.engine.trace.faults == judged.parts.engine.trace.faults


@pytest.mark.parametrize("row", METHODS)
def test_an_interrupted_run_counts_on(row: str) -> None:
    tables = {"faults": LOST | {"duplicate": {"rate": 0.2, "seconds": 3.0}}, "rounds": 6, "evaluation": {"every": 1}}
    whole, first, second = (run_of(row, **tables) for _ in range(3))
    rows = [first.step(), first.step(), first.step()]
    saved = decode(encode(first.snapshot()))  # as a checkpoint has it
    first.step()  # goes on after the snapshot, which must not notice
    second.restore(saved)
    rows += list(second)
    assert [{**found, "wall": 0} for found in rows] == [{**wanted, "wall": 0} for wanted in whole]
    assert torch.equal(second.state.params, whole.state.params)
    shares = [1 / 6] * 6
    ended = [simulated.parts.engine for simulated in (second, whole)]
    assert ended[0].trace.summary(shares, ended[0].now) == ended[1].trace.summary(shares, ended[1].now)
    assert whole.parts.engine._copies  # some are on their way


def test_seeds_in_one_stack_have_their_own_faults() -> None:
    experiment = fedsim.experiment(
        rounds=4,
        problem={"kind": "benchmark", "dimension": 5, "clients": 4},
        strategy="fedzo",
        client={"kind": "fedzo", "steps": 2},
        faults=MIXTURE,
    )
    together = run_seeds(experiment, [0, 1], save=False)
    for seed, result in enumerate(together):
        alone = fedsim.run(experiment.with_seed(seed), save=False)
        assert torch.equal(result.params, alone.params)
        assert result.summary["faults"] == alone.summary["faults"]
    assert together[0].summary["faults"] != together[1].summary["faults"]


def test_another_engine_has_none() -> None:
    experiment, bare = small(1, faults={"sign_flip": 0.3}), build_simulation(small(1), small_problem()).parts.engine
    with pytest.raises(
        InputError, match=r"^faults = sign_flip: VirtualEngine has no faults on demand; remove the table$"
    ):
        build_simulation(experiment, small_problem(), lambda problem, aggregator: bare)
    build_simulation(small(1), small_problem(), lambda problem, aggregator: bare)


# --- Options and reports


@pytest.mark.parametrize(
    ("faults", "line"),
    [
        ({"sign_flip": 1.5}, "faults.sign_flip.rate = 1.5: "),
        ({"sign_flip": -0.1}, "faults.sign_flip.rate = -0.1: "),
        ({"sign_flip": math.nan}, "faults.sign_flip.rate = nan: "),
        ({"sign_flip": "often"}, "faults.sign_flip = often: "),
        ({"sign_flip": True}, "faults.sign_flip = True: "),
        ({"sign_flip": [0.3]}, "faults.sign_flip = [0.3]: "),
        ({"sign_flip": {}}, "faults.sign_flip.rate = (nothing): "),
        ({"sign_flip": {"rate": 0.3, "factor": 2.0}}, "faults.sign_flip.factor = 2.0: no such option here"),
        ({"sign_flop": 0.3}, "faults.sign_flop = 0.3: no such option here"),
        ({"scale": {"rate": 0.3, "factor": math.inf}}, "faults.scale.factor = inf: "),
        ({"scale": {"rate": 0.3, "share": 0.0}}, "faults.scale.share = 0.0: "),
        ({"scale": {"rate": 0.3, "share": 1.1}}, "faults.scale.share = 1.1: "),
        ({"scale": {"rate": 0.3, "share": 0.5, "clients": [0]}}, "faults.scale.share = 0.5: clients says who"),
        ({"scale": {"rate": 0.3, "clients": []}}, "faults.scale.clients = "),
        ({"scale": {"rate": 0.3, "clients": [0, -1]}}, "faults.scale.clients.1 = -1: "),
        ({"scale": {"rate": 0.3, "clients": [0.5]}}, "faults.scale.clients.0 = 0.5: "),
        ({"late": {"rate": 0.3, "seconds": 0.0}}, "faults.late.seconds = 0.0: "),
        ({"late": {"rate": 0.3, "seconds": 2e9}}, "faults.late.seconds = 2000000000.0: "),
        ({"duplicate": {"rate": 0.3, "seconds": -1.0}}, "faults.duplicate.seconds = -1.0: "),
        ({"crash": {"rate": 0.3, "repair_seconds": -1.0}}, "faults.crash.repair_seconds = -1.0: "),
        ({"non_finite": {"rate": 0.3, "value": "zero"}}, "faults.non_finite.value = zero: "),
        ({"crash": 0.6, "scale": 0.5}, "faults.scale.rate = 0.5: a client's rates add up to 1.1; lower them"),
        ("sign_flip", "faults = sign_flip: is a table"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_said_in_one_line(faults: Any, line: str) -> None:
    with pytest.raises(InputError) as refused:
        fedsim.experiment(faults=faults)
    assert str(refused.value).startswith(line)
    assert "\n" not in str(refused.value)


def test_a_client_that_is_not_there_is_refused_when_the_run_is_built() -> None:
    build_simulation(small(1, faults=always("scale", 5)), small_problem())
    with pytest.raises(InputError, match=r"^faults\.scale\.clients = 6: clients are numbered 0 to 5$"):
        build_simulation(small(1, faults=always("scale", 6)), small_problem())


def test_rates_add_up_to_one_for_each_client() -> None:
    """Of all tables of three kinds with rates in fifths, for everybody, client 0 or client 1."""
    for rates in itertools.product(range(0, 6, 2), repeat=3):
        for whose in itertools.product((None, [0], [1]), repeat=3):
            sums = [
                sum(rate for rate, ids in zip(rates, whose, strict=True) if ids is None or client in ids)
                for client in (0, 1)
            ]
            table = {
                kind: {"rate": rate / 5} | ({} if ids is None else {"clients": ids})
                for kind, rate, ids in zip(("crash", "late", "scale"), rates, whose, strict=True)
            }
            if max(sums) <= 5:
                assert list(Faults(**table).kinds) == ["crash", "late", "scale"]
            else:
                with pytest.raises(InputError, match="add up to"):
                    Faults(**table)
    Faults(**dict.fromkeys(KINDS[:9], 1 / 9))
    Faults(**dict.fromkeys(KINDS[:3], 0.1), late=0.7)  # 0.1 + 0.1 + 0.1 is more than 0.3 in floating point


@pytest.mark.parametrize(
    "faults",
    [{}, {"sign_flip": 0.3}, MIXTURE, always("crash", 0, 3, repair_seconds=5.0), always("non_finite", 1, value="inf")],
)
def test_options_survive_toml(faults: dict[str, Any]) -> None:
    checked = small(faults=faults)
    written = tomli_w.dumps(checked.resolved())
    assert ("[faults" in written) == bool(faults)
    again = fedsim.experiment(**tomllib.loads(written))
    assert again.faults == checked.faults
    assert again.resolved() == checked.resolved()


def test_a_run_says_what_was_faulty_on_purpose(tmp_path) -> None:
    """Of 6 clients in 2 rounds, two flip signs and one sends NaN; nothing is said where nothing was."""
    faults = always("sign_flip", 0, 1) | always("non_finite", 2)
    everybody = {"kind": "uniform", "fraction": 1.0}
    result = fedsim.run(small(2, selection=everybody, faults=faults), problem=small_problem(), out=tmp_path / "faulty")
    counts = {"non_finite": 2, "sign_flip": 4}
    assert result.summary["faults"] == counts
    assert result.summary["total_faults"] == 6
    assert json.loads((tmp_path / "faulty" / "summary.json").read_text())["faults"] == counts
    assert json.loads((tmp_path / "faulty" / "trace.json").read_text())["faults"] == counts
    assert result.history["faults"] == [3, 3]
    said = [*words.lines_of(result)]
    assert "6 replies were faulty on purpose: 2 non_finite, 4 sign_flip" in said
    assert "2 updates were not finite, or misshapen, and were left out" in said
    sound = fedsim.run(small(1), problem=small_problem(), save=False)
    assert "on purpose" not in "".join(words.lines_of(sound))


def test_all_at_once() -> None:
    """`All` is what a synchronous window waits for; here with every kind in it, and each leaves its mark once."""
    faults = {kind: {"rate": 1.0, "clients": [client]} for client, kind in enumerate(KINDS)}
    simulated = tally(10, rounds=1, faults=faults)
    engine = simulated.parts.engine
    order(simulated, list(range(10)), "cancel")
    replies = engine.collect(All(), 0)
    # Late, duplicate, sign flip, scale and the one that is well.
    assert replies.clients.tolist() == [3, 4, 7, 8, 9]
    assert replies.failed.tolist() == [5, 6]
    assert replies.spoiled == 2
    assert [float(replies.payload["delta"][row, client]) for row, client in enumerate([3, 4, 7, 8, 9])] == [
        1,
        1,
        -1,
        10,
        1,
    ]
    assert engine.trace.faults == dict.fromkeys(KINDS, 1)
    assert engine.now == ticks(11)  # the late one comes 10 s after 1 s


def test_what_a_selector_is_told_is_no_part_of_the_update() -> None:
    """Oort is told the roots of the mean squared losses, which stay as they are; the changes flip their signs."""
    experiments = [small(1, selection={"kind": "oort", "count": 3}, faults=table) for table in ({}, {"sign_flip": 1.0})]
    honest, liars = (recorded(build_simulation(one, small_problem()))[0].replies.payload for one in experiments)
    assert torch.equal(honest["utility"], liars["utility"])
    assert torch.equal(honest["delta"], -liars["delta"])
