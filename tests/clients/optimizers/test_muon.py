"""Muon, against the authors' rule in double precision, and the bound that a decay sets."""

from __future__ import annotations

import pytest
import torch
from oracles import W, assert_finishes_early, assert_held, path

from clients.optimizers.muon import Muon
from fedsim.client import Beginning, Stack, Step
from fedsim.nets.descent import Rule


def test_steps_are_the_official_ones_together_and_alone():
    """First steps of both, and the first client's third."""
    wanted = [
        [0.033294, -0.014764, -0.046938, 0.071173, 0.070615, 0.053667],
        [0.067117, -0.054139, 0.057702, 0.069733, 0.011751, 0.012323],
    ]
    assert_held(Muon(last=True), wanted, problem=W)
    third = path(Muon(last=True), [3, 3], problem=W)[2, 0]
    expected = torch.tensor([0.105239, -0.044787, -0.131433, 0.210041, 0.203962, 0.161336]).double()
    torch.testing.assert_close(third, expected, rtol=0, atol=6e-7)


def test_an_exact_factor_is_the_steps_limit():
    wanted = [
        [0.044712, -0.019897, -0.062859, 0.096313, 0.095129, 0.072993],
        [0.094724, -0.077618, 0.076057, 0.093306, 0.015576, 0.016417],
    ]
    assert_held(Muon(last=True, newton_schulz=0), wanted, problem=W)


def test_without_nesterov_the_momentum_alone_is_followed():
    """m = 0.05 g has the factor of g: the first step is the same; the second is not."""
    plain, nesterov = (path(Muon(last=True, nesterov=own, newton_schulz=0), [2, 2], problem=W) for own in (False, True))
    torch.testing.assert_close(plain[0], nesterov[0], rtol=0, atol=1e-12)
    assert not torch.allclose(plain[1], nesterov[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("steps", [0, 5])
def test_who_has_finished_stays(steps):
    assert_finishes_early(Muon(last=True, newton_schulz=steps), problem=W)


def test_a_decay_bounds_the_operator_norm():
    """By sqrt(out / in) / decay = sqrt(1.5) / 2, which is come to (Chen et al. 2023, for kappa = the nuclear norm)."""
    found = path(Muon(last=True, newton_schulz=0), [120, 120], problem=W, decay=2.0)
    largest = torch.linalg.svdvals(found.view(120, 2, 3, 2)).max()
    assert 0.6123 <= float(largest) <= 1.5**0.5 / 2 + 1e-9


def model() -> Stack:
    """Two clients' leaves: a matrix, its bias, a kernel, and the last matrix."""
    generator = torch.Generator().manual_seed(0)
    return Stack([torch.randn(2, *shape, generator=generator) for shape in ((4, 3), (4,), (5, 1, 2, 2), (2, 5))])


@pytest.mark.parametrize(
    ("options", "moved"),
    [({}, {0, 2}), ({"last": True}, {0, 2, 3}), ({"first": False}, {2}), ({"first": False, "last": True}, {2, 3})],
)
def test_matrices_but_the_last_are_its_own(options, moved):
    """Others go by signs here, at a tenth of the rate: by 0.01 in each number."""
    y, gradient = model(), model()
    before = [leaf.clone() for leaf in y.leaves]
    stepper = Rule(Muon(others="lion", **options), None, 0.0, 0.0).stepper(y, Beginning(torch.ones(2)))
    stepper.take(y, Step(0, 0.1, gradient))
    distances = [(leaf - old).abs() for leaf, old in zip(y.leaves, before, strict=True)]
    signs = {number for number, far in enumerate(distances) if torch.allclose(far, torch.full_like(far, 0.01))}
    assert signs == {0, 1, 2, 3} - moved
    for number in moved:
        values = torch.linalg.svdvals(distances[number].flatten(2))
        assert values.max() <= 0.1 * 1.16 * 5**0.5


def test_kernels_are_matrices_of_all_their_inputs():
    """[5, 1, 2, 2] is [5, 4]: one singular value would be another's if each 2 x 2 were one."""
    y, gradient = model(), model()
    before = y.leaves[2].clone()
    stepper = Rule(Muon(newton_schulz=0), None, 0.0, 0.0).stepper(y, Beginning(torch.ones(2)))
    stepper.take(y, Step(0, 0.1, gradient))
    values = torch.linalg.svdvals((y.leaves[2] - before).flatten(2))
    torch.testing.assert_close(values, torch.full((2, 4), 0.1 * (5 / 4) ** 0.5), rtol=0, atol=1e-6)


def test_the_momentum_is_remembered_of_its_own_leaves_alone():
    remembered = Muon(others="sgd").begin(model(), Beginning(torch.ones(2)))
    assert {name: [tuple(leaf.shape) for leaf in part.leaves] for name, part in remembered.items()} == {
        "m": [(2, 4, 3), (2, 5, 1, 2, 2)]
    }


def test_products_are_those_of_its_factors_and_of_the_other_rule():
    """Five steps of an [8, 6] take 3960, those of the [3, 8] that comes last 855."""
    shapes = ((8, 6), (8,), (3, 8), (3,))
    assert Muon().operations(shapes) == 3960
    assert Muon(others="steepest").operations(shapes) == Muon(last=True).operations(shapes) == 3960 + 855
