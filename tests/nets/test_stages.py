"""Compiled convolutions and poolings held to autograd, and to the plain loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from descents import PLAIN, C, N, assert_close, by_autograd, changed, described, normal
from torch import nn

import fedsim
import fedsim.engine.executor as executors
from clients.optimizers.sgd import Sgd
from fedsim.core.errors import InputError
from fedsim.nets import fused as module
from fedsim.nets.descent import Rule
from fedsim.nets.fused import fused, layers_of
from fedsim.nets.losses import CrossEntropy
from fedsim.nets.stack import Layout
from fedsim.running.build import build_executor
from fedsim.testing.problems import small_experiment as small
from fedsim.testing.problems import small_problem

pytest.importorskip("numba")  # which has no wheels for some machines
pytestmark = pytest.mark.xdist_group("fused")  # so that one process compiles
LOSS = CrossEntropy()
SIDES = (2, 7, 9)
"""Channels, height and width of the images."""


def network(*parts: nn.Module) -> nn.Sequential:
    """These parts and a linear layer to three classes, in doubles that are drawn by number."""
    front = nn.Sequential(*parts, nn.Flatten())
    model = nn.Sequential(*front, nn.Linear(front.float()(torch.zeros(1, *SIDES)).shape[1], 3)).double()
    for seed, own in enumerate(model.parameters()):
        own.data = normal(*own.shape, seed=seed) / max(1, own[0].numel()) ** 0.5
    return model


STAGES: dict[str, list[nn.Module]] = {
    "one": [nn.Conv2d(2, 3, 3)],
    "ReLU before a maximum": [nn.Conv2d(2, 5, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)],
    "ReLU after it": [nn.Conv2d(2, 6, 3, padding=1), nn.MaxPool2d(2), nn.ReLU()],
    "on both sides": [nn.Conv2d(2, 3, 3), nn.Sigmoid(), nn.MaxPool2d(2), nn.GELU()],
    "windows that overlap": [nn.Conv2d(2, 4, 2), nn.Tanh(), nn.MaxPool2d((3, 2), stride=(1, 2))],
    "means": [
        nn.Conv2d(2, 7, 3, padding=1, bias=False), nn.ELU(0.3), nn.AvgPool2d(2, stride=(2, 1)), nn.LeakyReLU(0.2),
    ],
    "two": [
        nn.Conv2d(2, 3, (3, 2), padding=(1, 0), dilation=(1, 2)), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(3, 5, 3, padding=1), nn.Sigmoid(), nn.AvgPool2d(2),
    ],
    "wide padding": [nn.Conv2d(2, 3, 2), nn.Tanh(), nn.Conv2d(3, 4, 3, padding=3), nn.ReLU(), nn.MaxPool2d(3)],
    "three, one after the other": [
        nn.Conv2d(2, 9, 3, padding=1), nn.Conv2d(9, 4, 3, padding=(1, 2), dilation=2, bias=False), nn.SiLU(),
        nn.Conv2d(4, 2, 1), nn.ReLU(),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", STAGES)
def test_stages_have_the_derivatives_of_autograd(name):
    model = network(*STAGES[name])
    loop, descent = described(model, LOSS, shape=SIDES, decay=0.1)
    assert_close(loop.descend(descent), by_autograd(model, LOSS, descent))


@pytest.mark.parametrize("width", [1, 8])
def test_batches_of_any_width(width):
    model = network(*STAGES["two"])
    loop, descent = described(model, LOSS, width, SIDES)
    assert_close(loop.descend(descent), by_autograd(model, LOSS, descent))


def test_what_rules_keep_and_shifts_are_of_all_parameters():
    """Two steps of momentum with a decay and a shift, in the terms of the rule, from gradients of autograd."""
    model = network(*STAGES["two"])
    loop, descent = described(model, LOSS, shape=SIDES, optimizer=Sgd(momentum=0.9), decay=0.1)
    shift = 0.1 * normal(len(descent.start), seed=3)
    plain = changed(descent, rule=Rule(**PLAIN), rates=[1.0] * 3)
    found = loop.descend(changed(descent, shift=shift, steps=torch.full((C,), 2))).params
    for client in range(C):
        y, velocity = descent.start, torch.zeros(len(descent.start), dtype=torch.float64)
        for step in range(2):
            rows = descent.first + step  # whose first step is this one
            once = changed(plain, start=y, first=rows, steps=torch.ones(C, dtype=torch.int64))
            gradient = y - by_autograd(model, LOSS, once).params[client]
            velocity = 0.9 * velocity + gradient + 0.1 * y - shift
            y = y - descent.rates[step] * velocity
        assert torch.allclose(found[client], y, rtol=0, atol=1e-13)


def test_the_number_of_cores_changes_no_bit(monkeypatch):
    loop, descent = described(network(*STAGES["two"]), LOSS, shape=SIDES, decay=0.1)
    whole = loop.descend(descent)
    seen = []
    monkeypatch.setattr(module, "WORTH_A_CORE", 0)
    monkeypatch.setattr(module, "spread", lambda train, parts: [*map(train, reversed(parts)), seen.append(len(parts))])
    for count in (1, 2):
        monkeypatch.setattr(module, "cores", lambda: count)  # noqa: B023
        found = loop.descend(descent)
        assert torch.equal(found.params, whole.params)
        assert torch.equal(found.losses, whole.losses)
    assert seen == [4, 5]


@pytest.mark.parametrize("name", ["two", "windows that overlap"])
def test_what_is_no_number_stays_with_its_client(name):
    model = network(*STAGES[name])
    loop, descent = described(model, LOSS, shape=SIDES)
    x = descent.x.clone()
    x[2 * N : 3 * N, 1, 6, 8] = torch.nan
    x[3 * N : 4 * N, 0, 0, 0] = torch.inf
    clean, found = loop.descend(descent), loop.descend(changed(descent, x=x))
    wanted = by_autograd(model, LOSS, changed(descent, x=x)).losses
    assert torch.equal(torch.isnan(found.losses), torch.isnan(wanted))
    bad = torch.isin(torch.arange(C), torch.tensor([2, 3]))
    assert not torch.isfinite(found.params[bad]).all(dim=1).any()
    assert torch.equal(found.params[~bad], clean.params[~bad])


def small_images(dtype: torch.dtype) -> Any:
    """Images [1, 8, 8] for a network of two stages."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        model = nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2),
            nn.Flatten(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3),
        )  # fmt: skip
    return small_problem(dtype, model, shape=(1, 8, 8))


CLIENTS: dict[str, dict[str, Any]] = {
    "plain": {"weight_decay": 0.1, "proximal_mu": 0.2},
    "momentum": {"optimizer": {"kind": "sgd", "momentum": 0.9, "nesterov": True}, "clip_norm": 0.05},
    "adam": {"optimizer": "adam", "lr": 0.01},
    "scaffold": {"kind": "scaffold"},
}


def held_to_the_loop(name: str, dtype: torch.dtype, tolerance: float) -> None:
    client = {"kind": "sgd", "epochs": 2, "batch_size": 4, "lr": 0.1} | CLIENTS[name]
    strategy = "scaffold" if name == "scaffold" else "fedavg"
    found, loop = (
        fedsim.run(
            small(2, engine={"executor": executor}, client=client, strategy=strategy),
            problem=small_images(dtype),
            save=False,
        ).params
        for executor in ("fused", "loop")
    )
    assert torch.allclose(found, loop, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", CLIENTS)
def test_runs_are_those_of_the_plain_loop(name):
    held_to_the_loop(name, torch.float64, 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name", CLIENTS)
def test_runs_in_single_precision_are_those_of_the_plain_loop(name):
    held_to_the_loop(name, torch.float32, 1e-5)


def test_auto_compiles_small_networks(monkeypatch):
    """Of 36 3 9 + 9 4 27 + 4 5 + 5 3 multiply-adds."""
    problem = small_images(torch.float64)
    operations = 36 * 3 * 9 + 9 * 4 * 27 + 4 * 5 + 5 * 3
    monkeypatch.setattr(executors, "WORTH_COMPILING", 1)
    for most, name in ((operations, "fused"), (operations - 1, "stacked")):
        monkeypatch.setattr(module, "SMALL", most)
        assert build_executor(small(1), problem).name == name


def test_models_without_stages_are_refused():
    x, y = torch.zeros(4, *SIDES), torch.zeros(4, dtype=torch.int64)

    def model(*parts: nn.Module, units: int = 24) -> nn.Sequential:
        return nn.Sequential(*parts, nn.Flatten(), nn.Linear(units, 3))

    def found(other: nn.Module, shape: tuple[int, ...] = SIDES) -> Any:
        return layers_of(other, Layout.of(dict(other.named_parameters())), shape)

    known = model(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.MaxPool2d(2))
    assert found(known).operations == 5 * 7 * 4 * 18 + 72
    assert found(known, (3, 7, 9)) is None
    assert found(known, (2, 2, 9)) is None
    assert found(known, (126,)) is None
    assert found(known, (2, 9, 9)) is None
    for other in (
        model(nn.Conv2d(2, 4, 3, stride=2)),
        model(nn.Conv2d(2, 4, 3, groups=2)),
        model(nn.Conv2d(2, 4, 3, padding="same")),
        model(nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular")),
        model(nn.Conv2d(2, 4, 3), nn.MaxPool2d(2, padding=1)),
        model(nn.Conv2d(2, 4, 3), nn.MaxPool2d(2, ceil_mode=True)),
        model(nn.Conv2d(2, 4, 3), nn.MaxPool2d(2, dilation=2)),
        model(nn.Conv2d(2, 4, 3), nn.AvgPool2d(2, divisor_override=3)),
        model(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Tanh(), nn.Tanh(), units=140),
        model(nn.Conv2d(2, 4, 3), nn.Dropout(0.5)),
        model(nn.ReLU(), nn.Conv2d(2, 4, 3)),
        nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten()),
    ):
        assert found(other) is None
        with pytest.raises(InputError, match=r"^engine\.executor = fused: .* convolutions .*; take stacked$"):
            fused(other, Layout.of(dict(other.named_parameters())), LOSS, x, y)


def test_of_equal_numbers_the_first_has_the_gradient():
    """As in PyTorch: images of halves give many sums twice, in every order."""
    model = network(*STAGES["windows that overlap"])
    for own in model[0].parameters():
        own.data = (2.0 * own.data).round() / 2.0
    loop, descent = described(model, LOSS, shape=SIDES)
    descent = changed(descent, x=descent.x.round() / 2.0, steps=torch.ones(C, dtype=torch.int64))
    windows = model[0](descent.x).unfold(2, 3, 1).unfold(3, 2, 2)
    assert ((windows == windows.amax((-2, -1), keepdim=True)).sum((-2, -1)) > 1).double().mean() > 0.1
    assert torch.allclose(loop.descend(descent).params, by_autograd(model, LOSS, descent).params, rtol=0, atol=1e-13)
