"""The progress bar shows what a person waits for."""

from __future__ import annotations

import io

import torch
from rich.console import Console

from fedsim.cli import progress
from fedsim.running.result import Round


def said(monkeypatch, **measured: float) -> str:
    """What a bar shows after two rounds of ten clients, each of which took half a second."""
    shown = io.StringIO()
    monkeypatch.setattr(
        progress, "Console", lambda **_: Console(file=shown, force_terminal=True, width=120, color_system=None)
    )
    with progress.Progress(4, None, "digits") as bar:
        for number in (1, 2):
            row = {"round": number, "clients": 10, "wall": 0.5 * number, **measured}
            bar(Round(row, torch.zeros(1)))
        bar._bar.refresh()
    return shown.getvalue()


def test_the_bar_says_round_loss_accuracy_and_speed(monkeypatch):
    text = said(monkeypatch, train_loss=0.25, test_accuracy=0.5)
    # 20 clients in 1 second.
    for part in ("digits", "2/4", "loss 0.2500", "accuracy 0.5000", "20 clients/s"):
        assert part in text


def test_without_an_accuracy_the_bar_says_the_gap_and_without_that_the_value(monkeypatch):
    text = said(monkeypatch, train_loss=-1.5, value=-1.25, gap=1.5e-7)
    assert "loss -1.500" in text
    assert "gap 1.500e-07" in text
    assert "value" not in text
    assert "value -1.250" in said(monkeypatch, value=-1.25)
