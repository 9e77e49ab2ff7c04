"""Options that name plug-ins of other groups, such as a problem's data set or a client's estimator."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar

from fedsim import registry


class Parts:
    """Base of option classes.

    parts: by option, the group of plug-ins that it names: a name, or a table with `kind`; or None. lists: options that
    name several.
    """

    parts: ClassVar[Mapping[str, str]] = {}
    lists: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        self.made  # noqa: B018  # a bad option is refused when the experiment is read

    @cached_property
    def made(self) -> Mapping[str, Any]:
        """The plug-ins that the options name; of a list a tuple, and of None none."""
        named = {option: (group, getattr(self, option)) for option, group in self.parts.items()}
        return {
            option: tuple(registry.make(group, table, f"{option}.{number}") for number, table in enumerate(value))
            if option in self.lists
            else registry.make(group, value, option)
            for option, (group, value) in named.items()
            if value is not None
        }
