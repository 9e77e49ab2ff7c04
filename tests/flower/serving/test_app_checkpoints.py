"""A server that was killed goes on in its folder: synchronous runs end in the same bytes, asynchronous ones go on."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from apps.own import with_numpy, with_torch
from apps.own.misbehaving import misbehaving
from apps.own.running import start, watched
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from typer.testing import CliRunner

import fedsim
from fedsim.cli.main import app as commands
from fedsim.core.errors import InputError
from fedsim.flower import VirtualGrid, as_flower_strategy
from fedsim.flower.mods import identify
from strategies.fedavg import FedAvg
from strategies.fedbuff import FedBuff
from strategies.fedprox import FedProx

pytestmark = pytest.mark.usefixtures("unpainted")

DURATIONS = {0: 2.0, 1: 1.5, 2: 1.0, 3: 0.5}
PARTS = ("train_metrics_clientapp", "evaluate_metrics_clientapp", "evaluate_metrics_serverapp")


class KilledError(Exception):
    """What ends a server in these tests."""


def served(
    strategy,
    folder=None,
    killed=None,
    rounds=6,
    grid=0,
    app=None,
    initial=None,
    config=None,
    judge=True,
    nodes=4,
    **options,
):
    """A run: the Result, or why it was refused, and the engine. killed: the round that ends it. grid: its seed."""

    def evaluate(number, arrays):
        if number == killed:
            raise KilledError
        return MetricRecord(
            {"sum": float(sum(array.numpy().sum() for array in arrays.values())), "list": [1.0, float(number)]}
        )

    options = {"checkpoint_every": 1, "seed": 3, "fraction_evaluate": 0.5} | options
    made = as_flower_strategy(strategy, checkpoint=folder, **options)
    named = {"evaluate_fn": evaluate if judge else None, "train_config": ConfigRecord(config or {"lr": 0.1})}
    durations = {node: DURATIONS[node] for node in range(nodes)}
    given = made, app or with_numpy.app, initial or with_numpy.initial(), nodes, rounds
    try:
        return watched(*given, durations=durations, seed=grid, start=named)
    except InputError as error:
        return error, None


def killed_in(deaths, folder, strategy, **options):
    """Kill a server in each of these rounds, and have it go on to the end on other nodes each time."""
    for seed, number in enumerate(deaths):
        with pytest.raises(KilledError):
            served(strategy, folder, killed=number, grid=seed, **options)
    return served(strategy, folder, grid=len(deaths), **options)[0]


def whole(result):
    return [(name, array.dtype, array.shape, array.data) for name, array in result.arrays.items()], [
        {number: dict(told) for number, told in getattr(result, part).items()} for part in PARTS
    ]


SYNCHRONOUS = {
    "fedavg": (FedAvg(), {}),
    "fedadam": (FedAvg(server_optimizer={"kind": "adam"}, server_lr=0.1), {}),
    "momentum": (FedAvg(server_optimizer={"kind": "sgd", "momentum": 0.9}), {}),
    "lion": (FedAvg(server_optimizer="lion", server_lr=0.01), {}),
    "oort": (FedAvg(), {"selection": {"kind": "oort", "count": 2}}),
    "power of choice": (FedProx(proximal_mu=0.1), {"selection": {"kind": "power_of_choice", "pool": 3, "count": 2}}),
    "memory": (FedAvg(), {"transforms": [{"kind": "codes:Largest", "share": 0.5}]}),
    "robust and noisy": (FedAvg(), {"aggregator": "median", "transforms": [{"kind": "noise", "std": 0.01}]}),
}


@pytest.mark.parametrize("name", SYNCHRONOUS)
def test_a_killed_server_comes_to_the_same_bytes_and_the_same_result(name, tmp_path):
    strategy, options = SYNCHRONOUS[name]
    wanted = whole(served(strategy, **options)[0])
    assert whole(killed_in([3], tmp_path / "one", strategy, **options)) == wanted
    if name == "fedadam":
        for rounds in ([0], [6], [1, 1, 5]):
            assert whole(killed_in(rounds, tmp_path / "-".join(map(str, rounds)), strategy, **options)) == wanted


def test_its_folder_is_that_of_a_run_that_nobody_killed(tmp_path):
    killed_in([2, 4], tmp_path / "killed", FedAvg())
    served(FedAvg(), tmp_path / "whole")
    rows = []
    for name in ("killed", "whole"):
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        rows.append([{key: value for key, value in json.loads(line).items() if key != "wall"} for line in lines])
    assert rows[0] == rows[1]
    assert [row["round"] for row in rows[0]] == list(range(1, 7))
    assert {"test_sum", "evaluate_eval_loss", "train_loss"} <= rows[0][-1].keys()
    files = [{path.name for path in (tmp_path / name).iterdir()} for name in ("killed", "whole")]
    assert (
        files[0]
        == files[1]
        == {"config.toml", "curves.png", "metrics.jsonl", "model.safetensors", "summary.json", "trace.json"}
    )
    for name in ("model.safetensors", "trace.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert json.loads((tmp_path / "killed" / "summary.json").read_text())["status"] == "finished"


def test_whole_numbers_and_narrow_types_go_on(tmp_path):
    options = {"app": with_torch.client(norm=True), "initial": with_torch.initial(norm=True), "rounds": 3}
    wanted = whole(served(FedAvg(), **options)[0])
    assert whole(killed_in([2], tmp_path / "run", FedAvg(), **options)) == wanted
    assert (
        dict(zip(*[iter(["1.num_batches_tracked", ("int64", ())])] * 2, strict=True)).items()
        <= {name: (dtype, shape) for name, dtype, shape, _ in wanted[0]}.items()
    )


def test_the_server_app_need_not_judge_the_model(tmp_path):
    def dies(message, context, call_next):
        if alive and message.content["config"]["server-round"] == 4:
            raise KeyboardInterrupt
        return call_next(message, context)

    alive, app = [True], with_numpy.client(mods=[dies])
    with pytest.raises(KeyboardInterrupt):
        served(FedAvg(), tmp_path / "run", app=app, judge=False, fraction_evaluate=0.0)
    alive.clear()
    found = served(FedAvg(), tmp_path / "run", app=app, judge=False, fraction_evaluate=0.0)[0]
    assert whole(found) == whole(served(FedAvg(), judge=False, fraction_evaluate=0.0)[0])
    assert not found.evaluate_metrics_serverapp


def test_numbers_are_kept_by_partition_where_nodes_say_them(tmp_path):
    class Shuffled(VirtualGrid):
        def get_node_ids(self):
            return sorted(super().get_node_ids(), key=lambda node: node % 1009)  # another order with each seed

    def run(folder, killed=None, seed=0):
        def evaluate(number, arrays):
            if number == killed:
                raise KilledError

        app = with_numpy.client()
        identify(app)
        options = {"selection": {"kind": "uniform", "count": 2}, "identify": True, "checkpoint_every": 1}
        made = as_flower_strategy(FedAvg(), checkpoint=folder, **options)
        return watched(
            made,
            app,
            with_numpy.initial(),
            rounds=6,
            kind=Shuffled,
            start={"evaluate_fn": evaluate},
            seed=seed,
            durations=DURATIONS,
        )

    wanted, engine = run(None)
    with pytest.raises(KilledError):
        run(tmp_path / "run", killed=3)
    found, other = run(tmp_path / "run", seed=1)
    assert whole(found) == whole(wanted)
    assert other.register.nodes != engine.register.nodes
    assert other.trace.participation == engine.trace.participation
    assert other.problem.known.tolist() == [6, 8, 10, 12]


@pytest.mark.parametrize("restart", ["arrival", "window"])
def test_an_asynchronous_server_goes_on(restart, tmp_path):
    found = killed_in([2, 5], tmp_path / "run", FedBuff(size=2, restart=restart), rounds=8)
    assert list(found.train_metrics_clientapp) == list(range(1, 9))
    assert list(found.evaluate_metrics_serverapp) == list(range(9))
    loss = [found.train_metrics_clientapp[number]["train_loss"] for number in (1, 8)]
    assert loss[1] < loss[0] / 2
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "finished"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"seed": 4}, "seed = 4: the run in"),
        ({"integers": "latest"}, "integers = latest: the run in"),
        ({"fraction_evaluate": 0.25}, "fraction_evaluate = 0.25: the run in"),
        ({"selection": {"kind": "uniform", "count": 2}}, "selection.count = 2: the run in"),
        ({"aggregator": "median"}, "aggregator.kind = median: the run in"),
        ({"transforms": [{"kind": "clip", "max_norm": 2.0}]}, "transforms.0.max_norm = 2.0: the run in"),
        ({"strategy": FedAvg(server_lr=0.5)}, "strategy.server_lr = 0.5: the run in"),
        ({"strategy": FedProx()}, "strategy.kind = fedprox: the run in"),
        ({"config": {"lr": 0.2}}, "train_config.lr = 0.2: the run in"),
        ({"initial": ArrayRecord([np.zeros(3), np.zeros(2)])}, "initial_arrays = 2 arrays: the run in"),
        ({"initial": ArrayRecord([np.zeros(3)])}, "initial_arrays = 1 arrays: the run in"),
    ],
)
def test_another_option_is_named_in_one_line(options, said, tmp_path):
    before = {"transforms": [{"kind": "clip", "max_norm": 1.0}]}
    with pytest.raises(KilledError):
        served(FedAvg(), tmp_path / "run", killed=2, **before)
    held = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    found, _ = served(options.pop("strategy", FedAvg()), tmp_path / "run", **(before | options))
    assert isinstance(found, InputError)
    assert str(found).startswith(said)
    assert "\n" not in str(found)
    assert held == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}


def test_frozen_arrays_are_those_that_the_run_began_with(tmp_path):
    def model(number):
        return ArrayRecord([np.zeros(3), np.full(1, number)])

    options = {"frozen": ("1",), "rounds": 3}
    with pytest.raises(KilledError):
        served(FedAvg(), tmp_path / "run", killed=2, initial=model(1.0), **options)
    found, _ = served(FedAvg(), tmp_path / "run", initial=model(2.0), **options)
    assert str(found).startswith("initial_arrays = 2 arrays: ")
    assert served(FedAvg(), tmp_path / "run", initial=model(1.0), **options)[0].arrays["1"].numpy() == 1.0


def test_rounds_and_what_changes_no_result_may_be_others(tmp_path):
    with pytest.raises(KilledError):
        served(FedAvg(), tmp_path / "run", killed=2, rounds=3)
    options = {"duration": 1000.0, "checkpoint_every": 2, "min_available_nodes": 3}
    found, _ = served(FedAvg(), tmp_path / "run", rounds=6, **options)
    assert whole(found) == whole(served(FedAvg())[0])


def test_folders_that_are_of_something_else_are_refused(tmp_path):
    served(FedAvg(), tmp_path / "finished", rounds=1)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(KilledError):
        served(FedAvg(), tmp_path / "no text", killed=2)
    (tmp_path / "no text" / "config.toml").write_text("= =")
    with pytest.raises(KilledError):
        served(FedAvg(), tmp_path / "of an experiment", killed=2)
    (tmp_path / "of an experiment" / "config.toml").write_text('seed = 3\n[strategy]\nkind = "fedavg"\n')
    for name, said in {
        "finished": "the run in it has finished; name another folder",
        "foreign": "there is something else in it; name another folder",
        "file": "is not a folder; choose another place",
        "no text": "is not TOML",
        "of an experiment": "is not that of an app's server; name another folder",
    }.items():
        found, _ = served(FedAvg(), tmp_path / name, rounds=2)
        assert isinstance(found, InputError), name
        assert str(found).startswith(f"checkpoint = {tmp_path / name}: ")
        assert said in str(found)
    assert (tmp_path / "foreign" / "notes.txt").read_text() == "mine"


def test_a_damaged_checkpoint_is_passed_over_and_where_there_is_no_other_the_run_is_refused(tmp_path, capsys):
    with pytest.raises(KilledError):
        served(FedAvg(), tmp_path / "run", killed=5)
    *_, last = paths = sorted((tmp_path / "run" / "checkpoints").iterdir())
    kept = last.read_bytes()
    last.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    found, _ = served(FedAvg(), tmp_path / "run", killed=None)
    assert "is damaged" in capsys.readouterr().err
    assert len(paths) > 1
    assert whole(found) == whole(served(FedAvg())[0])
    with pytest.raises(KilledError):
        served(FedAvg(), tmp_path / "all", killed=5)
    for path in (tmp_path / "all" / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    found, _ = served(FedAvg(), tmp_path / "all")
    assert isinstance(found, InputError)
    assert str(found).startswith(f"checkpoint = {tmp_path / 'all'}: ")
    assert str(found).endswith("name another folder, or remove this one to begin again")


def test_a_full_disk_is_told_once_and_the_run_goes_on(tmp_path, monkeypatch, capsys):
    def full(path, *content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("fedsim.running.checkpoint.write_whole", full)
    found, _ = served(FedAvg(), tmp_path / "run")
    told = capsys.readouterr().err
    assert told.count("no checkpoint of round") == 1
    assert "the run goes on" in told
    assert whole(found) == whole(served(FedAvg())[0])


def test_a_folder_is_refused_before_nodes_are_waited_for(tmp_path):
    served(FedAvg(), tmp_path / "run", rounds=1)
    found, engine = served(FedAvg(), tmp_path / "run", rounds=1, min_available_nodes=9)
    assert (str(found).partition(": ")[2], engine) == ("the run in it has finished; name another folder", None)


def test_a_run_of_an_app_is_compared_with_others_and_goes_on_in_its_app_alone(tmp_path):
    served(FedAvg(), tmp_path / "whole")
    with pytest.raises(KilledError):
        served(FedBuff(size=2), tmp_path / "killed", killed=3)
    with pytest.raises(InputError, match="on Flower's nodes; start it there again"):
        fedsim.resume(tmp_path / "killed")
    folders = [str(tmp_path / name) for name in ("whole", "killed")]
    told = CliRunner().invoke(commands, ["compare", *folders, "--out", str(tmp_path / "both.png")]).output
    assert "evaluate_eval_loss, final" in told
    assert "strategy.size" in told
    assert (tmp_path / "both-timeline.png").is_file()


def test_a_folder_that_cannot_be_made_is_refused():
    found, _ = served(FedAvg(), Path("/proc/no/run"))
    assert isinstance(found, InputError)
    assert str(found).startswith("checkpoint = /proc/no/run: ")


def test_a_run_that_comes_to_nothing_says_so_in_its_folder(tmp_path):
    app = with_numpy.client(mods=[misbehaving({(None, None): "wrong shapes"})])
    error, _ = served(FedAvg(), tmp_path / "run", app=app, rounds=2)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["status"], summary["reason"]) == ("stalled", str(error))
    assert "wrong" not in summary["reason"]
    assert "not floats [3]" in summary["reason"]


SCRIPT = """
import sys, time
sys.path[:0] = sys.argv[2:]
from test_app_checkpoints import FedAvg, served
served(FedAvg(), sys.argv[1], rounds=200, fraction_evaluate=0.0)
"""


@pytest.mark.slow
def test_a_server_process_that_is_killed_goes_on(tmp_path):
    here = Path(__file__).parent
    arguments = [sys.executable, "-c", SCRIPT, tmp_path / "run", here, here.parent, here.parents[1], here.parents[2]]
    process = subprocess.Popen(list(map(str, arguments)), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 60
        while len(list((tmp_path / "run" / "checkpoints").glob("*.safetensors"))) < 2 and time.monotonic() < end:
            time.sleep(0.01)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "run" / "summary.json").exists()
    found, _ = served(FedAvg(), tmp_path / "run", rounds=200, fraction_evaluate=0.0)
    assert whole(found) == whole(served(FedAvg(), rounds=200, fraction_evaluate=0.0)[0])


def test_what_a_run_came_to_waits_for_no_picture_and_says_what_was_wrong(tmp_path, monkeypatch):
    def broken(rows, place):
        raise RuntimeError("no picture today")

    monkeypatch.setattr("fedsim.running.runner.curves", broken)
    app = with_numpy.client(mods=[misbehaving({(2, 1): "nan"})])
    start(as_flower_strategy("fedavg", checkpoint=tmp_path / "run"), app, with_numpy.initial(), rounds=3)
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["status"] == "finished"
    assert summary["total_failed"] == 1
    assert "not finite" in summary["failures"][0]
