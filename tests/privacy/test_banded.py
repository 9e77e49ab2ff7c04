import math

import numpy as np
import pytest

from fedsim.privacy.banded import optimal, squared_error, toeplitz


def root_mean_square(factor, bands):
    """Of prefix sums' noise, times the root of how often a client takes part: at the same epsilon."""
    return math.sqrt(squared_error(factor) / len(factor) * -(-len(factor) // bands))


def test_the_bands_of_a_square_root():
    """1, 1/2, 3/8, 5/16 over a column's norm; C^-1 begins with 1.219951, -.609976, -.152494."""
    factor = toeplitz(16, 4)
    assert factor[:4, 0] * math.sqrt(1 + 1 / 4 + 9 / 64 + 25 / 256) == pytest.approx([1, 1 / 2, 3 / 8, 5 / 16])
    first = [[1.219951, 0, 0], [-0.609976, 1.219951, 0], [-0.152494, -0.609976, 1.219951]]
    assert np.linalg.inv(factor)[:3, :3] == pytest.approx(np.array(first), abs=1e-6)


@pytest.mark.parametrize(("size", "bands", "least"), [(16, 4, 57.9362), (32, 8, 140.1167)])
def test_the_least_error(size, bands, least):
    assert squared_error(optimal(size, bands)) == pytest.approx(least, rel=1e-5)


def test_errors_at_the_same_epsilon():
    """Of 16 rounds and 4 bands: 5.831 with independent noise, 3.858, 3.806."""
    assert root_mean_square(np.eye(16), 1) / 2 == pytest.approx(5.831, abs=1e-3)
    assert root_mean_square(toeplitz(16, 4), 4) == pytest.approx(3.858, abs=1e-3)
    assert root_mean_square(optimal(16, 4), 4) == pytest.approx(3.806, abs=1e-3)


@pytest.mark.parametrize("make", [toeplitz, optimal])
def test_taking_part_every_b_rounds_adds_up_to_the_root(make):
    """Columns, not rows, have norm 1, and those b apart are orthogonal: of any such pattern |C u|^2 = k."""
    factor = make(12, 3)
    assert np.allclose(factor, np.tril(factor) - np.tril(factor, -3))
    for pattern in ([0, 3, 6, 9], [2, 5, 8, 11], [1, 5, 11], [4]):
        part = np.zeros(12)
        part[pattern] = 1.0
        assert np.linalg.norm(factor @ part) == pytest.approx(math.sqrt(len(pattern)))
