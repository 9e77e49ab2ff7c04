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


LISTS = {
    "top_k": [TopK(k=20)],
    "top_k with a bit for each": [TopK(ratio=0.5)],
    "top_k of layers": [TopK(ratio=0.02, per="layer")],
    "top_k by rice": [TopK(ratio=0.05, index="rice")],
    "random_k": [RandomK(k=20)],
    "qsgd": [QSGD(levels=4)],
    "qsgd of layers by elias": [QSGD(levels=1, per="layer", code="elias")],
    "qsgd that elias would lengthen": [QSGD(levels=127, per=10, code="elias")],
    "terngrad": [TernGrad(per=100)],
    "natural": [Natural()],
    "sign": [Sign(per="layer")],
    "fp16": [Half()],
    "bf16": [Half(format="bf16")],
    "integer": [Integer(per=64)],
    "integer of three bits": [Integer(bits=3, rounding="random")],
    "low_rank": [LowRank(rank=2, warm_start=False)],
    "top_k, qsgd": [TopK(k=20), QSGD(levels=4, code="elias")],
    "top_k by rice, integer": [TopK(ratio=0.05, index="rice"), Integer(per=16)],
    "top_k of layers, natural": [TopK(ratio=0.1, per="layer"), Natural()],
    "random_k, fp16": [RandomK(k=15), Half()],
    "low_rank, sign": [LowRank(rank=1, warm_start=False), Sign(per=50)],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", LISTS)
def test_bytes_are_those_of_a_real_message(name, dtype):
    rows = spiky(dtype=dtype)
    plain = Size(LENGTH, 8 * rows.element_size())
    chain = Chain(tuple(LISTS[name])).fitted(SHAPES, plain)
    stages = [Vector(rows, plain, Sender(CLIENTS, Streams(1), 0))]
    for transform in chain.transforms:
        stages.append(transform.encode(stages[-1]))
    crossed = chain.apply({"delta": rows}, Sender(CLIENTS, Streams(1), 0))
    first, last = chain.transforms[0], chain.transforms[-1]
    for client in range(len(CLIENTS)):
        given, sent = (stage.rows[client].numpy() for stage in stages[-2:])
        out = wire.Writer()
        wire.write(last, out, given, sent)
        if isinstance(first, TopK):
            wire.write_beside(first, out, LENGTH, places_of(first, rows[client]))
        message = out.bytes()
        assert len(message) == int(crossed.nbytes[client])
        assert len(message) <= chain.sizes({"delta": plain})["delta"].nbytes
        found = wire.Reader(message)
        numbers = wire.read(last, found, len(sent), sent.dtype)
        assert np.array_equal(numbers, sent)
        if isinstance(first, TopK):
            arrived = np.zeros(LENGTH, dtype=sent.dtype)
            arrived[wire.read_beside(first, found, LENGTH)] = numbers
            assert np.array_equal(arrived, crossed.payload["delta"][client].numpy())
        elif len(stages) == 2 and not isinstance(first, RandomK | LowRank):
            assert np.array_equal(numbers, crossed.payload["delta"][client].numpy())
        assert len(found.bits) - found.at < 8


def places_of(transform, row):
    """The places of the largest, found one after the other."""
    places, first = [], 0
    for size, count in transform.kept(len(row)):
        own = row[first : first + size].abs()
        places += [first + place for place in sorted(range(size), key=lambda j, own=own: (-own[j], j))[:count]]
        first += size
    return np.array(sorted(places))


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
