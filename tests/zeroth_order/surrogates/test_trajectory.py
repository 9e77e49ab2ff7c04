import pytest
import torch

from fedsim.zeroth_order.surrogates.trajectory import Trajectory


def empty(clients, length, dimension=1):
    shapes = Trajectory.shapes(length, dimension)
    return Trajectory.of({name: torch.zeros(clients, *shape).double() for name, shape in shapes.items()})


def test_the_oldest_is_overwritten_first():
    seen = empty(1, 4)
    for first in (0, 3):
        values = torch.arange(first, first + 3).double().reshape(1, 3)
        seen.add(10 * values.unsqueeze(2), values)
    # Pair i in row i mod 4: 0 1 2 3, then 4 and 5 in the place of 0 and 1.
    assert seen.values.tolist() == [[4, 5, 2, 3]]
    assert seen.points.flatten().tolist() == [40, 50, 20, 30]
    assert seen.count.tolist() == [6]
    assert seen.stored.tolist() == [4]


def test_pairs_that_are_not_finite_are_dropped():
    seen = empty(2, 3)
    points = torch.tensor([[[1.0], [2], [3]], [[4], [torch.inf], [6]]]).double()
    seen.add(points, torch.tensor([[torch.nan, 20, 30], [40, 50, -torch.inf]]).double())
    assert seen.count.tolist() == [2, 1]
    assert seen.values.tolist() == [[20, 30, 0], [40, 0, 0]]
    assert seen.points.squeeze(2).tolist() == [[2, 3, 0], [4, 0, 0]]


def test_some_clients_only():
    seen = empty(3, 2)
    one = torch.ones(2, 1, 1).double()
    seen.add(one, torch.tensor([[5.0], [7.0]]).double(), torch.tensor([2, 0]))
    assert seen.count.tolist() == [1, 0, 1]
    assert seen.values[:, 0].tolist() == [7, 0, 5]
    seen.add(one[:0], one[:0, :, 0], torch.tensor([], dtype=torch.int64))
    assert seen.count.tolist() == [1, 0, 1]


@pytest.mark.parametrize("number", [1, 2, 3, 9])
def test_the_nearest_of_what_is_stored(number):
    seen = empty(2, 3)
    seen.add(
        torch.tensor([[[5.0], [1], [2], [8]], [[4], [torch.nan], [torch.nan], [torch.nan]]]).double(),
        torch.tensor([[50.0, 10, 20, 80], [40, 0, 0, 0]]).double(),
    )
    points, values, counts = seen.nearest(torch.zeros(2, 1).double(), number)
    # Client 0 has 8, 1, 2 in its rows, 5 being overwritten; those nearest to 0 in that order. Client 1 has 4 alone.
    expected = [[10], [10, 20], [80, 10, 20], [80, 10, 20]][min(number, 4) - 1]
    assert values[0].tolist() == expected
    assert points[0].flatten().tolist() == [value / 10 for value in expected]
    assert counts.tolist() == [min(number, 3), 1]
    assert values[1, 0] == 40


def test_of_more_pairs_than_rows_the_last_ones_stay():
    seen = empty(2, 3)
    values = torch.tensor([[0.0, 1, 2, 3, 4], [0, torch.nan, 2, 3, torch.nan]]).double()
    seen.add(10 * values.nan_to_num().unsqueeze(2), values)
    # Of the first client's five pairs, 2 to 4 in rows 2, 0 and 1; of the second's three, all.
    assert seen.values.tolist() == [[3, 4, 2], [0, 2, 3]]
    assert seen.points.squeeze(2).tolist() == [[30, 40, 20], [0, 20, 30]]
    assert seen.count.tolist() == [5, 3]
