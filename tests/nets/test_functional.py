"""A module under given parameters: how its images lie in memory is its own affair, and changes nothing but time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedsim.core.streams import Streams
from fedsim.nets.functional import Flat, Functional
from fedsim.nets.prepared import prepare
from fedsim.problems.models.convolutional import CNN, LeNet, ResNet
from fedsim.problems.models.layers import initialise


class Viewed(nn.Sequential):
    """A network whose forward pass asks how its images lie in memory."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).view(len(x), -1)


def hooked() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())
    model[0].register_forward_hook(lambda _, __, output: output.view(len(output), 4, -1))
    return model


def innermost(model: nn.Module) -> list[bool]:
    """Of each convolution's weight, whether its channels lie innermost while it is computed with."""
    bound, parameters = Functional(prepare(model)).bind(own.detach().clone() for own in model.parameters())
    bound(torch.zeros(2, 3, 28, 28, dtype=parameters[0].dtype))
    return [own.stride(1) == 1 for own in parameters if own.dim() == 4]


@pytest.mark.parametrize("kind", [CNN(), LeNet(), ResNet(width=8)])
def test_images_of_known_layers_lie_with_their_channels_innermost_and_gradients_are_the_modules(kind):
    model = kind.build((3, 28, 28), 10, 0)
    initialise(model, Streams(0))
    assert all(innermost(model))
    x = torch.randn(5, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    leaves = {name: own.detach().clone() for name, own in model.named_parameters()}
    bound, parameters = Functional(prepare(model)).bind(leaves.values())
    wide = {name: own.double().requires_grad_() for name, own in leaves.items()}
    expected = functional_call(model.double(), wide, (x.double(),))
    found = bound(x)
    # Sums of some thousand terms of order 1 in single precision: 1e-7 times the root of their number, and a margin.
    assert torch.allclose(found.double(), expected, rtol=1e-4, atol=1e-5)
    gradients = torch.autograd.grad(found.square().sum(), parameters)
    wanted = torch.autograd.grad(expected.square().sum(), list(wide.values()))
    for gradient, own in zip(gradients, wanted, strict=True):
        assert torch.allclose(gradient.double(), own, rtol=1e-3, atol=1e-4 * float(own.abs().max()))


@pytest.mark.parametrize("innermost", [True, False])
def test_gradients_of_flattened_images_lie_as_the_images_do(innermost):
    """Else a pooling before it copies gradients of its whole input there and back."""
    flat, order = Flat(), torch.channels_last if innermost else torch.contiguous_format
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).to(memory_format=order).requires_grad_()
    weight = torch.arange(96.0).view(2, 48)
    (gradient,) = torch.autograd.grad((flat(x) * weight).sum(), x)
    assert gradient.is_contiguous(memory_format=order)
    assert torch.equal(gradient, weight.view(2, 3, 4, 4))
    with torch.no_grad():
        assert torch.equal(flat(x), x.reshape(2, 48))


def test_a_known_networks_flattening_is_such_a_one():
    model = prepare(LeNet().build((1, 28, 28), 10, 0))
    bound, _ = Functional(model).bind(model.parameters())
    assert any(isinstance(part, Flat) for part in bound.modules())


@pytest.mark.parametrize(
    "make",
    [
        lambda: Viewed(nn.Conv2d(3, 4, 3)),
        hooked,
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3)).double(),
        lambda: nn.Sequential(nn.Conv2d(3, 4, 1, stride=2, padding=1), nn.Conv2d(4, 4, 3)),
    ],
)
def test_layers_that_may_ask_how_their_input_lies_and_double_precision_are_left_alone(make: Callable[[], nn.Module]):
    assert innermost(make())[-1] is False


def test_a_client_has_its_numbers_in_the_module_whoever_had_it_before():
    model, x = Functional(nn.Linear(2, 1, bias=False)), torch.tensor([1.0, 10.0])

    def own(*weights: float) -> float:
        return float(model.own([torch.tensor([weights])])[0](x).detach())

    assert own(1.0, 2.0) == 21.0
    bound, _ = model.bind([torch.tensor([[3.0, 4.0]])])
    assert float(bound(x).detach()) == 43.0
    assert own(5.0, 6.0) == 65.0
    assert own(7.0, 8.0) == 87.0
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)  # for which the thread's copy is made anew
    try:
        assert own(2.0, 1.0) == 12.0
    finally:
        handle.remove()


def encoder() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        return nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False).double()


def test_a_transformers_attention_is_pytorchs_without_its_copies(monkeypatch):
    model = encoder()
    leaves = {name: own.detach().clone().requires_grad_() for name, own in model.named_parameters()}
    x = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = functional_call(model, leaves, (x,))
    wanted = torch.autograd.grad(expected.square().sum(), list(leaves.values()))
    mask = nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64)
    masked = model(x, mask=mask)
    bound, parameters = Functional(prepare(model)).bind(own.detach() for own in leaves.values())
    assert torch.allclose(bound(x, mask=mask), masked, rtol=0, atol=1e-12)
    monkeypatch.delattr(nn.functional, "multi_head_attention_forward")  # what makes the copies
    found = bound(x)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    for gradient, own in zip(torch.autograd.grad(found.square().sum(), parameters), wanted, strict=True):
        assert torch.allclose(gradient, own, rtol=0, atol=1e-10)
