"""A search over hyper-parameters, as `study.json` has it: what was tried, and what came of it.

Whoever shows a search reads this; Optuna, which makes the search, is not needed for it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from fedsim.core.errors import InputError
from fedsim.core.files import read_bytes, reason, write_whole
from fedsim.core.html import cell, html_table

STUDY = "study.json"
LARGEST = 2**28
"""Bytes of a study.json that are read."""
State = Literal["complete", "pruned", "failed", "running"]


@dataclass(frozen=True)
class Trial:
    """One choice of options, run under each of the search's seeds.

    options: by `table.option`, what was tried. state: `complete`; `pruned`, given up as worse than others; `failed`, as
    where it diverged; or `running`, also where it was interrupted and can go on. reason: why it was given up, or what
    failed. value: the mean of values; None unless complete. values: of the metric, one for each seed that came to its
    end. rounds, seconds: completed, and taken on the wall, in all its runs together. folder: has a run `seed-<k>` for
    each seed that was begun.
    """

    number: int
    options: Mapping[str, Any]
    state: State
    value: float | None
    values: tuple[float, ...]
    rounds: int
    seconds: float
    folder: Path
    reason: str = ""


@dataclass(frozen=True)
class Study:
    """A search: its trials, and the best of them.

    metric: what was looked at; higher_is_better: which way. space: by `table.option`, the text that says which values
    there are. sampler, pruner: who proposes, and who gives up; draws: the seed of the sampler. importance: of each
    option its share of what the complete trials differ in; None: not known. best: the number of the best of them.
    test: by measure the values of the best options, a seed each, on the test set, which nothing else has looked at;
    None: they have not been judged, or there is none.
    """

    metric: str
    higher_is_better: bool
    space: Mapping[str, str]
    seeds: tuple[int, ...]
    sampler: str
    pruner: str
    trials: tuple[Trial, ...] = ()
    importance: Mapping[str, float] | None = None
    best: int | None = None
    test: Mapping[str, tuple[float, ...]] | None = None
    draws: int = 0
    folder: Path = field(default=Path(), compare=False)
    """Where it was read from or written to."""

    @property
    def ranked(self) -> list[Trial]:
        """The complete trials, the best first; of equal ones the earlier."""
        sign = -1.0 if self.higher_is_better else 1.0
        known = [(sign * trial.value, trial.number, trial) for trial in self.trials if trial.value is not None]
        return [trial for _, _, trial in sorted(known, key=lambda entry: entry[:2])]

    @property
    def best_trial(self) -> Trial | None:
        """The trial whose number `best` is."""
        return next((trial for trial in self.trials if trial.number == self.best), None)

    def __repr__(self) -> str:
        best = self.best_trial
        said = [f"{len(self.trials)} trials"]
        if best is not None and best.value is not None:
            said.append(f"best {self.metric} {cell(best.value)} of trial {best.number}")
        return f"Study({', '.join([*said, str(self.folder)])})"

    def _repr_html_(self) -> str:
        headings = ("trial", "state", *self.space, self.metric, "rounds", "seconds")
        others = [trial for trial in self.trials if trial.value is None]
        return html_table(headings, map(self._line, [*self.ranked, *others]))

    def _line(self, trial: Trial) -> tuple[str, ...]:
        tried = (cell(trial.options.get(option)) for option in self.space)
        state = f"{trial.state}: {trial.reason}" if trial.reason else trial.state
        return (str(trial.number), state, *tried, cell(trial.value), str(trial.rounds), f"{trial.seconds:.1f}")


_READER: TypeAdapter[Study] = TypeAdapter(Study)


def read_study(folder: Path) -> Study | None:
    """Read the search in a folder; None: there is none. InputError: its study.json is none that was written so."""
    path = folder / STUDY
    try:
        found = _READER.validate_json(read_bytes(path, LARGEST), strict=True)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise InputError("study", str(path), f"cannot be read: {reason(error)}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(map(str, first["loc"])) or "it"
        raise InputError("study", str(path), f"no search has written this: {name}: {first['msg']}") from error
    trials = tuple(replace(trial, folder=folder / trial.folder) for trial in found.trials)
    return replace(found, trials=trials, folder=folder)


def write_study(study: Study, folder: Path) -> None:
    """Write study.json whole, with the trials' folders as they lie in this one. StorageError: it cannot be written."""
    told = asdict(study)
    del told["folder"]
    for trial, line in zip(study.trials, told["trials"], strict=True):
        line["folder"] = str(trial.folder.relative_to(folder) if trial.folder.is_relative_to(folder) else trial.folder)
    write_whole(folder / STUDY, f"{json.dumps(told, allow_nan=False, indent=1)}\n".encode())
