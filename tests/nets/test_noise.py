"""Noise of local steps: normal, named, and the same however its words are made."""

from __future__ import annotations

import pytest
import torch

from fedsim.core.streams import Streams
from fedsim.nets import noise
from fedsim.nets.dropout import Draw

DRAW = Draw(Streams(3), torch.tensor([4, 0, 2**31]), 5, 6)


def drawn(draw: Draw = DRAW, count: int = 1501, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return noise.normal(draw, "noise", count, torch.tensor([1.0, 2.0, 0.5], dtype=dtype)[: len(draw.clients)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("turn", [5, torch.tensor([5, 1, 2])])
def test_compiled_words_are_those_of_the_streams(dtype, turn, monkeypatch):
    draw = Draw(DRAW.streams, DRAW.clients, turn, 6)
    compiled = drawn(draw, dtype=dtype)
    monkeypatch.setattr(noise, "WORTH_COMPILING", 10**9)
    assert torch.equal(compiled, drawn(draw, dtype=dtype))


def test_it_is_normal_with_each_clients_deviation():
    """Of 60,001 numbers the mean is within 5 / sqrt(60,001) = 0.02, the deviation within 1.5 %, and 4.55 % are far."""
    found = drawn(count=60_001) / torch.tensor([[1.0], [2.0], [0.5]])
    assert float(found.mean(dim=1).abs().max()) < 0.02
    assert torch.allclose(found.std(dim=1), torch.ones(3), rtol=0.015)
    assert torch.allclose((found.abs() > 2.0).float().mean(dim=1), torch.full((3,), 0.0455), atol=0.005)
    halves = found[:, :30_000] * found[:, 30_001:]
    assert float(halves.mean(dim=1).abs().max()) < 0.03  # cosines and sines of the same angles


def test_a_client_alone_has_its_own_bits_and_every_step_others():
    alone = Draw(DRAW.streams, DRAW.clients[:1], 5, 6)
    assert torch.equal(drawn(alone), drawn()[:1])
    for other in (Draw(DRAW.streams, DRAW.clients[:1], 5, 7), Draw(DRAW.streams, DRAW.clients[:1], 4, 6)):
        assert not torch.equal(drawn(other), drawn(alone))
