"""What bitwise reproducibility rests on: rows of batched products do not depend on their company or their place."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from clients.sgd import Sgd
from fedsim.nets import products
from fedsim.nets.convolution import batch_last
from fedsim.nets.elementwise import in_whole_registers
from fedsim.nets.losses import LogCosh
from fedsim.nets.lowering import ELEMENTWISE, EXPONENTIAL, lower
from fedsim.parallel.cores import one_core_an_operation
from fedsim.zeroth_order.surrogates.gaussian_process import product

CLIENTS = 30
PRECISIONS = [torch.float32, torch.float64]
SIZES = [(20, 10), (64, 33), (33, 10), (20, 1), (1, 10), (1, 1), (7, 1), (1, 64), (300, 1), (2, 300)]
"""Inputs and outputs of a layer, most of them with a dimension of 1; with some batches fewer than 400 products, with
others more, from which on MKL makes them.
"""


@pytest.fixture(autouse=True)
def one_core() -> Iterator[None]:
    with one_core_an_operation():
        yield


def drawn(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(CLIENTS, *shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def assert_company_is_irrelevant(name: str, product: Callable[..., Tensor], *operands: Tensor) -> None:
    """Cohorts of 1 to 8 and of 29 clients, from anywhere in the stack of 30, which itself is `whole`."""
    whole = product(*operands)
    for count in (1, 2, 3, 4, 5, 6, 7, 8, 29):
        for first in {0, count % 5, 7, CLIENTS - count}:
            rows = slice(first, min(first + count, CLIENTS))
            found = product(*(part[rows].clone(memory_format=torch.preserve_format) for part in operands))
            assert torch.equal(found, whole[rows]), (name, rows)


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("batch", [2, 5, 16, 33, 64, 450])
@pytest.mark.parametrize(("inputs", "outputs"), SIZES)
def test_rows_do_not_depend_on_their_company(batch, inputs, outputs, dtype):
    x, w, b = (
        drawn(batch, inputs, dtype=dtype),
        drawn(outputs, inputs, dtype=dtype, seed=1),
        drawn(1, outputs, dtype=dtype),
    )
    delta = drawn(batch, outputs, dtype=dtype, seed=2)
    kinds = {
        "forward": (lambda b, x, w: products.baddbmm(b, x, w.mT), (b, x, w)),
        "forward without bias": (lambda x, w: products.bmm(x, w.mT), (x, w)),
        "backward": (products.bmm, (delta, w)),
        "gradient": (lambda delta, x: products.bmm(delta.mT, x), (delta, x)),
        "update": (updated, (w, delta, x)),
        "bias": (lambda b, delta: b.clone().add_(delta.sum(dim=1, keepdim=True), alpha=-0.1), (b, delta)),
        "loss": (
            lambda weight, loss: products.bmm(weight.unsqueeze(1), loss.unsqueeze(2)),
            (x[:, :, 0].contiguous(), delta[:, :, 0].contiguous()),  # as its parts, which are copies
        ),
        "process": (lambda x, w: product(x, w.mT), (x, w)),
    }
    for name, (made, operands) in kinds.items():
        assert_company_is_irrelevant(name, made, *operands)


def updated(w: Tensor, delta: Tensor, x: Tensor) -> Tensor:
    """A step of `ChainNetwork.descend`."""
    w = w.clone()
    products.baddbmm_(w, delta.mT, x, beta=0.9, alpha=-0.1)
    return w


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("batch", [1, 2, 20, 450])
@pytest.mark.parametrize(("inputs", "outputs"), SIZES)
def test_products_of_one_layout_or_another_do_not_depend_on_their_company(batch, inputs, outputs, dtype):
    left, right, start = (
        drawn(*shape, dtype=dtype, seed=seed)
        for seed, shape in enumerate([(batch, inputs), (inputs, outputs), (batch, outputs)])
    )
    for one in (left, left.mT.contiguous().mT):
        for other in (right, right.mT.contiguous().mT):
            assert_company_is_irrelevant("bmm", products.bmm, one, other)
            assert_company_is_irrelevant("baddbmm", products.baddbmm, start, one, other)


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize(("inputs", "outputs"), [*SIZES, (6, 1000), (50, 1001), (1000, 50), (10_000, 3)])
def test_rows_of_a_shared_product_do_not_depend_on_how_many_there_are(inputs, outputs, dtype):
    rows, matrix = drawn(inputs, dtype=dtype), drawn(inputs * outputs, dtype=dtype, seed=1)[0]
    for shared in (matrix.view(inputs, outputs), matrix.view(outputs, inputs).T):
        assert_company_is_irrelevant("mm", lambda own, shared=shared: products.mm(own, shared), rows)
        torch.testing.assert_close(products.mm(rows, shared), rows @ shared)
        assert products.mm(rows[:0], shared).shape == (0, outputs)


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("batch", [1, 2, 450])
@pytest.mark.parametrize(("inputs", "outputs"), [(3, 4), (450, 1), (1, 450), (1, 1)])
def test_products_are_torchs(batch, inputs, outputs, dtype):
    """Of one client and of two; the plain twin adds the numbers up one by one."""
    left, right, start = (
        drawn(*shape, dtype=torch.float64, seed=seed)[:2]
        for seed, shape in enumerate([(batch, inputs), (inputs, outputs), (batch, outputs)])
    )
    plain = (left.unsqueeze(3) * right.unsqueeze(1)).sum(dim=2)
    for clients in (1, 2):
        a, b, c = (part[:clients].to(dtype, copy=True) for part in (left, right, start))
        own, sent = plain[:clients], start[:clients]
        near = {"rtol": 0.0, "atol": 1e-4 if dtype == torch.float32 else 1e-11, "check_dtype": False}
        torch.testing.assert_close(products.bmm(a, b), own, **near)
        torch.testing.assert_close(products.baddbmm(c, a, b), sent + own, **near)
        torch.testing.assert_close(products.baddbmm(c[:, :1], a, b), sent[:, :1] + own, **near)
        products.baddbmm_(c, a, b, beta=0.5, alpha=-2.0)
        torch.testing.assert_close(c, 0.5 * sent - 2.0 * own, **near)


class Bottleneck(nn.Module):
    """What cannot be lowered layer by layer."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow, self.wide = nn.Linear(20, 1), nn.Linear(1, 20)

    def forward(self, x: Tensor) -> Tensor:
        return self.wide(torch.tanh(self.narrow(x)))


class Filtered(nn.Module):
    """The same with a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.filters = nn.Conv1d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.filters(x)).flatten(1)


MODELS = {
    "linear": (nn.Sequential(nn.Linear(20, 1, bias=False), nn.Tanh(), nn.Linear(1, 20)), (20,)),
    "vmap": (Bottleneck(), (20,)),
    "vmap of a convolution": (Filtered(), (3, 20)),
    "convolution": (nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.Tanh(), nn.Conv2d(1, 3, 2)), (1, 5, 5)),
    "one place": (nn.Sequential(nn.Conv2d(5, 3, 5, bias=False), nn.Tanh()), (5, 5, 5)),
}


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("batch", [2, 64])
@pytest.mark.parametrize("name", MODELS)
def test_models_and_their_gradients_do_not_depend_on_their_company(name, batch, dtype):
    model, shape = MODELS[name]
    lowered = lower(model)
    names = [own for own, _ in model.named_parameters()]

    def both(x: Tensor, *parameters: Tensor) -> Tensor:
        leaves = [own.detach().requires_grad_() for own in (x, *parameters)]
        outputs = lowered(dict(zip(names, leaves[1:], strict=True)), leaves[0])
        found = torch.autograd.grad(outputs.square().sum(), leaves)
        return torch.cat([part.flatten(1) for part in (outputs.detach(), *found)], dim=1)

    parameters = [drawn(*own.shape, dtype=dtype, seed=number) for number, own in enumerate(model.parameters())]
    assert_company_is_irrelevant(name, both, drawn(batch, *shape, dtype=dtype, seed=9), *parameters)


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("kind", [*ELEMENTWISE[:-1], *EXPONENTIAL])  # without dropout, whose masks have names
def test_activations_do_not_depend_on_where_a_number_stands(kind, dtype):
    lowered = lower(kind())

    def both(x: Tensor) -> Tensor:
        leaf = x.detach().requires_grad_()
        outputs = lowered({}, leaf)
        (found,) = torch.autograd.grad(outputs.square().sum(), leaf)
        return torch.stack((outputs.detach(), found), dim=1)

    for width in (1, 3, 7, 35, 301):
        assert_company_is_irrelevant(kind.__name__, both, drawn(2, width, dtype=dtype))
    images = drawn(3, 5, 2, 7, dtype=dtype).permute(0, 4, 1, 2, 3)
    assert batch_last(images)
    assert_company_is_irrelevant(kind.__name__, both, images)
    assert batch_last(lowered({}, images[:3]))  # 630 numbers, which are not whole registers
    torch.testing.assert_close(lowered({}, images[:3]), kind()(images[:3]), rtol=1e-5, atol=1e-6)


def test_functions_of_whole_registers_are_themselves():
    """Whatever the shape and the order in memory, 960 numbers and 959."""
    whole = torch.arange(960.0).view(2, 4, 5, 24)
    for x in (whole, whole.permute(2, 0, 3, 1), whole[0, 0, 0, :1], whole.flatten()[1:], whole[:, ::3, 1:4], whole[:0]):
        assert torch.equal(in_whole_registers(torch.neg, x), -x)


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_losses_do_not_depend_on_where_an_example_stands(dtype):
    for batch in (2, 5, 33):
        outputs, targets = drawn(batch, 1, dtype=dtype), drawn(batch, dtype=dtype, seed=1)
        assert_company_is_irrelevant("log cosh", LogCosh().examples, outputs, targets)


@pytest.mark.parametrize(
    "client",
    [Sgd(epochs=1, lr=0.1, optimizer={"kind": "sgd", "momentum": 0.9}), Sgd(epochs=1, lr=0.1, proximal_mu=0.3)],
    ids=["momentum", "mu"],
)
def test_normalisers_do_not_depend_on_who_else_took_steps(client):
    for first in range(0, 300, CLIENTS):
        steps = torch.arange(first, first + CLIENTS)
        assert_company_is_irrelevant("nu", lambda taken: client.normaliser(taken, 0.1, client.proximal_mu), steps)
