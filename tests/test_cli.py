"""The command line: what it writes, what it says, and how it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import fedsim
from fedsim import cli
from fedsim.cli import parse_seeds
from fedsim.errors import InputError
from fedsim.runfolder import FILES, TRACEBACK

ROOT = Path(__file__).parent.parent
DIGITS = str(ROOT / "experiments" / "digits_fedavg.toml")
QUICK = ["--set", "rounds=2", "--set", "client.epochs=1"]


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["fedsim", *arguments])
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_a_run_leaves_the_whole_folder(monkeypatch, capsys, tmp_path):
    out = tmp_path / "run"
    assert call(monkeypatch, "run", DIGITS, *QUICK, "--seed", "3", "--out", str(out)) == 0
    assert sorted(path.name for path in out.iterdir()) == sorted(set(FILES) - {TRACEBACK})
    config = tomllib.loads((out / "config.toml").read_text())
    assert (config["seed"], config["rounds"], config["client"]["epochs"]) == (3, 2, 1)
    assert config["resolved"]["executor"] == "stacked"
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows] == [1, 2]
    # 10 clients, 64 x 64 + 64 + 64 x 10 + 10 = 4810 parameters of 4 bytes, each way.
    assert {row["bytes_up"] for row in rows} == {row["bytes_down"] for row in rows} == {10 * 4810 * 4}
    assert rows[0]["queries"] == 0
    assert {"time", "wall", "train_loss", "test_loss", "test_accuracy", "client_accuracy_p10"} <= rows[0].keys()
    said = capsys.readouterr().out
    assert "finished: 2 rounds" in said
    assert "run folder:" in said


def test_a_run_can_be_run_again_from_its_own_config(monkeypatch, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert call(monkeypatch, "run", DIGITS, *QUICK, "--out", str(first)) == 0
    assert call(monkeypatch, "run", str(first / "config.toml"), "--out", str(second)) == 0
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()


def test_seeds_make_a_group_that_compare_reads(monkeypatch, capsys, tmp_path):
    group, picture = tmp_path / "group", tmp_path / "both.png"
    assert call(monkeypatch, "run", DIGITS, *QUICK, "--seeds", "0-1", "--out", str(group)) == 0
    assert sorted(path.name for path in group.iterdir()) == ["seed-0", "seed-1"]
    assert call(monkeypatch, "compare", str(group), "--out", str(picture)) == 0
    assert picture.stat().st_size > 10_000
    assert "±" in capsys.readouterr().out


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
    assert {path.name for path in tmp_path.glob("compare*.png")} == {"compare.png", "compare-1.png"}


def test_a_full_disk_before_the_first_round_leaves_nothing(monkeypatch, capsys, tmp_path):
    import errno

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("fedsim.runfolder.os.fsync", full)
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
    from fedsim.loop import Simulation

    def fail(self: Simulation) -> None:
        raise ZeroDivisionError("on purpose")

    monkeypatch.setattr(Simulation, "step", fail)
    out = tmp_path / "run"
    assert call(monkeypatch, "run", DIGITS, *QUICK, "--out", str(out)) == 1
    assert "ZeroDivisionError: on purpose" in (out / TRACEBACK).read_text()


def test_an_interrupt_leaves_a_usable_folder(monkeypatch, tmp_path):
    from fedsim.loop import Simulation

    step = Simulation.step

    def interrupted(self: Simulation) -> dict:
        if self.round == 1:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(Simulation, "step", interrupted)
    out = tmp_path / "run"
    assert call(monkeypatch, "run", DIGITS, *QUICK, "--out", str(out)) == 130
    assert json.loads((out / "summary.json").read_text())["rounds"] == 1
    assert sorted(path.name for path in out.iterdir()) == sorted(set(FILES) - {TRACEBACK})


def test_seeds_are_read():
    assert parse_seeds("0-2") == [0, 1, 2]
    assert parse_seeds("4,0-1") == [4, 0, 1]
    for bad in ("", "a", "1-", "3,3", "2-1"):
        with pytest.raises(InputError, match="seeds"):
            parse_seeds(bad)


def test_importing_fedsim_is_light():
    """No pictures, tables of data, partitioners or actors are loaded by an import, nor Flower by a whole run."""
    heavy = ("matplotlib", "sklearn", "datasets", "ray", "flwr", "pandas")
    code = (
        f"import sys, fedsim; fedsim.experiment; fedsim.run; print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, timeout=120
    )
    assert done.stdout.strip() == "[]"


def test_the_version_is_that_of_the_package():
    from importlib.metadata import version

    assert fedsim.__version__ == version("fedsim")
    assert "FEDSIM_CACHE" in os.environ
