"""What pytest learns when fedsim is installed: an option and a marker for checks on Ray, and how to show assertions.

This module and what it imports know neither PyTorch nor Flower, for every pytest of the environment loads it.
"""

from __future__ import annotations

import pytest

OPTION = "--fedsim-ray"
MARKER = "ray"

# What a check has found stands in the failure of whoever has called it.
REWRITTEN = (
    "checks",
    "option_checks",
    "on_ray",
    "rounds",
    "specimen",
    "selectors",
    "aggregators",
    "transforms",
    "datasets",
    "losses",
    "measures",
    "models",
)
pytest.register_assert_rewrite(*(f"fedsim.testing.{name}" for name in REWRITTEN))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Offer the option."""
    parser.getgroup("fedsim").addoption(
        OPTION, action="store_true", help="run conformance checks under Flower's own engine, which is Ray's, too"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Name the marker."""
    config.addinivalue_line("markers", f"{MARKER}: under Ray; runs with {OPTION}, or if it is selected by this marker")


def asked_for(config: pytest.Config) -> bool:
    """Whether checks under Ray are to run."""
    return bool(config.getoption(OPTION, False)) or MARKER in str(config.getoption("markexpr"))
