"""Integers under masks: what they come to, who may leave, what crosses, and what the server sees."""

import numpy as np
import pytest
import torch

from fedsim.core.errors import InputError
from fedsim.core.streams import Streams
from fedsim.exchange.secure import WIDTH, Masks, Secure, fewest, graph, keys, shares, unmasking

STREAMS = Streams(5)


def masks(count, *, ring=20, gone=(), degree=None, turn=0, streams=STREAMS):
    clients = torch.arange(count)
    neighbours = graph(clients, count - 1 if degree is None else degree, streams, turn)
    answered = ~np.isin(np.arange(count), gone)
    return Masks(streams, turn, ring, (3 * clients + 1).tolist(), neighbours, answered)


def words(made, numbers, seed=0):
    drawn = np.random.Generator(np.random.PCG64(seed)).integers(0, 2**made.ring, (int(made.answered.sum()), numbers))
    return drawn.astype(made.word)


@pytest.mark.parametrize(("ring", "numbers"), [(20, 7), (32, WIDTH + 5), (33, 11), (62, WIDTH + 3), (1, 9)])
@pytest.mark.parametrize("degree", [None, 4])
def test_without_masks_the_sum_is_that_of_the_integers(ring, numbers, degree):
    made = masks(9, ring=ring, gone=(2, 5), degree=degree)
    rows = words(made, numbers)
    expected = [sum(column) % 2**ring for column in zip(*rows.tolist(), strict=True)]
    sent = made.masked(rows.copy())
    assert int(sent.max()) < 2**ring
    assert sent.shape == rows.shape
    assert not np.array_equal(sent, rows)
    assert made.unmasked(sent).tolist() == expected


def test_a_vector_has_its_own_mask_and_one_with_each_neighbour():
    # Without neighbours only PRG(b_i) is left; two that answer have the mask between them with either sign.
    alone, pair = masks(1, ring=32), masks(2, ring=32)
    zeros = np.zeros((2, 6), np.uint32)
    own = alone.masked(zeros[:1].copy())[0]
    sent = pair.masked(zeros.copy())
    common = sent[0] - own
    assert common.any()
    gone = masks(2, ring=32, gone=(1,))
    assert np.array_equal(gone.masked(zeros[:1].copy())[0], own + common)
    other = masks(2, ring=32, gone=(0,)).masked(zeros[:1].copy())[0]
    assert np.array_equal(other, sent[1])
    assert np.array_equal(pair.unmasked(sent), np.zeros(6))
    # The sum of both does not have what is between them.
    assert np.array_equal(sent.sum(axis=0, dtype=np.uint32) - own, other + common)


def test_no_two_masks_are_alike():
    # Those of a client's own, and of all pairs of four.
    words = masks(4, ring=32)._words(slice(0, 4))
    drawn = [words.own(client) for client in range(4)]
    drawn += [words.common(first, second) for second in range(4) for first in range(second)]
    assert len({tuple(mask.tolist()) for mask in drawn}) == 10


def test_masks_are_of_the_pair_and_the_round_whoever_else_is_there():
    few, many = masks(2, ring=32), masks(2, ring=32, turn=1)
    zeros = np.zeros((2, 2 * WIDTH), np.uint32)
    first = few.masked(zeros.copy())
    assert not np.array_equal(first, many.masked(zeros.copy()))
    assert np.array_equal(few.masked(zeros[:, :9].copy()), first[:, :9])
    # No block of the stream is drawn twice.
    assert len(np.unique(first[0])) > 1.99 * WIDTH


def test_the_graph_has_so_many_neighbours_each_and_is_drawn_anew():
    clients = torch.arange(9)
    whole = graph(clients, 8, STREAMS, 0)
    assert np.array_equal(whole, ~np.eye(9, dtype=bool))
    one, other = graph(clients, 4, STREAMS, 0), graph(clients, 4, STREAMS, 1)
    for found in (one, other):
        assert np.array_equal(found, found.T)
        assert not found.diagonal().any()
        assert found.sum(axis=1).tolist() == [4] * 9
    assert not np.array_equal(one, other)


def left(neighbours, shared=(), vector=(), after=()):
    """The fewest holders among those who share, who send a vector, and who help to unmask."""
    there = np.ones(len(neighbours), dtype=bool)
    found = []
    for gone in (shared, vector, after):
        there = there.copy()
        there[list(gone)] = False
        among = there if not found else among  # noqa: F821
        found.append(fewest(neighbours, among, there))
    return found


@pytest.mark.parametrize(
    ("gone", "fewest_left", "works"),
    [
        ({"shared": [0], "vector": [1], "after": [2]}, 7, True),
        ({"vector": [0, 1, 2]}, 7, True),
        ({"vector": [0, 1, 2, 3]}, 6, False),
        ({"vector": [0, 1], "after": [2, 3]}, 6, False),
        ({"shared": [0, 1, 2, 3]}, 6, False),
        ({"after": [4, 5, 6]}, 7, True),
    ],
)
def test_of_ten_clients_seven_must_be_left(gone, fewest_left, works):
    secure = Secure(clip=1.0, threshold=7)
    assert min(left(graph(torch.arange(10), 9, STREAMS, 0), **gone)) == fewest_left
    assert (fewest_left >= secure.needed(10)) is works


def test_on_a_ring_neighbours_count_and_not_all():
    # Of ten, four neighbours each, three shares needed: two far apart may leave, three around one may not.
    neighbours = graph(torch.arange(10), 4, STREAMS, 0)
    around = np.flatnonzero(neighbours[0]).tolist()
    far = next(other for other in range(1, 10) if not neighbours[0, other])
    assert min(left(neighbours, vector=[0, far])) >= 3
    assert min(left(neighbours, vector=around[:3])) == 2


@pytest.mark.parametrize(
    ("count", "degree", "dimension", "ring", "up", "down"),
    [
        (10, 9, 7850, 20, 20_453, 1_208),
        (100, 99, 79_510, 24, 246_828, 13_279),
        (1000, 999, 79_510, 26, 341_406, 133_991),
        (1000, 100, 79_510, 26, 266_789, 13_413),
    ],
)
def test_bytes_of_a_client_by_the_table(count, degree, dimension, ring, up, down):
    neighbours, everybody = graph(torch.arange(count), degree, STREAMS, 0), np.ones(count, dtype=bool)
    stages = [keys(neighbours), shares(neighbours, everybody), unmasking(neighbours, everybody)]
    vector = -(-dimension * ring // 8)
    assert {vector + sum(int(stage.up[client]) for stage in stages) for client in range(0, count, 7)} == {up}
    assert {sum(int(stage.down[client]) for stage in stages) for client in range(0, count, 7)} == {down}


def test_who_has_left_neither_sends_nor_is_sent_anything_more():
    neighbours, shared = graph(torch.arange(4), 3, STREAMS, 0), np.array([True, True, True, False])
    sharing = shares(neighbours, shared)
    # Three neighbours are shared with, 66 bytes each, and the shares of two come.
    assert (sharing.up.tolist(), sharing.down.tolist()) == ([198, 198, 198, 0], [132, 132, 132, 0])
    ended = unmasking(neighbours, shared)
    assert (ended.up.tolist(), ended.down.tolist()) == ([51, 51, 51, 0], [1, 1, 1, 0])


def test_levels_by_hand():
    # 2 bits: levels 0 to 3 at -3, -1, 1, 3; 0.5 is three quarters of the way from level 1 to level 2.
    secure = Secure(clip=3.0, bits=2)
    rows = torch.tensor([[-3.0, -1.0, 0.5, 0.5, 3.0, 7.0, -9.0]])
    drawn = torch.tensor([[0.999, 0.5, 0.24, 0.26, 0.999, 0.5, 0.5]])
    levels, cut = secure.levels(rows, drawn)
    assert levels.tolist() == [[0, 1, 1, 2, 3, 3, 0]]
    assert cut.tolist() == [2]
    assert secure.mean(levels[0].numpy(), 1).tolist() == [-3.0, -1.0, -1.0, 1.0, 3.0, 3.0, -3.0]


def test_rounding_is_unbiased_and_never_further_than_a_step():
    secure, everybody = Secure(clip=2.0, bits=4), torch.arange(4000)
    rows = torch.linspace(-2.0, 2.0, 9).expand(4000, 9)
    levels, _ = secure.levels(rows, STREAMS.uniform("rounding", everybody, (9,)))
    means = [secure.mean(row, 1) for row in levels.numpy()]
    assert np.abs(means - rows.numpy()).max() <= secure.step
    # The deviation of a mean of 4000 is half a step over the root of 4000 at most: 0.0021.
    assert np.abs(np.mean(means, axis=0) - rows[0].numpy()).max() < 5 * secure.step / 2 / 4000**0.5


def test_the_least_ring_that_cannot_wrap():
    assert Secure(clip=1.0, bits=12).ring_for(16) == 16
    assert Secure(clip=1.0, bits=13).ring_for(16) == 17
    assert Secure(clip=1.0, bits=12, ring=16).ring_for(16) == 16
    assert Secure(clip=1.0, bits=12, ring=40).ring_for(16) == 40
    for bits, exact in ((12, True), (13, False)):
        made = masks(16, ring=16)
        rows = np.full((16, 3), 2**bits - 1, made.word)
        assert (made.unmasked(made.masked(rows)).tolist() == [16 * (2**bits - 1)] * 3) is exact


@pytest.mark.parametrize(
    ("options", "cohort", "line"),
    [
        ({"threshold": 11}, 10, "threshold = 11: a client's shares are held by 10, itself included; take 10 at most"),
        ({"threshold": 5}, 10, "threshold = 5: two halves of 10 could be unmasked apart; take 6 or more"),
        ({"threshold": 6, "neighbours": 4}, 10, "threshold = 6: .* held by 5"),
        ({"neighbours": 3}, 10, "neighbours = 3: .*make it even"),
        ({"neighbours": 10}, 10, "neighbours = 10: of 10 clients each has 9 others; lower it"),
        ({}, 1, "kind = secure: the sum of a single client hides nothing"),
    ],
)
def test_cohorts_for_which_it_is_not_made(options, cohort, line):
    with pytest.raises(InputError, match=f"^aggregation.{line}"):
        Secure(clip=1.0, **options).hold(cohort)


def test_rings_that_are_too_small_or_too_large():
    with pytest.raises(InputError, match=r"^aggregation.ring = 16: weights add up to 16, times 2\^13 - 1: take 17"):
        Secure(clip=1.0, bits=13, ring=16).ring_for(16)
    with pytest.raises(InputError, match=r"^aggregation.bits = 32: .*63 bits, more than 62"):
        Secure(clip=1.0, bits=32).ring_for(2**31)


def test_two_thirds_are_needed_and_two_at_least():
    assert [Secure(clip=1.0).needed(count) for count in (1, 2, 3, 10, 100)] == [2, 2, 3, 7, 67]
    assert Secure(clip=1.0, neighbours=4).needed(100) == 4
    for count in range(2, 40):
        Secure(clip=1.0).hold(count)


def test_what_the_server_receives_is_uniform():
    # One number of ring Z_16, masked for 400 rounds by each of two who answer and one who does not: chi-square of
    # 15 degrees of freedom is above 37.7 once in 1000.
    zeros = np.zeros((2, 1), np.uint32)
    sent = np.array([masks(3, ring=4, gone=(1,), turn=turn).masked(zeros.copy())[:, 0] for turn in range(400)])
    for column in sent.T:
        counts = np.bincount(column, minlength=16)
        assert ((counts - 25) ** 2 / 25).sum() < 37.7
    # Nor do the two tell anything together, as long as the third has not answered.
    together = np.bincount((sent[:, 0] - sent[:, 1]) % 16, minlength=16)
    assert ((together - 25) ** 2 / 25).sum() < 37.7
