"""Runs that go on at once, on a terminal."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fedsim.cli import board as boards
from fedsim.cli import live
from fedsim.cli.board import Board
from fedsim.cli.console import Console
from fedsim.running.stored import METRICS
from fedsim.running.sweep import Outcome, Point

MADE: Any = SimpleNamespace(rounds=20, duration=None, evaluation=SimpleNamespace(asked={"mae": False}))


class Terminal:
    """A board of six points, two combinations of three seeds, two at a time, and a clock that somebody sets."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, encoding: str = "utf-8", height: int = 30) -> None:
        self.now, self.bytes = 100.0, io.BytesIO()
        self.file = io.TextIOWrapper(self.bytes, encoding=encoding, errors="backslashreplace", write_through=True)
        made = Console(
            file=self.file, force_terminal=True, width=80, height=height, color_system=None, legacy_windows=False
        )
        monkeypatch.setattr(live, "Console", lambda **_: made)
        monkeypatch.setattr(boards, "time", SimpleNamespace(monotonic=lambda: self.now))
        self.points = [Point(MADE, root / f"lr={rate}" / f"seed-{seed}") for rate in (1, 2) for seed in (0, 1, 2)]
        self.board = Board(self.points, 2)

    def write(self, place: int, *rounds: int, each: float = 1.0, text: str = "") -> None:
        """Add rows to a point's table, of so many seconds each."""
        folder = self.points[place].folder
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / METRICS).open("a") as file:
            for number in rounds:
                row = {"round": number, "time": 1.0, "wall": each * number, "test_mae": 1 / number}
                file.write(f"{json.dumps(row)}\n")
            file.write(text)

    def done(self, place: int, status: str = "finished", wall: float = 20.0, skipped: bool = False) -> None:
        """Have a point end."""
        summary = {} if status == "failed" else {"wall": wall}
        self.board(Outcome(self.points[place], status, "the reason", summary, skipped))

    def shown(self) -> list[str]:
        """What is drawn now, in lines."""
        self.bytes.truncate(0)
        self.bytes.seek(0)
        self.board._live.console.print(self.board)
        return [line.rstrip() for line in re.sub(r"\x1b\[\??[\d;]*[A-Za-z]|\r", "", self.text()).splitlines()]

    def text(self) -> str:
        """What was written."""
        return self.bytes.getvalue().decode(self.file.encoding)


@pytest.fixture
def terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Terminal:
    return Terminal(tmp_path, monkeypatch)


def test_a_board_says_how_far_runs_are_and_when_all_are_done(terminal):
    terminal.write(0, 1, 2, 3, 4, 5)
    head, *runs = terminal.shown()
    # Of the first 15 s are left, and 20 s are what it takes in all, as then do the other five: 115 s, shared by two.
    assert re.search(r"0/6 done, 2 running, 4 waiting +0:00:58 left", head)
    assert re.fullmatch(r"lr=1/seed-0 +5/20 0:00:15 left mae 0.2000 +█▃▂▁▁", runs[0])
    assert re.fullmatch(r"lr=1/seed-1 +starting", runs[1])


@pytest.mark.parametrize(
    ("width", "said"),
    [
        (80, "lr=1/seed-0 5/20 0:00:15 left mae 0.2000 █▃▂▁▁"),
        (60, "lr=1/seed-0 5/20 0:00:15 left mae 0.2000"),
        (50, "lr=1/seed-0 5/20 0:00:15 left"),
        (30, "lr=1/seed-0 5/20"),
    ],
)
def test_in_a_narrow_terminal_less_is_said_and_all_of_it_can_be_read(terminal, width, said):
    terminal.write(0, 1, 2, 3, 4, 5)
    terminal.board._live.console.width = width
    head, first, *_ = terminal.shown()
    assert " ".join(first.split()) == said
    assert "0:00:58 left" in head
    assert max(map(len, terminal.shown())) <= width


def test_points_of_other_combinations_take_as_long_as_their_own(terminal):
    terminal.done(0, wall=20.0)
    terminal.done(1, wall=20.0)
    terminal.done(2, wall=20.0)
    terminal.write(3, 1, 2, 3, 4, 5, each=10.0)
    # It takes 200 s, of which 150 are left, and the two others 200 s as well: 550 s, of two at once.
    assert "3/6 done, 2 running, 1 waiting 0:04:35 left" in terminal.shown()[0]
    terminal.done(4, wall=200.0)
    terminal.done(5, wall=200.0)
    assert "5/6 done, 1 running, 0 waiting 0:02:30 left" in terminal.shown()[0]


def test_points_of_an_earlier_sweep_took_no_time(terminal):
    terminal.done(0, wall=1e6, skipped=True)
    assert "1/6 done, 2 running, 3 waiting -:--:-- left" in terminal.shown()[0]


def test_failures_are_said_above_it_and_counted(terminal):
    terminal.done(0, "failed")
    terminal.done(1, "diverged", wall=3.0)
    assert f"{terminal.points[0].folder.parts[-3]}/lr=1/seed-0: failed: the reason" in terminal.text()
    assert "2/6 done, 2 failed, 2 running, 2 waiting" in terminal.shown()[0]


def test_files_are_looked_into_once_a_second(terminal):
    terminal.write(0, 1, 2)
    terminal.shown()
    terminal.write(0, 3)
    terminal.now += 0.9
    assert " 2/20 " in terminal.shown()[1]
    terminal.now += 0.2
    assert " 3/20 " in terminal.shown()[1]
    terminal.now += 7.0
    # 17 rounds of a second each, and the last of those that are done was 7 s ago.
    assert "0:00:10 left" in terminal.shown()[1]


def test_half_a_line_is_waited_for_and_what_no_run_has_written_left_out(terminal):
    terminal.write(0, 1, 2, text='[]\n{"round": 9}\nx\n{"round": null, "time": 1, "wall": 1}\n{"round": 3, ')
    assert " 2/20 " in terminal.shown()[1]
    terminal.write(0, text='"time": 3.0, "wall": 3.0}\n')
    terminal.now += 2.0
    assert " 3/20 " in terminal.shown()[1]


def test_a_run_that_went_back_to_a_checkpoint_is_read_anew(terminal):
    terminal.write(0, *range(1, 10))
    terminal.shown()
    (terminal.points[0].folder / METRICS).write_text("")
    terminal.write(0, 1, 2)
    terminal.now += 2.0
    assert " 2/20 " in terminal.shown()[1]


def test_more_runs_than_lines_are_counted(tmp_path, monkeypatch):
    low = Terminal(tmp_path, monkeypatch, height=5)
    assert [line.split()[0] for line in low.shown()[1:]] == ["lr=1/seed-0", "and"]
    assert low.shown()[-1] == "and 1 more"


def test_a_code_page_without_blocks_gets_other_letters(tmp_path, monkeypatch):
    old = Terminal(tmp_path, monkeypatch, encoding="cp1252")
    old.write(0, 1, 2, 3, 4, 5)
    assert "^-._" in old.shown()[1] or "^.__" in old.shown()[1]
    assert "\\u" not in old.text()


def test_a_name_that_means_ill_steers_nothing(tmp_path, monkeypatch):
    evil = Terminal(tmp_path / "\x1b]0;pwned\x07[red]\nb", monkeypatch)
    evil.points[0] = Point(MADE, tmp_path / "\x1b]0;pwned\x07[red]\nb" / "seed-0")
    evil.board = Board(evil.points, 1)
    assert len(evil.shown()) == 2
    assert "\x1b]0" not in evil.text()
    assert r"\x1b]0;pwned\x07[red]" in evil.text()


GATHERS = """
import os, sys
from fedsim.cli.live import gathered
heard = []
with gathered(heard.append) as terminal:
    os.system("echo of another; echo and another >&2")
    print("of this one", flush=True)
    print("drawn", file=terminal, flush=True)
os.system("echo later")
print(heard, flush=True)
"""


def test_what_other_processes_write_to_the_terminal_is_said_above():
    """And not where it is drawn; afterwards all is as before."""
    master, slave = os.openpty()
    done = subprocess.run([sys.executable, "-c", GATHERS], stdout=slave, stderr=slave, timeout=60, check=False)
    os.close(slave)
    with open(master, "rb", buffering=0) as terminal:
        written = terminal.read(10_000).decode().splitlines()
    assert done.returncode == 0
    assert written == ["drawn", "later", "['of another', 'and another', 'of this one']"]
