"""Searches of packages: they are the packages' own, on functions of closed form, whole numbers among them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import fedsim
from fedsim.core.errors import InputError
from fedsim.core.streams import Streams
from fedsim.problems.black_box import BlackBox
from fedsim.running.build import build_simulation
from fedsim.running.simulation import Simulation
from fedsim.testing.problems import DEVICE
from fedsim.zeroth_order.ask_tell import _SEARCHES

CENTRES = [0.1, 0.2, 0.6]  # F = mean_i sum_j (x_j - c_i)^2 is least at 0.3
PACKAGES = {"cma_es": "cma", "cma_es_margin": "cmaes", "evosax": "evosax"}
WHOLE = {f"n{place}": ("int", -10, 10) for place in range(4)} | {f"x{place}": (-10, 10) for place in range(4)}


def spheres(dimension: int = 4, bounds: tuple[float, float] | None = (0.0, 1.0)) -> BlackBox:
    centres = torch.tensor(CENTRES, dtype=torch.float64, device=DEVICE)

    def functions(clients: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return (x - centres[clients].view(-1, 1, 1)).square().sum(-1)

    return fedsim.black_box(functions, dimension=dimension, clients=3, bounds=bounds, start=0.0, device=DEVICE)


def simulated(kind: str, problem: Any = None, rounds: int = 5, seed: int = 0, **options: Any) -> Simulation:
    pytest.importorskip(PACKAGES[kind])
    experiment = fedsim.experiment(
        rounds=rounds,
        seed=seed,
        strategy={"kind": kind} | options,
        client="values",
        selection={"kind": "uniform", "fraction": 1.0},
        evaluation={"every": 0},
    )
    return build_simulation(experiment, spheres() if problem is None else problem)


def final(run: Simulation) -> torch.Tensor:
    for _ in run:
        pass
    return run.state.params


@pytest.mark.parametrize("kind", ["cma_es_margin", "evosax"])
def test_it_finds_the_minimum_of_the_mean_and_stays_in_the_box(kind: str) -> None:
    run = simulated(kind, rounds=80)
    for _ in range(80):
        order, _ = run.parts.strategy.ask(run.state, torch.arange(3))
        candidates = order.payload["candidates"]
        assert bool(((candidates >= 0) & (candidates <= 1)).all())
        row = run.step()
    assert float((run.state.params - 0.3).abs().max()) < 1e-2
    assert row["lowest_value"] == pytest.approx(0.56 / 3, abs=1e-3)


@pytest.mark.parametrize("kind", ["cma_es_margin", "evosax"])
def test_another_process_makes_the_search_again_to_the_bit(kind: str) -> None:
    whole, first, second = (simulated(kind, rounds=12) for _ in range(3))
    for _ in range(7):
        first.step()
    second.restore(first.snapshot())
    _SEARCHES.clear()  # as in a process that has just begun
    assert torch.equal(final(second), final(whole))
    assert not torch.equal(final(simulated(kind, rounds=12, seed=1)), whole.state.params)


def test_margin_is_the_packages_search() -> None:
    """Driven by hand in one piece, told F itself, it goes the same way."""
    cmaes = pytest.importorskip("cmaes")
    run = simulated("cma_es_margin", rounds=20)
    streams = Streams(Streams(0).derive("cma-es-margin") >> 1)
    search = cmaes.CMAwM(np.zeros(4), 0.25, np.tile([0.0, 1.0], (4, 1)), np.zeros(4), seed=0)
    for number in range(20):
        search.reseed_rng(streams.derive("population", turn=number) >> 32)
        asked = [search.ask() for _ in range(search.population_size)]
        search.tell([(raw, float(np.mean([((x - c) ** 2).sum() for c in CENTRES]))) for x, raw in asked])
        run.step()
        assert np.allclose(run.state.params.cpu().numpy(), search.mean.clip(0, 1), rtol=0, atol=1e-9)


def test_margins_are_those_of_the_oracle() -> None:
    """Mean 1.9 and deviation 0.2 on 0..5, n = 6 of d = 2, alpha = 1/12: the mean goes to 2, A to 1.443698."""
    cmaes = pytest.importorskip("cmaes")
    grid = np.tile([0.0, 5.0], (2, 1))
    search = cmaes.CMAwM(np.array([1.9, 1.9]), 0.2, grid, np.ones(2), population_size=6, seed=0)
    search._cma.tell = lambda solutions: None
    search.tell([])
    assert search.margin == pytest.approx(1 / 12)
    assert search._A.tolist() == pytest.approx([1.443698] * 2, abs=1e-6)
    assert search.mean.tolist() == pytest.approx([2.0] * 2, abs=1e-6)


def ellipsoid(values: dict[str, float]) -> float:
    """Condition 100, least at 3 of each whole number and at 1.5 of each other."""
    away = [value - (3 if name[0] == "n" else 1.5) for name, value in values.items()]
    return sum(100 ** (place / 7) * one**2 for place, one in enumerate(away))


@pytest.mark.parametrize("kind", ["cma_es", "cma_es_margin"])
def test_whole_numbers_are_found(kind: str) -> None:
    problem = fedsim.black_box([ellipsoid], space=WHOLE, device="cpu")
    run = simulated(kind, problem, rounds=160, sigma=0.1, population=12)
    lowest = [row["lowest_value"] for row in run][-1]
    assert lowest < 1e-3
    typed = problem.space.typed(run.state.params)
    assert [typed[f"n{place}"] for place in range(4)] == [3] * 4
    order, _ = run.parts.strategy.ask(run.state, torch.arange(1))
    cells = order.payload["candidates"][:, :4] * 21 - 0.5  # asked in the middle of cells
    assert torch.allclose(cells, cells.round(), atol=1e-6)


@pytest.mark.parametrize("algorithm", ["SNES", "PGPE", "Sep_CMA_ES"])
def test_evosaxes_searches_are_the_packages_own(algorithm: str) -> None:
    """Driven by hand in one piece."""
    pytest.importorskip("evosax")
    import jax
    from evosax.algorithms import algorithms

    run = simulated("evosax", spheres(bounds=None), rounds=15, algorithm=algorithm, population=16, sigma=0.5)
    streams = Streams(Streams(0).derive("evosax") >> 1)

    def key(number: int) -> Any:
        return jax.random.key(streams.derive("population", turn=number) >> 33)

    search = algorithms[algorithm](population_size=16, solution=jax.numpy.zeros(4))
    params = search.default_params.replace(std_init=0.5)
    state = search.init(key(0), jax.numpy.zeros(4), params)
    for number in range(15):
        x, state = search.ask(key(number + 1), state, params)
        values = np.mean([((np.asarray(x, np.float64) - c) ** 2).sum(axis=1) for c in CENTRES], axis=0)
        state, _ = search.tell(key(number + 1), x, jax.numpy.asarray(values, dtype="float32"), state, params)
        run.step()
        assert np.allclose(run.state.params.cpu().numpy(), np.asarray(state.mean), atol=1e-4)


@pytest.mark.parametrize("kind", PACKAGES)
def test_without_the_package_the_remedy_is_said(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=rf"{kind}: it needs the package {PACKAGES[kind]}: pip install 'fedsim-lab\["):
        build_simulation(fedsim.experiment(rounds=1, strategy={"kind": kind}, client="values"), spheres())


def test_margins_want_two_coordinates_and_no_box() -> None:
    with pytest.raises(InputError, match="cma_es_margin: the package cmaes searches two coordinates or more"):
        simulated("cma_es_margin", spheres(1))
    assert float((final(simulated("cma_es_margin", spheres(bounds=None), rounds=60)) - 0.3).abs().max()) < 0.05
