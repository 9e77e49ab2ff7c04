"""SAM and ASAM, against steps by hand, NumPy's, and the rule that they have without a look ahead."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from oracles import Q, Quadratic, assert_finishes_early, assert_held, assert_stays_without_gradient, exact, path
from torch import Tensor, nn

import fedsim
from clients.optimizers.adam import Adam
from clients.optimizers.muon import Muon
from clients.optimizers.sam import Sam
from clients.optimizers.sgd import Sgd
from fedsim.client import Stack
from fedsim.core.errors import InputError
from fedsim.exchange.messages import Order
from fedsim.running.build import build_executor
from fedsim.testing.problems import DEVICE, blobs, small_experiment, small_problem, small_quadratics

TRAINING = {"kind": "sgd", "epochs": 2, "batch_size": 4, "lr": 0.05}
EVERYBODY = {"kind": "uniform", "fraction": 1.0}


def ended(optimizer: Any, model: nn.Module | None = None, executor: str = "stacked", **client: Any) -> Tensor:
    """Where two rounds of all clients end."""
    problem = fedsim.supervised(**blobs(), model=model, dtype=torch.float64, device=DEVICE) if model else None
    table = {**TRAINING, "optimizer": optimizer, **client}
    made = small_experiment(2, client=table, selection=EVERYBODY, engine={"executor": executor})
    return fedsim.run(made, problem=problem or small_problem(), save=False).params


def network(*, dropout: float = 0.0, norm: bool = False) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        normalise = [nn.BatchNorm1d(8)] if norm else []
        return nn.Sequential(nn.Linear(6, 8), *normalise, nn.GELU(), nn.Dropout(dropout), nn.Linear(8, 3))


@pytest.mark.parametrize("rho", [0.05, 0.5, 3.0])
def test_of_quadratic_functions_the_gradient_is_longer_by_h_rho_g_over_its_norm(rho):
    """From (1, 1): g = (3, 4), of norm 5, and (4, 1.8). With rho = 0.5 by hand: (3 1; 1 2)(0.3, 0.4) = (1.3, 1.1)."""
    gradient = torch.linalg.matmul(Q.curvatures, Q.start - Q.least).squeeze(2)
    unit = gradient / gradient.norm(dim=1, keepdim=True)
    wanted = 1.0 - 0.1 * (gradient + rho * torch.linalg.matmul(Q.curvatures, unit.unsqueeze(2)).squeeze(2))
    assert_held(Sam(rho=rho), wanted.tolist(), away=4e-15)
    if rho == 0.5:
        assert wanted[0].tolist() == pytest.approx([1.0 - 0.43, 1.0 - 0.51], abs=1e-15)


def test_of_asam_weights_count_by_their_size_and_biases_do_not():
    """Weights (3, -0.5) of eta 1: t = (4, 1.5); bias: 1. g = (0.25, 2; -4): t g = (1, 3; -4), of norm sqrt 26."""
    rows, gradient = (Stack([exact([[[a, b]]]), exact([[c]])]) for a, b, c in ((3.0, -0.5, 7.0), (0.25, 2.0, -4.0)))
    there = Sam(rho=0.1, adaptive=True, eta=1.0).ahead(rows, gradient).flat()
    away = exact([[4.0, 4.5, -4.0]]) * (0.1 / 26**0.5)
    torch.testing.assert_close(there, exact([[3.0, -0.5, 7.0]]) + away, rtol=0, atol=1e-15)
    # In other units of the weights, u = 10 y, gradients are a tenth, and without eta the point is the same one.
    weights, slope = exact([[[3.0, -0.5]]]), exact([[[0.25, 2.0]]])
    here, scaled = (
        Sam(rho=0.1, adaptive=True, eta=0.0).ahead(Stack([weights * unit]), Stack([slope / unit])).flat()
        for unit in (1.0, 10.0)
    )
    torch.testing.assert_close(10.0 * here, scaled, rtol=1e-15, atol=0)


def test_norms_are_of_each_client_over_all_of_its_parameters():
    """Of seven clients whose gradients are 1 to 64 long, in two leaves: e is 0.1 long, not 0.1 / 74 to 0.1 64 / 74.

    A norm over the stack would put some 0.099 elsewhere, one of each leaf 0.04.
    """
    long = 2.0 ** torch.arange(7, dtype=torch.float64)
    leaves = [torch.tensor([[0.6]]) * long.view(-1, 1, 1), torch.tensor([0.8]) * long.view(-1, 1)]
    rows, gradient = Stack(leaves).zeros(), Stack(leaves).copy()
    there = Sam(rho=0.1).ahead(rows, gradient).flat()
    torch.testing.assert_close(there, exact([[0.06, 0.08]]).expand(7, 2), rtol=0, atol=1e-8)
    together = Stack(leaves).flat() * (0.1 / long.norm())
    assert float((there - together).norm(dim=1).max()) > 0.06
    alone = Sam(rho=0.1).ahead(Stack(leaves)[2:3].zeros(), Stack(leaves)[2:3].copy()).flat()
    assert torch.equal(alone[0], there[2])


@pytest.mark.parametrize("rule", [Sam(), Sam(adaptive=True), Sam(base={"kind": "sgd", "momentum": 0.5})], ids=str)
def test_who_has_finished_stays_and_who_has_no_gradient_stays_finite(rule):
    assert_finishes_early(rule)
    assert_stays_without_gradient(rule)


def walked(client: int, start: NDArray[np.float64], rho: float, **terms: float) -> NDArray[np.float64]:
    """Where two steps of 0.05 lead on a quadratic function: only the second gradient is bounded and pulled."""
    h, b = small_quadratics().terms(client)
    y = start
    for _ in range(2):
        g = h @ y - b
        g = h @ (y + rho * g / np.linalg.norm(g)) - b
        g = g * min(1.0, terms["clip_norm"] / np.linalg.norm(g))
        y = y - 0.05 * (g + terms["weight_decay"] * y + terms["proximal_mu"] * (y - start))
    return y


def test_the_ascent_ignores_clipping_decay_and_the_proximal_term():
    terms = {"clip_norm": 3.0, "weight_decay": 0.7, "proximal_mu": 2.0}
    quadratics = small_quadratics()
    client = {"kind": "sgd", "steps": 2, "batch_size": "full", "lr": 0.05, **terms}
    found = {}
    for rho in (0.0, 0.4):
        end = np.zeros(3)
        for _ in range(3):
            end = np.mean([walked(number, end, rho, **terms) for number in range(6)], axis=0)
        found[rho] = quadratics.run(3, {"kind": "fedavg"}, client | {"optimizer": {"kind": "sam", "rho": rho}})
        np.testing.assert_allclose(found[rho], end, rtol=0, atol=1e-12)
    assert np.linalg.norm(found[0.4] - found[0.0]) > 1e-3


@pytest.mark.parametrize(
    ("base", "executor"),
    [
        *(("sgd", executor) for executor in ("stacked", "loop", "fused")),
        ({"kind": "sgd", "momentum": 0.9}, "stacked"),
        ({"kind": "adam", "decay": "decoupled"}, "loop"),
        ("muon", "stacked"),
    ],
)
def test_without_a_look_ahead_it_is_base_to_the_bit(base, executor):
    """Clipping and decay of either kind as well; FedAvg, where base is sgd."""
    further = {"executor": executor, "weight_decay": 0.1, "clip_norm": 0.5}
    assert torch.equal(ended({"kind": "sam", "rho": 0.0, "base": base}, **further), ended(base, **further))


@pytest.mark.parametrize("executor", ["stacked", "loop"])
def test_the_second_gradient_is_under_the_firsts_dropout(executor):
    """The point is next to where the client is: under other masks the run would be another, by 0.01 and more."""
    plain = {"kind": "sgd", "momentum": 0.5}
    near = {"kind": "sam", "rho": 1e-12, "base": plain}
    there = ended(near, network(dropout=0.5), executor)
    torch.testing.assert_close(there, ended(plain, network(dropout=0.5), executor), rtol=0, atol=1e-9)
    assert float((there - ended(plain, network(), executor)).abs().max()) > 0.01


def test_running_statistics_are_those_of_the_first_pass():
    """After one step from the same model they are plain SGD's, to the bit; parameters are not."""
    client = {"epochs": None, "steps": 1, "batch_size": "full"}
    found = {}
    for name, optimizer in (("sam", {"kind": "sam", "rho": 0.5}), ("sgd", "sgd")):
        problem = fedsim.supervised(**blobs(), model=network(norm=True), dtype=torch.float64, device=DEVICE)
        table = {**TRAINING, **client, "optimizer": optimizer}
        made = small_experiment(1, client=table, selection=EVERYBODY, engine={"executor": "stacked"})
        found[name] = fedsim.run(made, problem=problem, save=False).params.split(problem.trained)
    assert torch.equal(found["sam"][1], found["sgd"][1])
    assert not torch.allclose(found["sam"][0], found["sgd"][0], rtol=0, atol=1e-4)


def test_it_costs_a_second_gradient_and_has_the_ways_of_base():
    for rule, effort, vectors in ((Sam(), 2.0, 1.0), (Sam(adaptive=True), 2.0, 2.0), (Sam(rho=0.0), 1.0, 0.0)):
        assert (rule.effort, rule.vectors) == (effort, vectors)
    adam = Sam(base=Adam(decay="decoupled"))
    assert (adam.usual, adam.vectors, adam.decoupled, adam.rate_free) == (0.01, 3.0, True, False)
    assert (Sam(base="dog").usual, Sam(base="dog").rate_free) == (1.0, True)
    shapes = [(4, 3), (3,), (2, 4), (2,)]
    assert Sam(base="muon").operations(shapes) == Muon().operations(shapes) > 0
    steps = torch.tensor([1, 4])
    assert torch.equal(Sam(base=Sgd(momentum=0.5)).weights(steps, 0.0), Sgd(momentum=0.5).weights(steps, 0.0))
    experiment = small_experiment(client={**TRAINING, "optimizer": "sam"})
    problem = small_problem()
    executor = build_executor(experiment, problem)
    cost = executor.assign(Order("train", torch.arange(6), {"params": problem.initial()})).cost
    assert torch.equal(cost.effort, cost.steps.double())


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        (
            {"base": "ivon"},
            r"optimizer\.base = ivon: asks for random draws and gradients at points of its choice, which",
        ),
        (
            {"base": "sam"},
            r"optimizer\.base = sam: asks for gradients where a first one leads, which a rule that looks",
        ),
        ({"eta": 0.1}, r"optimizer\.eta = 0\.1: is an option of adaptive = true only"),
        ({"rho": 0.0, "adaptive": True}, r"optimizer\.adaptive = True: .* rho = 0 looks nowhere"),
    ],
)
def test_what_it_cannot_have_is_refused(tables, message):
    with pytest.raises(InputError, match=rf"client\.{message}"):
        small_experiment(client={**TRAINING, "optimizer": {"kind": "sam", **tables}})


def test_who_cannot_look_ahead_refuses_it():
    for tables, option in (
        ({"client": {**TRAINING, "optimizer": {"kind": "muon", "others": "sam"}}}, r"client\.optimizer\.others"),
        ({"strategy": {"kind": "fedavg", "server_optimizer": "sam"}}, r"strategy\.server_optimizer"),
    ):
        with pytest.raises(InputError, match=rf"{option} = sam: asks for gradients where a first one leads, which"):
            small_experiment(**tables)


def test_on_a_stack_of_quadratic_functions_it_goes_as_alone():
    """Ten steps of each of two clients, with a decay."""
    for rule in (Sam(rho=0.3), Sam(rho=0.3, base=Adam(decay="decoupled"))):
        together = path(rule, [10, 10], decay=0.1)
        for client in range(2):
            alone = path(rule, [10], decay=0.1, clients=slice(client, client + 1))
            assert torch.equal(alone[:, 0], together[:, client])
        flat = Quadratic(Q.curvatures * 0.0, Q.least, Q.start, vector=True)
        assert bool(path(rule, [3, 3], problem=flat).isfinite().all())
