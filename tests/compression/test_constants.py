"""What arrives is what the rules say, is unbiased where they say so, and is off by no more than they say."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from fedsim.compression.groups import of_groups, spread
from fedsim.compression.half import Half
from fedsim.compression.integer import Integer
from fedsim.compression.low_rank import LowRank
from fedsim.compression.natural import Natural
from fedsim.compression.qsgd import QSGD
from fedsim.compression.random_k import RandomK
from fedsim.compression.sign import Sign
from fedsim.compression.terngrad import TernGrad
from fedsim.compression.top_k import TopK
from fedsim.core.errors import InputError
from fedsim.core.streams import Streams
from fedsim.exchange.messages import Size
from fedsim.exchange.transforms import Chain, Clip, Noise, Sender

MANY = 1500


def send(listed, rows, shapes=(), turn=0, state=None):
    plain = Size(rows.shape[1], 8 * rows.element_size())
    chain = Chain(tuple(listed)).fitted(shapes, plain)
    kept = {name: rows.new_zeros((len(rows), *shape)) for name, shape in chain.state(plain).items()}
    return chain.apply({"delta": rows}, Sender(torch.arange(len(rows)), Streams(3), turn, state or kept))


def arrive(transform, rows, **more):
    return send([transform], rows, **more).payload["delta"]


def repeated(vector):
    """The same vector of many clients, who draw each for itself."""
    return torch.as_tensor(vector, dtype=torch.float64).expand(MANY, -1)


def scatter(transform, vector):
    """E |C(v) - v|^2 / |v|^2, over many clients."""
    rows = repeated(vector)
    return float((arrive(transform, rows) - rows).square().sum(dim=1).mean() / rows[0].square().sum())


def test_by_hand():
    rows = torch.tensor([[3.0, -4.0, 0.0, 4.0, -1.0]], dtype=torch.float64)
    assert arrive(TopK(k=2), rows).tolist() == [[0, -4, 0, 4, 0]]
    assert arrive(TopK(k=1), rows).tolist() == [[0, -4, 0, 0, 0]]  # of equal ones the first
    # |v|_1 / d = 12 / 5, and 0 counts as positive.
    assert arrive(Sign(), rows).tolist() == [[2.4, -2.4, 2.4, 2.4, -2.4]]
    # A scale of 4 / 1: codes 3/4, -1, 0, 1, -1/4 to the nearest.
    assert arrive(Integer(bits=2), rows).tolist() == [[4, -4, 0, 4, 0]]
    # Blocks of two have scales 4, 4 and 1.
    assert arrive(Integer(bits=2, per=2), rows).tolist() == [[4, -4, 0, 4, -1]]
    # Parameters of 2 and 3 numbers.
    shapes = ((2,), (3,))
    assert arrive(TopK(ratio=0.4, per="layer"), rows, shapes=shapes).tolist() == [[0, -4, 0, 4, 0]]
    assert arrive(Sign(per="layer"), rows, shapes=shapes).tolist() == [[3.5, -3.5, 5 / 3, 5 / 3, -5 / 3]]
    assert set(arrive(Natural(), rows).abs()[0].tolist()) <= {0.0, 1.0, 2.0, 4.0}
    assert set(arrive(TernGrad(), rows).abs()[0].tolist()) <= {0.0, 4.0}


def test_what_is_drawn_for_random_k():
    rows = torch.arange(1.0, 41.0, dtype=torch.float64).expand(MANY, -1)
    for k in (4, 30):  # where more than half cross, those are drawn that do not
        sent = arrive(RandomK(k=k), rows)
        kept = sent != 0
        assert (kept.sum(dim=1) == k).all()
        torch.testing.assert_close(sent[kept], (rows * 40 / k)[kept])
        # A binomial count of 1500 trials a place: five deviations.
        share, deviation = k / 40, math.sqrt(MANY * k / 40 * (1 - k / 40))
        assert ((kept.sum(dim=0) - MANY * share).abs() < 5 * deviation).all()
        assert torch.equal(arrive(RandomK(k=k, scaled=False), rows) != 0, kept)
    same = arrive(RandomK(k=4, same=True), rows)
    assert (same == same[0]).all()
    assert not torch.equal(same[0], arrive(RandomK(k=4, same=True), rows[:1], turn=1)[0])
    # It is linear: a sum of messages decodes to the sum.
    different = Streams(0).normal("rows", torch.arange(6), (40,), dtype=torch.float64)
    summed = arrive(RandomK(k=4, same=True), different.sum(dim=0, keepdim=True))
    torch.testing.assert_close(arrive(RandomK(k=4, same=True), different).sum(dim=0, keepdim=True), summed)


LONG = torch.arange(1, 65).double().sin()
HARD = torch.tensor([1.0] + 63 * [1 / 9.0])  # a = 1 / (1 + sqrt d), TernGrad's worst


@pytest.mark.parametrize(
    ("transform", "vector", "omega"),
    [
        (QSGD(levels=4), torch.full((64,), 0.5) ** 0.5, 1.0),
        (QSGD(levels=8), 1.5 * torch.ones(64), 0.25),
        (TernGrad(), HARD, 3.5),
        (Natural(), torch.full((64,), 4 / 3), 0.125),
        (RandomK(k=16), LONG, 3.0),
        (Integer(bits=2, rounding="random"), HARD, 16.0),
    ],
)
def test_unbiased_and_no_further_off_than_omega(transform, vector, omega):
    """Exactly so far where the vector is the worst one."""
    size, rows = Size(len(vector), 64), repeated(vector)
    assert transform.error(size) == pytest.approx(omega)
    off = arrive(transform, rows) - rows
    deviation = off.std(dim=0) / math.sqrt(MANY)
    assert (off.mean(dim=0).abs() <= 5 * deviation + 1e-12).all()
    found = scatter(transform, vector)
    assert found <= 1.03 * omega
    if (vector is HARD and isinstance(transform, TernGrad)) or isinstance(transform, Natural):
        assert found == pytest.approx(omega, rel=0.03)


def test_contracted_loses_no_more_than_it_says():
    for transform in (QSGD(levels=2, contract=True), TernGrad(contract=True), Natural(contract=True)):
        size = Size(64, 64)
        omega = transform.omega(size)
        assert transform.error(size) == pytest.approx(omega / (1 + omega))
        assert scatter(transform, HARD) <= 1.01 * transform.error(size)
        plain = arrive(replace(transform, contract=False), repeated(LONG))
        torch.testing.assert_close(arrive(transform, repeated(LONG)), plain / (1 + omega))


@pytest.mark.parametrize(
    ("transform", "error"),
    [
        (TopK(k=16), 0.75),
        (RandomK(k=16, scaled=False), 0.75),
        (Sign(), 1 - 1 / 64),
        (Half(), 2.0**-22),
        (Half(format="bf16"), 2.0**-16),
        (Integer(), 64 / 254**2),
    ],
)
def test_biased_are_no_further_off_than_they_say(transform, error):
    assert transform.error(Size(64, 64)) == pytest.approx(error)
    for vector in (LONG, HARD, torch.ones(64)):
        assert scatter(transform, vector) <= error * 1.03
    share = float(LONG.abs().sum() ** 2 / 64 / LONG.square().sum())
    if isinstance(transform, Sign):
        assert scatter(transform, LONG) == pytest.approx(1 - share, rel=1e-9)


def test_halves_keep_their_precision_at_any_size():
    rows = Streams(0).normal("rows", torch.arange(3), (200,), dtype=torch.float64)
    for scale in (1.0, 1e-30, 1e30, 2.0**-200, 2.0**200):
        off = (arrive(Half(), scale * rows) / (scale * rows) - 1).abs()
        # What is below 2^-24 of the largest is subnormal.
        assert (off[rows.abs() > 1e-3] <= 2.0**-11).all()
    assert (arrive(Half(format="bf16"), rows) / rows - 1).abs().max() <= 2.0**-8
    single = rows.float() * 1e-42  # subnormal numbers
    assert torch.isfinite(arrive(Half(), single)).all()
    most = torch.full((1, 2), 3.4e38)
    for transform in (Half(), Half(format="bf16"), Natural()):
        assert torch.isfinite(arrive(transform, most)).all()


@pytest.mark.parametrize(
    "transform",
    [TopK(k=3), QSGD(), TernGrad(), Natural(), Sign(), Half(), Half(format="bf16"), Integer()],
)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_arrives_so(transform, bad):
    rows = torch.ones(2, 40)
    rows[0, 17] = bad
    assert torch.isfinite(arrive(transform, rows)).all(dim=1).tolist() == [False, True]


def test_groups():
    rows = torch.arange(1.0, 8.0).unsqueeze(0)
    for groups, sums in (([3, 3, 1], [6, 15, 7]), ([2, 5], [3, 25]), ([7], [28])):
        found = of_groups(rows, groups, lambda part: part.sum(dim=-1))
        assert found.tolist() == [sums]
        assert spread(found, groups).expand(1, 7).tolist() == [np.repeat(sums, groups).tolist()]


# --- Low rank


def test_low_rank_tracks_the_best_factors():
    """Six messages of one matrix: the share of the squares grows to that of the two largest singular values."""
    matrix = Streams(0).normal("matrix", torch.arange(1), (40 * 30,), dtype=torch.float64)
    rows = torch.cat((matrix, torch.ones(1, 30, dtype=torch.float64)), dim=1)
    singular = torch.linalg.svdvals(matrix.view(40, 30)).square()
    best = float(singular[:2].sum() / singular.sum())
    shapes, state, shares = ((40, 30), (30,)), None, []
    for turn in range(60):
        crossed = send([LowRank(rank=2)], rows, shapes=shapes, turn=turn, state=state)
        state, arrived = crossed.state, crossed.payload["delta"]
        off = (arrived - rows)[:, :1200].square().sum() / matrix.square().sum()
        shares.append(1 - float(off))
        assert torch.equal(arrived[:, 1200:], rows[:, 1200:])  # biases cross as they are
        assert torch.linalg.matrix_rank(arrived[0, :1200].view(40, 30)) == 2
    assert all(later >= sooner - 1e-12 for sooner, later in pairwise(shares))
    assert shares[0] < 0.6 * best
    assert shares[-1] == pytest.approx(best, rel=1e-3)
    assert crossed.nbytes.tolist() == [8 * (2 * 70 + 30)]
    # A matrix of rank 1 arrives as it is.
    outer = (torch.arange(40.0).double().unsqueeze(1) * torch.arange(30.0)).reshape(1, -1)
    torch.testing.assert_close(arrive(LowRank(rank=2), outer, shapes=((40, 30),)), outer)
    # So does nothing.
    assert not arrive(LowRank(rank=2), 0 * outer, shapes=((40, 30),)).any()


# --- Refusals


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: TopK(), "k = .nothing.: give k or ratio"),
        (lambda: TopK(k=1, ratio=0.5), "ratio = 0.5: give it or k"),
        (lambda: TopK(ratio=0.0), "ratio = 0.0"),
        (lambda: TopK(k=2, per="layer"), "k = 2: layers differ in size"),
        (lambda: Integer(bits=0), "bits = 0"),
        (lambda: QSGD(levels=0), "levels = 0"),
        (lambda: LowRank(rank=0), "rank = 0"),
    ],
)
def test_bad_options(make, said):
    with pytest.raises(InputError, match=said):
        make()


@pytest.mark.parametrize(
    ("listed", "said"),
    [
        ([TopK(k=10_000)], r"transforms\.0\.k = 10000: only 1230 numbers come to it"),
        ([RandomK(k=30), TopK(k=31)], r"transforms\.1\.k = 31: only 30 numbers"),
        ([QSGD(), TopK(k=3)], r"transforms\.1\.kind = top_k: a transform before it leaves codes; select numbers first"),
        ([Half(), Sign()], r"transforms\.1\.kind = sign: a transform before it leaves codes"),
        ([TopK(k=9), QSGD(per="layer")], r"transforms\.1\.per = layer: the transforms before it leave no layers"),
        ([LowRank(rank=9)], r"transforms\.0\.rank = 9: it shortens no layer of the model to half; lower it"),
    ],
)
def test_what_does_not_go_together(listed, said):
    with pytest.raises(InputError, match=said):
        Chain(tuple(listed)).fitted(((40, 30), (30,)), Size(1230, 32))


def test_what_is_known_of_others():
    assert Noise(std=1.0).error(Size(4, 32)) == math.inf
    assert Clip(max_norm=1.0).error(Size(4, 32)) is None
