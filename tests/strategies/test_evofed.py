"""EvoFed: what random projections tell of a change, by how much they are taken for, and every byte."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from replicas import D, down, hold_contract, hold_equal, play, simulation
from torch import Tensor

from fedsim.core.errors import InputError
from fedsim.core.streams import Streams
from fedsim.running.simulation import Simulation
from fedsim.server import ServerState
from fedsim.testing.problems import TRAINING
from fedsim.zeroth_order import edges_of, of_coefficients, part, population_keys
from strategies.evofed import EvoFed

ALL = {"kind": "uniform", "fraction": 1.0}


def evofed(strategy: dict[str, Any] | None = None, client: dict[str, Any] | None = None, **other: Any) -> Simulation:
    return simulation("evofed", {"population": 10, **(strategy or {})}, TRAINING | (client or {}), **other)


def decoded(delta: Tensor, seed: int, **options: Any) -> Tensor:
    """What a server makes of a change [d] of which all clients tell, of the run of a seed."""
    strategy, d = EvoFed(**options), len(delta)
    memory = {"seed": torch.tensor([seed])}
    state = ServerState(torch.zeros(d, dtype=torch.float64), memory=memory)
    keys = population_keys(torch.tensor([0]), strategy.population, "evofed")
    told = []
    for begin, end in pairwise(edges_of(d, strategy.blocks)):
        e = part(strategy.directions, Streams(seed), keys, begin, end, dtype=torch.float64, device=delta.device)
        q = e @ delta[begin:end]
        if strategy.form == "fitness":
            q = -(delta[begin:end] - strategy.sigma * e).square().sum(dim=1)
        told.append(q)
    found = strategy.decoded(torch.stack(told, dim=1), state)
    row = {"rounds": torch.tensor([0]), "coefficients": found.view(1, -1)}
    step = of_coefficients(memory["seed"], row, strategy.population)
    return step.apply_(torch.zeros_like(delta), strategy.lr, strategy.directions)


def change(d: int) -> Tensor:
    return torch.randn(d, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize(("d", "n"), [(300, 30), (300, 300), (1000, 50)])
def test_a_change_is_found_as_well_as_so_few_projections_allow(d: int, n: int) -> None:
    """The cosine is 1 / sqrt(1 + (d+1)/n), the mean square of G 4 |delta|^2 (1 + (d+1)/n): 3 deviations of the mean."""
    delta, runs = change(d), 20
    g = torch.stack([2.0 * decoded(delta, seed, population=n, alpha=0.5) for seed in range(runs)])
    wide = 1.0 + (d + 1) / n
    cosines = torch.cosine_similarity(g, delta.unsqueeze(0))
    assert float(cosines.mean()) == pytest.approx(wide**-0.5, abs=3 * float(cosines.std()) / runs**0.5 + 0.003)
    squares = g.square().sum(dim=1) / delta.square().sum()
    assert float(squares.mean()) == pytest.approx(4 * wide, abs=3 * float(squares.std()) / runs**0.5)


def test_the_best_factor_takes_off_what_steps_are_too_long_by() -> None:
    delta, n = change(300), 30
    half, best = (decoded(delta, 3, population=n, alpha=alpha) for alpha in (0.5, "optimal"))
    assert torch.allclose(best, half / (1.0 + 301 / n))
    assert float((half - delta).norm()) > 2.0 * float(delta.norm())
    assert float((best - delta).norm()) < float(delta.norm())
    signs = [decoded(delta, 3, population=n, alpha=a, directions="rademacher") for a in (0.5, "optimal")]
    assert torch.allclose(signs[1], signs[0] / (1.0 + 299 / n))


def test_blocks_are_decoded_each_by_itself() -> None:
    """A third of 300 in each block: within it the cosine is that of d = 100."""
    delta, runs, n = change(300), 20, 40
    g = torch.stack([decoded(delta, seed, population=n, blocks=3) for seed in range(runs)])
    for begin in (0, 100, 200):
        cosines = torch.cosine_similarity(g[:, begin : begin + 100], delta[begin : begin + 100].unsqueeze(0))
        assert float(cosines.mean()) == pytest.approx((1 + 101 / n) ** -0.5, abs=3 * float(cosines.std()) / runs**0.5)
    moved = delta.clone()
    moved[150] += 1.0
    apart = decoded(moved, 0, population=n, blocks=3) != g[0]
    assert not apart[:100].any()
    assert not apart[200:].any()
    assert apart[100:200].all()


def test_least_squares_leave_what_no_direction_has() -> None:
    """An error of (1 - n/d) |delta|^2, and none at all with n = d."""
    delta = change(60)
    found = [decoded(delta, seed, population=20, decode="least_squares") for seed in range(30)]
    errors = torch.stack([(one - delta).square().sum() / delta.square().sum() for one in found])
    assert float(errors.mean()) == pytest.approx(2 / 3, abs=3 * float(errors.std()) / 30**0.5)
    assert torch.allclose(decoded(delta, 0, population=60, decode="least_squares"), delta, rtol=1e-6, atol=1e-8)
    assert torch.allclose(decoded(delta, 0, population=20, blocks=3, decode="least_squares"), delta, atol=1e-8)


def test_fitness_is_the_projection_but_for_the_length_of_directions() -> None:
    """Of random signs, which are as long as each other, it is that less its mean; of a small sigma nearly so."""
    delta, n = change(200), 50
    keys = population_keys(torch.tensor([0]), n, "evofed")
    e = part("rademacher", Streams(2), keys, 0, 200, dtype=torch.float64, device=delta.device)
    centred = e.T @ (e @ delta - (e @ delta).mean()) / n
    for sigma in (0.01, 10.0):
        told = decoded(delta, 2, population=n, directions="rademacher", alpha=0.5, form="fitness", sigma=sigma)
        assert torch.allclose(told, centred, atol=1e-6)
    assert not torch.allclose(decoded(delta, 2, population=n, directions="rademacher", alpha=0.5), centred, atol=1e-3)
    clear, noisy = (decoded(delta, 2, population=n, form="fitness", sigma=sigma) for sigma in (1e-4, 10.0))
    like = [float(torch.cosine_similarity(one, delta, dim=0)) for one in (clear, noisy)]
    assert like[0] > 0.3 > like[1]


def test_a_round_with_as_many_directions_as_parameters_is_fedavgs() -> None:
    """And so the mean over clients of what they tell is that of their mean, by examples."""
    run = evofed({"population": D, "decode": "least_squares"}, dtype=torch.float64, selection=ALL)
    plain = simulation("fedavg", {}, TRAINING, dtype=torch.float64, selection=ALL)
    for simulated in (run, plain):
        simulated.step()
    assert torch.allclose(run.state.params, plain.state.params, atol=1e-7)
    assert not torch.allclose(run.state.params, plain.parts.problem.initial(), atol=1e-3)


def test_fitness_crosses_without_what_all_have_in_common() -> None:
    """|Delta|^2 would drown the rest in single precision: F + sigma^2 |e|^2 is 2 sigma q."""
    sigma = 1e-4
    one, other = evofed(), evofed({"form": "fitness", "sigma": sigma})
    q, told = (play(run, 0, 2)[1].payload["fitness"].double() for run in (one, other))
    keys = population_keys(torch.tensor([0]), 10, "evofed")
    streams = Streams(int(one.state.memory["seed"]))
    e = part("gaussian", streams, keys, 0, D, dtype=torch.float32, device=q.device).double()
    assert torch.allclose((told + sigma**2 * e.square().sum(dim=1)) / (2 * sigma), q, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("strategy", [{"blocks": 3}, {"join": "replay", "directions": "rademacher"}])
def test_replicas_have_the_bits_of_the_servers_model(strategy: dict[str, Any]) -> None:
    options = {"population": 4, **strategy}
    ages = hold_equal(evofed(options, rounds=41, selection={"kind": "uniform", "count": 2}), 40)
    assert max(ages) > 3


def test_bytes_are_the_coefficients_of_the_rounds_since() -> None:
    """n B = 20: 80 bytes up and as many down a round; the model and the seed once."""
    run = evofed({"blocks": 2})
    sent = [down(play(run, *clients)[0]) for clients in [(0, 1), (0,), (1, 2), (0,)]]
    fresh = 4 * D + 8
    assert sent == [[fresh, fresh], [80], [160, fresh], [160]]
    assert run.parts.engine.ledger.bytes_up == 6 * 80


def test_it_learns() -> None:
    run = evofed({"population": 40}, {"lr": 0.3}, rounds=40, selection=ALL)
    losses = [run.step()["train_loss"] for _ in range(40)]
    assert losses[-1] < 0.5 * losses[0]
    assert math.isfinite(float(run.state.params.sum()))


def test_chunks_restored_runs_and_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    hold_contract(lambda **other: evofed({"blocks": 2}, rounds=4, **other), monkeypatch)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"population": 1}, "population"),
        ({"blocks": D + 1}, f"blocks = {D + 1}: the model has {D} parameters"),
        ({"sigma": 0.1}, "sigma = 0.1: is of form"),
        ({"decode": "least_squares", "population": 84}, "population = 84: least squares need"),
        ({"decode": "least_squares", "population": 1001}, "population = 1001: least squares are of 1000"),
        ({"decode": "least_squares", "alpha": 0.4}, "alpha = 0.4: least squares need projections"),
        ({"decode": "least_squares", "form": "fitness", "sigma": 0.1}, "form = fitness: least squares need"),
        ({"directions": "segmented"}, "directions"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        evofed(options)
