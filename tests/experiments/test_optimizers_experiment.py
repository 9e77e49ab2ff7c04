"""The comparison of rules: what is measured of runs, what is made of them, and that they run."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from experiments.optimizers import __main__ as program
from experiments.optimizers import rules
from experiments.optimizers.part import Part
from experiments.studies import Numbers
from fedsim.core import plugins

GRID = (0.01, 0.1, 1.0, 10.0)


def measured(choosing: list[float], told: list[float], grid: tuple[float, ...] = GRID) -> rules.Measured:
    """A rule with these mean accuracies, alike in all seeds."""
    return rules.Measured(grid, np.array(choosing)[:, None] + np.zeros(3), np.array(told)[:, None] + np.zeros(5))


ONES: Numbers = np.ones((2, 3))


def test_the_rate_is_that_of_other_seeds_and_the_range_is_around_it():
    one = measured([0.5, 0.9, 0.91, 0.2], [0.5, 0.93, 0.92, 0.91])
    assert (one.chosen, one.final.tolist()) == (2, [0.92] * 5)
    assert one.near == (0.1, 10.0)
    assert one.breadth == pytest.approx(2.0)
    assert measured([0.9, 0.1, 0.1, 0.1], [0.9, 0.1, 0.9, 0.9]).near == (0.01, 0.01)  # not what lies beyond a gap


def test_what_is_claimed_follows_from_the_numbers():
    level = {name: measured([0.9] * 4, [0.9] * 4, rules.RULES[name].grid[:4]) for name in rules.RULES}
    better = level | {"muon": measured([0.95] * 4, [0.95] * 4)}
    assert rules.muon_ahead(better)[1]
    assert not rules.muon_ahead(better | {"egn": measured([0.96] * 4, [0.96] * 4)})[1]
    worse = level | {"sgd": measured([0.91] * 4, [0.91] * 4)}
    assert rules.adaptive_behind(worse)[1]
    assert not rules.adaptive_behind(worse | {"lion": measured([0.92] * 4, [0.92] * 4)})[1]
    named = {"sania": (0.1, 1.0), "dog": (0.01, 0.1), "a_dog": (0.01, 0.1)}
    found = {name: rules.Measured(grid, ONES, np.full((2, 5), 0.9)) for name, grid in named.items()}
    assert rules.no_rate(level | found)[1]
    low = rules.Measured((0.1, 1.0), ONES, np.array([[0.95], [0.85]]) + np.zeros(5))
    assert not rules.no_rate(level | found | {"sania": low})[1]


def test_all_rules_are_compared():
    """By their own names, but for forms of the same one."""
    kinds = {re.search(r"\w+(?='|$)", rule.optimizer.partition(",")[0]).group() for rule in rules.RULES.values()}
    assert set(plugins.ours("optimizers")) <= kinds


def test_a_part_runs_and_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rules, "CHOOSING", range(100, 101))
    monkeypatch.setattr(rules, "TOLD", range(1))
    few = Part(
        "rules",
        lambda out, **given: rules.measure(out, rules=("sgd",), rounds=1, **given),
        rules.table,
        rules.draw,
        rules.PART.claims[-1:],
    )
    monkeypatch.setattr(program, "PARTS", {"rules": few})
    picture = tmp_path / "rules.png"
    app = typer.Typer()
    app.command()(program.main)
    words = ["rules", "--out", str(tmp_path / "runs"), "--workers", "1", "--picture", str(picture)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "measured: and decades of rates" in done.output
    assert picture.stat().st_size > 10_000
    assert CliRunner().invoke(app, ["rule"]).exit_code == 2
