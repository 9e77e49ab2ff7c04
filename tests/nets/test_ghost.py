"""Clipped gradients of single examples, held to autograd one example at a time, and to Opacus where it is installed."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.func import functional_call

from fedsim.core.streams import Streams
from fedsim.nets.chain import ChainNetwork
from fedsim.nets.dropout import Draw
from fedsim.nets.ghost import watching
from fedsim.nets.losses import CrossEntropy
from fedsim.nets.network import Batch, Network, PlainNetwork, StackedNetwork
from fedsim.nets.prepared import prepare
from fedsim.nets.sequences import LastStep, Padded, Positions
from fedsim.nets.stack import Layout, Stack

C, B, K = 3, 4, 3
INPUTS = {"tokens": (5,), "images": (2, 7, 7), "numbers": (6,)}


class Custom(nn.Module):
    """A module with a forward pass of its own, of which no layer is known."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.scale = nn.Linear(6, K), nn.Parameter(torch.ones(K))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sin(self.first(x)) * self.scale


def twice() -> nn.Module:
    """The same layer at two places."""
    shared = nn.Linear(6, 6)
    return nn.Sequential(shared, nn.Tanh(), shared, nn.Tanh(), nn.Linear(6, K))


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True)
    return Padded(0, nn.Embedding(9, 6, padding_idx=0), Positions(7, 6), layer, LastStep(), nn.Linear(6, K))


MODELS = {
    "mlp": ("numbers", lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, K))),
    "tanh": ("numbers", lambda: nn.Sequential(nn.Linear(6, 5, bias=False), nn.Tanh(), nn.Linear(5, K))),
    "cnn": (
        "images",
        lambda: nn.Sequential(
            *(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.GroupNorm(2, 4), nn.MaxPool2d(2)),
            *(nn.Conv2d(4, 5, 3, stride=2, bias=False), nn.Tanh(), nn.Flatten(), nn.Linear(5, K)),
        ),
    ),
    "written over": (
        "numbers",
        lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(inplace=True), nn.Linear(5, K), nn.SiLU()),
    ),
    "many places": (
        "images",
        lambda: nn.Sequential(nn.Conv2d(2, 40, 5, padding=1, dilation=1, stride=3), nn.Flatten(), nn.Linear(160, K)),
    ),
    "layer norm": ("numbers", lambda: nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, K))),
    "encoder": ("tokens", encoder),
    "lstm": (
        "tokens",
        lambda: nn.Sequential(nn.Embedding(9, 4), nn.LSTM(4, 5, batch_first=True), LastStep(), nn.Linear(5, K)),
    ),
    "custom": ("numbers", Custom),
    "twice": ("numbers", twice),
}
IN_ONE_PASS = {"mlp", "tanh", "cnn", "written over", "many places", "layer norm", "encoder"}


def made(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Layout, Stack, Batch]:
    kind, factory = MODELS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = prepare(factory()).to(dtype)
        layout = Layout.of(dict(model.named_parameters()))
        y = layout.stack(0.5 * torch.randn(C, layout.dimension, dtype=dtype))
        tokens = torch.randint(0, 9, (C, B, *INPUTS[kind]))
        tokens[..., 0] = 1  # some place is no padding
        x = tokens if kind == "tokens" else torch.randn(C, B, *INPUTS[kind], dtype=dtype)
        targets = torch.randint(0, K, (C, B))
    weight = torch.full((C, B), 0.4, dtype=dtype)
    weight[1, 2:], weight[2] = 0.0, 0.0  # some of them, and an empty batch
    return model, layout, y, Batch(x, targets, weight, Draw(Streams(0), torch.arange(C), 0, 0))


def singly(model: nn.Module, layout: Layout, y: Stack, batch: Batch, row: int, place: int) -> list[torch.Tensor]:
    """The gradient of one example's own loss, by autograd."""
    own = dict(zip(layout.names, (leaf[row].clone().requires_grad_() for leaf in y.leaves), strict=True))
    outputs = functional_call(model, own, (batch.x[row, place : place + 1],))
    loss = nn.functional.cross_entropy(outputs, batch.y[row, place : place + 1])
    return list(torch.autograd.grad(loss, list(own.values())))


def expected(model: nn.Module, layout: Layout, y: Stack, batch: Batch, bounds: list[float]) -> Stack:
    """Sum_b weight_b g_b min(1, C / |g_b|), or each leaf by itself."""
    total = y.zeros()
    for row in range(C):
        for place in range(B):
            gradient = singly(model, layout, y, batch, row, place)
            norms = [float(part.norm()) for part in gradient]
            norms = [math.hypot(*norms)] * len(norms) if len(bounds) == 1 else norms
            limits = bounds * len(norms) if len(bounds) == 1 else bounds
            for leaf, part, norm, bound in zip(total.leaves, gradient, norms, limits, strict=True):
                leaf[row] += batch.weight[row, place] * part * min(1.0, bound / norm)
    return total


def network(name: str, model: nn.Module, layout: Layout) -> Network:
    return ChainNetwork.of(model, layout, CrossEntropy()) or StackedNetwork(model, layout, CrossEntropy())


@pytest.mark.parametrize("by_leaf", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_clipped_gradients_are_those_of_autograd_one_example_at_a_time(name, by_leaf):
    model, layout, y, batch = made(name)
    bounds = [0.3 + 0.1 * place for place in range(len(layout.names))] if by_leaf else [0.7]
    wanted = expected(model, layout, y, batch, bounds)
    networks = [network(name, model, layout), StackedNetwork(model, layout, CrossEntropy())]
    for own in networks:
        losses, found = own.clipped(y, batch, bounds)
        assert torch.allclose(found.flat(), wanted.flat(), rtol=0.0, atol=1e-12)
        assert torch.allclose(losses, own.gradients(y, batch)[0], rtol=1e-12)
        assert [leaf.shape for leaf in found.leaves] == [leaf.shape for leaf in y.leaves]
    assert networks[1]._watched == (name in IN_ONE_PASS)
    for row in range(C):
        own = replace(batch, **{part: getattr(batch, part)[row : row + 1] for part in ("x", "y", "weight")})
        alone = PlainNetwork(model, layout, CrossEntropy()).clipped(y[row : row + 1], own, bounds)[1]
        assert torch.allclose(alone.flat()[0], wanted.flat()[row], rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("name", ["mlp", "cnn", "encoder", "custom"])
def test_a_client_has_the_same_bits_in_any_company(name):
    model, layout, y, batch = made(name, torch.float32)
    own = network(name, model, layout)
    whole = own.clipped(y, batch, [0.7])[1].flat()
    for row in range(C):
        part = slice(row, row + 1)
        given = {one: getattr(batch, one)[part] for one in ("x", "y", "weight")}
        alone = replace(batch, **given, draw=replace(batch.draw, clients=batch.draw.clients[part]))
        assert torch.equal(own.clipped(y[part], alone, [0.7])[1].flat()[0], whole[row])


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_bounds_that_nothing_reaches_leave_gradients_as_they_are(name):
    model, layout, y, batch = made(name)
    own = network(name, model, layout)
    found, plain = own.clipped(y, batch, [1e30])[1], own.gradients(y, batch)[1]
    if name == "mlp":
        assert torch.equal(found.flat(), plain.flat())
    assert torch.allclose(found.flat(), plain.flat(), rtol=0.0, atol=1e-14)


@pytest.mark.parametrize("kind", [StackedNetwork, PlainNetwork])
def test_parts_of_a_gradient_have_memory_of_their_own(kind):
    """Of biases that are added up autograd makes one, which would be scaled twice in place."""
    model, layout, y, batch = made("lstm")
    one = replace(batch, x=batch.x[:1], y=batch.y[:1], weight=batch.weight[:1])
    _, gradient = kind(model, layout, CrossEntropy()).gradients(y[:1], one)
    assert len({leaf.data_ptr() for leaf in gradient.leaves}) == len(gradient.leaves)


def test_a_norm_that_is_zero_is_no_fault():
    model, layout, y, batch = made("mlp")
    found = network("mlp", model, layout).clipped(Stack([torch.zeros_like(leaf) for leaf in y.leaves]), batch, [1e-30])
    assert bool(torch.isfinite(found[1].flat()).all())


def test_nothing_is_noted_where_nobody_watches():
    model, layout, y, batch = made("cnn")
    own = StackedNetwork(model, layout, CrossEntropy())
    with watching() as uses:
        pass
    own.gradients(y, batch)
    assert uses == []


def test_dropout_is_drawn_for_each_example():
    """By its place, so that the examples of a client are not dropped alike."""
    model = prepare(nn.Sequential(nn.Dropout(0.5), Custom())).double()
    layout = Layout.of(dict(model.named_parameters()))
    y = layout.stack(torch.ones(1, layout.dimension, dtype=torch.float64) / 3)
    x = torch.arange(1.0, 7.0, dtype=torch.float64).expand(1, 2, 6)
    targets, weight = torch.zeros(1, 2, dtype=torch.int64), torch.eye(2, dtype=torch.float64).unsqueeze(0)
    own = StackedNetwork(model, layout, CrossEntropy())
    draw = Draw(Streams(0), torch.arange(1), 0, 0)
    first, second = (own.clipped(y, Batch(x, targets, one, draw), [1e9])[1].flat() for one in weight.unbind(1))
    assert not torch.allclose(first, second)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("name", ["mlp", "cnn"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_they_are_those_of_opacus(name, dtype):
    opacus = pytest.importorskip("opacus")
    model, layout, y, batch = made(name, dtype)
    found = network(name, model, layout).clipped(y, batch, [0.7])[1]
    for row in range(2):
        wrapped = opacus.GradSampleModule(copy.deepcopy(model), loss_reduction="sum")
        for leaf, own in zip(y.leaves, wrapped.parameters(), strict=True):
            own.data = leaf[row].clone()
        nn.functional.cross_entropy(wrapped(batch.x[row].clone()), batch.y[row], reduction="sum").backward()
        samples = [own.grad_sample for own in wrapped.parameters()]
        norms = torch.stack([part.flatten(1).norm(dim=1) for part in samples]).norm(dim=0)
        factor = batch.weight[row] * (0.7 / norms).clamp(max=1.0)
        for leaf, part in zip(found.leaves, samples, strict=True):
            assert torch.allclose(leaf[row], torch.tensordot(factor, part, dims=1), rtol=0.0, atol=1e-6)
