"""Consensus-based optimisation: its limits in closed form, and the minima that it finds."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

import fedsim
from fedsim.core.errors import InputError
from fedsim.core.streams import Streams
from fedsim.exchange.messages import Order, Replies
from fedsim.parallel.cores import one_core_an_operation
from fedsim.problems.black_box import BlackBox
from fedsim.problems.own_functions import black_box
from fedsim.running.build import build_simulation
from fedsim.running.simulation import Simulation
from fedsim.server.strategy import ServerState
from fedsim.testing.problems import DEVICE, small_problem
from strategies.cbo import CBO, consensus_weights

ONE = torch.zeros(1, dtype=torch.int64)
Function = Callable[[torch.Tensor], torch.Tensor]


class View:
    """What the strategy sees of a problem of one client."""

    sizes = ONE + 1
    num_clients = 1

    def __init__(self, dimension: int, bounds: tuple[float, float] | None) -> None:
        self.dimension, self.bounds = dimension, bounds

    def initial(self) -> torch.Tensor:
        return torch.zeros(self.dimension, dtype=torch.float64, device=DEVICE)


class Search:
    """A strategy and its state, told the values of one function without an engine between them."""

    def __init__(
        self,
        function: Function,
        dimension: int = 2,
        bounds: tuple[float, float] | None = None,
        seed: int = 0,
        **options: Any,
    ):
        self.function, self.strategy = function, CBO(**options)
        self.state: ServerState = self.strategy.seeded(self.strategy.init(View(dimension, bounds)), Streams(seed))

    @property
    def particles(self) -> torch.Tensor:
        return self.state.memory["particles"]

    def replies(self) -> Replies:
        orders: Order = self.strategy.ask(self.state, ONE)[0]
        values = {"values": self.function(orders.payload["candidates"]).unsqueeze(0)}
        return Replies(ONE, values, {}, ONE + 1, ONE[:0], self.state.round, ONE, ONE, [orders], [0])

    def step(self, rounds: int = 1) -> dict[str, float]:
        with one_core_an_operation():  # as in the loop; for so few numbers threads cost more than they do
            for _ in range(rounds):
                self.state, metrics, done = self.strategy.tell(self.state, self.replies())
                assert done
        return dict(metrics)


def bowl(x: torch.Tensor) -> torch.Tensor:
    return x.square().sum(-1)


def rastrigin(x: torch.Tensor) -> torch.Tensor:
    """sum_j (v_j^2 - 10 cos(2 pi v_j) + 10) with v = x - 1: least at (1, ..., 1), among 10^d other minima."""
    v = x - 1
    return (v.square() - 10 * torch.cos(2 * math.pi * v) + 10).sum(-1)


def test_without_noise_particles_move_on_segments_to_the_consensus():
    """x - lambda dt (x - c) with lambda dt = 2 x 0.1: a fifth of the way."""
    search = Search(bowl, sigma=0.0, drift=2.0, dt=0.1, particles=7)
    before = search.particles
    search.step()
    assert torch.allclose(search.particles, before + 0.2 * (search.state.params - before), rtol=0, atol=1e-14)


def test_alpha_of_zero_means_the_mean():
    search = Search(bowl, alpha=0.0, particles=9)
    mean = search.particles.mean(dim=0)
    search.step()
    assert torch.allclose(search.state.params, mean, rtol=0, atol=1e-14)


def test_a_large_alpha_means_the_best_particle():
    search = Search(bowl, alpha=1e9, most=1e9, particles=9)
    best = search.particles[bowl(search.particles).argmin()]
    metrics = search.step()
    assert torch.equal(search.state.params, best)
    assert metrics["effective"] == 1.0
    assert metrics["lowest_value"] == float(bowl(best))


def test_the_consensus_is_the_weighted_mean():
    """exp(-alpha f) of f = 0, 1, 3 with alpha = ln 2 is 1, 1/2, 1/8: weights 8/13, 4/13, 1/13."""
    weights = consensus_weights(torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64), math.log(2))
    assert torch.allclose(weights, torch.tensor([8.0, 4.0, 1.0], dtype=torch.float64) / 13, rtol=1e-14, atol=0)


@pytest.mark.parametrize("noise", ["anisotropic", "isotropic"])
def test_a_constant_added_to_f_changes_nothing(noise):
    """Also one at which exp(-alpha f) would be 0 for all."""
    searches = [Search(lambda x, plus=plus: bowl(x) + plus, noise=noise) for plus in (0.0, 2.0**20)]
    for search in searches:
        search.step(5)
    assert torch.allclose(searches[0].particles, searches[1].particles, rtol=0, atol=1e-7)


@pytest.mark.parametrize("noise", ["anisotropic", "isotropic"])
def test_particles_at_the_consensus_do_not_move(noise):
    strategy = CBO(noise=noise)
    center = torch.tensor([0.3, -0.7], dtype=torch.float64)
    particles = torch.stack((center, center, center + 1))
    moved = strategy.moved(particles, center, torch.ones_like(particles))
    assert torch.equal(moved[:2], particles[:2])
    assert not torch.equal(moved[2], particles[2])


def test_the_noises():
    """x - c = (3, 4), xi = (1, -2), sigma sqrt(dt) = 2 x 0.5, no drift: (3, -8) elementwise, and 5 (1, -2)."""
    x, c, xi = (torch.tensor(row, dtype=torch.float64) for row in ([[3.0, 4.0]], [0.0, 0.0], [[1.0, -2.0]]))
    settings = {"sigma": 2.0, "dt": 0.25, "drift": 0.0}
    assert CBO(noise="anisotropic", **settings).moved(x, c, xi).tolist() == [[3.0 + 3.0, 4.0 - 8.0]]
    assert CBO(noise="isotropic", **settings).moved(x, c, xi).tolist() == [[3.0 + 5.0, 4.0 - 10.0]]


@pytest.mark.parametrize("noise", ["anisotropic", "isotropic"])
def test_every_round_and_every_particle_has_noise_of_its_own(noise):
    """Without drift, (x_new - x) / (sigma sqrt(dt) scale) = xi is the draw; of 2 x 400 numbers no two are equal."""
    search = Search(bowl, particles=200, drift=0.0, sigma=0.1, dt=1.0, noise=noise)
    drawn = []
    for _ in range(2):
        before = search.particles
        search.step()
        away = before - search.state.params
        scale = away if noise == "anisotropic" else away.norm(dim=1, keepdim=True)
        drawn.append(((search.particles - before) / (0.1 * scale)).flatten())
    numbers = torch.cat(drawn)
    assert len(numbers.round(decimals=9).unique()) == 800
    # The standard errors of the mean and of the variance of 800 numbers are 0.035 and 0.05.
    assert float(numbers.mean()) == pytest.approx(0.0, abs=0.15)
    assert float(numbers.var()) == pytest.approx(1.0, abs=0.2)


def test_alpha_grows_up_to_its_limit():
    search = Search(bowl, alpha=3.0, growth=2.0, most=10.0)
    assert [search.step()["alpha"] for _ in range(4)] == [3.0, 6.0, 10.0, 10.0]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_alpha_by_the_effective_number_of_particles(share):
    search = Search(bowl, share=share, particles=50)
    for _ in range(3):
        assert search.step()["effective"] == pytest.approx(share * 50, rel=1e-6)


def test_alpha_and_its_growth_are_refused_where_the_share_decides():
    with pytest.raises(InputError, match="growth"):
        CBO(share=0.5, growth=1.1)


@pytest.mark.parametrize(
    ("bounds", "spread", "lower", "upper"),
    [(None, None, -1, 1), (None, 3.0, -3, 3), ((-2.0, 5.0), None, -2, 5), ((-2.0, 5.0), 4.0, -2, 4)],
)
def test_where_particles_begin(bounds, spread, lower, upper):
    """Of 2,000 uniform numbers the extremes are within 1 % of the limits, but for a chance of 2 x 0.99^2000 = 4e-9."""
    particles = Search(bowl, bounds=bounds, spread=spread, particles=1000).particles
    margin = 0.01 * (upper - lower)
    assert lower <= float(particles.min()) < lower + margin
    assert upper - margin < float(particles.max()) <= upper


@pytest.mark.parametrize("project", [True, False])
def test_particles_are_kept_in_the_box_if_that_is_wanted(project):
    search = Search(bowl, bounds=(0.0, 1.0), project=project, sigma=20.0)
    search.step(3)
    assert bool(((search.particles >= 0) & (search.particles <= 1)).all()) == project


@pytest.mark.parametrize("noise", ["anisotropic", "isotropic"])
def test_it_finds_the_least_of_rastrigins_minima(noise):
    assert found(noise, seed=0, rounds=400)


@pytest.mark.slow
@pytest.mark.parametrize("noise", ["anisotropic", "isotropic"])
def test_it_finds_the_least_of_rastrigins_minima_always(noise):
    assert all(found(noise, seed, rounds=1500) for seed in range(10))


def found(noise: str, seed: int, rounds: int) -> bool:
    """Whether it ends within a quarter of the distance to the next minimum, in the plane."""
    options = {"particles": 200, "dt": 0.02, "sigma": 0.7, "alpha": 50.0, "growth": 1.0, "spread": 3.0}
    search = Search(rastrigin, noise=noise, seed=seed, **options)
    search.step(rounds)
    return bool((search.state.params - 1).abs().max() < 0.25)


@pytest.mark.slow
@pytest.mark.parametrize(("sigma", "finds"), [(7.0, True), (3.0, False)])
def test_ten_coordinates_need_a_lot_of_noise(sigma, finds):
    for seed in range(3):
        options = {"particles": 100, "dt": 0.01, "sigma": sigma, "alpha": 30.0, "growth": 1.0, "spread": 3.0}
        search = Search(lambda x: rastrigin(x) / 10, 10, seed=seed, **options)
        search.step(3000)
        assert bool((search.state.params - 1).abs().max() < 0.25) == finds


def spheres() -> BlackBox:
    centres = torch.tensor([0.1, 0.2, 0.6], dtype=torch.float64, device=DEVICE)

    def functions(clients: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return (x - centres[clients].view(-1, 1, 1)).square().sum(-1)

    return black_box(functions, dimension=2, clients=3, device=DEVICE)


def simulated(
    problem: Any = None, rounds: int = 4, count: int = 3, executor: str = "auto", seed: int = 0, **options: Any
) -> Simulation:
    experiment = fedsim.experiment(
        rounds=rounds,
        seed=seed,
        strategy={"kind": "strategies.cbo:CBO", "particles": 10} | options,
        client={"kind": "clients.values:Values"},
        selection={"kind": "uniform", "count": count},
        evaluation={"every": 0},
        engine={"executor": executor},
    )
    return build_simulation(experiment, spheres() if problem is None else problem)


def final(run: Simulation) -> torch.Tensor:
    for _ in run:
        pass
    return run.state.params


def test_it_finds_the_minimum_of_the_mean_and_counts_what_it_asks():
    """mean_i |x - c_i|^2 is least at 0.3. 40 points of 2 numbers down, 40 values up, of 8 bytes, for 3 clients."""
    run = simulated(rounds=200, particles=40, alpha=1e4, sigma=2.0, dt=0.1)
    row = run.step()
    assert (row["queries"], row["extra_queries"]) == (3 * 40, 0)
    assert (row["bytes_down"], row["bytes_up"]) == (3 * 40 * 2 * 8, 3 * 40 * 8)
    assert float((final(run) - 0.3).abs().max()) < 0.01


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"particles": 11},
        {"drift": 2.0},
        {"sigma": 1.0},
        {"noise": "isotropic"},
        {"dt": 0.02},
        {"alpha": 2.0},
        {"growth": 2.0},
        {"growth": 2.0, "most": 1.5},
        {"share": 0.5},
        {"spread": 0.1},
        {"project": False},
    ],
)
def test_options_and_the_seed_move_something(other):
    base = {"growth": 2.0} if "most" in other else {}
    # So much noise that particles leave the box.
    base, other = ({"sigma": 9.0} | given for given in (base, other))
    assert not torch.allclose(final(simulated(**base)), final(simulated(**other)), rtol=1e-6)


@pytest.mark.parametrize("weighting", ["uniform", "examples"])
def test_loop_equals_stacked_on_examples(weighting):
    loop, stacked = (
        final(simulated(small_problem(), count=4, executor=executor, weighting=weighting))
        for executor in ("loop", "stacked")
    )
    assert torch.allclose(loop, stacked, rtol=0, atol=1e-9)


def test_weights_are_by_examples_where_that_is_asked_for():
    ends = [final(simulated(small_problem(), count=4, weighting=weighting)) for weighting in ("uniform", "examples")]
    assert not torch.allclose(*ends, rtol=1e-6)


def test_a_restored_run_ends_like_an_uninterrupted_one_and_inputs_stay():
    whole, first, second = simulated(), simulated(), simulated()
    first.step()
    first.step()
    second.restore(first.snapshot())
    state, held = first.state, first.state.memory["particles"].clone()
    first.step()
    assert torch.equal(state.memory["particles"], held)
    assert torch.equal(final(second), final(whole))


def test_a_round_without_replies_changes_nothing_but_its_number():
    search = Search(bowl)
    before = search.state
    state, metrics, done = search.strategy.tell(before, search.replies().where(torch.tensor([False])))
    assert (state.round, metrics, done) == (1, {}, True)
    assert state.params is before.params
    assert state.memory is before.memory
