"""The quadratics that the tests of this folder share."""

from __future__ import annotations

import numpy as np
import pytest
from quadratics import Quadratics


@pytest.fixture(scope="session")
def quadratics() -> Quadratics:
    """Six clients of five examples each in three dimensions, with curvatures and optima of their own."""
    generator = np.random.Generator(np.random.PCG64(11))
    x = generator.normal(size=(30, 3)) * np.repeat(generator.uniform(0.5, 1.5, size=(6, 3)), 5, axis=0)
    targets = np.repeat(generator.normal(size=(6, 3)) * 2, 5, axis=0)
    y = (x * targets).sum(axis=1) + 0.1 * generator.normal(size=30)
    return Quadratics(x, y, [np.arange(5 * client, 5 * client + 5) for client in range(6)])
