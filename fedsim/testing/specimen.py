"""Plug-ins that do their work on plain numbers, outside of a run: what all of them keep to, whatever their kind.

A kind has a class of specimens, which says what one of them comes to, and checks of its own. A check is a function of a
specimen, AssertionError where its promise is broken.
"""

from __future__ import annotations

import tomllib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import replace
from typing import Any, ClassVar, Self

import tomli_w

from fedsim.core import plugins
from fedsim.core.errors import InputError
from fedsim.core.generators import seeded_globals
from fedsim.testing.draws import global_states
from fedsim.testing.others import Other, others_of
from fedsim.testing.rounds import copied, same
from fedsim.testing.subject import table_of, values_of


class Specimen(ABC):
    """A plug-in that is held to what its kind keeps to.

    group: of the plug-ins of its kind. moving: whether each option must change what one comes to.
    """

    group: ClassVar[str]
    moving: ClassVar[bool] = True

    def __init__(self, plugin: Any) -> None:
        self.plugin = plugin

    @abstractmethod
    def comes_to(self) -> Any:
        """All that its options could change, as tensors, arrays and numbers, nested."""

    def excuse(self, error: InputError) -> str | None:  # noqa: ARG002
        """Why nothing can be said of it here, where an error comes of that; None: it does not."""
        return None

    @property
    def table(self) -> dict[str, Any]:
        """What names it in an experiment file."""
        return table_of(self.group, self.plugin)

    def altered(self, options: Mapping[str, Any]) -> Self:
        """The same with other options."""
        other = copy(self)
        other.plugin = replace(self.plugin, **options)
        return other


def the_same_again(specimen: Specimen) -> None:
    """It comes to the same twice, whatever the generators of the process are, which are left as they were."""
    expected = copied(specimen.comes_to())
    with seeded_globals(1):
        before = global_states()
        again = copied(specimen.comes_to())
        drawn = [module for module, state in global_states().items() if state != before[module]]
    assert not drawn, f"the global generator of {', '.join(drawn)} is drawn from; take a named stream"
    assert same(again, expected), "it comes to something else when it is asked again"


def options_survive_toml(specimen: Specimen) -> None:
    """Written to a file and read again it has the same options and comes to the same."""
    table = tomllib.loads(tomli_w.dumps({"plugin": specimen.table}))["plugin"]
    again = plugins.make(specimen.group, table, "plugin")
    for name, value in values_of(again).items():
        wanted = values_of(specimen.plugin)[name]
        assert value == wanted, f"{name} = {wanted!r} is {value!r} when it is read again"


def every_option_moves_something(specimen: Specimen, option: str, other: Other | None = None) -> None:
    """With another value of an option it comes to something else, or says that it cannot do its work with that.

    other: the value, and other options that it needs to matter; by default, values that go with its type are tried.
    """
    tried = list[str]()
    for value, needs in [other] if other is not None else others_of(specimen.plugin, option):
        try:
            base = specimen.altered(needs)
            changed = base.altered({option: value})
        except InputError as error:
            if other is not None:
                raise
            tried.append(f"{value!r}, which is refused ({error})")
            continue
        if not same(_outcome(base), _outcome(changed)):
            return
        tried.append(repr(value))
    name = f"{option} = {getattr(specimen.plugin, option)!r}"
    if other is not None:
        raise AssertionError(f"{name}: with {tried[0]} in its place it comes to the same")
    raise AssertionError(
        f"{name}: no other value was found that changes anything; name one in `others`, with what it needs to matter "
        f"(tried {', '.join(tried) or 'none'})"
    )


def _outcome(specimen: Specimen) -> Any:
    """What it comes to, or what it says where it cannot."""
    try:
        return copied(specimen.comes_to())
    except InputError as error:
        if specimen.excuse(error) is not None:
            raise
        return str(error)


def an_option_that_is_refused(specimen: Specimen, option: str, other: Other | None = None) -> None:
    """An option that a plug-in has from others and cannot use takes no other value."""
    for value, needs in [other] if other is not None else others_of(specimen.plugin, option):
        try:
            specimen.altered({**needs, option: value})
        except InputError:
            continue
        raise AssertionError(f"{option} = {value!r} is not refused")


Check = Callable[[Any], None]
EVERY: tuple[Check, ...] = (the_same_again, options_survive_toml)
"""What plug-ins of all these kinds keep to."""
