"""The table: its arithmetic, and one small race between two engines in processes of their own."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from dataclasses import replace
from multiprocessing import Pipe

import numpy as np
import pytest
import typer
from forks import FORKING
from rich.console import Console
from torch import nn
from typer.testing import CliRunner

from experiments.benchmarks import rounds
from experiments.benchmarks.engine import Fedsim, FedsimValues
from experiments.benchmarks.peers import values, works
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
    monkeypatch.setattr(rounds, "get_context", lambda _: FORKING)
    found = rounds.race("digits", ["fedsim stacked", "lean loop (1)"], turns=2, cores=2, gpu=False)
    for measured in found.values():
        assert isinstance(measured, Measured)
        assert len(measured.seconds) == 2
        assert measured.accuracy > 0.85
        assert measured.memory > 50
    # Different shuffles, equal method: the accuracies of 359 test examples are within five points.
    accuracies = [measured.accuracy for measured in found.values()]
    assert accuracies[0] == pytest.approx(accuracies[1], abs=0.05)


def test_every_engine_has_an_interface():
    made = [make(works.digits()) for make in rounds.engines(cores=2, gpu=False).values()]
    for engine in [*made, *(make(values.zeroth_order()) for make in rounds.value_engines().values())]:
        for method in ("missing", "start", "round", "accuracy", "parameters", "stop"):
            assert callable(getattr(engine, method))


def test_an_executor_says_what_it_asks_for_that_a_work_does_not_have():
    work = works.digits()
    normed = replace(work, model=lambda: nn.Sequential(nn.Linear(64, 10), nn.Sigmoid(), nn.LayerNorm(10)))
    assert Fedsim(normed, "fused").missing().endswith("take stacked")
    assert Fedsim(normed, "stacked").missing() is None


def test_a_one_behind_a_name_and_the_option_hold_an_engine_to_one_core(monkeypatch):
    held = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda process, cores: held.append((process, cores)))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5})
    monkeypatch.setattr(rounds, "made", lambda _: small_values())
    for name, cores in (("fedsim auto", 2), ("fedsim auto", 1), ("plain loop (1)", 2)):
        here, there = Pipe()
        here.send("stop")
        rounds.serve(there, name, rounds.VALUES, cores, gpu=False)
    assert held == [(0, {5}), (0, {5})]


def small_values():
    return replace(values.zeroth_order(), scale=np.ones((40, 3), np.float32), centre=np.ones((40, 3), np.float32))


def test_both_engines_of_values_come_to_the_same():
    work = small_values()
    found = []
    for engine in (FedsimValues(work), values.PlainValues(work)):
        engine.start()
        assert engine.accuracy() == 1.0  # all c = 1 and a = 1
        for _ in range(3):
            engine.round()
        found.append(engine.accuracy())
    # In the mean a step of lr = 1 takes x - c times 1 - 2/3, and what is left is variance.
    assert max(found) < 0.2
    assert found[0] == pytest.approx(found[1], abs=0.05)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--quick"], {"digits": 8, "one_hidden": 6, "two_nn": 4}),
        (["--works", "digits,zeroth_order,resnet", "--turns", "15"], {"digits": 15, "zeroth_order": 5, "resnet": 5}),
    ],
)
def test_what_is_raced_is_what_is_asked_for(arguments, expected, monkeypatch):
    raced = {}

    def race(work, names, turns, cores, gpu):
        raced[work] = (turns, cores, names)
        return {FEDSIM: Measured([1.0, 1.0])}

    monkeypatch.setattr(rounds, "race", race)
    app = typer.Typer()
    app.command()(rounds.main)
    done = CliRunner().invoke(app, [*arguments, "--cores", "one"])
    assert done.exit_code == 0
    assert {work: turns for work, (turns, _, _) in raced.items()} == expected
    assert {cores for _, cores, _ in raced.values()} == {1}
    assert {len(names) for work, (_, _, names) in raced.items() if work == "zeroth_order"} <= {2}
    assert all(not name.endswith("(2)") for _, _, names in raced.values() for name in names)
    if arguments == ["--quick"]:
        assert not any(name.startswith(("plain", "Flower")) for _, _, names in raced.values() for name in names)


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
