"""Partitions are kept on the disk, under a hash of all that they come from."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

from fedsim.core import streams
from fedsim.core.cache import cache_folder, sources
from fedsim.core.data_files import read_arrays
from fedsim.core.errors import InputError
from fedsim.core.plugins import hold_returned
from fedsim.problems.datasets.base import Dataset
from fedsim.problems.partitions import base
from fedsim.problems.partitions.base import Partition, Partitioner


def cached_partition(partitioner: Partitioner, data: Dataset, seed: int, folder: Path | None = None) -> Partition:
    """Return `partitioner.split(data, seed)`, from the disk when it was made before.

    folder: where the files are; `FEDSIM_CACHE`, else `fedsim` in the user's cache folder when not given. A
    file is named by a hash of labels, owners, options, seed, NumPy's version and source, so none is ever
    stale, and where the source cannot be read there is none; a damaged one is made again, and a folder that cannot be
    written is done without.
    """
    key = _key(partitioner, data, seed) if partitioner.cached else None
    path = None if key is None else (folder or cache_folder()) / "partitions" / f"{key}.npz"
    stored = None if path is None else _stored(path, data)
    if stored is not None:
        return stored
    made = partitioner.split(data, seed)
    hold_returned("partition", "partitions", partitioner, "split", made, Partition)
    made.check(data)
    if path is not None:
        _store(path, made)
    return made


def _key(partitioner: Partitioner, data: Dataset, seed: int) -> str | None:
    kind = type(partitioner)
    source = sources((streams, base, sys.modules[__name__]), (kind,))
    if source is None:
        return None
    settings = dataclasses.asdict(partitioner)  # type: ignore[call-overload]
    named = [kind.__module__, kind.__qualname__, settings, seed, np.__version__, data.num_classes]
    digest = hashlib.blake2b(json.dumps(named, sort_keys=True, default=repr).encode(), digest_size=20)
    digest.update(source)
    for array in (data.y, data.y_test, data.owner, data.owner_test):
        digest.update(b"none" if array is None else f"{array.dtype}{array.shape}".encode())
        if array is not None:
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _stored(path: Path, data: Dataset) -> Partition | None:
    """Read the partition at `path`; None when there is none, or it is damaged."""
    try:
        stored = Partition(**read_arrays(path, "a partition"))
        stored.check(data)
    except (InputError, TypeError):
        return None
    return stored


def _store(path: Path, partition: Partition) -> None:
    """Write the partition so that a reader sees all of it or nothing; a folder not writable is left alone."""
    arrays = {name: array for name, array in vars(partition).items() if array is not None}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
    except OSError:
        return
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, **arrays)
        os.replace(temporary, path)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
