"""`fedsim tune` at the command line: what it says, and its exit codes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fedsim.cli import main as commands
from fedsim.problems.supervised import Supervised
from fedsim.running import runner
from fedsim.running.study import read_study
from fedsim.tuning import trials

EXPERIMENT = """
rounds = 2
[problem]
dataset = { kind = "synthetic", clients = 6, features = 5, classes = 3, examples_per_client = 20 }
model = { kind = "mlp", hidden = [6] }
[partition]
kind = "natural"
"""
SPACE = ["--space", "client.lr=0.1,0.3", "--space", "client.epochs=int:1..2"]


@pytest.fixture
def file(tmp_path, monkeypatch) -> str:
    monkeypatch.setattr(runner, "curves", lambda *_: None)
    monkeypatch.setattr(Supervised, "illustrate", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.toml").write_text(EXPERIMENT)
    return "own.toml"


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["fedsim", "tune", *arguments])
    with pytest.raises(SystemExit) as end:
        commands.main()
    return int(end.value.code or 0)


def test_a_search_says_its_trials_the_best_and_what_the_test_set_says(file, monkeypatch, capsys):
    assert call(monkeypatch, file, *SPACE, "--sampler", "grid", "--pruner", "none", "--seeds", "0-1") == 0
    said = capsys.readouterr()
    found = read_study(Path("runs/tune-0"))
    assert found is not None
    assert [line.partition(":")[0] for line in said.out.splitlines()[:4]] == [f"trial {number}" for number in range(4)]
    best = found.best_trial
    assert best is not None
    row = next(line for line in said.out.splitlines() if line.strip().startswith(f"{best.number} "))
    assert f"{best.value:.4f} ± " in row
    assert found.test is not None
    assert f"on the test set, trained on all: test accuracy {sum(found.test['test_accuracy']) / 2:.4f}" in said.out
    assert "4 complete" in said.out
    assert "importance: client." in said.out
    assert "best options: runs/tune-0/best.toml" in said.out
    assert "partition.validation = 0.2: " in said.err
    assert "which nothing has looked at so far" in said.err
    assert (
        call(monkeypatch, file, *SPACE, "--sampler", "grid", "--metric", "validation_loss", "--out", "runs/tune-0") == 2
    )
    assert (
        "fedsim: metric = validation_loss: the search in runs/tune-0 has validation_accuracy" in capsys.readouterr().err
    )


def test_an_interrupted_search_says_what_there_is_and_how_it_goes_on(file, monkeypatch, capsys):
    plain = trials.resume

    def stopped(place: Path, *given: object, **named: object) -> object:
        if place.parent.name == "trial-1":
            raise KeyboardInterrupt
        return plain(place, *given, **named)

    monkeypatch.setattr(trials, "resume", stopped)
    assert call(monkeypatch, file, *SPACE, "--trials", "2") == 130
    said = capsys.readouterr()
    assert "1 complete, 1 running" in said.out
    assert "the same command with --out runs/tune-0 goes on" in said.err
    assert "on the test set" not in said.out


def test_what_cannot_be_searched_is_one_line_and_leaves_nothing(file, monkeypatch, capsys, tmp_path):
    for arguments, words in (
        ((), "space = (nothing): name an option"),
        ((*SPACE, "--metric", "test_accuracy"), "metric = test_accuracy: the test set is for the end"),
        ((*SPACE, "--pruner", "mean"), "pruner = mean: name one of: median, hyperband, none"),
        ((*SPACE, "--sampler", "gird"), "did you mean grid?"),
        (("--space", "client.lr=-1..1"), "(in --space client.lr=-1..1)"),
    ):
        assert call(monkeypatch, file, *arguments) == 2
        said = capsys.readouterr().err
        assert words in said
        assert said.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_search_of_which_nothing_comes_ends_with_1_and_says_why(file, monkeypatch, capsys):
    assert call(monkeypatch, file, "--space", "client.lr=1e25", "--trials", "1") == 1
    said = capsys.readouterr().out
    assert "1 failed" in said
    assert "trial 0: client.lr 1e+25: diverged: " in said
