"""The expert: central training against a loop of PyTorch's own, kept on disk, and label smoothing in closed form."""

from __future__ import annotations

import math
import sys
import threading
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import fedsim
from fedsim.client.curriculum import Expert
from fedsim.core.errors import InputError
from fedsim.nets.losses import CrossEntropy, Loss, Pinball
from fedsim.pretrained import classifiers
from fedsim.pretrained import expert as experts
from fedsim.pretrained.expert import expert_losses, train_expert
from fedsim.testing.problems import DEVICE, blobs, mlp, small_problem


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "cache"))


def test_label_smoothing_in_closed_form():
    # Probabilities 1/4, 1/2, 1/4 of three classes; the target is the second. Cross-entropies ln 4, ln 2, ln 4.
    outputs = torch.tensor([[0.0, math.log(2.0), 0.0]], dtype=torch.float64)
    smooth = CrossEntropy(label_smoothing=0.3)
    losses, gradient = smooth.with_gradient(outputs, torch.tensor([1]))
    # 0.7 ln 2 + 0.3 (2 + 1 + 2) / 3 ln 2 = 1.2 ln 2.
    assert losses.item() == pytest.approx(1.2 * math.log(2.0))
    # 1/4 - 0.1, 1/2 - 0.7 - 0.1, 1/4 - 0.1.
    assert gradient.tolist()[0] == pytest.approx([0.15, -0.3, 0.15])


def test_label_smoothing_is_that_of_pytorch_for_any_leading_axes():
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(4, 3, 5, dtype=torch.float64, generator=generator)
    targets = torch.randint(0, 5, (4, 3), generator=generator)
    smooth = CrossEntropy(label_smoothing=0.2)
    wanted = functional.cross_entropy(outputs.view(12, 5), targets.view(12), label_smoothing=0.2, reduction="none")
    losses, gradient = smooth.with_gradient(outputs, targets)
    torch.testing.assert_close(losses, wanted.view(4, 3))
    torch.testing.assert_close(smooth.examples(outputs, targets), losses)
    torch.testing.assert_close(gradient, Loss.with_gradient(smooth, outputs, targets)[1])  # by autograd
    assert torch.equal(smooth.correct(outputs, targets), CrossEntropy().correct(outputs, targets))


def test_the_expert_is_the_model_trained_on_everything():
    problem = small_problem(dtype=torch.float32)
    expert = Expert(epochs=3, batch_size=37, lr=0.2, momentum=0.5, label_smoothing=0.2)
    twin = mlp()
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.2, momentum=0.5)
    x, y = problem.data.x.cpu(), problem.data.y.cpu()
    for _ in range(3):  # the clients have 7 + 3 + 12 + 1 + 5 + 9 = 37 examples: one batch
        optimizer.zero_grad()
        functional.cross_entropy(twin(x), y, label_smoothing=0.2).backward()
        optimizer.step()
    params = train_expert(problem, expert).cpu()
    torch.testing.assert_close(params, nn.utils.parameters_to_vector(twin.parameters()).detach())
    # Difficulty is the loss itself, without smoothing.
    wanted = functional.cross_entropy(twin(x), y, reduction="none").detach()
    torch.testing.assert_close(expert_losses(problem, expert).cpu(), wanted)


def test_the_expert_depends_on_who_has_which_examples_in_nothing():
    one, other = small_problem(), small_problem(sizes=(20, 17))
    assert torch.equal(expert_losses(one, Expert()), expert_losses(other, Expert()))


@pytest.mark.parametrize(
    "changed",
    [
        Expert(epochs=3),
        Expert(epochs=2, batch_size=8),
        Expert(epochs=2, lr=0.02),
        Expert(epochs=2, momentum=0.0),
        Expert(epochs=2, label_smoothing=0.0),
        Expert(epochs=2, batch_size=16, seed=1),
    ],
)
def test_every_option_changes_the_expert(changed):
    same = Expert(epochs=2, batch_size=16) if changed.seed else Expert(epochs=2)
    problem = small_problem()
    assert not torch.equal(expert_losses(problem, same), expert_losses(problem, changed))


def test_an_expert_is_trained_once_and_then_read(tmp_path, monkeypatch):
    expert, folder = Expert(epochs=2), tmp_path / "cache" / "experts"
    fresh = expert_losses(small_problem(), expert)
    (file,) = folder.iterdir()
    file.write_bytes(file.read_bytes()[:-4])  # damaged: made again
    assert torch.equal(expert_losses(small_problem(), expert), fresh)
    monkeypatch.setattr(experts, "train", None)
    assert torch.equal(expert_losses(small_problem(), expert), fresh)
    with pytest.raises(TypeError):  # nobody can train the expert of another seed now
        expert_losses(small_problem(), Expert(epochs=2, seed=1))


def test_an_expert_of_another_source_is_trained_anew(tmp_path, monkeypatch):
    expert, other = Expert(epochs=2), tmp_path / "other.py"
    expert_losses(small_problem(), expert)
    other.write_text("# not what it was\n")
    monkeypatch.setattr(experts, "train", None)
    for changed in (*classifiers.TRAINED_BY, experts, sys.modules[CrossEntropy.__module__]):
        with monkeypatch.context() as patched:
            patched.setattr(changed, "__file__", str(other))
            with pytest.raises(TypeError):
                expert_losses(small_problem(), expert)
    expert_losses(small_problem(), expert)


@pytest.mark.parametrize("part", ["x", "y"])
def test_other_data_have_an_expert_of_their_own(part):
    data = blobs()
    experts = [
        train_expert(fedsim.supervised(**{**data, part: values}, model=mlp(), device=DEVICE), Expert())
        for values in (data[part], data[part][::-1].copy())
    ]
    assert not torch.equal(*experts)


class Scaled(nn.Module):
    """A model with a setting that is neither a parameter nor in what it prints."""

    def __init__(self, scale):
        super().__init__()
        self.linear, self.scale = nn.Linear(6, 3), scale
        nn.init.constant_(self.linear.weight, 0.1)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x):
        return self.scale * self.linear(x)


def dropping(p):
    model = mlp()
    return nn.Sequential(*model[:2], nn.Dropout(p), *model[2:])


@pytest.mark.parametrize("model", [Scaled, dropping])
def test_models_that_print_alike_have_experts_of_their_own(model):
    one, other = (small_problem(model=model(value)) for value in (0.25, 0.5))
    assert not torch.equal(expert_losses(one, Expert()), expert_losses(other, Expert()))


def offered(problem, expert):
    """The problem, which can be asked for the expert's losses."""
    problem.data.scores.offer(expert, partial(expert_losses, problem, expert))
    return problem


def test_a_problem_keeps_its_losses_until_it_starts_elsewhere():
    problem = offered(small_problem(), Expert())
    losses = problem.data.scores[Expert()]
    assert problem.data.scores[Expert()] is losses
    state = {name: value + 1.0 for name, value in problem.model.module.state_dict().items()}
    problem.start_from(state)
    assert not torch.equal(problem.data.scores[Expert()], losses)


def test_examples_that_nobody_has_are_judged_but_not_learnt_from():
    data = blobs()
    kept, lost = data["clients"][:-1], data["clients"][-1]
    changed = data["x"].copy()
    changed[lost] += 1.0
    one, other = (
        expert_losses(fedsim.supervised(**{**data, "x": x, "clients": kept}, model=mlp(), device=DEVICE), Expert())
        for x in (data["x"], changed)
    )
    assert len(one) == 37
    differs = (one != other).cpu().numpy()
    assert set(np.flatnonzero(differs)) == set(lost)


def test_threads_that_ask_at_once_train_one_expert(monkeypatch):
    problem, trained, made = offered(small_problem(), Expert()), [], experts.train

    def counting(*args):
        trained.append(args)
        return made(*args)

    monkeypatch.setattr(experts, "train", counting)
    threads = [threading.Thread(target=problem.data.scores.__getitem__, args=(Expert(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(trained) == 1


def regression():
    data = blobs()
    targets = data["y"].astype(np.float64)
    return fedsim.supervised(data["x"], targets, clients=data["clients"], model=nn.Linear(6, 1), device=DEVICE)


def test_of_a_regression_the_losses_are_squared_errors():
    assert float(expert_losses(regression(), Expert(label_smoothing=0.0)).min()) >= 0.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: expert_losses(regression(), Expert()), "label_smoothing = 0.1: the labels of own are no classes"),
        (lambda: expert_losses(small_problem(), Expert(lr=1e30)), "lr = 1e+30: the training of a classifier diverges"),
        (lambda: Expert(label_smoothing=1.0), "label_smoothing = 1.0:"),
        (lambda: Expert(epochs=0), "epochs = 0:"),
        (lambda: Expert(nesterov=True), "nesterov = True: no such option here"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(make, message):
    with pytest.raises(InputError) as error:
        make()
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_losses_of_other_options_and_functions_have_experts_of_their_own():
    """Two quantiles of one loss; and two modules of PyTorch's, which print alike."""
    x, y = np.linspace(-1, 1, 24).reshape(8, 3), np.arange(8.0)
    expert = Expert(epochs=2, batch_size=4, label_smoothing=0.0)

    def trained(loss):
        torch.manual_seed(0)
        problem = fedsim.supervised(x, y, model=nn.Linear(3, 1), clients=[range(8)], loss=loss, device="cpu")
        return train_expert(problem, expert)

    ours = Pinball(quantile=0.2), Pinball(quantile=0.8)
    modules = nn.HuberLoss("none", delta=0.1), nn.HuberLoss("none", delta=5.0)
    for one, two in (ours, modules):
        assert not torch.equal(trained(one), trained(two))
