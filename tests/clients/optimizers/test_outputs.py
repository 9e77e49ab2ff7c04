"""Rules that ask for outputs, held to the specification's numbers, to dense matrices, and to least squares."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fedsim
from clients.optimizers.egn import Egn
from clients.optimizers.sso import Sso
from fedsim.client import Beginning, Optimizer, Stack, Step
from fedsim.client.objective import BatchObjective
from fedsim.core.errors import InputError
from fedsim.core.streams import Streams
from fedsim.engine.executor import Executor, operations_beside
from fedsim.exchange.actions import FORWARD
from fedsim.exchange.messages import Order
from fedsim.nets.chain import ChainNetwork
from fedsim.nets.descent import Rule
from fedsim.nets.dropout import Draw
from fedsim.nets.losses import CrossEntropy, Loss, Pointwise, SquaredError
from fedsim.nets.network import Batch, Network, StackedNetwork
from fedsim.nets.stack import Layout
from fedsim.parallel.cores import one_core_an_operation
from fedsim.testing.problems import blobs, small_experiment, small_problem
from tests.clients.optimizers.oracles import exact


class Half(Pointwise):
    """Half of the squared error."""

    tasks = ("numbers",)
    curves = True

    def each(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square() / 2


NETWORKS = {"chain": ChainNetwork.of, "stacked": StackedNetwork}
X, T = exact([[1, 2], [0, 1], [1, -1]]), exact([1, 0.5, 0])
LEAST = [0.318182, 0.363636]


def walked(
    rule: Optimizer,
    network: Network,
    y: Stack,
    batch: Batch,
    *,
    steps: int = 1,
    lr: float = 1.0,
    decay: float = 0.0,
    shift: Stack | None = None,
) -> Tensor:
    """Where clients are after so many steps on one mini-batch, [C, d]."""
    how, rows = Rule(rule, None, decay, 0.0), network.layout.stack(y.flat())
    stepper = how.stepper(rows, Beginning(torch.ones(len(rows))))
    for number in range(steps):
        objective: Any = BatchObjective(
            SimpleNamespace(network=network), how, rows, range(len(rows.leaves)), batch, shift, None
        )
        loss, gradient = objective.again(rows)
        stepper.take(rows, Step(number, lr, gradient, loss, None, objective, objective))
    return rows.flat()


def fitted(rule: Optimizer, network: str, **given: Any) -> Tensor:
    """The same of a linear model on the three examples above, from 0, beside a client that has one of them alone."""
    model = nn.Sequential(nn.Linear(2, 1, bias=False)).double()
    layout = Layout.of(dict(model.named_parameters()))
    made: Any = NETWORKS[network](model, layout, Half())
    weight = exact([[1 / 3, 1 / 3, 1 / 3], [1, 0, 0]])
    batch = Batch(X.expand(2, -1, -1), T.expand(2, -1), weight, Draw(Streams(0), torch.arange(2), 0, 0))
    return walked(rule, made, layout.stack(torch.zeros(2, 2).double()), batch, **given)


def close(found: Tensor, wanted: object) -> bool:
    return torch.allclose(found, exact(wanted), rtol=0, atol=6e-7)


@pytest.mark.parametrize("network", NETWORKS)
def test_sso_is_the_specifications(network):
    for inner, wanted in ((1, [0.066667, 0.166667]), (2, [0.113333, 0.262222]), (10, [0.254741, 0.376579])):
        assert close(fitted(Sso(inner=inner), network, lr=0.2)[0], wanted)


def test_one_inner_step_is_sgd_whatever_eta():
    for eta in (0.01, 1.0, 100.0):
        assert close(fitted(Sso(inner=1, eta=eta), "chain", lr=0.2)[0], [0.066667, 0.166667])


def test_many_inner_steps_come_to_the_least_of_the_surrogate():
    """At eta = 1 that is the least of the loss, and at a half half of the way there, of a linear model from 0."""
    for eta, share in ((1.0, 1.0), (0.5, 0.5)):
        found = fitted(Sso(inner=600, eta=eta), "chain", lr=0.2)[0]
        assert close(found, [share * number for number in LEAST])


@pytest.mark.parametrize("network", NETWORKS)
def test_egn_is_the_specifications(network):
    assert close(fitted(Egn(damping=0.5), network)[0], [0.198020, 0.306931])


def test_egn_with_little_damping_is_least_squares():
    """The client with one example (1, 2) with target 1 fits it by the shortest step."""
    found = fitted(Egn(damping=1e-7), "chain")
    assert close(found[0], torch.linalg.lstsq(X, T.unsqueeze(1)).solution.flatten().tolist())
    assert close(found[0], LEAST)
    assert close(found[1], [0.2, 0.4])


C, B = 3, 4


def classifying(loss: Loss, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Layout, Stack, Batch, Stack]:
    """A network of 3 or 1 outputs, clients with a batch each, one with padding, and what is taken from gradients."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        outputs = 3 if isinstance(loss, CrossEntropy) else 1
        model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, outputs)).to(dtype)
        layout = Layout.of(dict(model.named_parameters()))
        y, shift = (layout.stack(torch.randn(C, layout.dimension, dtype=dtype)) for _ in range(2))
        x, targets = torch.randn(C, B, 5, dtype=dtype), torch.arange(C * B).view(C, B) % 3
    weight = torch.full((C, B), 1.0 / B, dtype=dtype)
    weight[1] = torch.tensor([1, 1, 1, 0], dtype=dtype) / 3
    targets = targets if outputs == 3 else targets.to(dtype)
    return model, layout, y, Batch(x, targets, weight, Draw(Streams(0), torch.arange(C), 0, 0)), shift


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("loss", [CrossEntropy(label_smoothing=0.2), SquaredError()], ids=["classes", "numbers"])
def test_egn_solves_the_dense_system_with_decay_and_corrections(loss, network):
    """(J' Q J + lambda I)^-1 (J' r + e) of each client by itself, of the loss that is its own."""
    model, layout, y, batch, shift = classifying(loss)
    made: Any = NETWORKS[network](model, layout, loss)
    for scale, decay, own in ((0.0, 0.0, None), (0.3, 0.2, None), (5.0, 0.2, shift), (0.0, 0.0, shift)):
        found = walked(Egn(damping=0.7, scale=scale), made, y, batch, lr=0.5, decay=decay, shift=own)
        for client in range(C):
            row = y.flat()[client]

            def outputs(at: Tensor, client: int = client) -> Tensor:
                return torch.func.functional_call(model, layout.named(at), (batch.x[client],))

            def total(z: Tensor, client: int = client) -> Tensor:
                return (loss.examples(z, batch.y[client]) * batch.weight[client]).sum()

            z = outputs(row)
            jacobian = torch.func.jacrev(outputs)(row).flatten(0, 1)
            q = torch.func.jacrev(torch.func.grad(total))(z).reshape(z.numel(), z.numel())
            gradient = jacobian.T @ torch.func.grad(total)(z).flatten() + decay * row
            gradient = gradient if own is None else gradient - own.flat()[client]
            damping = max(0.7, scale * float(gradient.norm())) + decay
            system = jacobian.T @ q @ jacobian + damping * torch.eye(len(row), dtype=torch.float64)
            wanted = row - 0.5 * torch.linalg.solve(system, gradient)
            assert torch.allclose(found[client], wanted, rtol=0, atol=1e-10)


def test_a_velocity_of_egn_is_of_its_directions():
    """v_1 = a, v_2 = a / 2 + b, of directions a at the start and b after it."""
    model, layout, y, batch, _ = classifying(CrossEntropy())
    network = StackedNetwork(model, layout, CrossEntropy())
    first = walked(Egn(), network, y, batch)
    second = walked(Egn(), network, layout.stack(first), batch)
    wanted = first + 0.5 * (first - y.flat()) + (second - first)
    assert torch.allclose(walked(Egn(momentum=0.5), network, y, batch, steps=2), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("rule", [Egn(scale=0.5, momentum=0.5), Sso(inner=3)], ids=lambda own: type(own).__name__)
def test_a_row_alone_has_the_bits_that_it_has_in_the_stack(rule, network):
    for dtype in (torch.float32, torch.float64):
        model, layout, y, batch, shift = classifying(CrossEntropy(), dtype)
        made: Any = NETWORKS[network](model, layout, CrossEntropy())
        given = {"steps": 2, "lr": 0.3, "decay": 0.1}
        with one_core_an_operation():
            together = walked(rule, made, y, batch, shift=shift, **given)
            for client in range(C):
                own = slice(client, client + 1)
                draw = Draw(Streams(0), torch.arange(C)[own], 0, 0)
                some = Batch(batch.x[own], batch.y[own], batch.weight[own], draw)
                assert torch.equal(walked(rule, made, y[own], some, shift=shift[own], **given), together[own])


def client_of(rule: Any, **options: Any) -> Any:
    return fedsim.experiment(client={"kind": "sgd", "epochs": 1, "batch_size": 5, "optimizer": rule, **options}).client


def test_what_rounds_take_is_declared_and_cohorts_are_cut_to_fit():
    order = Order("train", torch.arange(1), {"params": torch.zeros(3)})
    for rule, effort in (({"kind": "sso", "inner": 3}, 3 + FORWARD), ({"kind": "sso", "inner": 1}, 1.0), ("egn", 2.0)):
        cost = client_of(rule).cost(order, torch.tensor([10]))
        beside = 0.0 if cost.effort is None else float(cost.effort)
        assert 2 + beside == pytest.approx(2 * effort)
    problem, client = small_problem(), client_of("egn")
    layout, outputs = problem.model.layout, 5 * 3
    assert problem.model.footprint.outputs == 3
    plain, solving = (Executor(problem, own, Streams(0), choice="stacked") for own in (client_of("sgd"), client))
    assert plain._row_bytes + 8 * outputs * (layout.dimension + 4 * outputs) == solving._row_bytes
    assert solving.chunk < plain.chunk
    inner = sum(outputs * shape[0] * (outputs + shape[1]) for shape in layout.shapes if len(shape) == 2)
    assert operations_beside(client, problem) == inner + outputs**3 // 3


def test_what_does_not_go_with_a_rule_is_refused_in_a_line():
    for given, refusal in (
        ({"optimizer": "egn", "clip_norm": 1.0}, r"client\.clip_norm = 1\.0: bounds gradients, and egn solves"),
        ({"optimizer": {"kind": "muon", "others": "sso"}}, r"others = sso: asks for outputs and their derivatives"),
        ({"optimizer": {"kind": "muon", "others": "egn"}}, r"others = egn: asks for outputs .* and the curvature"),
    ):
        with pytest.raises(InputError, match=refusal) as refused:
            client_of(given.pop("optimizer"), **given)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("loss", ["absolute_error", "pinball"])
def test_a_loss_that_does_not_curve_is_refused_in_a_line_before_anything_runs(loss):
    examples = blobs()
    problem = fedsim.supervised(
        examples["x"], examples["x"][:, 0], model=nn.Linear(6, 1), clients=examples["clients"], loss=loss
    )
    made = small_experiment(1, client={"kind": "sgd", "epochs": 1, "batch_size": 4, "optimizer": "egn"})
    with pytest.raises(InputError, match=rf"client\.optimizer = egn: {loss}: it does not curve upwards") as refused:
        fedsim.run(made, problem=problem, save=False)
    assert "\n" not in str(refused.value)
