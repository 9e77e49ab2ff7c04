"""What is measured of large numbers, of small ones."""

from __future__ import annotations

import json

import pytest

from experiments.benchmarks import scale
from fedsim.reports.comparison import compare


def test_a_population_runs():
    built, round_, memory = scale.population(200, 100, 3)
    assert built.cpu > 0
    assert round_.cpu > 0
    assert memory > 50


@pytest.mark.parametrize("name", scale.DEALT)
def test_each_partition_deals(name):
    taken, memory = scale.deal(name, 300_000)
    assert taken.cpu > 0
    assert memory > 50


def test_the_runs_that_are_compared_are_groups_of_five_seeds(tmp_path, monkeypatch):
    monkeypatch.setattr(scale.fedsim, "run", lambda _, out: made(out))
    scale.copies(tmp_path, 10)
    assert [len(group.runs) for group in compare(tmp_path / "runs").groups] == [5, 5]


def made(out):
    out.mkdir()
    (out / "config.toml").write_text("name = 'made'\nseed = 0\n[client]\nlr = 0.1\n[versions]\nfedsim = '0'\n")
    (out / "metrics.jsonl").write_text(json.dumps({"round": 1, "train_loss": 1.0}))


def test_rows_are_read():
    taken, count, memory = scale.read(1)
    assert taken.cpu > 0
    assert count > 4_000
    assert memory > 50
