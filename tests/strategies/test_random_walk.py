"""Token algorithms: rows of the walk by hand, what law it keeps, and how much less its means vary when it avoids."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsim.core.errors import InputError
from fedsim.running.build import build_simulation
from fedsim.running.simulation import Simulation
from fedsim.server import ServerState
from fedsim.testing.problems import TRAINING, small_experiment, small_problem
from fedsim.testing.rounds import exchange, fail
from strategies.random_walk import RandomWalk

ALL = {"kind": "uniform", "fraction": 1.0}
GOLDEN = 0.618033988749895
HOUSE = ((0, 1), (1, 2), (2, 3), (3, 4), (4, 0), (1, 3))
"""A ring of five with a chord."""
EIGHT = (*((node, (node + 1) % 8) for node in range(8)), (0, 4))
"""A ring of eight with a chord."""
D, MESSAGE = 83, (83 + 6) * 8


def standing(pairs: Any, sizes: Any = None, at: int = 0, **options: Any) -> tuple[RandomWalk, ServerState]:
    """A walk with counts of 1 on links, whose clients have so many examples."""
    strategy = RandomWalk(memory_power=1.0, step_power=0.0, **options)
    count = 1 + max(max(pair) for pair in pairs)
    links = torch.tensor(sorted([*pairs, *((other, one) for one, other in pairs)])).T
    memory = {
        "visits": torch.ones(count, dtype=torch.float64),
        "sizes": torch.tensor([1.0] * count if sizes is None else sizes, dtype=torch.float64),
        "at": torch.tensor(at),
        "links": links,
        "seed": torch.tensor(1),
    }
    return strategy, ServerState(torch.zeros(1), memory=memory)


def everywhere(state: ServerState) -> Tensor:
    return torch.ones(len(state.memory["sizes"]), dtype=torch.bool)


def visited(state: ServerState, client: int) -> ServerState:
    visits = state.memory["visits"].clone()
    visits[client] += 1
    return replace(state, memory={**state.memory, "visits": visits, "at": torch.tensor(client)})


def kernel(strategy: RandomWalk, state: ServerState) -> np.ndarray:
    """K[x], all rows."""
    count = len(state.memory["sizes"])
    found = np.zeros((count, count))
    for at in range(count):
        here = replace(state, memory={**state.memory, "at": torch.tensor(at)})
        names, likely = strategy.row(here, everywhere(state))
        found[at, names.numpy()] = likely.numpy()
    return found


@pytest.mark.parametrize(
    ("target", "places", "last", "rows"),
    [
        (
            "uniform",
            [4, 0, 4, 3, 1, 2, 1, 3, 2, 1],
            [2, 4, 3, 3, 3],
            {
                1: {0: 0.166667, 1: 0.333333, 4: 0.5},
                2: {0: 0.571429, 3: 0.380952, 4: 0.047619},
                4: {0: 0.262136, 3: 0.699029, 4: 0.038835},
                9: {1: 0.235294, 2: 0.529412, 4: 0.235294},
            },
        ),
        (
            "examples",
            [4, 3, 2, 2, 1, 3, 1, 3, 2, 1],
            [1, 4, 4, 4, 2],
            {
                1: {1: 0.5, 4: 0.5},
                3: {1: 0.285714, 2: 0.642857, 4: 0.071429},
                8: {0: 0.325301, 1: 0.048193, 2: 0.433735, 3: 0.192771},
                10: {1: 0.21157, 2: 0.669421, 3: 0.119008},
            },
        ),
    ],
)
def test_ten_hops_by_hand(target, places, last, rows):
    """alpha 2; mu uniform, or as (1, 2, 3, 2, 2); the next is the first whose cumulative share is above u_t."""
    strategy, state = standing(HOUSE, (1, 2, 3, 2, 2), target=target, alpha=2.0)
    found = list[int]()
    for hop in range(1, 11):
        names, likely = strategy.row(state, everywhere(state))
        if hop in rows:
            assert dict(zip(names.tolist(), likely.tolist(), strict=True)) == pytest.approx(rows[hop], abs=1e-6)
        place = torch.searchsorted(likely.cumsum(0), GOLDEN * hop % 1.0, right=True)
        found.append(int(names[place]))
        state = visited(state, found[-1])
    assert found == places
    assert state.memory["visits"].tolist() == last


def test_rows_are_a_law_on_links_that_scale_does_not_matter_to():
    strategy, state = standing(HOUSE, (1, 2, 3, 2, 2), target="examples", alpha=3.0)
    mu, base = np.array([1, 2, 3, 2, 2]) / 10, kernel(*standing(HOUSE, (1, 2, 3, 2, 2), target="examples", alpha=0.0))
    links = {*HOUSE, *((other, one) for one, other in HOUSE), *((node, node) for node in range(5))}
    visits = torch.tensor([3.0, 1.0, 4.0, 1.0, 5.0], dtype=torch.float64)
    state = replace(state, memory={**state.memory, "visits": visits})
    found = kernel(strategy, state)
    assert np.allclose(found.sum(axis=1), 1.0, rtol=0, atol=1e-15)
    assert {(int(one), int(other)) for one, other in zip(*found.nonzero(), strict=True)} <= links
    scaled = replace(state, memory={**state.memory, "visits": 7.0 * visits})
    assert np.allclose(kernel(strategy, scaled), found, rtol=0, atol=1e-15)
    # Where it has been as often as it should, it is the base chain, whose law is mu, and which is reversible.
    even = replace(state, memory={**state.memory, "visits": torch.from_numpy(50 * mu)})
    assert np.allclose(kernel(strategy, even), base, rtol=0, atol=1e-15)
    assert np.allclose(mu[:, None] * base, (mu[:, None] * base).T, rtol=0, atol=1e-16)
    # The law of a kernel that is kept as it is: mu_i r_i sum_j P_ij r_j, r = (x / mu)^-alpha.
    r = (visits.numpy() / mu) ** -3.0
    law = mu * r * (base @ r)
    law /= law.sum()
    assert np.allclose(law @ found, law, rtol=0, atol=1e-15)


def test_a_walk_to_any_neighbour_alike_is_where_there_are_links_and_steps_make_up_for_it():
    strategy, state = standing(HOUSE, target="degree", alpha=0.0, weighting="uniform")
    degree = np.array([2, 3, 2, 3, 2])
    base = kernel(strategy, state)
    assert np.allclose(base[1], [1 / 3, 0, 1 / 3, 1 / 3, 0], rtol=0, atol=1e-15)
    assert np.allclose(degree @ base, degree, rtol=0, atol=1e-14)
    factors = dict[int, float]()
    for seed in range(40):
        order, _ = strategy.ask(replace(state, memory={**state.memory, "seed": torch.tensor(seed)}), torch.arange(5))
        factors[int(order.clients[0])] = float(order.config["step-factor"])
    assert factors == pytest.approx({1: 12 / 5 / 3, 4: 12 / 5 / 2}, abs=1e-12)  # p / mu of the neighbours of 0


@cache
def means(alpha: float) -> float:
    """T times the variance of the mean of +-1 over T hops, of 16 walks, each from its own seed."""
    strategy, begun = standing(EIGHT, alpha=alpha)
    payoff, hops, found = torch.tensor([1.0, 1, 1, 1, -1, -1, -1, -1]), 80, list[float]()
    for seed in range(16):
        state = replace(begun, memory={**begun.memory, "seed": torch.tensor(seed), "at": torch.tensor(seed % 8)})
        total = 0.0
        for _ in range(hops):
            client, _ = strategy.following(state, everywhere(state))
            state = replace(visited(state, client), round=state.round + 1)
            total += float(payoff[client])
        found.append(total / hops)
    return hops * float(np.mean(np.square(found)))


def test_means_vary_less_the_more_the_walk_avoids_where_it_has_been():
    """Theory, V = sum_i (1 + l_i) / (1 - l_i) / (2 alpha (1 + l_i) + 1) (u_i . c)^2, l_i of P, is here for T large."""
    base = kernel(*standing(EIGHT, alpha=0.0))
    values, vectors = np.linalg.eigh(base)  # symmetric, as mu is uniform
    payoff = np.array([1.0, 1, 1, 1, -1, -1, -1, -1]) / np.sqrt(8)
    shares = (vectors.T @ payoff)[:-1] ** 2
    theory = [
        float(np.sum((1 + values[:-1]) / (1 - values[:-1]) / (2 * alpha * (1 + values[:-1]) + 1) * shares))
        for alpha in (0.0, 1.0, 5.0)
    ]
    assert theory[0] > 4 * theory[1] > 12 * theory[2] / 3
    found = [means(alpha) for alpha in (0.0, 1.0, 5.0)]
    assert found[0] > 1.5 * found[1] > 1.5**2 * found[2]
    for measured, expected in zip(found, theory, strict=True):
        assert expected / 2.2 < measured < 2.2 * expected


def simulated(rounds: int = 6, **tables: Any) -> Simulation:
    strategy = {"kind": "random_walk"} | tables.pop("strategy", {})
    made = small_experiment(
        rounds, strategy=strategy, client={"kind": "random_walk", **TRAINING}, **({"selection": ALL} | tables)
    )
    return build_simulation(made, small_problem())


def test_who_has_the_model_steps_and_bytes_are_those_of_hops():
    """(n + 1)^-0.9 times p_i / mu_i times the client's own change; x <- x + (n + 1)^-0.8 (e - x)."""
    run = simulated()
    state, visits = run.state, torch.full((6,), 1 / 6, dtype=torch.float64)
    for n in range(1, 7):
        at, before = int(state.memory["at"]), replace(run.parts.engine.ledger)
        order, replies = exchange(run, state, torch.arange(6))
        (client,) = order.clients.tolist()
        assert (client - at) % 6 in (0, 1, 5)
        alone = build_simulation(small_experiment(1, selection=ALL), small_problem())
        parted = replace(alone.state, params=state.params, round=state.round)
        _, plain = exchange(alone, parted, torch.tensor([client]))
        factor = (n + 1) ** -0.9 * int(run.parts.problem.sizes[client]) / 37 * 6
        expected = state.params + factor * plain.payload["delta"][0]
        state, metrics, done = run.parts.strategy.tell(state, replies)
        assert torch.allclose(state.params, expected, rtol=0, atol=1e-14)
        visits *= 1 - (n + 1) ** -0.8
        visits[client] += (n + 1) ** -0.8
        assert torch.allclose(state.memory["visits"].cpu(), visits, rtol=0, atol=1e-15)
        assert (int(state.memory["at"]), done) == (client, True)
        assert metrics["off_target"] == pytest.approx(0.5 * float((visits - 1 / 6).abs().sum()), abs=1e-14)
        crossed, cost = run.parts.engine.ledger.since(before), MESSAGE * (client != at)
        assert (crossed["bytes_up"], crossed["bytes_down"]) == (cost, cost)


def test_who_is_away_is_not_visited_and_the_nearest_is_where_all_neighbours_are():
    run = simulated(strategy={"memory_power": 1.0, "step_power": 0.0})
    state, strategy = run.state, run.parts.strategy
    for seed in range(8):
        drawn = replace(state, memory={**state.memory, "seed": torch.tensor(seed)})
        assert strategy.ask(drawn, torch.tensor([2, 3, 5]))[0].clients.tolist() == [5]  # 0 itself is away, and so is 1
        assert strategy.ask(drawn, torch.tensor([0, 2, 3]))[0].clients.tolist() == [0]
    order, _ = strategy.ask(state, torch.tensor([3, 4]))  # 4 is two links away, by 5 who is not there
    assert (order.clients.tolist(), order.peers, order.encoded) == ([4], 2, 2 * MESSAGE)


def test_who_fails_has_not_had_the_model():
    run = simulated()
    order, _ = run.parts.strategy.ask(run.state, torch.arange(6))
    fail(run, int(order.clients[0]))
    _, replies = exchange(run, run.state, torch.arange(6))
    later, _, done = run.parts.strategy.tell(run.state, replies)
    assert len(replies) == 0
    assert (later.round, done) == (1, True)
    for name in ("visits", "at"):
        assert torch.equal(later.memory[name], run.state.memory[name])
    assert torch.equal(later.params, run.state.params)


@pytest.mark.parametrize(
    ("tables", "why"),
    [
        ({"strategy": {"memory_power": 0.95}}, "strategy.memory_power = 0.95: alpha is of no use"),
        ({"strategy": {"memory_power": 0.5}}, "strategy.memory_power = 0.5"),
        ({"strategy": {"graph": "torus", "alpha": -1.0}}, "strategy.alpha = -1.0"),
        ({"strategy": {"graph": {"kind": "erdos_renyi", "p": 0.01}}}, "not connected"),
        ({"selection": {"kind": "uniform", "count": 4}}, "only 4 of 6 clients are selected; select all"),
        ({"transforms": [{"kind": "clip", "max_norm": 0.1}]}, "not delta alone is sent"),
        ({"aggregation": "median"}, "averages nothing"),
    ],
)
def test_what_does_not_go_with_a_walk_is_refused_in_a_line(tables, why):
    with pytest.raises(InputError, match=why) as refused:
        simulated(**tables)
    assert "\n" not in str(refused.value)


def test_alpha_that_does_nothing_need_not_go_with_steps():
    assert RandomWalk(alpha=0.0, memory_power=1.0).memory_power == 1.0
    assert RandomWalk(step_power=0.0, memory_power=1.0).alpha == 5.0
