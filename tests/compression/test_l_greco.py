"""What each layer is given: within what may be left out, and at the fewest bits."""

import itertools

import numpy as np
import pytest
import torch

from fedsim.compression.allotting import PARTS, allot
from fedsim.compression.ef14 import EF14
from fedsim.compression.l_greco import LGreCo
from fedsim.compression.top_k import TopK
from fedsim.core.errors import InputError
from fedsim.core.streams import Streams
from fedsim.exchange.messages import Size
from fedsim.exchange.transforms import Chain, Sender
from fedsim.running.build import build_simulation
from fedsim.testing.problems import small_experiment, small_problem

TOP = {"kind": "top_k", "ratio": 0.1}


def drawn(generator, layers=5, candidates=4):
    """Errors that fall and bits that grow from candidate to candidate."""
    errors = -np.sort(-generator.exponential(size=(layers, candidates)), axis=1) * generator.exponential(
        size=(layers, 1)
    )
    return errors, np.sort(generator.integers(1, 1000, size=(layers, candidates)), axis=1)


def fewest(errors, bits, most):
    """The fewest bits within what may be left out, by trying everything; infinity where nothing is."""
    rows, tried = np.arange(len(bits)), itertools.product(range(bits.shape[1]), repeat=len(bits))
    return min((bits[rows, one].sum() for one in tried if errors[rows, one].sum() <= most), default=np.inf)


def taken(errors, bits, most, usual=2):
    rows, found = np.arange(len(bits)), allot(errors, bits, most, usual)
    return errors[rows, found].sum(), bits[rows, found].sum()


def test_within_what_may_be_left_out_at_the_fewest_bits():
    """But for rounding: no more than the fewest at one part in 10,000 a layer less."""
    generator, missed = np.random.default_rng(0), 0
    for _ in range(20):
        errors, bits = drawn(generator)
        for alpha in (0.7, 1.0, 1.6):
            most = alpha * errors[:, 2].sum()
            left_out, sent = taken(errors, bits, most)
            best = fewest(errors, bits, most)
            if np.isinf(best):
                assert left_out == errors.min(axis=1).sum()
                continue
            assert left_out <= most * (1 + 1e-12)
            assert best <= sent <= fewest(errors, bits, most * (1 - 5 / PARTS))
            if alpha >= 1.0:
                assert sent <= bits[:, 2].sum()
            missed += sent > best
    assert missed <= 2


def test_more_may_be_left_out_at_no_more_bits():
    errors, bits = drawn(np.random.default_rng(1), layers=8)
    sent = [taken(errors, bits, alpha * errors[:, 2].sum())[1] for alpha in (1.0, 1.2, 1.5, 2.0, 4.0)]
    assert sent == sorted(sent, reverse=True)
    assert len(set(sent)) == 5


@pytest.mark.parametrize(
    ("errors", "bits", "most", "expected"),
    [
        # A single layer: the shortest within what may be left out.
        ([[4, 3, 2, 1]], [[1, 2, 3, 4]], 3.5, [1]),
        # Layers alike: as all have the usual one, or as good as that.
        ([[4, 2, 1]] * 3, [[1, 2, 4]] * 3, 6, [1, 1, 1]),
        # What the last layer spares the first may leave out.
        ([[8, 4, 2], [8, 1, 0]], [[10, 60, 99], [50, 60, 65]], 9.1, [0, 1]),
        # Nothing may be left out: what leaves out nothing, at the fewest bits.
        ([[0, 0, 0], [1, 0, 0]], [[5, 6, 7], [5, 6, 7]], 0, [0, 1]),
        # Nor can that be had: what leaves out least.
        ([[3, 2, 1], [3, 2, 1]], [[5, 6, 7], [5, 6, 7]], 1, [2, 2]),
        # What is no number is no better than anything.
        ([[np.nan] * 3, [1, 1, 1]], [[5, 6, 7], [5, 6, 7]], np.nan, [0, 0]),
        ([[np.nan, 1, 1]], [[5, 6, 7]], 2, [1]),
        # Where rounding would cost bits the usual one stays: two thirds and a third are more than the parts there are.
        ([[9, 2 / 3, 0], [9, 1 / 3, 0]], [[1, 5, 90], [1, 5, 90]], 1, [1, 1]),
    ],
)
def test_by_hand(errors, bits, most, expected):
    assert allot(np.array(errors, dtype=float), np.array(bits), most, 1).tolist() == expected


SHAPES = ((40, 30), (40,), (4, 40), (4,))
LENGTH = 1200 + 40 + 160 + 4


def uneven(clients, turn=0):
    """Vectors of which the third part has few large numbers, and the others many of a size."""
    rows = Streams(0).normal("rows", clients, (LENGTH,), turn=turn, dtype=torch.float64)
    rows[:, 1240:1400] *= 0.01
    rows[:, 1240:1244] = 5.0
    return rows


def send(transform, rows, clients, turn=0, state=None, before=()):
    plain = Size(LENGTH, 64)
    chain = Chain((*before, transform)).fitted(SHAPES, plain)
    state = state or {name: rows.new_zeros((len(rows), *shape)) for name, shape in chain.state(plain).items()}
    return chain.apply({"delta": rows}, Sender(clients, Streams(1), turn, state))


@pytest.mark.parametrize("errors", ["norms", "squares"])
def test_what_is_left_out_of_what_came_together_is_within_the_measure(errors):
    """Messages 1 and 2 go by what all layers have; the third by what is best for the sum of the three."""
    transform = LGreCo(compressor=TOP, candidates=(0.03, 0.06, 0.1, 0.2, 0.4), every=3, errors=errors)
    clients, state, total = torch.arange(4), None, 0.0
    alike = TopK(ratio=0.1, per="layer")
    for turn in range(3):
        rows = uneven(clients, turn)
        total, crossed = total + rows, send(transform, rows, clients, turn, state)
        state, plain = crossed.state, send(alike, rows, clients, turn)
        if turn < 2:
            assert torch.equal(crossed.payload["delta"], plain.payload["delta"])
            assert (crossed.nbytes - plain.nbytes).unique().tolist() == [1]  # 12 bits say which
    chosen = state["transforms/0/delta/chosen"]
    assert len(chosen.unique()) > 1
    assert (crossed.nbytes < plain.nbytes).all()
    own, usual = [], []
    power = {"norms": 1, "squares": 2}[errors]
    for place, (size, _) in enumerate(transform.bound(SHAPES).layers(LENGTH)):
        part = torch.split(total, [40 * 30, 40, 160, 4], dim=1)[place]
        for client in range(4):
            for found, number in ((own, int(chosen[client, place]) + 2), (usual, 2)):
                kept = part[client].abs().sort(descending=True).values
                count = max(1, round(transform.candidates[number] * size))
                found.append(float(kept[count:].norm()) ** power)
    own, usual = (torch.tensor(one).view(4, 4).sum(dim=0) for one in (own, usual))
    assert (own <= usual * (1 + 1e-9)).all()
    assert not state["transforms/0/delta/sum"].any()
    assert not state["transforms/0/delta/count"].any()


def test_factors_are_remembered_for_each_rank():
    """With a warm start the second message of a matrix is nearer to its best factors than the first."""
    transform = LGreCo(compressor={"kind": "low_rank", "rank": 2}, candidates=(1, 2, 4), every=100)
    clients, state, off = torch.arange(1), None, []
    rows = uneven(clients)
    for turn in range(4):
        crossed = send(transform, rows, clients, turn, state)
        state = crossed.state
        off.append(float((crossed.payload["delta"] - rows).norm()))
    assert off[0] > off[1] > off[2] > off[3]
    assert state["transforms/0/delta/0/1/right"].any()
    assert not state["transforms/0/delta/0/0/right"].any()


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: LGreCo(compressor="sign", candidates=(1, 2)), "compressor = sign: it has nothing that could differ"),
        (lambda: LGreCo(compressor=TOP, candidates=(0.2, 0.3)), "candidates = 0.2, 0.3: the compressor's own ratio is"),
        (lambda: LGreCo(compressor=TOP, candidates=(0.1, 2.0)), "candidates.1.ratio = 2.0"),
        (lambda: LGreCo(compressor=TOP, candidates=(0.1,)), "candidates"),
        (lambda: LGreCo(compressor={**TOP, "vectors": ["delta"]}, candidates=(0.1, 0.2)), "compressor.vectors = delta"),
    ],
)
def test_what_is_no_choice(made, said):
    with pytest.raises(InputError, match=said):
        made()


@pytest.mark.parametrize(
    ("listed", "said"),
    [
        ([TopK(k=9), LGreCo(compressor=TOP, candidates=(0.1, 0.2))], r"transforms\.1\.kind = l_greco: .* no layers"),
        (
            [LGreCo(compressor={"kind": "low_rank", "rank": 1}, candidates=(1, 99))],
            r"transforms\.0\.candidates\.1\.rank = 99: it shortens no layer",
        ),
        (
            [EF14(), LGreCo(compressor={"kind": "qsgd", "levels": 64}, candidates=(1, 64))],
            r"transforms\.1\.kind = l_greco: behind feedback",
        ),
        ([LGreCo(compressor=TOP, candidates=(0.1, 0.2)), TopK(k=3)], r"transforms\.1\.kind = top_k: .* leaves codes"),
    ],
)
def test_what_does_not_go_together(listed, said):
    with pytest.raises(InputError, match=said):
        Chain(tuple(listed)).fitted(SHAPES, Size(LENGTH, 64))


def test_a_median_is_refused_where_it_selects():
    listed = [{"kind": "l_greco", "compressor": TOP, "candidates": [0.1, 0.2]}]
    with pytest.raises(InputError, match=r"aggregation\.kind = median: .*l_greco"):
        build_simulation(small_experiment(transforms=listed, aggregation="median"), small_problem())
    listed[0]["compressor"], listed[0]["candidates"] = {"kind": "qsgd", "levels": 4}, [2, 4]
    build_simulation(small_experiment(transforms=listed, aggregation="median"), small_problem())
