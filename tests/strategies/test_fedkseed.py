"""FedKSeed: the model as a sum over a pool, which seeds are drawn, and every byte."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from replicas import D, down, hold_contract, play, simulation
from torch import Tensor

import fedsim
from fedsim.core.errors import InputError
from fedsim.running.simulation import Simulation
from fedsim.testing.problems import DEVICE
from fedsim.zeroth_order.directions import part
from fedsim.zeroth_order.shared_seed import PUBLIC, importance, pool_keys, summed


def fedkseed(strategy: dict[str, Any] | None = None, client: dict[str, Any] | None = None, **other: Any) -> Simulation:
    options = {"lr": 0.02, "pool": 16, **(strategy or {})}
    return simulation("fedkseed", options, {"mu": 0.01, "steps": 5, **(client or {})}, **other)


def pooled(simulated: Simulation, places: Tensor, dimension: int = D) -> Tensor:
    keys = pool_keys(simulated.state.memory["seed"], places.long().cpu())
    return part("gaussian", PUBLIC, keys, 0, dimension, dtype=torch.float64, device=torch.device("cpu"))


def test_the_pool_gives_the_mean_of_the_sequential_local_models() -> None:
    simulated = fedkseed(dtype=torch.float64)
    start = simulated.state.params.cpu()
    _, replies = play(simulated, 0, 2, 3)
    local = []
    for places, scalars in zip(replies.payload["places"].cpu(), replies.payload["scalars"].cpu(), strict=True):
        y = start.clone()
        for p, z in zip(scalars, pooled(simulated, places), strict=True):
            y -= 0.02 * p * z
        local.append(y)
    found = simulated.state.params.cpu()
    assert torch.allclose(found, torch.stack(local).mean(dim=0), rtol=0, atol=1e-15)
    assert float((found - start).norm()) > 1e-3


def test_local_steps_go_on_from_each_other() -> None:
    """f(y) = y^2 in one dimension: p = 2 y z, and a step takes y to y (1 - 2 lr z^2)."""
    problem = fedsim.black_box(
        lambda clients, x: x.square().sum(dim=2), dimension=1, clients=1, bounds=None, start=1.0, device=DEVICE
    )
    everybody = {"kind": "uniform", "fraction": 1.0}
    simulated = fedkseed({"lr": 0.1}, {"mu": 0.5}, problem=problem, selection=everybody)
    _, replies = play(simulated, 0)
    z = pooled(simulated, replies.payload["places"][0], 1)[:, 0]
    y = torch.cat((torch.ones(1, dtype=torch.float64), (1 - 0.2 * z.square()).cumprod(dim=0)))
    assert torch.allclose(replies.payload["scalars"][0].cpu(), 2 * y[:-1] * z, rtol=1e-12)


def test_clients_rebuild_the_servers_model_to_the_last_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    import clients.fedkseed as module

    original, seen = module.rebuilt, list[Tensor]()

    def spying(*given: Any) -> Tensor:
        seen.append(original(*given))
        return seen[-1]

    monkeypatch.setattr(module, "rebuilt", spying)
    simulated = fedkseed(rounds=30, selection={"kind": "uniform", "count": 2})
    for _ in range(30):
        known = simulated.state.params.clone()
        simulated.step()
        assert torch.equal(seen.pop(), known)


def test_one_direction_confines_the_model_to_a_line_and_three_to_a_space() -> None:
    for pool in (1, 3):
        simulated = fedkseed({"pool": pool}, rounds=8, dtype=torch.float64)
        start, moved = simulated.state.params, []
        for _ in range(8):
            simulated.step()
            moved.append(simulated.state.params - start)
        assert int(torch.linalg.matrix_rank(torch.stack(moved), rtol=1e-10)) == pool


def test_the_order_of_clients_does_not_matter_to_the_sums() -> None:
    simulated = fedkseed(dtype=torch.float64)
    before, strategy = simulated.state, simulated.parts.strategy
    _, replies = play(simulated, 0, 1, 2, 3, 4, 5)
    turned = replace(
        replies,
        clients=replies.clients.flip(0),
        payload={name: rows.flip(0) for name, rows in replies.payload.items()},
        metrics={name: rows.flip(0) for name, rows in replies.metrics.items()},
    )
    sums = [strategy.tell(before, told)[0].memory["sums"] for told in (replies, turned)]
    assert torch.allclose(*sums, rtol=1e-12, atol=1e-15)


def test_dense_sums_give_the_bits_that_pairs_give() -> None:
    runs = [fedkseed({"reply": reply, "pool": 8}, rounds=4) for reply in ("pairs", "dense")]
    finals = []
    for simulated in runs:
        for _ in simulated:
            pass
        finals.append(simulated.state.params)
    assert torch.equal(*finals)
    # Eight bytes a pair, and four a coefficient, of four clients in four rounds.
    assert [simulated.parts.engine.ledger.bytes_up for simulated in runs] == [16 * 5 * 8, 16 * 8 * 4]


def test_pairs_of_one_direction_add_up() -> None:
    places, scalars = torch.tensor([[1, 1, 0], [2, 2, 2]]), torch.tensor([[1.0, 2.0, 4.0], [1.0, 1.0, 1.0]])
    assert summed(places, scalars, 3).tolist() == [[4.0, 3.0, 0.0], [0.0, 0.0, 3.0]]


def test_importance_is_the_softmax_of_scaled_means() -> None:
    """Means 1, 2 and 5, scaled to 0, 1/4 and 1; a direction that was never drawn has mean 0; equal ones are uniform."""
    found = importance(torch.tensor([2.0, 2.0, 15.0]), torch.tensor([2.0, 1.0, 3.0]))
    assert torch.allclose(found, torch.softmax(torch.tensor([0.0, 0.25, 1.0]), dim=0))
    assert importance(torch.tensor([0.0, 3.0]), torch.tensor([0.0, 1.0]))[1] > 0.7
    for equal in (torch.zeros(4), torch.full((4,), 3.0)):
        assert importance(equal, equal / 3.0).tolist() == [0.25] * 4


def test_clients_draw_by_importance() -> None:
    """2,000 draws from four directions: shares are within 4 sigma = 4 sqrt(0.25 / 2,000) of the probabilities."""
    simulated = fedkseed({"pool": 4, "sampling": "importance", "lr": 1e-9}, {"steps": 500})
    shares = []
    for _ in range(2):
        orders, replies = play(simulated, 0, 2, 4, 5)
        shares.append(torch.bincount(replies.payload["places"].flatten().long().cpu(), minlength=4) / 2_000)
    assert torch.allclose(shares[0], torch.full((4,), 0.25), atol=0.045)
    probabilities = orders.payload["probabilities"].cpu()
    # The smallest mean has probability e^0 / sum, the largest e^1 / sum.
    assert float(probabilities.max() / probabilities.min()) == pytest.approx(2.71828, rel=1e-4)
    assert torch.allclose(shares[1], probabilities, atol=0.045)


@pytest.mark.parametrize(
    ("options", "once", "every"),
    [
        ({}, 8 + 4 * D, 4 * 16),
        ({"start": "public"}, 8, 4 * 16),
        ({"sampling": "importance"}, 8 + 4 * D, 8 * 16),
    ],
)
def test_bytes_are_the_coefficients_and_once_the_model_and_the_seed(
    options: dict[str, Any], once: int, every: int
) -> None:
    simulated = fedkseed(options)
    sent = [down(play(simulated, *clients)[0]) for clients in ((0, 1), (0, 3), (0, 1, 3))]
    assert sent == [[every + once] * 2, [every, every + once], [every] * 3]
    ledger = simulated.parts.engine.ledger
    assert ledger.bytes_down == sum(map(sum, sent))
    assert (ledger.bytes_up, ledger.queries) == (7 * 5 * 8, 7 * 2 * 5)


def test_steps_beyond_the_clip_and_not_numbers_are_not_taken() -> None:
    simulated = fedkseed(client={"clip": 1e-12})
    start = simulated.state.params
    simulated.step()
    assert torch.equal(simulated.state.params, start)


def test_chunks_restored_runs_and_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    hold_contract(
        lambda **other: fedkseed({"sampling": "importance"}, {"batch_size": 4}, rounds=4, **other), monkeypatch
    )


def test_importance_needs_pairs() -> None:
    with pytest.raises(InputError, match="reply"):
        fedkseed({"sampling": "importance", "reply": "dense"})


@pytest.mark.parametrize("forged", [16, -1, 2**31 - 1])
def test_directions_that_are_none_of_the_pools_count_for_nothing(forged: int) -> None:
    """What a client on another machine sends has the right form, and any numbers: as if it had said 0 there."""
    simulated = fedkseed({"sampling": "importance"})
    state, strategy = simulated.state, simulated.parts.strategy
    _, replies = play(simulated, 0, 2)
    places, scalars = replies.payload["places"].clone(), replies.payload["scalars"].clone()
    places[1, 2], scalars[1, 2] = forged, 1e6
    found, _, _ = strategy.tell(state, replace(replies, payload={"places": places, "scalars": scalars}))
    places[1, 2], scalars[1, 2] = 0, 0.0
    wanted, _, _ = strategy.tell(state, replace(replies, payload={"places": places, "scalars": scalars}))
    assert torch.equal(found.params, wanted.params)
    assert torch.equal(found.memory["sums"], wanted.memory["sums"])
    assert float(found.memory["counts"].sum()) == 9
