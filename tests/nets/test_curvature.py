"""Products with Hessians and linearised outputs, held to differences of gradients, to the plain module, and alone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fedsim.core.errors import InputError
from fedsim.core.streams import Streams
from fedsim.nets import curvature
from fedsim.nets.chain import ChainNetwork
from fedsim.nets.dropout import Draw
from fedsim.nets.losses import CrossEntropy, LogCosh, Loss, SquaredError
from fedsim.nets.modes import without_fast_paths
from fedsim.nets.network import Batch, Network, PlainNetwork, StackedNetwork
from fedsim.nets.normalisation import statistics_of
from fedsim.nets.prepared import prepare
from fedsim.nets.sequences import LastStep, MeanStep
from fedsim.nets.stack import Layout, Stack
from fedsim.parallel.cores import one_core_an_operation

C, B, V, W = 3, 4, 7, 8


class Sine(nn.Module):
    """A forward pass of its own, with attention and normalisation that `vmap` has to take."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.sin(self.norm(self.first(x))).view(len(x), 2, 2, 2)
        return self.last(nn.functional.scaled_dot_product_attention(h, h, h).flatten(1))


def encoder() -> nn.Module:
    return nn.TransformerEncoderLayer(W, 2, 6, batch_first=True, dropout=0.3, activation="gelu")


def among(*parts: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Embedding(V, W, padding_idx=0), *parts)


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "relu": (lambda: nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 3)), (6,)),
    "tanh": (lambda: nn.Sequential(nn.Linear(6, 7, bias=False), nn.Tanh(), nn.Linear(7, 3)), (6,)),
    "linear": (lambda: nn.Sequential(nn.Linear(6, 3)), (6,)),
    "dropout": (lambda: nn.Sequential(nn.Linear(6, 9), nn.GELU(), nn.Dropout(0.4), nn.Linear(9, 3)), (6,)),
    "images": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, stride=2, padding=1, dilation=(1, 2)), nn.BatchNorm2d(4), nn.Softplus(), nn.MaxPool2d(2),
            nn.Conv2d(4, 3, 1, bias=False), nn.Flatten(), nn.Linear(6, 3),
        ),
        (2, 8, 7),
    ),
    "its own": (Sine, (6,)),
    "lstm": (lambda: among(nn.LSTM(W, 4, batch_first=True), LastStep(), nn.Linear(4, 3)), ()),
    "encoder": (lambda: among(encoder(), MeanStep(), nn.Linear(W, 3)), ()),
}  # fmt: skip
CHAINS = ("relu", "tanh", "linear")


def made(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Layout, Stack, Batch, Stack]:
    """A model, clients with parameters of their own and a batch, one of them with padding, and directions."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        factory, shape = MODELS[name]
        model = prepare(factory()).to(dtype)
        layout = Layout.of(dict(model.named_parameters()), statistics_of(model))
        y = layout.stack(torch.randn(C, layout.dimension, dtype=dtype) * 0.4)
        for leaf in y.leaves[layout.trained :]:
            leaf.abs_()
        x = torch.randn(C, B, *shape, dtype=dtype) if shape else torch.randint(1, V, (C, B, 5))
        targets, v = torch.randint(0, 3, (C, B)), Stack([torch.randn_like(leaf) for leaf in layout.moved(y).leaves])
    weight = torch.full((C, B), 1.0 / B, dtype=dtype)
    weight[1] = torch.tensor([1, 1, 1, 0], dtype=dtype) / 3
    return model, layout, y, Batch(x, targets, weight, Draw(Streams(0), torch.arange(C), 2, 5)), v


def networks(name: str, model: nn.Module, layout: Layout, loss: Loss) -> list[Network]:
    chain = ChainNetwork.of(model, layout, loss)
    assert (chain is not None) == (name in CHAINS)
    return [StackedNetwork(model, layout, loss), *([] if chain is None else [chain])]


def row(batch: Batch, own: slice) -> Batch:
    draw = Draw(batch.draw.streams, batch.draw.clients[own], batch.draw.turn, batch.draw.step)
    return Batch(batch.x[own], batch.y[own], batch.weight[own], draw)


def at(y: Stack, v: Stack, step: float) -> Stack:
    """y + step v, with statistics that nobody moves."""
    moved = [leaf + step * own for leaf, own in zip(y.leaves, v.leaves, strict=False)]
    return Stack([*moved, *(leaf.clone() for leaf in y.leaves[len(moved) :])])


def difference(network: Network, y: Stack, batch: Batch, v: Stack) -> Tensor:
    """H v, by central differences of gradients under the same dropout."""
    with without_fast_paths:
        ahead, behind = (network.gradients(at(y, v, way * 1e-5), batch)[1].flat() for way in (1, -1))
    return (ahead - behind) / 2e-5


@pytest.mark.parametrize("name", MODELS)
def test_products_are_differences_of_gradients_in_a_stack_and_alone(name):
    model, layout, y, batch, v = made(name)
    loss = CrossEntropy()
    expected = None
    for network in networks(name, model, layout, loss):
        losses, gradient, product = network.products(at(y, v, 0.0), batch, v)
        with without_fast_paths:
            right, wanted = network.gradients(at(y, v, 0.0), batch)
        assert torch.allclose(losses, right, rtol=1e-12)
        assert torch.allclose(gradient.flat(), wanted.flat(), rtol=0, atol=1e-12)
        assert torch.allclose(product.flat(), difference(network, y, batch, v), rtol=1e-6, atol=1e-7)
        assert float(product.flat().abs().max()) > 0.01
        assert expected is None or torch.allclose(product.flat(), expected, rtol=0, atol=1e-12)
        expected = product.flat()
    plain = PlainNetwork(model, layout, loss)
    for client in range(C):
        own = slice(client, client + 1)
        count = int((batch.weight[client] > 0).sum())
        found = plain.products(at(y[own], v[own], 0.0), row(batch, own).cut(count), v[own])[2]
        assert torch.allclose(found.flat(), expected[own], rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", MODELS)
def test_a_row_alone_has_the_bits_that_it_has_in_the_stack(name, dtype):
    model, layout, y, batch, v = made(name, dtype)
    for network in networks(name, model, layout, CrossEntropy()):
        with one_core_an_operation():
            everything = network.products(at(y, v, 0.0), batch, v)
        for client in range(C):
            own = slice(client, client + 1)
            with one_core_an_operation():
                alone = network.products(at(y[own], v[own], 0.0), row(batch, own), v[own])
            assert torch.equal(alone[0], everything[0][own])
            for some, all_ in zip(alone[1:], everything[1:], strict=True):
                assert torch.equal(some.flat(), all_[own].flat())


def test_a_chain_knows_losses_that_have_no_curvature_everywhere():
    """The absolute error's is 0; a loss of numbers in a chain of one output, as by two backward passes."""
    model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    layout, (_, _, _, batch, _) = Layout.of(dict(model.named_parameters())), made("relu")
    with torch.random.fork_rng():
        torch.manual_seed(2)
        y, v = (layout.stack(torch.randn(C, layout.dimension, dtype=torch.float64)) for _ in range(2))
    own = Batch(batch.x, batch.y.double(), batch.weight, batch.draw)
    for loss in (LogCosh(), SquaredError()):
        chain, stacked = ChainNetwork.of(model, layout, loss), StackedNetwork(model, layout, loss)
        assert chain is not None
        found, expected = (network.products(y, own, v)[2].flat() for network in (chain, stacked))
        assert torch.allclose(found, expected, rtol=0, atol=1e-12)


class Once(torch.autograd.Function):
    """A function whose backward pass has none."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2.0 * ctx.saved_tensors[0] * grad


class Squared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        squared: Tensor = Once.apply(self.layer(x))
        return squared


def test_a_layer_without_a_second_derivative_is_refused_in_one_line():
    model = prepare(Squared()).double()
    layout, (_, _, _, batch, _) = Layout.of(dict(model.named_parameters())), made("relu")
    y = layout.stack(torch.ones(1, layout.dimension, dtype=torch.float64))
    with pytest.raises(InputError, match=r"problem\.model = .*no second derivative") as refused:
        PlainNetwork(model, layout, CrossEntropy()).products(y, row(batch, slice(0, 1)), y)
    assert "\n" not in str(refused.value)


def test_fast_paths_rest_until_the_last_thread_is_out():
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with without_fast_paths:
            entered.set()
            leave.wait(5)

    thread = threading.Thread(target=other)
    with without_fast_paths:
        thread.start()
        entered.wait(5)
    assert not torch.backends.mkldnn.enabled
    assert not torch.backends.cuda.flash_sdp_enabled()
    leave.set()
    thread.join()
    assert torch.backends.mkldnn.enabled
    assert torch.backends.cuda.flash_sdp_enabled()


@pytest.mark.parametrize("name", ["relu", "tanh", "dropout", "its own"])
def test_linearised_outputs_are_those_of_small_steps(name):
    """J v is the outputs' change along v, <u, J v> = <J' u, v>, and J J' is what these make of unit vectors."""
    model, layout, y, batch, v = made(name)
    for network in networks(name, model, layout, CrossEntropy()):
        with without_fast_paths:
            here = network.linearised(at(y, v, 0.0), batch)
            ahead, behind = (network.linearised(at(y, v, way * 1e-5), batch).outputs for way in (1, -1))
            pushed, gram = here.push(v), here.gram()
        real = (batch.weight > 0).unsqueeze(2)
        assert torch.allclose(pushed * real, (ahead - behind) * real / 2e-5, rtol=1e-6, atol=1e-7)
        u = torch.sin(torch.arange(here.outputs.numel(), dtype=torch.float64)).view_as(here.outputs)
        pulled = here.pull(u)
        assert torch.allclose((pulled.flat() * v.flat()).sum(1), (u * pushed).flatten(1).sum(1), rtol=1e-10)
        assert torch.allclose((gram @ u.flatten(1).unsqueeze(2)).view_as(u), here.push(pulled), rtol=0, atol=1e-10)


def test_too_many_derivatives_of_outputs_are_refused_in_one_line(monkeypatch):
    model, layout, y, batch, _ = made("dropout")
    monkeypatch.setattr(curvature, "KEPT", B * 3 * layout.trained_numbers - 1)
    linearised = StackedNetwork(model, layout, CrossEntropy()).linearised(y, batch)
    with pytest.raises(InputError, match=r"client\.batch_size = outputs: .*smaller batches") as refused:
        linearised.gram()
    assert "\n" not in str(refused.value)
    monkeypatch.setattr(curvature, "KEPT", B * 3 * layout.trained_numbers)
    assert linearised.gram().shape == (C, B * 3, B * 3)
