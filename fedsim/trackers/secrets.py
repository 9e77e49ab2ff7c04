"""What an experiment may not hold: it is written into run folders and shown to trackers."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fedsim.core.errors import InputError

SECRET = re.compile(r"(^|_|-)(key|token|password|passwd|secret|credentials)s?$", re.IGNORECASE)
"""How options are called that hold what nobody else may know."""
PASSWORD = re.compile(r"(?<=://)[^/\s@]+(?=@)")
"""What stands before the host in an address: a user, and a password."""
HIDDEN = "***"


def masked(text: str) -> str:
    """A text without the passwords of the addresses in it."""
    return PASSWORD.sub(HIDDEN, text)


def hold_no_secrets(tables: Sequence[Any]) -> None:
    """Refuse tables of trackers that hold a key or a password, which is not shown: libraries have them elsewhere."""
    for number, table in enumerate(tables):
        for option, value in _options(table, f"track.{number}"):
            if SECRET.search(option.rpartition(".")[2]):
                remedy = "an experiment is no place for a secret; give it as the library has it, in the environment"
                raise InputError(option, HIDDEN, remedy)
            if isinstance(value, str) and PASSWORD.search(value):
                remedy = "an experiment is no place for a password; give it as the library has it, in the environment"
                raise InputError(option, masked(value), remedy)


def _options(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """The options in a table and those below, with their names."""
    yield name, value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, list | tuple):
        value = dict(enumerate(value))
    for option, inner in value.items() if isinstance(value, Mapping) else ():
        yield from _options(inner, f"{name}.{option}")
