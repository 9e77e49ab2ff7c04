"""The folder of a run: `runs/<name>-<n>/`, in which nothing is overwritten unless that is asked for.

config.toml         the experiment, with every option resolved, the versions, and checksums of the data
metrics.jsonl       one JSON object a completed round or evaluation, written when it is complete
model.safetensors   the final parameters, of a black box one vector x
best.safetensors    the best parameters by a measure, if they are asked for
own.safetensors     what each client has of the model for itself, a row a client; where something stays with them
end.safetensors     the state of a run that has had all its rounds, from which it can have more
summary.json        the final values; written last
clients.csv         what the final model comes to on each client, where clients are evaluated
newcomers.csv       the same of clients who never take part, if there are any
trace.json          staleness, participation, and when the first clients worked on which version of the model
curves.png          loss, accuracy, the value of a function against the round
partition.png       the label distribution of the clients; of supervised problems
personal.png        what the clients' own models come to; where they are judged
adversarial.png     an image before and after; of attacks
rows.csv            the rows as a table, where the tracker csv is asked for
tracking.json       what names the run to its trackers, where it has some
traceback.txt       where a run that failed was
report.html         all of this as a page; if it is asked for
checkpoints/        what a run that has not ended goes on from; see `fedsim.running.checkpoint`
tensorboard/        what the tracker tensorboard has written, where it is asked for

A file other than metrics.jsonl appears whole or not at all: it is written beside its place, then renamed.
"""

from __future__ import annotations

import csv
import math
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field, ValidationError

from fedsim.core.documents import parse_json, read_toml
from fedsim.core.errors import InputError
from fedsim.core.files import look, read_bytes, reason
from fedsim.core.folders import is_locked
from fedsim.core.measures import Asked, as_noted, is_measure
from fedsim.plots.evasion import ADVERSARIAL
from fedsim.plots.labels import PARTITION
from fedsim.plots.personal import PERSONAL
from fedsim.running.endings import ENDED
from fedsim.running.history import History, Row, fits_row, read_rows
from fedsim.trackers.csv import ROWS
from fedsim.trackers.tensorboard import EVENT_FILE, EVENTS

CONFIG, METRICS, MODEL, SUMMARY = "config.toml", "metrics.jsonl", "model.safetensors", "summary.json"
TRACE, CURVES, TRACEBACK, REPORT = "trace.json", "curves.png", "traceback.txt", "report.html"
BEST, OWN, END, CLIENTS = "best.safetensors", "own.safetensors", "end.safetensors", "clients.csv"
NEWCOMERS, TRACKING = "newcomers.csv", "tracking.json"
FILES = (
    *(CONFIG, METRICS, MODEL, BEST, OWN, END, SUMMARY, TRACE, CLIENTS, NEWCOMERS, CURVES, PARTITION, PERSONAL),
    *(ADVERSARIAL, ROWS, TRACKING, TRACEBACK, REPORT),
)
"""The names that a run writes, and beside those in `FOLDERS` the only ones that it ever removes."""
CHECKPOINTS = "checkpoints"
CHECKPOINT = re.compile(r"(\d{8,})-([0-9a-f]{32})\.safetensors")
"""The name of a checkpoint: its round, and the checksum of its content."""
HALF = re.compile(rf"\.{CHECKPOINT.pattern}\.\d+\.tmp")
"""What it is called before it is whole; see `write_whole`."""
FOLDERS: Mapping[str, tuple[re.Pattern[str], ...]] = {CHECKPOINTS: (CHECKPOINT, HALF), EVENTS: (EVENT_FILE,)}
"""Folders in that of a run, and what the files in them are called that are a run's."""
HALF_FILE = re.compile(rf"\.({'|'.join(map(re.escape, FILES))})\.\d+\.tmp")
"""The same of the other files."""


LARGEST = 2**30
"""Bytes of a summary or a trace that are read."""
Count = Annotated[int, Field(ge=0, lt=2**63)]
Moment = Annotated[float, Field(ge=0, le=1e10)]
"""Virtual seconds; the clock has no more."""
MEASURED = ("test_", "global_train_", "client_", "personal_", "newcomer_", "validation_", "best_")
"""How names in a summary begin that are those of numbers."""


def _rounds(text: str) -> str:
    if not re.fullmatch(r"\d{1,18}", text, re.ASCII):
        raise ValueError("is no count of rounds")
    return text


class _Work(BaseModel):
    client: Count
    version: Count
    start: Moment | None
    end: Moment | None
    used: Moment | None
    outcome: str


class _Trace(BaseModel):
    """What is drawn of a trace."""

    staleness: dict[Annotated[str, AfterValidator(_rounds)], Count]
    participation: list[Count]
    until: Moment
    timeline_clients: Count
    timeline: list[_Work]
    clients: list[str] = []
    """What clients are called, where the data say so."""


class StoredRun:
    """The files of a run, to be read. checkpoints: the folder for them, which need not be there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / CHECKPOINTS

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint, be it damaged."""
        return self.checkpoints.is_dir() and any(CHECKPOINT.fullmatch(path.name) for path in self.checkpoints.iterdir())

    def ended(self, config: Mapping[str, Any] | None = None) -> str | None:
        """How the run has ended, one of `ENDED`; None: it has not, or has been interrupted.

        config: what config.toml says, where it has been read already.
        """
        summary = self.summary()
        status = "" if summary is None else summary["status"]
        if summary is None or status not in ENDED or (status == "finished" and self._is_to_have_more(summary, config)):
            return None
        return status

    def status(self, config: Mapping[str, Any] | None = None) -> str:
        """How the run has ended, one of `ENDED`; or "running", "failed", or "interrupted".

        running: a living process holds it. failed: an error has ended it, of which it has the traceback. interrupted:
        by somebody, or its process was killed; where there are no locks (see `is_locked`) it may be running. config:
        what config.toml says, where it has been read already.
        """
        ended = self.ended(config)
        if ended is not None:
            return ended
        if self.is_held:
            return "running"
        return "failed" if (self.path / TRACEBACK).is_file() else "interrupted"

    @property
    def is_held(self) -> bool:
        """Whether a living process writes to this run, as far as can be told."""
        try:
            return is_locked(self.path / METRICS)
        except OSError:  # it has no rows, or none that can be read
            return False

    def _is_to_have_more(self, summary: Mapping[str, Any], config: Mapping[str, Any] | None) -> bool:
        """Whether config.toml asks for more rounds than the run has had, as when it has begun to be extended."""
        try:
            config = self.config() if config is None else config
        except InputError:
            return False
        asked, had = config.get("rounds"), summary.get("rounds")
        return isinstance(asked, int) and isinstance(had, int) and "duration" not in config and asked > had

    def summary(self) -> dict[str, Any] | None:
        """Read summary.json; None where there is none that a run has written."""
        try:
            found = parse_json(read_bytes(self.path / SUMMARY, LARGEST))
        except (OSError, ValueError):
            return None
        if not isinstance(found, dict) or not isinstance(found.get("status"), str):
            return None
        if not isinstance(found.get("reason", ""), str):
            return None
        return (
            found
            if all(fits_row(value) for name, value in found.items() if is_measure(name) or name.startswith(MEASURED))
            else None
        )

    def asked(self) -> Asked:
        """Which way the measures improve that the run was asked for, as it has noted. InputError: it has not."""
        resolved = self.config().get("resolved", {})
        found = as_noted(resolved.get("metrics", {}) if isinstance(resolved, dict) else None)
        if found is None:
            place = str(self.path / CONFIG)
            raise InputError("resolved.metrics", place, "is not as the run has written it; change it back")
        return found

    @property
    def is_ours(self) -> bool:
        """Whether a run has written this: its config.toml says under which version."""
        try:
            versions = self.config().get("versions")
        except InputError:
            return False
        return isinstance(versions, dict) and "fedsim" in versions

    def rows(self) -> list[Row]:
        """Read the rows of metrics.jsonl; a last line that was cut off is dropped."""
        return read_rows(self.path / METRICS)

    @property
    def history(self) -> History:
        """The same rows as a table, read when it is first asked something."""
        return History(self.path / METRICS)

    def trace(self) -> dict[str, Any] | None:
        """Read trace.json; None without it. InputError: it cannot be read."""
        path = self.path / TRACE
        try:
            found: dict[str, Any] = parse_json(read_bytes(path, LARGEST))
            if not isinstance(found, dict):
                raise ValueError("it is no table")
            _Trace.model_validate(found, strict=True)
        except FileNotFoundError:
            return None
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name = ".".join(map(str, first["loc"]))
            raise InputError("trace", str(path), f"no run has written this: {name}: {first['msg']}") from error
        except OSError as error:
            raise InputError("trace", str(path), f"cannot be read: {reason(error)}") from error
        except ValueError as error:
            raise InputError("trace", str(path), f"cannot be read: {error}") from error
        return found

    def clients(self) -> dict[str, list[Any]] | None:
        """Read clients.csv: its columns by name, of numbers but for what clients are called; None without it.

        A number that it does not have is None. InputError: it cannot be read.
        """
        path = self.path / CLIENTS
        try:
            lines = [*csv.reader(read_bytes(path, LARGEST).decode().splitlines(), strict=True)]
            names = lines[0] if lines else []
            columns = {name: [line[place] for line in lines[1:]] for place, name in enumerate(names)}
            return {name: texts if name == "name" else [*map(_number, texts)] for name, texts in columns.items()}
        except FileNotFoundError:
            return None
        except OSError as error:
            raise InputError("clients", str(path), f"cannot be read: {reason(error)}") from error
        except (ValueError, IndexError, csv.Error) as error:
            raise InputError("clients", str(path), f"no run has written this: {error}") from error

    def failure(self) -> str | None:
        """Read traceback.txt; None without it, or where it cannot be read."""
        try:
            return read_bytes(self.path / TRACEBACK, LARGEST).decode(errors="replace")
        except OSError:
            return None

    def config(self) -> dict[str, Any]:
        """Read config.toml. InputError: it is absent or not TOML."""
        path = self.path / CONFIG
        try:
            return read_toml(path)
        except OSError as error:
            raise InputError("run", str(path), f"cannot be read: {reason(error)}") from error
        except ValueError as error:
            raise InputError("run", str(path), f"is not TOML: {error}") from error


def _number(text: str) -> float | int | None:
    """A cell of clients.csv. ValueError: it has no finite number."""
    if not text:
        return None
    if re.fullmatch(r"-?\d{1,18}", text, re.ASCII):
        return int(text)
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is no number")
    return number


def open_run(path: Path) -> StoredRun:
    """Open the folder of an earlier run, to read it. InputError: there is no run in it."""
    if not is_run(path):
        inner = next((entry for entry in sorted(path.glob("*")) if is_run(entry)), None)
        remedy = "" if inner is None else f"; name one of the runs in it, such as {inner}"
        raise InputError("run", str(path), f"no run is there: it has neither {CONFIG} nor {METRICS}{remedy}")
    return StoredRun(path)


def is_run(path: Path) -> bool:
    """Whether `path` is the folder of a run."""
    found = (look(path / name, "run") for name in (CONFIG, METRICS))
    return any(one is not None and stat.S_ISREG(one.st_mode) for one in found)
