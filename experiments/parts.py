"""What comparisons in several parts have in common: runs, a table, a picture, and claims about the runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import typer
from rich.table import Table

from experiments.studies import Numbers, concluding, console, run_all, said
from fedsim.core.errors import InputError
from fedsim.core.near import name_one
from fedsim.running.stored import open_run
from fedsim.running.sweep import Outcome, Point

R = TypeVar("R")
Found = TypeVar("Found", covariant=True)


class Measure(Protocol[Found]):
    """What measures a part."""

    def __call__(
        self, out: Path, *, workers: int | None = None, on_done: Callable[[Outcome], None] | None = None
    ) -> Found:
        """Run what is not finished in `out` and read it all. FedsimError: a run failed."""
        ...


@dataclass(frozen=True)
class Claim(Generic[R]):
    """text: what is claimed. judge: the numbers in words, and whether they bear it out; None: nothing is demanded."""

    name: str
    text: str
    judge: Callable[[R], tuple[str, bool | None]]


@dataclass(frozen=True)
class Part(Generic[R]):
    """One comparison. folder: of its file and picture. name: of its folder of runs, its picture and its claims.

    needs_data: `measure` takes a data folder, too, without which it has nothing to run on.
    """

    folder: Path
    name: str
    measure: Measure[R]
    table: Callable[[R], Table]
    draw: Callable[[R, Path], None]
    claims: Sequence[Claim[R]]
    needs_data: bool = False

    @property
    def picture(self) -> Path:
        """Where its picture is."""
        return self.folder / f"{self.name}.png"


AnyPart = Part[Any]


def program(parts: Mapping[str, AnyPart], folder: Path) -> None:
    """Be the program `PART [--out FOLDER] [--workers N] [--picture FILE]`. folder: of all runs, where none is given."""
    one = typer.Argument(help=f"One of: {', '.join(parts)}.")
    runs = typer.Option(folder, help="Folder of all runs; those that are finished are not done again.")
    processes = typer.Option(None, min=1, help="Processes; by default one a core.")
    place = typer.Option(None, help="Where the picture goes; by default beside the program.")

    def main(part: str = one, out: Path = runs, workers: int | None = processes, picture: Path | None = place) -> None:
        """Run a part, print its table, draw its picture and check its claims."""
        with concluding() as judged:
            if part not in parts:
                raise InputError("part", part, name_one(part, parts))
            chosen = parts[part]
            results = chosen.measure(out / part, workers=workers, on_done=said)
            chosen.draw(results, chosen.picture if picture is None else picture)
            judged += [(claim.text, *claim.judge(results)) for claim in chosen.claims]
            console(140).print(chosen.table(results))

    typer.run(main)


NEAR = 0.02
"""How far below another accuracy counts as being there."""


def carry_out(
    groups: Iterable[Sequence[Point]],
    workers: int | None = None,
    on_done: Callable[[Outcome], None] | None = None,
) -> None:
    """Run what is not finished of groups of runs, of which some may diverge. FedsimError: a run failed."""
    run_all([point for own in groups for point in own], workers, on_done, accepted=("finished", "diverged"))


def accuracies(points: Sequence[Point]) -> Numbers:
    """Test accuracies after the last round, one a run; 0 where it has diverged."""
    found = [open_run(point.folder).summary() or {} for point in points]
    return np.array([one["test_accuracy"] if one["status"] == "finished" else 0.0 for one in found])
