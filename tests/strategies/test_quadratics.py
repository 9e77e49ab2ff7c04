"""Where each method ends on heterogeneous quadratics, against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import fedsim
from fedsim.testing.problems import Quadratics

GRADIENT = {"kind": "sgd", "steps": 10, "batch_size": "full", "lr": 0.05}


def distance(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.linalg.norm(first - second))


def fixed_point(quadratics, mu: float = 0.0) -> np.ndarray:
    """Of theta -> mean_i (A_i theta + c_i), the average of the clients' ten-step maps."""
    maps = [quadratics.local(client, 10, 0.05, mu) for client in range(6)]
    moved, fixed = sum(a for a, _ in maps) / 6, sum(c for _, c in maps) / 6
    return np.linalg.solve(np.eye(3) - moved, fixed)


def test_fedavg_ends_at_the_fixed_point_of_its_averaged_map_which_is_not_the_optimum(quadratics):
    end = quadratics.run(60, {"kind": "fedavg"}, GRADIENT)
    assert distance(end, fixed_point(quadratics)) < 1e-9
    assert distance(end, quadratics.optimum()) > 0.05


def test_fedavg_with_one_step_is_gradient_descent(quadratics):
    end = quadratics.run(120, {"kind": "fedavg"}, GRADIENT | {"steps": 1, "lr": 0.2})
    assert distance(end, quadratics.optimum()) < 1e-9


def test_fedprox_ends_at_the_fixed_point_of_its_penalised_map_closer_to_the_optimum(quadratics):
    ends = {}
    for mu in (0.0, 1.0, 4.0):
        end = quadratics.run(80, {"kind": "fedprox", "proximal_mu": mu}, GRADIENT)
        assert distance(end, fixed_point(quadratics, mu)) < 1e-6
        ends[mu] = distance(end, quadratics.optimum())
    assert ends[0.0] > ends[1.0] > ends[4.0] > 1e-4


def test_the_penalty_is_the_same_from_server_and_client(quadratics):
    server = quadratics.run(5, {"kind": "fedprox", "proximal_mu": 0.7}, GRADIENT)
    client = quadratics.run(5, {"kind": "fedavg"}, GRADIENT | {"proximal_mu": 0.7})
    assert np.array_equal(server, client)


@pytest.mark.parametrize(("count", "rounds"), [(6, 50), (2, 130)])
def test_scaffold_ends_at_the_optimum_also_under_partial_participation(quadratics, count, rounds):
    end = quadratics.run(rounds, {"kind": "scaffold"}, GRADIENT | {"kind": "scaffold"}, count)
    assert distance(end, quadratics.optimum()) < 1e-6


@pytest.mark.parametrize(("count", "rounds"), [(6, 75), (2, 225)])
def test_feddyn_ends_at_the_optimum_also_under_partial_participation(quadratics, count, rounds):
    """Thirty steps leave at most (1 - 0.2 x 1)^30 = 0.001 of the way to the solution of a local problem."""
    client = {"kind": "feddyn", "steps": 30, "batch_size": "full", "lr": 0.2}
    end = quadratics.run(rounds, {"kind": "feddyn", "alpha": 1.0}, client, count)
    assert distance(end, quadratics.optimum()) < 1e-6


def unequal_work() -> Quadratics:
    """f_i(w) = (x_i w - y_i)^2: one example repeated 2^i times, so that an epoch of batches of 1 is 2^i exact steps."""
    x, y = np.array([1.0, 0.8, 1.2, 0.9, 1.1, 0.7]), np.array([-2.0, 1.0, 0.5, -1.0, 2.0, 3.0])
    work = 2 ** np.arange(6)
    ends = np.cumsum(work)
    lists = [np.arange(end - count, end) for end, count in zip(ends, work, strict=True)]
    return Quadratics(np.repeat(x, work)[:, None], np.repeat(y, work), lists)


def test_fednova_is_exact_as_the_step_vanishes_under_unequal_work():
    """1 to 32 local steps. FedAvg favours those with more steps however small the step is; FedNova's bias is O(lr)."""
    quadratics = unequal_work()
    client = {"kind": "sgd", "epochs": 1, "batch_size": 1}
    bias = {}
    for kind in ("fedavg", "fednova"):
        for lr, rounds in ((0.04, 15), (0.01, 60)):
            strategy = {"kind": kind, "weighting": "uniform"}
            bias[kind, lr] = distance(quadratics.run(rounds, strategy, client | {"lr": lr}), quadratics.optimum())
    assert bias["fedavg", 0.01] > 0.5
    assert bias["fednova", 0.04] < 0.3 * bias["fedavg", 0.04]
    # A quarter of the step leaves a quarter of the bias.
    assert bias["fednova", 0.01] == pytest.approx(0.25 * bias["fednova", 0.04], rel=0.2)


def test_fednova_equals_fedavg_under_equal_work(quadratics):
    average = quadratics.run(20, {"kind": "fedavg"}, GRADIENT)
    normalised = quadratics.run(20, {"kind": "fednova"}, GRADIENT)
    assert np.allclose(average, normalised, rtol=1e-12)


class Constant(nn.Module):
    """One number, whatever the inputs are."""

    def __init__(self) -> None:
        super().__init__()
        self.number = nn.Parameter(torch.zeros(1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.number.repeat(len(x), 1)


@pytest.mark.parametrize("count", [3, 1])
@pytest.mark.parametrize(("weighting", "end"), [("examples", 0.7), ("uniform", 0.5)])
def test_scaffold_stands_still_where_the_weighted_gradients_cancel(weighting, end, count):
    """f_i(y) = (y - a_i)^2, a = (0, 1, 0.5), of 1, 5 and 4 examples: (0 + 5 + 2) / 10, or the mean of the three."""
    y = np.repeat([0.0, 1.0, 0.5], [1, 5, 4])
    lists = [[0], range(1, 6), range(6, 10)]
    problem = fedsim.supervised(np.zeros((10, 1)), y, model=Constant(), clients=lists, dtype=torch.float64)
    result = fedsim.run(
        problem=problem,
        rounds=30 if count == 3 else 150,
        strategy={"kind": "scaffold", "weighting": weighting},
        client={"kind": "scaffold", "steps": 3, "batch_size": "full", "lr": 0.1},
        selection={"kind": "uniform", "count": count},
        save=False,
    )
    assert float(result.params) == pytest.approx(end, abs=1e-6)
