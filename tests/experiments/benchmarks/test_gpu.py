"""The benchmark of a GPU is ready for one: its code runs here on the CPU, and says where there is no GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import typer
from rich.console import Console

from experiments.benchmarks import gpu
from experiments.benchmarks.peers import works
from experiments.benchmarks.peers.work import Work


@pytest.fixture
def tiny() -> Work:
    """Twelve of the digits' clients in two epochs."""
    made = works.digits()
    return replace(made, clients=made.clients[:12], epochs=2)


def test_all_engines_do_the_same_work(tiny):
    found = gpu.measured(tiny, "cpu", budget=0.0)
    assert list(found) == ["fedsim stacked", "fedsim loop", "plain loop"]
    accuracies = [own.accuracy for own in found.values()]
    assert min(accuracies) > 0.3
    assert max(accuracies) - min(accuracies) < 0.15  # batches differ
    assert all(own.seconds > 0.0 and own.start > 0.0 for own in found.values())


def test_the_table_says_how_many_images_are_trained_on_in_a_second(tiny):
    work = replace(tiny, epochs=3, per_round=4)
    found = {"plain loop": gpu.Measured(0.5, 1.0, 20.0, 0.9), "fedsim stacked": gpu.Measured(0.25, 2.0, 30.0, 0.9)}
    table = gpu.table_of("digits", work, found)
    cells = [list(column.cells) for column in table.columns]
    # A third of the clients, three times: all examples once.
    count = sum(map(len, work.clients))
    assert cells[1] == [f"{count / 0.5:,.0f}", f"{count / 0.25:,.0f}"]
    assert cells[2:4] == [["500.0", "250.0"], ["1.00", "0.50"]]


def test_there_is_a_row_for_tf32_on_a_gpu_and_the_time_is_shared(tiny, monkeypatch):
    assert list(gpu.engines("cuda")) == ["fedsim stacked", "fedsim loop", "plain loop", "fedsim stacked, TF32"]
    budgets = []
    monkeypatch.setattr(
        gpu, "measure", lambda _, device, budget: budgets.append((device, budget)) or gpu.Measured(1.0, 1.0, 1.0, 1.0)
    )
    gpu.tables(Console(quiet=True), {"a": lambda: tiny, "b": lambda: tiny}, "cuda", minutes=4.0)
    assert budgets == [("cuda", 30.0)] * 8


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_one_line_says_so(capsys):
    with pytest.raises(typer.Exit) as ended:
        gpu.main()
    assert ended.value.exit_code == 2
    assert capsys.readouterr().err == "there is no CUDA device here, and this benchmark is of one\n"
