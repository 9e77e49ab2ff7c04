"""What can go wrong, by whose fault: the user's input, or the run itself."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class FedsimError(Exception):
    """Base of every error that fedsim raises on purpose."""


class InputError(FedsimError, ValueError):
    """An option that cannot be used: one line that names it, its value and the remedy.

    The command line prints the line and exits with code 2, before anything runs.
    """

    def __init__(self, option: str, value: object, remedy: str) -> None:
        self.option, self.value, self.remedy = option, value, remedy
        shown = value if isinstance(value, str) else repr(value)
        super().__init__(f"{option} = {shown}: {remedy}")


@contextmanager
def naming(table: str) -> Iterator[None]:
    """Within this block a refused option is one of this table; none for an empty name."""
    try:
        yield
    except InputError as error:
        if not table:
            raise
        raise InputError(f"{table}.{error.option}", error.value, error.remedy) from None


class DivergedError(FedsimError):
    """The global model or its loss is no longer finite; what was logged so far is kept."""


class StalledError(FedsimError):
    """Nothing will ever happen again in virtual time; what was logged so far is kept."""


def one_line(said: object, longest: int | None = None) -> str:
    """What an error says, or anything else, on one line of at most so many letters."""
    return " ".join(str(said).split())[:longest]


def named_line(error: BaseException) -> str:
    """The class of an error and what it says, on one line of at most 300 letters."""
    return one_line(f"{type(error).__name__}: {error}", 300)


def warn(text: str) -> None:
    """Say on standard error, in one line, what does not end a run."""
    print(f"fedsim: warning: {one_line(text)}", file=sys.stderr, flush=True)
