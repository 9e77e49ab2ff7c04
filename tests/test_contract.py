"""The contract that every strategy and every client keeps: one row in `ROWS` brings all of these tests.

The problem is `small_problem`: six clients of 1 to 12 examples, so that cohorts are ragged, batches partial, and one
client takes a single step an epoch.
"""

from __future__ import annotations

import dataclasses
import tomllib
from typing import Any

import pytest
import tomli_w
import torch
from small_problems import small, small_problem

import fedsim
from fedsim import registry
from fedsim.exchange import All, Replies, payload_bytes
from fedsim.loop import Simulation
from fedsim.runner import build_simulation

TRAINING = {"epochs": 2, "batch_size": 4, "lr": 0.1}
SPREAD = {"compute": {"kind": "fixed", "spread": 80.0}}
ALL = {"kind": "uniform", "fraction": 1.0}
OBSERVED = {"frequency": "observed"}
ASYNCHRONOUS: dict[str, Any] = {"devices": SPREAD, "selection": ALL, "rounds": 9, "evaluation": {"every": 3}}
ROWS: dict[str, dict[str, Any]] = {
    "fedavg": {"strategy": {"kind": "fedavg"}},
    "fedavgm": {"strategy": {"kind": "fedavg", "server_optimizer": {"kind": "sgd", "momentum": 0.9}}},
    "fedadam": {"strategy": {"kind": "fedavg", "server_lr": 0.1, "server_optimizer": "adam"}},
    "fedprox": {"strategy": {"kind": "fedprox", "proximal_mu": 0.5}},
    "scaffold": {"strategy": {"kind": "scaffold"}, "client": {"kind": "scaffold", **TRAINING}},
    "fednova": {"strategy": {"kind": "fednova"}},
    "feddyn": {"strategy": {"kind": "feddyn", "alpha": 0.1}, "client": {"kind": "feddyn", **TRAINING}},
    "momentum": {"client": {"kind": "sgd", **TRAINING, "momentum": 0.9, "nesterov": True}},
    "adam": {"client": {"kind": "sgd", **TRAINING, "lr": 0.01, "optimizer": "adam"}},
    "lion": {"client": {"kind": "sgd", **TRAINING, "lr": 0.01, "optimizer": "lion", "weight_decay": 0.1}},
    "steps": {"client": {"kind": "sgd", "steps": 5, "batch_size": 4, "clip_norm": 0.3, "weight_decay": 0.01}},
    "median": {"aggregation": "median"},
    "orders": {"order_transforms": [{"kind": "noise", "std": 0.01}]},
    "noise": {"transforms": [{"kind": "clip", "max_norm": 0.1}, {"kind": "noise", "std": 0.01}]},
    "deadline": {"strategy": {"kind": "fedavg", "deadline": 0.6}, "devices": SPREAD},
    "fedfix": {"strategy": {"kind": "fedfix"}, **ASYNCHRONOUS},
    "empty windows": {
        "strategy": {"kind": "fedfix", "window": 0.3},
        "client": {"kind": "sgd", "steps": 3, "batch_size": 2},
        **ASYNCHRONOUS,
        "devices": {},
    },
    "fedfix_adam": {
        "strategy": {"kind": "fedfix", "frequency": "observed", "server_lr": 0.1, "server_optimizer": "adam"},
        "client": {"kind": "sgd", **TRAINING, "proximal_mu": 0.5},
        **ASYNCHRONOUS,
        "selection": {"kind": "uniform", "count": 4},
    },
    "fedavg_async": {"strategy": {"kind": "fedavg_async"}, **ASYNCHRONOUS},
    "fedbuff": {"strategy": {"kind": "fedbuff", "size": 3}, **ASYNCHRONOUS},
    "fedbuff_window": {
        "strategy": {"kind": "fedbuff", "size": 3, "restart": "window", "weights": "unbiased"},
        **ASYNCHRONOUS,
        "aggregation": "median",
    },
    "fedasync": {"strategy": {"kind": "fedasync"}, **ASYNCHRONOUS},
    "schedule": {
        "strategy": {"kind": "fedbuff", "size": 3},
        "client": {"kind": "sgd", **TRAINING, "schedule": {"kind": "exponential", "gamma": 0.9}},
        **ASYNCHRONOUS,
        "transforms": [{"kind": "noise", "std": 0.01}],
    },
}  # fmt: skip
# For each option of a plug-in, another value that must change the run (given the settings it needs to matter).
OTHER: dict[str, dict[str, tuple[Any, dict[str, Any]]]] = {
    "fedavg": {
        "weighting": ("uniform", {}),
        "server_lr": (0.5, {}),
        "server_optimizer": ("adagrad", {}),
        "deadline": (0.5, {"devices": SPREAD}),
        "first": (2, {}),
    },
    "fedfix": {
        "weighting": ("uniform", {}),
        "server_lr": (0.5, {}),
        "server_optimizer": ("adagrad", {}),
        "window": (0.3, {}),
        "weights": ("identical", {}),
        # Where durations are fixed, what is observed is what was declared.
        "frequency": ("observed", {"devices": {**SPREAD, "jitter": 0.5}}),
        "floor": (0.9, {"frequency": "observed"}),
    },
    "fedavg_async": {
        "weighting": ("uniform", {}),
        "server_lr": (0.5, {}),
        "server_optimizer": ("adagrad", {}),
        "weights": ("identical", {}),
        "frequency": ("observed", {}),
        "floor": (0.9, {"frequency": "observed"}),
    },
    "fedbuff": {
        "weighting": ("uniform", {"weights": "unbiased"}),
        "server_lr": (0.5, {}),
        "server_optimizer": ("adagrad", {}),
        "size": (2, {}),
        "restart": ("window", {}),
        "staleness": ("constant", {}),
        "weights": ("unbiased", {}),
        "floor": (0.9, {"weights": "unbiased"}),
    },
    "fedasync": {
        "server_lr": (0.5, {}),
        "server_optimizer": ("adagrad", {}),
        "alpha": (0.3, {}),
        "staleness": ("constant", {}),
        "max_staleness": (3, {}),
        "proximal_mu": (0.9, {}),
    },
    "fedprox": {
        "weighting": ("uniform", {}),
        "server_lr": (0.5, {}),
        "server_optimizer": ("yogi", {}),
        "proximal_mu": (0.9, {}),
    },
    "scaffold": {
        "weighting": ("examples", {}),
        "server_lr": (0.5, {}),
        "server_optimizer": ("adagrad", {}),
    },
    "fednova": {"weighting": ("uniform", {}), "server_lr": (0.5, {}), "server_optimizer": ("adam", {})},
    "feddyn": {"alpha": (0.2, {})},
}
LOCAL: dict[str, tuple[Any, dict[str, Any]]] = {
    "epochs": (3, {}),
    "steps": (7, {"epochs": None}),
    "batch_size": (3, {}),
    "lr": (0.05, {}),
    "schedule": ({"kind": "exponential", "gamma": 0.5}, {}),
    "optimizer": ("adam", {}),
    "momentum": (0.5, {}),
    "nesterov": (True, {"momentum": 0.5}),
    "beta1": (0.5, {"optimizer": "adam"}),
    "beta2": (0.5, {"optimizer": "adam"}),
    "epsilon": (0.1, {"optimizer": "adam"}),
    "weight_decay": (0.1, {}),
    "clip_norm": (0.1, {}),
    "proximal_mu": (0.5, {}),
}
PLAIN_ONLY = {"optimizer", "momentum", "nesterov", "beta1", "beta2", "epsilon", "weight_decay", "clip_norm"}


def simulation(row: str, dtype: torch.dtype = torch.float64, rounds: int = 3, **tables: Any) -> Simulation:
    tables = {"rounds": rounds, **ROWS[row], **tables}
    return build_simulation(small(**tables), small_problem(dtype))


def final(simulated: Simulation) -> torch.Tensor:
    for _ in simulated:
        pass
    return simulated.state.params


def replies_of(simulated: Simulation) -> Replies:
    parts = simulated.parts
    orders, _ = parts.strategy.ask(simulated.state, torch.arange(6))
    parts.engine.submit(orders)
    replies = parts.engine.collect(All(), 0)
    assert replies is not None
    return replies


def copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.clone()
    if dataclasses.is_dataclass(value):
        return {field.name: copied(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return {name: copied(inner) for name, inner in value.items()} if isinstance(value, dict) else value


def same(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[name], second[name]) for name in first)
    return bool(first == second)


def test_every_installed_strategy_and_client_has_a_row() -> None:
    for group, table in (("strategies", "strategy"), ("clients", "client")):
        default = {"strategy": "fedavg", "client": "sgd"}[table]
        covered = {row.get(table, {"kind": default})["kind"] for row in ROWS.values()}
        assert covered == set(registry.names(group))


@pytest.mark.parametrize("row", ROWS)
def test_inputs_stay_as_they_were(row: str) -> None:
    simulated = simulation(row)
    replies = replies_of(simulated)
    state_before, replies_before = copied(simulated.state), copied(replies)
    simulated.parts.strategy.tell(simulated.state, replies)
    assert same(copied(simulated.state), state_before)
    assert same(copied(replies), replies_before)


@pytest.mark.parametrize("row", ROWS)
def test_the_order_of_clients_in_an_order_does_not_matter(row: str) -> None:
    """Replies stand in the order of the clients; a shuffled cohort gives the same rows to the last bit."""
    simulated, again = simulation(row, torch.float32), simulation(row, torch.float32)
    replies = replies_of(simulated)
    shuffled = torch.tensor([4, 0, 5, 2, 1, 3])
    orders, _ = again.parts.strategy.ask(again.state, shuffled)
    executor = again.parts.engine.executor
    work = executor.execute(executor.assign(orders))
    for name, rows in replies.payload.items():
        assert torch.equal(work.payload[name], rows[shuffled])


@pytest.mark.parametrize("row", ROWS)
def test_loop_equals_stacked(row: str) -> None:
    for dtype, rounds, tolerance in ((torch.float64, 3, 1e-9), (torch.float32, 1, 1e-5)):
        stacked = final(simulation(row, dtype, rounds, engine={"executor": "stacked"}))
        loop = final(simulation(row, dtype, rounds, engine={"executor": "loop"}))
        assert torch.allclose(stacked, loop, rtol=0, atol=tolerance * float(loop.abs().max()))


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("chunk", [1, 2, 4])
def test_the_size_of_chunks_and_the_cores_change_no_bit(row: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = simulation(row, torch.float32)
    whole.parts.engine.executor.cores = 1
    parts = simulation(row, torch.float32)
    executor = parts.parts.engine.executor
    monkeypatch.setattr(executor, "memory", chunk * executor._row_bytes)
    assert executor.chunk == chunk
    assert torch.equal(final(whole), final(parts))


@pytest.mark.parametrize("row", ROWS)
def test_an_interrupted_run_ends_like_an_uninterrupted_one(row: str) -> None:
    whole, first, second = simulation(row), simulation(row), simulation(row)
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
    assert torch.equal(final(simulation(row)), final(simulation(row)))
    assert not torch.allclose(final(simulation(row)), final(simulation(row, seed=1)), rtol=1e-6)


@pytest.mark.parametrize("row", ROWS)
def test_options_survive_toml(row: str) -> None:
    checked = small(**ROWS[row])
    again = fedsim.experiment(**tomllib.loads(tomli_w.dumps(checked.resolved())))
    assert again.resolved() == checked.resolved()
    assert (again.strategy, again.client, again.transforms) == (checked.strategy, checked.client, checked.transforms)


@pytest.mark.parametrize(("row", "option"), [(row, option) for row, options in OTHER.items() for option in options])
def test_every_option_of_a_strategy_moves_something(row: str, option: str) -> None:
    value, also = OTHER[row][option]
    tables = {name: table for name, table in also.items() if name == "devices"}
    strategy = ROWS[row]["strategy"] | {name: given for name, given in also.items() if name not in tables}
    base = final(simulation(row, strategy=strategy, **tables))
    moved = final(simulation(row, strategy=strategy | {option: value}, **tables))
    assert not torch.allclose(base, moved, rtol=1e-6)


@pytest.mark.parametrize(
    ("row", "option"),
    [
        (row, option)
        for row in ("fedavg", "scaffold", "feddyn")
        for option in LOCAL
        if not (row == "scaffold" and option in PLAIN_ONLY) and not (row != "fedavg" and option == "proximal_mu")
    ],
)
def test_every_option_of_a_client_moves_something(row: str, option: str) -> None:
    value, also = LOCAL[option]
    kind = {"fedavg": "sgd"}.get(row, row)
    client = {name: given for name, given in ({"kind": kind} | TRAINING | also).items() if given is not None}
    other = {name: given for name, given in (client | {option: value}).items() if given is not None}
    base_client = client if "epochs" in client else client | {"steps": 4}
    base = final(simulation(row, client=base_client))
    assert not torch.allclose(base, final(simulation(row, client=other)), rtol=1e-6)


@pytest.mark.parametrize("row", OTHER)
def test_every_option_is_in_the_tables_above(row: str) -> None:
    simulated = simulation(row)
    assert {field.name for field in dataclasses.fields(simulated.parts.strategy)} == set(OTHER[row])  # type: ignore[arg-type]
    client = simulated.parts.engine.executor.client
    assert {field.name for field in dataclasses.fields(client)} <= set(LOCAL)


@pytest.mark.parametrize("row", ROWS)
def test_a_cohort_of_nobody_leaves_the_model_and_completes_the_round(row: str) -> None:
    simulated = simulation(row)
    nobody = replies_of(simulated).where(torch.zeros(6, dtype=torch.bool))
    state, _, done = simulated.parts.strategy.tell(simulated.state, nobody)
    assert done
    assert state.round == 1
    assert torch.equal(state.params, simulated.state.params)


@pytest.mark.parametrize("row", ROWS)
def test_a_cohort_of_one(row: str) -> None:
    strategy = ROWS[row].get("strategy", {"kind": "fedavg"})
    also = {"fedfix": OBSERVED, "fedavg_async": OBSERVED, "fedbuff": {"size": 1}}
    strategy = strategy | also.get(strategy["kind"], {})
    tables = {"strategy": strategy, "selection": {"kind": "uniform", "count": 1}}
    assert torch.isfinite(final(simulation(row, **tables))).all()


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_update_that_is_not_finite_is_left_out_and_counted(row: str, bad: float) -> None:
    """The round ends as if client 2 had not been chosen."""
    with_failure, without = simulation(row), simulation(row)
    poison(with_failure, client=2, value=bad)
    everybody = replies_of(with_failure)
    assert everybody.clients.tolist() == [0, 1, 3, 4, 5]
    assert everybody.failed.tolist() == [2]
    assert with_failure.parts.engine.ledger.failed == 1
    kept = replies_of(without).where(torch.tensor([True, True, False, True, True, True]))
    strategy = with_failure.parts.strategy
    found, _, _ = strategy.tell(with_failure.state, everybody)
    wanted, _, _ = strategy.tell(without.state, kept)
    assert torch.equal(found.params, wanted.params)


def poison(simulated: Simulation, client: int, value: float) -> None:
    """Put a value into the update of one client, on its way to the server."""
    executor = simulated.parts.engine.executor
    transform = executor._transform

    def poisoned(cohort: Any, payload: Any) -> Any:
        payload = transform(cohort, payload)
        payload["delta"][cohort.clients == client, 0] = value
        return payload

    executor._transform = poisoned  # type: ignore[method-assign]


@pytest.mark.parametrize("row", ROWS)
def test_bytes_are_those_of_the_payloads(row: str) -> None:
    simulated = simulation(row, torch.float32)
    parts = simulated.parts
    orders, _ = parts.strategy.ask(simulated.state, torch.arange(6))
    parts.engine.submit(orders)
    replies = parts.engine.collect(All(), 0)
    down = 6 * sum(4 * vector.numel() for vector in orders.payload.values())
    up = sum(4 * rows.numel() for rows in replies.payload.values())
    assert (parts.engine.ledger.bytes_down, parts.engine.ledger.bytes_up) == (down, up)
    assert payload_bytes(orders.payload) * 6 == down


def test_the_bytes_of_each_method_are_the_published_ones() -> None:
    """d is 83 here (6 x 8 + 8 + 8 x 3 + 3): d floats each way, SCAFFOLD twice that, FedNova one more up."""
    d = 6 * 8 + 8 + 8 * 3 + 3
    for row, up, down in (("fedavg", d, d), ("scaffold", 2 * d, 2 * d), ("fednova", d + 1, d), ("feddyn", d, d)):
        ledger = simulation(row, torch.float32, rounds=1).parts.engine.ledger
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
