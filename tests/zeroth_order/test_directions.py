"""Directions: the moments that estimates rely on, exact identities, and names that do not depend on company."""

from __future__ import annotations

import math

import pytest
import torch

from fedsim.core.errors import InputError
from fedsim.core.philox import MASK
from fedsim.core.streams import Streams, philox
from fedsim.zeroth_order import directions
from fedsim.zeroth_order.directions import KINDS, Keys, check, draw, dual, part, scale, second_moment

CLIENTS = torch.arange(20_000)
CPU = torch.device("cpu")
DIMENSION = 10
GRADIENT = torch.linspace(-1.0, 2.0, DIMENSION, dtype=torch.float64)
SLICEABLE = ("gaussian", "rademacher", "segmented")


def estimates(kind, count):
    """The mean of `count` estimates for each client: [C, d]."""
    v = draw(kind, Streams(0), "table", CLIENTS, count, DIMENSION, dtype=torch.float64)
    return ((v @ GRADIENT).unsqueeze(2) * dual(kind, v)).mean(dim=1)


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_estimates_have_the_moments_of_the_table(kind, count):
    """20,000 estimates; five standard errors, that of the second moment taken from the sample.

    It is below 1.5 % (five of them 7.5 %), while d and d + 2 differ by 20 %.
    """
    found = estimates(kind, count)
    expected = second_moment(kind, DIMENSION, count)
    square = float(GRADIENT.square().sum())
    # E|mean - g|^2 = (c - 1) |g|^2 / n
    error = math.sqrt((expected - 1.0) * square / len(CLIENTS))
    assert float((found.mean(dim=0) - GRADIENT).norm()) < 5 * error
    moments = found.square().sum(dim=1) / square
    error = float(moments.std()) / math.sqrt(len(CLIENTS))
    assert error < 0.015 * expected
    assert abs(float(moments.mean()) - expected) < 5 * error


def test_second_moments_of_the_table():
    # d = 10: d + 2, d, d, 1 + 7 * 9 / 6 = 11.5, d, d
    assert [second_moment(kind, 10) for kind in KINDS] == [12.0, 10.0, 10.0, 11.5, 10.0, 10.0]
    # 1 + 11 / 4, 1 + 9 / 4 twice, 1 + 10.5 / 4, and 10 / 4 twice
    assert [second_moment(kind, 10, 4) for kind in KINDS] == [3.75, 3.25, 3.25, 3.625, 2.5, 2.5]


def test_segmented_directions_that_multiply_shrink_the_gradient():
    v = draw("segmented", Streams(0), "table", CLIENTS, 1, DIMENSION, dtype=torch.float64)[:, 0]
    found = ((v @ GRADIENT).unsqueeze(1) * v).mean(dim=0)
    # E|(g.v) v|^2 <= d E(g.v)^2 <= d |g|^2, as |v|^2 <= d, so five standard errors are at most
    error = 5 * math.sqrt(DIMENSION / len(CLIENTS)) * float(GRADIENT.norm())
    assert float((found - 7 / 12 * GRADIENT).norm()) < error
    # 0.11 |g|, while g itself is 5/12 |g| away
    assert error < 0.12 * float(GRADIENT.norm())
    with pytest.raises(ValueError, match="divided"):
        scale("segmented", DIMENSION)


def test_scales():
    assert [scale(kind, 7) for kind in ("gaussian", "rademacher", "sphere", "orthonormal", "coordinate")] == [
        1.0,
        1.0,
        7.0,
        7.0,
        7.0,
    ]


def test_exact_identities():
    def drawn(kind, count=DIMENSION):
        return draw(kind, Streams(1), "a", CLIENTS[:50], count, DIMENSION, dtype=torch.float64)

    one = torch.eye(DIMENSION, dtype=torch.float64).expand(50, -1, -1)
    assert torch.equal(drawn("rademacher").abs(), torch.ones(50, DIMENSION, DIMENSION, dtype=torch.float64))
    torch.testing.assert_close(drawn("sphere").norm(dim=2), torch.ones(50, DIMENSION, dtype=torch.float64))
    for count in (1, 3, DIMENSION):
        v = drawn("orthonormal", count)
        torch.testing.assert_close(v @ v.mT, one[:, :count, :count], atol=1e-14, rtol=0)
    assert torch.equal(drawn("coordinate"), one)
    some = drawn("coordinate", 3)
    assert torch.equal(some @ some.mT, one[:, :3, :3])
    segmented = drawn("segmented").abs()
    assert 0.5 <= float(segmented.min()) < 0.51
    assert 0.99 < float(segmented.max()) <= 1.0


@pytest.mark.parametrize("kind", ["orthonormal", "coordinate"])
def test_as_many_orthogonal_directions_as_parameters_give_the_gradient(kind):
    found = estimates(kind, DIMENSION)
    torch.testing.assert_close(found, GRADIENT.expand_as(found), atol=1e-12, rtol=0)


def test_orthonormal_directions_are_haar():
    """Every entry has the mean 0 and the mean square 1/d, and reflections are as many as rotations.

    Bounds of five standard errors; entries are within 1, so theirs are at most 5 / sqrt(20000).
    """
    v = draw("orthonormal", Streams(2), "haar", CLIENTS, 3, 3, dtype=torch.float64)
    error = 5 / math.sqrt(len(CLIENTS))
    assert float(v.mean(dim=0).abs().max()) < error
    assert float((v.square().mean(dim=0) - 1 / 3).abs().max()) < error
    assert abs(float(torch.linalg.det(v).mean())) < error


def test_a_gaussian_number_is_box_and_mullers_of_its_block():
    streams = Streams(5)
    secret = streams.derive("a")
    drawn = draw("gaussian", streams, "a", torch.tensor([9]), 3, 11, turn=4, step=6, dtype=torch.float64)
    for number, place in ((0, 0), (1, 5), (2, 10)):
        block = torch.tensor([place // 4])
        words = philox(block, torch.tensor([9]), 4, 6 * 2**16 + number, secret & MASK, secret >> 32)
        pair = place % 4 // 2
        radius = math.sqrt(-2 * math.log((int(words[pair]) + 0.5) / 2**32))
        angle = 2 * math.pi * int(words[pair + 2]) / 2**32
        expected = radius * (math.sin(angle) if place % 2 else math.cos(angle))
        assert float(drawn[0, number, place]) == pytest.approx(expected, rel=1e-12)


def test_a_sign_is_the_bit_of_its_place():
    streams = Streams(5)
    secret = streams.derive("a")
    drawn = draw("rademacher", streams, "a", torch.tensor([9]), 2, 300, turn=4, step=6)
    for number in (0, 1):
        words = philox(torch.arange(3), torch.tensor([9]), 4, 6 * 2**16 + number, secret & MASK, secret >> 32)
        for place in range(300):
            word = int(words[place % 128 // 32][place // 128])
            assert float(drawn[0, number, place]) == 1 - 2 * (word >> place % 32 & 1)


def test_gaussian_numbers_are_normal():
    """200,000 numbers; five standard errors of the means of z, z^2 and z^4, whose variances are 1, 2 and 96."""
    drawn = draw("gaussian", Streams(0), "n", CLIENTS[:100], 2, 1000, dtype=torch.float64).flatten()
    error = 5 / math.sqrt(len(drawn))
    assert abs(float(drawn.mean())) < error
    assert abs(float(drawn.square().mean()) - 1) < error * 2**0.5
    assert abs(float(drawn.pow(4).mean()) - 3) < error * 96**0.5
    # neighbours are pairs of one radius: uncorrelated, as are neighbouring draws and clients
    table = drawn.reshape(100, 2, 1000)
    for first, second in ((table[..., :-1], table[..., 1:]), (table[:, 0], table[:, 1]), (table[:-1], table[1:])):
        assert abs(float((first * second).mean())) < 5 / math.sqrt(first.numel())


@pytest.mark.parametrize("kind", KINDS)
def test_a_client_draws_the_same_in_any_company(kind):
    chosen = torch.tensor([977, 4, 500])
    together = draw(kind, Streams(3), "a", CLIENTS[:1000], 5, 37, turn=2, step=3)
    assert torch.equal(draw(kind, Streams(3), "a", chosen, 5, 37, turn=2, step=3), together[chosen])
    rounds, steps = torch.tensor([2, 1, 0]), torch.tensor([3, 3, 65_535])
    mixed = draw(kind, Streams(3), "a", chosen, 5, 37, turn=rounds, step=steps)
    assert torch.equal(mixed[0], together[977])
    assert torch.equal(mixed[2:], draw(kind, Streams(3), "a", chosen[2:], 5, 37, turn=0, step=65_535))


@pytest.mark.parametrize("kind", KINDS)
def test_a_draw_is_the_same_among_fewer(kind):
    more = draw(kind, Streams(3), "a", CLIENTS[:20], 5, 37, dtype=torch.float64)
    fewer = draw(kind, Streams(3), "a", CLIENTS[:20], 2, 37, dtype=torch.float64)
    if kind == "orthonormal":
        torch.testing.assert_close(fewer, more[:, :2], atol=1e-14, rtol=0)
    else:
        assert torch.equal(fewer, more[:, :2])


def test_the_first_orthonormal_direction_is_the_sphere_s():
    sphere = draw("sphere", Streams(3), "a", CLIENTS[:20], 1, 37, dtype=torch.float64)
    rows = draw("orthonormal", Streams(3), "a", CLIENTS[:20], 5, 37, dtype=torch.float64)
    torch.testing.assert_close(rows[:, :1], sphere, atol=1e-14, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_every_part_of_a_name_matters(kind):
    base = draw(kind, Streams(0), "a", CLIENTS[:8], 3, 64, turn=1, step=1)
    others = [
        draw(kind, Streams(1), "a", CLIENTS[:8], 3, 64, turn=1, step=1),
        draw(kind, Streams(0), "b", CLIENTS[:8], 3, 64, turn=1, step=1),
        draw(kind, Streams(0), "a", CLIENTS[8:16], 3, 64, turn=1, step=1),
        draw(kind, Streams(0), "a", CLIENTS[:8], 3, 64, turn=2, step=1),
        draw(kind, Streams(0), "a", CLIENTS[:8], 3, 64, turn=1, step=2),
        base.roll(1, dims=1),
    ]
    assert not any(torch.equal(base, other) for other in others)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", SLICEABLE)
def test_a_part_has_the_bits_that_it_has_in_the_whole(kind, dtype):
    keys = Keys("a", owner=torch.tensor([3, 9, 4]), draw=torch.tensor([0, 7, 65_535]))
    whole = part(kind, Streams(0), keys, 0, 1000, dtype=dtype, device=CPU)
    assert whole.dtype == dtype
    for start, stop in ((0, 1), (0, 1000), (1, 4), (127, 129), (130, 131), (512, 999), (5, 5)):
        found = part(kind, Streams(0), keys, start, stop, dtype=dtype, device=CPU)
        assert torch.equal(found, whole[:, start:stop])
        assert torch.equal(part(kind, Streams(0), keys[1:2], start, stop, dtype=dtype, device=CPU), found[1:2])


@pytest.mark.parametrize("kind", SLICEABLE)
def test_pieces_do_not_show(kind, monkeypatch):
    whole = draw(kind, Streams(0), "a", CLIENTS[:9], 3, 1001)
    for nbytes in (128, 1024, 5000):
        monkeypatch.setitem(directions.PIECE, "cpu", nbytes)
        assert torch.equal(draw(kind, Streams(0), "a", CLIENTS[:9], 3, 1001), whole)


def test_keys_can_be_chosen_from():
    keys = Keys("a", owner=7, step=torch.tensor([1, 2, 3]), draw=torch.tensor([5]))
    assert len(keys) == 3
    assert len(Keys("a")) == 1
    assert [len(keys[:0]), len(Keys("a")[:0]), len(Keys("a")[:1])] == [0, 0, 1]
    with pytest.raises(ValueError, match="not \\[2, 3\\]"):
        len(Keys("a", owner=torch.tensor([1, 2]), draw=torch.tensor([1, 2, 3])))
    chosen = keys[torch.tensor([False, True, True])]
    assert [word.flatten().tolist() for word in chosen.counters(CPU)] == [
        [7, 7],
        [0, 0],
        [2 * 65_536 + 5, 3 * 65_536 + 5],
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_nobody_draws_nothing(kind):
    assert draw(kind, Streams(0), "a", CLIENTS[:0], 3, 5).shape == (0, 3, 5)


def test_numbers_of_directions_that_cannot_be_drawn_are_refused():
    for kind in ("orthonormal", "coordinate"):
        check(kind, 5, 5)
        with pytest.raises(InputError, match=r"^queries = 6: .* at most as many as parameters, here 5$"):
            check(kind, 6, 5)
        with pytest.raises(InputError):
            draw(kind, Streams(0), "a", CLIENTS[:1], 6, 5)
    check("gaussian", 2**16, 5)
    for count in (0, 2**16 + 1):
        with pytest.raises(InputError, match=f"^directions = {count}: "):
            check("gaussian", count, 5, "directions")


@pytest.mark.parametrize(
    ("fields", "shown"),
    [
        ({"step": 65_536}, "step = 65536"),
        ({"draw": -1}, "draw = -1"),
        ({"draw": torch.tensor([0, 70_000])}, "draw = 70000"),
    ],
)
def test_numbers_that_do_not_fit_into_a_name_are_refused(fields, shown):
    with pytest.raises(InputError, match=f"^{shown}: "):
        Keys("a", **fields)
