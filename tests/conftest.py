"""Settings and folders of the tests."""

from __future__ import annotations

import os
from pathlib import Path

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"

import pytest

import fedsim  # noqa: F401  # first: it fixes the kernels that bitwise comparisons rely on


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or fills the user's cache, and none writes into the checkout."""
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def data_dir() -> Path:
    folder = os.environ.get("FEDSIM_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("FEDSIM_DATA names no folder of data sets")
    return Path(folder)
