"""What the constructors of other people's classes take, for options that are passed on to them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints


@functools.cache
def arguments(made: type[Any]) -> dict[str, tuple[Any, Any]]:
    """Types and defaults of a constructor's arguments, of base classes too where it passes on what it does not name."""
    found: dict[str, tuple[Any, Any]] = {}
    for place in made.__mro__:
        if "__init__" not in vars(place) or place is object:
            continue
        named, passes = named_by(vars(place)["__init__"])
        del named[next(iter(named))]  # the object itself
        found |= {name: one for name, one in named.items() if name not in found}
        if not passes:
            break
    return found


def named_by(function: Callable[..., Any]) -> tuple[dict[str, tuple[Any, Any]], bool]:
    """Types and defaults of the arguments that a function names, and whether it takes others by name, too."""
    found: dict[str, tuple[Any, Any]] = {}
    hints, passes = get_type_hints(function), False
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            passes = True
        elif parameter.kind is not parameter.VAR_POSITIONAL:
            found[name] = hints.get(name, Any), parameter.default
    return found, passes


def plain(annotation: Any) -> bool:
    """Whether a TOML file can give an argument of this type."""
    if get_origin(annotation) in (Union, UnionType):
        return all(plain(part) for part in get_args(annotation))
    return annotation in (bool, int, float, str, NoneType)
