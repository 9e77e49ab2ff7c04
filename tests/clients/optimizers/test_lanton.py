"""LANTON: rates follow the noise of layers within their group and their client."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from oracles import W, assert_finishes_early, path
from torch import Tensor

from clients.optimizers.lanton import Lanton
from clients.optimizers.steepest import Steepest
from fedsim.client import Beginning, Stack, Step
from fedsim.core.errors import InputError
from fedsim.nets.descent import Rule

SHAPES = ((8, 6), (5, 8), (8,), (5,))
CLIENTS = 3


def gradients(noises: tuple[float, ...], steps: int, clients: int = CLIENTS) -> Iterator[Stack]:
    """Gradients of ones, with noise of these sizes in the leaves, each client's its own."""
    generator = torch.Generator().manual_seed(2)
    for _ in range(steps):
        yield Stack(
            [
                1.0 + noise * torch.randn(CLIENTS, *shape, generator=generator, dtype=torch.float64)[:clients]
                for noise, shape in zip(noises, SHAPES, strict=True)
            ]
        )


def rates(rule: Lanton, noises: tuple[float, ...], clients: int = CLIENTS, decay: float = 0.0) -> Tensor:
    """The lengths of the steps of each leaf under its norm, in lr, [steps, leaves, clients]; alone and together."""
    y = Stack([torch.zeros(clients, *shape, dtype=torch.float64) for shape in SHAPES])
    stepper, found = Rule(rule, None, 0.0, decay).stepper(y, Beginning(torch.ones(clients))), []
    for number, gradient in enumerate(gradients(noises, 50, clients)):
        before = [leaf.clone() for leaf in y.leaves]
        stepper.take(y, Step(number, 0.1, gradient))
        moves = [(leaf - old) / 0.1 for leaf, old in zip(y.leaves, before, strict=True)]
        found.append(torch.stack([_length(move) for move in moves]))
    return torch.stack(found)


def _length(move: Tensor) -> Tensor:
    """The largest singular value of a matrix, the largest entry of a vector."""
    return torch.linalg.svdvals(move).amax(1) if move.dim() == 3 else move.abs().amax(1)


def test_the_quietest_layer_of_a_group_has_the_rate_and_the_others_less():
    """Matrices and vectors are two groups; of the noisier ones rates fall to about 0.2, each client's its own."""
    rule = Lanton(newton_schulz=0)
    found = rates(rule, (0.01, 3.0, 0.5, 0.02))
    torch.testing.assert_close(found[:, [0, 3]], torch.ones(50, 2, CLIENTS, dtype=torch.float64), rtol=0, atol=1e-9)
    torch.testing.assert_close(found[0], torch.ones(4, CLIENTS, dtype=torch.float64), rtol=0, atol=1e-9)
    assert bool((found <= 1.0 + 1e-9).all())
    last = found[-1, 1]
    assert bool(((last > 0.1) & (last < 0.3)).all())
    assert len(set(last.tolist())) == CLIENTS
    torch.testing.assert_close(rates(rule, (0.01, 3.0, 0.5, 0.02), clients=1), found[:, :, :1], rtol=1e-12, atol=0)


def test_under_one_norm_all_layers_are_a_group():
    """The second vector, which was the quietest of two, is one of four."""
    found = rates(Lanton(norm="frobenius", biases="frobenius"), (0.01, 3.0, 0.5, 1.0))
    lengths = found[-1, 3]
    assert bool((lengths < 0.9).all())


def test_the_noise_is_of_dual_norms_from_0():
    """One leaf of 3 x 2 and one of as many, the first without change: h = 0.1 |d|*^2 of the second after two steps."""
    y = Stack([torch.zeros(1, 3, 2, dtype=torch.float64) for _ in range(2)])
    stepper = Rule(Lanton(newton_schulz=0, alpha=2.0), None, 0.0, 0.0).stepper(y, Beginning(torch.ones(1)))
    one, change = torch.ones(1, 3, 2, dtype=torch.float64), torch.tensor([[[3.0, 0.0], [0.0, 4.0], [0.0, 0.0]]])
    stepper.take(y, Step(0, 0.1, Stack([one.clone(), one.clone()])))
    before = y.leaves[1].clone()
    stepper.take(y, Step(1, 0.1, Stack([one.clone(), one + change])))
    noise = 0.1 * 7.0**2  # of singular values 3 and 4
    rate = (2.0 / (4.0 + noise) ** 0.5) ** 0.5
    torch.testing.assert_close(float(_length(y.leaves[1] - before)), 0.1 * rate, rtol=1e-9, atol=0)


def test_one_layer_by_itself_is_steepest_descent_with_its_decay():
    lanton, steepest = (path(rule, [5, 5], problem=W, decay=0.7) for rule in (Lanton(), Steepest(beta=0.95)))
    torch.testing.assert_close(lanton, steepest, rtol=1e-12, atol=0)


def test_a_decay_has_the_layers_own_rates():
    """From 1 under gradients that fall on two layers of one group; the noisier shrinks by less."""
    y = Stack([torch.ones(1, 4, 4, dtype=torch.float64) for _ in range(2)])
    alone = [leaf.clone() for leaf in y.leaves]
    pairs = []
    for decay in (0.0, 0.5):
        rows = Stack([leaf.clone() for leaf in alone])
        stepper = Rule(Lanton(newton_schulz=0), None, 0.0, decay).stepper(rows, Beginning(torch.ones(1)))
        for number, sign in enumerate((1.0, -1.0)):
            before = [leaf.clone() for leaf in rows.leaves]
            gradient = Stack([torch.eye(4, dtype=torch.float64).unsqueeze(0) * own for own in (1.0, sign * 5.0)])
            stepper.take(rows, Step(number, 0.1, gradient))
        pairs.append([(leaf - old) for leaf, old in zip(rows.leaves, before, strict=True)] + before)
    (plain_quiet, plain_noisy, *_), (quiet, noisy, quiet_before, noisy_before) = pairs
    torch.testing.assert_close(quiet, plain_quiet - 0.1 * 0.5 * quiet_before)
    rate = (1.0 / (1.0 + 0.1 * 40.0**2) ** 0.5) ** 0.5  # of four singular values of 10
    torch.testing.assert_close(noisy, plain_noisy - 0.1 * rate * 0.5 * noisy_before)


def test_who_has_finished_stays():
    assert_finishes_early(Lanton(), problem=W)


def test_products_are_those_of_two_factors_a_matrix():
    assert Lanton().operations(((8, 6), (8,))) == 2 * 3960
    with pytest.raises(InputError, match=r"newton_schulz = 3: is an option of norm = 'spectral' only"):
        Lanton(norm="rows", newton_schulz=3)
