"""Checkpoints: all that a run needs to go on after a crash, one file each, in the folder `checkpoints/` of the run.

checkpoints/<round>-<checksum>.safetensors holds the tensors of `Simulation.snapshot`, and in its metadata the rest, as
JSON (see `fedsim.core.graph`), and the format's number; nothing in it can be made to run. The file appears whole or not
at all, and its name has the BLAKE2b hash of its content, so that a file that was cut off or changed later is noticed. A
checkpoint belongs to a length of metrics.jsonl, to which that file is cut when the run goes on.

Cost: the time to write one is kept below 5 % of the run, by waiting 20 times as long as the last one took.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from io import BufferedReader
from operator import itemgetter
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from fedsim.configuration.tables import Checkpointing
from fedsim.core.errors import FedsimError, InputError, one_line, warn
from fedsim.core.files import StorageError, regular, settle, write_whole
from fedsim.core.graph import Document, GraphError, decode, encode
from fedsim.running.folder import RunFolder
from fedsim.running.stored import CHECKPOINT, CONFIG, END, METRICS

FORMAT = 5
"""Raised when a checkpoint of before can no longer be read: a storable class has another name or other fields, a
snapshot other parts, or a vector that crosses another name."""
SHARE = 20
"""How many times as long as the last checkpoint took must pass before the next, and at least `LEAST` seconds."""
LEAST = 1.0
LARGEST = 100_000_000
"""Bytes that the JSON of a safetensors file may have."""
SEAL, NO_SEAL = "checksum", "0" * 32
"""Where a file's metadata says its checksum, and what stands there while that is taken."""
TYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
}
"""Names that the format has for types of numbers."""


class DamagedError(FedsimError):
    """A checkpoint that cannot be used, and why."""


class FormatError(FedsimError):
    """A checkpoint that is whole, and that this version cannot read."""


class UnusableError(InputError):
    """A run that cannot go on, and can only be begun again."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    snapshot: of the simulation. position, rows: of metrics.jsonl, in bytes and in lines. config: the tables of
    config.toml.
    """

    snapshot: dict[str, Any]
    position: int
    rows: int
    config: dict[str, Any] = field(default_factory=dict)


def write(folder: Path, number: int, checkpoint: Checkpoint) -> Path:
    """Write the checkpoint after round `number` into a folder, which is made if it is not there; returns its place.

    When this returns the file is on the disk. StorageError: it cannot be written. TypeError: the snapshot holds an
    object that no checkpoint can.
    """
    content = _packed(_encoded(checkpoint))
    path = folder / f"{number:08d}-{_checksum(content)}.safetensors"
    try:
        folder.mkdir(exist_ok=True)
        write_whole(path, *content)
        settle(folder)
        settle(folder.parent)
    except OSError as error:
        raise StorageError(path, error) from error
    return path


def write_end(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint under a name that does not say its checksum, which is in its metadata instead.

    StorageError and TypeError: as `write`.
    """
    head, *rest = _packed(_encoded(checkpoint), {SEAL: NO_SEAL})
    seal = _checksum([head, *rest])
    write_whole(path, bytes(head).replace(_sealed(NO_SEAL), _sealed(seal), 1), *rest)


def read(path: Path) -> Checkpoint:
    """Read a checkpoint. DamagedError: it cannot be used. FormatError: another version wrote it."""
    from safetensors import SafetensorError, safe_open

    named = CHECKPOINT.fullmatch(path.name)
    try:
        with open(path, "rb", opener=regular) as file:
            wanted, found = _seal_of(file) if named is None else (named[2], _digest_of(file))
        if wanted != found:
            raise DamagedError(f"{path} is damaged: its checksum is another")
        with safe_open(path, "pt") as opened:
            text, written = opened.metadata()["graph"], opened.metadata().get("format", "1")  # which 1 does not say
            if written != str(FORMAT):
                raise FormatError(f"{path} has format {written}, and this version of fedsim reads format {FORMAT}")
            # Copies, as what is read lies in a map of the file, at any address.
            tensors = [opened.get_tensor(str(place)).clone() for place in range(len(opened.keys()))]
            document = Document(text, tensors)
        return Checkpoint(*decode(document))
    except (OSError, SafetensorError, GraphError, KeyError, TypeError) as error:
        raise DamagedError(f"{path} cannot be read: {one_line(error)}") from error


def listed(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the newest first."""
    if not folder.is_dir():
        return []
    found = [(int(named[1]), path) for path in folder.iterdir() if (named := CHECKPOINT.fullmatch(path.name))]
    return [path for _, path in sorted(found, key=itemgetter(0), reverse=True)]


def newest(folder: RunFolder) -> tuple[Checkpoint | None, list[Path]]:
    """The last checkpoint of a run from which it can go on, and those after it, which are damaged; None: it has none.

    UnusableError: it has some, of which none can be used.
    """
    paths, damaged = listed(folder.checkpoints), list[Path]()
    again = f"start again: fedsim run {folder.path / CONFIG} --out {folder.path} --force"
    for path in paths:
        try:
            found = read(path)
            if found.position > folder.size:
                raise DamagedError(f"{path} cannot be used: {METRICS} has lost rows that it counts")
        except FormatError as error:
            remedy = f"{error}; go on under the version that wrote it, or {again}"
            raise UnusableError("resume", str(folder.path), remedy) from error
        except DamagedError as error:
            if path == paths[-1]:
                raise UnusableError("resume", str(folder.path), f"{error}, and there is no other; {again}") from error
            damaged.append(path)
            warn(f"{error}; going on from the one before it")
        else:
            return found, damaged
    return None, []


class Run(Protocol):
    """What is kept: a run that can be written down between two rounds, and go on from there.

    round: how many are completed. told: rows of metrics that have been handed out. whole: no round is under way.
    """

    @property
    def round(self) -> int: ...  # noqa: D102
    @property
    def told(self) -> int: ...  # noqa: D102

    whole: bool

    def snapshot(self, *, copy: bool) -> dict[str, Any]:
        """Everything that it needs to go on; copy: False shares what is in it with the run."""
        ...


class Keeper:
    """Writes the checkpoints of a run into its folder when they are due; call it between two rounds.

    A checkpoint that cannot be written is said once, on standard error; the run and its earlier checkpoints stay.
    """

    def __init__(self, folder: RunFolder, run: Run, when: Checkpointing) -> None:
        self._folder, self._run, self._when = folder, run, when
        self._config = folder.config()
        self._written = run.round
        self._ended, self._took = time.perf_counter(), 0.0
        self._silent = self._hopeless = False

    def __call__(self) -> None:
        """Write a checkpoint if it is time to."""
        self._folder.hold_present()
        rounds, every = self._run.round - self._written, self._when.every
        if every is None:
            due = time.perf_counter() - self._ended >= max(LEAST, SHARE * self._took)
        else:
            due = 0 < every <= rounds
        if rounds and due:
            self.write()

    def last(self) -> None:
        """Write the checkpoint of a run that is interrupted, where that is between two rounds."""
        told = self._run.told == self._folder.appended
        if self._run.whole and told and self._run.round > self._written and self._when.every != 0:
            self.write()

    def write(self) -> None:
        """Write a checkpoint, and then remove those that are too many."""
        if self._hopeless:
            return
        began, number, folder = time.perf_counter(), self._run.round, self._folder
        try:
            snapshot = self._run.snapshot(copy=False)
            write(folder.checkpoints, number, Checkpoint(snapshot, folder.sync(), folder.appended, self._config))
            for path in listed(folder.checkpoints)[self._when.keep :]:
                path.unlink(missing_ok=True)
        except (OSError, StorageError) as error:
            self._warn(f"no checkpoint of round {number}: {error}")
        except TypeError as error:
            self._hopeless = True
            self._warn(f"this run has no checkpoints: {error}")
        self._written, self._ended = number, time.perf_counter()
        self._took = self._ended - began

    def end(self) -> None:
        """Write the state of a run that has had all its rounds into end.safetensors, unless that is not wanted."""
        if self._hopeless or self._when.every == 0 or not self._when.last or not self._run.whole:
            return
        try:
            snapshot = self._run.snapshot(copy=False)
            end = Checkpoint(snapshot, self._folder.sync(), self._folder.appended, self._config)
            write_end(self._folder.place(END), end)
        except (StorageError, TypeError) as error:
            self._warn(f"the state of the end is not kept: {error}", "the run cannot have more rounds")

    def _warn(self, text: str, so: str = "the run goes on") -> None:
        if not self._silent:
            warn(f"{text}; {so}")
        self._silent = True


def _encoded(checkpoint: Checkpoint) -> Document:
    return encode([getattr(checkpoint, part.name) for part in fields(Checkpoint)])


def _checksum(content: Iterable[bytes | memoryview]) -> str:
    found = hashlib.blake2b(digest_size=16)
    for part in content:
        found.update(part)
    return found.hexdigest()


def _digest_of(file: BufferedReader) -> str:
    """The checksum of the rest of a file."""
    return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _seal_of(file: BufferedReader) -> tuple[str, str]:
    """The checksum that a file says in its metadata, and that which it has. DamagedError: it says none."""
    size = file.read(8)
    head = file.read(min(int.from_bytes(size, "little"), LARGEST))
    seal = re.search(_sealed("([0-9a-f]{32})"), head)
    if seal is None:
        raise DamagedError("it has no checksum")
    found = hashlib.blake2b(size + head.replace(seal[0], _sealed(NO_SEAL), 1), digest_size=16)
    while part := file.read(2**20):
        found.update(part)
    return seal[1].decode(), found.hexdigest()


def _sealed(checksum: str) -> bytes:
    return f'"{SEAL}":"{checksum}"'.encode()


def _packed(document: Document, notes: Mapping[str, str] | None = None) -> list[bytes | memoryview]:
    """A safetensors file as its parts, one after the other, without copies of tensors."""
    # Widest first, so that each begins at a multiple of its numbers' size.
    order = sorted(range(len(document.tensors)), key=lambda place: -document.tensors[place].itemsize)
    header: dict[str, Any] = {"__metadata__": {**(notes or {}), "graph": document.text, "format": str(FORMAT)}}
    parts, begin = list[bytes | memoryview](), 0
    for place in order:
        tensor = document.tensors[place]
        part = _bytes(tensor)
        header[str(place)] = {
            "dtype": TYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, begin + part.nbytes],
        }
        begin += part.nbytes
        parts.append(part)
    text = json.dumps(header, separators=(",", ":")).encode()
    if len(text) > LARGEST:
        raise TypeError(f"what it holds beside numbers takes {len(text):,} bytes, more than the format allows")
    text += b" " * (-len(text) % 8)
    return [len(text).to_bytes(8, "little") + text, *parts]


def _bytes(tensor: Tensor) -> memoryview:
    flat: Any = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(flat)
