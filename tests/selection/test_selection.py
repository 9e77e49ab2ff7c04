from collections import Counter
from itertools import combinations

import pytest
import torch
from scipy import stats
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fedsim.errors import InputError
from fedsim.selection.uniform import Uniform
from fedsim.selection.weighted import Weighted
from fedsim.streams import Streams

KINDS = [Uniform, Weighted]
EQUAL = torch.full((12,), 5)


def choose(selector, sizes, *, busy=frozenset(), seed=0, rounds=1):
    """The sets chosen in each round."""
    state, chosen = selector.start(sizes), []
    for number in range(rounds):
        ids, state = selector.select(state, Streams(seed), number, len(sizes), busy)
        assert ids.dtype == torch.int64
        assert ids.tolist() == sorted(set(ids.tolist()))
        state = selector.observe(state, None)
        chosen.append(tuple(ids.tolist()))
    return chosen


def tensors(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def place(tensor):
    return tensor.untyped_storage().data_ptr()


class Largest(TorchDispatchMode):
    """Notes the size of the largest tensor that any operation makes, views apart."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        given = {place(leaf) for leaf in tensors((args, kwargs))}
        self.numel = max([self.numel, *(leaf.numel() for leaf in tensors(made) if place(leaf) not in given)])
        return made


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 3, 4, 11, 12])
def test_as_many_as_asked_for_without_replacement(kind, count):
    for ids in choose(kind(count=count), EQUAL, rounds=20):
        assert len(ids) == count


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides_and_rounds_differ(kind):
    sizes = torch.arange(1, 101)
    first = choose(kind(count=10), sizes, rounds=5)
    assert choose(kind(count=10), sizes, rounds=5) == first
    assert choose(kind(count=10), sizes, rounds=5, seed=1) != first
    assert len(set(first)) == 5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [2, 9])
def test_two_selections_of_one_round_are_two_draws_and_a_kept_state_goes_on(kind, count):
    sizes, selector = torch.arange(1, 31), kind(count=count)
    state = selector.start(sizes)
    kept = {name: value.clone() for name, value in state.items()}
    one, after = selector.select(state, Streams(0), 3, 30, ())
    assert all(torch.equal(state[name], kept[name]) for name in kept)
    two, _ = selector.select(after, Streams(0), 3, 30, ())
    again, _ = selector.select(kept, Streams(0), 3, 30, ())
    assert torch.equal(one, again)
    assert not torch.equal(one, two)


# p-values below are of fixed seeds, so the tests do not flicker; a right sampler is below 1e-3 for one seed
# in a thousand. 1,200 draws over 28 sets (about 43 each) see probabilities that are off by a half.
TRIALS = 1200


def fits(sets, probabilities):
    counts = Counter(sets)
    assert counts.keys() <= probabilities.keys()
    found = [counts[key] for key in probabilities]
    expected = [len(sets) * probability for probability in probabilities.values()]
    return stats.chisquare(found, expected).pvalue > 1e-3


def successive(sizes, free):
    """Probability of each pair when one after the other is drawn in proportion to its size."""
    total = sum(sizes[i] for i in free)
    share = {i: sizes[i] / total for i in free}
    return {
        (i, j): share[i] * share[j] / (1 - share[i]) + share[j] * share[i] / (1 - share[j])
        for i, j in combinations(sorted(free), 2)
    }


@pytest.mark.parametrize(
    ("sizes", "busy"),
    [
        ([1] * 8, ()),  # by rejection: 4 * 2 <= 8
        ([1] * 6, ()),  # by permutation
        ([1] * 11, (0, 7, 10)),  # by rejection around busy clients
        ([1] * 7, (6,)),  # by permutation of the free
        ([3, 0, 1, 1, 0, 9, 2, 2, 2, 2], ()),  # sizes do not matter, but no examples do
    ],
)
def test_uniform_sets_are_equally_likely(sizes, busy):
    free = [c for c, size in enumerate(sizes) if size and c not in busy]
    sets = choose(Uniform(count=2), torch.tensor(sizes), busy=set(busy), rounds=TRIALS)
    assert fits(sets, successive([1] * len(sizes), free))


@pytest.mark.parametrize(
    ("sizes", "busy"),
    [
        ([1, 2, 3, 4, 5, 6, 7, 8], ()),  # by rejection
        ([1, 2, 3, 4], ()),  # by exponential waits
        ([4, 1, 2, 90, 3, 4, 5, 2, 7, 8], (3, 0)),  # by rejection around busy clients
        ([5, 0, 4, 3, 2, 1, 1], (0,)),  # by waits; client 1 has no examples
        ([10**9, 2, 5, 1, 3, 4, 6, 1], ()),  # rejection finds the first and waits the second
    ],
)
def test_weighted_sets_have_the_law_of_successive_draws(sizes, busy):
    free = [c for c, size in enumerate(sizes) if size and c not in busy]
    law = successive(sizes, free)
    if max(sizes) == 10**9:  # pairs without the giant: 1e-8 and less, never expected and never seen
        law = {pair: probability for pair, probability in law.items() if 0 in pair}
        law = {pair: probability / sum(law.values()) for pair, probability in law.items()}
    assert fits(choose(Weighted(count=2), torch.tensor(sizes), busy=set(busy), rounds=TRIALS), law)


def test_weighted_differs_from_uniform():
    sizes = torch.tensor([1] * 50 + [100] * 50)
    heavy = sum(c >= 50 for ids in choose(Weighted(count=10), sizes, rounds=50) for c in ids)
    even = sum(c >= 50 for ids in choose(Uniform(count=10), sizes, rounds=50) for c in ids)
    # Of 500: 495 by weight 100 : 1 without replacement, at most; 250 evenly.
    assert heavy > 480
    assert 200 < even < 300


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("busy", [{0, 1, 2}, [0, 1, 2], {0: "a", 1: "b", 2: "c"}, set(range(12)), set(range(10))])
@pytest.mark.parametrize("count", [1, 2, 9, 12])
def test_the_busy_are_left_alone_and_too_few_free_are_all_taken(kind, busy, count):
    for ids in choose(kind(count=count), EQUAL, busy=busy, rounds=10):
        assert not set(ids) & set(busy)
        assert len(ids) == min(count, 12 - len(busy))


@pytest.mark.parametrize("kind", KINDS)
def test_clients_without_examples_are_never_chosen(kind):
    sizes = torch.tensor([0, 3] * 20)
    for count in (2, 15, 30):
        for ids in choose(kind(count=count), sizes, rounds=10):
            assert all(c % 2 == 1 for c in ids)
            assert len(ids) == min(count, 20)
    assert choose(kind(count=2), torch.zeros(5, dtype=torch.int64)) == [()]


@pytest.mark.parametrize("kind", KINDS)
def test_the_cost_of_a_selection_does_not_grow_with_the_population(kind):
    population = 10**7 if kind is Uniform else 10**6
    sizes = torch.full((1,), 20).expand(population)
    selector = kind(count=100)
    state = selector.start(sizes)
    with Largest() as largest:
        ids, _ = selector.select(state, Streams(0), 0, population, {1, 2, 3})
    assert len(ids) == 100
    # About 4 * 100 draws of two words, in blocks of four words.
    assert 100 <= largest.numel <= 4000


@pytest.mark.parametrize("kind", KINDS)
def test_fraction_is_of_the_population(kind):
    # 0.29 * 100 is 28.999999999999996 in floating point.
    assert len(choose(kind(fraction=0.29), torch.ones(100, dtype=torch.int64))[0]) == 29
    assert len(choose(kind(fraction=0.01), EQUAL)[0]) == 1
    assert len(choose(kind(fraction=1.0), EQUAL)[0]) == 12


@pytest.mark.parametrize("kind", KINDS)
def test_bad_options_are_one_clear_line(kind):
    with pytest.raises(InputError, match=r"^count = \(nothing\): give count or fraction"):
        kind()
    with pytest.raises(InputError, match=r"^fraction = 0.5: give it or count \(3\), not both"):
        kind(count=3, fraction=0.5)
    for option in ({"count": 0}, {"fraction": 0.0}, {"fraction": 1.5}, {"fraction": float("nan")}, {"count": 2.0}):
        with pytest.raises(InputError, match=f"^{next(iter(option))}"):
            kind(**option)
    with pytest.raises(InputError, match=r"^selection.count = 13: there are only 12 clients"):
        kind(count=13).check(12)
    kind(count=12).check(12)
    kind(fraction=1.0).check(1)
