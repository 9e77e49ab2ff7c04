"""How the tests run: groups in one process, one after the other; budgets of files."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import budgets
import pytest


@pytest.mark.xdist_group("here")
@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="all tests run in this process")
def test_a_group_is_known_to_who_deals_tests_out(request: pytest.FixtureRequest) -> None:
    """pytest-xdist reads it from the end of a test's name, where some versions of pytest do not let it write."""
    assert request.node.nodeid.endswith("@here")


def test_budgets_are_those_of_files_that_are_there() -> None:
    root = Path(__file__).parent.parent
    assert [file for file in budgets.SECONDS if not (root / file).is_file()] == []


def test_no_two_files_of_tests_have_one_name() -> None:
    """Folders of tests are no packages: of two modules of one name pytest would refuse the second."""
    names = Counter(path.name for path in Path(__file__).parent.rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []


def test_the_longest_files_and_those_above_their_budgets_are_told() -> None:
    taken = {"a.py": budgets.OTHERS - 1.0, "tests/test_contract.py": 20.0, "b.py": budgets.OTHERS + 0.5, "c.py": 1.0}
    assert budgets.lines(taken, 1) == [
        "   20.0 of  80 tests/test_contract.py",
        "    6.5 of   6 b.py  more than its budget",
    ]
    assert len(budgets.lines(taken, 3)) == 3
