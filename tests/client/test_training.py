"""Local optimizers, against torch.optim and hand-written rules, over many steps on one client."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional

import fedsim
from fedsim.client.training import LocalTraining
from fedsim.core.errors import InputError
from fedsim.engine.cohort import Cohort
from fedsim.exchange.messages import Order
from fedsim.running.build import build_executor
from fedsim.testing.problems import blobs, mlp
from fedsim.testing.problems import small_experiment as small

STEPS, LR = 7, 0.05
DATA = blobs(sizes=(11,))


def ours(**client: Any) -> torch.Tensor:
    """Parameters after seven full-batch steps of our client."""
    problem = fedsim.supervised(**DATA, model=mlp(), dtype=torch.float64, device="cpu")
    training = {"kind": "sgd", "steps": STEPS, "batch_size": "full", "lr": LR} | client
    executor = build_executor(small(1, client=training, selection={"kind": "uniform", "count": 1}), problem)
    work = executor.execute(executor.assign(Order("train", torch.arange(1), {"params": problem.initial()})))
    return problem.initial() + work.payload["delta"][0]


def gradient_at(model: torch.nn.Module) -> torch.Tensor:
    loss = functional.cross_entropy(model(torch.tensor(DATA["x"])), torch.tensor(DATA["y"]))
    return torch.cat([part.reshape(-1) for part in torch.autograd.grad(loss, list(model.parameters()))])


def theirs(make: Any) -> torch.Tensor:
    model = mlp().double()
    optimizer = make(model.parameters())
    for _ in range(STEPS):
        optimizer.zero_grad()
        functional.cross_entropy(model(torch.tensor(DATA["x"])), torch.tensor(DATA["y"])).backward()
        optimizer.step()
    return torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])


@pytest.mark.parametrize(
    ("client", "make"),
    [
        ({}, lambda own: torch.optim.SGD(own, lr=LR)),
        ({"weight_decay": 0.1}, lambda own: torch.optim.SGD(own, lr=LR, weight_decay=0.1)),
        ({"optimizer": {"kind": "sgd", "momentum": 0.9}}, lambda own: torch.optim.SGD(own, lr=LR, momentum=0.9)),
        (
            {"optimizer": {"kind": "sgd", "momentum": 0.9, "nesterov": True}, "weight_decay": 0.1},
            lambda own: torch.optim.SGD(own, lr=LR, momentum=0.9, nesterov=True, weight_decay=0.1),
        ),
        (
            {"optimizer": {"kind": "adam", "beta1": 0.8, "beta2": 0.95, "epsilon": 1e-3}, "weight_decay": 0.1},
            lambda own: torch.optim.Adam(own, lr=LR, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.1),
        ),
    ],
)
def test_sgd_and_adam_are_those_of_torch(client, make):
    assert torch.allclose(ours(**client), theirs(make), rtol=0, atol=1e-12)


def test_lion_is_its_rule():
    """u = sign(b1 m + (1 - b1) g); y <- y - lr (u + wd y); m <- b2 m + (1 - b2) g. Chen et al. 2023, program 1."""
    model = mlp().double()
    y = torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])
    mean = torch.zeros_like(y)
    for _ in range(STEPS):
        torch.nn.utils.vector_to_parameters(y, model.parameters())
        gradient = gradient_at(model)
        y = y - LR * (torch.sign(0.9 * mean + 0.1 * gradient) + 0.2 * y)
        mean = 0.99 * mean + 0.01 * gradient
    assert torch.allclose(ours(optimizer="lion", weight_decay=0.2), y, rtol=0, atol=1e-12)


def test_clipping_bounds_the_gradient_before_decay():
    model = mlp().double()
    y = torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])
    for _ in range(STEPS):
        torch.nn.utils.vector_to_parameters(y, model.parameters())
        gradient = gradient_at(model)
        assert float(gradient.norm()) > 0.05
        y = y - LR * (gradient * 0.05 / gradient.norm() + 0.1 * y)
    assert torch.allclose(ours(clip_norm=0.05, weight_decay=0.1), y, rtol=0, atol=1e-10)


def test_a_schedule_scales_the_rate_of_its_round():
    training = LocalTraining(epochs=1, lr=0.4, schedule={"kind": "exponential", "gamma": 0.5})
    assert [training.rate(SimpleNamespace(round=number)) for number in range(3)] == pytest.approx([0.4, 0.2, 0.1])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({}, "epochs"),
        ({"epochs": 1, "steps": 1}, "epochs"),
        ({"epochs": 1, "optimizer": {"kind": "sgd", "nesterov": True}}, r"optimizer\.nesterov"),
        ({"epochs": 1, "optimizer": {"kind": "adam", "momentum": 0.5}}, r"optimizer\.momentum"),
        ({"epochs": 1, "optimizer": {"kind": "lion", "epsilon": 1e-3}}, r"optimizer\.epsilon"),
        ({"epochs": 1, "schedule": "exponential"}, "schedule.gamma"),
    ],
)
def test_options_that_make_no_sense_together_are_refused(options, named):
    with pytest.raises(InputError, match=f"^{named} = "):
        LocalTraining(**options)


def test_the_rate_falls_within_local_training():
    """lr_s = lr (1 + 0.5 s)^-2: y <- y - lr_s g(y)."""
    model = mlp().double()
    y = torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])
    for step in range(STEPS):
        torch.nn.utils.vector_to_parameters(y, model.parameters())
        y = y - LR * (1.0 + 0.5 * step) ** -2 * gradient_at(model)
    assert torch.allclose(ours(inverse_decay=0.5, inverse_power=2.0), y, rtol=0, atol=1e-12)


def test_scaffold_divides_by_the_sum_of_the_rates():
    """With one client c = c_i, so that c_i+ = -Delta / sum_s lr_s, lr_s = 0.1 (1 + s)^-1 over 3 steps: 0.1 * 11 / 6."""
    client = {
        "kind": "scaffold",
        "steps": 3,
        "batch_size": "full",
        "lr": 0.1,
        "inverse_decay": 1.0,
        "inverse_power": 1.0,
    }
    problem = fedsim.supervised(**DATA, model=mlp(), dtype=torch.float64, device="cpu")
    experiment = small(1, client=client, strategy="scaffold", selection={"kind": "uniform", "count": 1})
    executor = build_executor(experiment, problem)
    sent = {"params": problem.initial(), "control": torch.zeros_like(problem.initial())}
    payload = executor.execute(executor.assign(Order("train", torch.arange(1), sent))).payload
    assert torch.allclose(payload["control-delta"], -payload["delta"] / (0.1 * 11 / 6), rtol=1e-12, atol=0)


def test_epochs_follow_their_schedule_and_never_fall_below_one():
    """E_t = max(1, round(4 * 0.5^floor(t / 2))): 4, 4, 2, 2, 1, 1, 1. Three batches an epoch."""
    training = LocalTraining(epochs=4, batch_size=4, lr=0.1, epochs_schedule={"kind": "step", "every": 2, "gamma": 0.5})
    steps = [int(training.local_steps(torch.tensor([11]), number)) for number in range(7)]
    assert steps == [12, 12, 6, 6, 3, 3, 3]
    assert not training.same_every_round


def test_a_run_takes_the_epochs_of_its_schedule():
    client = {"kind": "sgd", "epochs": 4, "batch_size": 4, "lr": 0.1}
    falling = client | {"epochs_schedule": {"kind": "step", "every": 1, "gamma": 0.5}}
    problem = fedsim.supervised(**DATA, model=mlp(), dtype=torch.float64, device="cpu")

    def params(client: Any, rounds: int) -> torch.Tensor:
        return fedsim.run(
            small(rounds, client=client, selection={"kind": "uniform", "count": 1}), problem=problem, save=False
        ).params

    assert torch.equal(params(falling, 1), params(client, 1))
    assert not torch.equal(params(falling, 2), params(client, 2))


def test_the_last_epoch_s_loss_is_told_apart():
    """Of 11 examples in batches of 4, the last three of six steps."""
    training = LocalTraining(epochs=2, batch_size=4, lr=0.1)
    problem = fedsim.supervised(**DATA, model=mlp(), dtype=torch.float64, device="cpu")
    executor = build_executor(small(1, selection={"kind": "uniform", "count": 1}), problem)
    job = executor.assign(Order("train", torch.arange(1), {"params": problem.initial()}))

    def cohort() -> Cohort:
        return Cohort(problem, executor.network, executor.streams, job, {})

    seen, y = [], cohort().stack(problem.initial())
    for batch in cohort().batches(epochs=2, batch_size=4):
        seen.append(float(executor.network.descend(y, batch, 0.1)))
    trained = training.descend(cohort(), problem.initial(), report_last=True)
    assert float(trained.loss) == pytest.approx(sum(seen) / 6, rel=1e-12)
    assert float(trained.last_loss) == pytest.approx(sum(seen[3:]) / 3, rel=1e-12)
    assert training.descend(cohort(), problem.initial()).last_loss is None


def test_attacks_and_scoring_take_time():
    """Of 11 examples in batches of 4: 3 batches an epoch, 6 steps; a PGD-5 takes five passes a step, a forward pass
    a third of a step.
    """
    attack = {"kind": "pgd", "epsilon": 0.1, "steps": 5}
    training = LocalTraining(epochs=2, batch_size=4, adversarial={"kind": "standard", "attack": attack}, curriculum={})
    orders = Order("train", torch.arange(1), {"params": torch.zeros(2)})
    cost = training.cost(orders, torch.tensor([11]))
    assert cost.steps.tolist() == [6]
    assert cost.effort.tolist() == pytest.approx([6 * 5 + 3 / 3])


def test_mini_batches_have_the_names_of_where_they_were_asked_for():
    """Side by side with others that were asked for within another block, and wherever they are taken."""
    problem = fedsim.supervised(**DATA, model=mlp(), dtype=torch.float64, device="cpu")
    executor = build_executor(small(1, selection={"kind": "uniform", "count": 1}), problem)
    job = executor.assign(Order("train", torch.arange(1), {"params": problem.initial()}))
    cohort = Cohort(problem, executor.network, executor.streams, job, {})
    plain = cohort.batches(epochs=1, batch_size=4)
    with cohort.apart("other"):
        other = cohort.batches(epochs=1, batch_size=4)
    assert cohort.steps_taken.tolist() == [6]
    pairs = list(zip(plain, other, strict=True))
    assert [batch.draw.streams.within for batch, _ in pairs] == [""] * 3
    assert [batch.draw.streams.within for _, batch in pairs] == ["other/"] * 3
    assert not torch.equal(*(torch.cat([pair[place].x for pair in pairs], dim=1) for place in (0, 1)))
