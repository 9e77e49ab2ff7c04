"""CMA-ES: the package's own search, told F as the clients tell it."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest
import torch

import fedsim
from fedsim.core.errors import InputError
from fedsim.core.streams import Streams
from fedsim.problems.black_box import BlackBox
from fedsim.problems.own_functions import black_box
from fedsim.running.build import build_simulation
from fedsim.running.simulation import Simulation
from fedsim.testing.problems import DEVICE, small_problem
from fedsim.zeroth_order.ask_tell import _SEARCHES

pytest.importorskip("cma")
KIND = {"kind": "strategies.cma_es:CmaEs"}
CENTRES = [0.1, 0.2, 0.6]  # F = mean_i sum_j (x_j - c_i)^2 is least at 0.3


def spheres(dimension: int = 4, bounds: tuple[float, float] | None = (0.0, 1.0), start: float = 0.0) -> BlackBox:
    centres = torch.tensor(CENTRES, dtype=torch.float64, device=DEVICE)

    def functions(clients: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return (x - centres[clients].view(-1, 1, 1)).square().sum(-1)

    return black_box(functions, dimension=dimension, clients=3, bounds=bounds, start=start, device=DEVICE)


def simulated(problem: Any = None, rounds: int = 5, seed: int = 0, **options: Any) -> Simulation:
    client = {"kind": "clients.values:Values"} | options.pop("client", {})
    count = options.pop("count", 3)
    executor = options.pop("executor", "auto")
    experiment = fedsim.experiment(
        rounds=rounds,
        seed=seed,
        strategy=KIND | options,
        client=client,
        selection={"kind": "uniform", "count": count},
        evaluation={"every": 0},
        engine={"executor": executor},
    )
    return build_simulation(experiment, spheres() if problem is None else problem)


def final(run: Simulation) -> torch.Tensor:
    for _ in run:
        pass
    return run.state.params


@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize("bounds", [None, (0.0, 1.0), (-1.0, 3.0)])
def test_it_is_the_packages_search(bounds, diagonal):
    """Driven by hand in one piece, with the same numbers and F itself, it goes the same way."""
    import cma
    from cma.sigma_adaptation import CMAAdaptSigmaCSA

    width = 1.0 if bounds is None else bounds[1] - bounds[0]
    streams = Streams(Streams(0).derive("cma-es") >> 1)
    drawn: list[np.random.Generator] = []
    settings = {
        "randn": lambda *shape: drawn[-1].standard_normal(shape),
        "AdaptSigma": CMAAdaptSigmaCSA,
        "CMA_diagonal": diagonal,
        "verbose": -9,
        "verb_log": 0,
    } | ({} if bounds is None else {"bounds": list(bounds)})
    search = cma.CMAEvolutionStrategy(4 * [0.0], 0.25 * width, settings)
    run = simulated(spheres(bounds=bounds), rounds=30, diagonal=diagonal)
    for number in range(30):
        drawn.append(streams.generator("population", turn=number))
        population = search.ask()
        search.tell(population, [float(np.mean([((x - c) ** 2).sum() for c in CENTRES])) for x in population])
        row = run.step()
        assert np.allclose(run.state.params.cpu().numpy(), search.result.xfavorite, rtol=0, atol=1e-7)
        assert row["sigma"] == pytest.approx(search.sigma, rel=1e-6)


def test_it_finds_the_minimum_of_the_mean_and_counts_what_it_asks():
    """n = 4 + floor(3 ln 4) = 8 points of 4 numbers down, 8 values up, in 8-byte numbers, for each of 3 clients."""
    run = simulated(rounds=80)
    rows = list(run)
    assert float((run.state.params - 0.3).abs().max()) < 1e-3
    for row in rows:
        assert (row["queries"], row["extra_queries"]) == (3 * 8, 0)
        assert (row["bytes_down"], row["bytes_up"]) == (3 * 8 * 8 * 4, 3 * 8 * 8)
    # min F = mean_i 4 (c_i - 0.3)^2 = 4 (0.04 + 0.01 + 0.09) / 3 = 0.56 / 3.
    assert rows[-1]["lowest_value"] == pytest.approx(0.56 / 3, abs=1e-5)


def test_candidates_stay_in_the_box():
    run = simulated(spheres(start=0.0), rounds=10, sigma=1.0)
    for _ in range(10):
        orders, _ = run.parts.strategy.ask(run.state, torch.arange(3))
        candidates = orders.payload["candidates"]
        assert bool(((candidates >= 0) & (candidates <= 1)).all())
        run.step()


@pytest.mark.parametrize(("dimension", "diagonal"), [(2, False), (400, True)])
def test_no_global_generator_is_read_or_written(dimension, diagonal):
    """Nor in many dimensions, where the package's own choice of a step-size rule draws from NumPy's."""
    before = np.random.get_state()  # noqa: NPY002
    first = final(simulated(spheres(dimension), 8, diagonal=diagonal))
    after = np.random.get_state()  # noqa: NPY002
    assert all(np.array_equal(now, then) for now, then in zip(after, before, strict=True))
    np.random.seed(9)  # noqa: NPY002
    again = final(simulated(spheres(dimension), 8, diagonal=diagonal))
    np.random.set_state(before)  # noqa: NPY002
    assert torch.equal(first, again)


def test_a_restored_run_ends_like_an_uninterrupted_one_and_inputs_stay():
    whole, first, second = simulated(), simulated(), simulated()
    first.step()
    first.step()
    second.restore(first.snapshot())
    held = {name: told.clone() for name, told in first.state.memory.items()}
    state = first.state
    first.step()
    assert all(torch.equal(state.memory[name], held[name]) for name in held)
    assert torch.equal(final(second), final(whole))
    assert torch.equal(final(first), final(whole))


@pytest.mark.parametrize("diagonal", [False, True])
def test_another_process_makes_the_search_again_to_the_bit(diagonal):
    whole, first, second = (simulated(spheres(4), 40, diagonal=diagonal) for _ in range(3))
    for _ in range(25):
        first.step()
    second.restore(first.snapshot())
    _SEARCHES.clear()  # as in a process that has just begun
    assert torch.equal(final(second), final(whole))


@pytest.mark.parametrize("other", [{"seed": 1}, {"sigma": 0.1}, {"population": 5}, {"diagonal": True}, {"count": 2}])
def test_options_and_the_seed_move_something(other):
    assert not torch.allclose(final(simulated()), final(simulated(**other)), rtol=1e-6)


def test_weights_are_by_examples_where_that_is_asked_for():
    ends = [
        final(simulated(small_problem(), weighting=weighting, count=4, diagonal=True))
        for weighting in ("uniform", "examples")
    ]
    assert not torch.allclose(*ends, rtol=1e-6)


@pytest.mark.parametrize("batch_size", ["full", 4])
def test_loop_equals_stacked_on_examples(batch_size):
    client = {"batch_size": batch_size}
    loop, stacked = (
        final(simulated(small_problem(), 3, count=4, executor=executor, client=client))
        for executor in ("loop", "stacked")
    )
    assert torch.allclose(loop, stacked, rtol=0, atol=1e-9)
    everything = final(simulated(small_problem(), 3, count=4))
    assert torch.allclose(loop, everything, rtol=1e-6) == (batch_size == "full")


def test_a_round_without_replies_changes_nothing_but_its_number():
    run = simulated()
    run.step()
    strategy, engine = run.parts.strategy, run.parts.engine
    orders, window = strategy.ask(run.state, torch.arange(3))
    engine.submit(orders)
    replies = engine.collect(window, run.round)
    state, metrics, done = strategy.tell(run.state, replies.where(torch.zeros(3, dtype=torch.bool)))
    assert (state.round, metrics, done) == (2, {}, True)
    assert torch.equal(state.params, run.state.params)
    assert state.memory.keys() == run.state.memory.keys()
    assert all(torch.equal(told, run.state.memory[name]) for name, told in state.memory.items())


def test_without_the_package_the_remedy_is_said(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "cma" else found(name))
    with pytest.raises(InputError, match=r"pip install 'fedsim-lab\[cma\]'"):
        simulated()


def test_a_box_of_one_coordinate_is_refused_and_a_line_is_searched():
    """The package fails in a box of one coordinate, once its step is wider than that."""
    experiment = fedsim.experiment(rounds=3, strategy={"kind": "cma_es"}, client={"kind": "values"})
    for bounds in ((0.0, 1.0), None):
        problem = fedsim.black_box([lambda x: float((x[0] - 0.3) ** 2)], dimension=1, kind="scalar", bounds=bounds)
        if bounds is None:
            assert fedsim.run(experiment, problem=problem, save=False).summary["rounds"] == 3
        else:
            with pytest.raises(fedsim.InputError, match="cma_es: the package cma searches a box of two coordinates"):
                fedsim.run(experiment, problem=problem, save=False)
