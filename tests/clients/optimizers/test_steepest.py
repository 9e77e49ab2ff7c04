"""Steepest descent under norms: dual norms, the unit ball, what it is under each norm, and what a decay bounds."""

from __future__ import annotations

import pytest
import torch
from oracles import W, assert_finishes_early, assert_stays_without_gradient, exact, path
from torch import Tensor

from clients.optimizers.muon import Muon
from clients.optimizers.sgd import Sgd
from clients.optimizers.steepest import Steepest
from fedsim.core.errors import InputError
from fedsim.nets import matrix_norms

GRADIENTS = -(W.curvatures @ W.least)
"""Where both clients of W begin, [2, 3, 2]."""
DUALS = {
    "max": (23.5, 20.375),
    "frobenius": (12.932517, 12.887130),
    "spectral": (15.677786, 14.237587),
    "columns": (16.692818, 18.223801),
    "rows": (19.476519, 15.007431),
}
NORMS = {
    "max": lambda matrix: matrix.abs().amax((-2, -1)),
    "frobenius": lambda matrix: matrix.square().sum((-2, -1)).sqrt(),
    "spectral": lambda matrix: torch.linalg.svdvals(matrix).amax(-1),
    "columns": lambda matrix: matrix.square().sum(-2).sqrt().amax(-1),
    "rows": lambda matrix: matrix.square().sum(-1).sqrt().amax(-1),
}


def rule(norm: str, **options: object) -> Steepest:
    return Steepest(norm=norm, newton_schulz=0 if norm == "spectral" else 5, **options)


def first(norm: str, **options: object) -> Tensor:
    """The first step of both clients, of lr 1, [2, 3, 2]; alone it has the same bits."""
    made = rule(norm, **options)
    together = path(made, [1, 1], problem=W, lr=1.0)
    for client in range(2):
        alone = path(made, [1], problem=W, lr=1.0, clients=slice(client, client + 1))
        assert torch.equal(alone[:, 0], together[:, client])
    return together.view(2, 3, 2)


@pytest.mark.parametrize("norm", DUALS)
def test_a_step_has_norm_1_and_falls_by_the_dual_norm(norm):
    """<g, T> = |g|*; of length dual it is |g|* T."""
    step = first(norm)
    torch.testing.assert_close(NORMS[norm](step), exact([1, 1]), rtol=0, atol=1e-12)
    torch.testing.assert_close(-(GRADIENTS * step).sum((1, 2)), exact(DUALS[norm]), rtol=0, atol=6e-7)
    torch.testing.assert_close(first(norm, length="dual"), step * exact(DUALS[norm]).view(2, 1, 1), rtol=1e-6, atol=0)


def test_under_a_frobenius_norm_the_dual_length_is_plain_descent():
    plain, steepest = (path(made, [4, 4], problem=W) for made in (Sgd(), rule("frobenius", length="dual")))
    torch.testing.assert_close(steepest, plain, rtol=1e-12, atol=0)


def test_with_a_momentum_under_the_spectral_norm_it_is_muon_without_its_scale():
    """Muon's rate has sqrt(3 / 2) beside, for matrices 3 x 2; without nesterov the momentum is the same."""
    steepest = path(Steepest(beta=0.95), [3, 3], problem=W, lr=0.1 * 1.5**0.5)
    torch.testing.assert_close(path(Muon(last=True, nesterov=False), [3, 3], problem=W), steepest, rtol=1e-9, atol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_a_decay_bounds_the_norm(norm):
    """By 1 / 2, which is come to, as each least point lies beyond."""
    found = NORMS[norm](path(rule(norm), [150, 150], problem=W, lr=0.02, decay=2.0).view(150, 2, 3, 2))
    assert float(found.max()) <= 0.5 + 1e-9
    assert float(found[-1].min()) >= 0.49


@pytest.mark.parametrize("norm", NORMS)
def test_who_has_finished_stays_and_who_has_no_gradient_too(norm):
    assert_finishes_early(rule(norm, beta=0.5), problem=W)
    assert_stays_without_gradient(Steepest(norm=norm, biases="frobenius"))
    zeros = [torch.zeros(2, *shape) for shape in ((3, 4), (4, 3, 2, 2), (5,))]
    names = matrix_norms.named([leaf.shape[1:] for leaf in zeros], norm, "frobenius")
    assert not any(bool(made.any()) for made in matrix_norms.steepest(zeros, names, 5))


@pytest.mark.parametrize("norm", NORMS)
def test_a_large_leaf_has_the_bits_that_it_has_alone_and_nan_stays_with_its_client(norm):
    """Also leaves whose rows or columns are single ones, and kernels."""
    generator = torch.Generator().manual_seed(1)
    shapes = ((40, 1000), (40000, 1), (1, 40000), (4, 3, 5, 5), (40000,))
    leaves = [torch.randn(3, *shape, generator=generator) for shape in shapes[: 4 if norm == "spectral" else 5]]
    names = matrix_norms.named([leaf.shape[1:] for leaf in leaves], norm, "frobenius")
    together = matrix_norms.steepest(leaves, names, 5)
    for client in range(3):
        alone = matrix_norms.steepest([leaf[client : client + 1] for leaf in leaves], names, 5)
        assert all(torch.equal(own[0], every[client]) for own, every in zip(alone, together, strict=True))
    for leaf, made in zip(leaves, together, strict=True):
        assert made.shape == leaf.shape
    spoilt = [leaf.clone() for leaf in leaves]
    for leaf in spoilt:
        leaf[1] = torch.nan
    found = matrix_norms.steepest(spoilt, names, 5)
    for made, sound in zip(found, together, strict=True):
        assert torch.equal(made[[0, 2]], sound[[0, 2]])
        assert norm == "max" or bool(made[1].isnan().all())


def test_steps_to_a_factor_are_of_the_spectral_norm_alone():
    with pytest.raises(InputError, match=r"newton_schulz = 3: is an option of norm = 'spectral' only"):
        Steepest(norm="rows", newton_schulz=3)
    shapes = ((8, 6), (8,), (6, 2, 4))
    assert Steepest().operations(shapes) == 2 * 3960
    assert Steepest(norm="rows").operations(shapes) == 0
