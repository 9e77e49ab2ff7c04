"""DeComFL: exact replicas of whoever was away, the mean of local models, MeZO, and every byte."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from replicas import D, down, hold_contract, hold_equal, play, replicas, simulation
from torch import Tensor

import fedsim
from fedsim.running.simulation import Simulation
from fedsim.testing.problems import DEVICE
from fedsim.zeroth_order.directions import part
from fedsim.zeroth_order.replay import replay_
from fedsim.zeroth_order.shared_seed import PUBLIC, seeded_keys

ONE = {"kind": "uniform", "fraction": 1.0}


def decomfl(strategy: dict[str, Any] | None = None, client: dict[str, Any] | None = None, **other: Any) -> Simulation:
    options = {"lr": 0.02, "steps": 2, "perturbations": 3, **(strategy or {})}
    return simulation("decomfl", options, {"mu": 0.01, **(client or {})}, **other)


@pytest.mark.parametrize(
    ("strategy", "client"),
    [
        ({}, {"batch_size": 2}),
        ({"join": "replay", "directions": "rademacher"}, {"difference": "forward"}),
        ({"history": 3, "steps": 1, "directions": "segmented"}, {}),
    ],
)
def test_replicas_have_the_bits_of_the_servers_model_for_200_rounds(
    strategy: dict[str, Any], client: dict[str, Any]
) -> None:
    """Two of six clients a round; local steps leave no trace in the replica."""
    ages = hold_equal(decomfl(strategy, client, rounds=201, selection={"kind": "uniform", "count": 2}), 200)
    assert max(ages) > 5


def test_the_mean_of_scalars_is_the_mean_of_local_models() -> None:
    """A client's own scalars make its local model, here with lr = 0.02 and P = 3."""
    simulated = decomfl(dtype=torch.float64)
    play(simulated, 0, 1)
    start = simulated.state.params
    orders, replies = play(simulated, 0, 2, 3, 5)
    keys = seeded_keys(orders.payload["now"], 3)
    local = [
        replay_(start.clone(), PUBLIC, keys, scalars / 3, rate=0.02) for scalars in replies.payload["scalars"].double()
    ]
    assert torch.allclose(simulated.state.params, torch.stack(local).mean(dim=0), rtol=0, atol=1e-15)
    assert not torch.allclose(local[0], local[1], rtol=0, atol=1e-4)


def test_local_steps_go_on_from_each_other() -> None:
    """f(x) = x^2 in one dimension, central: p = 2 y z, so that y <- y (1 - 2 lr z^2) step after step."""
    problem = fedsim.black_box(
        lambda clients, x: x.square().sum(dim=2), dimension=1, clients=1, bounds=None, start=1.0, device=DEVICE
    )
    simulated = simulation("decomfl", {"lr": 0.1, "steps": 4}, {"mu": 0.5}, problem=problem, selection=ONE)
    orders, _ = play(simulated, 0)
    keys = seeded_keys(orders.payload["now"])
    z = part("gaussian", PUBLIC, keys, 0, 1, dtype=torch.float64, device=torch.device(DEVICE))
    assert torch.allclose(simulated.state.params, (1 - 0.2 * z.square()).prod(dim=0), rtol=1e-12)


def test_the_directions_of_a_seed_and_of_two_seeds_differ() -> None:
    """Of 83 numbers each, independent ones have a correlation near 1 / sqrt(83) = 0.11."""
    orders, _ = play(decomfl(), 0)
    assert orders.payload["now"].shape == (2,)
    keys = seeded_keys(orders.payload["now"], 3)
    z = part("gaussian", PUBLIC, keys, 0, D, dtype=torch.float64, device=torch.device("cpu"))
    correlations = torch.corrcoef(z) - torch.eye(6, dtype=torch.float64)
    assert float(correlations.abs().max()) < 0.5


def test_one_client_one_step_and_one_direction_are_mezo() -> None:
    """x <- x - lr p z, p = (f(x + mu z) - f(x - mu z)) / (2 mu), bit by bit."""
    curvature = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64, device=DEVICE)

    def f(clients: Tensor, x: Tensor) -> Tensor:
        return (curvature * (x - 1.0).square()).sum(dim=2)

    problem = fedsim.black_box(f, dimension=4, clients=1, bounds=None, start=0.0, device=DEVICE)
    simulated = simulation("decomfl", {"lr": 0.01}, {"mu": 1e-3}, problem=problem, selection=ONE)
    x = simulated.state.params.clone()
    for _ in range(20):
        orders, _ = play(simulated, 0)
        z = part("gaussian", PUBLIC, seeded_keys(orders.payload["now"]), 0, 4, dtype=x.dtype, device=x.device)[0]
        plus, minus = f(torch.zeros(1), torch.stack((x + 1e-3 * z, x - 1e-3 * z)).unsqueeze(0))[0]
        x = x - (plus - minus) / (2.0 * 1e-3) * 0.01 * z
        assert torch.equal(simulated.state.params, x)
    assert float(f(x, x.view(1, 1, -1))) < 0.5 * 10.0


def test_bytes_are_the_formulas() -> None:
    """K = 2, P = 3: 16 bytes of seeds, and 16 + 24 of each round since the last participation, that one included."""
    simulated = decomfl()
    rounds = [(0, 1), (0, 1), (2,), (0,), (1, 2, 5)]
    sent = [down(play(simulated, *clients)[0]) for clients in rounds]
    fresh = 4 * D + 16
    assert sent[0] == [fresh, fresh]
    assert sent[1] == [16 + 40] * 2
    assert sent[2] == [fresh]
    assert sent[3] == [16 + 2 * 40]  # of rounds 1 and 2
    assert sent[4] == [16 + 3 * 40, 16 + 2 * 40, fresh]  # of rounds 1 to 3, and 2 to 3
    ledger = simulated.parts.engine.ledger
    assert ledger.bytes_down == sum(map(sum, sent))
    assert ledger.bytes_up == 9 * 4 * 6
    assert ledger.queries == 9 * 2 * 6
    # 0 took part in round 3 last, and all others in round 4: nobody lacks rounds 0 to 2 any more.
    assert simulated.state.memory["rounds"].tolist() == [3, 4]


def test_who_joins_by_replay_is_sent_the_log_alone() -> None:
    simulated, downloaded = decomfl({"join": "replay"}), decomfl()
    for clients in ((0, 1), (1,), (0,)):
        play(simulated, *clients)
        play(downloaded, *clients)
    assert down(play(simulated, 4)[0]) == [16 + 3 * 40]
    play(downloaded, 4)
    assert torch.equal(replicas(simulated)[4][1], replicas(downloaded)[4][1])
    assert torch.equal(simulated.state.params, downloaded.state.params)


def test_who_was_away_longer_than_the_history_begins_again() -> None:
    simulated = decomfl({"history": 2})
    for clients in ((0, 1), (0,), (0,)):
        play(simulated, *clients)
    # Rounds 1 and 2 are kept; client 1 lacks round 0, too.
    assert down(play(simulated, 0, 1)[0]) == [16 + 40, 16 + 4 * D]


def test_forward_differences_take_one_base_a_step() -> None:
    simulated = decomfl(client={"difference": "forward"})
    play(simulated, 0, 1)
    assert simulated.parts.engine.ledger.queries == 2 * 2 * (1 + 3)


def test_the_mean_may_be_a_median() -> None:
    simulated = decomfl(aggregation="median")
    _, replies = play(simulated, 0, 1, 2)
    middle = replies.payload["scalars"].sort(dim=0).values[1]
    assert torch.equal(simulated.state.memory["scalars"][0], middle)


def test_a_round_without_answers_leaves_nothing_in_the_log() -> None:
    simulated = decomfl()
    _, replies = play(simulated, 0, 1)
    before = simulated.state
    state, _, done = simulated.parts.strategy.tell(before, replies.where(torch.zeros(2, dtype=torch.bool)))
    assert done
    assert torch.equal(state.params, before.params)
    simulated._server = simulated._server._replace(state=state)
    assert down(play(simulated, 0)[0]) == [16 + 40]


def test_chunks_restored_runs_and_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    hold_contract(lambda **other: decomfl(client={"batch_size": 4}, rounds=4, **other), monkeypatch)
