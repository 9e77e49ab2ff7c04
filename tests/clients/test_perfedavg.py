"""Per-FedAvg: fixed points of its forms, exact and approximate products, and what it is without an inner step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bowls import H, assert_close, bowls, ended, mean_of, simulation
from torch import Tensor, nn
from torch.nn import functional

from fedsim.core.errors import InputError
from fedsim.exchange.messages import Order
from fedsim.nets.network import StackedNetwork
from fedsim.problems.supervised import Supervised
from fedsim.testing.problems import TRAINING, mlp, small_problem

FORMS = pytest.mark.parametrize("form", ["fo", "hf", "hf_difference"])
ONCE: dict[str, Any] = {"kind": "perfedavg", "batch_size": "full", "steps": 1}


def normed(norm: type[nn.Module] = nn.LayerNorm) -> nn.Module:
    return nn.Sequential(mlp()[1], norm(8), nn.Tanh(), mlp()[3])


@pytest.mark.parametrize("a", [0.0, 0.1, 0.3])
@FORMS
def test_the_server_stays_where_the_models_after_a_step_are_best(form, a):
    """Weights h (1 - a h), and with Hessians h (1 - a h)^2."""
    weights = H * (1.0 - a * H) ** (1 if form == "fo" else 2)
    least = mean_of(weights)
    client = {**ONCE, "form": form, "inner_lr": a, "lr": 0.5}
    within = 1e-9 if form == "hf_difference" else 1e-14
    assert_close(ended(client, 2, problem=bowls(start=least)).state.params, least, within)
    away = ended(client, 1, problem=bowls(start=least + 1.0)).state.params - least
    assert_close(away, (1.0 - 0.5 * weights.mean()).expand(2), within)


@pytest.mark.parametrize("model", [normed(), mlp()])
@FORMS
def test_without_an_inner_step_it_is_fedavg(form, model):
    """On the same mini-batches; to the bit, but where a chain's plain step is fused with its gradient."""
    mine, theirs = (
        ended({**client, **TRAINING}, 3, problem=small_problem(model=model), selection={"kind": "uniform", "count": 4})
        for client in ({"kind": "perfedavg", "inner_lr": 0.0, "form": form}, {"kind": "sgd"})
    )
    if type(model[1]) is nn.LayerNorm:
        assert torch.equal(mine.state.params, theirs.state.params)
    assert_close(mine.state.params, theirs.state.params, 1e-14)


def curved() -> Supervised:
    """One client with a model whose Hessian is not constant."""
    return small_problem(model=normed(), sizes=(11,))


def by_hand(problem: Supervised, a: float, lr: float, *, exact: bool) -> Tensor:
    """A step from the start on all examples, by automatic differentiation of the loss after the inner step."""
    index = problem.partition.indices(0)
    x, y = problem.data.x[index], problem.data.y[index]
    start = problem.initial().requires_grad_()
    module = problem.module(start.detach())

    def loss(params: Tensor) -> Tensor:
        named = problem.model.layout.named(params)
        return functional.cross_entropy(torch.func.functional_call(module, named, (x,)), y)

    (first,) = torch.autograd.grad(loss(start), start, create_graph=True)
    adapted = start - a * (first if exact else first.detach())
    (gradient,) = torch.autograd.grad(loss(adapted), start)
    return (start - lr * gradient).detach()


def trained(**options: Any) -> Tensor:
    problem = curved()
    return ended({**ONCE, "inner_lr": 0.5, "lr": 0.3, **options}, 1, problem=problem).state.params


@pytest.mark.parametrize("form", ["fo", "hf"])
def test_it_is_the_gradient_of_the_loss_after_a_step(form):
    assert_close(trained(form=form), by_hand(curved(), 0.5, 0.3, exact=form == "hf"))
    forms = [by_hand(curved(), 0.5, 0.3, exact=exact) for exact in (True, False)]
    assert (forms[0] - forms[1]).norm() > 1e-3


def test_differences_are_as_good_as_the_radius_is_small():
    """Their error is of second order: a tenth of the radius has a hundredth of it, down to rounding."""
    exact = trained(form="hf")
    error = [float((trained(form="hf_difference", radius=radius) - exact).norm()) for radius in (0.1, 0.01, 1e-4)]
    assert error[0] > 1e-6
    assert error[1] == pytest.approx(error[0] / 100, rel=0.05)
    assert error[2] == pytest.approx(error[0] / 10**6, rel=0.05)
    assert torch.equal(trained(form="hf_difference"), trained(form="hf_difference", radius=0.01))


def test_a_model_without_a_slope_has_no_difference():
    """Where the gradient is 0, so is what would be divided by its norm."""
    at = torch.zeros(1, 2, dtype=torch.float64)
    problem = bowls(torch.ones(1, dtype=torch.float64), at)
    made = ended({**ONCE, "inner_lr": 0.5, "lr": 0.3, "form": "hf_difference"}, 1, problem=problem)
    assert torch.equal(made.state.params, at[0])


def batches(monkeypatch: pytest.MonkeyPatch, **client: Any) -> list[Tensor]:
    """The inputs [6, 4, 6] of each gradient, or product, in a round of one step."""
    made, seen = simulation({"steps": 1, "batch_size": 4, **client}, 1, small_problem(model=normed())), list[Tensor]()
    with monkeypatch.context() as patched:
        for name in ("gradients", "products"):
            own = getattr(StackedNetwork, name)

            def noted(network: Any, y: Any, batch: Any, *rest: Any, own: Any = own) -> Any:
                seen.append(batch.x)
                return own(network, y, batch, *rest)

            patched.setattr(StackedNetwork, name, noted)
        made.step()
    return seen


@pytest.mark.parametrize(("form", "gradients"), [("fo", 2), ("hf", 3), ("hf_difference", 4)])
def test_the_mini_batches_of_a_step_are_drawn_independently(form, gradients, monkeypatch):
    """And that at whose gradient the step is taken is the one of sgd; the third client has twelve examples."""
    (plain,) = batches(monkeypatch, kind="sgd")
    inner, outer, *curved = batches(monkeypatch, kind="perfedavg", inner_lr=0.1, form=form)
    assert len(curved) == gradients - 2
    assert torch.equal(outer, plain)
    assert not torch.equal(inner[2], outer[2])
    for third in curved:
        assert torch.equal(third, curved[0])
        assert not torch.equal(third[2], inner[2])
        assert not torch.equal(third[2], outer[2])


@pytest.mark.parametrize(("form", "steps", "work"), [("fo", 6, 6.0), ("hf", 9, 12.0), ("hf_difference", 9, 12.0)])
def test_what_it_takes_is_declared(form, steps, work):
    executor = simulation({**ONCE, "steps": 3, "inner_lr": 0.1, "form": form}, 1).parts.engine.executor
    job = executor.assign(Order("train", torch.arange(3), {"params": torch.zeros(2, dtype=torch.float64)}))
    assert job.cost.steps.tolist() == [steps] * 3
    assert executor.work(job).tolist() == [work] * 3


@FORMS
def test_a_servers_proximal_term_is_beside_the_gradient_after_the_step(form):
    """Of one step it is 0 yet; of two, the second is drawn back by lr mu times the way of the first."""
    client, start = {**ONCE, "inner_lr": 0.1, "lr": 0.2, "form": form}, torch.tensor([1.0, -0.5], dtype=torch.float64)

    def end(steps: int, **tables: Any) -> Tensor:
        return ended({**client, "steps": steps}, 1, problem=bowls(start=start), **tables).state.params

    drawn = end(2, strategy={"kind": "fedprox", "proximal_mu": 1.5})
    assert_close(drawn, end(2) - 0.2 * 1.5 * (end(1) - start), 1e-9 if form == "hf_difference" else 1e-14)


@FORMS
def test_running_statistics_move_and_are_the_same_one_by_one(form):
    ends = []
    for executor in ("stacked", "loop"):
        problem = small_problem(model=normed(nn.BatchNorm1d), sizes=(7, 4, 12, 8, 5, 9))
        client = {"kind": "perfedavg", **TRAINING, "inner_lr": 0.1, "form": form}
        ends.append(ended(client, 2, problem=problem, engine={"executor": executor}).state.params)
        assert (ends[-1][-16:] != problem.initial()[-16:]).all()
    assert_close(ends[0], ends[1], 1e-11)


def test_its_personal_models_are_those_of_fine_tuning():
    """Without it the model for all is judged alone."""
    client = {"kind": "perfedavg", **TRAINING, "inner_lr": 0.1}
    for tuned in ({}, {"finetune": {"steps": 1, "lr": 0.1, "batch_size": "full"}}):
        made = simulation(client, 1, small_problem(tested=True), evaluation={"every": 1, **tuned})
        row = made.step()
        assert ("personal_accuracy" in row) == bool(tuned)
        assert "client_accuracy_mean" in row


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, r"inner_lr = \(nothing\): this option has no default"),
        ({"inner_lr": 0.1, "radius": 0.1}, r"radius = 0\.1: only form = hf_difference asks for it"),
        ({"inner_lr": 0.1, "clip_norm": 0.1}, r"clip_norm = 0\.1: the gradients of a step"),
    ],
)
def test_what_cannot_be_is_refused(options, words):
    with pytest.raises(InputError, match=rf"^client\.{words}"):
        simulation({"kind": "perfedavg", **TRAINING, **options}, 1)
