"""What every data set keeps to: its arrays, its files, and a model that is trained on it."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import numpy as np
import pytest
from torch import nn

from fedsim.configuration.tables import experiment
from fedsim.core.data_files import Array, DataFolder
from fedsim.core.errors import InputError
from fedsim.core.options import options
from fedsim.core.streams import Streams
from fedsim.problems.datasets.base import Dataset
from fedsim.running.runner import run
from fedsim.testing.rounds import copied, same
from fedsim.testing.specimen import Specimen

NOISE = 1000
"""Bytes of a file that says nothing."""
CLIENTS, WIDTH = 3, 2
FILES = 3
"""Files of a folder that are damaged, one after the other."""


@options
class Linear:
    """A model for inputs of any kind: one layer, of tokens over embeddings of them."""

    each: bool = False
    """Outputs are of each token."""

    def build(self, shape: tuple[int, ...], outputs: int, vocabulary: int) -> nn.Module:
        """See `fedsim.problems.models.Model`."""
        numbers = math.prod(shape)
        flat = [nn.Flatten(), nn.Linear(numbers * (WIDTH if vocabulary else 1), outputs)]
        layers: list[nn.Module] = [nn.Linear(WIDTH, outputs)] if self.each else flat
        return nn.Sequential(*([nn.Embedding(vocabulary, WIDTH)] if vocabulary else []), *layers)


class Loading(Specimen):
    """A data set that is read from a folder. folder: None: the one that FEDSIM_DATA names."""

    group: ClassVar[str] = "datasets"

    def __init__(self, plugin: Any, folder: Path | None = None) -> None:
        super().__init__(plugin)
        self.folder = folder

    def comes_to(self) -> Any:
        """The arrays and what is said of them."""
        return self.load()

    def load(self) -> Dataset:
        """Load it."""
        dataset: Dataset = self.plugin.load(DataFolder(self.folder))
        return dataset

    def excuse(self, error: InputError) -> str | None:
        """Where nobody has said where its files are, nothing can be said of it."""
        return str(error) if self.folder is None and error.option == "data-dir" else None


class Watched(DataFolder):
    """A data folder that may find other files and folders in the place of those that it notes."""

    def __init__(self, path: Path | None, instead: dict[Path, Path] | None = None) -> None:
        super().__init__(path)
        object.__setattr__(self, "instead", instead or {})

    instead: dict[Path, Path]

    def _noted(self, place: Path) -> Path:
        super()._noted(place)
        return self.instead.get(place, place)


def its_arrays_fit_each_other(specimen: Loading) -> None:
    """Inputs float32, or int64 tokens below `vocabulary`; labels int64 below `num_classes`, or float32."""
    data = specimen.load()
    assert isinstance(data, Dataset), f"load returns a {type(data).__name__}, not a Dataset"
    assert len(data.x), "there is no training example"
    for part, x, y in (("x", data.x, data.y), ("x_test", data.x_test, data.y_test)):
        wanted = np.int64 if data.vocabulary else np.float32
        assert x.dtype == wanted, f"{part} is {x.dtype}, not {np.dtype(wanted)}"
        if data.vocabulary:
            assert not len(x) or 0 <= x.min() <= x.max() < data.vocabulary, f"{part} has tokens that are no symbols"
        labels = np.int64 if data.num_classes else np.float32
        assert y.dtype == labels, f"the labels of {part} are {y.dtype}, not {np.dtype(labels)}"
    assert data.num_classes != 1, "everything is of one class"
    assert not data.num_classes or len(np.unique(data.y)) > 1, "all training examples are of one class"


def owners_are_numbered_from_zero(specimen: Loading) -> None:
    """Int64, and each of them has an example to train on."""
    data = specimen.load()
    if data.owner is None:
        assert data.owner_test is None, "test examples have owners, and training examples have none"
        return
    for name, owner in (("owner", data.owner), ("owner_test", data.owner_test)):
        assert owner is None or owner.dtype == np.int64, f"{name} is {getattr(owner, 'dtype', None)}, not int64"
    held = np.unique(data.owner)
    assert held.tolist() == list(range(len(held))), f"owners are {held[:10].tolist()}..., not 0 to {len(held) - 1}"
    strange = [] if data.owner_test is None else np.setdiff1d(data.owner_test, held).tolist()
    assert not strange, f"owners {strange[:10]} have test examples and none to train on"


def what_is_tested_was_not_trained_on(specimen: Loading) -> None:
    """Of the test examples not all are training examples, too."""
    data = specimen.load()
    if not len(data.x_test):
        return
    seen = {example.tobytes() for example in _examples(data.x, data.y)}
    again = sum(example.tobytes() in seen for example in _examples(data.x_test, data.y_test))
    assert again < len(data.x_test), "every test example is a training example, too"


def _examples(x: Array, y: Array) -> Iterator[Array]:
    flat = x.reshape(len(x), -1).astype(np.float64)
    return iter(np.concatenate([flat, y.reshape(len(y), -1)], axis=1))


def what_is_done_to_the_arrays_does_not_come_back(specimen: Loading) -> None:
    """They belong to who has loaded them: loaded again they are what they were."""
    data = specimen.load()
    expected = copied(data)
    for array in (data.x, data.y, data.x_test, data.y_test, data.owner, data.owner_test):
        if array is not None and array.flags.writeable:
            array[...] = 0
    assert same(copied(specimen.load()), expected), "what was done to the arrays is there when they are loaded again"


def a_damaged_file_is_one_line(specimen: Loading) -> None:
    """An InputError that names it, if it is empty or noise; half of it may be less data, and is no other error."""
    with _copies(specimen) as copies:
        if not copies:
            pytest.skip("it reads no file of a data folder")
        for copy in copies:
            sound, noise = copy.file.read_bytes(), Streams(0).generator("noise").bytes(NOISE)
            for content, said in ((b"", "is empty"), (noise, "is noise"), (sound[: len(sound) // 2], "is cut in half")):
                copy.file.write_bytes(content)
                line = _refused(specimen, copy, said)
                if said != "is cut in half":
                    assert line is not None, f"{copy.place} {said}, and nobody notices"
                    assert copy.file.name in line, f"{copy.place} {said}, and the error does not name it: {line}"
                assert line is None or "\n" not in line, f"{copy.place} {said}, which takes more than a line: {line}"


def _refused(specimen: Loading, copy: _Copy, said: str) -> str | None:
    """What the InputError says with which a damaged file is refused; None if it is not."""
    try:
        specimen.plugin.load(copy.folder)
    except InputError as error:
        return str(error)
    except Exception as error:
        raise AssertionError(f"{copy.place} {said}, which ends in {type(error).__name__}: {error}") from error
    return None


def an_absent_file_is_one_line(specimen: Loading) -> None:
    """In a folder without its files, an InputError; a data set that needs none is loaded from anywhere."""
    watched = Watched(specimen.folder)
    specimen.plugin.load(watched)
    with TemporaryDirectory() as empty:
        nowhere = Watched(Path(empty))
        line = None
        try:
            specimen.plugin.load(nowhere)
        except InputError as error:
            line = str(error)
        if line is None:
            elsewhere = {place.resolve() for place in nowhere.found} == {place.resolve() for place in watched.found}
            assert elsewhere, "its files are absent, and nobody notices; look for them with the folder it is handed"
        assert line is None or "\n" not in line, f"it says in more than a line that a file is absent: {line}"


def a_model_is_trained_on_it(specimen: Loading) -> None:
    """For a round, by a few clients, and judged: nothing of it is not finite."""
    data = specimen.load()
    model = {"kind": f"{Linear.__module__}:{Linear.__name__}", "each": data.places != ()}
    tables: dict[str, Any] = {
        "problem": {"dataset": specimen.table, "model": model},
        "partition": {"kind": "iid", "clients": min(CLIENTS, len(data.x))},
        "client": {"kind": "sgd", "steps": 2, "batch_size": 4, "lr": 1e-3},
        "engine": {"device": "cpu"},
    }
    made = experiment(data_dir=specimen.folder, rounds=1, **tables)
    result = run(made, save=False)
    assert result.status == "finished", f"a run on it has {result.status}: {result.reason}"


@dataclass(frozen=True)
class _Copy:
    """A file that a data set reads. file: a copy of it. folder: where the data set finds this one in its place."""

    place: Path
    file: Path
    folder: DataFolder


@contextmanager
def _copies(specimen: Loading) -> Iterator[list[_Copy]]:
    """Of each file that it finds a copy."""
    watched = Watched(specimen.folder)
    specimen.plugin.load(watched)
    root = None if watched.path is None else watched.path.expanduser().resolve()
    with TemporaryDirectory() as scratch:
        copies = []
        for number, place in enumerate(dict.fromkeys(watched.found)):
            files = sorted(file for file in place.rglob("*") if file.is_file()) if place.is_dir() else [place]
            for file in files[:FILES]:
                into = Path(scratch) / f"{number}-{file.name}"
                if root is not None and file.is_relative_to(root):
                    copies.append(_Copy(file, _mirrored(root, file, into), Watched(into)))
                else:
                    copy = _mirrored(place.parent, file, into)
                    copies.append(_Copy(file, copy, Watched(specimen.folder, {place: into / place.name})))
        yield copies


def _mirrored(root: Path, file: Path, into: Path) -> Path:
    """Copy a file below a folder to the same place below another, where all else leads to what it was."""
    into.mkdir()
    first, *rest = file.relative_to(root).parts
    for inner in root.iterdir():
        if inner.name != first:
            (into / inner.name).symlink_to(inner)
    if rest:
        return _mirrored(root / first, file, into / first)
    shutil.copy(file, into / first)
    return into / first


CHECKS = (
    its_arrays_fit_each_other,
    owners_are_numbered_from_zero,
    what_is_tested_was_not_trained_on,
    what_is_done_to_the_arrays_does_not_come_back,
    a_damaged_file_is_one_line,
    an_absent_file_is_one_line,
    a_model_is_trained_on_it,
)
