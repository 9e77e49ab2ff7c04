"""Bounds of outputs over boxes of inputs: numbers worked out elsewhere, and that nothing is ever beyond them."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from fedsim.attacks.attack import Victim
from fedsim.attacks.gradient import CW, PGD
from fedsim.core.errors import InputError
from fedsim.nets.bounds import Bounds, Box, _minimum
from fedsim.nets.chain import ChainNetwork
from fedsim.nets.crown import Crown, _between
from fedsim.nets.layers import Residual
from fedsim.nets.losses import CrossEntropy
from fedsim.nets.prepared import prepare
from fedsim.nets.stack import Layout, Stack

X, Y = torch.tensor([[[0.6, 0.4]]], dtype=torch.float64), torch.tensor([[1]])
EXACT = {"rtol": 0, "atol": 1e-6}
DOMAIN = (0.0, 1.0)


def certain(margins: Tensor, targets: Tensor) -> Tensor:
    """Which examples [k, B] nothing in their box has misclassified: all margins [k, B, K] are above 0."""
    return margins.scatter(-1, targets.unsqueeze(-1), torch.inf).amin(dim=-1) > 0


def small(act: type[nn.Module] = nn.ReLU) -> nn.Module:
    """2-3-2, of which all numbers below are."""
    model = nn.Sequential(nn.Linear(2, 3), act(), nn.Linear(3, 2)).double()
    numbers = (
        *([[1.0, -2.0], [0.5, 1.0], [-1.0, 0.5]], [0.1, -0.2, 0.3]),
        *([[1.0, -1.0, 0.5], [-0.5, 2.0, 1.0]], [0.05, -0.05]),
    )
    for own, given in zip(model.parameters(), numbers, strict=True):
        own.data = torch.tensor(given, dtype=torch.float64)
    return model


def bounded(*models: nn.Module) -> tuple[Bounds, dict[str, Tensor], Stack]:
    """The bounds of models of one kind, as a stack."""
    model = prepare(models[0])
    layout = Layout.of(dict(model.named_parameters()))
    rows = layout.stack(torch.stack([layout.flatten(dict(own.named_parameters())) for own in models]))
    made = Bounds(model, layout)
    return made, made.named(rows.leaves, len(models)), rows


def box(x: Tensor, epsilon: float = 0.1) -> Box:
    return Box.around(x, epsilon, DOMAIN)


def ce(margins: Tensor, targets: Tensor) -> Tensor:
    return CrossEntropy().examples(-margins, targets)


def drawn(make: Callable[[], nn.Module], count: int, scale: float = 2.0) -> list[nn.Module]:
    """Models whose numbers are larger than usual, so that bounds and attacks matter."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        models = [make().double() for _ in range(count)]
    for model in models:
        for own in model.parameters():
            own.data *= scale
    return models


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("act", "outputs", "plain", "elided"),
    [
        (nn.ReLU, (-0.6, -0.075, 0.55, 1.3), 0.625, 0.65),
        (nn.Tanh, (-1.024078, -0.064021, 0.279145, 1.333273), 0.343166, 0.490604),
    ],
)
def test_intervals_of_a_small_network(act, outputs, plain, elided):
    bounds, named, _ = bounded(small(act))
    found = bounds.outputs(named, box(X))
    low_0, high_0, low_1, high_1 = outputs
    assert found.lower.flatten().tolist() == pytest.approx([low_0, low_1], abs=1e-6)
    assert found.upper.flatten().tolist() == pytest.approx([high_0, high_1], abs=1e-6)
    for elide, margin in ((False, plain), (True, elided)):
        margins = bounds.margins(named, box(X), Y, elide=elide)
        assert margins.flatten().tolist() == pytest.approx([margin, 0.0], abs=1e-6)
    losses = {nn.ReLU: (0.428701, 0.420055), nn.Tanh: (0.536213, 0.477635)}[act]
    for elide, loss in zip((False, True), losses, strict=True):
        assert float(ce(bounds.margins(named, box(X), Y, elide=elide), Y)) == pytest.approx(loss, abs=1e-6)


def test_crown_of_a_small_network():
    """With the line of slope 1 or 0 below the units that cross, as u > -l or not: -.4 to .2 and -.25 to .05 cross."""
    bounds, named, _ = bounded(small())
    for intervals in (True, False):
        margins = Crown(bounds).margins(named, box(X), Y, intervals=intervals)
        assert margins.flatten().tolist() == pytest.approx([0.75, 0.0], abs=1e-12)
    mixed = 0.5 * margins + 0.5 * bounds.margins(named, box(X), Y)
    assert float(ce(mixed, Y)) == pytest.approx(0.403186, abs=1e-6)


def test_intervals_of_a_convolutional_network():
    model = nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(24, 10)),
    ).double()
    start = 1
    for own in model.parameters():
        own.data = 0.3 * torch.arange(start, start + own.numel(), dtype=torch.float64).sin().view_as(own)
        start += own.numel()
    x = (0.5 * torch.arange(128, dtype=torch.float64).cos() + 0.5).view(1, 2, 1, 8, 8)
    y = torch.tensor([[3, 7]])
    bounds, named, _ = bounded(model)
    elided = bounds.margins(named, box(x, 0.02), y)
    plain = bounds.margins(named, box(x, 0.02), y, elide=False)
    expected = [
        (-1.100025, -1.668412, -1.311661, -0.035172, -0.447589, -1.249062, -1.620064, -0.933923, -0.185509),
        (-0.353874, -0.309587, -0.113791, -0.049118, 0.034006, -0.024002, -0.219341, -0.265635, -0.223936),
    ]
    loose = (-1.111214, -1.810998, -1.663750, -0.494302, -0.602115, -1.258004, -1.850110, -1.453714, -0.810030)
    for row, (target, margins) in enumerate(zip((3, 7), expected, strict=True)):
        others = [place for place in range(10) if place != target]
        assert elided[0, row, others].tolist() == pytest.approx(margins, abs=1e-6)
    assert plain[0, 0, [place for place in range(10) if place != 3]].tolist() == pytest.approx(loose, abs=1e-6)
    assert bool((elided >= plain - 1e-12).all())


@pytest.mark.parametrize("act", [nn.ReLU, nn.Tanh])
def test_no_attack_is_beyond_the_bounds(act):
    """10,000 points of 20 networks, attacked by PGD-20 on the loss and on the margin."""
    models = drawn(lambda: nn.Sequential(nn.Linear(4, 8), act(), nn.Linear(8, 6), act(), nn.Linear(6, 3)), 20)
    bounds, named, rows = bounded(*models)
    x, epsilon = uniform(20, 250, 4), 0.08
    targets = torch.randint(0, 3, (20, 250), generator=torch.Generator().manual_seed(1))
    network = ChainNetwork.of(prepare(models[0]), Layout.of(dict(models[0].named_parameters())), CrossEntropy())
    assert network is not None
    lower = bounds.margins(named, box(x, epsilon), targets)
    found = [lower, bounds.margins(named, box(x, epsilon), targets, elide=False)]
    assert bool((found[0] >= found[1] - 1e-12).all())
    if act is nn.ReLU:
        crown = Crown(bounds)
        found += [crown.margins(named, box(x, epsilon), targets, intervals=intervals) for intervals in (True, False)]
        assert float(found[3].mean()) > float(found[2].mean()) > float(lower.mean()) + 0.1
    at = targets.unsqueeze(-1)

    class Alike:
        def uniform(self, name: str, like: Tensor) -> Tensor:
            return uniform(*like.shape, seed=7)

        normal = uniform

    worst = torch.full((20, 250), torch.inf, dtype=torch.float64)
    for attack in (PGD(epsilon=epsilon, steps=20), CW(epsilon=epsilon, steps=20)):
        moved = attack.perturb(Victim(network, rows, CrossEntropy(), Alike()), x, targets)
        outputs = network.outputs(rows, moved)
        margins = outputs.gather(-1, at) - outputs
        assert torch.allclose(outputs, bounds.exactly(named, moved), rtol=0, atol=1e-12)
        for one in found:
            assert bool((margins >= one - 1e-9).all())
        worst = torch.minimum(worst, margins.scatter(-1, at, torch.inf).amin(dim=-1))
    sure = certain(lower, targets)
    assert 0.02 < float(sure.double().mean()) < float((worst > 0).double().mean())


def test_a_box_of_no_width_is_its_point():
    for models in (drawn(small, 1), drawn(lambda: nn.Sequential(nn.Linear(2, 5), nn.GELU(), nn.Linear(5, 2)), 3)):
        bounds, named, _ = bounded(*models)
        x, targets = uniform(len(models), 50, 2), torch.arange(50).remainder(2).expand(len(models), 50)
        outputs = bounds.exactly(named, x)
        margins = bounds.margins(named, box(x, 0.0), targets)
        assert torch.allclose(margins, outputs.gather(-1, targets.unsqueeze(-1)) - outputs, rtol=0, atol=1e-12)
        assert torch.allclose(ce(margins, targets), CrossEntropy().examples(outputs, targets), rtol=0, atol=1e-12)
        assert torch.equal(certain(margins, targets), outputs.argmax(dim=-1) == targets)
    assert not bool(certain(torch.zeros(1, 1, 2), torch.zeros(1, 1, dtype=torch.int64)))  # a tie is not certain


def test_bounds_widen_with_epsilon_and_know_no_order_of_units():
    model = drawn(small, 1)[0]
    bounds, named, _ = bounded(model)
    x, targets = uniform(1, 50, 2), torch.arange(50).remainder(2).unsqueeze(0)
    found = [bounds.margins(named, box(x, epsilon), targets) for epsilon in (0.0, 0.05, 0.1, 0.3)]
    for near, far in pairwise(found):
        assert bool((far <= near + 1e-12).all())
    order = torch.tensor([2, 0, 1])
    with torch.no_grad():
        model[0].weight.copy_(model[0].weight[order])
        model[0].bias.copy_(model[0].bias[order])
        model[2].weight.copy_(model[2].weight[:, order])
    other, renamed, _ = bounded(model)
    assert torch.allclose(other.margins(renamed, box(x, 0.1), targets), found[2], rtol=0, atol=1e-12)


def test_a_mean_of_models_has_a_certificate_of_its_own():
    """Two networks that are one but for the order of their units certify an example; their mean knows no class."""
    first, second = small(), small()
    order = torch.tensor([1, 2, 0])
    with torch.no_grad():
        second[0].weight.copy_(first[0].weight[order])
        second[0].bias.copy_(first[0].bias[order])
        second[2].weight.copy_(first[2].weight[:, order])
    mean = small()
    for own, one, two in zip(mean.parameters(), first.parameters(), second.parameters(), strict=True):
        own.data = (one.data + two.data) / 2
    bounds, named, _ = bounded(first, second, mean)
    margins = bounds.margins(named, box(X.expand(3, 1, 2)), Y.expand(3, 1))[:, 0, 0]
    assert float(margins[0]) == pytest.approx(float(margins[1])) == pytest.approx(0.65)
    assert float(margins[2]) < 0.5


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "gelu": lambda: nn.Sequential(nn.Linear(8, 6), nn.GELU(), nn.Linear(6, 3)),
    "gelu_tanh": lambda: nn.Sequential(nn.Linear(8, 6), nn.GELU(approximate="tanh"), nn.Linear(6, 3)),
    "silu": lambda: nn.Sequential(nn.Linear(8, 6), nn.SiLU(), nn.Linear(6, 3)),
    "elu": lambda: nn.Sequential(nn.Linear(8, 6), nn.ELU(), nn.Linear(6, 3), nn.LeakyReLU(0.1)),
    "layer_norm": lambda: nn.Sequential(nn.Linear(8, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 3)),
    "dropout": lambda: nn.Sequential(nn.Linear(8, 6), nn.Dropout(0.5), nn.Sequential(nn.Sigmoid(), nn.Linear(6, 3))),
    "group_norm": lambda: nn.Sequential(nn.Linear(8, 8, bias=False), nn.GroupNorm(2, 8), nn.ReLU(), nn.Linear(8, 3)),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_nothing_in_a_box_is_beyond_the_bounds_of_any_layer(kind):
    """The corners and points of boxes of two networks; widths of a hundredth and of two, so that dips are crossed."""
    models = drawn(LAYERS[kind], 2, scale=1.5)
    bounds, named, _ = bounded(*models)
    for epsilon in (0.01, 1.0):
        x = 4.0 * uniform(2, 30, 8) - 2.0
        around = Box.around(x, epsilon, None)
        found = bounds.outputs(named, around)
        for seed in range(20):
            share = uniform(2, 30, 8, seed=seed)
            share = share.round() if seed % 2 else share
            outputs = bounds.exactly(named, around.lower + share * (around.upper - around.lower))
            assert bool((outputs >= found.lower - 1e-9).all())
            assert bool((outputs <= found.upper + 1e-9).all())


def test_what_is_normalised_is_bounded_by_what_it_is_less_its_mean():
    """Where the variance does not matter, corners reach the bounds: 2/3 r_i and 1/3 of the two others' radii."""
    model = nn.Sequential(nn.LayerNorm(3, eps=1e4)).double()
    bounds, named, _ = bounded(model)
    around = Box(torch.tensor([[[0.0, 1.0, 2.0]]]).double(), torch.tensor([[[1.0, 1.5, 4.0]]]).double())
    found = bounds.outputs(named, around)
    corners = torch.cartesian_prod(*torch.stack((around.lower, around.upper)).view(2, 3).T).unsqueeze(0)
    outputs = bounds.exactly(named, corners)
    assert torch.allclose(found.lower[0, 0], outputs.amin(dim=1)[0], rtol=1e-3)
    assert torch.allclose(found.upper[0, 0], outputs.amax(dim=1)[0], rtol=1e-3)


def test_lines_find_where_the_inputs_of_relus_lie():
    model = drawn(lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)), 1)[0]
    _, named, _ = bounded(model)
    layers = [(named[f"{place}.weight"], named[f"{place}.bias"]) for place in (0, 2)]
    x = uniform(1, 40, 4)
    _, wide = _between(layers, box(x), intervals=True)
    _, found = _between(layers, box(x), intervals=False)
    assert float((found.lower - wide.lower).mean()) > 0.01 < float((wide.upper - found.upper).mean())
    assert bool(((found.lower >= wide.lower) & (found.upper <= wide.upper)).all())
    for seed in range(20):
        inputs = model[:3](box(x).lower + uniform(*x.shape, seed=seed).round() * 2 * box(x).radius)
        assert bool(((inputs >= found.lower - 1e-9) & (inputs <= found.upper + 1e-9)).all())


def images(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(3))


@pytest.mark.parametrize(
    "make",
    [
        lambda: images(nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2), nn.Tanh(), nn.AvgPool2d(2)),
        lambda: images(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1)),
        lambda: images(nn.Conv2d(2, 4, 3, padding="same"), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)),
        lambda: images(
            Residual(nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 2, 1)), nn.Sequential())
        ),
    ],
    ids=["groups", "group_norm", "batch_norm", "residual"],
)
def test_nothing_in_a_box_of_images_is_beyond_the_bounds(make):
    models = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        for _ in range(2):
            model = make()
            model(torch.zeros(1, 2, 6, 6))
            models.append(prepare(model.double()))
    statistics = {name: own for name, own in models[0].named_buffers() if name.endswith(("mean", "var"))}
    layout = Layout.of(dict(models[0].named_parameters()), statistics)
    for model in models:
        for name, own in model.named_buffers():
            own.copy_(0.5 + uniform(*own.shape, seed=len(name)))
    flat = [layout.flatten(dict(model.named_parameters()) | dict(model.named_buffers())) for model in models]
    bounds = Bounds(models[0], layout)
    named = bounds.named(layout.stack(torch.stack(flat)).leaves, 2)
    x = uniform(2, 4, 2, 6, 6)
    around = Box.around(x, 0.1, DOMAIN)
    found = bounds.outputs(named, around)
    for seed in range(10):
        outputs = bounds.exactly(named, around.lower + uniform(*x.shape, seed=seed).round() * 2 * around.radius)
        assert bool((outputs >= found.lower - 1e-9).all())
        assert bool((outputs <= found.upper + 1e-9).all())


@pytest.mark.parametrize(("act", "crown"), [(nn.ReLU, False), (nn.SiLU, False), (nn.ReLU, True)])
def test_a_models_bounds_have_the_bits_that_they_have_alone(act, crown):
    models = [model.float() for model in drawn(lambda: nn.Sequential(nn.Linear(6, 40), act(), nn.Linear(40, 10)), 5)]
    x, targets = uniform(5, 7, 6).float(), torch.arange(7).expand(5, 7)

    def margins(some: slice) -> tuple[Tensor, ...]:
        bounds, named, _ = bounded(*models[some])
        named = {name: own.requires_grad_() for name, own in named.items()}
        one = (Crown(bounds) if crown else bounds).margins(named, box(x[some], 0.1), targets[some])
        return (one, *torch.autograd.grad(ce(one, targets[some]).sum(), list(named.values())))

    whole = margins(slice(0, 5))
    for row in range(5):
        for alone, together in zip(margins(slice(row, row + 1)), whole, strict=True):
            assert torch.equal(alone[0], together[row])


def test_layers_without_a_rule_are_refused_by_name():
    with pytest.raises(InputError, match=r"^problem\.model = LSTM \(0\): has no rule of bounds; there are some for"):
        bounded(nn.Sequential(nn.LSTM(2, 3), nn.Linear(3, 2)))

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) ** 2

    with pytest.raises(InputError, match=r"^problem\.model = Own \(the model\): has no rule"):
        bounded(Own())
    with pytest.raises(InputError, match=r"^problem\.model = LeakyReLU \(1\): has no rule"):
        bounded(nn.Sequential(nn.Linear(2, 2), nn.LeakyReLU(-0.5)))
    for layer in (nn.Dropout(0.1), nn.LayerNorm(2)):
        made, _, _ = bounded(nn.Sequential(nn.Linear(2, 2), layer, nn.Linear(2, 2)))
        with pytest.raises(InputError, match=r"^problem\.model = \w+ \(1\): has bounds where models are judged alone"):
            made.hold_training()
        assert len(made.loose) == isinstance(layer, nn.LayerNorm)
    for model in (small(nn.Tanh), nn.Sequential(nn.Linear(2, 2), nn.ReLU())):
        made, _, _ = bounded(model)
        with pytest.raises(InputError, match=r"^problem\.model = \w+.*: crown .*; take ibp alone"):
            Crown(made)


def test_the_minimum_of_activations():
    assert _minimum("GELU", "none") == pytest.approx(-0.751792, abs=1e-6)
    assert _minimum("SiLU", "") == pytest.approx(-1.278465, abs=1e-6)
    assert math.isclose(_minimum("GELU", "tanh"), -0.75246, abs_tol=1e-4)
