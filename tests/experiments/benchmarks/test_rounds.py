"""The table: its arithmetic, and one small race between two engines in processes of their own."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest
from rich.console import Console

from experiments.benchmarks import rounds
from experiments.benchmarks.peers import works
from experiments.benchmarks.rounds import FEDSIM, Measured, table_of


def text_of(table) -> str:
    shown = io.StringIO()
    Console(file=shown, width=120).print(table)
    return shown.getvalue()


def test_ratios_are_medians_within_turns():
    ours = Measured([1.0, 2.0, 4.0], start=1.0, accuracy=0.5, memory=100.0)
    peer = Measured([3.0, 4.0, 20.0], start=2.0, accuracy=0.5, memory=200.0)
    shown = text_of(table_of("work", {FEDSIM: ours, "peer": peer, "absent": "not installed"}))
    # Ratios 3, 2 and 5: their median is 3, while the ratio of the medians is 4 / 2.
    line = next(line for line in shown.splitlines() if "peer" in line)
    assert "4000.0" in line
    assert "3.00" in line
    assert "not installed" in shown


def test_engines_race_and_agree(monkeypatch):
    found = rounds.race("digits", [FEDSIM, "lean loop (1)"], turns=3, cores=2, gpu=False)
    for measured in found.values():
        assert isinstance(measured, Measured)
        assert len(measured.seconds) == 3
        assert measured.accuracy > 0.85
        assert measured.memory > 50
    # Different shuffles, equal method: the accuracies of 359 test examples are within five points.
    accuracies = [measured.accuracy for measured in found.values()]
    assert accuracies[0] == pytest.approx(accuracies[1], abs=0.05)


def test_every_engine_has_an_interface():
    for make in rounds.engines(cores=2, gpu=False).values():
        engine = make(works.digits())
        for method in ("missing", "start", "round", "accuracy", "parameters", "stop"):
            assert callable(getattr(engine, method))


def test_a_command_is_watched_until_its_first_row_and_its_end(tmp_path):
    rows = tmp_path / "metrics.jsonl"
    script = f"import time; time.sleep(0.05); open({str(rows)!r}, 'w').write('row'); time.sleep(0.3)"
    first, whole = rounds.watched([sys.executable, "-c", script], rows)
    assert 0.05 < first.wall < whole.wall
    assert first.cpu <= whole.cpu + 0.01  # in steps of the system's clock
    rows.unlink()
    assert len(set(rounds.watched([sys.executable, "-c", "pass"], rows))) == 1
    with pytest.raises(subprocess.CalledProcessError):
        rounds.watched([sys.executable, "-c", "exit(3)"], rows)
