"""The folder of a run: `runs/<name>-<n>/`, in which nothing is overwritten unless that is asked for.

config.toml         the experiment, with every option resolved, and the versions
metrics.jsonl       one JSON object a completed round or evaluation, written when it is complete
model.safetensors   the final parameters, of a black box one vector x
summary.json        the final values
trace.json          staleness, participation, and when the first clients worked on which version of the model
curves.png          loss, accuracy, the value of a function against the round
partition.png       the label distribution of the clients; of supervised problems
adversarial.png     an image before and after; of attacks
traceback.txt       where a run that failed was

A file other than metrics.jsonl appears whole or not at all: it is written beside its place, then renamed.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from fedsim.errors import FedsimError, InputError
from fedsim.history import History, Row, read_rows

if TYPE_CHECKING:
    from io import FileIO

    from torch import Tensor

CONFIG, METRICS, MODEL, SUMMARY = "config.toml", "metrics.jsonl", "model.safetensors", "summary.json"
TRACE, CURVES, PARTITION, TRACEBACK = "trace.json", "curves.png", "partition.png", "traceback.txt"
ADVERSARIAL = "adversarial.png"
FILES = (CONFIG, METRICS, MODEL, SUMMARY, TRACE, CURVES, PARTITION, ADVERSARIAL, TRACEBACK)
"""The names that a run writes, and the only ones that it ever removes."""
EXISTS = "this folder exists; choose another or pass --force"


class StorageError(FedsimError):
    """A file of the run cannot be written: a full or read-only disk. What was written before is kept."""

    def __init__(self, path: Path, error: OSError, kept: str = "") -> None:
        super().__init__(f"cannot write {path}: {_reason(error)}{kept}")


class RunFolder:
    """The files of one run. Made by `RunFolder.create` for a new run, by `open_run` to read an old one.

    As a context manager it closes metrics.jsonl; when it is left by an InputError it also discards itself.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._made: tuple[Path, ...] = ()  # folders that this object made, outermost first
        self._stale: tuple[str, ...] = ()  # files of an earlier run, removed at the first write
        self._kept: frozenset[str] = frozenset()  # files of ours in name only; never removed
        self._writing = False
        self._metrics: FileIO | None = None
        self._appended = 0

    @classmethod
    def create(cls, out: Path | None, name: str, *, force: bool = False, root: Path = Path("runs")) -> RunFolder:
        """Make the folder `out`, or without it the next free `root/<name>-<n>`.

        force: `out` may hold things. Files of an earlier run are removed at the first write, not before, so a
        run that is refused until then leaves the earlier one whole; other files are never removed.
        Raises InputError when `check` does, and when the folder cannot be made; then nothing is left behind.
        """
        cls.check(out, name, force=force, root=root)
        made: list[Path] = []
        try:
            if out is None:
                folder = cls(_next_free(root, name, made))
            else:
                folder = cls(out)
                if not out.is_dir():
                    _make(out, made)
            present = frozenset(entry.name for entry in folder.path.iterdir())
        except OSError as error:
            _remove_empty(made)
            place = root / name if out is None else out
            remedy = EXISTS if isinstance(error, FileExistsError) else f"cannot be made: {_reason(error)}"
            raise InputError("out", str(place), remedy) from error
        folder._made = tuple(made)
        ours = tuple(file for file in FILES if file in present)
        if is_run(folder.path):
            folder._stale = ours
        else:
            folder._kept = frozenset(ours)
        return folder

    @staticmethod
    def check(out: Path | None, name: str = "run", *, force: bool = False, root: Path = Path("runs")) -> None:
        """Raise an InputError, and make nothing, where `create` could not write."""
        if not name or not name.isprintable() or Path(name).name != name or name == "..":
            raise InputError("name", name, "it names a folder; give it at least one letter and no /")
        place = root if out is None else out
        try:
            held = next(path for path in (place.absolute(), *place.absolute().parents) if os.path.lexists(path))
            if not held.is_dir():
                raise InputError("out", str(place), f"{held} is not a folder; choose another place")
            if out is not None and held == out.absolute() and not force and any(out.iterdir()):
                raise InputError("out", str(out), EXISTS)
            disk = shutil.disk_usage(held)
        except OSError as error:
            raise InputError("out", str(place), f"cannot be used: {_reason(error)}") from error
        if not os.access(held, os.W_OK | os.X_OK):
            raise InputError("out", str(place), f"{held} cannot be written in; choose another place")
        if disk.total > 0 and disk.free == 0:
            raise InputError("out", str(place), "no space is left on this disk; choose another")

    def discard(self) -> None:
        """Undo `create`: remove what was written and the folders that were made, unless a round was logged.

        Anything else that lies in the folder stays, and so does then the folder.
        """
        self.close()
        if self._appended:
            return
        if self._writing:
            for file in FILES:
                if file not in self._kept:
                    (self.path / file).unlink(missing_ok=True)
        _remove_empty(self._made)

    def place(self, file: str) -> Path:
        """Give the path of one of `FILES`, about to be written; this removes an earlier run's files."""
        if file not in FILES:
            raise ValueError(f"{file} is not a file of a run; these are: {', '.join(FILES)}")
        self._writing = True
        for old in self._stale:
            try:
                (self.path / old).unlink(missing_ok=True)
            except OSError as error:
                raise StorageError(self.path / old, error) from error
        self._stale = ()
        return self.path / file

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write config.toml. TOML has no null: an option that is None is left out."""
        import tomli_w

        write_whole(self.place(CONFIG), tomli_w.dumps(_for_toml(config)).encode())

    def write_model(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
        """Write model.safetensors: named tensors of any shapes, from any device."""
        from safetensors.torch import save

        # safetensors refuses tensors that share memory, such as slices of one flat vector.
        apart = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        write_whole(self.place(MODEL), save(apart, metadata=dict(metadata or {})))

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json; a number that is not finite becomes null."""
        text = json.dumps(_for_json(summary), allow_nan=False, indent=2)
        write_whole(self.place(SUMMARY), f"{text}\n".encode())

    def write_trace(self, trace: Mapping[str, Any]) -> None:
        """Write trace.json."""
        write_whole(self.place(TRACE), f"{json.dumps(_for_json(trace), allow_nan=False)}\n".encode())

    def write_traceback(self, text: str) -> None:
        """Write traceback.txt."""
        write_whole(self.place(TRACEBACK), text.encode())

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row to metrics.jsonl, at once; a number that is not finite becomes null.

        StorageError: it cannot be written. The rows before it can still be read.
        """
        line = memoryview(f"{json.dumps(_for_json(row), allow_nan=False)}\n".encode())
        path = self.place(METRICS)
        try:
            if self._metrics is None:
                # "x": another process that was given the same empty folder must not mix its rows with ours.
                self._metrics = open(path, "xb", buffering=0)  # noqa: SIM115
            while line:
                line = line[self._metrics.write(line) :]
        except OSError as error:
            if self._metrics is not None:
                self._metrics.close()
                self._metrics = None
            raise StorageError(path, error, f"; the {self._appended} rows before it are kept") from error
        self._appended += 1

    def close(self) -> None:
        """Close metrics.jsonl; StorageError when the disk did not take what was written."""
        metrics, self._metrics = self._metrics, None
        if metrics is None:
            return
        try:
            with metrics:
                os.fsync(metrics.fileno())
        except OSError as error:
            raise StorageError(self.path / METRICS, error) from error

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
            found: dict[str, Any] = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise InputError("trace", str(path), f"cannot be read: {error}") from error
        return found

    def config(self) -> dict[str, Any]:
        """Read config.toml. InputError: it is absent or not TOML."""
        path = self.path / CONFIG
        try:
            return tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError("run", str(path), f"cannot be read: {_reason(error)}") from error
        except ValueError as error:
            raise InputError("run", str(path), f"is not TOML: {error}") from error

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, InputError):
            self.discard()
        else:
            self.close()


def open_run(path: Path) -> RunFolder:
    """Open the folder of an earlier run, to read it. InputError: there is no run in it."""
    if not is_run(path):
        raise InputError("run", str(path), f"no run is there: it has neither {CONFIG} nor {METRICS}")
    return RunFolder(path)


def is_run(path: Path) -> bool:
    """Whether `path` is the folder of a run."""
    return (path / CONFIG).is_file() or (path / METRICS).is_file()


def write_whole(path: Path, content: bytes) -> None:
    """Write or replace the file `path` so that no reader sees a part of it. StorageError: it cannot be."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            with open(beside, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(path, error) from error


def _next_free(root: Path, name: str, made: list[Path]) -> Path:
    if not root.is_dir():
        _make(root, made)
    number = 0
    while True:
        path = root / f"{name}-{number}"
        try:
            path.mkdir()
        except FileExistsError:
            number += 1
        else:
            made.append(path)
            return path


def _make(path: Path, made: list[Path]) -> None:
    """Make the folder `path` and its parents, and add to `made` those that were not there."""
    for parent in reversed(path.parents):
        if not parent.is_dir():
            try:
                parent.mkdir()
            except FileExistsError:
                continue  # another run made it in the meantime
            made.append(parent)
    path.mkdir()
    made.append(path)


def _remove_empty(made: Sequence[Path]) -> None:
    for path in reversed(made):
        if path.is_dir():
            if any(path.iterdir()):
                return
            path.rmdir()


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def _for_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _for_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_for_json(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # numbers of NumPy's or torch's
        return _for_json(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _for_toml(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _for_toml(item) for key, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [_for_toml(item) for item in value]
    return str(value) if isinstance(value, Path) else value
