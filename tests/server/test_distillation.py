"""What a server that trains the model works with: what teachers say together, and how a student learns it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from clients.optimizers.adam import Adam
from clients.optimizers.sgd import Sgd
from fedsim.core.streams import SERVER, Streams
from fedsim.engine.executor import choose_network
from fedsim.nets.dropout import Draw
from fedsim.nets.network import Batch
from fedsim.parallel.cores import at_most
from fedsim.server import distillation
from fedsim.server.distillation import Bench, Distillation
from fedsim.testing.problems import mlp, small_problem

TEMPERATURES = pytest.mark.parametrize("temperature", [1.0, 2.5])
ENSEMBLES = pytest.mark.parametrize("ensemble", ["logits", "probabilities"])
EXECUTORS = pytest.mark.parametrize("executor", ["stacked", "loop"])


def normal(*shape: int, seed: int = 3) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def bench(model: nn.Module | None = None, executor: str = "stacked") -> tuple[Bench, torch.Tensor]:
    """A bench of 20 inputs, and the parameters that its model begins with."""
    problem = small_problem(model=model)
    _, network = choose_network(problem.model, problem.data, executor)  # type: ignore[arg-type]
    assert problem.public is not None
    return Bench(network, problem.public, problem.model.footprint.activations), problem.initial()


def gradient(made: Bench, params: torch.Tensor, taught: torch.Tensor, temperature: float) -> torch.Tensor:
    """The gradient [d] of the mean loss over all inputs, by a step of length one."""
    everything = torch.arange(len(made.inputs)).unsqueeze(0)
    return params - made.trained(params, taught, everything, Sgd(), 1.0, temperature)


def both(count: int = 4, d: int = 83) -> tuple[torch.Tensor, torch.Tensor]:
    """Changes [C, d] and weights [C]."""
    weights = torch.arange(1.0, count + 1.0, dtype=torch.float64)
    return 0.3 * normal(count, d), weights / weights.sum()


def normalising() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(2)
        return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Dropout(0.5), nn.Linear(5, 3))


@TEMPERATURES
@pytest.mark.parametrize("shape", [(1, 4, 3), (2, 3, 2, 5, 3)])
def test_the_loss_is_the_divergence_of_kullback_and_leibler_and_has_its_gradient(shape, temperature):
    """Of several places it is their mean."""
    outputs, wanted = normal(*shape), torch.log_softmax(normal(*shape, seed=4), dim=-1)
    loss = Distillation(temperature)
    leaf = outputs.clone().requires_grad_()
    student = torch.log_softmax(leaf / temperature, dim=-1)
    each = nn.functional.kl_div(student, wanted, reduction="none", log_target=True).sum(-1) * temperature**2
    each = each.reshape(*shape[:2], -1).mean(-1)
    (slope,) = torch.autograd.grad(each.sum(), leaf)
    losses, found = loss.with_gradient(outputs, wanted)
    torch.testing.assert_close(losses, each.detach(), rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(found, slope, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(loss.examples(outputs, wanted), losses)
    assert torch.equal(outputs, normal(*shape)), "outputs are lent"


def test_what_a_teacher_is_sure_of_is_finite():
    """Probabilities of 0, and of 1."""
    outputs = torch.tensor([[[0.0, 0.0]]])
    losses, found = Distillation().with_gradient(outputs, torch.log_softmax(torch.tensor([[[1e4, -1e4]]]), dim=-1))
    assert losses.item() == pytest.approx(math.log(2.0))
    assert found.tolist() == [[[-0.5, 0.5]]]


@TEMPERATURES
@ENSEMBLES
def test_what_teachers_say_is_as_one_by_one(ensemble, temperature):
    made, params = bench()
    changes, weights = both()
    each = []
    for change in changes:
        layout = made.network.layout.named(params + change)
        each.append(torch.func.functional_call(mlp().double(), layout, (made.inputs,)) / temperature)
    if ensemble == "logits":
        wanted = torch.softmax(sum(w * z for w, z in zip(weights, each, strict=True)), -1)
    else:
        wanted = sum(w * torch.softmax(z, -1) for w, z in zip(weights, each, strict=True))
    found = made.taught(params, changes, weights, ensemble, temperature)
    torch.testing.assert_close(found.exp(), wanted, rtol=1e-12, atol=1e-14)


@EXECUTORS
@TEMPERATURES
@ENSEMBLES
@pytest.mark.parametrize("model", [mlp, normalising])
def test_who_is_all_of_its_teachers_has_nothing_to_learn(model, ensemble, temperature, executor):
    """Dropout and the statistics of batches would teach it something; running statistics stay as they are."""
    made, params = bench(model(), executor)
    changes = torch.zeros(3, len(params), dtype=torch.float64)
    taught = made.taught(params, changes, torch.full((3,), 1 / 3, dtype=torch.float64), ensemble, temperature)
    assert abs(made.loss(params, taught, temperature)) < 1e-15
    assert float(gradient(made, params, taught, temperature).abs().max()) < 1e-15


def test_a_training_pass_would_have_taught_it_something():
    made, params = bench(normalising())
    taught = made.taught(params, torch.zeros(1, len(params)).double(), torch.ones(1).double(), "logits", 1.0)
    nobody = Draw(Streams(0), torch.tensor([SERVER]), 0, 0)
    rows, weight = made.network.layout.stack(params), torch.full((1, 20), 0.05, dtype=torch.float64)
    batch = Batch(made.inputs.unsqueeze(0), taught.unsqueeze(0), weight, nobody, Distillation())
    assert made.network.gradients(rows, batch)[1].flat().norm() > 1e-3
    assert not torch.equal(rows.flat()[0], params), "its statistics move"


def test_running_statistics_are_those_that_were_averaged():
    made, params = bench(normalising())
    changes, weights = 0.1 * normal(3, len(params)).abs(), torch.full((3,), 1 / 3, dtype=torch.float64)
    taught = made.taught(params, changes, weights, "logits", 1.0)
    student = made.trained(params, taught, made.batches(Streams(1), 0, 4, 8), Sgd(), 0.1, 1.0)
    trained = made.network.layout.trained_numbers
    assert torch.equal(student[trained:], params[trained:])
    assert float((student - params)[:trained].norm()) > 1e-4


@TEMPERATURES
def test_of_linear_models_the_mean_of_logits_is_that_of_the_mean_model(temperature):
    """So that there is nothing to learn, and of probabilities there is."""
    made, params = bench(nn.Linear(6, 3))
    changes, weights = both(d=21)
    mean = params + weights @ changes
    apart = {}
    for ensemble in ("logits", "probabilities"):
        taught = made.taught(params, changes, weights, ensemble, temperature)
        said = torch.log_softmax(
            made.network.outputs(made.network.layout.stack(mean), made.inputs[None])[0] / temperature, -1
        )
        apart[ensemble] = float((taught - said).abs().max()), made.loss(mean, taught, temperature)
        slope = float(gradient(made, mean, taught, temperature).abs().max())
        assert slope < 1e-15 if ensemble == "logits" else slope > 1e-4
    assert apart["logits"][0] < 3e-15
    assert abs(apart["logits"][1]) < 1e-15
    assert apart["probabilities"][0] > 0.01
    assert apart["probabilities"][1] > 1e-4


@TEMPERATURES
@EXECUTORS
def test_the_gradient_is_that_of_finite_differences(executor, temperature):
    made, params = bench(executor=executor)
    taught = made.taught(params, *both(), "logits", temperature)
    direction = normal(len(params), seed=9)
    wide = 1e-5
    ends = [made.loss(params + sign * wide * direction, taught, temperature) for sign in (1.0, -1.0)]
    along = float(gradient(made, params, taught, temperature) @ direction)
    assert along == pytest.approx((ends[0] - ends[1]) / (2 * wide), rel=1e-6, abs=1e-9)


@EXECUTORS
def test_a_student_steps_as_by_pytorchs_adam_along_its_cosine(executor):
    made, params = bench(executor=executor)
    taught = made.taught(params, *both(), "probabilities", 2.0)
    batches = made.batches(Streams(5), 3, 12, 8)
    found = made.trained(params, taught, batches, Adam(beta2=0.999), 0.01, 2.0)
    student = mlp().double()
    rule = torch.optim.Adam(student.parameters(), lr=0.01)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(rule, T_max=12)
    for own in batches:
        rule.zero_grad()
        said = torch.log_softmax(student(made.inputs[own]) / 2.0, dim=-1)
        (4.0 * nn.functional.kl_div(said, taught[own], reduction="batchmean", log_target=True)).backward()
        rule.step()
        falling.step()
    wanted = made.network.layout.flatten(dict(student.named_parameters()))
    assert float((wanted - params).abs().max()) > 0.01
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


def test_a_student_has_one_core_whatever_there_are():
    threads = list[int]()

    class Counting(Sgd):
        def step(self, memory, rows, step):
            threads.append(torch.get_num_threads())
            super().step(memory, rows, step)

    made, params = bench()
    taught, before = made.taught(params, *both(), "logits", 1.0), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        made.trained(params, taught, made.batches(Streams(5), 0, 2, 8), Counting(), 0.1, 1.0)
    finally:
        torch.set_num_threads(before)
    assert threads == [1, 1]


def test_a_student_learns_what_it_is_taught():
    made, params = bench()
    taught = made.taught(params, *both(), "logits", 1.0)
    student = made.trained(params, taught, made.batches(Streams(5), 0, 300, 8), Adam(), 0.01, 1.0)
    assert made.loss(student, taught, 1.0) < 0.05 * made.loss(params, taught, 1.0)
    assert torch.equal(params, small_problem().initial()), "where it begins is lent"


def test_steps_pass_over_all_inputs_each_time_in_another_order():
    made, _ = bench()
    found = made.batches(Streams(5), 0, 10, 8)
    assert found.shape == (10, 8)
    orders = found.flatten().view(4, 20)
    assert orders.sort(dim=1).values.tolist() == [list(range(20))] * 4
    assert len({tuple(order.tolist()) for order in orders}) == 4
    assert torch.equal(made.batches(Streams(5), 0, 3, 8), found[:3]), "fewer steps are the first of more"
    assert not torch.equal(made.batches(Streams(5), 1, 10, 8), found)
    assert not torch.equal(made.batches(Streams(6), 0, 10, 8), found)
    assert made.batches(Streams(5), 0, 2, 128).shape == (2, 20), "a step has no input twice"


@EXECUTORS
def test_how_many_are_looked_at_at_once_and_cores_matter_to_rounding_at_most(monkeypatch, executor):
    made, params = bench(executor=executor)
    changes, weights = both(6)

    def everything() -> tuple[torch.Tensor, float]:
        taught = made.taught(params, changes, weights, "probabilities", 1.0)
        return taught, made.loss(params, taught, 1.0)

    whole, loss = everything()
    monkeypatch.setattr(distillation, "WIDEST", 7)
    few, other = everything()
    torch.testing.assert_close(few, whole, rtol=1e-13, atol=1e-14)
    assert other == pytest.approx(loss, rel=1e-12)
    with at_most(1):
        assert torch.equal(everything()[0], few), "each number is one core's"
    monkeypatch.setattr(distillation, "AT_ONCE", 1)
    monkeypatch.setattr(distillation, "WIDEST", 7)
    assert torch.equal(everything()[0], few), "teachers one by one"
