"""The quadratics that the tests of this folder share."""

from __future__ import annotations

import pytest

from fedsim.testing import Quadratics, small_quadratics


@pytest.fixture(scope="session")
def quadratics() -> Quadratics:
    """One problem for all: it is never changed."""
    return small_quadratics()
