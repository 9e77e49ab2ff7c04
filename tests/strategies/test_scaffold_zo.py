"""SCAFFOLD on black boxes, against its own rule with the gradients of quadratics.

With central differences along all coordinates the estimate is the gradient, whatever the radius is: on
f_i = (h_i/2) |x - m_i|^2 it is h_i (x - m_i), and SCAFFOLD can be written down in a few lines of NumPy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import fedsim
from fedsim.problems.black_box import BlackBox
from fedsim.problems.own_functions import black_box
from fedsim.running.build import build_simulation
from fedsim.running.simulation import Simulation
from fedsim.testing.problems import DEVICE, small_problem

N, D, T, LR = 4, 3, 5, 0.1
CURVATURES = np.array([0.5, 1.0, 1.5, 2.0])
CENTRES = np.array([[1.0, 0.0, -1.0], [0.0, 2.0, 0.0], [-1.0, 1.0, 3.0], [0.5, -2.0, 1.0]])
EXACT = {"kind": "differences", "difference": "central", "directions": "coordinate", "count": D, "mu": 0.1}
FORWARD = {"kind": "differences", "directions": "gaussian", "count": 6, "mu": 1e-3}
CLIENT = {"steps": T, "lr": LR, "optimizer": "sgd", "estimator": EXACT}


def quadratics(curvatures: np.ndarray = CURVATURES, centres: np.ndarray = CENTRES) -> BlackBox:
    h, m = torch.tensor(curvatures, device=DEVICE), torch.tensor(centres, device=DEVICE)

    def functions(clients: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return h[clients].unsqueeze(1) / 2 * (x - m[clients].unsqueeze(1)).square().sum(-1)

    return black_box(functions, dimension=D, clients=len(curvatures), bounds=None, device=DEVICE)


def simulated(
    variant: str | None, rounds: int = 6, problem: Any = None, count: int = N, executor: str = "auto", **tables: Any
) -> Simulation:
    """A run of a variant of SCAFFOLD, or of FedZO."""
    client, strategy = CLIENT | tables.get("client", {}), dict(tables.get("strategy", {}))
    if variant is None:
        client, strategy = client | {"kind": "fedzo"}, strategy | {"kind": "fedzo"}
    else:
        client = client | {"kind": "clients.scaffold_zo:ScaffoldZO"}
        strategy = strategy | {"kind": "strategies.scaffold_zo:ScaffoldZO", "variant": variant}
    experiment = fedsim.experiment(
        rounds=rounds,
        client=client,
        strategy=strategy,
        selection={"kind": "uniform", "count": count},
        evaluation={"every": 0},
        engine={"executor": executor},
    )
    return build_simulation(experiment, quadratics() if problem is None else problem)


def reference(variant: str, rounds: int) -> np.ndarray:
    """SCAFFOLD-I and -II with everybody, exact gradients and plain steps: theta after so many rounds."""
    theta, c, own = np.zeros(D), np.zeros(D), np.zeros((N, D))

    def gradient(client: int, x: np.ndarray) -> np.ndarray:
        return CURVATURES[client] * (x - CENTRES[client])

    for _ in range(rounds):
        ends, averages = [], []
        for client in range(N):
            z, seen = theta.copy(), []
            for _ in range(T):
                seen.append(gradient(client, z))
                z = z - LR * (seen[-1] + c - own[client])
            ends.append(z)
            averages.append(np.mean(seen, axis=0))
        theta = np.mean(ends, axis=0)
        own = np.stack(averages if variant == "average" else [gradient(client, theta) for client in range(N)])
        c = own.mean(axis=0)
    return theta


@pytest.mark.parametrize("variant", ["fresh", "average"])
@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_with_exact_gradients_it_is_scaffold(variant, rounds):
    run = simulated(variant, rounds)
    for _ in run:
        pass
    assert np.allclose(run.state.params.cpu().numpy(), reference(variant, rounds), rtol=0, atol=1e-9)


@pytest.mark.parametrize("variant", ["fresh", "average"])
def test_it_ends_at_the_optimum_where_fedzo_does_not(variant):
    """min F is at sum h_i m_i / sum h_i; five local steps of FedZO are drawn to the centres of the flat f_i less."""
    optimum = torch.tensor(CURVATURES @ CENTRES / CURVATURES.sum(), device=DEVICE)
    ends = {}
    for name in (None, variant):
        run = simulated(name, 60)
        for _ in run:
            pass
        ends[name] = float((run.state.params - optimum).norm())
    assert ends[variant] < 1e-9
    assert ends[None] > 0.05


@pytest.mark.parametrize("variant", ["fresh", "average"])
def test_the_first_round_and_equal_clients_have_no_correction(variant):
    """Where all f_i are equal and gradients exact, c = c_i: SCAFFOLD is FedZO. Elsewhere only its first round is."""
    equal = quadratics(np.full(N, 1.5), np.tile(CENTRES[:1], (N, 1)))
    for problem, same_after in ((equal, [True, True, True]), (quadratics(), [True, False, False])):
        corrected, plain = simulated(variant, 3, problem), simulated(None, 3, problem)
        for expected in same_after:
            corrected.step()
            plain.step()
            assert torch.allclose(corrected.state.params, plain.state.params, rtol=0, atol=1e-9) == expected


@pytest.mark.parametrize(("estimator", "each"), [(EXACT, 2 * D), (FORWARD, 6 + 1)])
@pytest.mark.parametrize("guard", [False, True])
@pytest.mark.parametrize("variant", ["fresh", "average"])
def test_queries_and_bytes(variant, guard, estimator, each):
    """In the second round, of 8-byte numbers.

    Down: theta and c, 2d; theta again for a fresh estimate, d; the candidate for a guard that knows F at theta, d.
    Up: the change and c_i, 2d; one value for the guard. Queries: T estimates; one more for a fresh c_i and one for the
    guard, outside the published count.
    """
    run = simulated(variant, 2, client={"estimator": estimator}, strategy={"guard": guard})
    run.step()
    row = run.step()
    fresh = variant == "fresh"
    assert row["extra_queries"] == N * (fresh * each + guard)
    assert row["queries"] == N * (T * each + fresh * each + guard)
    assert row["bytes_down"] == N * 8 * D * (2 + fresh + guard)
    assert row["bytes_up"] == N * 8 * (2 * D + guard)
    assert row["clients"] == N


@pytest.mark.parametrize("variant", ["fresh", "average"])
def test_with_a_guard_f_never_rises(variant):
    """Steps of lr = 1.2 overshoot on the steepest function, (1 - 1.2 x 2)^5 = -5.4: unguarded, F rises."""
    values = {}
    for guard in (False, True):
        run = simulated(variant, 8, client={"lr": 1.2}, strategy={"guard": guard})
        problem = run.parts.problem
        values[guard] = [problem.evaluate(run.state.params, clients=False)["value"]]
        for _ in range(8):
            run.step()
            values[guard].append(problem.evaluate(run.state.params, clients=False)["value"])
    assert values[False] != sorted(values[False], reverse=True)
    assert values[True] == sorted(values[True], reverse=True)


def test_a_client_without_a_control_variate_does_not_correct():
    """Two of four take part. Whoever comes for the first time trains as in FedZO, although c is not zero by then."""
    run = simulated("average", 1, count=2)
    run.step()
    store = run.parts.engine.executor.store.snapshot()
    known, new = store["clients"].tolist(), sorted(set(range(N)) - set(store["clients"].tolist()))
    assert store["controlled"].tolist() == [1.0, 1.0]
    assert bool(run.state.memory["control"].any())
    executor, strategy = run.parts.engine.executor, run.parts.strategy
    orders, _ = strategy.ask(run.state, torch.arange(N))
    sent = executor.execute(executor.assign(orders)).payload["delta"].cpu().numpy()
    theta = run.state.params.cpu().numpy()
    for client in range(N):
        # T plain steps shrink the distance to the centre by (1 - lr h)^T.
        plain = ((1 - LR * CURVATURES[client]) ** T - 1) * (theta - CENTRES[client])
        assert np.allclose(sent[client], plain, rtol=0, atol=1e-9) == (client in new)
    assert len(known) == len(new) == 2


@pytest.mark.parametrize("batch_size", ["full", 4])
@pytest.mark.parametrize("variant", ["fresh", "average"])
def test_loop_equals_stacked_on_examples(variant, batch_size):
    client = {"batch_size": batch_size, "estimator": FORWARD}
    ends = []
    for executor in ("loop", "stacked"):
        run = simulated(variant, 3, small_problem(), 4, executor, client=client)
        for _ in run:
            pass
        ends.append(run.state.params)
    # Differences over a radius of 1e-3 enlarge the last bits of values a thousandfold.
    assert torch.allclose(*ends, rtol=0, atol=1e-8)


@pytest.mark.parametrize("variant", ["fresh", "average"])
def test_a_restored_run_ends_like_an_uninterrupted_one(variant):
    tables = {"client": {"estimator": FORWARD}, "strategy": {"guard": True}}
    whole, first, second = (simulated(variant, 4, count=2, **tables) for _ in range(3))
    first.step()
    first.step()
    second.restore(first.snapshot())
    first.step()
    for run in (whole, second):
        for _ in run:
            pass
    assert torch.equal(whole.state.params, second.state.params)
