"""Settings and folders of the tests."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
# Read when PyTorch is loaded: threads that wait for each other sleep, for others need the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# A shell that starts the tests in the background has them, and all that they start, ignore Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import budgets
import pytest
from forks import FORKING, sketch, unsynced

import fedsim  # first: it fixes the kernels that bitwise comparisons rely on

os.fsync = unsynced  # type: ignore[assignment]
gc.disable()  # until all tests are collected, of which none become garbage; it is half of that work
OBJECTS = 20_000
"""How many more there are when garbage is looked for, which at Python's 700 is a thirtieth of all work."""
MANY = 5_000
"""Tests among which are those that ask for all kernels."""
LONGEST = 10
"""Files of which the time is told, at the end of a run of more than these."""


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Tests that are named run in this process, as others would take seconds to start; else one a core."""
    return 0 if any("::" in argument for argument in config.args) else None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Groups are dealt out as pytest-xdist would, by what forgets those that are done."""
    from schedule import Forgetting  # here, for pytest-xdist may be switched off

    return Forgetting(config, log) if config.getvalue("dist") == "loadgroup" else None


def pytest_collection_finish() -> None:
    """What there is now stays: to look through all of it again and again is left out from here on."""
    gc.set_threshold(OBJECTS)
    gc.enable()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the files that took longest, beside what each may take."""
    taken = Counter[str]()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                taken[report.location[0]] += report.duration
    if len(taken) > LONGEST:
        terminalreporter.section("seconds of files, and their budgets")
        for line in budgets.lines(taken, LONGEST):
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Path:
    """A cache that begins empty, but for kernels: under a hash of all that they come from, pytest keeps those."""
    folder = tmp_path_factory.getbasetemp() / "cache"
    folder.mkdir()
    if pytestconfig.pluginmanager.has_plugin("cacheprovider"):
        (folder / "kernels").symlink_to(pytestconfig.cache.mkdir("kernels").absolute())
    return folder


@pytest.fixture(scope="session", autouse=True)
def kernels(cache: Path, request: pytest.FixtureRequest) -> None:
    """Of processes that run many tests two compile kernels first, half of them each, which all would compile at once.

    Of chains of linear layers and of stages on images, for numbers in single precision or in double.
    """
    import torch

    kind = {"gw0": torch.float32, "gw1": torch.float64}.get(os.environ.get("PYTEST_XDIST_WORKER", ""))
    if kind is None or len(request.session.items) < MANY or find_spec("numba") is None:
        return
    from torch import nn

    from fedsim.testing import small_experiment, small_problem

    images = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3))
    compiled = small_experiment(1, engine={"executor": "fused"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSIM_CACHE", str(cache))
        for problem in (small_problem(kind), small_problem(kind, images, shape=(1, 8, 8))):
            fedsim.run(compiled, problem=problem, save=False)


@pytest.fixture(autouse=True)
def own_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or fills the user's cache, and none writes into the checkout."""
    monkeypatch.setenv("FEDSIM_CACHE", str(cache))


@pytest.fixture
def forked_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Worker processes are forked from one that has PyTorch instead of importing it, which is most of their work."""
    get = multiprocessing.get_context
    monkeypatch.setattr(multiprocessing, "get_context", lambda how=None: FORKING if how == "spawn" else get(how))


@pytest.fixture
def unpainted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are made but not laid out and painted, which takes longer than a small run, and is tested elsewhere."""
    from matplotlib.figure import Figure

    monkeypatch.setattr(Figure, "savefig", sketch)


@pytest.fixture
def data_dir() -> Path:
    folder = os.environ.get("FEDSIM_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("FEDSIM_DATA names no folder of data sets")
    return Path(folder)
