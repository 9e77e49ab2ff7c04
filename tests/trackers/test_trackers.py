"""Trackers that need no server: what they have of a run, and that no tracker changes one."""

from __future__ import annotations

import csv
import json
import math
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

import fedsim
from fedsim.core.errors import InputError
from fedsim.flower.recipe import Recipe
from fedsim.reports.comparison import compare
from fedsim.running import runner
from fedsim.running.folder import RunFolder
from fedsim.running.seeds import run_seeds
from fedsim.running.stored import FILES, StoredRun
from fedsim.running.sweep import expand, run_points
from fedsim.running.tracking import Telling
from fedsim.testing import conformance, small_experiment, small_problem
from fedsim.trackers import CSV, Ending, Log, TensorBoard, TrackedRun, Tracker, courier, options


def table(folder: Path) -> list[dict[str, float]]:
    """The rows of a rows.csv."""
    with (folder / "rows.csv").open(newline="", encoding="utf-8") as file:
        return [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(file)]


def events(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    found.Reload()
    return found


def scalars(folder: Path) -> list[dict[str, float]]:
    """The rows that TensorBoard reads, in single precision, with metrics.jsonl's where they are those."""
    read, rows = events(folder), {}
    for tag in read.Tags()["scalars"]:
        for event in read.Scalars(tag):
            assert tag not in rows.setdefault((event.step, event.wall_time), {})
            rows[event.step, event.wall_time][tag] = event.value
    stored = StoredRun(folder.parent).rows()
    assert [step for step, _ in rows] == [row["round"] for row in stored]
    return [
        {name: row[name] if value == pytest.approx(row[name], rel=2**-24) else value for name, value in found.items()}
        for row, found in zip(stored, rows.values(), strict=True)
    ]


TestCSV = conformance(CSV(), read=table)
TestTensorBoard = conformance(TensorBoard(), read=lambda folder: scalars(folder / "tensorboard"))


def run(out: Path | None, *track: Any, seed: int = 0, **given: Any) -> fedsim.Result:
    made = small_experiment(3, track=list(track), evaluation={"every": 2}, seed=seed)
    return fedsim.run(made, problem=small_problem(), out=out, **given)


def test_a_table_has_columns_that_come_later_and_numbers_that_are_not_finite(tmp_path):
    log = CSV(delimiter=";").begin(TrackedRun("k", "run", 0.0, folder=tmp_path))
    log.add([{"round": 1, "loss": 0.1}])
    log.add([{"round": 2, "loss": math.nan}])
    path = tmp_path / "rows.csv"
    assert path.read_text() == "round;loss\n1;0.1\n2;nan\n"
    log.add([{"round": 3, "accuracy": 0.5}])
    assert path.read_text() == "round;loss;accuracy\n1;0.1;\n2;nan;\n3;;0.5\n"
    log.end(Ending("finished"))
    assert path.read_text() == "round;loss;accuracy\n1;0.1;\n2;nan;\n3;;0.5\n"


def test_tensorboard_has_options_summary_and_pictures_by_its_own_reader(tmp_path, picture):
    run(tmp_path / "runs" / "a", {"kind": "tensorboard", "folder": str(tmp_path / "told")})
    run(tmp_path / "other" / "a", {"kind": "tensorboard", "folder": str(tmp_path / "told")})
    first, second = sorted((tmp_path / "told").iterdir(), key=lambda path: len(path.name))
    assert (first.name, second.name) == (
        "a",
        f"a-{json.loads((tmp_path / 'other/a/tracking.json').read_text())['key'][:8]}",
    )
    read = events(first)
    assert read.Tags()["images"] == ["curves"]
    (image,) = read.Images("curves")
    assert (image.encoded_image_string, image.width, image.height, image.step) == (picture, 5, 7, 3)
    said = make_ndarray(read.Tensors("summary")[0].tensor_proto).item().decode()
    assert "| status | finished |" in said
    from tensorboard.plugins.hparams.metadata import SESSION_START_INFO_TAG, parse_session_start_info_plugin_data

    content = read.summary_metadata[SESSION_START_INFO_TAG].plugin_data.content
    given = parse_session_start_info_plugin_data(content).hparams
    assert given["client.lr"].number_value == StoredRun(tmp_path / "runs/a").config()["client"]["lr"]
    assert given["strategy.kind"].string_value == "fedavg"
    assert not [name for name in given if name.startswith(("track", "versions", "resolved"))]


@options
class Broken(Tracker):
    """Fails where it is told to."""

    where: str = "begin"

    def begin(self, run: TrackedRun) -> Log:
        self.fail("begin")
        return BrokenLog(self)

    def fail(self, where: str) -> None:
        if self.where == f"{where} hangs":
            threading.Event().wait(0.5)
        if self.where == f"{where} exits":
            raise SystemExit(3)
        if self.where == where:
            raise OSError(f"no way to https://me:secret@host/ in {where}")


class BrokenLog(Log):
    def __init__(self, tracker: Broken) -> None:
        self.tracker = tracker

    def add(self, rows) -> None:
        self.tracker.fail("add")
        for row in rows:
            row.clear()  # which must not be the run's

    def end(self, ending: Ending) -> None:
        self.tracker.fail("end")


UNLIKE = ("config.toml", "metrics.jsonl", "summary.json", "end.safetensors")
"""Files that say how long a run took, or its trackers."""


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("plain") / "run"
    run(out)
    return out


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("begin", "left out: OSError: no way to https://***@host/ in begin"),
        ("add", "left out: OSError: no way to https://***@host/ in add"),
        ("end", "left out: OSError: no way to https://***@host/ in end"),
        ("add exits", "left out: SystemExit: 3"),
        ("end hangs", "not waited for: not done after 0.05 s"),
        ("", ""),
    ],
)
def test_a_tracker_that_fails_is_said_once_and_changes_nothing(tmp_path, plain, capsys, where, said):
    result = run(tmp_path / "run", Broken(where=where, patience=0.05))
    assert result.status == "finished"
    lines = capsys.readouterr().err.splitlines()
    assert lines == ([f"fedsim: warning: tracker {__name__}:Broken is {said}"] if said else [])
    for name in FILES:
        if (plain / name).exists() and name not in UNLIKE:
            assert (plain / name).read_bytes() == (tmp_path / "run" / name).read_bytes(), name
    rows = [[{**row, "wall": 0} for row in StoredRun(path).rows()] for path in (plain, tmp_path / "run")]
    assert rows[0] == rows[1]
    assert courier.is_stuck() == (where == "end hangs")
    for stuck in courier.STUCK:
        stuck._thread.join()
    courier.STUCK.clear()


def test_an_interruption_while_a_tracker_is_waited_for_ends_the_waiting(tmp_path, monkeypatch, capsys):
    class Interrupted(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            raise KeyboardInterrupt

    monkeypatch.setattr(courier, "Event", Interrupted)
    assert run(tmp_path / "run", CSV()).status == "finished"
    assert capsys.readouterr().err == "fedsim: warning: tracker csv is not waited for: interrupted\n"
    courier.STUCK.clear()


def test_runs_with_other_trackers_are_alike(tmp_path):
    run(tmp_path / "one", CSV(), seed=0)
    run(tmp_path / "two", "csv", TensorBoard(patience=1.0), seed=1)
    assert len(compare([tmp_path / "one", tmp_path / "two"]).groups) == 1
    assert "track" not in small_experiment(3).resolved()
    recipes = [Recipe.of(small_experiment(3, track=track)) for track in ([], ["csv"])]
    assert recipes[0].digest == recipes[1].digest


def test_a_run_goes_on_with_other_trackers_and_those_get_all_of_it(tmp_path):
    def kill(seen: fedsim.Round) -> None:
        if seen.row["round"] == 2:
            raise KeyboardInterrupt

    out = tmp_path / "run"
    assert run(out, Broken(where="")).status == "finished"
    assert run(out, force=True, callbacks=[kill]).status == "interrupted"
    assert not (out / "tracking.json").exists()
    made = small_experiment(3, track=["csv"], evaluation={"every": 2})
    fedsim.resume(out, made, problem=small_problem())
    assert [row["round"] for row in table(out)] == [1, 2, 3]


class Kept(Log):
    def __init__(self) -> None:
        self.rows: list[Any] = []

    def add(self, rows) -> None:
        self.rows += rows

    def end(self, ending: Ending) -> None:
        self.ending = ending


@options
class Keeping(Tracker):
    """Keeps what it is told."""

    def begin(self, run: TrackedRun) -> Log:
        group = run.group
        RUNS.append((run.label, None if group is None else group.name, None if group is None else group.key))
        LOGS.append(Kept())
        return LOGS[-1]


RUNS: list[tuple[str, str | None, str | None]] = []
LOGS: list[Kept] = []


@pytest.fixture(autouse=True)
def nothing_kept() -> None:
    RUNS.clear()
    LOGS.clear()


def test_each_tracker_has_rows_of_its_own_without_infinities(tmp_path):
    couriers = courier.Couriers({"one": Keeping(), "two": Keeping()}, TrackedRun("k", "run", 0.0))
    told = Telling(couriers, None)
    told.row({"round": 1, "loss": math.inf, "gap": 0.5})
    told.end("finished", "", {})
    (first,), (second,) = (log.rows for log in LOGS)
    assert first is not second
    assert math.isnan(first["loss"])
    assert (first["gap"], second["gap"]) == (0.5, 0.5)


def test_a_run_that_fails_has_failed_for_its_trackers_too(tmp_path):
    with pytest.raises(RuntimeError, match="stop"):
        run(tmp_path / "run", Keeping(), callbacks=[stop])
    assert (LOGS[0].ending.status, LOGS[0].ending.reason) == ("failed", "RuntimeError: stop")
    assert [row["round"] for row in LOGS[0].rows] == [1]
    assert run(tmp_path / "other", Keeping()).status == LOGS[1].ending.status == "finished"
    assert LOGS[1].ending.numbers["rounds"] == 3
    assert LOGS[1].ending.model == tmp_path / "other" / "model.safetensors"


def test_what_is_written_last_is_told_too(tmp_path):
    run(tmp_path / "run", Keeping(), at_end=lambda folder: (folder / "report.html").write_text(""))
    assert LOGS[0].ending.files["report.html"] == tmp_path / "run" / "report.html"
    with pytest.raises(RuntimeError, match="stop"):
        run(tmp_path / "stopped", "csv", callbacks=[stop], at_end=stop)
    fedsim.resume(tmp_path / "stopped", problem=small_problem(), at_end=lambda folder: (folder / "last").touch())
    assert (tmp_path / "stopped" / "last").exists()


def test_runs_say_which_group_they_are_of(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(tmp_path / "runs" / "alone", Keeping())
    run(None, Keeping(), save=False)
    run(tmp_path / "tries" / "a" / "b", Keeping(), group=tmp_path / "tries")
    assert [seen[:2] for seen in RUNS] == [("alone", None), ("small-seed-0", None), ("a/b", "tries")]
    RUNS.clear()
    functions = small_experiment(1, track=[Keeping()], client={"kind": "fedzo"}, problem={"kind": "benchmark"})
    run_seeds(functions, [0, 1], out="both")
    (first, second) = sorted(RUNS)
    assert (first[:2], second[:2]) == (("seed-0", "both"), ("seed-1", "both"))
    assert first[2] == second[2] == json.loads((tmp_path / "both/tracking.json").read_text())["key"]


def test_points_of_a_sweep_are_a_group_and_are_the_same_with_other_trackers(tmp_path, monkeypatch):
    made = small_experiment(1, track=["csv"])
    points = expand(made, out=tmp_path / "sweep", grid={"client.lr": [0.1]}, seeds=[0])
    assert [(point.group, point.folder.parts[-3:]) for point in points] == [
        (tmp_path / "sweep", ("small", "client.lr=0.1", "seed-0"))
    ]
    place = RunFolder.create(points[0].folder, "run")
    place.write_config(points[0].experiment.resolved() | {"versions": {"fedsim": "0"}})
    place.write_summary({"status": "finished", "rounds": 1})
    others = expand(replace(made, track=()), out=tmp_path / "sweep", grid={"client.lr": [0.1]}, seeds=[0])
    assert run_points(others)[0].skipped
    broken = replace(others[0], experiment=replace(made, track=(Absent(),)), folder=tmp_path / "sweep" / "x")
    with pytest.raises(InputError, match=r"^track\.0\.kind = .*: needs no_such, .*pip install 'fedsim-lab\[extra\]'$"):
        run_points([broken])


@options
class Absent(Tracker):
    """Needs what is not there."""

    library: ClassVar[tuple[str, str]] = ("no_such", "extra")

    def begin(self, run: TrackedRun) -> Log:
        return Kept()


@pytest.mark.parametrize(
    ("track", "line"),
    [
        ([{"kind": "csv", "patients": 3.0}], "track.0.patients = 3.0: no such option here; .*patience"),
        ([{"kind": "csvs"}], "track.0.kind = csvs: not one of the installed trackers: csv, .*"),
        ({"kind": "csv"}, "track = .*: write each as a \\[\\[track\\]\\] table"),
        ([{"kind": "csv"}, {"kind": "csv", "api_key": "abc"}], r"track.1.api_key = \*\*\*: an experiment is no place"),
        ([{"kind": "csv", "a": {"Token": 1}}], r"track.0.a.Token = \*\*\*: an experiment"),
        ([{"kind": "csv", "a": ["http://me:abc@h/"]}], r"track.0.a.0 = http://\*\*\*@h/: an experiment"),
    ],
)
def test_what_cannot_be_used_is_refused_when_it_is_read_and_no_secret_is_shown(track, line):
    with pytest.raises(InputError, match=f"^{line}") as caught:
        small_experiment(3, track=track)
    assert "abc" not in str(caught.value)


@pytest.mark.parametrize(
    ("tracker", "line"),
    [
        (CSV(), "track.0.kind = csv: writes into the run folder"),
        (TensorBoard(), "track.0.folder = \\(nothing\\): with save = False"),
        (Absent(), "track.0.kind = .*: needs no_such, which is not installed: pip install 'fedsim-lab\\[extra\\]'"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_runs(tmp_path, monkeypatch, tracker, line):
    monkeypatch.setattr(runner, "build_simulation", None)
    with pytest.raises(InputError, match=f"^{line}"):
        run(None, tracker, save=False)


def test_a_tracker_is_named_once(tmp_path):
    with pytest.raises(InputError, match=r"^track.2.kind = csv: is the same as track.0; leave one out$"):
        run(tmp_path / "run", CSV(), TensorBoard(), CSV())
    assert not (tmp_path / "run").exists()


def test_what_no_run_has_written_is_refused(tmp_path):
    with pytest.raises(RuntimeError, match="stop"):
        run(tmp_path / "run", CSV(), callbacks=[stop])
    (tmp_path / "run" / "tracking.json").write_text('{"key": 1, "began": 2}')
    with pytest.raises(InputError, match=r"^track = .*tracking\.json: is not as a run has written it"):
        fedsim.resume(tmp_path / "run", problem=small_problem())


def stop(seen: fedsim.Round) -> None:
    raise RuntimeError("stop")


def test_a_replaced_run_leaves_nothing_to_its_trackers(tmp_path):
    out = tmp_path / "run"
    run(out, CSV(), TensorBoard())
    key = (out / "tracking.json").read_text()
    (out / "tensorboard" / "mine.txt").write_text("")
    run(out, force=True)
    assert [path.name for path in out.glob("tensorboard/*")] == ["mine.txt"]
    assert not (out / "rows.csv").exists()
    run(out, CSV(), force=True)
    assert (out / "tracking.json").read_text() != key
