"""What takes long to make is kept on the disk, under a hash of all that it comes from."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from fedsim.core.files import StorageError, expanded, write_whole
from fedsim.core.plugins import DISTRIBUTION


def cache_folder() -> Path:
    """Return FEDSIM_CACHE, or XDG_CACHE_HOME/fedsim, or ~/.cache/fedsim."""
    named = os.environ.get("FEDSIM_CACHE")
    base = os.environ.get("XDG_CACHE_HOME")
    if named:
        return expanded(named, "FEDSIM_CACHE")
    return expanded(base or "~/.cache", "XDG_CACHE_HOME") / "fedsim"


def sources(modules: Iterable[ModuleType], classes: Iterable[type]) -> bytes | None:
    """A hash of the files of modules, and of those where classes and all that they inherit from are written.

    None: one of them has no file that can be read, such as a notebook's cell, so that a change would not be noticed;
    then what comes of it must not be kept.
    """
    names = {base.__module__ for cls in classes for base in cls.__mro__} - {"builtins"}
    found = hashlib.blake2b(digest_size=20)
    for module in (*modules, *map(sys.modules.get, sorted(names))):
        file = None if module is None else vars(module).get("__file__")
        if file is None or not Path(file).is_file():
            return None
        found.update(hashlib.blake2b(Path(file).read_bytes()).digest())
    return found.digest()


def digest(
    described: Sequence[object],
    device: torch.device,
    modules: Iterable[ModuleType],
    classes: Iterable[type],
    arrays: Iterable[NDArray[Any]],
) -> str | None:
    """A hash of a description, of arrays, of versions, and of `sources`; None where these have none."""
    source = sources(modules, classes)
    if source is None:
        return None
    versions = [importlib.metadata.version(package) for package in (DISTRIBUTION, "torch", "numpy")]
    found = hashlib.blake2b(json.dumps([*described, device.type, versions]).encode(), digest_size=20)
    found.update(source)
    for array in arrays:
        found.update(f"{array.dtype}{array.shape}".encode())
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()


def kept(
    kind: str, key: str | None, shape: tuple[int, int], made: Callable[[], Tensor], folder: Path | None = None
) -> Tensor:
    """Parameters of this shape, on the CPU: read from the file of this key, or made and then written.

    key: None for what is made each time. folder: where the file is, by default the folder `kind` in the cache folder. A
    damaged file is made again, and a folder that cannot be written is done without.
    """
    if key is None:
        return made().cpu()
    path = (folder or cache_folder() / kind) / f"{key}.safetensors"
    found = _stored(path, shape)
    if found is None:
        found = made().cpu()
        _store(path, found)
    return found


def _stored(path: Path, shape: tuple[int, int]) -> Tensor | None:
    """Read the parameters at `path`; None when there are none, or they are damaged."""
    try:
        found = load_file(path)["params"]
    except (OSError, KeyError, SafetensorError):
        return None
    return found if found.shape == shape and found.dtype == torch.float32 else None


def _store(path: Path, trained: Tensor) -> None:
    """Write the parameters whole; a folder that cannot be written is left alone."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, save({"params": trained.contiguous()}))
    except (OSError, StorageError):
        return
