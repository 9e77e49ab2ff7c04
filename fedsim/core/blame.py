"""Errors in code that is not ours: where in its author's own file they are, in one line."""

from __future__ import annotations

import re
import sys
import sysconfig
import traceback
from functools import cache
from pathlib import Path

from fedsim.core.errors import named_line, one_line

ROOT = Path(__file__).resolve().parents[2]
"""Where our packages are, side by side."""
OURS = ("strategies", "clients", "experiments")
"""Our packages beside `fedsim`."""


def mistake(error: BaseException) -> str:
    """What an error is and says, after the line of its author's file that has come to it, if one has.

    That is the last line that is in no file of ours, of Python's own or of an installed package: where it calls one of
    those and does it wrong, the call is the mistake.
    """
    error = _raised(error)
    place = _called_otherwise(error)
    for frame, line in traceback.walk_tb(error.__traceback__):
        if _is_theirs(frame.f_code.co_filename):
            place = (frame.f_code.co_filename, line)
    said = named_line(error)
    if isinstance(error, SyntaxError) and error.filename is not None and _is_theirs(error.filename):
        place, said = (error.filename, error.lineno or 1), one_line(f"{type(error).__name__}: {error.msg}")
    return said if place is None else f"{place[0]}, line {place[1]}: {said}"


def is_theirs(error: BaseException) -> bool:
    """Whether an error has come about in code that is not ours."""
    error = _raised(error)
    frames = traceback.walk_tb(error.__traceback__)
    return any(_is_theirs(frame.f_code.co_filename) for frame, _ in frames) or _called_otherwise(error) is not None


def _called_otherwise(error: BaseException) -> tuple[str, int] | None:
    """The file and line of an author's method that does not take what it is called with, so that it has not begun."""
    said = re.match(r"([\w.]+)\(\) (takes|missing|got)", str(error)) if isinstance(error, TypeError) else None
    for module in list(sys.modules.values()) if said else ():
        file = getattr(module, "__file__", None)
        if said and isinstance(file, str) and _is_theirs(file):
            made: object = module
            for name in said[1].split("."):
                made = getattr(made, name, None)
            code = getattr(made, "__code__", None)
            if code is not None:
                return code.co_filename, code.co_firstlineno
    return None


def _raised(error: BaseException) -> BaseException:
    """What somebody has raised: a StopIteration becomes a RuntimeError in a generator that it goes through."""
    cause = error.__cause__
    return cause if isinstance(error, RuntimeError) and isinstance(cause, StopIteration) else error


@cache
def _is_theirs(file: str) -> bool:
    """Whether a file is neither ours nor Python's, nor of an installed package, nor the script that was started."""
    path = Path(file)
    if not path.is_file() or path.resolve() == _started():
        return False
    installed = {Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    ours = [*(ROOT / name for name in ("fedsim", *OURS)), ROOT / "fedsim_lab.py"]
    return not any(path.resolve().is_relative_to(place.resolve()) for place in (*installed, *ours))


def _started() -> Path | None:
    """The file of the script that was started."""
    file = getattr(sys.modules["__main__"], "__file__", None)
    return None if file is None else Path(file).resolve()
