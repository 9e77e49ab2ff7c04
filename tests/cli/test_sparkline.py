"""Curves in a line."""

from __future__ import annotations

import math

import pytest

from fedsim.cli.sparkline import MOST, Curve, sparkline


@pytest.mark.parametrize(
    ("values", "width", "drawn"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 7], 8, "▁▂▃▄▅▆▇█"),
        ([7, 0], 8, "█▁"),
        ([1, 1, 1], 8, "▅▅▅"),
        ([0, 0, 10, 10], 2, "▁█"),
        ([-1.7e308, 1.7e308], 8, "▁█"),
        ([], 8, ""),
        ([1, 2], 0, ""),
    ],
)
def test_a_curve_has_its_lowest_and_its_highest_letter(values, width, drawn):
    assert sparkline(values, width, "utf-8") == drawn


@pytest.mark.parametrize("encoding", ["ascii", "cp437", "cp1252", "no such"])
def test_where_there_are_no_blocks_other_letters_are_taken(encoding):
    assert sparkline([0, 1, 2, 3, 4], 8, encoding) == "_.-=^"


def test_of_a_long_curve_so_many_values_are_kept_and_they_say_the_same():
    curve, count = Curve(), 20 * MOST + 17
    for number in range(count):
        curve.add(float(number))
        curve.add(math.nan)
    assert MOST / 2 <= len(curve.values) <= MOST
    drawn = sparkline(curve.values, 8, "utf-8")
    assert drawn == sparkline(range(count), 8, "utf-8") == "▁▂▃▄▅▆▇█"
