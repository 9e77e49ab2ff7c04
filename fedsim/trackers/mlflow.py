"""MLflow: metrics by round, parameters, tags, artifacts; runs of a sweep or of several seeds below one parent run.

A run is found again by its tag `fedsim.key`. Rows that MLflow has already, of a run that was interrupted and goes on,
are not told again, as it can take nothing back; nor are parameters, which stay as they were first told.
MLflow's telemetry to its makers is off, unless the environment has it on.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

from fedsim.core.errors import InputError
from fedsim.core.extras import library
from fedsim.core.options import options
from fedsim.trackers.base import Ending, Log, Row, TrackedRun, Tracker

METRICS, PARAMETERS = 1000, 100
"""How many a batch has at most."""
LONGEST = 5000
"""Letters of a tag or of a parameter."""
FILES = "MLFLOW_ALLOW_FILE_STORE"
"""What tells MLflow to keep runs in folders."""
STATUS: Mapping[str, str] = {"finished": "FINISHED", "stopped": "FINISHED", "interrupted": "KILLED"}
"""What MLflow calls an end; others have failed."""
KEY = "fedsim.key"


@options
class MLflow(Tracker):
    """Servers that want a name and a password have them from MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."""

    library: ClassVar[tuple[str, str]] = ("mlflow", "mlflow")

    uri: str | None = None
    """Where runs are kept, as sqlite:///mlflow.db or http://localhost:5000. Not given: where MLflow keeps them by
    itself, as MLFLOW_TRACKING_URI says, or in mlflow.db of the current folder.
    """
    experiment: str | None = None
    """MLflow's experiment, which is made if it is not there. Not given: the experiment's name."""
    model: bool = False
    """Have the final model among the artifacts, too."""

    def check(self, saved: bool) -> None:
        """See `Tracker.check`; MLflow must be able to keep runs there."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # which it reads when it is imported
        super().check(saved)
        if self.uri is not None and _is_folder(self.uri) and not _keeps_folders():
            raise InputError("uri", self.uri, "MLflow keeps no runs in folders any more; take sqlite:///mlflow.db")
        if self.model and not saved:
            raise InputError("model", True, "with save = False no model is kept; leave one of the two out")

    def begin(self, run: TrackedRun) -> Log:
        """Begin a run of MLflow's, or go on with the one that has this run's key."""
        from mlflow import MlflowClient

        tags, parent = {"fedsim.label": run.label, **run.tags}, None
        with nullcontext() if run.group is None else run.group.alone():  # one process makes a database, and the parent
            client = MlflowClient(tracking_uri=self.uri)
            place = _experiment(client, self.experiment or str(run.options.get("name", "fedsim")))
            if run.group is not None:
                parent = _found(client, place, run.group.key, run.group.name, run.group.began, {})
                tags["mlflow.parentRunId"] = parent
        return _MLflowRun(client, _found(client, place, run.key, run.label, run.began, tags), run, parent, self.model)


def _is_folder(uri: str) -> bool:
    """Whether an address is one of a folder, which databricks and the like are not."""
    return urlsplit(uri).scheme == "file" or (not urlsplit(uri).scheme and "/" in uri) or Path(uri).is_dir()


def _keeps_folders() -> bool:
    """Whether MLflow keeps runs in folders, which later versions do only if they are told to."""
    allowed = getattr(library("mlflow.environment_variables", "mlflow", "mlflow", "kind"), FILES, None)
    return allowed is None or bool(allowed.get())


class _MLflowRun(Log):
    """A run of MLflow's. number: its id. parent: of its parent run."""

    def __init__(self, client: Any, number: str, run: TrackedRun, parent: str | None, model: bool) -> None:
        from mlflow.entities import Metric, Param

        self._client, self._number, self._run, self._parent, self._model = client, number, run, parent, model
        self._metric = Metric
        self._columns: set[str] = set()
        self._last: Row = {"round": 0, "wall": 0.0}
        client.update_run(number, status="RUNNING")
        self.had = len(client.get_metric_history(number, "wall"))
        told = client.get_run(number).data.params
        fresh = iter([Param(name, str(value)[:LONGEST]) for name, value in run.options.items() if name not in told])
        while batch := list(islice(fresh, PARAMETERS)):
            client.log_batch(number, params=batch)
        for row in run.rows:
            self._see(row)

    def add(self, rows: Sequence[Row]) -> None:
        """Take the next rows, in as few calls as MLflow allows."""
        metrics: list[Any] = []
        for row in rows:
            self._see(row)
            own = list(self._metrics(row))
            if metrics and len(metrics) + len(own) > METRICS:
                self._client.log_batch(self._number, metrics=metrics)
                metrics = []
            metrics += own
        self._client.log_batch(self._number, metrics=metrics)

    def end(self, ending: Ending) -> None:
        """Take totals and best values as metrics, the status as a tag, and the files."""
        client, number = self._client, self._number
        summary = {name: value for name, value in ending.numbers.items() if name not in self._columns}
        client.log_batch(number, metrics=list(self._metrics(self._last, summary)))
        client.set_tag(number, "fedsim.status", ending.status)
        client.set_tag(number, "fedsim.reason", ending.reason[:LONGEST])
        files = [*ending.files.values(), *([ending.model] if self._model and ending.model is not None else [])]
        for path in files:
            client.log_artifact(number, str(path))
        client.set_terminated(number, STATUS.get(ending.status, "FAILED"))
        if self._parent is not None:
            client.set_terminated(self._parent)

    def _see(self, row: Row) -> None:
        self._columns |= row.keys()
        self._last = row

    def _metrics(self, row: Row, values: Row | None = None) -> Iterator[Any]:
        """The metrics of a row, or others at its place."""
        moment, step = int(1000 * self._run.moment(row)), int(row["round"])
        for name, value in (row if values is None else values).items():
            yield self._metric(name, float(value), moment, step)


def _experiment(client: Any, name: str) -> str:
    """The id of an experiment of MLflow's, which is made if it is not there."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name))
        except MlflowException:  # another process has made it meanwhile
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return str(found.experiment_id)


def _found(client: Any, place: str, key: str, name: str, began: float, tags: Mapping[str, str]) -> str:
    """The id of the run with a key in an experiment, which is made if it is not there."""
    runs = client.search_runs([place], f"tags.`{KEY}` = '{key}'", max_results=1)
    if runs:
        return str(runs[0].info.run_id)
    given = {name: value[:LONGEST] for name, value in ({KEY: key} | dict(tags)).items()}
    return str(client.create_run(place, int(1000 * began), given, name).info.run_id)
