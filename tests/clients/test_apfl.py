"""APFL: what is mixed, the two ends of alpha, and how alpha follows its slope."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bowls import FULL, A, H, assert_close, ended, judged, kept, simulation
from torch import Tensor, nn

from clients.apfl import APFL
from fedsim.client.training import LocalTraining
from fedsim.core.errors import InputError
from fedsim.core.graph import decode, encode
from fedsim.engine.cohort import Cohort
from fedsim.exchange.messages import Order
from fedsim.problems.supervised import Supervised
from fedsim.running.simulation import Simulation
from fedsim.testing.problems import TRAINING, mlp, small_problem

BOTH = pytest.mark.parametrize("mix", ["parameters", "outputs"])
STILL = {"strategy": {"kind": "fedavg", "server_lr": 1e-300}}
"""The model for all stays at 0."""
ADAPTIVE: dict[str, Any] = {"kind": "apfl", **FULL, "lr": 0.05, "adaptive": True}


def normed(norm: type[nn.Module] = nn.LayerNorm) -> nn.Module:
    return nn.Sequential(mlp()[1], norm(8), nn.ReLU(), mlp()[3])


def by_hand(
    theta: Tensor, v: Tensor, alpha: Tensor, lr: float, decay: float | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """What five steps of the rule make of theta [2], v [3, 2] and alpha [3]; decay: of alpha, None: it stays."""
    h, w = H.unsqueeze(1), theta.expand(3, 2)
    for number in range(FULL["steps"]):
        w = w - lr * h * (w - A)
        share = alpha.unsqueeze(1)
        gradient = h * (share * v + (1.0 - share) * w - A)
        if decay is not None and number == 0:
            slope = ((v - w) * gradient).sum(dim=1)
            alpha = (alpha - lr * (slope + decay * alpha)).clamp(0.0, 1.0)
        v = v - lr * share * gradient
    return w, v, alpha


@BOTH
@pytest.mark.parametrize("options", [{"alpha": 0.3}, {"alpha": 1.0}, {"alpha": 0.7, "adaptive": True}])
def test_the_model_for_all_is_what_it_is_without_it(mix, options):
    tables: dict[str, Any] = {"selection": {"kind": "uniform", "count": 4}}
    mine = ended({"kind": "apfl", **TRAINING, "mix": mix, **options}, 3, problem=small_problem(), **tables)
    theirs = ended({"kind": "sgd", **TRAINING}, 3, problem=small_problem(), **tables)
    assert torch.equal(mine.state.params, theirs.state.params)


@BOTH
def test_with_none_of_its_own_model_there_is_the_one_for_all(mix):
    made = ended({"kind": "apfl", **TRAINING, "mix": mix, "alpha": 0.0}, 3, problem=small_problem())
    assert torch.equal(kept(made), made.parts.problem.initial().expand(6, -1))
    parts, x = made.parts, made.parts.problem.data.x[:4].expand(6, -1, -1)
    theta = parts.engine.executor.network.layout.stack(made.state.params, 6)
    assert torch.equal(judged(made).outputs(x), parts.engine.executor.network.outputs(theta, x))


def local_training(problem: Supervised, made: Simulation, rounds: int) -> Tensor:
    """What each of six clients comes to by itself, [6, d]."""
    executor, v = made.parts.engine.executor, problem.initial().expand(6, -1)
    for number in range(rounds):
        order = Order("train", torch.arange(6), {"params": problem.initial()}, round=number)
        job = executor.assign(order)
        job = job[torch.argsort(job.cost.steps, descending=True, stable=True)]
        cohort = Cohort(problem, executor.network, executor.streams, job, {})
        v = LocalTraining(**TRAINING).descend(cohort, v[job.clients]).params[torch.argsort(job.clients)]
    return v


@pytest.mark.parametrize(("mix", "model"), [("outputs", mlp()), ("parameters", normed()), ("parameters", mlp())])
def test_with_nothing_else_it_is_local_training(mix, model):
    """To the bit, but where a chain's plain step is fused with its gradient."""
    problem = small_problem(model=model)
    made = ended({"kind": "apfl", **TRAINING, "mix": mix, "alpha": 1.0}, 3, problem=problem)
    wanted, within = local_training(problem, made, 3), 1e-14 if type(model[1]) is nn.Linear else 0.0
    assert_close(kept(made), wanted, 0.0 if mix == "outputs" else within)
    found, x = judged(made), problem.data.x[:4].expand(6, -1, -1)
    assert torch.equal(found.models.flat(), kept(made))
    assert torch.equal(found.outputs(x), made.parts.engine.executor.network.outputs(found.models, x))
    assert ((wanted - made.state.params).norm(dim=1) > 1e-2).all()


@BOTH
@pytest.mark.parametrize("alpha", [0.85, 0.95])
def test_of_a_model_for_all_that_stays_the_mixture_finds_the_minimum(mix, alpha):
    """After a step of w from 0, which is there at lr h a."""
    made = ended({"kind": "apfl", "batch_size": "full", "steps": 1, "lr": 0.9, "mix": mix, "alpha": alpha}, 90, **STILL)
    assert_close(alpha * kept(made) + (1.0 - alpha) * 0.9 * H.unsqueeze(1) * A, A)


@BOTH
@pytest.mark.parametrize("decay", [None, 0.0, 2.0])
def test_every_round_is_the_rule(mix, decay):
    """Of linear models outputs mix as parameters do."""
    options = {} if decay is None else {"adaptive": True, "alpha_decay": decay}
    client = {"kind": "apfl", **FULL, "lr": 0.05, "alpha": 0.4, "mix": mix, **options}
    made = simulation(client, 3)
    theta, v, alpha = torch.zeros(2, dtype=torch.float64), kept(made), torch.full((3,), 0.4, dtype=torch.float64)
    for _ in made:
        w, v, alpha = by_hand(theta, v, alpha, 0.05, decay)
        theta = w.mean(dim=0)
        assert_close(made.state.params, theta)
        assert_close(kept(made), v)
        one = torch.eye(2, dtype=torch.float64).expand(3, 2, 2)  # by which a linear model says what its parameters are
        mixed = alpha.unsqueeze(1) * v + (1.0 - alpha.unsqueeze(1)) * theta
        assert_close(judged(made).outputs(one).squeeze(2), mixed)
        assert_close(judged(made).models.flat(), v if mix == "outputs" else mixed)
        if decay is not None:
            assert_close(kept(made, "way"), alpha - 0.4)
    assert (alpha.max() - alpha.min() > 0.01) == (decay is not None)


def test_alpha_is_told_of_each_client_where_it_moves():
    made = ended({**ADAPTIVE, "alpha": 0.4}, 2)
    assert torch.equal(judged(made).told["alpha"], 0.4 + kept(made, "way"))
    assert not judged(ended({"kind": "apfl", **FULL, "lr": 0.05}, 1)).told


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_alpha_stays_between_none_and_all(alpha):
    """From either end, whatever pulls it out."""
    made = ended({**ADAPTIVE, "alpha": alpha, "alpha_decay": 30.0 * alpha}, 3)
    found = alpha + kept(made, "way")
    assert ((found >= 0.0) & (found <= 1.0)).all()
    assert (found == 0.0).any()


def test_models_that_are_not_linear_mix_otherwise():
    ends = [
        kept(ended({"kind": "apfl", **TRAINING, "mix": mix}, 2, problem=small_problem()))
        for mix in ("parameters", "outputs")
    ]
    assert (ends[0] - ends[1]).norm() > 1e-3


@BOTH
def test_alpha_follows_the_derivative_of_the_loss(mix):
    """By a central difference, of a model that is not linear, where alpha is 0.4; v is where training began."""
    problem, lr = small_problem(sizes=(9, 4, 7)), 0.1
    client = {"kind": "apfl", "steps": 1, "batch_size": "full", "lr": lr, "adaptive": True, "alpha": 0.4, "mix": mix}
    executor, start = simulation(client, 1, problem).parts.engine.executor, problem.initial()
    order = Order("train", torch.arange(3), {"params": start})
    w = start + executor.execute(executor.assign(order)).payload["delta"]
    way, _ = executor.store.look("way", torch.arange(3))

    @torch.no_grad()
    def loss(alpha: float, own: int) -> float:
        index = problem.partition.indices(own)
        x, y = problem.data.x[index], problem.data.y[index]
        if mix == "parameters":
            outputs = problem.module(alpha * start + (1 - alpha) * w[own])(x)
        else:
            outputs = alpha * problem.module(start)(x) + (1 - alpha) * problem.module(w[own])(x)
        return float(nn.functional.cross_entropy(outputs, y))

    slopes = [(loss(0.4 + 1e-5, own) - loss(0.4 - 1e-5, own)) / 2e-5 for own in range(3)]
    assert min(map(abs, slopes)) > 1e-3
    assert way.tolist() == pytest.approx([-lr * slope for slope in slopes], rel=1e-6)


def test_a_servers_proximal_term_is_of_the_model_for_all_alone():
    """Which is that of sgd; its own models follow it, and are drawn to nothing: at an alpha of 1 not at all."""
    tables: dict[str, Any] = {"strategy": {"kind": "fedprox", "proximal_mu": 2.0}}
    mine = ended({"kind": "apfl", **TRAINING, "alpha": 1.0}, 2, problem=small_problem(), **tables)
    assert torch.equal(
        mine.state.params, ended({"kind": "sgd", **TRAINING}, 2, problem=small_problem(), **tables).state.params
    )
    assert torch.equal(kept(mine), kept(ended({"kind": "apfl", **TRAINING, "alpha": 1.0}, 2, problem=small_problem())))


def test_a_restored_run_ends_like_an_uninterrupted_one_and_who_is_not_selected_stays():
    tables: dict[str, Any] = {"selection": {"kind": "uniform", "count": 3}, "evaluation": {"every": 1}}
    client = {"kind": "apfl", **TRAINING, "adaptive": True}
    whole, first, second = (simulation(client, 4, small_problem(tested=True), **tables) for _ in range(3))
    rows, before = [first.step()], kept(first, "way")
    rows.append(first.step())
    assert int((kept(first, "way") == before).sum()) == 3
    second.restore(decode(encode(first.snapshot())))
    first.step()
    rows += second
    assert [{**row, "wall": 0.0} for row in rows] == [{**row, "wall": 0.0} for row in whole]
    assert torch.equal(kept(second, "way"), kept(whole, "way"))
    assert torch.equal(judged(second).models.flat(), judged(whole).models.flat())


@BOTH
def test_running_statistics_are_those_of_what_is_mixed_and_the_same_one_by_one(mix):
    ends = []
    for executor in ("stacked", "loop"):
        problem = small_problem(model=normed(nn.BatchNorm1d), sizes=(7, 4, 12, 8, 5, 9))
        client = {"kind": "apfl", **TRAINING, "mix": mix}
        made = ended(client, 2, problem=problem, engine={"executor": executor})
        ends.append(torch.cat((made.state.params, kept(made).flatten())))
        statistics = kept(made)[:, -16:]
        assert (statistics != problem.initial()[-16:]).all()
    assert_close(ends[0], ends[1], 1e-11)


def test_what_it_takes_is_declared():
    """Three steps; of outputs those of the model for all are a forward pass, and so are both for alpha's slope."""
    order, examples = Order("train", torch.arange(2), {"params": torch.zeros(2)}), torch.tensor([5, 9])
    for options, beside in (
        ({}, 3.0),
        ({"mix": "outputs"}, 4.0),
        ({"adaptive": True}, 4.0),
        ({"mix": "outputs", "adaptive": True}, 4.0 + 2 / 3),
    ):
        cost = APFL(steps=3, **options).cost(order, examples)
        assert cost.steps.tolist() == [3, 3]
        assert cost.effort.tolist() == pytest.approx([beside] * 2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"alpha": 1.5}, r"alpha = 1\.5: "),
        ({"alpha_decay": 0.02}, r"alpha_decay = 0\.02: alpha stays as it is; set adaptive = true"),
        ({"weight_decay": 0.1}, r"weight_decay = 0\.1: the gradients of a step"),
        ({"optimizer": "lion"}, "optimizer = lion: the gradients of a step"),
    ],
)
def test_what_cannot_be_is_refused(options, words):
    with pytest.raises(InputError, match=rf"^client\.{words}"):
        simulation({"kind": "apfl", **TRAINING, **options}, 1)
