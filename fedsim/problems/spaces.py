"""Variables of a black box by name, each with bounds of its own, and where they lie in [0, 1]^d.

(low, high)             x = low + v (high - low)
("log", low, high)      x = low (high / low)^v
("int", low, high)      x = low + floor(v m), of m = high - low + 1 cells of one width, a value each
("cat", [one, another]) a coordinate for each choice: that of the largest, ties to the first

A point outside is taken for the nearest inside.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedsim.core.errors import InputError, one_line
from fedsim.core.near import name_one
from fedsim.problems.evaluators import is_number, is_whole

Point = NDArray[np.float64]


@dataclass(frozen=True)
class Variable:
    """One of a space. low, high: of numbers; choices: of a category."""

    name: str
    kind: Literal["number", "log", "int", "cat"]
    low: float = 0.0
    high: float = 1.0
    choices: tuple[Any, ...] = ()

    @property
    def width(self) -> int:
        """Its coordinates."""
        return len(self.choices) or 1

    @property
    def cells(self) -> int:
        """Values of a whole number; 0 of others."""
        return int(self.high) - int(self.low) + 1 if self.kind == "int" else 0

    def at(self, v: Point) -> Any:
        """Its value at coordinates [width] in [0, 1]."""
        place = float(v[0])
        if self.kind == "cat":
            return self.choices[int(v.argmax())]
        if self.kind == "int":
            return int(self.low) + min(int(place * self.cells), self.cells - 1)
        if self.kind == "log":
            return self.low * (self.high / self.low) ** place
        return self.low + place * (self.high - self.low)

    def place(self, value: Any) -> list[float]:
        """Coordinates that stand for a value. InputError: it has none."""
        if self.kind == "cat":
            if value not in self.choices:
                raise InputError(f"start.{self.name}", value, name_one(str(value), [str(one) for one in self.choices]))
            return [0.75 if choice == value else 0.25 for choice in self.choices]
        if not is_number(value) or not self.low <= value <= self.high or (self.kind == "int" and not is_whole(value)):
            whole = "a whole number" if self.kind == "int" else "a number"
            raise InputError(f"start.{self.name}", value, f"give {whole} within {self.low:g} .. {self.high:g}")
        if self.kind == "int":
            return [(value - self.low + 0.5) / self.cells]
        if self.kind == "log":
            return [math.log(value / self.low) / math.log(self.high / self.low)]
        return [(value - self.low) / (self.high - self.low)]


@dataclass(frozen=True)
class Space:
    """Variables side by side in [0, 1]^d."""

    variables: tuple[Variable, ...]

    @property
    def dimension(self) -> int:
        """D, all of their coordinates."""
        return sum(variable.width for variable in self.variables)

    @property
    def cells(self) -> NDArray[np.int64]:
        """Of each coordinate how many values a whole number has there, [d]; 0: it is none."""
        return np.repeat([variable.cells for variable in self.variables], [one.width for one in self.variables])

    @property
    def discrete(self) -> list[str]:
        """Names of whole numbers and categories."""
        return [variable.name for variable in self.variables if variable.kind in ("int", "cat")]

    def typed(self, point: Sequence[float] | Point) -> dict[str, Any]:
        """The variables' values at a point [d]."""
        inside, begin, found = np.clip(np.asarray(point, dtype=np.float64), 0.0, 1.0), 0, dict[str, Any]()
        for variable in self.variables:
            found[variable.name] = variable.at(inside[begin : begin + variable.width])
            begin += variable.width
        return found

    def numbers(self, point: Point) -> dict[str, float]:
        """The same as numbers: of a category the place of the choice."""
        typed = self.typed(point)
        return {
            one.name: float(one.choices.index(typed[one.name]) if one.kind == "cat" else typed[one.name])
            for one in self.variables
        }

    def point(self, values: Mapping[str, Any]) -> Point:
        """A point [d] with these values; variables that are not named are in the middle. InputError: there is none."""
        for name in values.keys() - {variable.name for variable in self.variables}:
            raise InputError(f"start.{name}", values[name], name_one(name, [one.name for one in self.variables]))
        found = list[float]()
        for one in self.variables:
            found += one.place(values[one.name]) if one.name in values else [0.5] * one.width
        return np.array(found)


def space_of(given: Mapping[str, Any]) -> Space:
    """A space as it is written. InputError: what is wrong with a variable."""
    if not isinstance(given, Mapping) or not given:
        remedy = "name a variable at least, as {'lr': ('log', 1e-4, 1.0)}"
        raise InputError("space", one_line(given, 60), remedy)
    return Space(tuple(_variable(name, one) for name, one in given.items()))


def _variable(name: object, given: Any) -> Variable:
    option = f"space.{name}"
    if not isinstance(name, str) or not name.isidentifier():
        raise InputError("space", one_line(name, 60), "a variable's name is a word of letters, digits and _")
    shown, parts = (
        one_line(given, 60),
        list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [],
    )
    kind: Any = parts.pop(0) if parts and isinstance(parts[0], str) else "number"
    if kind == "cat":
        choices = tuple(parts[0]) if len(parts) == 1 and isinstance(parts[0], Sequence) else ()
        if isinstance(parts[0] if parts else "", str) or len(choices) < 2 or len({*map(repr, choices)}) < len(choices):
            raise InputError(option, shown, "give two choices or more, each once, as ('cat', ['relu', 'tanh'])")
        return Variable(name, "cat", choices=choices)
    if kind not in ("number", "log", "int") or len(parts) != 2 or not all(map(is_number, parts)):
        remedy = "write (low, high), ('log', low, high), ('int', low, high) or ('cat', [choices])"
        raise InputError(option, shown, remedy)
    low, high = parts
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise InputError(option, shown, "give two finite numbers, the lower one first")
    if kind == "int" and not (is_whole(low) and is_whole(high)):
        raise InputError(option, shown, "the bounds of whole numbers are whole numbers")
    if kind == "log" and low <= 0:
        raise InputError(option, shown, "on a logarithmic scale both bounds are above 0")
    return Variable(name, kind, float(low), float(high))


@dataclass(frozen=True)
class Typed:
    """A function of typed values as one of a point [d]."""

    function: Callable[[dict[str, Any]], Any]
    space: Space

    def __call__(self, point: Point) -> Any:
        """Its value there."""
        return self.function(self.space.typed(point))
