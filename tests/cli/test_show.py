"""A run on one page of text."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

import fedsim
from fedsim.cli.main import main
from fedsim.testing.problems import small_experiment, small_problem

pytestmark = pytest.mark.usefixtures("unpainted")


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["fedsim", "show", *arguments])
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three rounds, of which some options are not as by default, in a folder that a shell would split."""
    folder = tmp_path_factory.mktemp("runs") / "a run"
    data = {"kind": "synthetic", "clients": 6, "features": 5, "classes": 3, "examples_per_client": 12}
    fedsim.run(
        name="mine",
        problem={"dataset": data, "model": {"kind": "mlp", "hidden": [6]}},
        partition="natural",
        strategy={"kind": "fedavg", "server_lr": 0.5},
        rounds=3,
        out=folder,
    )
    return folder


def test_a_run_says_how_it_went_what_it_was_and_how_to_go_on(run, monkeypatch, capsys):
    assert call(monkeypatch, str(run)) == 0
    said = capsys.readouterr().out
    assert re.match(rf"{run}: finished, \d+ (s|min) ago\nmine, seed 0: 3 of 3 rounds\n", said)
    assert re.search(r"test_accuracy +0\.\d{4} +0\.\d{4} +[123] +[▁▂▃▄▅▆▇█]{3} *\n", said)
    assert "  strategy.server_lr = 0.5  (by default 1.0)\n" in said
    assert "strategy.weighting" not in said
    assert "strategy.kind" not in said
    assert re.search(r"  metrics.jsonl  \d+\.\d KiB\n", said)
    assert "\nmade with python " in said
    assert f"more rounds: fedsim run --resume '{run}' --set rounds=6\n" in said
    assert f"again: fedsim run '{run / 'config.toml'}'\n" in said
    assert '  problem.dataset.kind = "synthetic"  (by default "digits")\n' in said
    assert "  problem.dataset.features = 5  (by default " in said


def test_a_run_that_was_interrupted_says_how_to_go_on(run, monkeypatch, capsys, tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "config.toml").write_text((run / "config.toml").read_text())
    (folder / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text())
    assert call(monkeypatch, str(folder)) == 0
    said = capsys.readouterr().out
    assert f"to go on: fedsim run --resume {folder}\n" in said
    assert "more rounds" not in said


def test_a_run_on_a_problem_of_ones_own_goes_on_from_python(monkeypatch, capsys, tmp_path):
    fedsim.run(small_experiment(2, evaluation={"every": 1}), problem=small_problem(), out=tmp_path / "a")
    assert call(monkeypatch, str(tmp_path / "a")) == 0
    said = capsys.readouterr().out
    assert f"more rounds: fedsim.resume('{tmp_path / 'a'}', experiment of 4 rounds, problem=...)\n" in said
    assert "again:" not in said


def test_a_script_has_all_of_it_in_one_object(run, monkeypatch, capsys):
    assert call(monkeypatch, str(run), "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["status"], told["rounds"], told["reason"]) == ("finished", 3, "")
    assert told["differs"]["strategy.server_lr"] == {"value": 0.5, "default": 1.0}
    assert told["summary"] == json.loads((run / "summary.json").read_text())
    assert told["files"]["config.toml"] == (run / "config.toml").stat().st_size
    assert told["commands"]["more rounds"] == f"fedsim run --resume '{run}' --set rounds=6"
    assert told["versions"]["fedsim"] == fedsim.__version__


def test_without_its_plugin_a_run_is_shown_but_for_its_options(run, monkeypatch, capsys, tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    text = (run / "config.toml").read_text().replace('kind = "fedavg"', 'kind = "./absent\\u001b.py:Mine"')
    (folder / "config.toml").write_text(text)
    (folder / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text())
    assert call(monkeypatch, str(folder)) == 0
    said = capsys.readouterr().out
    assert re.search("its options cannot be told: strategy.kind = .*absent", said)
    assert said.replace("\n", "").isprintable()


def test_a_damaged_run_and_none_are_refused_in_a_line(monkeypatch, capsys, tmp_path):
    assert call(monkeypatch, str(tmp_path)) == 2
    (tmp_path / "config.toml").write_text("name = ")
    assert call(monkeypatch, str(tmp_path)) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "no run is there" in first
    assert second.startswith(f"fedsim: run = {tmp_path / 'config.toml'}: is not TOML")


def test_a_name_that_means_ill_is_shown(run, monkeypatch, capsys, tmp_path):
    folder = tmp_path / "\x1b]0;pwned\x07[bold]\nb"
    folder.mkdir()
    text = (run / "config.toml").read_text().replace('name = "mine"', 'name = "\\u001b[31m\\u202e[red]"')
    (folder / "config.toml").write_text(text)
    (folder / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text())
    for form in ([], ["--json"]):
        assert call(monkeypatch, str(folder), *form) == 0
        said = capsys.readouterr().out
        assert said.replace("\n", "").isprintable()
        assert "pwned" in said
