"""Members of somebody's class: whether they can be used as those of ours can that they stand for."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any


def misfit(cls: type[Any], ours: Callable[[type[Any]], bool], called: Mapping[str, int]) -> str | None:
    """What keeps a dataclass from being used as its bases are; None: nothing does.

    That is a method that is still to be written, one that takes other arguments than it gets, a method where a value is
    read, or a value, such as an option, where a method is called. Private members are looked at as others are; what
    only bases of its author's have is the author's affair.

    ours: whether a base is of those that are used. called: how many arguments methods get of which no base tells.
    """
    if inspect.isabstract(cls):
        return f"it has no {', '.join(sorted(cls.__abstractmethods__))}, which is asked of it"
    fields = {field.name for field in dataclasses.fields(cls)}
    bases = [base for base in cls.__mro__[1:] if ours(base)]
    for name in sorted({*dir(cls), *fields}):
        if name.startswith("__") and name != "__call__":
            continue
        above = next((vars(base)[name] for base in bases if name in vars(base)), None)
        own = inspect.getattr_static(cls, name, None)
        if name in fields and inspect.isfunction(above):
            return f"{name} is an option, and a method is called so; call the option otherwise"
        fault = None if own is above else _fault(name, own, above, called.get(name))
        if fault is not None:
            return f"{name} {fault}"
    return None


def _fault(name: str, own: Any, above: Any, count: int | None) -> str | None:
    """What is wrong with a member that stands for another, or that gets so many arguments."""
    if isinstance(above, property) and inspect.isfunction(own):
        return "is a method, and is read as a value; write @property above it"
    if inspect.isfunction(above):
        taken = [*inspect.signature(above).parameters.values()][1:]
        needed = [one for one in taken if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD]
        count, call = len(needed), f"{name}{_written(above)}"
    elif count is not None:
        call = f"{name} with {count} argument{'s' * (count != 1)} beside self"
    else:
        return None
    function = own.__func__ if isinstance(own, staticmethod | classmethod) else own
    if not callable(function):
        return f"is a {type(own).__name__}, and is called as a method: {call}"
    try:
        inspect.signature(function).bind(*range(count + (not isinstance(own, staticmethod))))
    except TypeError:
        return f"is written {name}{_written(function)}, and is called as {call}"
    return None


def _written(function: Any) -> str:
    """The arguments of a function, without what they are."""
    parameters = inspect.signature(function).parameters.values()
    return f"({', '.join(str(one.replace(annotation=one.empty)) for one in parameters)})"
