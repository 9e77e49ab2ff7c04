"""Command lines and files that mean ill: one line on standard error, exit code 2, nothing that steers a terminal."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import warnings
from io import StringIO
from pathlib import Path

import pytest
from rich.table import Table

from fedsim.cli.console import Console, guard
from fedsim.cli.main import main
from fedsim.core.terminal import printable

pytestmark = pytest.mark.usefixtures("unpainted")

DIGITS = str(Path(__file__).parents[2] / "experiments" / "digits_fedavg.toml")
TITLE = "\x1b]0;pwned\x07"
LONG = "a" * 5_000


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["fedsim", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


COMMANDS = {
    "a value": ["run", DIGITS, "--set", f"strategy.kind={TITLE}"],
    "a file's name": ["run", f"{TITLE}.toml"],
    "a grid": ["sweep", DIGITS, "--grid", f"client.lr={TITLE}["],
    "a kind": ["describe", "strategy", TITLE],
    "a command": [f"run{TITLE}"],
    "an option": ["run", f"--{TITLE}"],
    "a folder of an app": ["flower", "run", TITLE],
    "a file that is too long": ["run", LONG],
    "a folder that is too long": ["run", "--resume", LONG],
    "a place that is too long": ["run", DIGITS, "--out", LONG],
    "a run that is too long": ["compare", LONG],
    "runs that are not there": ["ls", TITLE],
    "runs that are too long": ["ls", LONG],
    "a status": ["ls", "--status", TITLE],
    "an order": ["ls", "--sort", TITLE],
    "a run to show": ["show", TITLE],
    "a run to show that is too long": ["show", LONG],
    "runs to clean": ["clean", TITLE],
    "runs to clean that are too long": ["clean", LONG],
    "an age": ["clean", "--older", TITLE],
    "an age of many digits": ["clean", "--older", f"{'9' * 5_000}d"],
    "data that are too long": ["run", DIGITS, "--set", f"problem.dataset={{kind='csv', path='{LONG}', label='y'}}"],
    "data of nobody": ["run", DIGITS, "--set", "problem.dataset={kind='csv', path='~nosuchuser/a', label='y'}"],
    "a trace of nobody": ["run", DIGITS, "--set", "devices.compute={kind='trace', file='~nosuchuser/a.csv'}"],
    "a start that is too long": ["run", DIGITS, "--set", f"problem.start={LONG}.pt"],
    "a plug-in that is too long": ["run", DIGITS, "--set", f"strategy.kind=./{LONG}.py:A"],
    "a plug-in with a NUL": ["run", DIGITS, "--set", 'strategy.kind="./a\\u0000.py:A"'],
    "a device": ["run", "/dev/zero"],
    "depth": ["run", DIGITS, "--set", f"client.x={'[' * 5_000}{']' * 5_000}"],
    "a long path": ["run", DIGITS, "--set", f"client.{'.'.join('a' * 3_000)}=1"],
    "two values in one": ["run", DIGITS, "--set", "rounds=1\nseed=5"],
    "many seeds": ["run", DIGITS, "--seeds", "0-99999999999"],
    "more seeds": ["sweep", DIGITS, "--seeds", f"0-{'9' * 4_000}"],
    "large seeds": ["run", DIGITS, "--seeds", str(2**63)],
    "a large grid": [
        "sweep",
        DIGITS,
        *(part for name in "abcdef" for part in ("--grid", f"{name}={','.join('1' * 20)}")),
    ],
}


@pytest.mark.parametrize("case", COMMANDS)
def test_a_command_line_that_means_ill_is_refused_in_a_line(case, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, *COMMANDS[case]) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(r"fedsim: [^\n]+\n", said)
    assert printable(said) == said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [["ls", "FOLDER"], ["list"]])
def test_a_reader_that_has_gone_is_no_fault_of_code(monkeypatch, capsys, tmp_path, command):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").write_text("x=")  # a run that is damaged has a row, too
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w", encoding="utf-8") as answer, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", answer)
        assert call(patched, *[str(tmp_path) if word == "FOLDER" else word for word in command]) == 1
    assert capsys.readouterr().err == ""


def test_a_pipe_is_not_waited_for(monkeypatch, capsys, tmp_path):
    os.mkfifo(tmp_path / "pipe.toml")
    assert call(monkeypatch, "run", str(tmp_path / "pipe.toml")) == 2
    assert "no regular file" in capsys.readouterr().err


@pytest.mark.parametrize("where", ["at its top", "in a round"])
def test_code_that_ends_the_process_is_said(where, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    text = "import sys\nfrom strategies.fedavg import FedAvg\nfrom fedsim.core.options import options\n"
    text += "sys.exit(0)\n" if where == "at its top" else ""
    text += "@options\nclass Quits(FedAvg):\n    def tell(self, state, replies):\n        sys.exit('\\x1b[31m')\n"
    (tmp_path / "quits.py").write_text(text)
    code = 2 if where == "at its top" else 1  # a file that cannot be loaded is an input
    assert call(monkeypatch, "run", DIGITS, "--set", "strategy.kind=./quits.py:Quits", "--out", "run") == code
    said = capsys.readouterr().err
    assert re.fullmatch(r"fedsim: .*(SystemExit: 0|sys.exit\('.x1b\[31m'\)).*\n", said)
    assert (tmp_path / "run" / "traceback.txt").is_file() == (where == "in a round")


FOREIGN = {
    "a list": {"trace.json": "[1]"},
    "nothing": {"trace.json": "{}"},
    "a negative client": {"trace.json": {"client": -1}},
    "a time beyond the clock": {"trace.json": {"start": 1e300}},
    "a staleness that is no number": {"trace.json": {"staleness": {"a": 1}}},
    "a depth": {"trace.json": "[" * 100_000},
    "NaN": {"trace.json": '{"until": NaN}'},
    "a round that is a text": {"metrics.jsonl": '{"round": "x"}\n'},
    "a round that is negative": {"metrics.jsonl": '{"round": -1}\n'},
    "a list as a number": {"metrics.jsonl": '{"round": 1, "time": []}\n'},
    "400 digits": {"metrics.jsonl": '{"round": 1, "train_loss": ' + "9" * 400 + "}\n{}\n"},
    "30 digits": {"metrics.jsonl": '{"round": 1, "time": 1.0, "train_loss": 1.0, "bytes_up": ' + "9" * 30 + "}\n{}\n"},
    "a name that is not printable": {"metrics.jsonl": '{"round": 1, "a\\u001b_loss": 1}\n'},
    "a seed that is a list": {"config.toml": "seed = [1]"},
    "a config that is deep": {"config.toml": f"a = {'[' * 5_000}{']' * 5_000}"},
}
WORK = {"client": 0, "version": 0, "start": 0.0, "end": 1.0, "used": 1.0, "outcome": "used"}


@pytest.mark.parametrize("case", FOREIGN)
def test_files_that_no_run_has_written_are_not_compared(case, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    folder.mkdir()
    trace = {"staleness": {"0": 1}, "participation": [1], "until": 1.0, "timeline_clients": 1, "timeline": [WORK]}
    sound = {
        "config.toml": 'name = "a"\nseed = 0\n',
        "metrics.jsonl": '{"round": 1, "time": 1.0, "train_loss": 1.0}\n' * 2,
        "trace.json": json.dumps(trace),
    }
    for name, text in (sound | FOREIGN[case]).items():
        if isinstance(text, dict):
            told = trace | text if text.keys() <= trace.keys() else trace | {"timeline": [WORK | text]}
            text = json.dumps(told)
        (folder / name).write_text(text)
    assert call(monkeypatch, "compare", "run") == 2
    said = capsys.readouterr().err
    assert re.fullmatch(r"fedsim: [^\n]+\n", said)
    assert next(iter(FOREIGN[case])) in said
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_group_with_an_evil_name_is_compared(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("good", f"{TITLE}[bold]\u202e\udcff"):
        Path(name).mkdir()
        (Path(name) / "config.toml").write_text('name = "a"\nseed = 0\n')
        (Path(name) / "metrics.jsonl").write_text('{"round": 1, "train_loss": 1.0}\n{"round": 2, "train_loss": 0.5}\n')
    assert call(monkeypatch, "compare", "good", f"{TITLE}[bold]\u202e\udcff") == 0
    said = capsys.readouterr().out
    assert printable(said) == said
    assert r"\x1b]0;pwned\x07[bold" in said
    assert (tmp_path / "compare.png").is_file()


def test_what_is_laid_out_steers_nothing():
    """Colours are rich's own; what stands in cells is text."""
    file = StringIO()
    table = Table("[red]head", "\x1b[31mother")
    table.add_row("\x1b[2J", "a")
    Console(file=file, force_terminal=True, width=60).print(table, "\x07[bold]b")
    said = re.sub(r"\x1b\[[\d;]*m", "", file.getvalue())
    assert printable(said) == said
    assert "[red]head" in said
    assert r"\x1b[2J" in said


def test_what_libraries_say_steers_nothing(monkeypatch):
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    monkeypatch.setattr(logging.lastResort, "formatter", None)
    guard()
    assert "UserWarning: \\x1b]0;pwned\\x07\n" in warnings.formatwarning(TITLE, UserWarning, "a.py", 1)
    record = logging.LogRecord("elsewhere", logging.WARNING, "a.py", 1, TITLE, None, None)
    assert logging.lastResort is not None
    assert logging.lastResort.format(record) == printable(TITLE)
