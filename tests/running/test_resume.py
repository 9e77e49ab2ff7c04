"""Runs go on: whatever ends a process, what the run leaves behind is what an uninterrupted one leaves, to the bit."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import forks
import pytest
import tomli_w
import torch
from contract import ROWS, subject
from mortal import ENDINGS, POINTS, SCENARIOS

import fedsim
from fedsim.cli.main import main
from fedsim.core.errors import DivergedError, InputError, StalledError
from fedsim.core.files import StorageError
from fedsim.core.graph import encode
from fedsim.parallel.cores import cores
from fedsim.problems.supervised import Supervised
from fedsim.running import runner
from fedsim.running.build import build_simulation
from fedsim.running.checkpoint import Checkpoint, UnusableError, listed, read, write
from fedsim.running.folder import RunFolder
from fedsim.running.resume import resume
from fedsim.running.runner import execute, run
from fedsim.running.simulation import Simulation
from fedsim.running.stored import CLIENTS, CONFIG, CURVES, END, METRICS, MODEL, SUMMARY, TRACE, open_run
from fedsim.testing.problems import small_experiment as small
from fedsim.testing.problems import small_problem

HERE = Path(__file__).parents[1]
ROOT = HERE.parent
WALL = re.compile(rb'"wall": [^,}]*')


def left(folder: Path) -> dict[str, bytes]:
    """What a run leaves, but for the time on the wall and pictures."""
    files = {name: (folder / name).read_bytes() for name in (CONFIG, METRICS, MODEL, SUMMARY, TRACE)}
    return {name: WALL.sub(b"", content) for name, content in files.items()}


# Every algorithm.


@pytest.mark.parametrize(
    ("row", "values_only"),
    [
        pytest.param(row, values_only, id=f"{row}, on functions" if values_only else row)
        for row in ROWS
        for values_only in (False, True)
        if not values_only or subject(row).fits_functions
    ],
)
def test_a_checkpoint_of_every_algorithm_changes_no_bit(row, values_only, tmp_path):
    """After two rows of a run, which goes on and leaves what it has told as it was."""
    rounds = ROWS[row].get("rounds", 3)
    first, second = (subject(row, values_only).simulation(rounds=rounds) for _ in range(2))
    for _ in range(2):
        first.step()
    told = first.snapshot()
    path = write(tmp_path, first.round, Checkpoint(first.snapshot(copy=False) | {"wall": 0.0}, 0, 0))
    rest = list(first)
    assert rest
    assert write(tmp_path, int(path.name[:8]), Checkpoint(told | {"wall": 0.0}, 0, 0)) == path  # a hash is in its name
    second.restore(read(path).snapshot)
    assert [{**found, "wall": 0} for found in second] == [{**wanted, "wall": 0} for wanted in rest]
    assert torch.equal(second.state.params, first.state.params)
    ends = [simulated.snapshot() for simulated in (first, second)]
    assert ends[0]["engine"]["ledger"] == ends[1]["engine"]["ledger"]
    stores = [end["engine"]["store"] for end in ends]
    assert all(torch.equal(stores[0][name], stores[1][name]) for name in stores[0])
    shares = [1.0] * first.parts.problem.num_clients
    traces = [end["engine"]["trace"].summary(shares, end["engine"]["now"]) for end in ends]
    assert traces[0] == traces[1]


def test_classes_have_names_of_their_own_in_a_checkpoint():
    """Whatever they are called in their modules: to change one is to raise the number of the format."""
    simulation = build_simulation(small(**ROWS["fedbuff"]), small_problem())
    simulation.step()
    text = encode([simulation.snapshot(), StalledError("late"), DivergedError("nan")]).text
    assert set(re.findall(r'\["(?:class|named|error)","(.*?)"', text)) == {
        *(
            "server",
            "server-state",
            "interval",
            "order",
            "size",
            "job",
            "cost",
            "job-result",
            "flight",
            "flights",
            "ledger",
        ),
        *("trace", "judged", "patience", "stalled-error", "diverged-error"),
    }


# SIGKILL.


@pytest.fixture(scope="module")
def mortal() -> Iterator[subprocess.Popen[str]]:
    """A process that has children killed; see there."""
    path = os.pathsep.join(map(str, (HERE, ROOT, *filter(None, [os.environ.get("PYTHONPATH")]))))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "mortal.py")]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        yield process
        process.stdin.close()


@pytest.mark.xdist_group("killed")
@pytest.mark.parametrize("kills", [len(POINTS) + 3, pytest.param(22, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("number", "scenario"), list(enumerate(SCENARIOS)))
def test_a_run_that_is_killed_again_and_again_ends_as_if_it_had_not_been(mortal, number, scenario, kills, tmp_path):
    """Also where all rounds are done; before a change of the first run that ends by rounds, and of that by time."""
    ends = ENDINGS if scenario in ("fedavg", "fedfix") or kills > len(POINTS) + 3 else ()
    task = {"scenario": scenario, "folder": str(tmp_path), "seed": number, "kills": kills, "endings": bool(ends)}
    mortal.stdin.write(json.dumps(task) + "\n")
    mortal.stdin.flush()
    told = json.loads(mortal.stdout.readline())
    assert "error" not in told, told.get("error")
    assert len(told["deaths"]) == kills + len(ends)
    assert set(POINTS) <= set(told["deaths"])
    assert told["rounds"] == sorted(told["rounds"])  # no death costs a checkpoint
    assert told["deaths"][kills:] == list(ends)
    assert len(set(told["rounds"])) >= 3
    assert left(tmp_path / "torn") == left(tmp_path / "whole")
    names = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("torn", "whole")]
    assert names[0] == names[1]
    assert {CURVES, CLIENTS} <= set(names[0])
    assert (END in names[0]) == (scenario != "fedfix")  # which ends by time


def test_processes_of_the_command_line_that_are_killed(tmp_path, monkeypatch):
    """Two SIGKILLs, after at least 5 and 12 rounds of 40, and a third process that goes on to the end."""
    monkeypatch.delenv("FEDSIM_DATA", raising=False)  # which a command line would note in its config.toml
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    digits = ROOT / "experiments" / "digits_fedavg.toml"
    settings = ["--set", "rounds=40", "--set", "checkpoint.every=1"]
    begin = ["-m", "fedsim", "run", digits, *settings, "--out", torn]
    go_on = ["-m", "fedsim", "run", "--resume", torn]
    for command, rounds in ((begin, 5), (go_on, 12)):
        with forks.started(*command, cwd=ROOT) as (process, _, _):
            while lines(torn / METRICS) < rounds and process.is_alive():
                time.sleep(0.002)
        assert process.exitcode == -signal.SIGKILL
    ended = forks.python(*go_on, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
    assert "finished: 40 rounds" in ended.stdout
    run(fedsim.load(digits, overrides=settings[1::2]), out=whole)
    assert left(torn) == left(whole)


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


# What a run that goes on is held to. The runs are of six clients, interrupted after so many rounds.


ILLUSTRATE = Supervised.illustrate


@pytest.fixture(autouse=True)
def undrawn(monkeypatch) -> None:
    """Pictures take most of the time."""
    monkeypatch.setattr(runner, "curves", lambda *_: None)
    monkeypatch.setattr(Supervised, "illustrate", lambda *_: None)


TABLES: dict[str, Any] = {
    "problem": {
        "dataset": {"kind": "synthetic", "clients": 6, "features": 5, "classes": 3, "examples_per_client": 12},
        "model": {"kind": "mlp", "hidden": [6]},
    },
    "partition": {"kind": "natural"},
    "rounds": 8,
    "evaluation": {"every": 1},
    "checkpoint": {"every": 1},
}


def own(**tables: Any) -> fedsim.Experiment:
    return small(**TABLES | tables)


class Stop:
    """A callback that interrupts, or fails, after a round."""

    def __init__(self, after: int, error: type[BaseException] = KeyboardInterrupt) -> None:
        self.after, self.error = after, error

    def __call__(self, seen: fedsim.Round) -> None:
        if seen.row["round"] == self.after:
            raise self.error


def cut(folder: Path, after: int = 5, **tables: Any) -> Path:
    """A run that was interrupted after a round."""
    assert run(own(**tables), out=folder, callbacks=[Stop(after)]).status == "interrupted"
    return folder


@pytest.fixture
def whole(tmp_path) -> Path:
    """The same run without an interruption."""
    run(own(), out=tmp_path / "whole")
    return tmp_path / "whole"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["fedsim", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_an_interrupted_run_goes_on(tmp_path, whole):
    torn = cut(tmp_path / "torn")
    # Interrupted between two rounds, with its row written: the last checkpoint is of that very round.
    assert [int(path.name[:8]) for path in listed(torn / "checkpoints")] == [5, 4]
    seen: list[int] = []
    result = resume(torn, callbacks=[lambda told: seen.append(told.row["round"])])
    assert (result.status, seen) == ("finished", [6, 7, 8])
    assert result.summary["rounds"] == len(result.history) == 8
    assert left(torn) == left(whole)
    assert not (torn / "checkpoints").exists()


def test_an_interruption_within_a_round_goes_back_to_the_round_before(tmp_path, whole, monkeypatch):
    engine, torn = "fedsim.engine.virtual.VirtualEngine.submit", tmp_path / "torn"
    with monkeypatch.context() as patch:
        patch.setattr(engine, interrupted_at(6, patch, engine))
        assert run(own(), out=torn).status == "interrupted"
    assert [int(path.name[:8]) for path in listed(torn / "checkpoints")] == [5, 4]
    resume(torn)
    assert left(torn) == left(whole)


def interrupted_at(round_number: int, patch: pytest.MonkeyPatch, name: str) -> Any:
    from fedsim.engine.virtual import VirtualEngine

    submit = VirtualEngine.submit

    def interrupted(self: VirtualEngine, orders: Any) -> None:
        submit(self, orders)
        if orders.round == round_number - 1:
            raise KeyboardInterrupt

    return interrupted


def test_a_row_that_was_not_written_is_not_lost(tmp_path, whole, monkeypatch):
    """Interrupted while the row of round 5 is appended: the last checkpoint is that of round 4."""
    append, torn = RunFolder.append, tmp_path / "torn"

    def interrupted(self: RunFolder, row: Any) -> None:
        if row["round"] == 5:
            raise KeyboardInterrupt
        append(self, row)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "append", interrupted)
        run(own(), out=torn)
    assert [int(path.name[:8]) for path in listed(torn / "checkpoints")] == [4, 3]
    resume(torn)
    assert left(torn) == left(whole)


def test_a_run_that_failed_goes_on_and_its_traceback_is_gone(tmp_path, whole):
    torn = tmp_path / "torn"
    with pytest.raises(ZeroDivisionError):
        run(own(), out=torn, callbacks=[Stop(5, ZeroDivisionError)])
    assert "ZeroDivisionError" in (torn / "traceback.txt").read_text()
    resume(torn)
    assert left(torn) == left(whole)
    assert not (torn / "traceback.txt").exists()


@pytest.mark.parametrize("every", [0, 50])
def test_a_run_without_a_checkpoint_begins_again_in_its_folder(tmp_path, every):
    torn = cut(tmp_path / "torn", checkpoint={"every": 50}) if every else tmp_path / "torn"
    if every:
        for path in listed(torn / "checkpoints"):  # the last one, of the interruption
            path.unlink()
    else:
        cut(torn, checkpoint={"every": 0})
        assert not (torn / "checkpoints").exists()
    assert lines(torn / METRICS) == 5
    resume(torn)
    run(own(checkpoint={"every": every}), out=tmp_path / "other")
    assert left(torn) == left(tmp_path / "other")


def test_a_run_that_was_killed_before_its_first_row_begins_again(tmp_path, whole):
    torn = tmp_path / "torn"
    torn.mkdir()
    (torn / CONFIG).write_bytes((whole / CONFIG).read_bytes())
    resume(torn)
    assert left(torn) == left(whole)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="no run is there"):
        resume(tmp_path)
    with pytest.raises(InputError, match="no run is there"):
        resume(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("tables", "status"),
    [
        ({}, "finished"),
        ({"stopping": {"metric": "test_loss", "target": 100.0}}, "stopped"),
        ({"client": {"kind": "sgd", "epochs": 2, "batch_size": 4, "lr": 1e30}}, "diverged"),
        ({"devices": {"failure": {"mean_seconds": 1e-9}}}, "stalled"),
    ],
)
def test_a_run_that_has_ended_is_left_alone(tmp_path, monkeypatch, capsys, tables, status):
    folder = tmp_path / "run"
    assert run(own(**tables), out=folder).status == status
    assert not (folder / "checkpoints").exists()
    before = contents(folder)
    assert call(monkeypatch, "run", "--resume", str(folder)) == 0
    assert f"this run has {status}; nothing is left to do" in capsys.readouterr().out
    with pytest.raises(InputError, match=f"this run has {status}"):
        resume(folder)
    assert contents(folder) == before


def test_of_a_run_that_has_ended_another_experiment_is_refused(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    run(own(rounds=1), out=folder)
    assert call(monkeypatch, "run", "--resume", str(folder), "--set", "seed=2") == 2
    assert f"seed = 2: the run in {folder} has 0" in capsys.readouterr().err
    assert call(monkeypatch, "run", "--resume", str(folder), "--set", "rounds=1") == 0


def test_the_wall_clock_goes_on(tmp_path):
    torn = cut(tmp_path / "torn")
    before = open_run(torn).rows()[-1]["wall"]
    resume(torn)
    walls = [row["wall"] for row in open_run(torn).rows()]
    assert walls == sorted(walls)
    assert walls[4] == before < walls[5]


def test_the_executor_is_the_one_that_the_run_began_with(tmp_path, whole, monkeypatch):
    """Also where `auto` would choose another now, and on another number of cores."""
    torn = cut(tmp_path / "torn")
    assert tomllib.loads((torn / CONFIG).read_text())["resolved"]["executor"] == "stacked"
    monkeypatch.setattr("fedsim.engine.executor.loses_to_a_loop", lambda *_: True)
    monkeypatch.setattr("fedsim.parallel.cores.given", lambda: 3)
    chosen: list[str] = []
    build = runner.build_simulation

    def noted(*given: Any, **options: Any) -> Simulation:
        made = build(*given, **options)
        chosen.append(made.parts.engine.describe()["executor"])
        return made

    monkeypatch.setattr("fedsim.running.resume.build_simulation", noted)
    resume(torn)
    assert chosen == ["stacked"]
    assert left(torn) == left(whole)


def test_a_run_goes_on_with_another_number_of_cores(tmp_path, whole, monkeypatch):
    monkeypatch.setattr("fedsim.parallel.cores.given", lambda: 3)
    torn, seen = cut(tmp_path / "torn"), set[int]()
    resume(torn, own(engine={"cores": 2}), callbacks=[lambda _: seen.add(cores())])
    assert seen == {2}
    assert left(torn) == left(whole)


def test_work_that_would_be_cut_otherwise_is_refused(tmp_path, monkeypatch):
    torn = cut(tmp_path / "torn")
    before = contents(torn)
    monkeypatch.setattr("fedsim.engine.executor.Executor.chunk", 3)
    with pytest.raises(InputError, match=r"resolved.chunk = 3: the run began with \d+"):
        resume(torn)
    assert contents(torn) == before


@pytest.mark.parametrize(
    ("tables", "line"),
    [
        (
            {"client": {"kind": "sgd", "epochs": 3, "batch_size": 4, "lr": 0.1}},
            "client.epochs = 3: the run in .* has 2",
        ),
        ({"rounds": 9}, "rounds = 9: the run in .* has 8"),
        ({"seed": 1}, "seed = 1: the run in .* has 0"),
        ({"duration": 5.0}, r"duration = 5.0: the run in .* has '\(nothing\)'"),
        ({"transforms": [{"kind": "clip", "max_norm": 1.0}]}, "transforms = .*: the run in .* has .]"),
        ({"strategy": "scaffold", "client": {"kind": "scaffold", "epochs": 2}}, "strategy.kind = scaffold: the run"),
        ({"engine": {"executor": "loop"}}, "engine.executor = loop: the run in .* has 'auto'"),
    ],
)
def test_another_experiment_is_refused_by_its_first_difference(tmp_path, tables, line):
    torn = cut(tmp_path / "torn")
    before = contents(torn)
    with pytest.raises(InputError, match=line):
        resume(torn, own(**tables))
    assert contents(torn) == before


def changed(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    config = tomllib.loads((folder / CONFIG).read_text())
    change(config)
    (folder / CONFIG).write_text(tomli_w.dumps(config))


def test_a_config_that_was_changed_in_the_folder_is_refused(tmp_path, whole):
    torn = cut(tmp_path / "torn")
    changed(torn, lambda config: config["client"].update(lr=0.5))
    with pytest.raises(InputError, match=r"client.lr = 0.5: in .*config.toml this was 0.1 so far; change it back"):
        resume(torn)
    changed(torn, lambda config: config["client"].update(lr=0.1))
    changed(torn, lambda config: config["checkpoint"].update(keep=1))
    resume(torn)
    assert {**left(torn), CONFIG: b""} == {**left(whole), CONFIG: b""}


@pytest.mark.parametrize(
    ("name", "table"), [("resolved", [{}]), ("versions", 3), ("resolved", {"data_dir": 3}), ("resolved", {"device": 3})]
)
def test_notes_of_a_config_that_are_none_are_one_line(tmp_path, name, table):
    torn = cut(tmp_path / "torn")
    changed(torn, lambda config: config.update({name: table}))
    with pytest.raises(InputError, match=f"{name} = .*config.toml: is not as the run has written it"):
        resume(torn)


def test_a_checkpoint_of_another_version_is_one_line(tmp_path):
    torn = cut(tmp_path / "torn")
    (path, *_) = listed(torn / "checkpoints")
    found = read(path)
    del found.snapshot["judge"]
    path.unlink()
    write(torn / "checkpoints", 5, found)
    with pytest.raises(UnusableError, match=r"none of such a run of this version \(KeyError: 'judge'\); begin again"):
        resume(torn, force=True)


def test_the_same_experiment_may_write_other_checkpoints(tmp_path, whole):
    torn = cut(tmp_path / "torn")
    found: list[list[Path]] = []
    resume(
        torn, own(checkpoint={"every": 2, "keep": 1}), callbacks=[lambda _: found.append(listed(torn / "checkpoints"))]
    )
    # Checkpoints are written before rounds: that of round 7 before the row of round 8, and it alone is kept.
    assert [[int(path.name[:8]) for path in paths] for paths in found] == [[5, 4], [5, 4], [7]]
    assert left(torn) == left(whole)


def test_other_data_are_refused(tmp_path):
    torn = cut(tmp_path / "torn")
    config = tomllib.loads((torn / CONFIG).read_text())
    here, config["data"]["sha256"] = config["data"]["sha256"], "0" * 64
    (torn / CONFIG).write_text(tomli_w.dumps(config))
    before = contents(torn)
    with pytest.raises(InputError, match=f"data.sha256 = {here}: the run began with other data, 0000"):
        resume(torn)
    assert contents(torn) == before


@pytest.mark.parametrize("name", ["fedsim", "torch", "numpy"])
def test_other_versions_are_refused_unless_forced(tmp_path, whole, name):
    torn = cut(tmp_path / "torn")
    config = tomllib.loads((torn / CONFIG).read_text())
    config["versions"][name] = "0.0.1"
    (torn / CONFIG).write_text(tomli_w.dumps(config))
    before = contents(torn)
    with pytest.raises(InputError, match=rf"versions.{name} = .*: the run began with 0.0.1, and results could differ"):
        resume(torn)
    assert contents(torn) == before
    resume(torn, force=True)
    assert {**left(torn), CONFIG: b""} == {**left(whole), CONFIG: b""}


def test_the_one_before_a_damaged_checkpoint_is_used(tmp_path, whole, capsys):
    torn = cut(tmp_path / "torn")
    newest, _ = listed(torn / "checkpoints")
    newest.write_bytes(newest.read_bytes()[:-1])
    resume(torn)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "is damaged" in said
    assert left(torn) == left(whole)


def test_with_only_damaged_checkpoints_one_line_says_what_to_do(tmp_path, whole, monkeypatch, capsys):
    monkeypatch.delenv("FEDSIM_DATA", raising=False)  # which the command notes in config.toml
    torn = cut(tmp_path / "torn")
    for path in listed(torn / "checkpoints"):
        path.write_bytes(b"")
    before = contents(torn)
    assert call(monkeypatch, "run", "--resume", str(torn)) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert contents(torn) == before
    found = re.search(r"start again: fedsim (run .*)$", said)
    assert found is not None
    assert call(monkeypatch, *found[1].split()) == 0  # and that does it
    assert left(torn) == left(whole)


def test_rows_after_the_checkpoint_are_taken_back(tmp_path, whole):
    torn = cut(tmp_path / "torn")
    with open(torn / METRICS, "ab") as file:
        file.write(b'{"round": 6, "train_loss": 17.0}\n{"round": 7, "tr')
    for name in (".summary.json.17.tmp", f"checkpoints/.00000006-{'ab' * 16}.safetensors.17.tmp"):
        (torn / name).write_text("half")
    (torn / ".notes.tmp").write_text("mine")
    resume(torn)
    assert left(torn) == left(whole)
    assert {path.name for path in torn.glob(".*")} == {".notes.tmp"}


def test_two_processes_do_not_go_on_with_one_run(tmp_path, whole):
    torn = cut(tmp_path / "torn")
    with RunFolder.reopen(torn), pytest.raises(InputError, match="another process is writing to it"):
        resume(torn)
    resume(torn)
    assert left(torn) == left(whole)


def test_a_run_that_goes_on_can_be_interrupted_again(tmp_path, whole):
    torn = cut(tmp_path / "torn", after=3)
    assert resume(torn, callbacks=[Stop(6)]).status == "interrupted"
    assert json.loads((torn / SUMMARY).read_text())["rounds"] == 6
    resume(torn)
    assert left(torn) == left(whole)


# Problems and strategies that are not in the file.


def test_a_problem_of_ones_own_is_passed_again(tmp_path, monkeypatch, capsys):
    torn, whole = tmp_path / "torn", tmp_path / "whole"
    tables: dict[str, Any] = {"rounds": 8, "evaluation": {"every": 1}, "checkpoint": {"every": 1}}
    run(small(**tables), problem=small_problem(), out=whole)
    run(small(**tables), problem=small_problem(), out=torn, callbacks=[Stop(5)])
    assert call(monkeypatch, "run", "--resume", str(torn)) == 2
    assert "pass yours: fedsim.resume(folder, problem=...)" in capsys.readouterr().err
    other = small_problem(sizes=(7, 3, 12, 1, 5))
    with pytest.raises(InputError, match="problem = 5: the run began with 6 clients"):
        resume(torn, problem=other)
    resume(torn, small(**tables), problem=small_problem())
    assert left(torn) == left(whole)
    with pytest.raises(InputError, match="it has one already; leave yours out"):
        resume(cut(tmp_path / "described"), problem=small_problem())


PLUGIN = """
from dataclasses import dataclass
from fedsim.server import ServerState, options
from strategies.fedavg import FedAvg

@dataclass(frozen=True)
class Odd(ServerState):
    pass

@options
class Stateful(FedAvg):
    unresumable = "it keeps its state to itself"

@options
class Strange(FedAvg):
    def tell(self, state, replies):
        told, metrics, done = FedAvg.tell(self, state, replies)
        return Odd(told.params, told.round, told.phase, told.optimizer), metrics, done
"""


def test_a_strategy_that_cannot_go_on_says_why(tmp_path, monkeypatch, capsys):
    (tmp_path / "plugin.py").write_text(PLUGIN)
    tables = {"strategy": f"{tmp_path / 'plugin.py'}:Stateful", "checkpoint": {"keep": 1}}
    torn = cut(tmp_path / "torn", **tables)
    assert not (torn / "checkpoints").exists()
    assert call(monkeypatch, "run", "--resume", str(torn)) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "such a run cannot go on: it keeps its state to itself" in said
    assert resume(torn, own(**tables), anew=True).status == "finished"


def test_a_state_of_an_unknown_class_is_named_and_the_run_goes_on(tmp_path, capsys):
    (tmp_path / "plugin.py").write_text(PLUGIN)
    result = run(own(strategy=f"{tmp_path / 'plugin.py'}:Strange"), out=tmp_path / "run", callbacks=[Stop(5)])
    assert (result.status, result.summary["rounds"]) == ("interrupted", 5)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "this run has no checkpoints" in said
    assert "Odd cannot be written down; give its class a name: @storable('a-name')" in said
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_anew_begins_where_nothing_can_go_on(tmp_path, whole):
    absent, torn = tmp_path / "absent", cut(tmp_path / "torn")
    assert resume(absent, own(), anew=True).status == "finished"
    seen: list[int] = []
    resume(torn, own(), anew=True, callbacks=[lambda told: seen.append(told.row["round"])])
    assert seen == [6, 7, 8]
    broken = cut(tmp_path / "broken")
    for path in listed(broken / "checkpoints"):
        path.write_bytes(b"")
    resume(broken, own(), anew=True)
    assert left(absent) == left(torn) == left(broken) == left(whole)
    with pytest.raises(InputError, match="rounds = 9"):
        resume(cut(tmp_path / "other"), own(rounds=9), anew=True)


def test_runs_on_other_engines_have_no_checkpoints(tmp_path):
    def engine(problem: Any, aggregator: Any) -> Any:
        return build_simulation(own(), problem).parts.engine

    execute(own(), out=tmp_path / "run", engine=engine, callbacks=[Stop(5)])
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_run_on_nodes_is_not_continued_here(tmp_path):
    torn = cut(tmp_path / "torn")
    config = tomllib.loads((torn / CONFIG).read_text())
    config["resolved"]["nodes"] = 3
    (torn / CONFIG).write_text(tomli_w.dumps(config))
    with pytest.raises(InputError, match="on Flower's nodes"):
        resume(torn)


# The command line.


def test_the_command_goes_on_and_takes_a_file_that_says_the_same(tmp_path, whole, monkeypatch, capsys):
    torn = cut(tmp_path / "torn")
    file = tmp_path / "experiment.toml"
    tables = {name: table for name, table in own().resolved().items() if name != "checkpoint"}
    file.write_text(tomli_w.dumps(tables))
    for arguments in (["--set", "rounds=9"], [str(file), "--seed", "1"], [str(file), "--set", "client.lr=0.5"]):
        assert call(monkeypatch, "run", "--resume", str(torn), *arguments) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert f"the run in {torn} has" in said
    assert call(monkeypatch, "run", str(file), "--resume", str(torn), "--set", "checkpoint.keep=1") == 0
    assert "finished: 8 rounds" in capsys.readouterr().out
    assert left(torn) == left(whole)


def test_the_command_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    file, out = tmp_path / "experiment.toml", tmp_path / "run"
    file.write_text(tomli_w.dumps(own().resolved()))
    with monkeypatch.context() as patch:
        step = Simulation.complete_round

        def interrupted(self: Simulation) -> None:
            if self.round == 3:
                raise KeyboardInterrupt
            step(self)

        patch.setattr(Simulation, "complete_round", interrupted)
        assert call(patch, "run", str(file), "--out", str(out)) == 130
    said = capsys.readouterr().out.splitlines()[-1]
    assert said == f"to go on: fedsim run --resume {out}"
    assert call(monkeypatch, *said.removeprefix("to go on: fedsim ").split()) == 0


@pytest.mark.parametrize("more", [["--out", "x"], ["--seeds", "0-1"]])
def test_a_run_goes_on_in_its_own_folder_and_under_its_own_seed(tmp_path, monkeypatch, capsys, more):
    assert call(monkeypatch, "run", "--resume", str(cut(tmp_path / "torn")), *more) == 2
    assert f"{more[0][2:]} = {more[1]}: --resume goes on with one run" in capsys.readouterr().err


def test_a_run_needs_a_file_or_a_folder(monkeypatch, capsys):
    assert call(monkeypatch, "run") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "EXPERIMENT" in said


# Force, and disks that are full.


def test_force_removes_an_earlier_run_with_its_checkpoints(tmp_path):
    torn = cut(tmp_path / "torn")
    (torn / "checkpoints" / "mine.txt").write_text("mine")
    run(own(rounds=2, checkpoint={"every": 0}), out=torn, force=True)
    assert [path.name for path in (torn / "checkpoints").iterdir()] == ["mine.txt"]
    assert resume_status(torn) == "finished"


def resume_status(folder: Path) -> str | None:
    return open_run(folder).ended()


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_too_full_for_checkpoints_costs_no_result(tmp_path, whole, monkeypatch, capsys):
    folder, fsync = tmp_path / "run", os.fsync

    def sometimes(descriptor: int) -> None:
        if "checkpoints" in os.readlink(f"/proc/self/fd/{descriptor}"):
            full()
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", sometimes)
        assert run(own(), out=folder).status == "finished"
    assert capsys.readouterr().err.count("\n") == 1
    assert left(folder) == left(whole)
    assert not (folder / "checkpoints").exists()


def test_a_disk_too_full_for_metrics_ends_the_run_which_goes_on_later(tmp_path, whole, monkeypatch):
    folder, append = tmp_path / "run", RunFolder.append

    def until_five(self: RunFolder, row: Any) -> None:
        if row["round"] == 5:
            os.write(self._metrics.fileno(), b'{"round": 5, ')
            raise StorageError(folder / METRICS, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        append(self, row)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "append", until_five)
        with pytest.raises(StorageError, match="no space left on device"):
            run(own(), out=folder)
    assert len(open_run(folder).rows()) == 4
    resume(folder)
    assert left(folder) == left(whole)


def test_a_disk_too_full_for_the_first_row_costs_no_checkpoint(tmp_path, monkeypatch):
    folder, tables = tmp_path / "run", {"evaluation": {"every": 100}, "strategy": {"kind": "fedbuff", "size": 2}}
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "append", lambda self, _: full_file(self.path / METRICS))
        with pytest.raises(StorageError, match="no space left on device"):
            run(own(**tables), out=folder)
    assert lines(folder / METRICS) == 0
    assert listed(folder / "checkpoints")
    resume(folder)
    run(own(**tables), out=tmp_path / "other")
    assert left(folder) == left(tmp_path / "other")


def test_a_run_has_ended_when_the_disk_has_its_metrics(tmp_path, whole, monkeypatch):
    folder, fsync = tmp_path / "run", os.fsync

    def sometimes(descriptor: int) -> None:
        if (folder / MODEL).exists() and os.readlink(f"/proc/self/fd/{descriptor}").endswith(METRICS):
            full()
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", sometimes)
        with pytest.raises(StorageError, match="no space left on device"):
            run(own(), out=folder)
    assert resume_status(folder) is None
    resume(folder)
    assert left(folder) == left(whole)


def test_a_run_is_held_from_before_its_first_row(tmp_path, monkeypatch):
    rows, append = [], RunFolder.append

    def watched(folder: RunFolder, row: Mapping[str, Any]) -> None:
        rows.append(lines(tmp_path / "run" / METRICS))
        with pytest.raises(InputError, match="another process is writing to it"):
            RunFolder.reopen(tmp_path / "run")
        append(folder, row)

    monkeypatch.setattr(RunFolder, "append", watched)
    run(own(rounds=2), out=tmp_path / "run")
    assert rows == [0, 1]


def test_a_disk_too_full_for_the_model_loses_nothing_either(tmp_path, whole, monkeypatch):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write_model", lambda self, *_: full_file(self.path / MODEL))
        with pytest.raises(StorageError, match=MODEL):
            run(own(), out=folder)
    assert lines(folder / METRICS) == 8
    assert listed(folder / "checkpoints")
    resume(folder)
    assert left(folder) == left(whole)


def full_file(path: Path) -> None:
    raise StorageError(path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))


PICTURES = {"curves": "fedsim.running.runner.curves", "partition": "fedsim.plots.label_distribution"}


@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize("error", [OSError(errno.EROFS, "Read-only file system"), ValueError("cannot draw")], ids=str)
def test_a_picture_that_fails_is_a_warning(tmp_path, monkeypatch, capsys, picture, error):
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Supervised, "illustrate", ILLUSTRATE)
    for name, drawn in PICTURES.items():
        monkeypatch.setattr(drawn, fail if name == picture else lambda *_: None)
    result = run(own(), out=tmp_path / "run")
    assert result.status == "finished"
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith(f"fedsim: warning: a picture is missing: {type(error).__name__}")
    assert json.loads((tmp_path / "run" / SUMMARY).read_text())["status"] == "finished"


def test_a_read_only_folder_is_one_line_and_changes_nothing(tmp_path, monkeypatch, capsys):
    """The tests may run as root, whom file modes do not bind; so the answer of the system is replaced."""
    torn, opened = cut(tmp_path / "torn"), open
    before = contents(torn)

    def refused(path: Any, mode: str = "r", **options: Any) -> Any:
        if set(mode) & set("wxa+"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(path, mode, **options)

    monkeypatch.setattr("fedsim.running.folder.open", refused, raising=False)
    assert call(monkeypatch, "run", "--resume", str(torn)) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "cannot go on: permission denied" in said
    assert contents(torn) == before


def test_checkpoints_change_no_result(tmp_path, whole):
    for name, options in {"never": {"every": 0}, "third": {"every": 3, "keep": 1}, "time": {}}.items():
        run(own(checkpoint=options), out=tmp_path / name)
        assert {**left(tmp_path / name), CONFIG: b""} == {**left(whole), CONFIG: b""}


# What is in the folder is not trusted.


MARKED = """
from pathlib import Path
from strategies.fedavg import FedAvg
from fedsim.core.options import options

Path(__file__).with_name("executed").touch()


@options
class Marked(FedAvg):
    pass
"""


def spoil_the_checkpoints(torn: Path) -> None:
    for path in (torn / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:-1])


def spoil_the_config(torn: Path) -> None:
    config = tomllib.loads((torn / CONFIG).read_text())
    config["strategy"]["kind"] = f"{torn.parent / 'marked.py'}:Marked"
    (torn / CONFIG).write_text(tomli_w.dumps(config))


def spoil_the_versions(torn: Path) -> None:
    config = tomllib.loads((torn / CONFIG).read_text())
    config["versions"]["torch"] = "1.0"
    (torn / CONFIG).write_text(tomli_w.dumps(config))


def spoil_the_arithmetic(torn: Path) -> None:
    config = tomllib.loads((torn / CONFIG).read_text())
    config["arithmetic"]["kernels"] = "SSE2"
    (torn / CONFIG).write_text(tomli_w.dumps(config))


def spoil_the_rows(torn: Path) -> None:
    lines = (torn / METRICS).read_text().splitlines(keepends=True)
    (torn / METRICS).write_text("".join(line.replace('"clients"', '"clieots"') for line in lines))


def spoil_a_row(torn: Path) -> None:
    (torn / METRICS).write_bytes((torn / METRICS).read_bytes().replace(b'{"round": 2', b'{"round" 2 '))


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (spoil_the_checkpoints, "is damaged"),
        (spoil_the_config, "so far; change it back"),
        (spoil_the_versions, r"versions.torch = .*the run began with 1.0"),
        (spoil_the_arithmetic, r"arithmetic.kernels = .*the run began with SSE2"),
        (spoil_the_rows, "line 1 has no clients"),
        (spoil_a_row, "line 2 is not JSON"),
    ],
)
@pytest.mark.parametrize("arguments", [(), ("--set", "checkpoint.keep=3")])
def test_nothing_is_executed_or_changed_before_the_folder_is_accepted(
    tmp_path, monkeypatch, capsys, spoil, why, arguments
):
    plugin = tmp_path / "marked.py"
    plugin.write_text(MARKED)
    kind = "fedavg" if spoil is spoil_the_config else f"{plugin}:Marked"
    torn = cut(tmp_path / "torn", strategy={"kind": kind})
    (tmp_path / "executed").unlink(missing_ok=True)
    plugin.write_text(MARKED + "\n")  # another file for Python, which would be executed
    spoil(torn)
    before = contents(tmp_path)
    assert call(monkeypatch, "run", "--resume", str(torn), *arguments) == 2
    assert re.fullmatch(rf"(fedsim: warning: .*\n)?fedsim: .*{why}.*\n", capsys.readouterr().err)
    with pytest.raises(InputError, match=why):
        resume(torn)
    assert contents(tmp_path) == before


def test_a_run_goes_on_in_other_arithmetic_if_that_is_asked_for(tmp_path, whole):
    torn = cut(tmp_path / "torn")
    spoil_the_arithmetic(torn)
    resume(torn, force=True)
    assert {**left(torn), CONFIG: b""} == {**left(whole), CONFIG: b""}


@pytest.mark.parametrize("how", ["deleted", "moved"])
def test_a_folder_that_is_gone_ends_the_run_at_the_next_row(tmp_path, how, monkeypatch, capsys):
    seen: list[int] = []

    def gone(told: fedsim.Round) -> None:
        seen.append(told.row["round"])
        if told.row["round"] == 3:
            (tmp_path / "run").rename(tmp_path / "elsewhere")
            if how == "deleted":
                shutil.rmtree(tmp_path / "elsewhere")

    with pytest.raises(StorageError, match="the run's folder was deleted or moved"):
        run(own(), out=tmp_path / "run", callbacks=[gone])
    assert seen == [1, 2, 3]
    assert not (tmp_path / "run").exists()
    if how == "moved":
        resume(tmp_path / "elsewhere")
        assert lines(tmp_path / "elsewhere" / METRICS) == 8


def test_what_was_left_at_the_very_end_is_removed_by_whoever_comes(tmp_path, whole, monkeypatch, capsys):
    """A process that was killed after the summary and before its checkpoints were removed."""
    for number, come in enumerate((lambda path: call(monkeypatch, "run", "--resume", str(path)), refused)):
        torn = tmp_path / f"torn-{number}"
        with monkeypatch.context() as patch:
            patch.setattr(RunFolder, "tidy", lambda _: None)
            run(own(), out=torn)
        (torn / ".curves.png.17.tmp").write_text("half")
        assert listed(torn / "checkpoints")
        come(torn)
        assert contents(torn).keys() == contents(whole).keys()
        assert not (torn / "checkpoints").exists()


def refused(path: Path) -> None:
    with pytest.raises(InputError, match="this run has finished"):
        resume(path)


def test_a_run_goes_on_from_anywhere(tmp_path, monkeypatch):
    """Its plug-in and its table are named by paths from the experiment's folder, and one table from the data folder."""
    there, data = tmp_path / "there", tmp_path / "data"
    for folder in (there, data):
        folder.mkdir()
    (there / "mine.py").write_text("from strategies.fedavg import FedAvg as Mine\n")
    table = "a,b,label\n" + "".join(f"{row},{row % 7},{row % 2}\n" for row in range(40))
    (data / "numbers.csv").write_text(table)
    (there / "x.toml").write_text(
        'rounds = 3\nstrategy = "./mine.py:Mine"\ncheckpoint = { every = 1 }\n'
        'partition = { kind = "iid", clients = 4 }\n'
        'problem = { dataset = { kind = "csv", path = "numbers.csv", label = "label" }, model = "logistic" }\n'
    )
    monkeypatch.chdir(tmp_path)
    whole = fedsim.run("there/x.toml", data_dir="data", out="whole")

    def interrupt(done: Any) -> None:
        if done.row["round"] == 2:
            raise KeyboardInterrupt

    assert fedsim.run("there/x.toml", data_dir="data", out="part", callbacks=[interrupt]).status == "interrupted"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert torch.equal(fedsim.resume(tmp_path / "part").params, whole.params)
