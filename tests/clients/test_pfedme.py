"""pFedMe: its inner problem, its fixed points, and that its own model is drawn to the one that it sends."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bowls import A, H, assert_close, bowls, ended, judged, kept, mean_of, simulation
from torch import Tensor, nn

from fedsim.core.errors import InputError
from fedsim.exchange.messages import Order
from fedsim.testing.problems import TRAINING, mlp, small_problem

ONCE: dict[str, Any] = {"kind": "pfedme", "batch_size": "full", "steps": 1, "lr": 0.05}
SOLVED = {**ONCE, "inner_lr": 0.06, "inner_steps": 400}
"""So many inner steps that nothing is left to solve."""


def by_hand(theta: Tensor, client: dict[str, Any], mu: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """What the rule makes of theta: y and th, [3, 2] each, and the mean loss before the inner steps, [3]."""
    h, lam, eta, decay = H.unsqueeze(1), client["lam"], client["lr"], client.get("weight_decay", 0.0)
    y, th, losses = theta.expand(3, 2), theta.expand(3, 2), []
    for _ in range(client["steps"]):
        for _ in range(client["inner_steps"]):
            losses.append((h / 2 * (th - A) ** 2).sum(dim=1))
            th = th - client["inner_lr"] * (h * (th - A) + lam * (th - y) + decay * th)
        y = y - eta * (lam * (y - th) + mu * (y - theta))
    return y, th, torch.stack(losses).mean(dim=0)


@pytest.mark.parametrize("lam", [1.0, 15.0])
def test_its_own_model_solves_its_problem(lam):
    made = ended({**SOLVED, "lam": lam}, 1, problem=bowls(start=0.5))
    h = H.unsqueeze(1)
    assert_close(kept(made), (h * A + lam * 0.5) / (h + lam))


def test_it_is_drawn_to_the_model_that_it_sends_and_not_to_itself():
    """From 1, of a minimum at 2 with curvature 1 and a lam of 15, to 17/16; drawn to itself it would end at 2."""
    problem = bowls(torch.ones(1, dtype=torch.float64), torch.full((1, 2), 2.0, dtype=torch.float64), start=1.0)
    made = ended(SOLVED, 1, problem=problem)
    assert_close(kept(made), torch.full((1, 2), 17.0 / 16.0, dtype=torch.float64))


@pytest.mark.parametrize(("lam", "mu"), [(15.0, 0.0), (2.0, 0.0), (2.0, 0.3)])
def test_the_server_stays_where_the_envelopes_are_least(lam, mu):
    """Weights lam h / (lam + h); with decay lam h / (lam + h + mu) over lam (h + mu) / (lam + h + mu)."""
    inner = {"inner_lr": 1.0 / (lam + mu + 1.25), "inner_steps": 25}  # errors shrink to 0.23 at most in each
    client = {**ONCE, **inner, "lr": 0.9 / lam, "lam": lam, "weight_decay": mu}
    weights, held = lam * H / (lam + H + mu), lam * (H + mu) / (lam + H + mu)
    least = mean_of(weights) * weights.sum() / held.sum()
    assert_close(ended(client, 2, problem=bowls(start=least)).state.params, least)
    assert (least - A.mean(dim=0)).norm() > 0.1
    away = ended(client, 2, problem=bowls(start=least + 1.0)).state.params - least
    assert ((away < 0.95) & (away > 0.0)).all()


@pytest.mark.parametrize(
    "options", [{}, {"steps": 1}, {"inner_steps": 1}, {"weight_decay": 0.4}, {"steps": 4, "inner_steps": 3, "lam": 9.0}]
)
def test_every_round_is_the_rule(options):
    """Its own model goes on from one mini-batch to the next, drawn to what is sent as that is by then."""
    client = {**ONCE, "steps": 3, "lam": 5.0, "inner_lr": 0.07, "inner_steps": 2, **options}
    made, theta = simulation(client, 2), torch.zeros(2, dtype=torch.float64)
    for row in made:
        y, th, losses = by_hand(theta, client)
        assert_close(kept(made), th)
        theta = y.mean(dim=0)
        assert_close(made.state.params, theta)
        assert row["train_loss"] == pytest.approx(float(losses.mean()), rel=1e-12)


def test_beta_is_the_servers_rate():
    client = {**ONCE, "lam": 5.0, "inner_lr": 0.07, "inner_steps": 2}
    made = ended(client, 1, problem=bowls(start=1.0), strategy={"kind": "fedavg", "server_lr": 0.3})
    start = torch.ones(2, dtype=torch.float64)
    assert_close(made.state.params, 0.7 * start + 0.3 * by_hand(start, client)[0].mean(dim=0))


def test_a_servers_proximal_term_is_of_the_model_that_is_sent():
    client = {**ONCE, "steps": 4, "lam": 5.0, "inner_lr": 0.07, "inner_steps": 2}
    made = ended(client, 1, problem=bowls(start=1.0), strategy={"kind": "fedprox", "proximal_mu": 3.0})
    y, th, _ = by_hand(torch.ones(2, dtype=torch.float64), client, mu=3.0)
    assert_close(made.state.params, y.mean(dim=0))
    assert_close(kept(made), th)


def test_rates_of_steps_are_of_what_is_sent():
    """The second of two steps has half of lr."""
    client = {**ONCE, "steps": 2, "lam": 5.0, "inner_lr": 0.07, "inner_steps": 2}
    made = ended({**client, "inverse_decay": 1.0, "inverse_power": 1.0}, 1)
    first, between, _ = by_hand(torch.zeros(2, dtype=torch.float64), {**client, "steps": 1})
    th = between
    for _ in range(2):
        th = th - 0.07 * (H.unsqueeze(1) * (th - A) + 5.0 * (th - first))
    assert_close(kept(made), th)
    assert_close(made.state.params, (first - 0.025 * 5.0 * (first - th)).mean(dim=0))


def test_who_has_no_model_yet_is_judged_by_the_one_for_all_and_who_is_not_selected_keeps_its_own():
    made = simulation(
        {"kind": "pfedme", **TRAINING, "lr": 0.02},
        4,
        small_problem(tested=True),
        selection={"kind": "uniform", "count": 2},
        evaluation={"every": 1},
    )
    before, began = kept(made), torch.zeros(6, dtype=torch.bool)
    for _ in range(3):
        row = made.step()
        moved = (kept(made) != before).any(dim=1)
        assert int(moved.sum()) == 2
        began, before = began | moved, kept(made)
        assert torch.equal(judged(made).models.flat(), torch.where(began.unsqueeze(1), before, made.state.params))
        assert row["personal_untrained"] == int((~began).sum())


def test_inner_steps_take_time():
    made = simulation({**ONCE, "steps": 3, "inner_steps": 5}, 1)
    order = Order("train", torch.arange(3), {"params": torch.zeros(2, dtype=torch.float64)})
    executor = made.parts.engine.executor
    job = executor.assign(order)
    assert job.cost.steps.tolist() == [3] * 3
    assert executor.work(job).tolist() == [15.0] * 3


def test_running_statistics_are_those_of_its_own_model_and_the_same_one_by_one():
    model = nn.Sequential(mlp()[1], nn.BatchNorm1d(8), mlp()[3])
    ends = []
    for executor in ("stacked", "loop"):
        problem = small_problem(model=model, sizes=(7, 4, 12, 8, 5, 9))
        client = {"kind": "pfedme", **TRAINING, "lr": 0.02, "lam": 5.0}
        made = ended(client, 2, problem=problem, engine={"executor": executor})
        ends.append(torch.cat((made.state.params, kept(made).flatten())))
        delta = made.state.params - problem.initial()
        assert (delta[-16:].abs() > 0).all()
    assert_close(ends[0], ends[1], 1e-11)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr": 0.1}, r"lr = 0\.1: times lam, 15, it is above 1, which overshoots"),
        ({"inner_lr": 0.2}, r"inner_lr = 0\.2: times lam \+ weight_decay, 15, it is 2 or more, which diverges"),
        ({"inner_lr": 0.1, "weight_decay": 6.0}, r"inner_lr = 0\.1: times lam \+ weight_decay, 21, it is 2 or more"),
        ({"lr_scaling": "linear"}, "lr_scaling = linear: lr is no rate of gradients here"),
        ({"optimizer": {"kind": "sgd", "momentum": 0.9}}, "optimizer = sgd: the gradients of a step are taken in this"),
        ({"optimizer": "adam"}, "optimizer = adam: the gradients of a step are taken in this client's own way"),
        ({"clip_norm": 1.0}, r"clip_norm = 1\.0: the gradients of a step"),
        ({"curriculum": {}}, "curriculum = given: the gradients of a step"),
        (
            {"adversarial": {"kind": "standard", "attack": {"kind": "pgd", "epsilon": 0.1}}},
            "adversarial = given: the gradients of a step",
        ),
    ],
)
def test_what_cannot_be_is_refused(options, words):
    with pytest.raises(InputError, match=rf"^client\.{words}"):
        simulation({"kind": "pfedme", "epochs": 1, "batch_size": 4, **options}, 1)
