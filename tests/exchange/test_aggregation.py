import itertools

import numpy as np
import pytest
import torch

import fedsim.exchange.aggregation as aggregation
from fedsim.core.errors import InputError
from fedsim.core.streams import Streams
from fedsim.exchange.aggregation import Bulyan, GeometricMedian, Krum, Median, MultiKrum, TrimmedMean, WeightedMean

EVERY = [
    WeightedMean(),
    Median(),
    TrimmedMean(),
    Krum(malicious=1),
    MultiKrum(malicious=1, keep=4),
    Bulyan(malicious=1),
    GeometricMedian(),
]
ROBUST = EVERY[1:]


def draw(count=9, dimension=5, dtype=torch.float64, seed=0):
    rows = Streams(seed).normal("rows", torch.arange(count), (dimension,), dtype=dtype)
    weights = 1 + Streams(seed).uniform("weights", torch.arange(count), dtype=dtype)
    return rows, weights


def ones(count):
    return torch.ones(count, dtype=torch.float64)


def column(*values):
    return torch.tensor(values, dtype=torch.float64).unsqueeze(1)


def test_weighted_mean():
    rows = torch.tensor([[1.0, 0.0], [3.0, 8.0]])
    # (1 * 1 + 3 * 3) / 4 and (0 + 3 * 8) / 4; weights of any sum give the same centre.
    for weights in (torch.tensor([1.0, 3.0]), torch.tensor([10, 30])):
        assert WeightedMean()(rows, weights).tolist() == [2.5, 6.0]
    assert WeightedMean()(rows, torch.zeros(2)).tolist() == [2.0, 4.0]


def test_median_of_odd_and_even_cohorts_is_numpys():
    for count in (3, 4, 7, 8):
        rows, weights = draw(count)
        expected = np.median(rows.numpy(), axis=0)
        np.testing.assert_allclose(Median()(rows, weights).numpy(), expected, rtol=1e-15)


def test_trimmed_mean():
    # int(0.2 * 6) = 1 is cut on each side: (2 + 3 + 4 + 5) / 4.
    assert TrimmedMean()(column(3, -900, 5, 4, 1e9, 2), ones(6)).item() == 3.5
    # int(0.2 * 9) = 1, not 2: (1 + 2 + 3 + 4 + 5 + 6 + 70) / 7.
    assert TrimmedMean()(column(100, 0, 1, 2, 70, 3, 4, 5, 6), ones(9)).item() == 13
    # int(0.49 * 5) = 2: the median is left.
    assert TrimmedMean(beta=0.49)(column(3, 1, 5, 4, 2), ones(5)).item() == 3
    # int(0.2 * 4) = 0, and one is cut all the same: (2 + 3) / 2. Of three the median is left.
    assert TrimmedMean()(column(1e9, 3, 2, -900), ones(4)).item() == 2.5
    assert TrimmedMean(beta=0.01)(column(1e9, 3, -900), ones(3)).item() == 3


def test_krum_by_hand():
    # C = 5, f = 1: two nearest others. Squared distances on the line 0, 1, 3, 4, 100:
    # 0: 1 + 9 = 10; 1: 1 + 4 = 5; 3: 1 + 4 = 5; 4: 1 + 9 = 10. The tie of 1 and 3 is decided by the sum of
    # all: 1: 1 + 4 + 9 + 9801; 3: 9 + 4 + 1 + 9409, which is less.
    rows = column(0, 1, 3, 4, 100)
    assert Krum(malicious=1)(rows, ones(5)).item() == 3
    # The best four are 3, 1, 4 and 0 (10 + 9616 is above 10 + 9226); of three, 0 falls out.
    assert MultiKrum(malicious=1, keep=3)(rows, ones(5)).item() == pytest.approx(8 / 3)
    weights = torch.tensor([7.0, 1.0, 2.0, 5.0, 7.0])
    assert MultiKrum(malicious=1, keep=3)(rows, weights).item() == pytest.approx((1 + 6 + 20) / 8)


def test_multi_krum_of_all_rows_but_the_liars_is_the_weighted_mean_and_of_one_is_krum():
    rows, weights = draw()
    rows[4] += 100
    honest = torch.arange(9) != 4
    most = MultiKrum(malicious=1, keep=8)(rows, weights)
    torch.testing.assert_close(most, WeightedMean()(rows[honest], weights[honest]), rtol=1e-14, atol=1e-15)
    assert torch.equal(MultiKrum(malicious=2, keep=1)(rows, weights), Krum(malicious=2)(rows, weights))


def plain_krum(rows, malicious):
    """Krum's definition, row by row."""
    squares = [[sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) for y in rows] for x in rows]
    scores = []
    for i, line in enumerate(squares):
        others = sorted(line[:i] + line[i + 1 :])
        scores.append((sum(others[: max(1, len(rows) - malicious - 2)]), sum(others)))
    return min(range(len(rows)), key=scores.__getitem__)


def plain_bulyan(rows, malicious):
    left, picked = list(rows), []
    for _ in range(len(rows) - 2 * malicious):
        picked.append(left.pop(plain_krum(left, malicious)))
    close = len(picked) - 2 * malicious
    centre = []
    for values in zip(*picked, strict=True):
        median = np.median(values)
        centre.append(np.mean(sorted(values, key=lambda value: (abs(value - median), value))[:close]))
    return centre


@pytest.mark.parametrize(("malicious", "count"), [(1, 7), (1, 10), (2, 11), (3, 17)])
def test_krum_and_bulyan_are_their_definitions(malicious, count):
    for seed in range(5):
        rows, weights = draw(count, seed=seed)
        plain = rows.tolist()
        assert torch.equal(Krum(malicious=malicious)(rows, weights), rows[plain_krum(plain, malicious)])
        found = Bulyan(malicious=malicious)(rows, weights).numpy()
        np.testing.assert_allclose(found, plain_bulyan(plain, malicious), rtol=1e-12)


def test_bulyan_by_hand():
    # C = 7, f = 1: of 0, 1, 2, 3, 4, 50, 90 Krum picks 2, then 3 (14 as 1 has, but nearer to the outliers), 1
    # and 4; the last score counts one neighbour, and 50 and 90 are closer to each other than 0 is to anyone,
    # so 50 is picked. The median of 1, 2, 3, 4, 50 is 3, and the three closest values are 2, 3 and 4.
    assert Bulyan(malicious=1)(column(50, 0, 1, 2, 3, 4, 90), ones(7)).item() == 3


def test_geometric_median():
    # On a line it is the median; under weights the point where half of the weight lies on either side.
    # Its error is the tolerance times the mean distance over one minus the rate of convergence.
    assert GeometricMedian()(column(0, 1, 10), ones(3)).item() == pytest.approx(1, abs=1e-4)
    weights = torch.tensor([5.0, 1.0, 1.0])
    assert GeometricMedian()(column(0, 1, 10), weights).item() == pytest.approx(0, abs=1e-4)
    # Four corners of a convex quadrangle: where the diagonals cross (here 0, 0).
    corners = torch.tensor([[3.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [0.0, -4.0]], dtype=torch.float64)
    centre = GeometricMedian(tolerance=1e-12, iterations=1000)(corners, ones(4))
    torch.testing.assert_close(centre, torch.zeros(2, dtype=torch.float64), atol=1e-6, rtol=0)
    # At the optimum unit vectors to the rows cancel: sum_i w_i (x_i - z) / |x_i - z| = 0.
    rows, weights = draw(20, 3)
    away = rows - GeometricMedian(tolerance=1e-12, iterations=1000)(rows, weights)
    pull = (weights.unsqueeze(1) * away / away.norm(dim=1, keepdim=True)).sum(dim=0)
    assert pull.norm() < 1e-8


def test_options_of_the_geometric_median_move_something():
    rows, weights = draw(20, 3)
    default = GeometricMedian()(rows, weights)
    for option in ({"iterations": 1}, {"tolerance": 0.1}, {"smoothing": 9.0}):
        assert not torch.equal(GeometricMedian(**option)(rows, weights), default)


@pytest.mark.parametrize("aggregator", ROBUST)
def test_outliers_leave_the_result_among_the_honest(aggregator):
    rows, weights = draw(9)
    attacked = rows.clone()
    for where, size in itertools.product((0, 4, 8), (1e9, -1e9, 1e30, 1e200)):
        attacked = rows.clone()
        attacked[where] = size
        honest = rows[torch.arange(9) != where]
        centre = aggregator(attacked, weights)
        slack = 1e-3  # a smoothed geometric median may be a little outside of the box
        assert bool((centre >= honest.min(dim=0).values - slack).all()), (where, size)
        assert bool((centre <= honest.max(dim=0).values + slack).all()), (where, size)
    moved = (WeightedMean()(attacked, weights) - WeightedMean()(rows, weights)).abs().min()
    assert moved > 1e100


def test_small_distances_between_long_rows_are_not_lost():
    # 1e6 and 1e6 + 3 in single precision: norms of 1e12 have a spacing of 65536 there, so the Gram trick
    # sees no difference between any of these rows. The outlier of 40 must not win.
    rows = 1e6 + torch.tensor([[40.0], [0.0], [3.0], [2.0], [1.0]])
    assert Krum(malicious=1)(rows, torch.ones(5)).item() == 1e6 + 2


@pytest.mark.parametrize("aggregator", EVERY)
def test_order_of_rows_inputs_and_translation(aggregator):
    rows, weights = draw(11, 40)
    before = rows.clone(), weights.clone()
    centre = aggregator(rows, weights)
    assert torch.equal(rows, before[0])
    assert torch.equal(weights, before[1])
    for seed in range(5):
        order = Streams(seed).permutation("order", torch.tensor([0]), 11)[0]
        torch.testing.assert_close(aggregator(rows[order], weights[order]), centre, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(aggregator(rows + 3, weights), centre + 3, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(aggregator(rows, 7 * weights), centre, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("aggregator", EVERY)
def test_equal_rows_give_that_row_and_keep_its_type(aggregator):
    row = draw(1, 6, dtype=torch.float32)[0]
    centre = aggregator(row.expand(8, 6), torch.ones(8))
    assert centre.dtype == torch.float32
    torch.testing.assert_close(centre, row[0])


@pytest.mark.parametrize("aggregator", EVERY)
def test_blocks_and_threads_do_not_change_a_bit(aggregator, monkeypatch):
    rows, weights = draw(9, 1003, dtype=torch.float32)
    whole = aggregator(rows, weights)
    monkeypatch.setattr(aggregation, "BLOCK", 9 * 100)
    parts = aggregator(rows, weights)
    if isinstance(aggregator, GeometricMedian):
        # Its distances are sums over all coordinates, block by block.
        torch.testing.assert_close(parts, whole, rtol=1e-6, atol=1e-6)
    else:
        assert torch.equal(parts, whole)
    monkeypatch.undo()
    rows, weights = draw(9, 70_001, dtype=torch.float32)
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(aggregator(rows, weights))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_a_cohort_of_one_is_its_own_centre():
    rows, weights = draw(1)
    WeightedMean().check(1)
    torch.testing.assert_close(WeightedMean()(rows, weights), rows[0])


@pytest.mark.parametrize("cohort", [1, 2])
@pytest.mark.parametrize("aggregator", [Median(), TrimmedMean(), TrimmedMean(beta=0.49), GeometricMedian()])
def test_a_cohort_in_which_nobody_is_outvoted_is_refused_before_a_run_and_in_it(aggregator, cohort):
    rows, weights = draw(3)
    for ask in (lambda: aggregator.check(cohort), lambda: aggregator(rows[:cohort], weights[:cohort])):
        with pytest.raises(InputError, match=rf"^aggregation\.kind = .*3 replies to outvote one, .* has {cohort};"):
            ask()
    aggregator.check(3)


@pytest.mark.parametrize("aggregator", ROBUST)
def test_the_smallest_cohort_that_is_accepted_bears_a_liar(aggregator):
    """In every size from the least on: however far away one reply is, and whoever sends it, the centre stays."""
    sizes = [count for count in range(1, 13) if accepts(aggregator, count)]
    assert sizes == list(range(sizes[0], 13))
    for count in sizes:
        rows, weights = draw(count)
        honest = rows.abs().max()
        for liar in range(count):
            lying = rows.clone()
            lying[liar] = 1e12
            assert float(aggregator(lying, torch.ones_like(weights)).abs().max()) <= 2 * float(honest)


def accepts(aggregator, count):
    try:
        aggregator.check(count)
    except InputError:
        return False
    return True


@pytest.mark.parametrize(
    ("make", "option"),
    [
        (lambda: TrimmedMean(beta=0.0), "beta = 0"),
        (lambda: Krum(malicious=0), "malicious = 0"),
        (lambda: MultiKrum(malicious=0, keep=9), "malicious = 0"),
        (lambda: Bulyan(malicious=0), "malicious = 0"),
    ],
)
def test_a_defence_against_nobody_is_refused(make, option):
    with pytest.raises(InputError, match=option):
        make()


@pytest.mark.parametrize(
    ("aggregator", "cohort", "needed"),
    [(Krum(malicious=2), 6, 7), (MultiKrum(malicious=1, keep=1), 4, 5), (Bulyan(malicious=2), 10, 11)],
)
def test_a_cohort_too_small_is_one_clear_line(aggregator, cohort, needed):
    line = f"^aggregation.malicious = {aggregator.malicious}: .* {needed} replies, and the cohort has {cohort};"
    rows, weights = draw(needed)
    with pytest.raises(InputError, match=line):
        aggregator(rows[:cohort], weights[:cohort])
    with pytest.raises(InputError, match=line):
        aggregator.check(cohort)
    assert aggregator(rows, weights).shape == (5,)


def test_other_bad_input():
    rows, weights = draw(7)
    with pytest.raises(InputError, match=r"^aggregation.keep = 6: .* at most 5 "):
        MultiKrum(malicious=2, keep=6).check(len(rows))
    with pytest.raises(InputError, match="beta"):
        TrimmedMean(beta=0.5)
    with pytest.raises(ValueError, match="at least 0"):
        WeightedMean()(rows, -weights)
    with pytest.raises(ValueError, match="finite"):
        WeightedMean()(rows, weights / 0)
    with pytest.raises(ValueError, match=r"\[C, d\]"):
        Median()(rows[:0], weights[:0])
