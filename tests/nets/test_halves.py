"""What a model's head reads, and losses that see it: stacked, alone and by hand, and held to differences."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedsim.core.errors import BrokenPromiseError, InputError
from fedsim.core.streams import Streams
from fedsim.nets.chain import ChainNetwork
from fedsim.nets.dropout import Draw, NamedDropout
from fedsim.nets.functional import Functional
from fedsim.nets.halves import halves, width_of_features
from fedsim.nets.heads import Taken
from fedsim.nets.layers import Residual
from fedsim.nets.losses import CrossEntropy, FeatureLoss, Loss
from fedsim.nets.modes import without_fast_paths
from fedsim.nets.network import Batch, Network, PlainNetwork, StackedNetwork
from fedsim.nets.normalisation import statistics_of
from fedsim.nets.prepared import prepare
from fedsim.nets.sequences import LastStep, MeanStep, Padded
from fedsim.nets.stack import Layout, Stack

C, B = 4, 5


@dataclass(frozen=True)
class Towards(FeatureLoss):
    """The cross-entropy, and of the mean square of the way from features to a goal, [k, B, h], it and its square."""

    goal: Tensor
    loss: Loss = field(default_factory=CrossEntropy)

    def of(self, features: Tensor, targets: Tensor) -> Tensor:
        away = (features - self.goal).square().mean(dim=-1)
        return (1.0 + 0.5 * targets) * (away + 0.3 * away.square())


class Own(nn.Module):
    """A forward pass of its own, which says its halves by methods."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.scale = nn.Linear(6, 7), nn.Linear(7, 3), nn.Parameter(torch.ones(7))

    def features(self, x: Tensor) -> Tensor:
        return torch.sin(self.first(x)) * self.scale

    def head(self, z: Tensor) -> Tensor:
        return self.second(z) * 2.0

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class Parts(nn.Module):
    """The same by parts, and outputs in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.head = nn.Sequential(nn.Linear(6, 7), nn.BatchNorm1d(7), nn.Tanh()), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class Mine(nn.Sequential):
    """A sequence under another name."""


def tokens(*parts: nn.Module) -> nn.Module:
    return Padded(0, nn.Embedding(9, 6, padding_idx=0), *parts)


def hidden_behind() -> nn.Module:
    """A head that is inside of the last part, and what follows it there."""
    last = nn.Sequential(nn.Linear(7, 6), nn.Sequential(nn.Dropout(0.3), nn.Linear(6, 4), nn.Tanh()), nn.Softplus())
    return nn.Sequential(nn.Linear(6, 7), nn.ReLU(), last, nn.ELU())


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str, int]] = {
    # How it is made, the shape of an example, which layer is the head, and what that reads.
    "relu": (
        lambda: nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 3)), (6,), "4", 5,
    ),
    "tanh": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(6, 7, bias=False), nn.Tanh(), nn.Linear(7, 3)), (2, 3), "3", 7,
    ),
    "dropout": (
        lambda: nn.Sequential(nn.Linear(6, 9), nn.Dropout(0.4), nn.GELU(), nn.Dropout(0.2), nn.Linear(9, 3)),
        (6,), "4", 9,
    ),
    "nested": (hidden_behind, (6,), "2.1.1", 6),
    "another name": (lambda: Mine(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 3)), (6,), "2", 7),
    "images": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
            Residual(nn.Conv2d(4, 4, 3, padding=1), nn.Sequential()), nn.Flatten(), nn.Linear(16, 3),
        ),
        (1, 6, 6), "6", 16,
    ),
    "maps": (  # the head is a convolution, which reads images
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Conv2d(4, 3, 1), nn.ReLU(), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        ),
        (1, 6, 6), "2", 64,
    ),
    "places": (lambda: tokens(nn.LSTM(6, 5, batch_first=True), LastStep(), nn.Linear(5, 3)), (4,), "3", 5),
    "attention": (
        lambda: tokens(
            nn.TransformerEncoderLayer(6, 2, 8, batch_first=True, dropout=0.2), MeanStep(), nn.LayerNorm(6),
            nn.Linear(6, 3),
        ),
        (4,), "4", 6,
    ),
    "methods": (Own, (6,), "second", 7),
    "parts": (Parts, (6,), "head", 7),
    "inside": (lambda: nn.Sequential(nn.Linear(6, 6), nn.Tanh(), Own()), (6,), "2.second", 7),
}  # fmt: skip
CHAINS = ("relu", "tanh")


def made(name: str) -> tuple[nn.Module, Layout, Stack, Batch]:
    factory, shape, _, width = MODELS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = prepare(factory()).double()
        layout = Layout.of(dict(model.named_parameters()), statistics_of(model))
        rows = torch.randn(C, layout.dimension, dtype=torch.float64) * 0.3
        rows[:, layout.trained_numbers :] = 0.5 + rows[:, layout.trained_numbers :].abs()
        whole = isinstance(model, Padded)
        x = torch.randint(1, 9, (C, B, *shape)) if whole else torch.randn(C, B, *shape, dtype=torch.float64)
        if whole:
            x[:, ::2, -1] = 0
        y = torch.randint(0, 3, (C, B))
        goal = torch.randn(C, B, width, dtype=torch.float64)
    weight = torch.full((C, B), 1.0 / B, dtype=torch.float64)
    weight[2] = torch.tensor([1, 1, 1, 0, 0], dtype=torch.float64) / 3  # a partial batch
    return (
        model,
        layout,
        layout.stack(rows),
        Batch(x, y, weight, Draw(Streams(0), torch.arange(C), 0, 0), Towards(goal)),
    )


def networks(model: nn.Module, layout: Layout) -> list[Network]:
    chain = ChainNetwork.of(model, layout, CrossEntropy())
    stacked: list[Network] = [StackedNetwork(model, layout, CrossEntropy())]
    return stacked + ([] if chain is None else [chain])


def one(batch: Batch, row: int) -> Batch:
    """The batch of one client, without its padding."""
    own, count = slice(row, row + 1), int((batch.weight[row] > 0).sum())
    draw = replace(batch.draw, clients=batch.draw.clients[own])
    assert isinstance(batch.loss, Towards)
    alone = Batch(batch.x[own], batch.y[own], batch.weight[own], draw, Towards(batch.loss.goal[own, :count]))
    return alone.cut(count)


def copied(stack: Stack) -> Stack:
    return Stack([leaf.clone() for leaf in stack.leaves])


@pytest.mark.parametrize("name", MODELS)
def test_features_are_what_the_head_reads_in_every_network(name):
    _, _, layer, width = MODELS[name]
    model, layout, y, batch = made(name)
    plain, read, expected = PlainNetwork(model, layout, CrossEntropy()), list[Tensor](), list[Tensor]()
    named = {**dict(model.named_parameters()), **statistics_of(model)}
    for row in range(C):
        for key, leaf in zip(layout.names, y.leaves, strict=True):
            named[key].data.copy_(leaf[row])
        hook = model.get_submodule(layer).register_forward_pre_hook(lambda _, given: read.append(given[0]))
        with torch.no_grad(), without_fast_paths:
            model(batch.x[row])
        hook.remove()
        expected.append(read.pop().flatten(1))
    for network in [plain, *networks(model, layout)]:
        found = network.features(y, batch.x)
        assert found.shape == (C, B, width)
        assert not found.requires_grad
        assert torch.allclose(found, torch.stack(expected), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_losses_of_features_have_the_gradients_of_the_plain_module(name):
    model, layout, y, batch = made(name)
    plain = PlainNetwork(model, layout, CrossEntropy())
    apart = [(plain.gradients(own := copied(y[row : row + 1]), one(batch, row)), own) for row in range(C)]
    losses = torch.cat([found[0] for found, _ in apart])
    gradients = torch.cat([found[1].flat() for found, _ in apart])
    found = networks(model, layout)
    assert (len(found) == 2) == (name in CHAINS)
    for network in found:
        at = copied(y)
        loss, gradient = network.gradients(at, batch)
        assert torch.allclose(loss, losses, rtol=1e-12, atol=0)
        assert torch.allclose(gradient.flat(), gradients, rtol=0, atol=1e-12)
        # A training pass moves statistics once, not once for features and once for outputs.
        assert torch.allclose(at.flat(), torch.cat([moved.flat() for _, moved in apart]), rtol=0, atol=1e-12)
        alone = copied(y[:1])
        assert torch.equal(network.gradients(alone, cut(batch, 1))[1].flat()[0], gradient.flat()[0])
    # The loss is no function of outputs alone, which all of this would pass.
    other = replace(batch, loss=CrossEntropy())
    assert not torch.allclose(found[0].gradients(copied(y), other)[1].flat(), gradients, rtol=0, atol=1e-3)


def cut(batch: Batch, count: int) -> Batch:
    """The first clients of a batch."""
    draw, loss = replace(batch.draw, clients=batch.draw.clients[:count]), batch.loss
    assert isinstance(loss, Towards)
    return Batch(batch.x[:count], batch.y[:count], batch.weight[:count], draw, Towards(loss.goal[:count]))


@pytest.mark.parametrize("name", ["relu", "tanh", "maps", "methods"])
def test_gradients_and_curvature_of_features_are_those_of_differences(name):
    """(f(y + e v) - f(y - e v)) / 2 e is <g, v>, and the same of gradients is H v, for a smooth loss; e = 1e-5."""
    model, layout, y, batch = made(name)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        v = layout.stack(torch.randn(C, layout.dimension, dtype=torch.float64))
    e = 1e-5
    there, back = copied(y).add_(v, e), copied(y).add_(v, -e)
    for network in networks(model, layout):
        slope = (network.values(there, batch) - network.values(back, batch)) / (2 * e)
        gradient = network.gradients(y, batch)[1]
        assert torch.allclose((gradient.flat() * v.flat()).sum(dim=1), slope, rtol=0, atol=1e-7)
        values, along = network.derivatives(y, v, batch)
        assert torch.allclose(values, network.values(y, batch), rtol=1e-12)
        assert torch.allclose(along, slope, rtol=0, atol=1e-7)
        with without_fast_paths:
            _, same, curved = network.products(y, batch, v)
        change = (network.gradients(there, batch)[1].flat() - network.gradients(back, batch)[1].flat()) / (2 * e)
        assert torch.allclose(same.flat(), gradient.flat(), rtol=0, atol=1e-12)
        assert torch.allclose(curved.flat(), change, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["relu", "images", "methods"])
def test_values_and_derivatives_of_one_client_are_those_of_the_stack(name):
    model, layout, y, batch = made(name)
    plain, stacked = PlainNetwork(model, layout, CrossEntropy()), StackedNetwork(model, layout, CrossEntropy())
    assert torch.allclose(plain.values(y, batch), stacked.values(y, batch), rtol=1e-12)
    if name != "images":
        with torch.random.fork_rng():
            torch.manual_seed(4)
            v = layout.stack(torch.randn(C, layout.dimension, dtype=torch.float64))
        for one_way, other in zip(plain.derivatives(y, v, batch), stacked.derivatives(y, v, batch), strict=True):
            assert torch.allclose(one_way, other, rtol=1e-10)


def test_a_step_is_what_its_rule_says():
    """y - lr (gradient + decay y), fused or not, whatever stands in the places of padding."""
    model, layout, y, batch = made("relu")
    padding = batch.weight == 0
    for network in networks(model, layout):
        expected = y.flat() - 0.1 * (network.gradients(copied(y), batch)[1].flat() + 0.3 * y.flat())
        for x in (batch.x, batch.x.masked_fill(padding.unsqueeze(2), 7.0)):
            stepped = copied(y)
            network.descend(stepped, replace(batch, x=x), 0.1, decay=0.3)
            assert torch.allclose(stepped.flat(), expected, rtol=0, atol=1e-12)


@dataclass(frozen=True)
class Told(FeatureLoss):
    """Notes what it sees."""

    seen: list[Tensor]
    loss: Loss

    def of(self, features: Tensor, targets: Tensor) -> Tensor:
        self.seen.append(features.detach())
        return features.sum(dim=-1)


@dataclass(frozen=True)
class Noted(Loss):
    """Notes outputs."""

    seen: list[Tensor]

    def examples(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.seen.append(outputs.detach())
        return CrossEntropy().examples(outputs, targets)


def test_features_and_outputs_are_of_one_pass_with_one_dropout():
    model, layout, y, batch = made("dropout")
    seen = []
    for network in [*networks(model, layout), PlainNetwork(model, layout, CrossEntropy())]:
        for row in range(C) if not network.stacked else [slice(None)]:
            notes: list[Tensor] = []
            own, rows = (batch, y) if network.stacked else (one(batch, row), y[row : row + 1])
            network.gradients(rows, replace(own, loss=Told(notes, Noted(notes))))
            outputs, features = notes
            weight, bias = rows.leaves[-2:]
            expected = torch.einsum("kbh,koh->kbo", features, weight) + bias.unsqueeze(1)
            assert torch.allclose(outputs, expected, rtol=0, atol=1e-12)
            seen.append(features)
    assert (seen[0] == 0).any()  # dropped
    for row in range(C):
        count = seen[1 + row].shape[1]
        assert torch.allclose(seen[1 + row][0], seen[0][row, :count], rtol=0, atol=1e-12)


def test_outputs_of_a_head_that_is_taken_out_are_those_of_the_whole():
    model = prepare(nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 1))).double()
    model.register_forward_hook(Taken(binary=True))
    body, head = halves(model)
    x = torch.linspace(-1, 1, 12, dtype=torch.float64).view(2, 6)
    assert torch.equal(head(body(x)), model(x))
    assert model(x).shape == (2, 2)
    assert body(x).shape == (2, 7)
    layout = Layout.of(dict(model.named_parameters()))
    y = layout.stack(layout.flatten(dict(model.named_parameters())), C)
    batch = Batch(
        x.expand(C, 2, 6), torch.zeros(C, 2, dtype=torch.int64), torch.full((C, 2), 0.5, dtype=torch.float64),
        Draw(Streams(0), torch.arange(C), 0, 0), Towards(torch.zeros(C, 2, 7, dtype=torch.float64)),
    )  # fmt: skip
    found = StackedNetwork(model, layout, CrossEntropy()).gradients(y, batch)
    alone = PlainNetwork(model, layout, CrossEntropy()).gradients(y[:1], cut(batch, 1))
    assert torch.allclose(found[1].flat()[:1], alone[1].flat(), rtol=0, atol=1e-12)


def test_a_module_goes_into_processes_and_takes_its_halves_along():
    model, _, y, batch = made("inside")
    again = pickle.loads(pickle.dumps(Functional(model)))
    named = dict(zip(names(model), (leaf[0] for leaf in y.leaves), strict=True))
    first, _ = Functional(model).with_features(named, batch.x[0])
    second, _ = again.with_features(named, batch.x[0])
    assert torch.equal(first, second)


def names(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters()]


class Undeclared(nn.Module):
    """Its features are a local variable."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


class Elsewhere(Undeclared):
    """Methods of these names that are about something else."""

    def features(self, x: Tensor) -> Tensor:
        return self.first(x)

    def head(self, z: Tensor) -> Tensor:
        return self.second(z)


class Failing(Elsewhere):
    def head(self, z: Tensor) -> Tensor:
        return self.second(z[:, :3])


class Several(Elsewhere):
    def features(self, x: Tensor) -> Any:
        return self.first(x), x

    def head(self, z: Any) -> Tensor:
        return self.second(torch.tanh(z[0]))


def hooked() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 3))
    model.register_forward_hook(lambda _, given, found: found)
    return model


def frozen() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 3))
    model[0].requires_grad_(False)
    return model


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (Undeclared, r"Undeclared: has a forward pass of its own.*features\(x\) and head\(z\)"),
        (lambda: nn.Sequential(nn.Linear(6, 6), Undeclared()), "Undeclared: has a forward pass of its own"),
        (Elsewhere, r"is not head\(features\(x\)\)"),
        (Failing, "fail: .*shapes"),
        (Several, "no tensor of floats"),
        (hooked, "hung on it"),
        (lambda: nn.Sequential(hooked()), "hung on it"),
        (frozen, "nothing is trained before its head"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(6, 3)), "nothing is trained before its head"),
        (lambda: nn.Sequential(nn.Linear(6, 6), Residual(nn.Linear(6, 6), nn.Sequential())), "Residual"),
    ],
)
def test_a_model_whose_features_are_not_known_is_refused_in_a_line(model, why):
    with pytest.raises(InputError, match=why) as refused:
        width_of_features(prepare(model()), torch.ones(2, 6))
    assert "\n" not in str(refused.value)


def test_a_head_that_reads_places_is_refused():
    model = prepare(Padded(0, nn.Embedding(9, 6), nn.Linear(6, 5), MeanStep()))
    with pytest.raises(InputError, match="reads places"):
        halves(model)


def test_a_loss_of_features_is_not_asked_without():
    with pytest.raises(BrokenPromiseError, match="without them"):
        Towards(torch.zeros(1)).examples(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64))


def test_dropout_is_a_part_of_both_halves_by_its_name():
    model, *_ = made("nested")
    body, head = halves(model)
    assert [part.name for part in body.modules() if isinstance(part, NamedDropout)] == ["2.1.0"]
    assert list(dict(head.named_parameters())) == ["2.1.1.weight", "2.1.1.bias"]
    assert {*names(body), *names(head)} == {*names(model)}
