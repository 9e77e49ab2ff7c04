"""What can go wrong, by whose fault: the user's input, or the run itself."""

from __future__ import annotations


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


class DivergedError(FedsimError):
    """The global model or its loss is no longer finite; what was logged so far is kept."""
