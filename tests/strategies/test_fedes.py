"""FedES: what losses tell of a gradient, ranks, and every byte."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from replicas import D, down, hold_contract, hold_equal, play, simulation
from torch import Tensor

import fedsim
from fedsim.core.errors import InputError
from fedsim.running.simulation import Simulation
from fedsim.testing.problems import DEVICE
from fedsim.zeroth_order.shared_seed import Population


def fedes(strategy: dict[str, Any] | None = None, client: dict[str, Any] | None = None, **other: Any) -> Simulation:
    return simulation("fedes", {"lr": 0.01, "population": 10, **(strategy or {})}, client, **other)


def step_on(f: Any, dimension: int, **options: Any) -> Tensor:
    """-(x_1 - x_0) / lr of a round from 0 on the function f(x [C, Q, d]) of two clients."""
    problem = fedsim.black_box(
        lambda clients, x: f(x), dimension=dimension, clients=2, bounds=None, start=0.0, device=DEVICE
    )
    simulated = fedes({"lr": 1.0, **options}, problem=problem, selection={"kind": "uniform", "fraction": 1.0})
    play(simulated, 0, 1)
    return -simulated.state.params


@pytest.mark.parametrize("strategy", [{}, {"join": "replay", "ranks": False, "directions": "rademacher"}])
def test_replicas_have_the_bits_of_the_servers_model_for_200_rounds(strategy: dict[str, Any]) -> None:
    options = {"downlink": "losses", "population": 4, **strategy}
    ages = hold_equal(fedes(options, {"batch_size": 2}, rounds=201, selection={"kind": "uniform", "count": 2}), 200)
    assert max(ages) > 5


def test_losses_are_as_good_as_the_model() -> None:
    finals = []
    for downlink in ("model", "losses"):
        simulated = fedes({"downlink": downlink}, rounds=6, selection={"kind": "uniform", "count": 2})
        for _ in simulated:
            pass
        finals.append(simulated.state.params)
    assert torch.equal(*finals)


@pytest.mark.parametrize("antithetic", [True, False])
def test_the_gradient_of_a_linear_function_is_found_without_bias(antithetic: bool) -> None:
    """10,000 directions or more: the mean of (c.e) e has deviations near |c| / 100, and 0.2 is 8 of them."""
    c = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64, device=DEVICE)
    found = step_on(lambda x: x @ c, 3, population=20_000, ranks=False, antithetic=antithetic)
    assert torch.allclose(found, c, rtol=0, atol=0.2)


def test_antithetic_pairs_remove_the_even_terms() -> None:
    """From x = 0, |x|^2 + 5 is the same on both sides."""
    for ranks in (True, False):
        even = step_on(lambda x: x.square().sum(dim=2) + 5.0, 3, ranks=ranks)
        assert torch.equal(even, torch.zeros_like(even))
    assert step_on(lambda x: x.square().sum(dim=2) + 5.0, 3, ranks=False, antithetic=False).norm() > 1.0


def test_ranks_do_not_change_under_monotone_maps() -> None:
    c = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64, device=DEVICE)
    plain, bent = step_on(lambda x: x @ c, 3), step_on(lambda x: (40.0 * (x @ c)).exp(), 3)
    assert torch.equal(plain, bent)
    assert plain.norm() > 0.1


def test_ranks_are_centred_and_shared_by_equal_losses() -> None:
    """Losses 3, 1, 2, 2 have ranks 3, 0, 1.5, 1.5 of 0 .. 3; by n sigma = 4 x 0.5 they are divided."""
    shape = Population(4, 0.5, antithetic=False, ranks=True)
    assert shape.scalars(torch.tensor([[3.0, 1.0, 2.0, 2.0]])).tolist() == [[0.25, -0.25, 0.0, 0.0]]
    paired = Population(4, 0.5, antithetic=True, ranks=True)
    assert paired.scalars(torch.tensor([[3.0, 1.0, 2.0, 2.0]])).tolist() == [[0.25, -0.25]]
    # Without ranks (3 - 2) / 2 and (1 - 2) / 2.
    assert Population(4, 0.5, antithetic=True, ranks=False).scalars(torch.tensor([[3.0, 1.0, 2.0, 2.0]])).tolist() == [
        [0.5, -0.5]
    ]


def test_equal_fitness_moves_nothing() -> None:
    for antithetic in (True, False):
        flat = step_on(lambda x: torch.ones_like(x[..., 0]), 3, antithetic=antithetic)
        assert torch.equal(flat, torch.zeros_like(flat))


def test_bytes_are_the_model_or_the_losses_of_the_rounds_since() -> None:
    """n = 10: 40 bytes a round; the seed once."""
    rounds = [(0, 1), (0,), (1, 2), (0,)]
    told = fedes({"downlink": "losses"})
    sent = [down(play(told, *clients)[0]) for clients in rounds]
    fresh = 4 * D + 8
    assert sent == [[fresh, fresh], [40], [80, fresh], [80]]
    assert told.parts.engine.ledger.bytes_down == sum(map(sum, sent))
    assert told.parts.engine.ledger.bytes_up == 6 * 40
    assert told.parts.engine.ledger.queries == 6 * 10
    model = fedes()
    assert [down(play(model, *clients)[0]) for clients in rounds] == [[fresh] * 2, [4 * D], [4 * D, fresh], [4 * D]]
    assert not len(model.state.memory["losses"])


def test_it_learns() -> None:
    simulated = fedes({"population": 40, "lr": 0.05}, rounds=60)
    losses = [simulated.step()["train_loss"] for _ in range(60)]
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("downlink", ["model", "losses"])
def test_chunks_restored_runs_and_the_loop(downlink: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Without ranks: losses that differ in their last bits only may change places.
    options = {"downlink": downlink, "ranks": False}
    hold_contract(lambda **other: fedes(options, {"batch_size": 4}, rounds=4, **other), monkeypatch)


@pytest.mark.parametrize(
    ("options", "named"),
    [({"population": 7}, "population"), ({"join": "replay"}, "join"), ({"history": 3}, "history")],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        fedes(options)


@pytest.mark.parametrize("method", ["fedes", "decomfl", "fedkseed", "one_byte"])
@pytest.mark.parametrize("batch_size", ["full", 4])
def test_a_round_in_which_nobody_answers_leaves_the_model(method: str, batch_size: int | str) -> None:
    """Every machine fails at once, and is repaired a thousand seconds later."""
    devices = {"failure": {"mean_seconds": 1e-6, "repair_seconds": 1000.0}}
    simulated = simulation(method, {}, {"batch_size": batch_size}, rounds=2, devices=devices)
    start = simulated.state.params
    assert [row["clients"] for row in simulated] == [0, 0]
    assert torch.equal(simulated.state.params, start)
