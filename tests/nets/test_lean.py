"""Modules without what is around their forward passes: the same numbers, to the bit, and what is to be heard is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedsim.nets.functional import Functional
from fedsim.nets.lean import lean
from fedsim.nets.prepared import prepare
from fedsim.problems.models.convolutional import ResNet
from fedsim.problems.models.recurrent import GRU, LSTM
from fedsim.problems.models.transformers import GPT, Transformer


class Own(nn.Module):
    """A forward pass of somebody's own, which keeps the states of an LSTM and asks an encoder with a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 8)
        self.lstm = nn.LSTM(8, 8, num_layers=2, batch_first=True)
        self.gain = nn.Parameter(torch.ones(8))
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(8), enable_nested_tensor=False)
        self.nothing = None

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [B, T] to [B, 8]."""
        assert self.nothing is None
        seen, states = self.lstm(self.embedding(x) * self.gain)
        seen, _ = self.lstm(seen, states)
        alone, _ = self.lstm(seen[0])
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        found: Tensor = self.encoder(self.encoder(seen), mask=mask)[:, -1] + alone[-1]
        return found


def tokens(count: int = 7) -> Tensor:
    return torch.randint(count, (3, 5), generator=torch.Generator().manual_seed(0))


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        model = prepare(make())
    with torch.no_grad():
        for own in model.parameters():
            own.add_(0.1 * numbers(*own.shape))
    return model


MODELS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "own": (Own, tokens()),
    "resnet": (lambda: ResNet(width=8).build((3, 8, 8), 4, 0), numbers(2, 3, 8, 8)),
    "lstm": (lambda: LSTM(hidden=6).build((5,), 7, 7), tokens()),
    "lstm of two ways": (lambda: nn.LSTM(4, 3, bidirectional=True, proj_size=2), numbers(5, 2, 4)),
    "gru": (lambda: GRU(hidden=6).build((5,), 7, 7), tokens()),
    "transformer": (lambda: Transformer(width=8, heads=2).build((5,), 7, 7), tokens()),
    "gpt": (lambda: GPT(width=8, heads=2, dropout=0.0).build((5,), 7, 7), tokens()),
    "reflecting": (lambda: nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"), numbers(2, 2, 5, 5)),
    "no affine": (lambda: nn.Sequential(nn.LayerNorm(4, elementwise_affine=False), nn.Linear(4, 2)), numbers(3, 4)),
}


def passed(model: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    """What comes out, and gradients of its squares."""
    found = model(x)
    outputs = found[0] if isinstance(found, tuple) else found
    return outputs, *torch.autograd.grad(outputs.square().sum(), list(model.parameters()))


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("name", MODELS)
def test_outputs_and_gradients_are_the_modules_own_to_the_bit(name):
    model = seeded(MODELS[name][0])
    leaned = copy.deepcopy(model)
    lean(leaned)
    assert all(type(part).__call__ is not nn.Module.__call__ for part in leaned.modules())
    for one, other in zip(passed(model, MODELS[name][1]), passed(leaned, MODELS[name][1]), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["own", "resnet", "lstm", "gpt"])
def test_other_parameters_may_stand_in_their_place(name):
    model, x = seeded(MODELS[name][0]), MODELS[name][1]
    others = {own: 1.1 * value.detach() for own, value in model.named_parameters()}
    expected = functional_call(model, others, (x,))
    lean(model)
    assert torch.equal(functional_call(model, others, (x,)), expected)
    assert not torch.equal(model(x), expected)


def hook(register: str) -> Callable[[nn.Module], Any]:
    """What hangs a hook on a layer that takes all that goes through it times two."""

    def hang(layer: nn.Module) -> None:
        twice = {
            "register_forward_hook": lambda _, __, output: 2 * output,
            "register_forward_pre_hook": lambda _, given: (2 * given[0],),
            "register_full_backward_hook": lambda _, grads, __: (2 * grads[0],),
        }
        getattr(layer, register)(twice[register])

    return hang


def other_forward(layer: nn.Module) -> None:
    layer.forward = lambda x: 2 * nn.functional.relu(x)


@pytest.mark.parametrize(
    "change",
    [
        hook("register_forward_hook"),
        hook("register_forward_pre_hook"),
        hook("register_full_backward_hook"),
        other_forward,
    ],
)
def test_what_hangs_on_a_layer_is_heard(change):
    def made() -> nn.Module:
        return seeded(lambda: nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))

    model, plain, x = made(), made(), numbers(5, 4)
    change(model[1])
    expected, without = passed(model, x), passed(plain, x)
    assert not all(torch.equal(one, other) for one, other in zip(expected, without, strict=True))
    lean(model)
    for one, other in zip(passed(model, x), expected, strict=True):
        assert torch.equal(one, other)


def test_groups_of_a_single_number_are_refused_as_by_pytorch():
    model = nn.Sequential(nn.GroupNorm(2, 2))
    lean(model)
    assert model(torch.ones(1, 2, 2)).shape == (1, 2, 2)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        model(torch.ones(1, 2, 1))


def test_who_hears_of_all_modules_hears_of_these_however_late():
    model, heard = Functional(seeded(lambda: nn.Sequential(nn.Linear(4, 2)))), []

    def run() -> int:
        leaves = [own.detach() for own in model.bind([torch.zeros(2, 4), torch.zeros(2)])[1]]
        model.own(leaves)[0](numbers(3, 4))
        return len(heard)

    assert run() == 0
    handle = nn.modules.module.register_module_forward_hook(lambda module, _, __: heard.append(module))
    try:
        assert run() == 2
    finally:
        handle.remove()
    assert run() == 2


class Called(nn.Module):
    """A module with a call of its own."""

    def __call__(self, x: Tensor) -> Tensor:
        return x + 1


class Listed(nn.Module):
    """A module that hears of its subclasses."""

    heard: ClassVar[list[str]] = []

    def __init_subclass__(cls) -> None:
        cls.heard.append(cls.__name__)

    def forward(self, x: Tensor) -> Tensor:
        return x - 1


def test_classes_that_are_called_otherwise_or_hear_of_their_heirs_are_left_alone():
    model = nn.Sequential(Called(), Listed())
    lean(model)
    assert [type(part) for part in model] == [Called, Listed]
    assert Listed.heard == []
    assert torch.equal(model(torch.zeros(2)), torch.zeros(2))
