"""Runs of the methods whose clients keep replicas, driven by hand where a test says who takes part."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fedsim.exchange.messages import Order, Replies
from fedsim.exchange.windows import All
from fedsim.problems.base import Problem
from fedsim.running.build import build_simulation
from fedsim.running.simulation import Simulation
from fedsim.testing.problems import small_experiment as small
from fedsim.testing.problems import small_problem

D = 6 * 8 + 8 + 8 * 3 + 3
"""Parameters of `small_problem`."""
NAMES = {
    "one_byte": "JustOneByte",
    "fedkseed": "FedKSeed",
    "decomfl": "DeComFL",
    "fedes": "FedES",
    "genetic": "Genetic",
    "evofed": "EvoFed",
    "fedavg": "FedAvg",
}


def tables(method: str, strategy: dict[str, Any], client: dict[str, Any]) -> dict[str, Any]:
    """The tables of an experiment with a method's strategy and client."""
    made = NAMES[method]
    return {
        "strategy": {"kind": f"strategies.{method}:{made}", **strategy},
        "client": {"kind": "sgd" if method == "fedavg" else f"clients.{method}:{made}", **client},
    }


def simulation(
    method: str,
    strategy: dict[str, Any] | None = None,
    client: dict[str, Any] | None = None,
    *,
    rounds: int = 3,
    dtype: torch.dtype = torch.float32,
    problem: Problem | None = None,
    **other: Any,
) -> Simulation:
    """A run on `small_problem`, six clients, four of them in a round."""
    experiment = small(rounds=rounds, **tables(method, strategy or {}, client or {}), **other)
    return build_simulation(experiment, small_problem(dtype) if problem is None else problem)


def play(simulated: Simulation, *clients: int) -> tuple[Order, Replies]:
    """A round with these clients; what they were sent, and what they answered."""
    strategy, engine, state = simulated.parts.strategy, simulated.parts.engine, simulated.state
    orders, _ = strategy.ask(state, torch.tensor(clients, dtype=torch.int64))
    engine.submit(orders)
    replies = engine.collect(All(), state.round)
    assert replies is not None
    state, _, done = strategy.tell(state, replies)
    assert done
    simulated._server = simulated._server._replace(state=state)
    return orders, replies


def down(orders: Order) -> list[int]:
    """The bytes that each client of an order is sent."""
    assert isinstance(orders.nbytes, Tensor)
    bytes_down: list[int] = orders.nbytes.tolist()
    return bytes_down


def replicas(simulated: Simulation) -> dict[int, tuple[int, Tensor]]:
    """Of each client that has joined the round that its replica is the model of, and the replica."""
    held = simulated.parts.engine.executor.store.snapshot()  # type: ignore[attr-defined]
    rows = zip(held["clients"].tolist(), held["version"].tolist(), held["replica"], strict=True)
    return {client: (int(version) - 1, replica) for client, version, replica in rows if version}


def hold_equal(simulated: Simulation, rounds: int) -> set[int]:
    """Step so many rounds, then ask everybody who can: each replica has the bits of the server's model of its round.

    Returns how many rounds old replicas were.
    """
    models, ages = [simulated.state.params.clone()], set[int]()
    for _ in range(rounds):
        simulated.step()
        models.append(simulated.state.params.clone())
        for version, replica in replicas(simulated).values():
            assert torch.equal(replica, models[version])
            ages.add(len(models) - 2 - version)
    free = simulated.parts.engine.free().mask.nonzero()[0].tolist()
    answered = play(simulated, *free)[1].clients.tolist()
    assert len(answered) > 2
    found = replicas(simulated)
    for client in answered:
        assert found[client][0] == rounds
        assert torch.equal(found[client][1], models[-1])
    return ages


def hold_contract(make: Any, monkeypatch: Any) -> None:
    """`make(**tables)`: in chunks, or restored, a run has the same bits; the loop gives the same numbers."""

    def final(simulated: Simulation) -> Tensor:
        for _ in simulated:
            pass
        return simulated.state.params

    whole, parts, loop, first, second = make(), make(), make(engine={"executor": "loop"}), make(), make()
    expected = final(whole)
    executor = parts.parts.engine.executor
    monkeypatch.setattr(executor, "memory", executor._row_bytes)
    assert executor.chunk == 1
    assert torch.equal(final(parts), expected)
    crossed = (whole.parts.engine.ledger.bytes_up, whole.parts.engine.ledger.bytes_down)
    assert (parts.parts.engine.ledger.bytes_up, parts.parts.engine.ledger.bytes_down) == crossed
    first.step()
    second.restore(first.snapshot())
    first.step()
    assert torch.equal(final(second), expected)
    assert torch.allclose(final(loop), expected, rtol=0, atol=1e-6)
    assert not torch.equal(expected, whole.parts.problem.initial())
