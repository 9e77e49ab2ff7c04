"""Stacked networks held to the plain module, layer by layer, and fused steps to their own gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedsim.core.errors import InputError
from fedsim.core.plugins import make
from fedsim.core.streams import Streams
from fedsim.nets.chain import ChainNetwork
from fedsim.nets.dropout import Draw
from fedsim.nets.footprint import footprint
from fedsim.nets.losses import CrossEntropy
from fedsim.nets.network import Batch, Network, PlainNetwork, StackedNetwork
from fedsim.nets.prepared import prepare
from fedsim.nets.sequences import MeanStep
from fedsim.nets.stack import Layout, Stack
from fedsim.problems.models.convolutional import CNN, LeNet, ResNet
from fedsim.problems.models.dense import MLP, Logistic
from fedsim.problems.models.layers import initialise
from fedsim.problems.models.recurrent import LSTM
from fedsim.testing.problems import mlp

C, B = 4, 5


class Custom(nn.Module):
    """A module with a forward pass of its own, which only vmap can stack."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.scale = nn.Linear(6, 7), nn.Linear(7, 3), nn.Parameter(torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.sin(self.first(x))) * self.scale


def built(kind: object, shape: tuple[int, ...], vocabulary: int = 0) -> nn.Module:
    module = kind.build(shape, vocabulary or 3, vocabulary)  # type: ignore[attr-defined]
    initialise(module, Streams(0))
    return module


MODELS = {
    "logistic": (lambda: built(Logistic(zero=False), (6,)), (6,)),
    "mlp": (lambda: built(MLP(hidden=(8, 5)), (6,)), (6,)),
    "tanh": (lambda: built(MLP(hidden=(8,), activation="tanh"), (2, 3)), (2, 3)),
    "no bias": (lambda: nn.Sequential(nn.Linear(6, 4, bias=False), nn.ReLU(), nn.Linear(4, 3)), (6,)),
    "lenet": (lambda: built(LeNet(), (1, 28, 28)), (1, 28, 28)),
    "cnn": (lambda: nn.Sequential(*list(built(CNN(), (1, 8, 8)))), (1, 8, 8)),
    "resnet": (lambda: built(ResNet(width=4), (3, 8, 8)), (3, 8, 8)),
    "layer norm": (lambda: nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3)), (6,)),
    "strided": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, stride=2, padding=1, dilation=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(4, 3),
        ),
        (2, 9, 9),
    ),
    "custom": (Custom, (6,)),
    "custom inside": (lambda: nn.Sequential(nn.Linear(6, 6), Custom()), (6,)),
}  # fmt: skip


def made(name: str) -> tuple[nn.Module, Stack, Layout, Batch]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        factory, shape = MODELS[name]
        model = prepare(factory()).double()
        layout = Layout.of(dict(model.named_parameters()))
        rows = torch.randn(C, layout.dimension, dtype=torch.float64) * 0.2
        x = torch.randn(C, B, *shape, dtype=torch.float64)
        y = torch.randint(0, 3, (C, B))
    weight = torch.full((C, B), 1.0 / B, dtype=torch.float64)
    weight[2] = torch.tensor([1, 1, 1, 0, 0], dtype=torch.float64) / 3  # a partial batch
    return model, layout.stack(rows), layout, Batch(x, y, weight, Draw(Streams(0), torch.arange(C), 0, 0))


def one_by_one(network: Network, y: Stack, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    losses, rows = [], []
    for row in range(C):
        own = slice(row, row + 1)
        draw = Draw(batch.draw.streams, batch.draw.clients[own], batch.draw.turn, batch.draw.step)
        loss, gradient = network.gradients(y[own], Batch(batch.x[own], batch.y[own], batch.weight[own], draw))
        losses.append(loss)
        rows.append(gradient.flat())
    return torch.cat(losses), torch.cat(rows)


@pytest.mark.parametrize("name", MODELS)
def test_stacked_gradients_are_those_of_the_plain_module(name):
    model, y, layout, batch = made(name)
    loss = CrossEntropy()
    losses, gradients = one_by_one(PlainNetwork(model, layout, loss), y, batch)
    networks: list[Network] = [StackedNetwork(model, layout, loss)]
    chain = ChainNetwork.of(model, layout, loss)
    assert (chain is not None) == (name in ("logistic", "mlp", "tanh", "no bias"))
    for network in [*networks, *([chain] if chain else [])]:
        found, gradient = network.gradients(y, batch)
        assert torch.allclose(found, losses, rtol=1e-10)
        assert torch.allclose(gradient.flat(), gradients, rtol=0, atol=1e-10)


def test_lstm_is_that_of_the_plain_module():
    model = prepare(built(LSTM(embedding=3, hidden=5, layers=2), (7,), vocabulary=11)).double()
    layout = Layout.of(dict(model.named_parameters()))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        y = layout.stack(torch.randn(C, layout.dimension, dtype=torch.float64) * 0.3)
        x, targets = torch.randint(0, 11, (C, B, 7)), torch.randint(0, 11, (C, B))
    weight = torch.full((C, B), 1 / B, dtype=torch.float64)
    batch = Batch(x, targets, weight, Draw(Streams(0), torch.arange(C), 0, 0))
    loss = CrossEntropy()
    losses, gradients = one_by_one(PlainNetwork(model, layout, loss), y, batch)
    found, gradient = StackedNetwork(model, layout, loss).gradients(y, batch)
    assert torch.allclose(found, losses, rtol=1e-10)
    assert torch.allclose(gradient.flat(), gradients, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["mlp", "no bias", "custom", "tanh"])
@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
def test_a_step_is_what_its_rule_says(name, loss):
    """y - lr * (gradient + decay * y - shift), fused or not."""
    model, y, layout, batch = made(name)
    if loss == "squared_error":
        model, layout, y, batch = regression()
    chain = ChainNetwork.of(model, layout, make("losses", loss, "loss"))
    networks: list[Network] = [StackedNetwork(model, layout, make("losses", loss, "loss")), *([chain] if chain else [])]
    for network in networks:
        with torch.random.fork_rng():
            torch.manual_seed(3)
            shift = layout.stack(torch.randn(C, layout.dimension, dtype=torch.float64))
        before = y.flat()
        _, gradient = network.gradients(y, batch)
        stepped = layout.stack(before)
        network.descend(stepped, batch, 0.1, decay=0.3, shift=shift)
        expected = before - 0.1 * (gradient.flat() + 0.3 * before - shift.flat())
        assert torch.allclose(stepped.flat(), expected, rtol=0, atol=1e-12)
        assert torch.equal(y.flat(), before)
        rates = torch.tensor([0.1, 0.0, 0.5, 0.02][:C], dtype=torch.float64)
        apart = layout.stack(before)
        network.descend(apart, batch, rates, decay=0.3, shift=shift)
        expected = before - rates.unsqueeze(1) * (gradient.flat() + 0.3 * before - shift.flat())
        assert torch.allclose(apart.flat(), expected, rtol=0, atol=1e-12)
        for client in range(C):  # whoever is in the stack beside it
            own = slice(client, client + 1)
            alone = Stack([leaf[own].clone() for leaf in layout.stack(before).leaves])
            data = Batch(batch.x[own], batch.y[own], batch.weight[own], batch.draw)
            network.descend(alone, data, rates[own], decay=0.3, shift=shift[own])
            assert torch.equal(alone.flat()[0], apart.flat()[client])


def regression() -> tuple[nn.Module, Layout, Stack, Batch]:
    model = mlp(6, 1).double()
    layout = Layout.of(dict(model.named_parameters()))
    with torch.random.fork_rng():
        torch.manual_seed(2)
        y = layout.stack(torch.randn(C, layout.dimension, dtype=torch.float64))
        x, targets = torch.randn(C, B, 6, dtype=torch.float64), torch.randn(C, B, dtype=torch.float64)
    weight = torch.full((C, B), 1.0 / B, dtype=torch.float64)
    return model, layout, y, Batch(x, targets, weight, Draw(Streams(0), torch.arange(C), 0, 0))


def test_dropout_draws_by_name_and_alike_in_every_network():
    model = prepare(nn.Sequential(nn.Linear(6, 50), nn.ReLU(), nn.Dropout(0.4), nn.Linear(50, 3))).double()
    layout = Layout.of(dict(model.named_parameters()))
    _, _, _, batch = made("mlp")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        y = layout.stack(torch.randn(C, layout.dimension, dtype=torch.float64))
    loss = CrossEntropy()
    losses, gradients = one_by_one(PlainNetwork(model, layout, loss), y, batch)
    found, gradient = StackedNetwork(model, layout, loss).gradients(y, batch)
    assert torch.allclose(found, losses)
    assert torch.allclose(gradient.flat(), gradients, atol=1e-10)
    other = Batch(batch.x, batch.y, batch.weight, Draw(Streams(0), torch.arange(C), 0, 1))
    assert not torch.allclose(StackedNetwork(model, layout, loss).gradients(y, other)[0], losses)


@pytest.mark.parametrize(
    ("model", "part"),
    [
        (nn.Sequential(nn.Linear(3, 3), nn.SyncBatchNorm(3)), "BatchNorm1d"),
        (nn.BatchNorm1d(3, momentum=None), "momentum"),
        (nn.BatchNorm1d(3, track_running_stats=False), "track_running_stats"),
        (nn.Sequential(nn.Dropout2d(0.2)), "torch.nn.Dropout"),
        (type("Own", (nn.LSTM,), {})(3, 3, num_layers=2, dropout=0.5), "torch.nn.Dropout"),
    ],
)
def test_what_cannot_be_simulated_exactly_is_refused_with_a_remedy(model, part):
    with pytest.raises(InputError, match=part):
        prepare(model)


def test_a_footprint_counts_each_place_of_a_sequence():
    """Linear of 3 to 8 at 5 places; attention of 8 with its 3 products, and 25 pairs of places twice; 8 to 2 once."""

    def model(dropout: float) -> nn.Module:
        layer = nn.TransformerEncoderLayer(8, 2, 6, dropout, batch_first=True)
        return prepare(nn.Sequential(nn.Linear(3, 8), layer, MeanStep(), nn.Linear(8, 2)))

    extra = (5 - 1) * (3 * 8 + 3 * 64 + 64 + 2 * 48) + 2 * 25 * 8
    found, still = (footprint(model(dropout), torch.ones(1, 5, 3)) for dropout in (0.3, 0.0))
    assert found.operations == sum(own.numel() for own in model(0.3).parameters()) + extra
    # Without dropout no weights of 2 heads are kept, thrice.
    assert found.activations == still.activations + 3 * 2 * 25
