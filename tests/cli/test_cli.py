"""The command line: what it writes, what it says, and how it refuses."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

import fedsim
from fedsim.cli import words
from fedsim.cli.arguments import parse_seeds
from fedsim.cli.main import main
from fedsim.core.errors import InputError
from fedsim.plots.evasion import ADVERSARIAL
from fedsim.plots.personal import PERSONAL
from fedsim.running.stored import (
    BEST,
    CHECKPOINTS,
    CLIENTS,
    CONFIG,
    END,
    FILES,
    METRICS,
    MODEL,
    NEWCOMERS,
    OWN,
    REPORT,
    ROWS,
    TRACE,
    TRACEBACK,
    TRACKING,
)
from fedsim.running.sweep import Outcome, Point

pytestmark = pytest.mark.usefixtures("unpainted")

ROOT = Path(__file__).parents[2]
DIGITS = str(ROOT / "experiments" / "digits_fedavg.toml")
QUICK = ["--set", "rounds=2", "--set", "client.epochs=1"]


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["fedsim", *arguments])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_a_run_leaves_the_whole_folder(monkeypatch, capsys, tmp_path):
    out = tmp_path / "run"
    assert call(monkeypatch, "run", DIGITS, *QUICK, "--seed", "3", "--out", str(out), "--report") == 0
    untold = {ADVERSARIAL, BEST, NEWCOMERS, OWN, PERSONAL, ROWS, TRACEBACK, TRACKING}
    assert sorted(path.name for path in out.iterdir()) == sorted(set(FILES) - untold)
    config = tomllib.loads((out / "config.toml").read_text())
    assert (config["seed"], config["rounds"], config["client"]["epochs"]) == (3, 2, 1)
    assert config["resolved"]["executor"] == "stacked"
    assert config["resolved"]["processor"].endswith(f", {os.cpu_count()} cores")
    assert {"python", "fedsim", "torch", "numpy", "pandas"} <= config["versions"].keys()
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows] == [1, 2]
    # 10 clients, 64 x 64 + 64 + 64 x 10 + 10 = 4810 parameters of 4 bytes, each way.
    assert {row["bytes_up"] for row in rows} == {row["bytes_down"] for row in rows} == {10 * 4810 * 4}
    assert rows[0]["queries"] == 0
    assert {"time", "wall", "train_loss", "test_loss", "test_accuracy", "client_accuracy_p10"} <= rows[0].keys()
    said = capsys.readouterr().out
    assert "finished: 2 rounds" in said
    assert "run folder:" in said
    assert f"report: {out / 'report.html'}" in said


def test_a_run_can_be_run_again_from_its_own_config(monkeypatch, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert call(monkeypatch, "run", DIGITS, *QUICK, "--out", str(first)) == 0
    assert call(monkeypatch, "run", str(first / "config.toml"), "--out", str(second)) == 0
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()


def test_seeds_make_a_group_that_compare_reads(monkeypatch, capsys, tmp_path):
    group, picture = tmp_path / "group", tmp_path / "both.png"
    assert call(monkeypatch, "run", DIGITS, *QUICK, "--seeds", "0-1", "--out", str(group), "--report") == 0
    assert sorted(path.name for path in group.iterdir()) == ["report.html", "seed-0", "seed-1"]
    assert "2 runs in 1 group: 2 finished." in (group / "report.html").read_text()
    note = 'all seeds share one test set; problem.split = "seed" draws one for each'
    assert note in capsys.readouterr().out
    assert call(monkeypatch, "compare", str(group), "--out", str(picture)) == 0
    assert picture.is_file()
    said = " ".join(capsys.readouterr().out.split())
    assert "±" in said
    assert note in said
    monkeypatch.chdir(tmp_path)
    asked = ("--out", "c.png", "--measure", "test_loss", "--interval", "none", "--level", "0.9", "--to", "t.tex")
    assert call(monkeypatch, "compare", str(group), *asked) == 0
    assert "90 %" not in capsys.readouterr().out
    assert r"test loss $\downarrow$" in Path("t.tex").read_text()
    for wrong in (["--to", "t.tex"], ["--to", "t.doc"], ["--level", "95"], ["--interval", "z"], ["--measure", "loss"]):
        assert call(monkeypatch, "compare", str(group), *wrong) == 2
        assert re.match(rf"fedsim: {wrong[0][2:]} = {wrong[1]}", capsys.readouterr().err)


def test_seeds_with_test_sets_and_labels_of_their_own_are_one_group(monkeypatch, capsys, tmp_path):
    group, split = tmp_path / "group", ["--set", "problem.split=seed", "--set", "partition.noise=0.1"]
    assert call(monkeypatch, "run", DIGITS, *QUICK, *split, "--seeds", "0-1", "--out", str(group)) == 0
    assert call(monkeypatch, "compare", str(group), "--out", str(tmp_path / "both.png")) == 0
    said = capsys.readouterr().out
    assert "±" in said
    assert "share one test set" not in said


def test_list_names_every_group(monkeypatch, capsys):
    assert call(monkeypatch, "list") == 0
    said = " ".join(capsys.readouterr().out.split())
    for name in ("fedavg", "scaffold", "sgd", "supervised", "shakespeare", "pathological", "resnet", "weighted"):
        assert name in said


def test_nothing_is_overwritten_without_force(monkeypatch, capsys, tmp_path):
    out = tmp_path / "run"
    assert call(monkeypatch, "run", DIGITS, *QUICK, "--out", str(out)) == 0
    before = (out / "model.safetensors").read_bytes()
    assert call(monkeypatch, "run", DIGITS, *QUICK, "--seed", "1", "--out", str(out)) == 2
    assert (out / "model.safetensors").read_bytes() == before
    assert "--force" in capsys.readouterr().err
    assert call(monkeypatch, "run", DIGITS, *QUICK, "--seed", "1", "--out", str(out), "--force") == 0
    assert (out / "model.safetensors").read_bytes() != before


BAD = {
    "unknown key": ("client.lrr=0.1", "client.lrr"),
    "unknown table": ("clients.lr=0.1", "clients"),
    "wrong type": ("client.lr=fast", "client.lr = fast"),
    "number in quotes": ('client.lr="0.1"', "client.lr = 0.1"),
    "alpha": ("partition.alpha=0", "partition.alpha = 0"),
    "too many clients": ("selection.count=101", "selection.count = 101"),
    "no clients": ("selection.count=0", "selection.count = 0"),
    "batch size": ("client.batch_size=0", "client.batch_size"),
    "nan": ("client.lr=nan", "client.lr = nan"),
    "infinite": ("strategy.server_lr=inf", "strategy.server_lr = inf"),
    "negative rounds": ("rounds=-1", "rounds = -1"),
    "both epochs and steps": ("client.steps=3", "client.epochs"),
    "classes per client": ('partition={kind="pathological", clients=10, classes_per_client=11}', "partition.classes"),
    "more clients than examples": ("partition.clients=5000", "partition.clients = 5000"),
    "unknown strategy": ("strategy.kind=fedsgd", "strategy.kind = fedsgd"),
    "unknown dataset": ("problem.dataset=digitz", "problem.dataset"),
    "model that does not fit": ("problem.model=lenet", "model"),
    "strategy without its client": ("strategy={kind='scaffold'}", "client.kind = sgd"),
    "client without its strategy": ("client.kind=scaffold", "client.kind = scaffold"),
    "unknown metric": ('stopping={metric="accuracy", patience=2}', "stopping.metric = accuracy"),
    "stopping at nothing": ("stopping.metric=test_loss", "stopping.target"),
    "a loss that does not fit": ("problem.loss=squared_error", "problem.loss = squared_error"),
    "a strategy whose client does not understand": ("strategy={kind='feddyn'}", "feddyn-alpha"),
    "a client whose strategy does not send": ("client.kind=feddyn", "feddyn-alpha"),
    "nova with adam": ("strategy={kind='fednova'}", "client.optimizer = adam"),
    "an unknown problem": ("problem.kind=own", "problem.kind = own"),
    "a batch size of the wrong kind": ("client.batch_size=half", "client.batch_size = half"),
    "start that is absent": ("problem.start=nowhere.pt", "problem.start = nowhere.pt"),
    "server optimizer": ("strategy.server_optimizer={kind='adam', beta1=1.0}", "strategy.server_optimizer.beta1 = 1.0"),
    "assignment": ("rounds", "set = rounds"),
    "name": ("name=a/b", "name = a/b"),
    "not a class": ("strategy.kind=json:dumps", "strategy.kind = json:dumps"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_options_are_one_line_and_exit_code_2(monkeypatch, capsys, tmp_path, case):
    setting, named = BAD[case]
    monkeypatch.chdir(tmp_path)
    also = ["--set", "client.optimizer=adam"] if case == "nova with adam" else []
    assert call(monkeypatch, "run", DIGITS, "--set", setting, *also) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert named in said.err
    assert not (tmp_path / "runs").exists()


TUNED = "evaluation.finetune={steps=1}"
OWN_MODELS = {
    "nobody has an example apart": ([TUNED], "partition.holdout = 0.0: each client's model is judged"),
    "nor has a newcomer": (["partition.newcomers=0.2"], "partition.newcomers = 20 clients: each is judged"),
    "newcomers that nobody judges": (
        ["partition.newcomers=0.2", "partition.holdout=0.3", "evaluation.clients=false"],
        "partition.newcomers = 20 clients: they are there to be judged",
    ),
    "newcomers, and clients for validation": (
        ["partition.newcomers=0.2", "partition.validation_clients=0.2"],
        "partition.newcomers = 0.2: of the clients some are set aside",
    ),
    "no client is left": (["partition.newcomers=0.999"], "partition.newcomers = 0.999: of 100 clients 100"),
    "epochs and steps": (["evaluation.finetune={epochs=1, steps=1}"], "evaluation.finetune.epochs = 1: give exactly"),
    "neither": (["evaluation.finetune={lr=0.1}"], "evaluation.finetune.epochs = None: give exactly one"),
    "no such layer": (
        ["partition.holdout=0.3", "evaluation.finetune={steps=1, trains='tail'}"],
        "evaluation.finetune.trains = tail: is no parameter",
    ),
    "the best of many models": (
        ["partition.holdout=0.3", TUNED, "evaluation.keep_best=personal_accuracy"],
        "evaluation.keep_best = personal_accuracy: is of models of the clients' own",
    ),
    "whole models and a part": (
        ["partition.holdout=0.3", "problem.shared=body", "client={kind='ditto', steps=1, lam=0.1}"],
        "client.kind = ditto: has whole models of the clients' own, and here a part of one stays with them; take sgd,",
    ),
    "values alone": ([TUNED, "selection.count=1"], "evaluation.finetune = given: there is no model to train"),
}


@pytest.mark.parametrize("case", OWN_MODELS)
def test_what_own_models_and_newcomers_cannot_be_is_one_line(monkeypatch, capsys, tmp_path, case):
    settings, said = OWN_MODELS[case]
    monkeypatch.chdir(tmp_path)
    experiment = str(ROOT / "experiments" / "fzoos" / "fzoos.toml") if case == "values alone" else DIGITS
    assert call(monkeypatch, "run", experiment, *(f"--set={setting}" for setting in settings)) == 2
    found = capsys.readouterr().err
    assert found.count("\n") == 1
    assert said in found
    assert not (tmp_path / "runs").exists()


def test_wrong_usage_is_one_line_and_exit_code_2(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    for arguments in (["run", DIGITS, "--seed", "abc"], ["run"], ["fly"], ["run", DIGITS, "--fast"]):
        assert call(monkeypatch, *arguments) == 2
        said = capsys.readouterr().err
        assert said.startswith("fedsim: ")
        assert said.count("\n") == 1


def test_bad_input_under_several_seeds_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "run", DIGITS, "--seeds", "0-1", "--set", "selection.count=101") == 2
    assert list(tmp_path.iterdir()) == []


def test_compare_overwrites_nothing(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "run", DIGITS, *QUICK, "--out", "run") == 0
    (tmp_path / "mine.png").write_bytes(b"mine")
    assert call(monkeypatch, "compare", "run", "--out", "mine.png") == 2
    assert (tmp_path / "mine.png").read_bytes() == b"mine"
    assert call(monkeypatch, "compare", "run", "--out", "nowhere/at/all.png") == 2
    assert call(monkeypatch, "compare", "run") == call(monkeypatch, "compare", "run") == 0
    # Ten of a hundred clients a round take part unequally often, which the second picture shows.
    pictures = {"compare.png", "compare-trace.png", "compare-1.png", "compare-1-trace.png"}
    assert {path.name for path in tmp_path.glob("compare*.png")} == pictures


def test_a_full_disk_before_the_first_round_leaves_nothing(monkeypatch, capsys, tmp_path):
    import errno

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("fedsim.running.folder.os.fsync", full)
    assert call(monkeypatch, "run", DIGITS, *QUICK, "--out", str(tmp_path / "run")) == 2
    assert "no space left" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_absent_data_says_what_was_looked_for_and_where(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEDSIM_DATA", raising=False)
    code = call(monkeypatch, "run", DIGITS, "--set", "problem.dataset=mnist", "--data-dir", str(tmp_path / "data"))
    said = capsys.readouterr().err
    assert code == 2
    assert "train-images-idx3-ubyte" in said
    assert str(tmp_path / "data") in said
    assert said.count("\n") == 1


def test_a_file_that_is_no_experiment(monkeypatch, capsys, tmp_path):
    for name, text in (("missing.toml", None), ("broken.toml", "rounds = ["), ("binary.toml", "\xff")):
        path = tmp_path / name
        if text is not None:
            path.write_bytes(text.encode("latin-1"))
        assert call(monkeypatch, "run", str(path)) == 2
        said = capsys.readouterr().err
        assert name in said
        assert said.count("\n") == 1


def test_a_run_that_diverges_keeps_its_rows_and_exits_with_1(monkeypatch, capsys, tmp_path):
    out = tmp_path / "run"
    code = call(monkeypatch, "run", DIGITS, *QUICK, "--set", "client.lr=1e30", "--out", str(out))
    assert code == 1
    assert "diverged" in capsys.readouterr().out
    assert json.loads((out / "summary.json").read_text())["status"] == "diverged"
    assert (out / "model.safetensors").exists()


def test_an_internal_failure_keeps_its_traceback(monkeypatch, tmp_path):
    from fedsim.running.simulation import Simulation

    def fail(self: Simulation) -> None:
        raise ZeroDivisionError("on purpose")

    monkeypatch.setattr(Simulation, "complete_round", fail)
    out = tmp_path / "run"
    assert call(monkeypatch, "run", DIGITS, *QUICK, "--out", str(out)) == 1
    assert "ZeroDivisionError: on purpose" in (out / TRACEBACK).read_text()


@pytest.mark.parametrize("method", ["init(self, problem)", "tell(self, state, replies)"])
def test_a_mistake_of_an_author_is_one_line_and_its_traceback_is_in_the_folder(monkeypatch, capsys, tmp_path, method):
    """Before the run has begun, and in it."""
    (tmp_path / "mine.py").write_text(
        "from fedsim.core.options import options\nfrom strategies.fedavg import FedAvg\n\n\n@options\n"
        f"class Mine(FedAvg):\n    def {method}:\n        return nowhere\n"
    )
    (tmp_path / "x.toml").write_text('rounds = 1\nstrategy = "./mine.py:Mine"\n')
    assert call(monkeypatch, "run", str(tmp_path / "x.toml"), "--out", str(tmp_path / "run")) == 1
    place = tmp_path / "run" / TRACEBACK
    said = (
        f"fedsim: {tmp_path}/mine.py, line 8: NameError: name 'nowhere' is not defined; the traceback is in {place}\n"
    )
    assert capsys.readouterr().err == said
    assert "NameError: name 'nowhere'" in place.read_text()


def test_a_method_that_does_not_take_what_it_is_called_with_is_refused(monkeypatch, capsys, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from fedsim.core.options import options\nfrom strategies.fedavg import FedAvg\n\n\n@options\n"
        "class Mine(FedAvg):\n    def tell(self, state):\n        return state, {}, True\n"
    )
    (tmp_path / "x.toml").write_text('rounds = 1\nstrategy = "./mine.py:Mine"\n')
    assert call(monkeypatch, "run", str(tmp_path / "x.toml"), "--out", str(tmp_path / "run")) == 2
    assert capsys.readouterr().err == (
        f"fedsim: strategy.kind = {tmp_path}/mine.py:Mine: tell is written tell(self, state), and is called as "
        "tell(self, state, replies)\n"
    )
    assert not (tmp_path / "run").exists()


def test_what_a_plug_in_returns_is_refused_in_one_line(monkeypatch, capsys, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from fedsim.core.options import options\nfrom strategies.fedavg import FedAvg\n\n\n@options\n"
        "class Mine(FedAvg):\n    def tell(self, state, replies):\n        return super().tell(state, replies)[:2]\n"
    )
    (tmp_path / "x.toml").write_text('rounds = 1\nstrategy = "./mine.py:Mine"\n')
    assert call(monkeypatch, "run", str(tmp_path / "x.toml"), "--out", str(tmp_path / "run")) == 1
    assert capsys.readouterr().err == (
        f"fedsim: strategy.kind = {tmp_path}/mine.py:Mine: tell returns (ServerState, dict), not a state, metrics and "
        f"whether the round is done; the traceback is in {tmp_path}/run/{TRACEBACK}\n"
    )


def test_an_interrupt_leaves_a_usable_folder(monkeypatch, tmp_path):
    from fedsim.running.simulation import Simulation

    step = Simulation.complete_round

    def interrupted(self: Simulation) -> dict:
        if self.round == 1:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(Simulation, "complete_round", interrupted)
    out = tmp_path / "run"
    assert call(monkeypatch, "run", DIGITS, *QUICK, "--out", str(out)) == 130
    assert json.loads((out / "summary.json").read_text())["rounds"] == 1
    ends = {ADVERSARIAL, BEST, CLIENTS, END, NEWCOMERS, OWN, PERSONAL, REPORT, ROWS, TRACEBACK, TRACKING}
    assert sorted(path.name for path in out.iterdir()) == sorted({CHECKPOINTS, *FILES} - ends)


def test_an_interrupt_before_a_run_is_told(monkeypatch, tmp_path, capsys):
    (tmp_path / "mine.py").write_text("raise KeyboardInterrupt\n")
    assert call(monkeypatch, "describe", "strategy", f"{tmp_path}/mine.py:Mine") == 130
    assert capsys.readouterr().err == "fedsim: interrupted\n"


def test_seeds_are_read():
    assert parse_seeds("0-2") == [0, 1, 2]
    assert parse_seeds("4,0-1") == [4, 0, 1]
    for bad in ("", "a", "1-", "3,3", "2-1", "0,4-3"):
        with pytest.raises(InputError, match="seeds"):
            parse_seeds(bad)


@pytest.mark.usefixtures("forked_workers")
def test_a_sweep_leaves_runs_and_a_table_and_goes_on(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    arguments = ["sweep", DIGITS, *QUICK, "--grid", "client.lr=0.05,0.1", "--seeds", "0-1", "--workers", "1"]
    assert call(monkeypatch, *arguments) == 0
    out = tmp_path / "runs" / "sweep-0" / "digits_fedavg"
    assert sorted(str(path.parent.relative_to(out)) for path in out.rglob("summary.json")) == [
        f"client.lr={lr}/seed-{seed}" for lr in (0.05, 0.1) for seed in (0, 1)
    ]
    said = capsys.readouterr().out
    assert said.count(": finished, train loss") == 4
    assert "4 finished\nsweep folder: runs/sweep-0\n" in said
    (out / "client.lr=0.1" / "seed-1" / "summary.json").unlink()
    assert call(monkeypatch, *arguments, "--out", "runs/sweep-0", "--report") == 0
    assert "4 runs in 2 groups: 4 finished." in Path("runs/sweep-0/report.html").read_text()
    again = capsys.readouterr().out
    assert again.count(": finished, train loss") == 1
    assert "4 finished (3 of them before)" in again
    table = [line for line in said.splitlines() if line.startswith(" digits_fedavg/client.lr=")]
    assert len(table) == 2
    assert all(line in again for line in table)
    assert call(monkeypatch, "compare", "runs/sweep-0/digits_fedavg") == 0


def test_a_sweep_with_a_bad_point_is_one_line_and_leaves_nothing(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    for arguments, named in (
        (["--grid", "client.lr=0.1,-1"], "client.lr=-1"),
        (["--grid", "client.lr"], "grid = client.lr"),
        (["--seeds", "4-3"], "seeds = 4-3"),
        (["--workers", "0"], "--workers"),
        ([DIGITS], "two points have this folder"),
    ):
        assert call(monkeypatch, "sweep", DIGITS, *QUICK, *arguments) == 2
        said = capsys.readouterr().err
        assert named in said
        assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("forked_workers")
def test_a_sweep_with_a_failed_point_ends_with_1(monkeypatch, capsys, tmp_path):
    # Of 100 clients, 101 cannot be selected, which only shows when the problem has been built.
    arguments = [*QUICK, "--grid", "selection.count=2,101", "--workers", "1", "--out", str(tmp_path / "all")]
    assert call(monkeypatch, "sweep", DIGITS, *arguments) == 1
    said = capsys.readouterr().out
    assert "selection.count=101/seed-0: failed: selection.count = 101" in said
    assert "1 finished, 1 failed" in said


SPLIT_BY_SEED: Any = SimpleNamespace(
    problem=SimpleNamespace(split="seed"), evaluation=SimpleNamespace(asked={"mae": False})
)
"""An experiment whose seeds have test sets of their own."""


def outcome(combination: str, seed: int, status: str, **summary: object) -> Outcome:
    folder = Path("all", "digits", combination, f"seed-{seed}")
    return Outcome(Point(SPLIT_BY_SEED, folder), status, "the reason", {"wall": 2.0, **summary} if summary else {})


def test_the_table_of_a_sweep_has_mean_and_deviation():
    printed = io.StringIO()
    outcomes = [
        outcome("lr=1", 0, "finished", test_accuracy=0.8, test_loss=0.5),
        outcome("lr=1", 1, "stopped", test_accuracy=0.9, test_loss=None),
        outcome("lr=1", 2, "failed"),
        outcome("lr=2", 0, "diverged", test_accuracy=0.1, test_loss=2.0, test_mae=0.25, client_mae_p90=0.5),
        outcome("lr=3", 0, "failed"),
    ]
    Console(width=120, file=printed).print(words.sweep_table(outcomes))
    rows = [[cell.strip() for cell in re.split("[┃│]", line)] for line in printed.getvalue().splitlines()]
    assert rows[0] == ["experiment", "seeds", "test loss", "test accuracy", "test mae"]
    # 0.8 and 0.9: mean 0.85, deviation sqrt(2 * 0.05^2 / 1) = 0.0707.
    assert rows[2:5] == [
        ["digits/lr=1", "3 (1 failed)", "not finite", "0.8500 ± 0.0707", "-"],
        ["digits/lr=2", "1 (1 diverged)", "2.0000", "0.1000", "0.2500"],
        ["digits/lr=3", "1 (1 failed)", "-", "-", "-"],
    ]


HEAVY = (
    *("matplotlib", "PIL", "sklearn", "scipy", "pandas", "datasets", "flwr_datasets", "flwr", "ray"),
    *("sympy", "torch._dynamo", "torch._inductor", "torch.fx.experimental.symbolic_shapes"),
)
WATCHED_RUN = f"""
import os, sys
from fedsim.running.folder import RunFolder
from fedsim_lab import main

append, out = RunFolder.append, sys.argv[-1]

def looked_at(folder, row):
    print([name for name in {HEAVY} if name in sys.modules])
    append(folder, row)

class Pictures:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "matplotlib":
            print(*sorted(os.listdir(out)))

RunFolder.append = looked_at
sys.meta_path.insert(0, Pictures)
main()
"""


def test_the_first_round_waits_for_no_library_that_it_does_not_need(tmp_path):
    """Seconds of imports; and what draws is loaded when what a run came to is on the disk."""
    command = [sys.executable, "-c", WATCHED_RUN, "run", DIGITS, *QUICK, "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, timeout=120)
    written = " ".join(sorted({CLIENTS, CONFIG, END, METRICS, MODEL, TRACE}))
    assert done.stdout.splitlines()[:3] == ["[]", "[]", written]


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("run experiments/digits_fedp", ["experiments/digits_fedprox.toml"]),
        ("run digits_fedp", ["digits_fedprox"]),
        ("sweep experiments/fedf", ["experiments/fedfix/"]),
        ("describe str", ["strategy"]),
        ("describe strategy fedp", ["fedproto", "fedprox"]),
        ("describe client.schedule c", ["constant", "cosine", "cosine_power"]),
        ("describe nothing f", []),
        ("new e", ["experiment"]),
        ("compare experiments/dig", []),
        ("compare experi", ["experiments/"]),
        ("compare x --along q", ["queries"]),
        ("ls --status st", ["stopped", "stalled"]),
        ("ls --sort n", ["name"]),
    ],
)
def test_a_shell_completes_files_groups_and_kinds(monkeypatch, capsys, typed, completed):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("_FEDSIM_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", f"fedsim {typed}")
    monkeypatch.setenv("COMP_CWORD", str(len(typed.split())))
    monkeypatch.setattr(sys, "argv", ["fedsim"])
    with pytest.raises(SystemExit):
        main()
    told = capsys.readouterr()
    assert told.out.split() == completed
    assert told.err == ""


def test_a_shell_completes_runs_and_their_measures(monkeypatch, capsys, tmp_path):
    folder = tmp_path / "runs" / "a"
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text("")
    measured = {"test_loss": 1.0, "best_test_loss": 1.0, "best_test_loss_round": 3, "train_loss": 1.0}
    (folder / "summary.json").write_text(json.dumps({"status": "finished", **measured}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("_FEDSIM_COMPLETE", "complete_bash")
    monkeypatch.setattr(sys, "argv", ["fedsim"])
    for typed, completed in {
        "show ru": ["runs/"],
        "run --resume runs/": ["runs/a"],
        "compare runs/a --target te": ["test_loss="],
        "compare runs --measure te": ["test_loss"],
    }.items():
        monkeypatch.setenv("COMP_WORDS", f"fedsim {typed}")
        monkeypatch.setenv("COMP_CWORD", str(len(typed.split())))
        with pytest.raises(SystemExit):
            main()
        assert capsys.readouterr().out.split() == completed


@pytest.mark.parametrize(
    ("loaded", "absent"),
    [
        ("fedsim.cli.main", ("torch", "numpy", "flwr")),
        ("fedsim.reports.pictures, fedsim.reports.table", ("torch", "matplotlib", "pandas")),
    ],
    ids=["any", "compare"],
)
def test_commands_that_need_no_tensors_do_not_wait_for_them(loaded, absent):
    code = f"import sys, {loaded}; print([name for name in {absent} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, timeout=120
    )
    assert done.stdout.strip() == "[]"


def test_the_version_is_that_of_the_package(monkeypatch, capsys):
    from importlib.metadata import version

    written = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert fedsim.__version__ == version("fedsim-lab") == written
    assert call(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"fedsim {fedsim.__version__}\n"
    assert "FEDSIM_CACHE" in os.environ
