"""SFAT's weights, and what it hears from clients."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from fedsim.core.errors import InputError
from fedsim.exchange.messages import Order, Replies
from fedsim.exchange.windows import All
from fedsim.running.build import build_executor, build_simulation
from fedsim.running.simulation import Simulation
from fedsim.testing.problems import DEVICE, small_problem
from fedsim.testing.problems import small_experiment as small
from strategies.sfat import SFAT, slack

EVERYBODY = {"kind": "uniform", "fraction": 1.0}
UNIFORM = torch.full((5,), 0.2, dtype=torch.float64)
LOSSES = torch.tensor([0.9, 0.4, 0.4, 0.7, 0.8], dtype=torch.float64)


def test_the_smallest_losses_weigh_more():
    """alpha = 1/6: 7/6 over 5/6 is 1.4. Client 1 has the first of two smallest losses: 1.4 / 5.4 and 1 / 5.4."""
    found = slack(LOSSES, UNIFORM, 1 / 6, 1)
    assert found.tolist() == pytest.approx([1 / 5.4, 1.4 / 5.4, 1 / 5.4, 1 / 5.4, 1 / 5.4], rel=1e-12)
    two = slack(LOSSES, UNIFORM, 1 / 6, 2)
    assert two.tolist() == pytest.approx([1 / 5.8, 1.4 / 5.8, 1.4 / 5.8, 1 / 5.8, 1 / 5.8], rel=1e-12)


def test_of_equal_losses_exactly_khat_are_favoured_the_first_ones():
    for khat in range(1, 6):
        found = slack(torch.ones(5, dtype=torch.float64), UNIFORM, 0.5, khat)
        total = 3 * khat + 5 - khat  # (1 + 0.5) / (1 - 0.5) = 3
        assert found.tolist() == pytest.approx([3 / total] * khat + [1 / total] * (5 - khat), rel=1e-12)


@pytest.mark.parametrize("khat", [1, 2, 5, 9])
@pytest.mark.parametrize("alpha", [0.0, 1 / 11, 1 / 6, 0.9])
def test_weights_sum_to_one_and_without_slack_stay_as_they_are(alpha, khat):
    weights = torch.tensor([0.1, 0.3, 0.2, 0.25, 0.15], dtype=torch.float64)
    found = slack(LOSSES, weights, alpha, khat)
    assert float(found.sum()) == pytest.approx(1.0, rel=1e-12)
    assert torch.allclose(found, weights, rtol=0, atol=1e-15) == (alpha == 0.0 or khat >= 5)


def test_who_has_no_weight_is_not_favoured():
    """Client 1 has the smallest loss but no weight: client 2, the next, is favoured. 1.4 / 4.4 and 1 / 4.4."""
    weights = torch.tensor([0.25, 0.0, 0.25, 0.25, 0.25], dtype=torch.float64)
    found = slack(LOSSES, weights, 1 / 6, 1)
    assert found.tolist() == pytest.approx([1 / 4.4, 0.0, 1.4 / 4.4, 1 / 4.4, 1 / 4.4], rel=1e-12)


@pytest.mark.parametrize(("alpha", "shrunk"), [(1 / 6, 5.4 / 5.8), (1 / 11, 5.2 / 5.4), (0.0, 1.0)])
def test_the_published_weights_sum_to_less_unless_the_first_client_is_favoured(alpha, shrunk):
    """p = 1.4 and 1.2. (n - 1 + p) / (n - 2 + 2p), n = 5: 5.4 / 5.8 = 0.931 and 5.2 / 5.4 = 0.963."""
    found = slack(LOSSES, UNIFORM, alpha, 1, "published")
    assert float(found.sum()) == pytest.approx(shrunk, rel=1e-12)
    favoured_first = slack(LOSSES.flip(0) * torch.tensor([0.1, 1.0, 1.0, 1.0, 1.0]), UNIFORM, alpha, 1, "published")
    assert float(favoured_first.sum()) == pytest.approx(1.0, rel=1e-12)
    if alpha == 1 / 6:
        assert shrunk == pytest.approx(0.931, abs=5e-4)
        # Two favoured, not the first: (3 + 2 x 1.4) / (2 + 3 x 1.4).
        assert float(slack(LOSSES, UNIFORM, alpha, 2, "published").sum()) == pytest.approx(5.8 / 6.2, rel=1e-12)


def test_published_weights_of_unequal_clients_are_those_times_their_number():
    """n w_i over 2p + 3 where client 1 is favoured, who has half of the examples: (2.5 + 1.4 x 2.5) / 5.8."""
    weights = torch.tensor([0.125, 0.5, 0.125, 0.125, 0.125], dtype=torch.float64)
    found = slack(LOSSES, weights, 1 / 6, 1, "published")
    assert float(found.sum()) == pytest.approx((2.5 + 1.4 * 2.5) / 5.8, rel=1e-12)


def simulated(strategy: dict[str, Any], rounds: int = 3, **client: Any) -> Simulation:
    training = {"kind": "sgd", "epochs": 2, "batch_size": 4, "lr": 0.1}
    attack = {"kind": "pgd", "epsilon": 0.2, "steps": 2, "domain": "none"}
    adversarial = {"kind": "standard", "attack": attack}
    tables = {"strategy": strategy, "client": training | {"adversarial": adversarial} | client}
    return build_simulation(small(rounds, selection=EVERYBODY, **tables), small_problem())


def final(run: Simulation) -> torch.Tensor:
    for _ in run:
        pass
    return run.state.params


def exchange(run: Simulation) -> Replies:
    parts = run.parts
    orders, _ = parts.strategy.ask(run.state, torch.arange(6))
    parts.engine.submit(orders)
    replies = parts.engine.collect(All(), run.state.round)
    assert replies is not None
    return replies


@pytest.mark.parametrize("normalisation", ["sum", "published"])
def test_without_slack_it_is_fal(normalisation):
    sfat = {"kind": "sfat", "alpha": 0.0, "weighting": "uniform", "normalisation": normalisation}
    assert torch.allclose(final(simulated(sfat)), final(simulated({"kind": "fal"})), rtol=0, atol=1e-14)


@pytest.mark.parametrize("normalisation", ["sum", "published"])
def test_the_first_round_is_plain_and_the_second_is_not(normalisation):
    sfat = {"kind": "sfat", "weighting": "uniform", "normalisation": normalisation}
    assert torch.allclose(final(simulated(sfat, 1)), final(simulated({"kind": "fal"}, 1)), rtol=0, atol=1e-14)
    assert not torch.allclose(final(simulated(sfat, 2)), final(simulated({"kind": "fal"}, 2)), rtol=0, atol=1e-4)


def test_published_normalisation_shrinks_the_model():
    """The weighted sum of local models, not theta + a sum of changes: of six, (5 + 1.4) / (4 + 2.8) of their mean."""
    run = simulated({"kind": "sfat"})
    run.step()
    replies, theta = exchange(run), run.state.params
    shrinking, proper = (SFAT(weighting="uniform", normalisation=name) for name in ("published", "sum"))
    last = torch.tensor([[5.0], [3.0], [1.0], [2.0], [4.0], [6.0]], dtype=torch.float64, device=DEVICE)
    heard = dataclasses.replace(replies, payload={**replies.payload, "last-loss": last})
    relative = torch.tensor([1.0, 1.0, 1.4, 1.0, 1.0, 1.0], dtype=torch.float64, device=DEVICE)
    models = theta + replies.payload["delta"]
    for strategy, divisor in ((shrinking, 6.8), (proper, 6.4)):
        state, _, _ = strategy.tell(run.state, heard)
        assert torch.allclose(state.params, relative @ models / divisor, rtol=0, atol=1e-14)


@pytest.mark.parametrize("executor", ["stacked", "loop"])
def test_clients_tell_the_mean_loss_of_their_last_epoch(executor):
    """At a tiny rate the model stays, and the loss of an epoch is the mean of its batches' losses at the start.

    Without an attack and with full batches that is the client's loss; and two epochs' are not summed.
    """
    problem = small_problem()
    training = {"kind": "sgd", "epochs": 2, "batch_size": "full", "lr": 1e-14}
    experiment = small(1, strategy="sfat", client=training, selection=EVERYBODY, engine={"executor": executor})
    made = build_executor(experiment, problem)
    orders = Order("train", torch.arange(6), {"params": problem.initial()}, {"report-loss": True})
    job = made.assign(orders)
    assert job.encoded == (problem.dimension + 1) * 8
    told = made.execute(job).payload["last-loss"]
    expected = problem.losses(problem.initial(), torch.arange(6, device=DEVICE))[:, :1]
    assert told.shape == (6, 1)
    assert torch.allclose(told, expected, rtol=0, atol=1e-9)


def test_only_the_last_epoch_is_told():
    """Of two epochs of full batches the second's loss is the one after one step, taken from the mean of both."""
    losses = {}
    for epochs in (1, 2):
        run = simulated({"kind": "sfat"}, epochs=epochs, batch_size="full", lr=0.5)
        losses[epochs] = exchange(run)
    first, both = losses[1].payload["last-loss"][:, 0], losses[2].metrics["loss"]
    assert torch.allclose(losses[2].payload["last-loss"][:, 0], 2.0 * both - first, rtol=0, atol=1e-12)
    assert not torch.allclose(first, both, rtol=1e-3)


def test_nobody_else_is_asked_for_the_loss():
    replies = exchange(simulated({"kind": "fal"}))
    assert set(replies.payload) == {"delta"}


def test_more_favoured_clients_than_there_are_is_refused():
    with pytest.raises(InputError, match=r"^strategy\.khat = 7: 6 clients are selected"):
        simulated({"kind": "sfat", "khat": 7})
