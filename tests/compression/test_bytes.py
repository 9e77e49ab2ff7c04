"""What is declared and counted is the length of a real byte string, from which what arrives can be read."""

import math

import numpy as np
import pytest
import torch
import wire

from fedsim.compression.half import Half
from fedsim.compression.integer import Integer
from fedsim.compression.low_rank import LowRank
from fedsim.compression.natural import Natural
from fedsim.compression.qsgd import QSGD
from fedsim.compression.random_k import RandomK
from fedsim.compression.sign import Sign
from fedsim.compression.terngrad import TernGrad
from fedsim.compression.top_k import TopK
from fedsim.core.streams import Streams
from fedsim.exchange.messages import Size
from fedsim.exchange.transforms import Chain, Sender, Vector

SHAPES = ((24, 20), (24,), (5, 24), (5,))
LENGTH = 480 + 24 + 120 + 5
CLIENTS = torch.tensor([4, 0, 7])


def spiky(length=LENGTH, dtype=torch.float32):
    """Rows of few large and many small numbers, one of them all zeros but one."""
    rows = Streams(0).normal("rows", CLIENTS, (length,), dtype=torch.float64) ** 5
    rows[2] = 0.0
    rows[2, 3] = -2.5
    return rows.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", wire.LISTS)
def test_bytes_are_those_of_a_real_message(name, dtype):
    rows = spiky(dtype=dtype)
    plain = Size(LENGTH, 8 * rows.element_size())
    chain = Chain(tuple(wire.LISTS[name])).fitted(SHAPES, plain)
    state = {name: rows.new_zeros(3, *shape) for name, shape in chain.state(plain).items()}
    sender = Sender(CLIENTS, Streams(1), 0, state)
    found, crossed = wire.stages(chain, rows, sender), chain.apply({"delta": rows}, sender)
    for client in range(len(CLIENTS)):
        message = wire.message(chain, found, client)
        assert len(message) == int(crossed.nbytes[client])
        assert len(message) <= chain.sizes({"delta": plain})["delta"].nbytes
        read = wire.arrived(chain, message, LENGTH, dtype, sender[torch.tensor([client])])
        assert np.array_equal(read, crossed.payload["delta"][client].numpy())


@pytest.mark.parametrize(
    ("transform", "expected"),
    [
        # Of 1000 numbers of 4 bytes.
        (TopK(k=10), 53),
        (TopK(k=100), 525),
        (RandomK(k=10), 40),
        (RandomK(k=10, same=True), 40),
        (QSGD(levels=1), 254),
        (QSGD(levels=4), 504),
        (QSGD(levels=16), 754),
        (QSGD(levels=127), 1004),
        (TernGrad(), 204),
        (Natural(), 1125),
        (Sign(), 129),
        (Half(format="bf16"), 2000),
        (Half(), 2001),
        (Integer(per=256), 1016),
        (Integer(per=64), 1064),
    ],
)
def test_bytes_of_a_thousand_numbers(transform, expected):
    assert Chain((transform,)).sizes({"delta": Size(1000, 32)})["delta"].nbytes == expected


def test_bytes_of_a_layer():
    chain = Chain((LowRank(rank=2),)).fitted(((40, 30),), Size(1200, 32))
    assert chain.sizes({"delta": Size(1200, 32)})["delta"].nbytes == 560
    # At so many numbers a bit for each is shorter than places of 17 bits.
    for k, expected in ((4677, 28647), (4678, 28651)):
        assert TopK(k=k).size(Size(79510, 32)).nbytes == expected


@pytest.mark.parametrize(("levels", "nonzeros", "nbytes"), [(1, 27, 48), (4, 88, 101), (16, 371, 232), (127, 887, 629)])
def test_elias_on_a_known_vector(levels, nonzeros, nbytes, monkeypatch):
    """v_j = sin(j) exp(cos 7j), with the golden ratio's multiples in place of draws."""
    numbers = torch.arange(1, 1001, dtype=torch.float64)
    rows = (numbers.sin() * (7 * numbers).cos().exp()).unsqueeze(0)
    golden = (0.618033988749895 * numbers % 1.0).unsqueeze(0)
    monkeypatch.setattr(Vector, "draw", lambda *_: golden)
    vector = Vector(rows, Size(1000, 32), Sender(CLIENTS[:1], Streams(0), 0))
    coded = QSGD(levels=levels, code="elias").encode(vector)
    assert int((coded.rows != 0).sum()) == nonzeros
    assert coded.size.nbytes.tolist() == [nbytes]


def test_rice_halves_the_places():
    """1 % of 79,510 numbers: 13,515 bits as they are; no code of sets is shorter than log2 binom(d, k) bits."""
    rows = Streams(0).normal("rows", CLIENTS, (79510,))
    size = TopK(ratio=0.01, index="rice").encode(Vector(rows, Size(79510, 32), Sender(CLIENTS, Streams(0), 0))).size
    least = (math.lgamma(79511) - math.lgamma(796) - math.lgamma(79510 - 795 + 1)) / math.log(2)
    assert round(least) == 6417
    assert ((size.beside > least) & (size.beside < 1.02 * least)).all()
    assert TopK(ratio=0.01).size(Size(79510, 32)).beside == 13515
