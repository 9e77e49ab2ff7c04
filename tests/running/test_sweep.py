"""Sweeps: which points there are, that they are the runs that `fedsim run` makes, and what is done again."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import fedsim
from clients.sgd import Sgd
from fedsim.core.errors import InputError
from fedsim.core.options import options
from fedsim.plots.evasion import ADVERSARIAL
from fedsim.plots.personal import PERSONAL
from fedsim.running.stored import (
    BEST,
    CONFIG,
    FILES,
    METRICS,
    MODEL,
    NEWCOMERS,
    OWN,
    REPORT,
    ROWS,
    SUMMARY,
    TRACEBACK,
    TRACKING,
)
from fedsim.running.sweep import LONGEST, Outcome, Point, expand, parse_grid, run_points

pytestmark = pytest.mark.usefixtures("unpainted")

FORKED = pytest.mark.usefixtures("forked_workers")
"""Of tests whose processes need not begin as those of users do; the others' do."""
ROOT = Path(__file__).parents[2]
DIGITS = str(ROOT / "experiments" / "digits_fedavg.toml")
FEDPROX = str(ROOT / "experiments" / "digits_fedprox.toml")
QUICK = ["rounds=2", "client.epochs=1", "partition.clients=20"]

PLUGINS = """
import os
from pathlib import Path

from fedsim.parallel.cores import cores
from fedsim.core.options import options
from strategies.fedavg import FedAvg


@options
class Same(FedAvg):
    pass


@options
class Fails(FedAvg):
    def ask(self, *given):
        raise ZeroDivisionError(f"on purpose, on {cores()} core")


@options
class Dies(FedAvg):
    def ask(self, *given):
        os._exit(9)


@options
class DiesOnce(FedAvg):
    def ask(self, state, chosen):
        asked = Path("asked")
        before = asked.read_text() if asked.exists() else ""
        asked.write_text(f"{before}{state.round} ")
        if state.round == 2 and before.count("2") == 0:
            os._exit(9)
        return super().ask(state, chosen)


@options
class NoData:
    def load(self, folder):
        raise EOFError("no data, on purpose")
"""


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The current folder, with plug-ins in plugins.py."""
    (tmp_path / "plugins.py").write_text(PLUGINS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows_of(folder: Path) -> list[dict]:
    rows = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "wall"} for row in rows]


def point(folder: Path, *overrides: str, seed: int = 0) -> Point:
    return Point(fedsim.load(DIGITS, overrides=[*QUICK, *overrides], seed=seed), folder)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0.1,0.2", ["0.1", "0.2"]),
        ("adam", ["adam"]),
        (" a , b ", ["a", "b"]),
        ("[1, 2],[3]", ["[1, 2]", "[3]"]),
        ('{kind="x", of=[1, 2]},none', ['{kind="x", of=[1, 2]}', "none"]),
        ('"a,b","c"', ['"a,b"', '"c"']),
        ("'a,\",b',c", ["'a,\",b'", "c"]),
        (r'"a\",b",c', [r'"a\",b"', "c"]),
        (r'"a\\",b', [r'"a\\"', "b"]),
        ('"[",1', ['"["', "1"]),
    ],
)
def test_a_grid_is_split_at_commas_outside_brackets_and_quotes(text, values):
    assert parse_grid([f"client.lr={text}", "rounds=1"]) == {"client.lr": values, "rounds": ["1"]}


@pytest.mark.parametrize(
    "bad", ["rounds", "=1", "rounds=", "rounds=1,", "rounds=1,,2", "hidden=[1,2", 'name="a', "a=1]"]
)
def test_a_grid_that_cannot_be_read_is_refused(bad):
    with pytest.raises(InputError, match="grid = "):
        parse_grid([bad])


def test_an_option_has_its_values_in_one_place():
    with pytest.raises(InputError, match="rounds has values already"):
        parse_grid(["rounds=1", "rounds=2"])


def test_points_are_files_by_combinations_by_seeds(tmp_path):
    grid = {"client.lr": ["0.1", "0.2"], "client.batch_size": [2, 8]}
    points = expand([DIGITS, FEDPROX], out=tmp_path, grid=grid, seeds=[3, 5], overrides=["client.lr=9", "rounds=7"])
    # 2 files x 2 rates x 2 batch sizes x 2 seeds; the last varies first.
    assert len(points) == 16
    assert [str(point.folder.relative_to(tmp_path)) for point in points[:3]] == [
        "digits_fedavg/client.lr=0.1,client.batch_size=2/seed-3",
        "digits_fedavg/client.lr=0.1,client.batch_size=2/seed-5",
        "digits_fedavg/client.lr=0.1,client.batch_size=8/seed-3",
    ]
    last = points[-1]
    assert last.folder.parts[-3:] == ("digits_fedprox", "client.lr=0.2,client.batch_size=8", "seed-5")
    made = last.experiment
    assert (made.name, made.seed, made.rounds) == ("digits_fedprox", 5, 7)
    assert (made.client.lr, made.client.batch_size) == (0.2, 8)
    assert list(tmp_path.iterdir()) == []


def test_without_grid_and_seeds_a_file_is_one_point(tmp_path):
    (found,) = expand([DIGITS], out=tmp_path, overrides=["seed=4"])
    assert found.folder == tmp_path / "digits_fedavg" / "base" / "seed-4"
    assert found.experiment.seed == 4


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ('{kind="synthetic", clients=3}', "problem.dataset={kind=synthetic,clients=3}"),
        ("./plugins.py:NoData", "problem.dataset=._plugins.py:NoData"),
    ],
)
def test_folders_have_no_names_that_shells_stumble_over(plugins, value, name):
    (found,) = expand([DIGITS], out=plugins, grid={"problem.dataset": [value]})
    assert found.folder.parent.name == name


def test_long_names_are_cut_and_stay_apart(tmp_path):
    grid = {"problem.model": [f'{{kind="mlp", hidden=[{",".join(["64"] * 80)},{last}]}}' for last in (1, 2)]}
    names = [point.folder.parent.name for point in expand([DIGITS], out=tmp_path, grid=grid)]
    assert len(set(names)) == 2
    assert {len(name) for name in names} == {LONGEST}


def test_a_bad_point_is_named_beside_the_option(tmp_path):
    with pytest.raises(InputError) as caught:
        expand([DIGITS], out=tmp_path, grid={"client.batch_size": ["4"], "client.lr": ["0.1", "-1"]})
    assert caught.value.option == "client.lr"
    assert str(caught.value).endswith(f"(in {DIGITS}, client.batch_size=4, client.lr=-1)")


def test_the_seed_is_no_option_of_a_grid(tmp_path):
    with pytest.raises(InputError, match="pass --seeds"):
        expand([DIGITS], out=tmp_path, grid={"seed": [1, 2]})


@FORKED
@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_points_are_what_run_makes_of_them(plugins, workers):
    """Also with a plug-in from a file, and whatever other points do."""
    points = [
        point(plugins / "all" / "a"),
        point(plugins / "all" / "b", seed=1),
        point(plugins / "all" / "c", "strategy.kind=./plugins.py:Same"),
    ]
    heard: list[Outcome] = []
    outcomes = run_points(points, workers=workers, on_done=heard.append)
    assert [outcome.point for outcome in outcomes] == points
    assert sorted(outcome.point.folder for outcome in heard) == [one.folder for one in points]
    for outcome in outcomes:
        folder, again = outcome.point.folder, plugins / "alone" / outcome.point.folder.name
        result = fedsim.run(outcome.point.experiment, out=again)
        assert (outcome.status, outcome.skipped) == ("finished", False)
        assert outcome.summary | {"wall": 0} == result.summary | {"wall": 0}
        assert sorted(path.name for path in folder.iterdir()) == sorted(
            set(FILES) - {ADVERSARIAL, BEST, NEWCOMERS, OWN, PERSONAL, REPORT, ROWS, TRACEBACK, TRACKING}
        )
        assert rows_of(folder) == rows_of(again)
        for file in (MODEL, CONFIG):
            assert (folder / file).read_bytes() == (again / file).read_bytes()


@FORKED
def test_the_others_go_on_when_one_fails_or_dies(plugins, monkeypatch):
    """One worker, so that no other point runs while a process dies."""
    monkeypatch.setattr("fedsim.parallel.cores.given", lambda: 3)
    broken = ["Fails", "Dies"]
    points = [point(plugins / name, f"strategy.kind=./plugins.py:{name}") for name in broken]
    points.append(point(plugins / "NoData", "problem.dataset={kind='./plugins.py:NoData'}"))
    points.append(point(plugins / "refused", "selection.count=21"))  # of 20 clients, which only shows in the run
    points.append(point(plugins / "good"))
    fails, dies, empty, refused, good = run_points(points, workers=1)
    assert good.status == "finished"
    assert [outcome.status for outcome in (fails, dies, empty, refused)] == ["failed"] * 4
    assert ": ZeroDivisionError: on purpose, on 3 core (see " in fails.reason  # which is all, for the only worker
    assert dies.reason == "ended its process with exit code 9, twice: out of memory?"
    assert "EOFError: no data, on purpose" in (plugins / "NoData" / TRACEBACK).read_text()
    assert "ZeroDivisionError" in (plugins / "Fails" / TRACEBACK).read_text()
    assert refused.reason.startswith("selection.count = 21")
    assert not (plugins / "refused").exists()


@FORKED
def test_a_point_whose_process_dies_once_goes_on_from_its_checkpoint(plugins):
    made = point(plugins / "dies", "strategy.kind=./plugins.py:DiesOnce", "rounds=4", "checkpoint.every=1")
    (outcome,) = run_points([made], workers=1)
    assert (outcome.status, outcome.summary["rounds"]) == ("finished", 4)
    # Round 1 is not begun again, round 2 is, in which the first process died; round 0 is only asked for to be checked.
    assert [(plugins / "asked").read_text().split().count(number) for number in "123"] == [1, 2, 1]
    plain = point(plugins / "plain", "rounds=4")
    fedsim.run(plain.experiment, out=plain.folder)
    assert rows_of(made.folder) == rows_of(plain.folder)
    assert (made.folder / MODEL).read_bytes() == (plain.folder / MODEL).read_bytes()


@FORKED
def test_what_is_not_finished_begins_anew(tmp_path):
    """Over what a run leaves that was ended at any time, and what a failed one does."""
    whole = point(tmp_path / "whole")
    first = fedsim.run(whole.experiment, out=whole.folder)
    summaries = {name: {**first.summary, "status": name} for name in ("stopped", "diverged", "interrupted")}
    summaries["cut"] = summaries["absent"] = {}
    for name, summary in summaries.items():
        folder = tmp_path / name
        fedsim.run(whole.experiment, out=folder)
        (folder / METRICS).write_text('{"round": 1}\n')
        (folder / SUMMARY).write_text("{" if name == "cut" else json.dumps(summary))
    (tmp_path / "absent" / SUMMARY).unlink()
    early = tmp_path / "early"  # ended before it had a config, or with a traceback of data that could not be loaded
    early.mkdir()
    (early / TRACEBACK).write_text("of an earlier attempt")
    points = [Point(whole.experiment, tmp_path / name) for name in ("whole", *summaries, "early")]
    outcomes = run_points(points, workers=1)
    skipped = {outcome.point.folder.name for outcome in outcomes if outcome.skipped}
    assert skipped == {"whole", "stopped", "diverged"}
    statuses = {outcome.point.folder.name: outcome.status for outcome in outcomes}
    assert statuses == {name: name if name in skipped - {"whole"} else "finished" for name in statuses}
    assert outcomes[0].summary == json.loads((whole.folder / SUMMARY).read_text())
    for name in ("interrupted", "cut", "absent", "early"):
        assert rows_of(tmp_path / name) == rows_of(whole.folder)
        assert (tmp_path / name / MODEL).read_bytes() == (whole.folder / MODEL).read_bytes()
        assert not (tmp_path / name / TRACEBACK).exists()
    for name in ("stopped", "diverged"):
        assert rows_of(tmp_path / name) == [{"round": 1}]


def test_nothing_runs_where_one_point_cannot(tmp_path):
    other = point(tmp_path / "other")
    fedsim.run(other.experiment, out=other.folder)
    before = (other.folder / MODEL).read_bytes()
    (tmp_path / "file").write_text("in the way")
    fresh = point(tmp_path / "fresh")
    for bad, said in (
        (point(other.folder, "client.lr=0.2"), "another experiment has been run here"),
        (point(other.folder, seed=1), "another experiment has been run here"),
        (point(tmp_path / "file" / "below"), "is not a folder"),
        (fresh, "two points have this folder"),
    ):
        with pytest.raises(InputError, match=said):
            run_points([fresh, bad])
    with pytest.raises(InputError, match="workers = 0"):
        run_points([fresh], workers=0)
    assert not fresh.folder.exists()
    assert (other.folder / MODEL).read_bytes() == before


def test_a_sweep_of_finished_points_starts_no_process(monkeypatch, tmp_path):
    done = point(tmp_path / "done")
    fedsim.run(done.experiment, out=done.folder)
    monkeypatch.setattr("fedsim.running.sweep.Workers", None)
    (outcome,) = run_points([done])
    assert outcome.skipped
    (outcome,) = run_points([point(done.folder, "engine.cores=1")])  # which changes no number
    assert outcome.skipped
    assert run_points([]) == []


def test_a_worker_has_one_thread_though_pytorch_was_loaded_before():
    """By the script that calls a sweep, which every worker imports."""
    code = (
        "import torch; from fedsim.parallel.workers import take_cores; take_cores(1); "
        "from fedsim.parallel.cores import cores; print(cores(), torch.get_num_threads())"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout == "1 1\n", done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_workers_end_with_the_sweep(tmp_path, number, code):
    """Whatever ends it: else they would write into folders that the next sweep writes into."""
    arguments = [DIGITS, "--set", "rounds=1000000", "--set", "evaluation.every=0", "--out", str(tmp_path / "all")]
    process = subprocess.Popen(
        [sys.executable, "-m", "fedsim", "sweep", *arguments, "--workers", "1"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    metrics, began = tmp_path / "all" / "digits_fedavg" / "base" / "seed-0" / METRICS, time.monotonic()
    try:
        while not metrics.exists() or metrics.read_bytes().count(b"\n") < 3:
            assert process.poll() is None
            assert time.monotonic() - began < 60
            time.sleep(0.05)
        process.send_signal(number)
        # Workers share its standard error, which ends when all of them have.
        _, said = process.communicate(timeout=30)
    finally:
        with contextlib.suppress(ProcessLookupError):  # as it should be
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == code
    assert (b"interrupted; the same command with --out" in said) == (number == signal.SIGINT)


FUNCTIONS = """
name = "functions"
rounds = 3
strategy = "fedzo"
problem = {kind = "benchmark", dimension = 4, clients = 3}
client = {kind = "fedzo", steps = 2, estimator = {kind = "differences", count = 2}}
"""


@FORKED
def test_stacked_seeds_are_the_same_runs_and_are_done_once(tmp_path):
    path = tmp_path / "functions.toml"
    path.write_text(FUNCTIONS)

    def points(out: str, seeds: list[int]) -> list[Point]:
        return expand([path], out=tmp_path / out, grid={"client.lr": [0.1, 0.2]}, seeds=seeds)

    apart = points("apart", [0, 1, 2])
    for one in apart:
        fedsim.run(one.experiment, out=one.folder)
    first = run_points(points("stacked", [0]), workers=1, stack=True)
    assert [outcome.skipped for outcome in first] == [False] * 2
    outcomes = run_points(points("stacked", [0, 1, 2]), workers=1, stack=True)
    assert [outcome.skipped for outcome in outcomes] == [True, False, False] * 2
    for outcome, other in zip(outcomes, apart, strict=True):
        assert outcome.status == "finished"
        folder, single = outcome.point.folder, other.folder
        assert rows_of(folder) == rows_of(single)
        for file in (CONFIG, MODEL):
            assert (folder / file).read_bytes() == (single / file).read_bytes()


@FORKED
def test_stacked_seeds_fail_together(plugins):
    path = plugins / "functions.toml"
    path.write_text(FUNCTIONS.replace("rounds = 3", 'rounds = 3\nselection = {kind = "uniform", count = 9}'))
    points = expand([path], out=plugins / "out", seeds=[0, 1])
    outcomes = run_points(points, workers=1, stack=True)
    assert [(outcome.status, "count" in outcome.reason) for outcome in outcomes] == [("failed", True)] * 2


def test_examples_are_not_stacked(tmp_path):
    with pytest.raises(InputError, match="stack = digits_fedavg: only seeds of black boxes"):
        run_points([point(tmp_path / "seed-0")], stack=True)


@pytest.mark.parametrize(
    ("grid", "line"),
    [
        (5, "grid = int: name options with their values"),
        ({"rounds": 5}, "grid = rounds: 5: give a list of at least one value"),
        ({"client.lr": "0.1"}, "grid = client.lr: '0.1': give a list"),
        ({"rounds": []}, "grid = rounds: \\[\\]: give a list"),
    ],
)
def test_what_is_no_grid_is_refused(tmp_path, grid, line):
    with pytest.raises(InputError, match=line):
        expand([DIGITS], out=tmp_path, grid=grid)


def test_what_is_no_experiment_is_refused_alone_or_among_others(tmp_path):
    for given in (5, [DIGITS, 5]):
        with pytest.raises(InputError, match="experiments = int: name files, or hand over experiments"):
            expand(given, out=tmp_path)


@FORKED
def test_from_python_a_sweep_takes_experiments_and_gives_what_is_compared(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = fedsim.experiment(name="small", rounds=1, client=Sgd(epochs=1), partition={"kind": "iid", "clients": 3})
    grid = {"client.lr": [0.1, 0.2], "checkpoint.last": [False], "problem.model.hidden": [[3]], "strategy": ["fedavg"]}
    heard: list[Outcome] = []
    outcomes = fedsim.sweep(made, grid=grid, seeds=[0, 1], workers=1, on_done=heard.append)
    assert [outcome.status for outcome in outcomes] == ["finished"] * 4
    assert heard == outcomes
    folder = tmp_path / "runs" / "sweep-0" / "small"
    assert {path.name for path in folder.iterdir()} == {
        f"client.lr={lr},checkpoint.last=false,problem.model.hidden=[3],strategy=fedavg" for lr in (0.1, 0.2)
    }
    compared = fedsim.compare(outcomes)
    assert compared.differing == {"client.lr": (0.1, 0.2)}
    assert [len(group.runs) for group in compared.groups] == [2, 2]
    again = fedsim.sweep([made], grid=grid, seeds=[0, 1], workers=1, out=tmp_path / "runs" / "sweep-0")
    assert all(outcome.skipped for outcome in again)


@pytest.mark.parametrize(
    ("experiments", "grid", "line"),
    [
        ([3], {}, "experiments = int: name files, or hand over experiments"),
        ([fedsim.experiment(name="small")], {"client.lr": [{"kind": "x"}]}, "grid.client.lr = dict: give numbers"),
        ([fedsim.experiment(name="small")], {"client.lr": [-1]}, r"client.lr = -1.*\(in small, client.lr=-1\)"),
        ("nowhere.toml", {}, r"there is no such file \(in nowhere.toml\)"),
    ],
)
def test_a_sweep_of_what_is_no_experiment_is_refused(tmp_path, monkeypatch, experiments, grid, line):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=line):
        fedsim.sweep(experiments, grid=grid)
    assert list(tmp_path.iterdir()) == []


def test_a_class_that_the_processes_of_a_sweep_do_not_find_is_refused(tmp_path):
    @options
    class Within(Sgd):
        """Within a function."""

    with pytest.raises(InputError, match=r"client.kind = .*Within: other processes do not find this class; a sweep"):
        fedsim.sweep(fedsim.experiment(client=Within(epochs=1)), out=tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()
