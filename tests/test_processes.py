"""Whole processes: the same bytes on any number of cores, and what signals leave behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import forks

from fedsim.reports.comparison import compare
from fedsim.running.stored import open_run

ROOT = Path(__file__).parent.parent
DIGITS = str(ROOT / "experiments" / "digits_fedavg.toml")


def rows_of(out: Path) -> list[dict]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "wall"} for row in rows]


SETTINGS = {
    "clients": ("selection.count=100", "rounds=3"),
    # 10 clients in batches of 63, 2000 x 64 + 2000 x 10 parameters: 93 million multiply-adds a step, more than twice
    # what two threads are worth.
    "large": (
        'problem.dataset={kind="synthetic", features=64, clients=40, examples_per_client=70}',
        'partition={kind="natural"}',
        "problem.model.hidden=[2000]",
        "client.batch_size=64",
        "rounds=2",
    ),
}
RUNS = """
import json, sys, fedsim
from fedsim.running import runner
runner.curves = lambda _, place, asked: place.write_bytes(b"a picture")  # which takes longer than the runs
for name, overrides in json.loads(sys.argv[3]).items():
    fedsim.run(fedsim.load(sys.argv[1], overrides=overrides), out=f"{sys.argv[2]}/{name}")
"""


def test_the_number_of_cores_changes_no_byte(tmp_path):
    """Both in one thread each and, where a step has enough to do, with cohorts spread over threads."""
    for cores in ("1", "2"):
        arguments = [sys.executable, "-c", RUNS, DIGITS, str(tmp_path / cores), json.dumps(SETTINGS)]
        subprocess.run(arguments, env=os.environ | {"OMP_NUM_THREADS": cores}, check=True, cwd=ROOT, timeout=240)
    for name in SETTINGS:
        model = [(tmp_path / cores / name / "model.safetensors").read_bytes() for cores in ("1", "2")]
        assert model[0] == model[1], name
        assert rows_of(tmp_path / "1" / name) == rows_of(tmp_path / "2" / name), name


@contextmanager
def started(out: Path) -> Iterator[tuple[ForkServerProcess, Path]]:
    """A run of many rounds that has logged at least three, and what it says; it is over when the block is."""
    settings = ("--set", "rounds=100000", "--set", "evaluation.every=0")
    with forks.started("-m", "fedsim", "run", DIGITS, "--out", out, *settings, cwd=ROOT) as (process, said, errors):
        metrics, began = out / "metrics.jsonl", time.monotonic()
        while not metrics.exists() or metrics.read_bytes().count(b"\n") < 3:
            assert process.is_alive(), errors.read_text()
            assert time.monotonic() - began < 60
            time.sleep(0.01)
        yield process, said


def test_finished_rounds_survive_a_kill(tmp_path):
    with started(tmp_path / "run"):
        pass  # SIGKILL
    run = open_run(tmp_path / "run")
    rows = run.rows()
    assert [row["round"] for row in rows] == list(range(1, len(rows) + 1))
    assert len(rows) >= 3
    assert run.config()["rounds"] == 100000
    assert len(compare([tmp_path / "run"]).groups) == 1


def test_an_interrupt_ends_the_run_cleanly(tmp_path):
    with started(tmp_path / "run") as (process, said):
        os.kill(process.pid, signal.SIGINT)
        process.join(60)
        assert process.exitcode == 130
        assert "interrupted" in said.read_text()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["rounds"] == len(rows_of(tmp_path / "run"))
    assert (tmp_path / "run" / "model.safetensors").exists()
    assert (tmp_path / "run" / "curves.png").exists()
