"""Writing the folder of a run, in which nothing is overwritten unless that is asked for.

Its files are those of `fedsim.running.stored`. A file other than metrics.jsonl appears whole or not at all: it is
written beside its place, then renamed.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from datetime import date, time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

from fedsim.core.errors import InputError
from fedsim.core.files import GoneError, StorageError, look, reason, write_whole
from fedsim.core.folders import lock, make, next_free, remove_empty
from fedsim.running.stored import (
    BEST,
    CHECKPOINTS,
    CONFIG,
    FILES,
    FOLDERS,
    HALF,
    HALF_FILE,
    METRICS,
    MODEL,
    OWN,
    SUMMARY,
    TRACE,
    TRACEBACK,
    StoredRun,
    open_run,
)

if TYPE_CHECKING:
    from io import FileIO

    from torch import Tensor

EXISTS = "this folder exists; choose another or pass --force"


class RunFolder(StoredRun):
    """The files of one run that is written. Made by `create` for a new run, by `reopen` to go on with one.

    As a context manager it closes metrics.jsonl; when it is left by an InputError a new one also discards itself.
    appended: rows of metrics.jsonl so far.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.appended = 0
        self._made: tuple[Path, ...] = ()  # folders that this object made, outermost first
        self._stale: tuple[str, ...] = ()  # files of an earlier run, removed at the first write
        self._kept: frozenset[str] = frozenset()  # files of ours in name only; never removed
        self._writing = False
        self._metrics: FileIO | None = None
        self._opened: os.stat_result | None = None  # what metrics.jsonl was when it was opened

    @classmethod
    def create(cls, out: Path | None, name: str, *, force: bool = False, root: Path = Path("runs")) -> RunFolder:
        """Make the folder `out`, or without it the next free `root/<name>-<n>`.

        force: `out` may hold things. Files of an earlier run are removed at the first write, not before, so a
        run that is refused until then leaves the earlier one whole; other files are never removed, nor written over.
        Raises InputError when `check` does, and when the folder cannot be made; then nothing is left behind.
        """
        cls.check(out, name, force=force, root=root)
        made: list[Path] = []
        try:
            if out is None:
                folder = cls(next_free(root, name, made))
            else:
                folder = cls(out)
                if not out.is_dir():
                    make(out, made)
            present = frozenset(entry.name for entry in folder.path.iterdir())
        except OSError as error:
            remove_empty(made)
            place = root / name if out is None else out
            remedy = EXISTS if isinstance(error, FileExistsError) else f"cannot be made: {reason(error)}"
            raise InputError("out", str(place), remedy) from error
        folder._made = tuple(made)
        if folder.is_ours:
            folder._stale = tuple(file for file in (*FILES, *FOLDERS) if file in present)
        else:
            folder._kept = frozenset({*FOLDERS, TRACEBACK} & present)
        return folder

    @classmethod
    def reopen(cls, path: Path) -> RunFolder:
        """Open the folder of a run that is to go on; nothing in it changes before `rewind`.

        InputError: there is no run in it, or another process is writing to it.
        """
        folder = cls(open_run(path).path)
        try:
            folder._metrics = _held(path / METRICS)
            folder._opened = os.fstat(folder._metrics.fileno())
            lock(folder._metrics)
        except FileNotFoundError:
            pass
        except OSError as error:
            folder.close()
            raise InputError("resume", str(path), f"cannot go on: {reason(error)}") from error
        folder._kept = frozenset((*FILES, *FOLDERS))
        return folder

    @staticmethod
    def check(out: Path | None, name: str = "run", *, force: bool = False, root: Path = Path("runs")) -> None:
        """Raise an InputError, and make nothing, where `create` could not write."""
        if not name or not name.isprintable() or Path(name).name != name or name == "..":
            raise InputError("name", name, "it names a folder; give it at least one letter and no /")
        place = root if out is None else out
        look(place, "out")
        try:
            held = next(path for path in (place.absolute(), *place.absolute().parents) if os.path.lexists(path))
            if not held.is_dir():
                raise InputError("out", str(place), f"{held} is not a folder; choose another place")
            if out is not None and held == out.absolute() and any(out.iterdir()):
                if not force:
                    raise InputError("out", str(out), EXISTS)
                RunFolder(out).hold_replaceable()
            disk = shutil.disk_usage(held)
        except OSError as error:
            raise InputError("out", str(place), f"cannot be used: {reason(error)}") from error
        if not os.access(held, os.W_OK | os.X_OK):
            raise InputError("out", str(place), f"{held} cannot be written in; choose another place")
        if disk.total > 0 and disk.free == 0:
            raise InputError("out", str(place), "no space is left on this disk; choose another")

    def hold_replaceable(self) -> None:
        """Raise an InputError where this folder has files with names of ours that no run has written, or one writes."""
        names = [file for file in FILES if file != TRACEBACK and os.path.lexists(self.path / file)]
        if names and not self.is_ours:
            remedy = f"no run has written {names[0]} there, and only runs are replaced; choose another place"
            raise InputError("out", str(self.path), remedy)
        if METRICS in names:
            RunFolder.reopen(self.path).close()

    def rewind(self, position: int = 0, rows: int = 0, damaged: Sequence[Path] = ()) -> None:
        """Go on after the first `position` bytes of metrics.jsonl, which are `rows` rows; what came later is removed.

        And so is what a process that was ended has left half-written. damaged: checkpoints to be removed, too.
        StorageError: it cannot be removed.
        """
        try:
            if self._metrics is None:
                self.begin()
            else:
                self._metrics.truncate(position)
                self._metrics.seek(position)
            for path in (self.path / TRACEBACK, *damaged):
                path.unlink(missing_ok=True)
            self._remove_half_written()
            self._remove_from(CHECKPOINTS, HALF)
        except OSError as error:
            raise StorageError(self.path / METRICS, error) from error
        self.appended = rows

    def discard(self) -> None:
        """Undo `create`: remove what was written and the folders that were made, unless there is something to keep.

        That is a round that was logged, or a checkpoint of a run that has logged none yet.

        Anything else that lies in the folder stays, and so does then the folder.
        """
        self.close()
        if self.appended or (self._writing and self.has_checkpoint):
            return
        if self._writing:
            for file in (*FILES, *FOLDERS):
                if file not in self._kept:
                    self._remove(file)
        remove_empty(self._made)

    def place(self, file: str) -> Path:
        """Give the path of one of `FILES`, about to be written; this removes an earlier run's files."""
        if file not in FILES:
            raise ValueError(f"{file} is not a file of a run; these are: {', '.join(FILES)}")
        self._writing = True
        for old in self._stale:
            try:
                self._remove(old)
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
        write_whole(self.place(MODEL), _packed(tensors, metadata or {}))

    def write_best(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        """Write best.safetensors, as model.safetensors."""
        write_whole(self.place(BEST), _packed(tensors, metadata))

    def write_own(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        """Write own.safetensors, as model.safetensors."""
        write_whole(self.place(OWN), _packed(tensors, metadata))

    def write_text(self, file: str, text: str) -> None:
        """Write one of `FILES` that is text."""
        write_whole(self.place(file), text.encode())

    def remove(self, file: str) -> None:
        """Remove one of `FILES`, if it is there. StorageError: it cannot be."""
        try:
            self._remove(file)
        except OSError as error:
            raise StorageError(self.path / file, error) from error

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

    def begin(self) -> None:
        """Make metrics.jsonl, which from now on no other process writes to. StorageError: it cannot be made."""
        path = self.place(METRICS)
        try:
            # "x": another process that was given the same empty folder must not mix its rows with ours.
            self._metrics = open(path, "xb", buffering=0)  # noqa: SIM115
            self._opened = os.fstat(self._metrics.fileno())
            lock(self._metrics)
        except OSError as error:
            raise StorageError(path, error) from error

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row to metrics.jsonl, at once; a number that is not finite becomes null.

        StorageError: it cannot be written. The rows before it can still be read.
        """
        self.hold_present()
        line = memoryview(f"{json.dumps(_for_json(row), allow_nan=False)}\n".encode())
        if self._metrics is None:
            self.begin()
        metrics, path = cast("FileIO", self._metrics), self.path / METRICS
        try:
            while line:
                line = line[metrics.write(line) :]
        except OSError as error:
            self._metrics = None
            metrics.close()
            raise StorageError(path, error, f"; the {self.appended} rows before it are kept") from error
        self.appended += 1

    def hold_present(self) -> None:
        """Raise a GoneError where the folder is no longer where it was: nothing that is written arrives anywhere."""
        if self._opened is None:
            return
        try:
            there = os.path.samestat(self._opened, os.stat(self.path / METRICS))
        except FileNotFoundError:
            there = False
        except OSError as error:
            raise StorageError(self.path / METRICS, error) from error
        if not there:
            raise GoneError(self.path)

    @property
    def size(self) -> int:
        """Bytes of metrics.jsonl; 0 where there is none yet."""
        return 0 if self._metrics is None else os.fstat(self._metrics.fileno()).st_size

    def sync(self) -> int:
        """Have the disk take what metrics.jsonl has, and return how many bytes that are. StorageError: it does not."""
        if self._metrics is not None:
            try:
                os.fsync(self._metrics.fileno())
            except OSError as error:
                raise StorageError(self.path / METRICS, error) from error
        return self.size

    def tidy(self) -> None:
        """Remove the checkpoints of a run that has ended, and what was half-written. StorageError: it cannot be."""
        if not self.is_ours:
            return
        try:
            self._remove(CHECKPOINTS)
            self._remove_half_written()
        except OSError as error:
            raise StorageError(self.checkpoints, error) from error

    def _remove(self, name: str) -> None:
        """Remove a file, or of one of `FOLDERS` what is a run's and the folder, if nothing else is in it."""
        if name not in FOLDERS:
            (self.path / name).unlink(missing_ok=True)
        else:
            self._remove_from(name, *FOLDERS[name])
            remove_empty([self.path / name])

    def _remove_half_written(self) -> None:
        for path in self.path.iterdir():
            if HALF_FILE.fullmatch(path.name):
                path.unlink(missing_ok=True)

    def _remove_from(self, name: str, *called: re.Pattern[str]) -> None:
        folder = self.path / name
        for path in folder.iterdir() if folder.is_dir() and not folder.is_symlink() else ():
            if any(one.fullmatch(path.name) for one in called):
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close metrics.jsonl; StorageError when the disk did not take what was written."""
        metrics, self._metrics, self._opened = self._metrics, None, None
        if metrics is None:
            return
        try:
            with metrics:
                os.fsync(metrics.fileno())
        except OSError as error:
            raise StorageError(self.path / METRICS, error) from error

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, InputError):
            self.discard()
        else:
            self.close()


def _packed(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    from safetensors.torch import save

    # safetensors refuses tensors that share memory, such as slices of one flat vector.
    apart = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    content: bytes = save(apart, metadata=dict(metadata))
    return content


def _held(path: Path) -> FileIO:
    """Open a file to go on with it; a link is not followed, which may lead to a file that no run has written."""
    follow = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    return open(path, "r+b", buffering=0, opener=lambda place, flags: os.open(place, flags | follow))


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


def _for_toml(value: Any, option: str = "") -> Any:
    """A value as TOML has it. InputError: it has none such, as a function that is an option's default."""
    if isinstance(value, Mapping):
        inner = {str(key): item for key, item in value.items() if item is not None}
        return {key: _for_toml(item, f"{option}.{key}" if option else key) for key, item in inner.items()}
    if isinstance(value, (list, tuple)):
        return [_for_toml(item, option) for item in value]
    if not isinstance(value, str | int | float | date | time | Path):
        remedy = f"is a {type(value).__name__}, which a run folder cannot hold; take a text, a number or a list"
        raise InputError(option, value, remedy)
    return str(value) if isinstance(value, Path) else value
