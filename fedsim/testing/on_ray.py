"""The check that an experiment comes to the same under Flower's own engine, whose nodes are processes of Ray.

It runs in a process with folders of its own, so that Ray leaves nothing behind in that of the tests.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fedsim.configuration.tables import experiment as checked
from fedsim.exchange.windows import All
from fedsim.running.history import read_rows
from fedsim.running.runner import run
from fedsim.testing.plugin import OPTION, asked_for
from fedsim.testing.rounds import everybody
from fedsim.testing.subject import Subject

TABLES = {
    "rounds": 3,
    "problem": {"dataset": "digits", "model": {"kind": "mlp", "hidden": [8]}},
    "partition": {"kind": "dirichlet", "clients": 7, "alpha": 0.3, "min_size": 1},
    "selection": {"kind": "uniform", "count": 4},
    "evaluation": {"every": 0},
}
"""An experiment that every node can read."""
NODES = 3
TOLERANCE = 1e-4
"""By how much parameters may differ, of their norm."""
SECONDS = 240.0


def the_same_under_flowers_engine(subject: Subject, config: pytest.Config) -> None:
    """Three nodes on Ray come to what one process comes to.

    Skips where nobody has asked for it or Ray is not there, and what takes virtual time: on Ray time is real.
    """
    if not asked_for(config):
        pytest.skip(f"takes seconds; ask for it with {OPTION}")
    if importlib.util.find_spec("ray") is None:
        pytest.skip("needs Ray: pip install 'fedsim-lab[ray]'")
    simulation = subject.simulation()
    orders, window = simulation.parts.strategy.ask(simulation.state, everybody(simulation))
    if orders.late == "keep" or window != All() or "devices" in subject.tables:
        pytest.skip("its windows close at a virtual time, and on Ray time is real")
    experiment = checked(**{**TABLES, "client": subject.table(("client",)), **subject.tables})
    ours = run(experiment, save=False)
    assert (ours.params - ours.problem.initial()).norm() > 0, "nothing is learnt, so nothing is compared"
    # A short name: Ray puts sockets there, whose paths have 107 characters at most.
    with tempfile.TemporaryDirectory(prefix="fs") as name:
        folder = Path(name)
        (folder / "experiment.json").write_text(json.dumps(experiment.resolved()))
        done = subprocess.run(
            [sys.executable, "-m", "fedsim.testing.on_ray", name],
            env={**os.environ, **_world(folder)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=SECONDS,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        found, rows = load_file(folder / "run" / "model.safetensors"), read_rows(folder / "run" / "metrics.jsonl")
    for tensor, own in ours.problem.tensors(ours.params).items():
        apart = float(torch.linalg.norm(found[tensor] - own))
        assert apart <= TOLERANCE * float(torch.linalg.norm(own)), f"{tensor} differs by {apart:.2g} under Ray"
    for column in ("clients", "bytes_up", "bytes_down"):
        assert [row[column] for row in rows] == list(ours.history[column]), f"{column} differ under Ray"


def main(folder: Path) -> None:
    """Run `experiment.json` of a folder on Ray, into `run` beside it."""
    from fedsim.flower import run_on_ray

    experiment = checked(**json.loads((folder / "experiment.json").read_text()))
    result = run_on_ray(experiment, nodes=NODES, out=folder / "run", timeout=SECONDS)
    assert result.status == "finished", result.reason


def _world(folder: Path) -> dict[str, str]:
    """The environment of a Flower that knows nothing of another one, and asks nobody."""
    return {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "FLWR_HOME": str(folder / "home"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_TMPDIR": str(folder),
        "RAY_USAGE_STATS_ENABLED": "0",
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
