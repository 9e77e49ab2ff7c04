"""The folder of a strategy in an app: rows, checkpoints and what it came to, as of any run."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord

from fedsim.configuration.tables import Checkpointing
from fedsim.core.errors import DivergedError, InputError, StalledError
from fedsim.flower.records import tensors
from fedsim.flower.serving.run import Served
from fedsim.running.checkpoint import Keeper, UnusableError, newest
from fedsim.running.folder import EXISTS, RunFolder
from fedsim.running.history import Row, finite_or_nan
from fedsim.running.resume import differences
from fedsim.running.runner import finish, outcome, recording, versions
from fedsim.running.stored import is_run

FREE = ("name", "rounds", "app.duration", "app.checkpoint_every", "app.min_available_nodes", "resolved", "versions")
"""What may be another when a server goes on: tables and options."""
CALLED = {"app": "", "aggregation": "aggregator."}
"""Tables whose options are called otherwise by who makes a strategy."""


class AppFolder:
    """Where a served run leaves its rows and checkpoints. rows: of the whole run, those before a restart among them."""

    def __init__(self, folder: RunFolder, run: Served, when: Checkpointing) -> None:
        self._folder, self._run = folder, run
        self.rows = finite_or_nan(folder.rows())
        self._keeper = run.between = Keeper(folder, run, when)

    def add(self, row: Row) -> None:
        """Write down a row."""
        self.rows.append(row)
        self._folder.append(row)

    def end(self, status: str, reason: str, arrays: ArrayRecord) -> None:
        """Write down what the run came to; the summary is the last."""
        folder, run = self._folder, self._run
        if status == "interrupted":
            self._keeper.last()
        trace, summary = outcome(run, self.rows, status, reason)
        folder.write_trace(trace)
        folder.write_model({name: tensor.contiguous() for name, tensor in tensors(arrays).items()})
        finish(folder, self.rows, summary)


def hold_usable(path: Path, name: str, config: Mapping[str, Any]) -> None:
    """Refuse a folder in which no run can begin, and none that was interrupted go on. InputError: as of `kept_in`."""
    with _calling_it_checkpoint(path):
        if is_run(path):
            with RunFolder.reopen(path) as folder:
                _hold_same(path, folder, config)
        else:
            RunFolder.check(path, name)


@contextmanager
def kept_in(path: Path, name: str, config: Mapping[str, Any], run: Served, when: Checkpointing) -> Iterator[AppFolder]:
    """The folder of a run that begins, or, where the same has been interrupted, goes on from its last checkpoint.

    config: the tables of config.toml. InputError: another run is there, one that has ended, or something else.
    """
    with _calling_it_checkpoint(path):
        if is_run(path):
            with RunFolder.reopen(path) as folder, recording(folder):
                _hold_same(path, folder, config)
                found, damaged = newest(folder)
                if found is None:
                    folder.rewind()
                else:
                    run.restore(found.snapshot)
                    folder.rewind(found.position, found.rows, damaged)
                yield AppFolder(folder, run, when)
            return
        with RunFolder.create(path, name) as folder, recording(folder):
            folder.write_config(
                {**config, "versions": {"python": platform.python_version(), **versions(), "flwr": version("flwr")}}
            )
            folder.begin()
            yield AppFolder(folder, run, when)


@contextmanager
def _calling_it_checkpoint(path: Path) -> Iterator[None]:
    """Within this block what is wrong with the folder is said under the name of its option here."""
    try:
        yield
    except InputError as error:
        if error.option not in ("out", "resume", "run"):  # as commands call it
            raise
        remedy = "there is something else in it; name another folder" if error.remedy == EXISTS else error.remedy
        if isinstance(error, UnusableError):
            remedy = f"{error.__cause__}; name another folder, or remove this one to begin again"
        raise InputError("checkpoint", str(path), remedy) from error


def _hold_same(path: Path, folder: RunFolder, config: Mapping[str, Any]) -> None:
    ended = folder.ended()
    if ended is not None:
        raise InputError("checkpoint", str(path), f"the run in it has {ended}; name another folder")
    held = folder.config()
    if "model" not in held:
        raise InputError("checkpoint", str(path), "the run in it is not that of an app's server; name another folder")
    for option, given, before in differences(config, held):
        table, _, rest = option.partition(".")
        if table in FREE or option in FREE:
            continue
        if table == "model":
            remedy = f"the run in {path} has other arrays, by name, type and shape, or others are frozen in it"
            raise InputError("initial_arrays", f"{config['model']['arrays']} arrays", f"{remedy}; take those")
        called = CALLED.get(table, f"{table}.") + rest if rest else option
        raise InputError(called, given, f"the run in {path} has {before!r}; take that, or another folder")


def status_of(run: Served, error: BaseException | None) -> tuple[str, str]:
    """How a run has ended, and why."""
    if error is None:
        return run.vain or ("finished", "")
    if isinstance(error, DivergedError):
        return "diverged", str(error)
    if isinstance(error, StalledError):
        return "stalled", run.blaming(str(error))
    return "interrupted", f"interrupted after round {run.round}"
