"""Options that name plug-ins of other groups, such as a problem's data set or a client's estimator."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar

from fedsim import registry


class Parts:
    """Base of option classes. parts: by option, the group of plug-ins that it names: a name, or a table with `kind`."""

    parts: ClassVar[Mapping[str, str]] = {}

    def __post_init__(self) -> None:
        self.made  # noqa: B018  # a bad option is refused when the experiment is read

    @cached_property
    def made(self) -> Mapping[str, Any]:
        """The plug-ins that the options name."""
        return {option: registry.make(group, getattr(self, option), option) for option, group in self.parts.items()}
