"""Replay: the log in its order gives the same bits, for any rows and blocks."""

from __future__ import annotations

import pytest
import torch

from fedsim.core.streams import SERVER, Streams
from fedsim.zeroth_order.directions import Keys, draw, dual
from fedsim.zeroth_order.perturbation import perturb_
from fedsim.zeroth_order.replay import replay_

STREAMS = Streams(11)
DIMENSION, ROWS, LENGTH = 1000, 5, 50
KEYS = Keys("log", owner=SERVER, turn=torch.arange(LENGTH) // 10, step=torch.arange(LENGTH) % 10, draw=3)


def start(dtype=torch.float32) -> torch.Tensor:
    return Streams(1).normal("start", torch.arange(ROWS), (DIMENSION,), dtype=dtype)


def scalars() -> torch.Tensor:
    return Streams(2).normal("scalars", torch.arange(LENGTH), (ROWS,))


def same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Equal, where NaN equals NaN and -0 differs from 0."""
    return torch.equal(first.view(torch.int32), second.view(torch.int32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["gaussian", "rademacher", "segmented"])
def test_replay_is_the_sum_taken_one_by_one(kind, dtype):
    found = replay_(start(dtype), STREAMS, KEYS, scalars(), rate=0.1, kind=kind)
    expected = start(dtype)
    for number, row in enumerate(scalars()):
        named = {"turn": number // 10, "step": number % 10, "dtype": dtype}
        v = draw(kind, STREAMS, "log", torch.tensor([SERVER]), 4, DIMENSION, **named)[0, 3]
        expected = expected - (row.double() * 0.1).to(dtype).unsqueeze(1) * dual(kind, v)
    assert torch.equal(found, expected)


def test_replay_works_in_place_on_vectors_and_rows():
    rows, vector = start(), start()[2].clone()
    assert replay_(rows, STREAMS, KEYS, scalars(), rate=0.1) is rows
    assert replay_(vector, STREAMS, KEYS, scalars()[:, 2], rate=0.1) is vector
    assert same_bits(vector, rows[2])
    assert not torch.equal(vector, start()[2])
    everyone = replay_(start(), STREAMS, KEYS, scalars()[:, 2], rate=0.1)
    assert same_bits(everyone[2], vector)


@pytest.mark.parametrize("block", [33, 130, 999, 5000, 2**16])
def test_blocks_do_not_show(block):
    expected = replay_(start(), STREAMS, KEYS, scalars(), rate=0.1)
    assert same_bits(replay_(start(), STREAMS, KEYS, scalars(), rate=0.1, block=block), expected)


def test_a_log_may_come_in_parts():
    whole = replay_(start(), STREAMS, KEYS, scalars(), rate=0.1)
    parts = start()
    for some in (slice(0, 13), slice(13, 13), slice(13, LENGTH)):
        replay_(parts, STREAMS, KEYS[some], scalars()[some], rate=0.1)
    assert same_bits(parts, whole)


def test_order_matters_at_the_level_of_rounding():
    whole = replay_(start(), STREAMS, KEYS, scalars())
    backwards = torch.arange(LENGTH - 1, -1, -1)
    other = replay_(start(), STREAMS, KEYS[backwards], scalars()[backwards])
    assert not torch.equal(whole, other)
    # 50 additions of numbers whose partial sums stay below 64: each rounds by at most 2^-24 * 64
    assert float((whole - other).abs().max()) < 2 * 50 * 2**-24 * 64
    torch.testing.assert_close(
        replay_(start(torch.float64), STREAMS, KEYS, scalars()),
        replay_(start(torch.float64), STREAMS, KEYS[backwards], scalars()[backwards]),
        atol=1e-12,
        rtol=0,
    )


def test_rows_keep_their_bits_where_their_scalar_is_zero():
    """Row r has missed the last 10 r contributions; the first row has missed all and the last none."""
    missed = torch.arange(LENGTH).unsqueeze(1) >= 50 - 10 * torch.tensor([0, 2, 1, 4, 5])
    masked = scalars() * missed
    masked[:, 1] = -masked[:, 1].abs() * 0.0  # and -0 is 0
    rows = start()
    rows[:, 0], rows[:, 1] = -0.0, float("nan")
    found = replay_(rows.clone(), STREAMS, KEYS, masked)
    assert same_bits(found[:2], rows[:2])
    for row in (2, 3, 4):
        own = missed[:, row]
        alone = replay_(rows[row].clone(), STREAMS, KEYS[own], scalars()[own, row])
        assert same_bits(found[row], alone)
        assert not torch.equal(found[row, 2:], rows[row, 2:])


def test_an_empty_log_changes_nothing():
    rows = -torch.zeros(2, 4)
    assert same_bits(replay_(rows.clone(), STREAMS, KEYS[:0], torch.empty(0, 2)), rows)
    assert same_bits(replay_(rows.clone(), STREAMS, KEYS, torch.zeros(LENGTH)), rows)


def test_a_step_in_place_and_its_replay_are_the_same():
    moved, replayed = start(), start()
    row = scalars()[0]
    perturb_([moved], STREAMS, Keys("log"), -0.1 * row.double())
    replay_(replayed, STREAMS, Keys("log"), row.unsqueeze(0), rate=0.1)
    assert same_bits(moved, replayed)


def test_a_log_without_as_many_names_is_refused():
    with pytest.raises(ValueError, match="50 keys do not name 49"):
        replay_(start(), STREAMS, KEYS, scalars()[1:])
