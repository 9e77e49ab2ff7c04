"""Schemes of sequential gradient coding: who works on what, that every job is known in time, and how long it takes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest

from fedsim.coding import (
    Bursts,
    Cluster,
    GradientCoding,
    Multiplexed,
    Needs,
    Scheme,
    SelectiveRepeat,
    Uncoded,
    Work,
    cyclic,
    gilbert_elliott,
    simulate,
)
from fedsim.coding.schemes import known
from fedsim.core.errors import BrokenPromiseError, InputError

HAND = cyclic(np.array([[1.0, -2.0, 3.0, -2.0]]))


def random() -> np.random.Generator:
    return np.random.default_rng(3)


def normal(shape: tuple[int, int]) -> np.ndarray:
    return random().standard_normal(shape)


def conforming(workers: int, bursts: Bursts, rounds: int) -> Iterator[list[np.ndarray]]:
    """Every pattern of stragglers that goes with the bursts."""
    masks = [np.array(mask, dtype=bool) for mask in product((False, True), repeat=workers)]

    def longer(pattern: list[np.ndarray]) -> Iterator[list[np.ndarray]]:
        if len(pattern) == rounds:
            yield pattern
            return
        needs = bursts.needs(pattern, workers)
        for mask in masks:
            if needs.allow(mask):
                yield from longer([*pattern, mask])

    yield from longer([])


class Driven:
    """A scheme that is asked round by round."""

    def __init__(self, scheme: Scheme) -> None:
        self.scheme, self.came, self.number = scheme, scheme.nothing(), 0
        self.factors: np.ndarray | None = None

    def work(self) -> Work:
        """Of this round."""
        return self.scheme.work(self.number, self.came).within(self.number)

    def round(self, late: np.ndarray) -> int:
        """The job that is due at the end of the round; `factors` are those of it."""
        self.came = self.scheme.arrived(self.came, self.number, self.work(), late)
        due = self.number - self.scheme.delay
        row = due % (self.scheme.delay + 1)
        self.factors = self.scheme.decode(self.came[row])
        self.came[row] = False
        self.number += 1
        return due


def unknown(scheme: Scheme, pattern: list[np.ndarray], gradients: np.ndarray) -> int | None:
    """The first job that is not known in time; of those that are the gradient is the sum over all chunks."""
    driven = Driven(scheme)
    for late in pattern:
        due = driven.round(late)
        if due < 0:
            continue
        if driven.factors is None:
            return due
        assert known(scheme, driven.factors, gradients) == pytest.approx(gradients.sum(axis=0), abs=1e-9)
    return None


@pytest.mark.parametrize(
    ("design", "rounds", "count"),
    [((4, 1, 2, 1), 5, 181), ((4, 1, 2, 2), 4, 797), ((4, 2, 3, 1), 6, 253), ((3, 1, 3, 2), 5, 337)],
)
def test_every_pattern_that_multiplexing_is_designed_for_is_decoded(design, rounds, count):
    scheme = Multiplexed.designed(*design, normal)
    gradients = random().standard_normal((len(scheme.sizes), 2))
    found = [unknown(scheme, pattern, gradients) for pattern in conforming(design[0], Bursts(*design[1:]), rounds)]
    assert found == [None] * count


@pytest.mark.parametrize(("design", "rounds"), [((4, 1, 2, 1), 5), ((4, 2, 3, 1), 5), ((3, 1, 3, 2), 5)])
def test_every_pattern_that_selective_repeat_is_designed_for_is_decoded(design, rounds):
    scheme = SelectiveRepeat.designed(*design, normal)
    gradients = random().standard_normal((design[0], 2))
    assert not any(
        unknown(scheme, pattern, gradients) is not None
        for pattern in conforming(design[0], Bursts(*design[1:]), rounds)
    )


def test_one_straggler_more_is_not_decoded():
    late = np.zeros(4, dtype=bool)
    late[[0, 1]] = True
    scheme = Multiplexed.designed(4, 1, 2, 1, normal)
    gradients = np.zeros((len(scheme.sizes), 1))
    assert unknown(scheme, [late, ~late, late, late, late], gradients) == 0
    assert unknown(GradientCoding(HAND, 1), [late], np.zeros((4, 1))) == 0
    # Twice the same worker: longer than a burst.
    again = np.arange(4) == 1
    assert unknown(scheme, [again, again, late & False], gradients) == 0


def test_the_diagonal_of_four_workers_by_hand():
    """Rounds 0 to 4 with stragglers 2, none, 0, none, 3."""
    scheme = Multiplexed(4, Bursts(1, 2, 1), (HAND,))
    assert scheme.delay == 1
    assert scheme.load == pytest.approx(1 / 3)
    assert scheme.sizes == pytest.approx([1 / 6] * 4 + [1 / 12] * 4)
    driven = Driven(scheme)
    gradients = np.random.default_rng(0).standard_normal((8, 3))
    # What worker 0 and what worker 2 or 3 does: of which job, and its own chunk (0) or its row of the code (1).
    expected = [
        {0: {(0, 0)}, 2: {(0, 0)}},
        {0: {(1, 0), (0, 1)}, 2: {(1, 0), (0, 0)}},
        {0: {(2, 0), (1, 1)}, 2: {(2, 0), (1, 1)}},
        {0: {(3, 0), (2, 0)}, 2: {(3, 0), (2, 1)}},
        {0: {(4, 0), (3, 1)}, 3: {(4, 0), (3, 1)}},
    ]
    for number, straggler in enumerate([2, None, 0, None, 3]):
        work = driven.work()
        for worker, tasks in expected[number].items():
            each = zip(work.ages[worker].tolist(), work.places[worker].tolist(), strict=True)
            assert {(number - age, place) for age, place in each if place >= 0} == tasks
        due = driven.round(np.arange(4) == straggler)
        if number:
            assert due == number - 1
            assert driven.factors is not None
            assert known(scheme, driven.factors, gradients) == pytest.approx(gradients.sum(axis=0))
        if number == 1:
            # For straggler 2 the code's factors are -1, 3/2, 1.
            assert driven.factors is not None
            assert driven.factors[:, 1].tolist() == pytest.approx([-1, 1.5, 0, 1])


@pytest.mark.parametrize(("most", "load"), [(0, 1 / 4), (1, 1 / 3), (2, 3 / 8), (3, 2 / 5), (4, 1 / 2)])
def test_loads_are_as_published(most, load):
    scheme = Multiplexed.designed(4, 1, 2, most, normal)
    assert scheme.load == pytest.approx(load)
    assert scheme.sizes.sum() == pytest.approx(1)
    # Nothing is lost: what a worker goes over in a round in which no slot is idle is the load.
    driven = Driven(scheme)
    driven.round(np.zeros(4, dtype=bool))
    assert scheme.done(driven.work()) == pytest.approx([load if most < 4 else load / 2] * 4)


def test_gradient_coding_has_a_load_of_s_and_one_nth_and_selective_repeat_is_it_without_stragglers():
    scheme = SelectiveRepeat.designed(8, 2, 5, 3, normal)
    # ceil(2 * 3 / (4 + 2)) = 1.
    assert scheme.stragglers == 1
    assert scheme.load == pytest.approx(2 / 8)
    driven = Driven(scheme)
    for _ in range(4):
        assert not driven.work().ages.any()
        driven.round(np.zeros(8, dtype=bool))
    assert GradientCoding(scheme.code, 1).load == scheme.load
    assert (driven.work().within(4, 4).places == -1).all()


def test_as_many_repeat_as_are_missing_beyond_s():
    scheme = SelectiveRepeat.designed(4, 1, 2, 2, normal)
    assert scheme.stragglers == 1
    driven = Driven(scheme)
    driven.round(np.array([False, True, False, True]))
    assert driven.work().ages[:, 0].tolist() == [0, 1, 0, 0]


def test_bursts_count_distinct_workers_and_rounds_in_a_window():
    def late(*who: int) -> np.ndarray:
        return np.isin(np.arange(5), who)

    def bursty(earlier: list[np.ndarray], now: np.ndarray, *design: int) -> bool:
        return Bursts(*design).needs(earlier, 5).allow(now)

    assert bursty([], late(0, 1), 1, 3, 2)
    assert not bursty([], late(0, 1, 2), 1, 3, 2)
    assert not bursty([late(2), late()], late(0, 1), 1, 3, 2)
    assert bursty([late(2), late(), late()], late(0, 1), 1, 3, 2)
    # Bursts of at most 2 rounds within 3: the third in a row is too long, and so is one after a pause.
    assert bursty([late(0)], late(0), 2, 3, 1)
    assert not bursty([late(0), late(0)], late(0), 2, 3, 1)
    assert not bursty([late(0), late()], late(0), 2, 3, 1)
    assert bursty([late(0), late(0), late(), late()], late(0), 2, 3, 1)


def test_a_chain_is_slow_as_often_and_as_long_as_it_says():
    slow = gilbert_elliott(random().random((4001, 20)), 0.1, 0.4)
    assert slow.mean() == pytest.approx(0.2, abs=0.01)
    ends = (slow[:-1] & ~slow[1:]).sum() / slow[:-1].sum()
    assert ends == pytest.approx(0.4, abs=0.02)
    begins = (~slow[:-1] & slow[1:]).sum() / (~slow[:-1]).sum()
    assert begins == pytest.approx(0.1, abs=0.01)


def test_rounds_take_until_the_deadline_or_all_are_waited_for():
    slow = np.zeros((3, 4), dtype=bool)
    slow[0, 0] = True
    slow[1, :2] = True
    cluster = Cluster(fixed=1.0, variable=0.5, slowdown=5.0, patience=0.5)
    timed = simulate(GradientCoding(HAND, 1), cluster, slow, 3)
    # A load of 1/2 takes 1 + 0.5 * 4 / 2 = 2 s. Round 0: on at 1.5 * 2; round 1: two are late, so 10; round 2: 2.
    assert timed.ends == pytest.approx([3, 13, 15])
    assert (timed.waited, timed.late, timed.results) == (1, 1, 11)
    waiting = simulate(Uncoded.among(4), cluster, slow, 3)
    assert waiting.seconds == pytest.approx(7.5 + 7.5 + 1.5)
    assert waiting.waited == 2


def test_short_bursts_of_work_that_counts_make_multiplexing_faster():
    """One trace of 64 workers, 60 jobs: the gain over the best code without memory, and over waiting."""
    slow = gilbert_elliott(random().random((71, 64)), 0.02, 0.9)
    cluster = Cluster(fixed=1.0, variable=0.1, slowdown=5.0, patience=1.0)
    wait = simulate(Uncoded.among(64), cluster, slow, 60).seconds
    plain = min(simulate(GradientCoding.of(64, s, normal), cluster, slow, 60).seconds for s in (2, 3, 4))
    many = simulate(Multiplexed.designed(64, 2, 3, 10, normal), cluster, slow, 60).seconds
    assert many < plain
    assert many < 0.6 * wait


def test_a_scheme_that_promises_too_much_is_named():
    class Boasting(GradientCoding):
        def needs(self, earlier: object) -> Needs:
            return Needs(np.zeros(4, dtype=bool), np.zeros(4, dtype=bool), 4)

    slow = np.array([[True, True, False, False]])
    with pytest.raises(BrokenPromiseError, match="Boasting: job 0 is not known after round 0"):
        simulate(Boasting(HAND, 1), Cluster(), slow, 1)


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: Multiplexed.designed(4, 1, 2, 5, normal), "most = 5: of 4 workers"),
        (lambda: Multiplexed.designed(4, 0, 2, 1, normal), "burst = 0"),
        (lambda: Multiplexed.designed(4, 2, 2, 1, normal), "window = 2: a window is longer than a burst"),
        (
            lambda: SelectiveRepeat.designed(4, 2, 4, 1, normal),
            "window = 4: must be 1 more than a multiple",
        ),
        (lambda: Multiplexed.designed(6, 1, 10**8, 1, normal), "window = 100000000: 6 workers have too many chunks"),
        (lambda: GradientCoding.of(4, 4, normal), "stragglers = 4"),
        (lambda: Uncoded.among(0), "stragglers = 0"),
    ],
)
def test_designs_that_there_are_not_are_refused(make, line):
    with pytest.raises(InputError, match=line):
        make()
