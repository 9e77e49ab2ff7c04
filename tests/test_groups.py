"""Tests that share something expensive, or that count what is theirs, run in one process, one after the other."""

from __future__ import annotations

import os

import pytest


@pytest.mark.xdist_group("here")
@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="all tests run in this process")
def test_a_group_is_known_to_who_deals_tests_out(request: pytest.FixtureRequest) -> None:
    """pytest-xdist reads it from the end of a test's name, where some versions of pytest do not let it write."""
    assert request.node.nodeid.endswith("@here")
