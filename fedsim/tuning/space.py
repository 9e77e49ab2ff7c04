"""What is searched: options, and of each the values that there are."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedsim.core.errors import InputError
from fedsim.running.sweep import parse_grid

if TYPE_CHECKING:
    from optuna import Trial

GRAMMAR = "write LOW..HIGH, log:LOW..HIGH, int:LOW..HIGH, int-log:LOW..HIGH, or values: A,B,C"
KINDS = {"": (False, False), "log": (False, True), "int": (True, False), "int-log": (True, True)}
"""Of each word before a range: whether its numbers are whole, and whether they are drawn by their logarithm."""
MEASURED = ("evaluation", "stopping", "partition.validation", "partition.validation_clients", "partition.newcomers")
"""What decides how a trial is measured, and must be the same for all."""
LENGTH = ("name", "seed", "rounds", "duration", "checkpoint")
"""What says nothing of how something is learnt, or lets some learn longer than others."""


@dataclass(frozen=True)
class Dimension:
    """An option, and its values: whole numbers or others from low to high, both included, or one of some choices.

    text: as it was given. log: drawn by the logarithm. choices: as they stand in TOML.
    """

    option: str
    text: str
    low: float = 0.0
    high: float = 0.0
    whole: bool = False
    log: bool = False
    choices: tuple[str, ...] = ()

    @property
    def ends(self) -> list[Any]:
        """The values with which all of them are tried out: the choices, or the ends of the range."""
        return list(self.choices or dict.fromkeys((self._number(self.low), self._number(self.high))))

    @property
    def values(self) -> list[Any] | None:
        """All values, where they can be counted; None: they are too many."""
        return list(range(int(self.low), int(self.high) + 1)) if self.whole else list(self.choices) or None

    def suggest(self, trial: Trial) -> Any:
        """The value that a trial has, or is now given."""
        if self.choices:
            return trial.suggest_categorical(self.option, self.choices)
        if self.whole:
            return trial.suggest_int(self.option, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(self.option, self.low, self.high, log=self.log)

    def assignment(self, value: Any) -> str:
        """The option with a value, as after `--set`."""
        return f"{self.option}={value}"

    def _number(self, value: float) -> float:
        return int(value) if self.whole else value


def parse_space(space: Mapping[str, str | Sequence[Any]] | Iterable[str]) -> tuple[Dimension, ...]:
    """Read a space: `client.lr=log:0.001..1`, `client.optimizer.momentum=0,0.9` and the like, or the same by option.

    In Python choices may be a list. InputError: it is empty, an option is named twice or cannot be searched, or a text
    is none of such values.
    """
    given = list(space.items()) if isinstance(space, Mapping) else [_pair(assignment) for assignment in space]
    if not given:
        raise InputError("space", "(nothing)", f"name an option and its values: client.lr=log:0.001..1; {GRAMMAR}")
    names = [name for name, _ in given]
    for name in names:
        if names.count(name) > 1:
            raise InputError("space", name, "has values already; write them all after one --space")
        for held, why in (
            (MEASURED, "is how trials are measured, which must be one for all; set it in the experiment"),
            (LENGTH, "would not be equal for all trials; set it in the experiment"),
        ):
            if any(name == one or name.startswith(f"{one}.") for one in held):
                raise InputError("space", name, why)
    return tuple(_dimension(name, text) for name, text in given)


def _pair(assignment: str) -> tuple[str, str]:
    name, equals, text = assignment.partition("=")
    if not equals or not name.strip() or not text.strip():
        raise InputError("space", assignment, f"write table.option=values: {GRAMMAR}")
    return name.strip(), text.strip()


def _dimension(name: str, given: str | Sequence[Any]) -> Dimension:
    if not isinstance(given, str):
        if not isinstance(given, Sequence) or not given:
            raise InputError("space", f"{name}: {given!r}", f"give a list of values, or a text: {GRAMMAR}")
        return _chosen(name, ",".join(value if isinstance(value, str) else json.dumps(value) for value in given))
    kind, colon, bounds = given.partition(":")
    kind, bounds = (kind.strip(), bounds) if colon and kind.strip() in KINDS else ("", given)
    low, dots, high = bounds.partition("..")
    if not dots:
        if kind:
            raise InputError("space", f"{name}={given}", GRAMMAR)
        return _chosen(name, given)
    whole, log = KINDS[kind]
    try:
        ends = (float(int(low)), float(int(high))) if whole else (float(low), float(high))
    except ValueError:
        raise InputError("space", f"{name}={given}", GRAMMAR) from None
    if not all(map(math.isfinite, ends)) or ends[0] >= ends[1]:
        raise InputError("space", f"{name}={given}", "the second number must be above the first, and both finite")
    if log and ends[0] <= 0:
        raise InputError("space", f"{name}={given}", "a logarithmic range begins above 0")
    return Dimension(name, given, *ends, whole=whole, log=log)


def _chosen(name: str, text: str) -> Dimension:
    (values,) = parse_grid([f"{name}={text}"]).values()
    if len(set(values)) < len(values):
        raise InputError("space", f"{name}={text}", "a value is named twice; name each once")
    return Dimension(name, text, choices=tuple(values))
