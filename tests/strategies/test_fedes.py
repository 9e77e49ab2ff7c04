"""FedES: what losses tell of a gradient, ranks, and every byte."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from replicas import D, down, hold_contract, hold_equal, play, simulation
from torch import Tensor

import fedsim
from fedsim.core.errors import InputError
from fedsim.core.streams import Streams
from fedsim.running.simulation import Simulation
from fedsim.testing.problems import DEVICE
from fedsim.zeroth_order import part, population_keys, ranked_last
from fedsim.zeroth_order.directions import orthogonalised
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


def test_ranks_are_those_of_the_oracles() -> None:
    """Returns [[1, 3], [2, 3], [NaN, 0]]: the two threes share their ranks, and what failed is the worst."""
    returns = torch.tensor([[1.0, 2.0, math.nan], [3.0, 3.0, 0.0]])
    told = ranked_last(-returns.flatten().unsqueeze(0))
    size = Population(6, 1.0 / 6.0, antithetic=False, ranks=True)  # n sigma = 1
    assert (-size.scalars(told)[0]).tolist() == pytest.approx([-0.1, 0.1, -0.5, 0.4, 0.4, -0.3])
    # Two that failed share the mean of the worst ranks, 4.5 of 0 .. 5.
    told = ranked_last(torch.tensor([[1.0, 2.0, math.nan, 3.0, math.nan, 0.0]]))
    assert size.scalars(told)[0].tolist() == pytest.approx([-0.3, -0.1, 0.4, 0.1, 0.4, -0.5])


def test_what_failed_has_the_worst_rank_and_says_nothing_where_losses_are_not_ranked() -> None:
    """At x + sigma e with e_0 > 0 there is no value: ranks move away from there, losses are those of the mirrors."""

    def walled(x: Tensor) -> Tensor:
        return torch.where(x[..., 0] > 0, math.nan, 1.0 + 0.0 * x[..., 0])

    for ranks, found in ((True, True), (False, False)):
        problem = fedsim.black_box(
            lambda clients, x: walled(x), dimension=3, clients=2, bounds=None, start=0.0, on_error="nan", device=DEVICE
        )
        run = fedes({"lr": 1.0, "ranks": ranks}, problem=problem, selection={"kind": "uniform", "fraction": 1.0})
        play(run, 0, 1)
        assert (float(run.state.params[0]) < 0.0) is found
        assert bool(run.state.params.any()) is found


@pytest.mark.parametrize(("ranks", "step"), [(True, (-1.0, 4.0, 7.0 / 3.0)), (False, (-2.5, 9.0, 16.0 / 3.0))])
def test_a_step_is_that_of_the_oracle(ranks: bool, step: tuple[float, ...]) -> None:
    """From x = (1, -1, 1/2) with sigma 0.1 on f = |x - (0, 1, 2)|^2."""
    e = torch.tensor([[1.0, 0.0, -1.0], [0.5, -1.0, 0.0], [0.0, 2.0, 1.0]], dtype=torch.float64)
    x, centre = torch.tensor([1.0, -1.0, 0.5]).double(), torch.tensor([0.0, 1.0, 2.0]).double()
    losses = torch.cat([(x + side * 0.1 * e - centre).square().sum(dim=1) for side in (1.0, -1.0)])
    assert losses.tolist() == pytest.approx([7.77, 7.7625, 6.2, 6.77, 6.7625, 8.4])
    found = Population(6, 0.1, antithetic=True, ranks=ranks).scalars(losses.unsqueeze(0))[0] @ e
    assert (-found).tolist() == pytest.approx(step)


def test_orthogonal_pairs_find_the_gradient_of_a_quadratic_in_closed_form() -> None:
    """(2/n) sum_j (e_j . g) e_j over n/2 = d orthogonal directions, of which each keeps its own length."""
    scale = torch.tensor([1.0, 2.0, 5.0, 0.5], dtype=torch.float64, device=DEVICE)
    centre = torch.tensor([0.3, -1.0, 2.0, 0.7], dtype=torch.float64, device=DEVICE)
    found = step_on(
        lambda x: 0.5 * (scale * (x - centre).square()).sum(dim=2), 4, population=8, ranks=False, orthogonal=True
    )
    keys = population_keys(torch.tensor([0]), 4)
    seed = int(fedes().state.memory["seed"])
    plain = part("gaussian", Streams(seed), keys, 0, 4, dtype=torch.float64, device=torch.device(DEVICE))
    e = orthogonalised(plain)
    assert torch.allclose(e @ e.T, torch.diag(plain.square().sum(dim=1)), atol=1e-12)
    assert torch.allclose(found, ((e @ (-scale * centre)) @ e) / 4, rtol=1e-9, atol=1e-9)
    # More than d: two bases, and what is left over is orthogonal, too.
    many = orthogonalised(torch.randn(10, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    for block in (many[:4], many[4:8], many[8:]):
        gram = block @ block.T
        assert torch.allclose(gram, torch.diag(gram.diagonal()), atol=1e-12)
    assert abs(float(many[0] @ many[4])) > 1e-3


def test_weights_decay_by_the_server_alone_and_adam_scales_what_is_found() -> None:
    """Of equal losses nothing is found: x <- (1 - 0.1) x."""
    problem = fedsim.black_box(lambda clients, x: torch.ones_like(x[..., 0]), dimension=3, clients=2, start=0.8)
    run = fedes({"server_weight_decay": 0.1}, problem=problem, selection={"kind": "uniform", "fraction": 1.0})
    play(run, 0, 1)
    assert run.state.params.tolist() == pytest.approx([0.72] * 3)
    c = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64, device=DEVICE)
    adam = {"kind": "adam", "tau": 1e-12}
    steps = [step_on(lambda x: x @ c, 3, server_optimizer=adam, sigma=sigma) for sigma in (0.1, 0.2)]
    assert torch.allclose(*steps, rtol=1e-6)
    assert float(steps[0].norm()) > 0.0


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
    [
        ({"population": 7}, "population"),
        ({"population": 1}, "population"),
        ({"join": "replay"}, "join"),
        ({"history": 3}, "history"),
        ({"orthogonal": True, "directions": "rademacher"}, "orthogonal = True: is of gaussian directions"),
        ({"orthogonal": True, "downlink": "losses"}, "orthogonal = True: clients who are sent losses"),
        ({"server_weight_decay": 0.1, "downlink": "losses"}, "server_weight_decay = 0.1: clients who are sent losses"),
    ],
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
