"""What every tracker keeps to: a run with it is the run without, and it has each row once.

What it has is read by a function of its author's, from the run folder, which names the run in tracking.json.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar
from unittest.mock import patch

from fedsim.running.result import Callback, Result, Round
from fedsim.running.resume import resume
from fedsim.running.runner import run
from fedsim.running.stored import CONFIG, MODEL, TRACE, StoredRun
from fedsim.testing.problems import small_experiment, small_problem
from fedsim.testing.specimen import Specimen
from fedsim.trackers import courier
from fedsim.trackers.base import Row, Tracker

Read = Callable[[Path], Sequence[Row]]
"""The rows that a tracker has of the run in a folder, in their order."""
ROUNDS = 5
KILLED = 4
"""The row after which a run is killed; its last checkpoint is of the round before."""


class Following(Specimen):
    """A tracker that runs are told to. read: see `Read`; None: what it has is not looked at."""

    group: ClassVar[str] = "trackers"
    moving: ClassVar[bool] = False

    def __init__(self, plugin: Tracker, read: Read | None = None) -> None:
        super().__init__(plugin)
        self.read = read

    def comes_to(self) -> Any:
        """What a run with it comes to, which no option changes."""
        with TemporaryDirectory() as folder:
            result = self.run(Path(folder) / "run")
            return [result.params.numpy(), [_timeless(row) for row in result.history]]

    def run(self, out: Path, *, tracked: bool = True, callbacks: Sequence[Callback] = (), **given: Any) -> Result:
        """A run on `small_problem`, with a checkpoint every third round. AssertionError: the tracker was left out."""
        experiment = small_experiment(ROUNDS, checkpoint={"every": 3}, evaluation={"every": 1})
        experiment = replace(experiment, track=(self.plugin,) if tracked else ())
        with _heard():
            return run(experiment, problem=small_problem(), out=out, callbacks=callbacks, **given)

    def go_on(self, out: Path) -> Result:
        """The rest of a run. AssertionError: the tracker was left out."""
        with _heard():
            return resume(out, problem=small_problem())


def a_run_with_it_is_the_run_without(specimen: Following) -> None:
    """To the byte, but for the time that it took, and the tracker in its config.toml."""
    with TemporaryDirectory() as folder:
        without, with_it = (Path(folder) / name for name in ("without", "with"))
        specimen.run(without, tracked=False)
        specimen.run(with_it)
        for name in (MODEL, TRACE):
            assert (without / name).read_bytes() == (with_it / name).read_bytes(), f"{name} is another with it"
        for one, other in zip(StoredRun(without).rows(), StoredRun(with_it).rows(), strict=True):
            assert _timeless(one) == _timeless(other), f"row {one['round']} is another with it"
        configs = [StoredRun(path).config() for path in (without, with_it)]
        assert configs[0] == {name: table for name, table in configs[1].items() if name != "track"}, CONFIG


def each_row_is_there_once(specimen: Following) -> None:
    """As metrics.jsonl has it, of a run; of one that was killed after its last checkpoint; of one that was interrupted.

    When such a run goes on, rows that the tracker has already may take another time than they took.
    """
    with TemporaryDirectory() as folder:
        whole, killed, again = (Path(folder) / name for name in ("whole", "killed", "again"))
        specimen.run(whole)
        _hold_rows(specimen, whole)
        for out, error in ((killed, RuntimeError), (again, KeyboardInterrupt)):

            def kill(seen: Round, error: type[BaseException] = error) -> None:
                if seen.row["round"] == KILLED:
                    raise error

            try:
                specimen.run(out, callbacks=[kill])
            except RuntimeError:
                assert error is RuntimeError
            specimen.go_on(out)
            _hold_rows(specimen, out, but=("wall",))


def runs_do_not_mix(specimen: Following) -> None:
    """Two runs of a group, of which the second has replaced another."""
    with TemporaryDirectory() as folder:
        group = Path(folder) / "group"
        places = [group / "one" / "seed-0", group / "two" / "seed-0"]
        for place in (*places, places[1]):
            specimen.run(place, group=group, force=True)
        for place in places:
            _hold_rows(specimen, place)


def _hold_rows(specimen: Following, place: Path, but: Collection[str] = ()) -> None:
    """Compare what the tracker has of the run in a folder. but: columns that may differ."""
    if specimen.read is None:
        return
    wanted = [{name: _number(value) for name, value in row.items()} for row in StoredRun(place).rows()]
    found = [{name: _number(value) for name, value in row.items()} for row in specimen.read(place)]
    rounds = [[row.get("round") for row in rows] for rows in (found, wanted)]
    assert rounds[0] == rounds[1], f"of the run with the rounds {rounds[1]} it has {rounds[0]}"
    for one, other in zip(found, wanted, strict=True):
        names = [name for name in {**one, **other} if name not in but and one.get(name) != other.get(name)]
        assert not names, (
            f"of round {other['round']} it has {names[0]} = {one.get(names[0])}, not {other.get(names[0])}"
        )


def _number(value: Any) -> Any:
    """A number as it is compared: None for one that was not finite."""
    return None if value is None or math.isnan(value) else value


def _timeless(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "wall"}


@contextmanager
def _heard() -> Iterator[None]:
    """Within this block a tracker that is left out is an AssertionError."""
    said: list[str] = []
    with patch.object(courier, "warn", said.append):
        yield
    assert not said, said[0]


CHECKS = (a_run_with_it_is_the_run_without, each_row_is_there_once, runs_do_not_mix)
