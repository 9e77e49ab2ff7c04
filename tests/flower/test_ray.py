"""On Ray's actors, from Python and by `flwr run`, an experiment comes to what it does in one process."""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import fedsim
from fedsim.flower import simulate
from fedsim.running.history import read_rows

pytest.importorskip("ray")
pytestmark = pytest.mark.xdist_group("ray")

ROOT = Path(__file__).parents[2]
FILE = ROOT / "experiments" / "digits_fedavg.toml"
# SCAFFOLD's clients remember, and each takes part in every round.
SETTINGS = ["rounds=5", "partition.clients=12", "selection.count=12", "client.epochs=1", "client.batch_size=16"]
SETTINGS += ["strategy.kind=scaffold", "client.kind=scaffold"]
# Three nodes on two actors: what clients remember must follow them from actor to actor.
SIMULATE = """
import sys, fedsim
from fedsim.flower import run_on_ray
result = run_on_ray(fedsim.load(sys.argv[1], overrides=sys.argv[3:]), nodes=3, out=sys.argv[2], timeout=60.0)
assert result.folder is not None and result.status == "finished"
"""


@pytest.fixture(scope="module")
def ours():
    return fedsim.run(fedsim.load(FILE, overrides=SETTINGS), save=False)


def assert_ours(folder, ours):
    """1e-4 relative is promised; on one machine it is the same arithmetic."""
    found = load_file(folder / "model.safetensors")
    assert (ours.params - ours.problem.initial()).norm() > 0.1, "nothing was learnt, so nothing is compared"
    for name, tensor in ours.problem.model.layout.named(ours.params).items():
        assert torch.linalg.norm(found[name] - tensor) <= 1e-4 * torch.linalg.norm(tensor), name
    rows = read_rows(folder / "metrics.jsonl")
    assert [row["bytes_up"] for row in rows] == list(ours.history["bytes_up"])


@pytest.mark.timeout(180)
def test_run_on_ray_agrees_and_leaves_no_process(world, ours, tmp_path):
    world.run([sys.executable, "-c", SIMULATE, str(FILE), str(tmp_path / "run"), *SETTINGS], ROOT, 120)
    assert_ours(tmp_path / "run", ours)
    assert world.left(20.0) == {}


@pytest.mark.timeout(240)
def test_flwr_run_agrees_and_its_processes_can_be_ended(world, ours, tmp_path):
    project = tmp_path / "project"
    for name in ("fedsim", "strategies", "clients", "experiments"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", ".gitignore", "LICENSE"):
        shutil.copy(ROOT / name, project)
    # An app bundle may have 10 MB; random bytes do not get smaller.
    (project / "results.jsonl").write_bytes(os.urandom(11 * 2**20))
    before = (project / "pyproject.toml").read_bytes()

    overrides = ";".join(SETTINGS)
    said = world.run(["flwr", "run", ".", "--stream", "-c", f'overrides="{overrides}"'], project, 180)

    assert "round 5/5: train_loss" in said, said
    # A relative run folder lies where the SuperLink was started, which is here.
    assert_ours(project / "runs" / "digits_fedavg-0", ours)
    assert (project / "pyproject.toml").read_bytes() == before
    (bundle,) = (world.home / "apps").iterdir()
    assert not (bundle / "results.jsonl").exists()

    superlinks = [process for process, line in world.processes().items() if "flower-superlink" in line]
    assert len(superlinks) == 1, "the command has ended and its SuperLink has not"
    os.kill(superlinks[0], signal.SIGTERM)
    assert world.left(30.0) == {}


# Strategies hand what they came to also to this list.
APP = """
import sys
sys.path.insert(0, sys.argv[1])
from flwr.serverapp.strategy import Strategy
from flwr.simulation import run_simulation
from shapes import with_numpy
found, start = [], Strategy.start
Strategy.start = lambda *given, **named: found.append(start(*given, **named))
run_simulation(with_numpy.server, with_numpy.client, num_supernodes=4)
print("found", found[0].arrays["slope"].numpy()[0], found[0].train_metrics_clientapp[3]["loss"])
"""


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("workers", [0, 2])
def test_an_app_comes_to_the_same_here(world, monkeypatch, workers):
    apps = Path(__file__).parent / "apps"
    world.environment["PYTHONPATH"] = str(apps)
    said = world.run([sys.executable, "-c", APP, str(apps)], apps, 100)
    monkeypatch.syspath_prepend(str(apps))
    ours = simulate("shapes.with_numpy:server", "shapes.with_numpy:client", 4, workers=workers)
    expected = [ours.result.arrays["slope"].numpy()[0], ours.history["train"][3]["loss"]]
    (line,) = [line for line in said.splitlines() if line.startswith("found ")]
    assert [float(number) for number in line.split()[1:]] == pytest.approx(expected, rel=1e-12)


# The two servers differ in two lines: the import, and the one that makes the strategy. Flower's selects unseeded, so
# all nodes train in each round.
TWO = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
from flwr.app import ConfigRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg as FlowersFedAvg
from flwr.simulation import run_simulation
from apps.own import with_torch
from fedsim.flower import as_flower_strategy
from strategies.fedavg import FedAvg
server = ServerApp()
@server.main()
def main(grid, context):
    models = []
    for strategy in (FlowersFedAvg(), as_flower_strategy(FedAvg())):
        result = strategy.start(
            grid=grid, initial_arrays=with_torch.initial(), num_rounds=10, train_config=ConfigRecord({"lr": 0.1})
        )
        models.append(torch.cat([tensor.flatten() for tensor in result.arrays.to_torch_state_dict().values()]))
    begun = torch.cat([tensor.flatten() for tensor in with_torch.initial().to_torch_state_dict().values()])
    print("found", float((models[1] - models[0]).abs().max()), float((models[0] - begun).abs().max()))
run_simulation(server, with_torch.app, num_supernodes=4)
"""


@pytest.mark.slow
@pytest.mark.timeout(150)
def test_two_lines_of_a_server_change_nothing_where_the_method_is_flowers(world):
    tests = Path(__file__).parent
    world.environment["PYTHONPATH"] = str(tests)
    said = world.run([sys.executable, "-c", TWO, str(tests)], tests, 120)
    (line,) = [line for line in said.splitlines() if line.startswith("found ")]
    difference, learnt = map(float, line.split()[1:])
    assert learnt > 0.05
    assert difference < 1e-6


# Client 0 sleeps twelve times as long as the others; each has a node of its own. Of two actors it leaves one to them.
SLEEPERS = """
import time
from clients.sgd import Sgd
from fedsim.core.options import options

@options
class Sleeper(Sgd):
    def train(self, cohort):
        for client in cohort.clients.tolist():
            time.sleep(3.0 if client == 0 else 0.25)
        return super().train(cohort)
"""
ASYNCHRONOUS = {
    "fedfix": ["strategy.kind=fedfix", "strategy.window=0.5"],
    "fedbuff": ["strategy.kind=fedbuff", "strategy.size=3"],
}
# Both in one process, which starts Ray for each.
SIMULATE_EACH = """
import json, sys, fedsim
from fedsim.flower import run_on_ray
file, folder, runs = sys.argv[1:]
for name, overrides in json.loads(runs).items():
    result = run_on_ray(fedsim.load(file, overrides=overrides), nodes=4, out=f"{folder}/{name}", timeout=60.0)
    assert result.status == "finished", result
"""


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_asynchronous_runs_go_on_without_the_slow(world, tmp_path):
    (tmp_path / "sleepers.py").write_text(SLEEPERS)
    settings = [f"client.kind={tmp_path}/sleepers.py:Sleeper", "client.epochs=1", "client.batch_size=64"]
    settings += ["partition.clients=4", "selection.count=4", "rounds=none", "duration=5.0"]
    settings += ["evaluation.every=none", "evaluation.every_seconds=1.0"]
    runs = json.dumps({name: [*settings, *overrides] for name, overrides in ASYNCHRONOUS.items()})
    world.run([sys.executable, "-c", SIMULATE_EACH, str(FILE), str(tmp_path), runs], tmp_path, 150)

    for name in ASYNCHRONOUS:
        folder = tmp_path / name
        rows, trace = read_rows(folder / "metrics.jsonl"), json.loads((folder / "trace.json").read_text())
        # The server looks when it has time: at the second, or as soon as it is done with something else.
        assert [row["time"] for row in rows] == pytest.approx([1.0, 2.0, 3.0, 4.0, 5.0], abs=0.5), name
        slow, *quick = trace["participation"]
        assert 1 <= slow < min(quick), (name, trace["participation"])
        assert sum(trace["participation"]) == sum(row["clients"] for row in rows) == sum(trace["staleness"].values())
        # While the slow client works, for three seconds, the others work and the server steps.
        assert max(map(int, trace["staleness"])) >= 2, (name, trace["staleness"])
        assert sum(row["late"] for row in rows) == sum(count for age, count in trace["staleness"].items() if age != "0")
        assert rows[-1]["test_loss"] < rows[0]["test_loss"] - 0.01, name
        assert all(torch.isfinite(tensor).all() for tensor in load_file(folder / "model.safetensors").values()), name
