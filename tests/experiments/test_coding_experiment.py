"""The comparison of codes: what is tried, what is chosen, and what is claimed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from experiments.coding import learning, times
from fedsim.coding import Uncoded


def measured(**seconds: float) -> times.Results:
    """Seconds of schemes on every trace, 100 where nothing is said."""
    return {
        (key, name): times.Measured("", 1.0, np.full(5, seconds.get(name, 100.0)), np.zeros(5))
        for key in times.TRACES
        for name in times.SCHEMES
    }


def test_parameters_are_chosen_on_some_traces_and_told_on_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(times, "WORKERS", 12)
    monkeypatch.setattr(times, "JOBS", 8)
    monkeypatch.setattr(times, "TRACES", {"short": times.TRACES["short"]})
    monkeypatch.setattr(times, "SCHEMES", {"wait": "waiting for all", "gc": "GC"})
    found = times.measure(tmp_path)
    wait, code = found["short", "wait"], found["short", "gc"]
    assert code.chosen in {name for name, _ in times.codes()}
    assert code.load == int(code.chosen.removeprefix("s ")) + 1
    assert len(wait.seconds) == len(times.TOLD)
    assert (code.seconds < wait.seconds).sum() >= 3
    times.draw(found, tmp_path / "times.png")
    assert (tmp_path / "times.png").stat().st_size > 5_000
    assert len(times.table(found).rows) == 2


def test_claims_are_about_time_that_is_saved() -> None:
    assert times.faster(measured(wait=150.0, m=89.0)) == ("11.0 % and 40.7 %", True)
    assert not times.faster(measured(wait=150.0, m=91.0))[1]
    assert not times.faster(measured(wait=140.0, m=89.0))[1]
    assert times.repeated(measured(sr=99.0))[1]
    assert not times.repeated(measured(sr=101.0))[1]


def test_a_code_has_the_model_of_waiting_at_times_of_its_own() -> None:
    assert learning.time_to(np.array([[1.0, 2.0, 3.0], [0.5, 0.9, 0.8]])) == 2.0
    assert learning.time_to(np.array([[1.0], [0.5]])) == np.inf
    waited = learning.ends(Uncoded.among(learning.WORKERS), 0)
    assert len(waited) == learning.ROUNDS
    # Every round of waiting takes as long as its slowest worker.
    assert set(np.unique(np.diff(waited).round(9))) <= {1.1, 5.5}
    slow = {
        name: learning.Measured(name, "", [np.array([[time], [0.95]])] * 2)
        for name, time in (("wait", 9.0), ("gc", 3.0))
    }
    assert learning.sooner(slow) == ("0.33 of waiting's time (0.33, 0.33)", True)
    assert not learning.sooner({"gc": slow["wait"], "wait": slow["gc"]})[1]
