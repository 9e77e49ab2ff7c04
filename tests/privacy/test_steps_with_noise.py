"""Local steps with clipped gradients and noise."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from fedsim.core.streams import Streams
from fedsim.nets.chain import ChainNetwork
from fedsim.nets.dropout import Draw
from fedsim.nets.losses import CrossEntropy
from fedsim.nets.network import Batch
from fedsim.nets.stack import Layout
from fedsim.privacy.steps import NoisySteps, capacity


@pytest.mark.parametrize(("examples", "width", "room"), [(20, 2, 16), (60, 6, 28), (600, 60, 118), (600, 6, 31)])
def test_room_for_all_but_one_step_in_ten_to_the_twelve(examples, width, room):
    assert capacity(torch.tensor([examples]), width) == room


def test_room_is_for_the_client_that_draws_most_and_never_more_than_it_has():
    """60,000 at a rate of 0.01 need 780; three at a rate of two thirds three; of four all are in."""
    assert capacity(torch.tensor([3, 60000]), 600) == 780
    assert capacity(torch.tensor([3]), 2) == 3
    assert capacity(torch.tensor([4, 4]), 4) == 4


def made() -> tuple[ChainNetwork, torch.Tensor, Batch]:
    layout = Layout.of(dict(nn.Sequential(nn.Linear(30, 20)).named_parameters(prefix="")))
    network = ChainNetwork.of(nn.Sequential(nn.Linear(30, 20)), layout, CrossEntropy())
    assert network is not None
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 4, 30, generator=generator), torch.zeros(2, 4, dtype=torch.int64)
    weight = torch.tensor([[0.5, 0.5, 0.5, 0.0], [0.0] * 4])  # three drawn of two expected, and none of four
    draw = Draw(Streams(0), torch.arange(2), 0, 0)
    expected = torch.tensor([2.0, 4.0])
    return network, torch.randn(2, layout.dimension, generator=generator), Batch(x, y, weight, draw, expected=expected)


def test_noise_has_the_deviation_of_z_times_the_bound_over_the_expected_batch():
    """Also where nobody was drawn. 620 numbers each: within 10 %."""
    network, params, batch = made()
    y = network.layout.stack(params)
    _, plain = NoisySteps((0.5,), 0.0, 4).gradients(network, y, batch)
    _, noisy = NoisySteps((0.5,), 1.5, 4).gradients(network, y, batch)
    assert torch.allclose((noisy.flat() - plain.flat()).std(dim=1), 1.5 / torch.tensor([2.0, 4.0]), rtol=0.1)
    assert float(plain.flat()[1].abs().max()) == 0.0
    assert float(plain.flat()[0].norm()) <= 3 * 0.5 / 2 + 1e-6
    later = replace(batch, draw=replace(batch.draw, step=1))
    assert not torch.equal(NoisySteps((0.5,), 1.5, 4).gradients(network, y, later)[1].flat(), noisy.flat())


def test_without_a_bound_and_noise_it_is_the_gradient():
    network, params, batch = made()
    y = network.layout.stack(params)
    open_, far = NoisySteps(None, 0.0, 4), NoisySteps((1e30,), 0.0, 4)
    wanted = network.gradients(y, batch)[1].flat()
    assert torch.equal(open_.gradients(network, y, batch)[1].flat(), wanted)
    assert torch.equal(far.gradients(network, y, batch)[1].flat(), wanted)
    assert (open_.plain, far.plain) == (True, False)
