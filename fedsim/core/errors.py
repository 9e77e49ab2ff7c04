"""What can go wrong, by whose fault: the user's input, or the run itself."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator
from contextlib import contextmanager

from fedsim.core.terminal import printable, tell

LONGEST = 300
"""Letters of a value that a message shows."""


class FedsimError(Exception):
    """Base of every error that fedsim raises on purpose."""


class InputError(FedsimError, ValueError):
    """An option that cannot be used: one line that names it, its value and the remedy.

    The command line prints the line and exits with code 2, before anything runs. Of a long value its ends are shown.
    """

    def __init__(self, option: str, value: object, remedy: str) -> None:
        self.option, self.value, self.remedy = option, value, remedy
        super().__init__(one_line(f"{shortened(option)} = {_shown(value)}: {remedy}"))


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


class BrokenPromiseError(FedsimError):
    """A plug-in did or returned something else than it is to, or than it had declared."""


def one_line(said: object, longest: int | None = None) -> str:
    """What an error says, or anything else, on one line of at most so many letters, all of which are printable."""
    return printable(" ".join(str(said).split()))[:longest]


def shortened(text: str) -> str:
    """A text, or the ends of one that is longer than `LONGEST`."""
    half = LONGEST // 2
    return text if len(text) <= LONGEST else f"{text[:half]}...{text[-half:]}"


def _shown(value: object) -> str:
    """A value as a message shows it, however long or deep it is."""
    if isinstance(value, str):
        return shortened(value)
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother, short.maxlong = 8, LONGEST, LONGEST, LONGEST
    short.maxlist = short.maxtuple = short.maxdict = short.maxset = short.maxfrozenset = 20
    try:
        return shortened(short.repr(value))
    except ValueError:  # of Python, for a whole number of more than 4,300 digits
        return f"({type(value).__name__})"


def named_line(error: BaseException) -> str:
    """The class of an error and what it says, on one line of at most 300 letters."""
    return one_line(f"{type(error).__name__}: {error}", 300)


def warn(text: str) -> None:
    """Say on standard error, in one line, what does not end a run."""
    tell(f"fedsim: warning: {one_line(text)}", "stderr")
