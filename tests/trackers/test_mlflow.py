"""The tracker for MLflow by MLflow itself, where it is installed: what it has of runs, in a database of these tests."""

from __future__ import annotations

import importlib.util
import json
import os
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

import fedsim
from fedsim.core.errors import InputError
from fedsim.running.stored import StoredRun
from fedsim.testing import conformance, small_experiment, small_problem

if importlib.util.find_spec("mlflow") is None:
    pytest.skip("mlflow is not installed", allow_module_level=True)

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of its own libraries
    from mlflow import MlflowClient

from fedsim.trackers import MLflow, TrackedRun

FOLDER = TemporaryDirectory()
URI = f"sqlite:///{FOLDER.name}/mlflow.db"
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module", autouse=True)
def client() -> Any:
    """A database, whose tables are made once."""
    with FOLDER, pytest.MonkeyPatch.context() as patched, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patched.chdir(FOLDER.name)  # artifacts go where the process is
        yield MlflowClient(tracking_uri=URI)


def found(folder: Path, experiment: str = "small") -> Any:
    """What MLflow has of the run in a folder."""
    client = MlflowClient(tracking_uri=URI)
    key = json.loads((folder / "tracking.json").read_text())["key"]
    place = client.get_experiment_by_name(experiment).experiment_id
    (run,) = client.search_runs([place], f"tags.`fedsim.key` = '{key}'")
    return run


def rows(folder: Path) -> list[dict[str, float]]:
    """The rows that MLflow has of the run in a folder."""
    client, run = MlflowClient(tracking_uri=URI), found(folder)
    columns = {name for row in StoredRun(folder).rows() for name in row}
    read: dict[tuple[int, int], dict[str, float]] = {}
    for name in columns:
        for metric in client.get_metric_history(run.info.run_id, name):
            assert name not in read.setdefault((metric.step, metric.timestamp), {})
            read[metric.step, metric.timestamp][name] = metric.value
    return [read[place] for place in sorted(read)]


TestMLflow = conformance(MLflow(uri=URI), read=rows)


def run(out: Path, **given: Any) -> fedsim.Result:
    track = [MLflow(uri=URI, model=True, patience=100.0)]
    return fedsim.run(small_experiment(2, track=track), problem=small_problem(), out=out, **given)


def test_a_run_has_parameters_tags_totals_and_files(client, tmp_path):
    result = run(tmp_path / "run")
    told = found(tmp_path / "run")
    assert (told.info.status, told.info.run_name) == ("FINISHED", "run")
    config = StoredRun(tmp_path / "run").config()
    assert told.data.params["client.lr"] == str(config["client"]["lr"])
    assert not [name for name in told.data.params if name.startswith(("track", "resolved", "versions"))]
    assert told.data.tags["versions.fedsim"] == config["versions"]["fedsim"]
    assert (told.data.tags["fedsim.strategy"], told.data.tags["fedsim.status"]) == ("fedavg", "finished")
    assert told.data.metrics["total_bytes_up"] == result.summary["total_bytes_up"]
    for name in ("config.toml", "metrics.jsonl", "summary.json", "curves.png", "model.safetensors"):
        there = Path(client.download_artifacts(told.info.run_id, name))
        assert there.read_bytes() == (tmp_path / "run" / name).read_bytes()


def test_runs_of_a_group_have_one_parent_and_end_as_they_ended(client, tmp_path):
    def kill(seen: fedsim.Round) -> None:
        raise KeyboardInterrupt

    group = tmp_path / "tries"
    run(group / "a" / "seed-0", group=group)
    run(group / "a" / "seed-1", group=group, callbacks=[kill])
    first, second = (found(group / "a" / f"seed-{seed}") for seed in (0, 1))
    assert (first.info.run_name, second.info.run_name) == ("a/seed-0", "a/seed-1")
    assert (first.info.status, second.info.status) == ("FINISHED", "KILLED")
    parent = client.get_run(first.data.tags["mlflow.parentRunId"])
    assert parent.info.run_id == second.data.tags["mlflow.parentRunId"]
    assert (parent.info.run_name, parent.info.status) == ("tries", "FINISHED")
    key = json.loads((group / "a" / "seed-1" / "tracking.json").read_text())["key"]
    options = {"name": "small", "rounds": 9, "another": 1}
    MLflow(uri=URI).begin(TrackedRun(key, "a/seed-1", 0.0, options=options))
    again = found(group / "a" / "seed-1")
    assert (again.info.run_id, again.info.status) == (second.info.run_id, "RUNNING")
    assert (again.data.params["rounds"], again.data.params["another"]) == ("2", "1")
    fedsim.resume(group / "a" / "seed-1", problem=small_problem())
    assert found(group / "a" / "seed-1").info.status == "FINISHED"


@pytest.mark.parametrize("uri", ["file:/nowhere", "./mlruns"])
def test_a_folder_is_refused_early_unless_mlflow_is_told_to_keep_runs_in_folders(monkeypatch, uri):
    with pytest.raises(InputError, match=r"^uri = .*: MLflow keeps no runs in folders any more; take sqlite:"):
        MLflow(uri=uri).check(True)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    MLflow(uri=uri).check(True)


def test_in_folders_a_row_and_a_total_are_there_once_too(monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = f"file:{tmp_path / 'kept'}"
    fedsim.run(small_experiment(2, track=[MLflow(uri=uri)]), problem=small_problem(), out=tmp_path / "run")
    client = MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name("small").experiment_id])
    told = {name: len(client.get_metric_history(run.info.run_id, name)) for name in run.data.metrics}
    assert (told["wall"], told["train_loss"], told["test_accuracy"], told["best_test_accuracy"]) == (2, 2, 1, 1)


def test_without_a_folder_there_is_no_model():
    with pytest.raises(InputError, match=r"^model = True: with save = False no model is kept"):
        MLflow(uri=URI, model=True).check(False)
