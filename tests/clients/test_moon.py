"""MOON against its formula by hand, its first round, its case of no contrast, and what it is refused with."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fedsim
from clients.moon import Contrast
from fedsim.core.errors import InputError
from fedsim.exchange.messages import Order
from fedsim.nets.losses import CrossEntropy
from fedsim.problems.supervised import Supervised
from fedsim.running.build import build_executor, build_simulation
from fedsim.running.simulation import Simulation
from fedsim.testing.problems import TRAINING, blobs, mlp, small_experiment, small_problem

EVERYBODY = {"kind": "uniform", "fraction": 1.0}


def run(problem: Supervised, rounds: int = 3, executor: str = "stacked", **client: Any) -> tuple[Simulation, list[Any]]:
    given = {"kind": "moon", **TRAINING} | client
    engine = {"executor": executor}
    simulation = build_simulation(small_experiment(rounds, client=given, selection=EVERYBODY, engine=engine), problem)
    return simulation, list(simulation)


def test_features_are_drawn_to_the_received_model_and_from_the_last():
    """Two clients, two rounds of three full batches: CE + mu CE([cos(z, z_r), cos(z, z_l)] / tau, 0), as published."""
    problem = small_problem(sizes=(11, 4))
    mu, tau, x, y = 2.0, 0.4, problem.data.x, problem.data.y
    owned = problem.data.order.split([11, 4])
    theta, lasts = mlp().double(), [mlp().double(), mlp().double()]

    def features(model: nn.Module, rows: Tensor) -> Tensor:
        return model[:3](x[rows])  # type: ignore[index]

    for _ in range(2):
        ends = []
        for place, rows in enumerate(owned):
            model = copy.deepcopy(theta)
            for _ in range(3):
                z = features(model, rows)
                near, far = (features(other, rows).detach() for other in (theta, lasts[place]))
                cosines = [functional.cosine_similarity(z, other, dim=1, eps=1e-8) for other in (near, far)]
                contrast = functional.cross_entropy(
                    torch.stack(cosines, dim=1) / tau, torch.zeros(len(rows), dtype=torch.int64)
                )
                loss = functional.cross_entropy(model[3](z), y[rows]) + mu * contrast
                gradient = torch.autograd.grad(loss, model.parameters())
                for part, own in zip(model.parameters(), gradient, strict=True):
                    part.data -= 0.1 * own
            lasts[place] = model
            ends.append(torch.nn.utils.parameters_to_vector(model.parameters()).detach())
        torch.nn.utils.vector_to_parameters(ends[0] * (11 / 15) + ends[1] * (4 / 15), theta.parameters())
    expected = torch.nn.utils.parameters_to_vector(theta.parameters())
    for executor in ("stacked", "loop", "fused"):
        options = {"mu": mu, "temperature": tau, "epochs": None, "steps": 3, "batch_size": "full"}
        found, _ = run(problem, 2, executor, **options)
        assert torch.allclose(found.state.params, expected, rtol=0, atol=1e-12)


def test_the_first_round_is_plain_training_whose_loss_is_larger_by_the_logarithm_of_two():
    """Both models are the one received: l = ln 2 wherever z is, and has no slope."""
    problem = small_problem()
    plain, rows = run(problem, 1, kind="sgd")
    contrasted, told = run(problem, 1, mu=5.0)
    assert told[0]["train_loss"] == pytest.approx(rows[0]["train_loss"] + 5.0 * math.log(2.0), rel=1e-12)
    assert torch.allclose(contrasted.state.params, plain.state.params, rtol=0, atol=1e-13)
    later, again = (run(problem, 2, **client)[0].state.params for client in ({"mu": 5.0}, {"kind": "sgd"}))
    assert not torch.allclose(later, again, rtol=0, atol=1e-4)


@pytest.mark.parametrize("executor", ["stacked", "loop", "fused"])
def test_without_a_contrast_it_is_local_training_to_the_bit(executor):
    problem = small_problem()
    found, rows = run(problem, 3, executor, mu=0.0)
    plain, told = run(problem, 3, executor, kind="sgd")
    assert torch.equal(found.state.params, plain.state.params)
    assert [row["train_loss"] for row in rows] == [row["train_loss"] for row in told]


def test_features_of_nothing_have_no_direction():
    """Their cosines are 0, the loss is ln 2, and slopes are finite."""
    unit = functional.normalize(torch.tensor([[[1.0, 2.0], [3.0, 0.0]]], dtype=torch.float64), dim=-1)
    loss = Contrast(CrossEntropy(), unit, -unit, 1.0, 0.5)
    features = torch.tensor([[[0.0, 0.0], [3.0, 0.0]]], dtype=torch.float64)
    outputs, targets = torch.zeros((1, 2, 3), dtype=torch.float64), torch.zeros((1, 2), dtype=torch.int64)
    losses, pull, delta = loss.gradients_with(features, outputs, targets)
    assert pull is not None
    # Of features that are those of the received model the cosines are 1 and -1: ln(1 + e^-4).
    wanted = [math.log(2.0) + math.log(3.0), math.log1p(math.exp(-4.0)) + math.log(3.0)]
    assert losses.flatten().tolist() == pytest.approx(wanted, rel=1e-12)
    assert torch.isfinite(pull).all()
    assert torch.isfinite(delta).all()


def test_a_step_takes_two_forward_passes_more():
    problem = small_problem()
    order = Order("train", torch.arange(6), {"params": problem.initial()})
    costs = [
        build_executor(small_experiment(client={"kind": "moon", **TRAINING} | own), problem).assign(order).cost
        for own in ({"mu": 0.0}, {}, {"optimizer": "adahessian", "lr": 0.01})
    ]
    assert costs[0].effort is None
    assert costs[1].effort is not None
    assert costs[2].effort is not None
    assert torch.allclose(costs[1].effort, costs[1].steps.double() * 2 / 3, rtol=1e-12)
    assert torch.all(costs[2].effort > costs[1].effort)


def test_what_stays_with_clients_is_a_part_of_their_last_models():
    data = blobs() | {"test_clients": [[number] for number in range(6)]}
    problem = fedsim.supervised(**data, model=mlp(), dtype=torch.float64, device="cpu").keeping("head")
    ends = [run(problem, 3, executor)[0].state.params for executor in ("stacked", "loop")]
    assert torch.allclose(*ends, rtol=0, atol=1e-12)


def test_batches_are_normalised_by_what_is_known_where_nothing_is_trained():
    model = nn.Sequential(nn.Linear(6, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Dropout(0.2), nn.Linear(7, 3))
    ends = [run(small_problem(model=model), 3, executor)[0].state.params for executor in ("stacked", "loop")]
    assert torch.allclose(*ends, rtol=0, atol=1e-12)


class Undeclared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


class PerPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features, self.head = nn.Embedding(5, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def test_what_has_no_features_is_refused_before_a_run():
    experiment = small_experiment(client={"kind": "moon", **TRAINING})
    places = fedsim.supervised(
        torch.zeros(12, 4, dtype=torch.int64).numpy(), torch.ones(12, 4, dtype=torch.int64).numpy() * 2,
        model=PerPlace(), clients=[range(3 * number, 3 * number + 3) for number in range(4)], device="cpu",
    )  # fmt: skip
    logistic = nn.Sequential(nn.Flatten(), nn.Linear(6, 3))
    for problem, why in (
        (small_problem(model=Undeclared()), "problem.model = Undeclared: .*features"),
        (small_problem(model=logistic), "problem.model = Sequential: nothing is trained before its head"),
        (places, "problem.model = PerPlace: .*one class an example"),
    ):
        with pytest.raises(InputError, match=why) as refused:
            build_simulation(experiment, problem)
        assert "\n" not in str(refused.value)
    assert build_simulation(small_experiment(client={"kind": "moon", "mu": 0.0, **TRAINING}), places)
