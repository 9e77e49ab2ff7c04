"""The contract that every strategy and every client keeps: one row in `contract.ROWS` brings all of these tests.

The problem is `small_problem`: six clients of 1 to 12 examples, so that cohorts are ragged, batches partial, and one
client takes a single step an epoch. Methods that ask for values only are also held to it on noisy functions.
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import tomli_w
import torch
from contract import (
    CODES,
    CROSSING,
    JUDGING,
    OBSERVED,
    PARTS,
    REFUSED,
    REPORTING,
    ROWS,
    SILENT,
    SINGLE,
    TRAINING,
    UNCOUNTED,
)
from small_problems import DEVICE, small, small_problem

import fedsim
from fedsim import registry
from fedsim.engine.cohort import Cohort
from fedsim.errors import InputError
from fedsim.exchange import All, Orders, Replies, payload_bytes
from fedsim.loop import TURNS, Simulation
from fedsim.problems.black_box import BlackBox
from fedsim.problems.functions.synthetic import Synthetic
from fedsim.runner import build_simulation
from fedsim.strategy import ServerState

DEFAULTS: dict[str, dict[str, Any]] = {"strategy": {"kind": "fedavg"}, "client": {"kind": "sgd", **TRAINING}}
TABLES = ("devices", "opaque", "rounds", "selection")
"""Settings of an experiment that an option may need to matter."""
GROUPS = {
    "strategy": "strategies",
    "client": "clients",
    "estimator": "estimators",
    "defence": "defences",
    "attack": "attacks",
}
NESTED = {"estimator": ("client", "estimator"), "defence": ("client", "adversarial"), "attack": ("defence", "attack")}
"""Plug-ins that are options of others: of which, and its name there."""


def functions(dtype: torch.dtype) -> BlackBox:
    """Four clients' quadratics of six coordinates in a box, which answer with noise."""
    engine = {"device": DEVICE, "precision": str(dtype).removeprefix("torch.")}
    return Synthetic(dimension=6, clients=4, noise=0.01).build(small(engine=engine))


def simulation(
    row: str, dtype: torch.dtype = torch.float64, rounds: int = 3, opaque: bool = False, **tables: Any
) -> Simulation:
    """A row's run. opaque: on functions, three of whose four clients take part in a round."""
    if opaque:
        tables = {"selection": {"kind": "uniform", "count": 3}} | tables
    tables = {"rounds": rounds, **ROWS[row], **tables}
    return build_simulation(small(**tables), functions(dtype) if opaque else small_problem(dtype))


def final(simulated: Simulation) -> torch.Tensor:
    for _ in simulated:
        pass
    return simulated.state.params


def table_of(row: str, part: str) -> dict[str, Any]:
    """The options that a row gives a plug-in."""
    if part in NESTED:
        outer, option = NESTED[part]
        return dict(table_of(row, outer)[option])
    table = ROWS[row].get(part, DEFAULTS[part])
    return {"kind": table} if isinstance(table, str) else dict(table)


def plugin(row: str, part: str) -> Any:
    """A row's plug-in, such as its strategy; None where it has none, such as an estimator."""
    if part in NESTED:
        outer, option = NESTED[part]
        return getattr(plugin(row, outer), "made", {}).get(option)
    return getattr(small(**ROWS[row]), part)


def fits_functions(row: str) -> bool:
    """Whether its clients ask for values only, and not of some of their examples."""
    client = plugin(row, "client")
    return getattr(client, "black_box", False) and getattr(client, "batch_size", "full") == "full"


RUNS = [(row, False) for row in ROWS] + [(row, True) for row in ROWS if fits_functions(row)]
"""Rows on examples, and those that may be on functions."""
on_both = pytest.mark.parametrize(
    ("row", "opaque"), [pytest.param(row, opaque, id=row + " opaque" * opaque) for row, opaque in RUNS]
)


def exchange(simulated: Simulation, state: ServerState, clients: torch.Tensor) -> tuple[Orders, Replies]:
    """One window with these clients, outside of the loop."""
    parts = simulated.parts
    orders, _ = parts.strategy.ask(state, clients)
    if state.phase:
        orders = dataclasses.replace(orders, turn=TURNS + state.phase, counts=False)
    parts.engine.submit(orders)
    replies = parts.engine.collect(All(), state.round)
    assert replies is not None
    return orders, replies


def go_round(
    simulated: Simulation, heard: Callable[[int, Replies], Replies] | None = None
) -> tuple[ServerState, list[Replies]]:
    """A round with everybody, window by window: the state after it and all replies.

    heard(window, replies): what the server hears of a window's replies.
    """
    state, seen, done = simulated.state, list[Replies](), False
    clients = torch.arange(simulated.parts.problem.num_clients)
    while not done:
        _, replies = exchange(simulated, state, clients)
        seen.append(replies if heard is None else heard(len(seen), replies))
        state, _, done = simulated.parts.strategy.tell(state, seen[-1])
        clients = seen[-1].clients
    return state, seen


def copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.clone()
    if dataclasses.is_dataclass(value):
        return {field.name: copied(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, list | tuple):
        return [copied(inner) for inner in value]
    return {name: copied(inner) for name, inner in value.items()} if isinstance(value, dict) else value


def same(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[name], second[name]) for name in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)


@pytest.mark.parametrize("part", GROUPS)
def test_every_installed_plugin_has_a_row_and_each_of_its_options_another_value(part: str) -> None:
    installed = {entry.load() for entry in registry.names(GROUPS[part]).values()}
    installed = {kind for kind in installed if not getattr(kind, "only_judges", False)}  # no client may train on it
    assert installed == {type(plugin(row, part)) for row in ROWS} - {type(None)}
    assert installed == {type(plugin(row, part)) for row in PARTS[part]}


@pytest.mark.parametrize("row", ROWS)
def test_inputs_stay_as_they_were(row: str) -> None:
    simulated = simulation(row)
    state, clients = simulated.state, torch.arange(6)
    while state.round < 2:
        _, replies = exchange(simulated, state, clients)
        state_before, replies_before = copied(state), copied(replies)
        told, _, done = simulated.parts.strategy.tell(state, replies)
        assert same(copied(state), state_before)
        assert same(copied(replies), replies_before)
        state, clients = told, torch.arange(6) if done else replies.clients


@pytest.mark.parametrize("row", ROWS)
def test_the_order_of_clients_in_an_order_does_not_matter(row: str) -> None:
    """Replies stand in the order of the clients; a shuffled cohort gives the same rows to the last bit."""
    simulated, again = simulation(row, torch.float32), simulation(row, torch.float32)
    state, shuffled = simulated.state, torch.tensor([4, 0, 5, 2, 1, 3])
    executor = again.parts.engine.executor
    while state.round < 2:
        orders, replies = exchange(simulated, state, torch.arange(6))
        other, _ = again.parts.strategy.ask(state, shuffled)
        other = dataclasses.replace(other, turn=orders.turn)
        work = executor.execute(executor.assign(other))
        for name, rows in replies.payload.items():
            assert torch.equal(work.payload[name], rows[shuffled])
        state, _, _ = simulated.parts.strategy.tell(state, replies)


@on_both
def test_loop_equals_stacked(row: str, opaque: bool) -> None:
    single = SINGLE.get(table_of(row, "client")["kind"], 1e-5)
    for dtype, rounds, tolerance in ((torch.float64, 3, 1e-9), (torch.float32, 1, single)):
        stacked = final(simulation(row, dtype, rounds, opaque, engine={"executor": "stacked"}))
        loop = final(simulation(row, dtype, rounds, opaque, engine={"executor": "loop"}))
        assert torch.allclose(stacked, loop, rtol=0, atol=tolerance * float(loop.abs().max()))


@on_both
def test_the_size_of_chunks_and_the_cores_change_no_bit(row: str, opaque: bool) -> None:
    whole = simulation(row, torch.float32, opaque=opaque)
    whole.parts.engine.executor.cores = 1
    expected = final(whole)
    for chunk in (1, 2, 4):
        parts = simulation(row, torch.float32, opaque=opaque)
        executor = parts.parts.engine.executor
        executor.memory = chunk * executor._row_bytes
        assert executor.chunk == chunk
        assert torch.equal(final(parts), expected)


@on_both
def test_an_interrupted_run_ends_like_an_uninterrupted_one(row: str, opaque: bool) -> None:
    whole, first, second = (simulation(row, opaque=opaque) for _ in range(3))
    rows = [first.step(), first.step()]
    second.restore(first.snapshot())
    first.step()  # goes on after the snapshot, which must not notice
    rows.append(second.step())
    expected = list(whole)
    assert torch.equal(second.state.params, whole.state.params)
    for found, wanted in zip(rows, expected, strict=True):
        assert {**found, "wall": 0} == {**wanted, "wall": 0}


@pytest.mark.parametrize("row", ROWS)
def test_same_seed_same_bytes_other_seed_other_bytes(row: str) -> None:
    found = final(simulation(row))
    assert torch.equal(found, final(simulation(row)))
    assert not torch.allclose(found, final(simulation(row, seed=1)), rtol=1e-6)


@pytest.mark.parametrize("row", ROWS)
def test_options_survive_toml(row: str) -> None:
    checked = small(**ROWS[row])
    again = fedsim.experiment(**tomllib.loads(tomli_w.dumps(checked.resolved())))
    assert again.resolved() == checked.resolved()
    assert (again.strategy, again.transforms) == (checked.strategy, checked.transforms)
    assert values_of(again.client) == values_of(checked.client)


def values_of(made: Any) -> dict[str, Any]:
    """A plug-in's options; of those that name another plug-in, that one."""
    own = {field.name: getattr(made, field.name) for field in dataclasses.fields(made)}
    return {"kind": type(made), **own, **{name: values_of(part) for name, part in getattr(made, "made", {}).items()}}


def changed(row: str, part: str, also: dict[str, Any], other: dict[str, Any] | None = None) -> Simulation:
    """A row's run with the settings `also`, and with other values of options of its plug-in."""
    tables = {name: setting for name, setting in also.items() if name in TABLES}
    table = table_of(row, part) | {name: given for name, given in also.items() if name not in TABLES} | (other or {})
    table = {name: given for name, given in table.items() if given is not None}
    while part in NESTED:
        part, option = NESTED[part]
        table = table_of(row, part) | {option: table}
    return simulation(row, **{part: table}, **tables)


@cache
def unchanged(row: str, part: str, also: str) -> torch.Tensor:
    """The end of a row's run with the settings `also`, as JSON: one for many options."""
    return final(changed(row, part, json.loads(also)))


@pytest.mark.parametrize(
    ("part", "row", "option"),
    [(part, row, option) for part, rows in PARTS.items() for row, options in rows.items() for option in options],
)
def test_every_option_moves_something(part: str, row: str, option: str) -> None:
    value, also = PARTS[part][row][option]
    base = unchanged(row, part, json.dumps(also))
    assert not torch.allclose(base, final(changed(row, part, also, {option: value})), rtol=1e-6)


@pytest.mark.parametrize(("part", "row"), [(part, row) for part, rows in PARTS.items() for row in rows])
def test_every_option_is_in_the_tables(part: str, row: str) -> None:
    fields = {field.name for field in dataclasses.fields(plugin(row, part))}
    others = {"strategy": set(CROSSING.get(row, ())), "client": REPORTING & fields | set(REFUSED.get(row, ()))}
    others["attack"] = REPORTING & fields
    assert fields == set(PARTS[part][row]) | others.get(part, set())


@pytest.mark.parametrize(("row", "option"), [(row, option) for row, options in REFUSED.items() for option in options])
def test_what_a_client_cannot_do_is_refused(row: str, option: str) -> None:
    value, also = REFUSED[row][option]
    with pytest.raises(InputError):
        small(**ROWS[row] | {"client": table_of(row, "client") | also | {option: value}})


@pytest.mark.parametrize(("row", "option"), [(row, option) for row, options in CROSSING.items() for option in options])
def test_what_crosses_otherwise_changes_nothing_else(row: str, option: str) -> None:
    value, also = CROSSING[row][option]
    base, other = changed(row, "strategy", also), changed(row, "strategy", also, {option: value})
    bytes_differ = False
    for one, two in zip(base, other, strict=True):
        bytes_differ |= any(one[name] != two[name] for name in ("bytes_up", "bytes_down"))
        assert one["train_loss"] == pytest.approx(two["train_loss"], rel=1e-9)
    assert bytes_differ
    assert torch.allclose(base.state.params, other.state.params, rtol=0, atol=1e-12)


@pytest.mark.parametrize("row", [row for row in PARTS["client"] if hasattr(plugin(row, "client"), "cosine")])
def test_the_cosine_is_reported_and_changes_nothing(row: str) -> None:
    """Of functions with gradients; each mean lies between -1 and 1."""
    base, other = (changed(row, "client", {"opaque": True}, {"cosine": cosine}) for cosine in (False, True))
    for plain, told in zip(base, other, strict=True):
        assert "cosine" not in plain
        assert -1.0 <= told["cosine"] <= 1.0
        assert {**plain, "cosine": told["cosine"], "wall": told["wall"]} == told
    assert torch.equal(base.state.params, other.state.params)


@pytest.mark.parametrize("row", ROWS)
def test_windows_of_nobody_complete_the_round(row: str) -> None:
    """The model stays if nobody answers the first window; the round ends if nobody answers a later one."""
    _, seen = go_round(simulation(row))
    for silent in range(len(seen)):
        simulated = simulation(row)
        nobody = torch.zeros(6, dtype=torch.bool)
        state, windows = go_round(simulated, lambda window, said: said.where(nobody) if window == silent else said)  # noqa: B023
        assert [len(replies) for replies in windows[silent:]] == [0] * (len(windows) - silent)
        assert (state.round, state.phase) == (1, 0)
        assert torch.isfinite(state.params).all()
        if silent == 0:
            assert torch.equal(state.params, simulated.state.params)


@pytest.mark.parametrize("row", ROWS)
def test_a_cohort_of_one(row: str) -> None:
    strategy = table_of(row, "strategy")
    also = {"fedfix": OBSERVED, "fedavg_async": OBSERVED, "fedbuff": {"size": 1}, "sfat": {"khat": 1}}
    strategy = strategy | also.get(strategy["kind"], {})
    tables = {"strategy": strategy, "selection": {"kind": "uniform", "count": 1}}
    assert torch.isfinite(final(simulation(row, **tables))).all()


@pytest.mark.parametrize("row", [row for row in ROWS if row not in CODES])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_update_that_is_not_finite_is_left_out_and_counted(row: str, bad: float) -> None:
    """The round ends as if client 2 had not answered, whichever window it is of; a step that is judged is not taken."""
    _, seen = go_round(simulation(row))
    for number in range(len(seen)):
        with_failure, without = simulation(row), simulation(row)

        def poisoned(window: int, replies: Replies) -> Replies:
            if window == number:  # noqa: B023
                assert replies.clients.tolist() == [0, 1, 3, 4, 5]
                assert replies.failed.tolist() == [2]
            return replies

        def unheard(window: int, replies: Replies) -> Replies:
            return replies.where(replies.clients != 2) if window == number else replies  # noqa: B023

        poison(with_failure, client=2, value=bad, window=number)
        found, _ = go_round(with_failure, poisoned)
        assert with_failure.parts.engine.ledger.failed == (number == 0)  # only the first window counts as taking part
        if seen[number].orders[0].action in JUDGING:
            assert torch.equal(found.params, without.state.params)
            continue
        wanted, _ = go_round(without, unheard)
        assert (found.round, found.phase) == (wanted.round, wanted.phase) == (1, 0)
        for part in ("params", "optimizer"):
            assert same(copied(getattr(found, part)), copied(getattr(wanted, part)))
        following = [with_failure.parts.strategy.ask(state, torch.arange(6))[0] for state in (found, wanted)]
        assert same(*(copied(orders) for orders in following))


def poison(simulated: Simulation, client: int, value: float, window: int) -> None:
    """Put a value into what one client tells in a window, on its way to the server."""
    executor = simulated.parts.engine.executor
    execute, transform, windows = executor.execute, executor._transform, iter(range(100))
    now = -1

    def counted(assignment: Any) -> Any:
        nonlocal now
        now = next(windows)
        return execute(assignment)

    def poisoned(cohort: Any, payload: Any) -> Any:
        payload = transform(cohort, payload)
        if now == window:
            name = next(name for name, rows in payload.items() if rows.is_floating_point())
            payload[name] = payload[name].clone()  # it may be remembered by the client, which tells something else
            payload[name][cohort.clients == client] = value
        return payload

    executor.execute, executor._transform = counted, poisoned  # type: ignore[method-assign]


@pytest.mark.parametrize("row", ROWS)
def test_bytes_are_those_of_the_payloads(row: str) -> None:
    """Down, unless the order says how its payload is encoded; then it says so for each client."""
    simulated = simulation(row, torch.float32)
    ledger, state, clients = simulated.parts.engine.ledger, simulated.state, torch.arange(6)
    while state.round < 2:
        before = dataclasses.replace(ledger)
        orders, replies = exchange(simulated, state, clients)
        down = len(clients) * sum(vector.element_size() * vector.numel() for vector in orders.payload.values())
        up = sum(rows.element_size() * rows.numel() for rows in replies.payload.values())
        if orders.encoded is None:
            assert payload_bytes(orders.payload) * len(clients) == down
        else:
            assert torch.as_tensor(orders.encoded).shape in ((), (len(clients),))
            down = orders.total_bytes
        crossed = ledger.since(before)
        assert (crossed["bytes_down"], crossed["bytes_up"]) == (down, up)
        state, _, done = simulated.parts.strategy.tell(state, replies)
        clients = torch.arange(6) if done else replies.clients


@on_both
def test_queries_are_what_was_asked(row: str, opaque: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every window; and from the second round on, when everybody is known, as many as were declared."""
    asked = 0
    query, evaluate, differentiate = Cohort.query, Cohort.evaluate, Cohort.differentiate

    def counted_query(self: Cohort, x: torch.Tensor, *args: Any, **named: Any) -> torch.Tensor:
        nonlocal asked
        asked += x.shape[0] * x.shape[1]
        return query(self, x, *args, **named)

    def counted_evaluate(self: Cohort, y: Any, batch: Any) -> torch.Tensor:
        nonlocal asked
        asked += len(y)
        return evaluate(self, y, batch)

    def counted_derivatives(self: Cohort, x: torch.Tensor, v: torch.Tensor, batch: Any = None) -> Any:
        nonlocal asked
        asked += v.shape[0] * v.shape[1]
        return differentiate(self, x, v, batch)

    monkeypatch.setattr(Cohort, "query", counted_query)
    monkeypatch.setattr(Cohort, "evaluate", counted_evaluate)
    monkeypatch.setattr(Cohort, "differentiate", counted_derivatives)
    simulated = simulation(row, opaque=opaque)
    engine, state, total = simulated.parts.engine, simulated.state, 0
    everybody = clients = torch.arange(simulated.parts.problem.num_clients)
    while state.round < 2:
        asked = 0
        before = dataclasses.replace(engine.ledger)
        orders, replies = exchange(simulated, state, clients)
        crossed = engine.ledger.since(before)
        extra = asked if orders.action in UNCOUNTED else 0
        assert (crossed["queries"], crossed["extra_queries"]) == (asked, extra)
        if state.round:
            assert asked == len(clients) * engine.executor.assign(orders).queries
        total += asked
        state, _, done = simulated.parts.strategy.tell(state, replies)
        clients = everybody if done else replies.clients
    assert (total > 0) == (table_of(row, "client")["kind"] not in SILENT)


def test_the_bytes_of_each_method_are_the_published_ones() -> None:
    """d is 83 here (6 x 8 + 8 + 8 x 3 + 3): d floats each way, SCAFFOLD twice that, FedNova and SFAT one more up.

    FZooS sends M more each way, in two windows, from the second round on also down.
    """
    d, features = 6 * 8 + 8 + 8 * 3 + 3, 200
    for row, up, down in (
        ("fedavg", d, d),
        ("scaffold", 2 * d, 2 * d),
        ("fednova", d + 1, d),
        ("feddyn", d, d),
        ("fal", d, d),
        ("sfat", d + 1, d),
        ("fedzo", d, d),
        ("fzoos", d + features, 2 * d),
    ):
        simulated = simulation(row, torch.float32, rounds=1)
        simulated.step()
        ledger = simulated.parts.engine.ledger
        assert (ledger.bytes_up, ledger.bytes_down) == (4 * 4 * up, 4 * 4 * down)


def test_a_client_state_survives_rounds_without_it() -> None:
    """SCAFFOLD's control variates of clients that did not take part stay; those of participants change."""
    simulated = simulation("scaffold", rounds=4, selection={"kind": "uniform", "count": 2})
    seen: dict[int, torch.Tensor] = {}
    for _ in range(4):
        simulated.step()
        store = simulated.parts.engine.executor.store.snapshot()
        now = dict(zip(store["clients"].tolist(), store["control"], strict=True))
        changed = {client for client, row in now.items() if client not in seen or not torch.equal(row, seen[client])}
        assert len(changed) == 2
        seen = {client: row.clone() for client, row in now.items()}
    assert len(seen) > 2
