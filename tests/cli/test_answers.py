"""Answers for scripts: JSON or the last line on standard output, and nothing else there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from fedsim.cli.answers import answering
from fedsim.cli.main import main
from fedsim.core.terminal import note
from fedsim.running import sweep
from fedsim.running.sweep import Outcome, Point

pytestmark = pytest.mark.usefixtures("unpainted")
DIGITS = str(Path(__file__).parents[2] / "experiments" / "digits_fedavg.toml")
QUICK = ["--set", "rounds=1", "--set", "client.epochs=1"]
LOUD = """
from strategies.fedavg import FedAvg
from fedsim.core.options import options
print("loaded")
@options
class Loud(FedAvg):
    def tell(self, state, replies):
        print("heard")
        return super().tell(state, replies)
"""


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["fedsim", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize("form", ["--json", "--quiet"])
def test_a_run_answers_a_script_and_what_code_prints_goes_elsewhere(form, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("loud.py").write_text(LOUD)
    loud = ["--set", "strategy.kind=./loud.py:Loud"]
    assert call(monkeypatch, "run", DIGITS, *QUICK, *loud, "--seed", "3", form) == 0
    said = capsys.readouterr()
    assert ("loaded" in said.err, "heard" in said.err) == (True, True)
    if form == "--quiet":
        assert said.out == f"{Path('runs', 'digits_fedavg-0')}\n"
        assert "finished" not in said.err
        return
    told = json.loads(said.out)
    summary = json.loads(Path("runs", "digits_fedavg-0", "summary.json").read_text())
    assert told == {
        "folder": str(Path("runs", "digits_fedavg-0")),
        "name": "digits_fedavg",
        "seed": 3,
        "status": "finished",
        "reason": "",
        "summary": summary,
    }
    assert "finished: 1 rounds" in said.err


def test_seeds_answer_a_line_each_and_their_folder(monkeypatch, capsys, tmp_path):
    out = str(tmp_path / "group")
    assert call(monkeypatch, "run", DIGITS, *QUICK, "--seeds", "0-1", "--out", out, "--json") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["seed"], line["folder"]) for line in lines] == [(0, f"{out}/seed-0"), (1, f"{out}/seed-1")]
    assert call(monkeypatch, "run", DIGITS, *QUICK, "--seeds", "0", "--out", out, "--force", "-q") == 0
    assert capsys.readouterr() == (f"{out}\n", "")


def test_a_sweep_answers_a_line_a_point(monkeypatch, capsys, tmp_path):
    ends = {0: ("finished", "", {"rounds": 1, "wall": 1.0}), 1: ("failed", "no memory", {})}

    def run_points(points: Sequence[Point], on_done: Callable[[Outcome], None], **_: object) -> list[Outcome]:
        outcomes = [Outcome(point, *ends[point.experiment.seed]) for point in points]
        for outcome in outcomes:
            on_done(outcome)
        return outcomes

    monkeypatch.setattr(sweep, "run_points", run_points)
    command = ["sweep", DIGITS, "--seeds", "0-1", "--out", str(tmp_path / "all")]
    assert call(monkeypatch, *command, "--json", "--quiet") == 1
    said = capsys.readouterr()
    assert said.err == ""
    done, failed = map(json.loads, said.out.splitlines())
    assert (done["status"], done["skipped"], done["summary"]) == ("finished", False, {"rounds": 1, "wall": 1.0})
    assert (failed["status"], failed["reason"], failed["summary"]) == ("failed", "no memory", {})
    assert failed["folder"] == str(tmp_path / "all" / "digits_fedavg" / "base" / "seed-1")
    assert call(monkeypatch, *command, "--quiet") == 1
    assert capsys.readouterr() == (f"{tmp_path / 'all'}\n", "")


def test_a_comparison_answers_with_all_numbers_of_its_groups(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    for group, rate, values in (("a", 0.1, (0.25, 0.75)), ("b", 0.2, (0.5, 0.5))):
        for seed, value in enumerate(values):
            folder = tmp_path / group / f"seed-{seed}"
            folder.mkdir(parents=True)
            (folder / "config.toml").write_text(f'name = "x"\nseed = {seed}\nclient = {{ lr = {rate} }}\n')
            rows = [{"round": n, "test_accuracy": n * value / 2} for n in (1, 2)]
            (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert call(monkeypatch, "compare", ".", "--target", "test_accuracy=0.5", "--json") == 0
    (told,) = map(json.loads, capsys.readouterr().out.splitlines())
    first, second = told["groups"]
    assert (first["name"], first["seeds"]) == ("a", [0, 1])
    assert first["folders"] == [str(tmp_path / "a" / f"seed-{seed}") for seed in (0, 1)]
    final = first["numbers"]["test_accuracy, final"]
    # 0.25 and 0.75: mean 0.5, deviation sqrt(2 * 0.25^2 / 1) = 0.3536.
    assert (final["values"], final["mean"], final["deviation"]) == ([0.25, 0.75], 0.5, pytest.approx(0.3536, abs=1e-4))
    assert final["interval"][0] < 0.5 < final["interval"][1]
    assert first["targets"]["test_accuracy"]["rounds"]["reached"] == [False, True]
    assert second["targets"]["test_accuracy"]["rounds"] == {
        "values": [2.0, 2.0],
        "reached": [True, True],
        "median": 2.0,
    }
    assert told["targets"] == {"test_accuracy": 0.5}
    assert told["differing"] == {"client.lr": [0.1, 0.2]}
    assert [(test["group"], test["other"]) for test in told["tests"]] == [("a", "b")]
    assert told["pictures"] == ["compare.png"]
    assert told["fronts"] == []


def test_the_list_of_what_is_installed_is_one_object(monkeypatch, capsys):
    assert call(monkeypatch, "list", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert "fedavg" in told["strategies"]


def test_an_error_is_said_on_standard_error_in_any_form(monkeypatch, capsys, tmp_path):
    for form in ("--json", "--quiet"):
        assert call(monkeypatch, "run", DIGITS, "--set", "rounds=-1", "--out", str(tmp_path / "run"), form) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith("fedsim: rounds = -1")


def test_notes_are_left_out_where_nothing_is_to_be_said(capsys):
    with answering(quiet=True):
        note("a remark")
    with answering(as_json=True):
        note("another remark")
    note("a third")
    assert capsys.readouterr().err == "fedsim: another remark\nfedsim: a third\n"


def test_numbers_that_are_not_finite_and_letters_that_are_not_printable(capsys):
    with answering(as_json=True) as answer:
        answer.give({"a": [float("nan"), (1.5, float("inf"))], "b": Path("x\x1b\x7f\u202e")})
    assert capsys.readouterr().out == '{"a": [null, [1.5, null]], "b": "x\\u001b\\u007f\\u202e"}\n'


PROCESS = """
import os
from fedsim.cli.answers import answering
print("before", flush=True)
with answering(as_json=True) as answer:
    os.system("echo of another process")
    print("of this one")
    answer.give({"a": 1})
print("after")
"""


def test_what_other_processes_write_does_not_come_between():
    done = subprocess.run(
        [sys.executable, "-c", PROCESS], capture_output=True, text=True, check=True, timeout=60, env=os.environ
    )
    assert done.stdout == 'before\n{"a": 1}\nafter\n'
    assert sorted(done.stderr.splitlines()) == ["of another process", "of this one"]
