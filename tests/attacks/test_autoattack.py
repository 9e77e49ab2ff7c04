"""AutoAttack through the toolbox: as strong as PGD, deterministic, and refused where it cannot be used."""

import logging
import random
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fedsim
from fedsim import InputError
from fedsim.attacks import autoattack
from fedsim.attacks.attack import ClientDraws, Victim
from fedsim.attacks.autoattack import AutoAttack
from fedsim.attacks.gradient import PGD
from fedsim.configuration.tables import experiment
from fedsim.core.streams import Streams
from fedsim.nets.dropout import Draw
from fedsim.nets.losses import CrossEntropy
from fedsim.nets.network import PlainNetwork
from fedsim.nets.stack import Layout
from fedsim.parallel.cores import one_core_an_operation
from fedsim.problems.base import Trial
from fedsim.problems.supervised import Supervised
from fedsim.running.build import build_simulation

EPSILON = 0.08


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Far fewer steps than the attack's own, whose number is the only difference; and one core."""
    # Here, for it takes a second, in each process that collects tests.
    pytest.importorskip("art", reason="the Adversarial Robustness Toolbox is not installed", exc_type=ImportError)
    monkeypatch.setattr(autoattack, "STEPS", 20)
    monkeypatch.setattr(autoattack, "STARTS", 1)
    monkeypatch.setattr(autoattack, "SQUARES", 30)
    with one_core_an_operation():
        yield


@pytest.fixture(scope="module")
def digits() -> Supervised:
    """A small convolution, trained a little on the digits, to be judged on 100 others; images [1, 8, 8]."""
    from sklearn.datasets import load_digits

    data = load_digits()
    x, y = torch.tensor(data.images[:, None] / 16, dtype=torch.float32), torch.tensor(data.target)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 10))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    with one_core_an_operation():
        for _ in range(60):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[100:]), y[100:]).backward()
            optimizer.step()
    return fedsim.supervised(
        x[100:], y[100:], model=model, clients=[range(1697)], test=(x[:100], y[:100]), device="cpu"
    )


def attacked(problem: Supervised, *attacks: Any, examples: int | None = None, seed: int = 1) -> dict[str, float]:
    return problem.attacked(problem.initial(), Trial(attacks, ("test",), examples, False, Streams(seed)))


def victim(problem: Supervised, rows: torch.Tensor, seed: int = 1) -> Victim:
    network = PlainNetwork(problem.model.module, problem.model.layout, problem.model.loss)
    owners = torch.arange(1 if rows.dim() == 1 else len(rows))
    return Victim(
        network, problem.model.layout.stack(rows), problem.model.loss, ClientDraws(Draw(Streams(seed), owners, 0, 0))
    )


def test_it_is_as_strong_as_pgd_and_stays_in_the_ball(digits):
    clean = digits.evaluate(digits.initial(), clients=False)["test_accuracy"]
    found = attacked(digits, PGD(epsilon=EPSILON, steps=20), AutoAttack(epsilon=EPSILON))
    assert found["test_autoattack_accuracy"] <= found["test_pgd20_accuracy"] + 0.02
    assert found["test_autoattack_accuracy"] < clean - 0.1
    for norm, radius in (("linf", EPSILON), ("l2", 0.4)):
        attack = AutoAttack(epsilon=radius, norm=norm, parts=["apgd_ce", "deepfool"])
        x = digits.x_test[None, :30]
        moved = attack.perturb(victim(digits, digits.initial()), x, digits.y_test[None, :30])
        away = (moved - x).flatten(2)
        assert 0.5 * radius < float(away.norm(torch.inf if norm == "linf" else 2, dim=2).max()) <= radius + 1e-6
        assert 0.0 <= float(moved.min()) <= float(moved.max()) <= 1.0


@pytest.mark.parametrize("part", autoattack.ALL)
def test_each_part_finds_something(digits, part):
    attack = AutoAttack(epsilon=0.15, parts=[part])
    assert attack.label == part
    clean = digits.evaluate(digits.initial(), clients=False)["test_accuracy"]
    assert attacked(digits, attack)[f"test_{part}_accuracy"] < clean


def test_the_same_seed_gives_the_same_inputs_and_the_generators_go_on_as_before(digits, capfd):
    attack = AutoAttack(epsilon=EPSILON, parts=["apgd_ce", "square"])
    x, targets = digits.x_test[None, :40], digits.y_test[None, :40]
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    level = logging.getLogger("art").level
    first = attack.perturb(victim(digits, digits.initial()), x, targets)
    assert random.getstate() == before[0]
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])
    assert logging.getLogger("art").level == level
    random.random()
    np.random.random()  # noqa: NPY002
    assert torch.equal(attack.perturb(victim(digits, digits.initial()), x, targets), first)
    other = attack.perturb(victim(digits, digits.initial(), seed=2), x, targets)
    assert not torch.equal(other, first)
    assert capfd.readouterr() == ("", "")


def test_several_models_are_attacked_one_after_the_other(digits):
    attack = AutoAttack(epsilon=0.15, parts=["apgd_ce"])
    start = digits.initial()
    models = torch.stack([start, -start])
    x, targets = digits.x_test[:16].expand(2, -1, -1, -1, -1), digits.y_test[:16].expand(2, -1)
    both = attack.perturb(victim(digits, models), x, targets)
    alone = attack.perturb(victim(digits, start), x[:1], targets[:1])
    assert torch.equal(both[0], alone[0])
    assert not torch.equal(both[0], both[1])


def test_nothing_moves_in_a_ball_of_no_radius(digits):
    x, targets = digits.x_test[None, :4], digits.y_test[None, :4]
    of = victim(digits, digits.initial())
    assert AutoAttack(epsilon=0.0).perturb(of, x, targets) is x
    assert AutoAttack(epsilon=0.3).perturb(of, x, targets, factor=0.0) is x
    assert AutoAttack(epsilon=0.3).perturb(of, x[:, :0], targets[:, :0]).shape[1] == 0


def test_gradients_are_those_of_the_model(digits):
    of = victim(digits, digits.initial())
    logits = autoattack._Logits(of, of.rows, digits.x_test)
    x = digits.x_test[:5].clone().requires_grad_()
    (found,) = torch.autograd.grad(logits(x)[:, 3].square().sum(), x)
    (expected,) = torch.autograd.grad(digits.model.module(x)[:, 3].square().sum(), x)
    torch.testing.assert_close(found, expected)


def test_models_of_double_precision_are_attacked(digits):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).double()
    layout = Layout.of(dict(model.named_parameters()))
    rows = layout.stack(layout.flatten(dict(model.named_parameters())))
    draws = ClientDraws(Draw(Streams(1), torch.tensor([0]), 0, 0))
    of = Victim(PlainNetwork(model, layout, CrossEntropy()), rows, CrossEntropy(), draws)
    x, targets = digits.x_test[None, :10].double(), digits.y_test[None, :10]
    moved = AutoAttack(epsilon=0.1, parts=["apgd_ce"]).perturb(of, x, targets)
    assert moved.dtype == torch.float64
    assert float((moved - x).abs().max()) <= 0.1 + 1e-6


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({}, r"evaluation\.attacks\.0\.epsilon"),
        ({"epsilon": -0.1}, r"evaluation\.attacks\.0\.epsilon = -0\.1"),
        ({"epsilon": 0.1, "domain": "none"}, r"evaluation\.attacks\.0\.domain = none: its parts clip"),
        ({"epsilon": 0.1, "parts": []}, r"evaluation\.attacks\.0\.parts"),
        ({"epsilon": 0.1, "parts": ["fab"]}, r"evaluation\.attacks\.0\.parts\.0 = fab"),
        ({"epsilon": 0.1, "parts": ["square", "square"]}, r"evaluation\.attacks\.0\.parts = .*name each once"),
        ({"epsilon": 0.1, "batch_size": 0}, r"evaluation\.attacks\.0\.batch_size = 0"),
        ({"epsilon": 0.1, "norm": "l1"}, r"evaluation\.attacks\.0\.norm = l1"),
    ],
)
def test_what_cannot_be_is_refused(options, line):
    with pytest.raises(InputError, match=rf"^{line}"):
        experiment(evaluation={"attacks": [{"kind": "autoattack", **options}]})


def test_what_does_not_fit_the_data_is_refused_before_the_run(digits):
    def refused(problem: Supervised, attack: dict[str, Any], line: str) -> None:
        tables = {"evaluation": {"attacks": [{"kind": "autoattack", **attack}]}}
        with pytest.raises(InputError, match=rf"^evaluation\.attacks\.0\.{line}"):
            build_simulation(experiment(rounds=1, **tables), problem)

    refused(digits, {"epsilon": 1.5}, r"epsilon = 1\.5")
    refused(digits, {"epsilon": 0.1, "domain": [0.0, 0.5]}, r"domain = \[0\.0, 0\.5\]")
    # Tiles of 8 / 5 pixels have no two sides.
    refused(digits, {"epsilon": 0.1, "norm": "l2"}, r"parts = .*: square wants images, .* 1x8x8; name the other parts")
    x, y = np.random.default_rng(0).random((6, 5)), np.array([0, 1] * 3)
    flat = fedsim.supervised(x, y, model=nn.Linear(5, 2), clients=[range(6)], device="cpu")
    refused(flat, {"epsilon": 0.1}, r"kind = autoattack: it needs 3 classes")
    refused(flat, {"epsilon": 0.1, "parts": ["square"]}, r"parts = .*: square wants images, .* 5; name the other parts")


def test_nobody_trains_against_it(digits):
    attack = {"kind": "autoattack", "epsilon": 0.1}
    made = experiment(
        rounds=1, client={"kind": "sgd", "epochs": 1, "adversarial": {"kind": "standard", "attack": attack}}
    )
    with pytest.raises(InputError, match=r"^client\.adversarial\.attack\.kind = autoattack: it only judges models"):
        build_simulation(made, digits)


def test_without_the_toolbox_it_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "art.attacks.evasion", None)
    with pytest.raises(InputError, match=r'^kind = autoattack: it needs .* pip install "fedsim-lab\[attacks\]"'):
        AutoAttack(epsilon=0.1)
