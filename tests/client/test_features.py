"""Local training on a loss of features: by hand, in every executor, on attacked batches; and what is refused."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from clients.sgd import Sgd
from fedsim.client import Batch, Cohort, FeatureLoss, LocalTraining, Loss, Stack, Trained, Update
from fedsim.core.errors import InputError
from fedsim.core.options import options
from fedsim.core.streams import Streams
from fedsim.engine.executor import Executor
from fedsim.exchange.messages import Order
from fedsim.problems.supervised import Supervised
from fedsim.testing.problems import mlp, small_problem

PGD = {"kind": "pgd", "epsilon": 0.3, "steps": 2, "domain": "none"}


@dataclass(frozen=True)
class Short(FeatureLoss):
    """Another loss, and the mean square of features beside a part of their own, [k, B, h]."""

    loss: Loss
    own: Tensor

    def of(self, features: Tensor, targets: Tensor) -> Tensor:
        return (features - 0.5 * self.own).square().mean(dim=-1)


@options
class Shortened(LocalTraining):
    """Half of the features that the received model has are as good as none."""

    descends: ClassVar[bool] = True

    @property
    def of_features(self) -> bool:
        return True

    def train(self, cohort: Cohort) -> Update:
        theta = cohort.received("params")
        start, network = cohort.stack(theta), cohort.network

        def armed(rows: Stack, batch: Batch) -> Batch:
            assert len(rows) == len(batch)
            own = network.features(start[: len(batch)], batch.x)
            return replace(batch, loss=Short(batch.loss or network.loss, own))

        trained = self.descend(cohort, theta, change=True, armed=armed)
        return Update({"delta": trained.params}, {"loss": trained.loss})


def sent(
    problem: Supervised,
    choice: Any = "stacked",
    memory: int = 2**28,
    kind: type[LocalTraining] = Shortened,
    **training: Any,
) -> Tensor:
    """The changes [C, d] of all clients."""
    given = {"epochs": 2, "batch_size": 4, "lr": 0.1} | training
    executor = Executor(problem, kind(**given), Streams(0), choice=choice, memory=memory)
    order = Order("train", torch.arange(problem.num_clients), {"params": problem.initial()})
    found: Tensor = executor.execute(executor.assign(order)).payload["delta"]
    return found


def deep() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        return nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Dropout(0.3), nn.Linear(7, 5), nn.GELU(), nn.Linear(5, 3))


def test_steps_are_those_of_the_loss_by_hand():
    """y <- y - lr grad (CE + mean (h - h_0 / 2)^2), three full batches of a client of 11."""
    problem = small_problem(sizes=(11,))
    model, start = mlp().double(), mlp().double()
    x, y = problem.data.x, problem.data.y
    for _ in range(3):
        features, own = (torch.relu(net[1](x)) for net in (model, start))
        loss = functional.cross_entropy(model[3](features), y) + (features - 0.5 * own.detach()).square().mean()
        for part, gradient in zip(model.parameters(), torch.autograd.grad(loss, model.parameters()), strict=True):
            part.data -= 0.1 * gradient
    flat = torch.cat([part.detach().reshape(-1) for part in model.parameters()]) - problem.initial()
    for choice in ("stacked", "loop", "fused"):
        found = sent(problem, choice, epochs=None, steps=3, batch_size="full")
        assert torch.allclose(found[0], flat, rtol=0, atol=1e-12)


@pytest.mark.parametrize("model", [mlp, deep])
@pytest.mark.parametrize(
    "training",
    [{}, {"optimizer": "adam", "weight_decay": 0.1}, {"adversarial": {"kind": "standard", "attack": PGD}}],
    ids=["plain", "adam", "attacked"],
)
def test_clients_end_where_they_do_alone_and_in_any_stack(model, training):
    problem = small_problem(model=model())
    together = sent(problem, **training)
    assert torch.allclose(sent(problem, "loop", **training), together, rtol=0, atol=1e-12)
    assert torch.equal(sent(problem, memory=1, **training), together)


def test_an_attack_comes_first_and_the_loss_is_of_what_it_has_left():
    """It is of features, too, of examples that are none of the data; an attack that moves nothing leaves them."""
    problem, seen = small_problem(), list[Tensor]()

    @options
    class Watched(Shortened):
        def descend(self, cohort: Cohort, start: Tensor, *, armed: Any = None, **given: Any) -> Trained:
            def watched(rows: Stack, batch: Batch) -> Batch:
                seen.append(batch.x[batch.weight > 0])
                return armed(rows, batch)

            return super().descend(cohort, start, armed=watched, **given)

    for epsilon in (0.0, 0.3):
        seen.clear()
        defended = {"adversarial": {"kind": "standard", "attack": {**PGD, "epsilon": epsilon}}}
        found = sent(problem, kind=Watched, **defended)
        moved = [(problem.data.x != x).any(dim=1).all() for batch in seen for x in batch]
        assert moved
        assert all(moved) if epsilon else not any(moved)
        assert torch.equal(found, sent(problem)) == (epsilon == 0.0)
        assert not torch.allclose(found, sent(problem, kind=Sgd, **defended), rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("training", "named"),
    [
        ({"adversarial": {"kind": "trades", "attack": PGD}}, "adversarial = trades: .* several views"),
        ({"optimizer": "egn"}, "optimizer = egn: .*outputs"),
        ({"optimizer": {"kind": "ai_sarah", "gamma": 0.99}}, "optimizer = ai_sarah: .*all examples"),
    ],
)
def test_what_is_about_outputs_alone_is_refused(training, named):
    with pytest.raises(InputError, match=named):
        Shortened(epochs=1, **training)


def test_rules_that_ask_the_batch_again_ask_the_same_loss():
    problem = small_problem()
    for rule in ("adahessian", "ivon"):
        found = sent(problem, optimizer=rule, lr=0.01)
        assert torch.allclose(sent(problem, "loop", optimizer=rule, lr=0.01), found, rtol=0, atol=1e-10)
