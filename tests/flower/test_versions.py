"""Flower's apps run with the two newest minor versions of Flower that the package index has."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
NAMES = ("internals", "virtual_grid", "simulation", "worlds", "shapes", "stock", "grid", "wall_clock", "own_apps")
OURS = ("as_strategy", "as_strategy_flower", "as_strategy_faults", "as_strategy_reasons", "every_strategy")
TESTED = [str(TESTS / f"test_{name}.py") for name in (*NAMES, *OURS, "searching", "mods")]
TESTED += [str(TESTS / "serving"), str(TESTS / "local")]


def pip(*arguments):
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def newest():
    """The newest release of each of the two newest minor versions."""
    listed = pip("index", "versions", "flwr")
    if listed.returncode:
        pytest.skip(f"the package index does not answer: {listed.stderr.strip()}")
    found = {}
    for version in re.findall(r"\b(\d+\.\d+)\.\d+\b", listed.stdout.partition("Available versions:")[2]):
        found.setdefault(version, None)
    return list(found)[:2]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_two_newest_versions(tmp_path):
    versions = newest()
    assert len(versions) == 2
    for version in versions:
        folder = tmp_path / version
        done = pip("install", "--quiet", "--no-deps", "--target", str(folder), f"flwr=={version}.*")
        assert done.returncode == 0, done.stderr
        environment = {**os.environ, "PYTHONPATH": str(folder)}
        said = subprocess.run(
            [sys.executable, "-c", "import flwr; print(flwr.__file__)"],
            env=environment, capture_output=True, text=True, timeout=60, check=True,
        ).stdout  # fmt: skip
        assert str(folder) in said
        tested = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTED],
            cwd=TESTS.parents[1], env=environment, capture_output=True, text=True, timeout=800, check=False,
        )  # fmt: skip
        assert tested.returncode == 0, f"flwr {version}:\n{tested.stdout[-5000:]}"
