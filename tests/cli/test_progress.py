"""A run on a terminal shows what a person waits for."""

from __future__ import annotations

import io
import re
from types import SimpleNamespace

import pytest
import torch

from fedsim.cli import live, progress
from fedsim.cli.console import Console
from fedsim.cli.live import clock
from fedsim.running.result import Round


def said(monkeypatch: pytest.MonkeyPatch, width: int = 120, **measured: float) -> str:
    """What is shown after three rounds of ten clients: the first took 3 s, and the others half a second each."""
    shown = io.StringIO()
    monkeypatch.setattr(
        live,
        "Console",
        lambda **_: Console(file=shown, force_terminal=True, width=width, color_system=None, legacy_windows=False),
    )
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: 100.0))
    with progress.Progress(9, None, "digits") as drawn:
        for number in (1, 2, 3):
            row = {"round": number, "clients": 10, "wall": 2.5 + 0.5 * number, **measured}
            drawn(Round(row, torch.zeros(1)))
        shown.seek(shown.truncate(0))
        drawn._live.refresh()
        return shown.getvalue()


def test_a_run_says_round_loss_accuracy_speed_and_the_time_left(monkeypatch):
    text = said(monkeypatch, train_loss=0.25, test_accuracy=0.5)
    # 20 clients in the second after the first round, and 6 more rounds of half a second.
    for part in ("digits", "3/9", "loss 0.2500 ▅▅▅", "accuracy 0.5000 ▅▅▅", "20 clients/s", "0:00:03 left"):
        assert part in text


def test_before_its_first_round_a_run_is_starting(monkeypatch):
    shown = io.StringIO()
    made = Console(file=shown, force_terminal=True, width=80, color_system=None, legacy_windows=False)
    monkeypatch.setattr(live, "Console", lambda **_: made)
    with progress.Progress(9, None, "digits"):
        pass
    assert " 0/9 -:--:-- left" in shown.getvalue()
    assert "\nstarting" in shown.getvalue()


def test_without_an_accuracy_a_run_says_the_gap_and_without_that_the_value(monkeypatch):
    text = said(monkeypatch, train_loss=-1.5, value=-1.25, gap=1.5e-7)
    assert "loss -1.500" in text
    assert "gap 1.500e-07" in text
    assert "value" not in text
    assert "value -1.250" in said(monkeypatch, value=-1.25)


@pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
def test_no_line_is_longer_than_the_terminal_is_wide(monkeypatch, width):
    text = re.sub(r"\x1b\[\??[\d;]*[A-Za-z]|\r", "", said(monkeypatch, width, train_loss=0.25, test_accuracy=0.5))
    assert len(text.splitlines()) == 2
    assert max(map(len, text.splitlines())) <= width


class Wide:
    """A terminal whose width somebody changes."""

    def __init__(self) -> None:
        self.shown = io.StringIO()
        self.console = Console(
            file=self.shown, force_terminal=True, width=60, height=20, color_system=None, legacy_windows=False
        )


def test_lines_that_a_narrower_terminal_has_folded_are_taken_away(monkeypatch):
    """60 letters in a line are three lines in a terminal of 25 columns: to draw anew, go up by one and two."""
    terminal = Wide()
    monkeypatch.setattr(live, "Console", lambda **_: terminal.console)
    with live.Live("a" * 60 + "\n" + "b" * 10) as drawn:
        drawn._refresh_thread.stop()
        drawn._refresh_thread.join()
        terminal.shown.seek(terminal.shown.truncate(0))
        drawn.refresh()
        assert terminal.shown.getvalue().count("\x1b[1A") == 1
        terminal.shown.seek(terminal.shown.truncate(0))
        terminal.console.width = 25
        drawn.refresh()
        assert terminal.shown.getvalue().count("\x1b[1A") == 3


def test_a_time_is_said_in_hours_minutes_and_seconds():
    assert clock(3723.2) == "1:02:04 left"
    assert clock(None) == "-:--:-- left"
