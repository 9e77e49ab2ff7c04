"""The progress bar shows what a person waits for."""

from __future__ import annotations

import io

import torch
from rich.console import Console

from fedsim import progress
from fedsim.runner import Round


def test_the_bar_says_round_loss_accuracy_and_speed(monkeypatch):
    shown = io.StringIO()
    monkeypatch.setattr(
        progress, "Console", lambda **_: Console(file=shown, force_terminal=True, width=120, color_system=None)
    )
    with progress.Progress(4, None, "digits") as bar:
        for number in (1, 2):
            row = {"round": number, "clients": 10, "wall": 0.5 * number, "train_loss": 0.25, "test_accuracy": 0.5}
            bar(Round(row, torch.zeros(1)))
        bar._bar.refresh()
    text = shown.getvalue()
    # 20 clients in 1 second.
    for part in ("digits", "2/4", "loss 0.250", "accuracy 0.500", "20 clients/s"):
        assert part in text
