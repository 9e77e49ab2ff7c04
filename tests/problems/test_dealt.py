"""How far a client's labels are from everybody's."""

from __future__ import annotations

import numpy as np
import pytest

from fedsim.problems.datasets import Dataset
from fedsim.problems.dealt import label_distances
from fedsim.problems.partitions.base import Partition


def dealt(labels: list[int], owners: list[list[int]], classes: int = 3) -> tuple[Dataset, Partition]:
    """Examples with these labels, and the clients that have them by their numbers."""
    y, x = np.array(labels), np.zeros((len(labels), 2))
    offset = np.concatenate([[0], np.cumsum([len(own) for own in owners])])
    return Dataset("d", x, y, x, y, classes), Partition(np.concatenate(owners).astype(np.int64), offset)


def test_distances_are_of_total_variation():
    # of all 8: 1/2, 1/4, 1/4; the first has 1, 0, 0; the second 1/2, 1/4, 1/4; the third 0, 1/2, 1/2
    data, split = dealt([0, 0, 0, 0, 1, 1, 2, 2], [[0, 1], [2, 3, 4, 6], [5, 7]])
    found = label_distances(data, split)
    assert found == pytest.approx([0.5, 0.0, 0.5])
    data, split = dealt([0, 0, 0, 1], [[0, 1, 2], [3]])  # |1 - 3/4| + |0 - 1/4| over 2; |0 - 3/4| + |1 - 1/4| over 2
    assert label_distances(data, split) == pytest.approx([0.25, 0.75])


def test_distances_are_those_of_the_definition():
    draw = np.random.default_rng(0)
    labels, cuts = draw.integers(0, 12, 400), np.sort(draw.choice(np.arange(1, 300), 19, replace=False))
    order = draw.permutation(400)[:300]  # of which 100 nobody has, as those that are held out
    data, split = dealt(labels.tolist(), np.split(order, cuts), classes=15)
    shares = np.stack([np.bincount(labels[own], minlength=15) / len(own) for own in np.split(order, cuts)])
    mean = np.bincount(labels[order], minlength=15) / 300
    assert label_distances(data, split) == pytest.approx(np.abs(shares - mean).sum(axis=1) / 2)


def test_one_client_alone_is_at_no_distance():
    assert label_distances(*dealt([0, 2, 1], [[2, 0, 1]])) == pytest.approx([0.0])


def test_where_an_example_has_not_one_class_there_are_none():
    data, split = dealt([0, 1], [[0], [1]], classes=0)
    assert label_distances(data, split) is None
    places = Dataset("d", data.x, np.array([[0, 1], [1, 1]]), data.x_test, np.array([[0, 1], [1, 1]]), 3)
    assert label_distances(places, split) is None
