"""Named draws: known answers, independence, and equality under any grouping of clients."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedsim.core.philox import MASK, words
from fedsim.core.streams import Streams, philox

CLIENTS = torch.arange(1000)


@pytest.mark.parametrize(
    ("counter", "key", "published"),
    [  # Random123's known answers for philox4x32, 10 rounds
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((MASK,) * 4, (MASK,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_words(counter, key, published):
    found = philox(*(torch.tensor([word]) for word in counter), *key)
    assert tuple(int(word) for word in found) == published


def test_numpy_alone_draws_the_same_words():
    drawn = Streams(3).bits("a", torch.tensor([2**32 - 1, 5]), 7, turn=2)
    assert [words(3, "a", client, 7, turn=2).tolist() for client in (2**32 - 1, 5)] == drawn.tolist()
    assert words(3, "a", 5, 0).tolist() == []


def draws(streams: Streams, clients: torch.Tensor) -> list[torch.Tensor]:
    return [
        streams.bits("a", clients, 7, turn=2, step=3),
        streams.uniform("a", clients, (2, 3), turn=2),
        streams.uniform("a", clients, (5,), dtype=torch.float64),
        streams.normal("a", clients, (3,), step=1),
        streams.integers("a", clients, (4,), 10),
        streams.permutation("a", clients, 9),
    ]


def test_a_client_draws_the_same_in_any_company():
    streams = Streams(3)
    together = draws(streams, CLIENTS)
    chosen = torch.tensor([977, 4, 500])
    for whole, part in zip(together, draws(streams, chosen), strict=True):
        assert torch.equal(whole[chosen], part)


def test_ragged_draws_are_the_beginnings_of_full_ones():
    streams, counts = Streams(0), torch.tensor([5, 0, 1, 8, 4])
    clients = torch.tensor([7, 1, 9, 3, 2])
    full = streams.bits("a", clients, 8, turn=4)
    expected = torch.cat([row[:count] for row, count in zip(full, counts, strict=True)])
    assert torch.equal(streams.ragged_bits("a", clients, counts, turn=4), expected)


def test_every_part_of_a_name_matters():
    base = Streams(0).bits("a", CLIENTS, 4, turn=1, step=1)
    for other in (
        Streams(1).bits("a", CLIENTS, 4, turn=1, step=1),
        Streams(0).bits("b", CLIENTS, 4, turn=1, step=1),
        Streams(0).bits("a", CLIENTS, 4, turn=2, step=1),
        Streams(0).bits("a", CLIENTS, 4, turn=1, step=2),
        Streams(0).bits("a", CLIENTS + 1000, 4, turn=1, step=1),
    ):
        # 4,000 words of 32 bits: a chance match anywhere has a probability of 4000 / 2^32, one in a million.
        assert int((base == other).sum()) == 0


def test_rounds_and_steps_may_differ_by_client():
    streams, rounds = Streams(0), torch.tensor([3, 1, 2])
    mixed = streams.bits("a", CLIENTS[:3], 5, turn=rounds)
    for client, number in enumerate(rounds.tolist()):
        assert torch.equal(mixed[client : client + 1], streams.bits("a", CLIENTS[client : client + 1], 5, turn=number))


def test_uniforms_are_uniform_and_normals_normal():
    """20,000 numbers; bounds are five standard errors of a mean, 5 / sqrt(20000), times the standard deviation."""
    error = 5 / 20_000**0.5
    uniform = Streams(0).uniform("u", CLIENTS, (20,)).double()
    assert 0 <= float(uniform.min()) < float(uniform.max()) < 1
    assert abs(float(uniform.mean()) - 0.5) < error * (1 / 12) ** 0.5
    normal = Streams(0).normal("n", CLIENTS, (20,)).double()
    assert abs(float(normal.mean())) < error
    assert abs(float((normal**2).mean()) - 1) < error * 2**0.5
    assert abs(float((normal**4).mean()) - 3) < error * 96**0.5


def test_clients_are_independent():
    """Correlations of 300 clients' rows of 2,000 uniforms: the largest of 44,850 is below six standard errors."""
    rows = Streams(0).uniform("u", CLIENTS[:300], (2000,), dtype=torch.float64)
    correlation = torch.corrcoef(rows)
    correlation.fill_diagonal_(0)
    assert float(correlation.abs().max()) < 6 / 2000**0.5


def test_normals_agree_with_box_and_muller_in_double_precision():
    """The rule on the same words, in NumPy: another device may differ by its logarithm and cosine only."""
    words = Streams(0).bits("n", CLIENTS[:5], 6).numpy().astype(np.float64)
    radius = np.sqrt(-2 * np.log((words[:, :3] + 0.5) / 2**32))
    angle = 2 * np.pi * words[:, 3:] / 2**32
    expected = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    found = Streams(0).normal("n", CLIENTS[:5], (6,), dtype=torch.float64).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_devices_agree():
    for here, there in zip(draws(Streams(0), CLIENTS), draws(Streams(0), CLIENTS.cuda()), strict=True):
        if here.is_floating_point():
            assert torch.allclose(here, there.cpu(), rtol=0, atol=1e-6)
        else:
            assert torch.equal(here, there.cpu())


def test_permutations_are_permutations_and_fair():
    orders = Streams(0).permutation("p", CLIENTS, 6)
    assert torch.equal(orders.sort(dim=1).values, torch.arange(6).expand(1000, 6))
    # 1,000 draws of 6 places: each count has mean 166.7 and standard deviation 11.8; five of them is 59.
    counts = torch.stack([(orders == value).sum(dim=0) for value in range(6)])
    assert int((counts - 1000 / 6).abs().max()) < 59


def test_no_global_generator_is_touched():
    before, before_numpy = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    draws(Streams(0), CLIENTS[:3])
    Streams(0).generator("host").random(3)
    assert torch.equal(before, torch.get_rng_state())
    assert (before_numpy == np.random.get_state()[1]).all()  # noqa: NPY002


def test_tensors_give_the_words_of_arrays(monkeypatch):
    """What a GPU computes, computed here: int64 tensors wrap where NumPy's numbers are unsigned."""
    blocks, clients, rounds = (
        torch.arange(5).unsqueeze(0),
        torch.tensor([[0], [7], [MASK]]),
        torch.tensor([[1], [2], [3]]),
    )
    arrays = philox(blocks, clients, rounds, 2**31, 123, MASK)
    monkeypatch.setattr("fedsim.core.streams._words", lambda counter, device: torch.as_tensor(counter, device=device))
    tensors = philox(blocks, clients, rounds, 2**31, 123, MASK)
    assert all(torch.equal(one, other) for one, other in zip(arrays, tensors, strict=True))
