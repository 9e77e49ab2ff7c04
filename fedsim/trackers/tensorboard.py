"""TensorBoard: scalars by round, the options as hyper-parameters, the summary as text, pictures.

Rows are written as they come, with their round as the step. The event files lie in `tensorboard/` of the run folder, so
that `tensorboard --logdir runs` shows each run by its folder; or below `folder`. A run that goes on is told anew from
its first row, in a file that takes back what stands in those before. Scalars are in single precision there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from fedsim.core.errors import InputError
from fedsim.core.extras import library
from fedsim.core.options import options
from fedsim.core.plugins import kind_of
from fedsim.trackers.base import Ending, Log, Row, TrackedRun, Tracker

EVENTS = "tensorboard"
"""The folder in that of a run."""
EVENT_FILE = re.compile(r"events\.out\.tfevents\..+")
PNG = b"\x89PNG\r\n\x1a\n"


@options
class TensorBoard(Tracker):
    """What is written is read by `tensorboard --logdir`."""

    library: ClassVar[tuple[str, str]] = ("tensorboard", "tensorboard")

    folder: str | None = None
    """Where event files are to lie, in a folder a run. Not given: in `tensorboard/` of the run folder."""

    def check(self, saved: bool) -> None:
        """See `Tracker.check`; without a run folder one must be named."""
        super().check(saved)
        library("tensorboard.summary.writer.event_file_writer", "tensorboard", kind_of("trackers", self), "kind")
        if self.folder is None and not saved:
            raise InputError("folder", "(nothing)", "with save = False there is no run folder; name one here")

    def begin(self, run: TrackedRun) -> Log:
        """Open a file of events in the run's folder; one that goes on takes back what stands in those before."""
        if self.folder is None:
            assert run.folder is not None  # see `check`
            return _Events(run.folder / EVENTS, run)
        place = Path(self.folder) / run.label
        return _Events(place if _is_free(place, run.key) else place.with_name(f"{place.name}-{run.key[:8]}"), run)


def _is_free(place: Path, key: str) -> bool:
    """Whether the event files in a folder are all of this run."""
    return all(path.name.endswith(f".{key}") for path in _files(place))


def _files(place: Path) -> list[Path]:
    """The event files in a folder."""
    return [path for path in place.glob("*") if EVENT_FILE.fullmatch(path.name)]


class _Events(Log):
    """A file of events."""

    def __init__(self, folder: Path, run: TrackedRun) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._run, self._event, self._summary = run, Event, Summary
        self._last, self._moment = 0, run.began
        goes_on = bool(_files(folder))
        folder.mkdir(parents=True, exist_ok=True)
        self._file = EventFileWriter(str(folder), filename_suffix=f".{run.key}")
        if goes_on:  # readers drop what stands in earlier files, from this step on
            self._write(session_log=SessionLog(status=SessionLog.START))
        plain = {
            name: value if isinstance(value, bool | int | float | str) else json.dumps(value)
            for name, value in run.options.items()
        }
        self._write(summary=hparams_pb(plain, trial_id=run.key, start_time_secs=run.began))
        self._write(summary=self._text("tags", run.tags))
        self._file.flush()

    def add(self, rows: Sequence[Row]) -> None:
        """Write the rows, each as one event."""
        for row in rows:
            self._last, self._moment = int(row["round"]), self._run.moment(row)
            values = [self._summary.Value(tag=name, simple_value=value) for name, value in row.items()]
            self._write(summary=self._summary(value=values))
        self._file.flush()

    def end(self, ending: Ending) -> None:
        """Write the summary, as text, and the pictures; close the file."""
        self._write(summary=self._text("summary", ending.summary))
        for name, path in ending.files.items():
            content = path.read_bytes() if path.suffix == ".png" else b""
            if content.startswith(PNG):
                width, height = (int.from_bytes(content[place : place + 4], "big") for place in (16, 20))
                image = self._summary.Image(width=width, height=height, colorspace=4, encoded_image_string=content)
                value = self._summary.Value(tag=name.removesuffix(".png"), image=image)
                self._write(summary=self._summary(value=[value]))
        self._file.close()

    def _write(self, **content: Any) -> None:
        self._file.add_event(self._event(wall_time=self._moment, step=self._last, **content))

    def _text(self, tag: str, table: Mapping[str, Any]) -> Any:
        """A table of names and values, in Markdown."""
        from tensorboard.compat.proto.tensor_pb2 import TensorProto
        from tensorboard.plugins.text.metadata import create_summary_metadata

        lines = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in table.items())]
        tensor = TensorProto(dtype="DT_STRING", string_val=["\n".join(lines).encode()])
        metadata = create_summary_metadata(display_name=tag, description="")
        return self._summary(value=[self._summary.Value(tag=tag, metadata=metadata, tensor=tensor)])
