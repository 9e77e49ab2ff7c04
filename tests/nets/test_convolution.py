"""Stacked convolutions held to the plain layers: values, gradients, forward mode, and bits in any company."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp

from fedsim.nets import convolution
from fedsim.nets.convolution import batch_last
from fedsim.nets.lowering import lower
from fedsim.nets.modes import forward_mode
from fedsim.parallel.cores import one_core_an_operation
from fedsim.testing.problems import DEVICE

C = 3

LAYERS = {
    "5x5": (lambda: nn.Conv2d(2, 3, 5), (2, 9, 8)),
    "one channel out": (lambda: nn.Conv2d(2, 1, 3), (2, 6, 7)),
    "one channel in, 1x1": (lambda: nn.Conv2d(1, 4, 1), (1, 5, 4)),
    "no bias": (lambda: nn.Conv2d(3, 4, 3, bias=False), (3, 5, 6)),
    "padded": (lambda: nn.Conv2d(2, 4, (3, 5), padding=(1, 2)), (2, 5, 7)),
    "stride that leaves a rest": (lambda: nn.Conv2d(2, 4, (3, 2), stride=(2, 3)), (2, 8, 9)),
    "all at once": (lambda: nn.Conv2d(3, 5, (3, 2), stride=(2, 3), padding=(2, 1), dilation=(2, 3)), (3, 9, 11)),
    "stride beyond the kernel": (lambda: nn.Conv2d(2, 2, 1, stride=3), (2, 7, 8)),
    "one patch": (lambda: nn.Conv2d(2, 3, (4, 5)), (2, 4, 5)),
}
AFTER = {
    "maximum": lambda: nn.MaxPool2d(2),
    "maximum, overlapping": lambda: nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True),
    "mean": lambda: nn.AvgPool2d(2),
    "adaptive": lambda: nn.AdaptiveAvgPool2d((2, 1)),
    "adaptive maximum": lambda: nn.AdaptiveMaxPool2d(2),
    "margin": lambda: nn.ZeroPad2d((1, 0, 2, 1)),
    "group norm": lambda: nn.GroupNorm(2, 4),
    "a second convolution": lambda: nn.Conv2d(4, 3, 3),
    "separate channels": lambda: nn.Conv2d(4, 4, 3, groups=2),
}
"""Layers after a convolution to 4 channels and ReLU."""


def sequence(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers, nn.Flatten())


NETWORKS = {name: (lambda make=make: sequence(make()), shape) for name, (make, shape) in LAYERS.items()} | {
    name: (lambda make=make: sequence(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), make()), (2, 7, 9))
    for name, make in AFTER.items()
}


def made(name: str, batch: int = 2, dtype: torch.dtype = torch.float64, clients: int = C):
    """The module, the clients' parameters by name, their inputs, and weights of the outputs' sum."""
    factory, shape = NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = factory().to(DEVICE, dtype)
        named = {
            key: torch.randn(clients, *own.shape, dtype=dtype).to(DEVICE) * 0.5 for key, own in model.named_parameters()
        }
        x = torch.randn(clients, batch, *shape, dtype=dtype).to(DEVICE)
        outputs = lower(model)(named, x)
        return model, named, x, torch.randn(outputs.shape, dtype=dtype).to(DEVICE)


def differentiated(call, named: dict[str, Tensor], x: Tensor, weight: Tensor) -> list[Tensor]:
    """Outputs, where nothing is kept for gradients, too, and those of their weighted sum by every parameter and x."""
    with torch.no_grad():
        judged = call(named, x)
    leaves = {key: own.clone().requires_grad_() for key, own in named.items()}
    images = x.clone().requires_grad_()
    outputs = call(leaves, images)
    return [judged, outputs.detach(), *torch.autograd.grad((outputs * weight).sum(), [*leaves.values(), images])]


def one_by_one(model: nn.Module):
    def call(named: dict[str, Tensor], x: Tensor) -> Tensor:
        rows = [functional_call(model, {key: own[row] for key, own in named.items()}, (x[row],)) for row in range(C)]
        return torch.stack(rows)

    return call


def same(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-10) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=tolerance)


@pytest.mark.parametrize("room", [None, 1])
@pytest.mark.parametrize("name", NETWORKS)
def test_values_and_gradients_are_those_of_the_plain_layers(name, room, monkeypatch):
    """With the room that there is, and one row of one client's output at a time."""
    if room is not None:
        monkeypatch.setattr(convolution, "CACHE", {torch.device(DEVICE).type: room})
    model, named, x, weight = made(name)
    same(differentiated(lower(model), named, x, weight), differentiated(one_by_one(model), named, x, weight))


def test_blocks_of_some_clients_and_of_some_rows(monkeypatch):
    """A row of columns: 2 x 5 x 5 places of 4 x 2 numbers of 8 bytes, 3,200; a client has five of them.

    40,000 bytes hold two clients of three, 8,000 two rows of five.
    """
    model, named, x, weight = made("5x5")
    whole = differentiated(lower(model), named, x, weight)
    for room in (40_000, 8_000):
        monkeypatch.setattr(convolution, "CACHE", {torch.device(DEVICE).type: room})
        same(differentiated(lower(model), named, x, weight), whole)


@pytest.mark.parametrize("name", [name for name in AFTER if "aximum" in name])
def test_of_equal_maxima_the_first_takes_the_gradient(name):
    """Images of one grey: all patches within a pool are equal, and where the gradient goes shows in the input's."""
    model, named, x, weight = made(name)
    x = torch.full_like(x, 0.5)
    same(differentiated(lower(model), named, x, weight), differentiated(one_by_one(model), named, x, weight))


@pytest.mark.parametrize("batch", [1, 2, 10])
@pytest.mark.parametrize("room", [None, 2_000])
@pytest.mark.parametrize("name", NETWORKS)
def test_bits_do_not_depend_on_the_company(name, batch, room, monkeypatch):
    if room is not None:
        monkeypatch.setattr(convolution, "CACHE", {torch.device(DEVICE).type: room})
    model, named, x, weight = made(name, batch, torch.float32, clients=30)
    with one_core_an_operation():
        whole = differentiated(lower(model), named, x, weight)
        for rows in (slice(0, 1), slice(29, 30), slice(4, 7), slice(10, 20)):
            own = {key: value[rows].clone() for key, value in named.items()}
            for ours, theirs in zip(
                differentiated(lower(model), own, x[rows].clone(), weight[rows].clone()), whole, strict=True
            ):
                assert torch.equal(ours, theirs[rows])


@pytest.mark.parametrize("name", NETWORKS)
def test_forward_mode_is_the_gradient_along_the_direction(name):
    """With respect to the parameters alone, as networks ask for it, the images alone, and both."""
    model, named, x, weight = made(name)
    keys, lowered = list(named), lower(model)
    _, outputs, *gradients = differentiated(lowered, named, x, weight)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        directions = [torch.randn_like(own) for own in [*named.values(), x]]
    slopes = [float((gradient * along).sum()) for gradient, along in zip(gradients, directions, strict=True)]

    def evaluated(leaves, images):
        return lowered(dict(zip(keys, leaves, strict=True)), images)

    leaves, along = tuple(named.values()), tuple(directions[:-1])
    with forward_mode():
        derivatives = (
            (jvp(lambda *own: evaluated(own, x), leaves, along), sum(slopes[:-1])),
            (jvp(lambda own: evaluated(leaves, own), (x,), (directions[-1],)), slopes[-1]),
            (jvp(lambda *own: evaluated(own[:-1], own[-1]), (*leaves, x), tuple(directions)), sum(slopes)),
        )
    for found, slope in derivatives:
        assert torch.allclose(found[0], outputs, rtol=0, atol=1e-12)
        assert float((found[1] * weight).sum()) == pytest.approx(slope, abs=1e-9)


def test_the_gradient_of_images_is_made_where_it_is_asked_for(monkeypatch):
    model, named, x, _ = made("5x5")
    asked = []
    made_once = convolution._to_input
    monkeypatch.setattr(convolution, "_to_input", lambda *given: asked.append(1) or made_once(*given))
    leaves = {key: own.requires_grad_() for key, own in named.items()}
    torch.autograd.grad(lower(model)(leaves, x).sum(), list(leaves.values()))
    assert asked == []
    torch.autograd.grad(lower(model)(leaves, x.requires_grad_()).sum(), x)
    assert asked == [1]


def test_a_second_derivative_is_refused():
    model, named, x, _ = made("5x5")
    (gradient,) = torch.autograd.grad((lower(model)(named, x.requires_grad_()) ** 2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_images_stay_in_the_convolutions_order_up_to_the_flattening():
    """A convolution that had to put its input in order would copy it."""
    layers = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.0), nn.Conv2d(4, 3, 3))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        named = {key: torch.randn(C, *own.shape) for key, own in layers.named_parameters()}
        x = torch.randn(C, 2, 2, 12, 12)
    assert not batch_last(x)
    for count in range(1, len(layers) + 1):
        assert batch_last(lower(layers[:count])(named, x))
