"""Where option classes stand in an experiment file: a walk from its top through all that its tables may hold."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Union

from pydantic import BeforeValidator
from pydantic_core import PydanticUndefined

from fedsim.configuration.tables import LISTS, PLUGINS, TABLES, Top
from fedsim.core.plugins import HasPlugins, names, option_class, ours

Key = str | tuple[type[Any], ...]
"""What an option names: a plug-in of a group, or one of some option classes."""
TOP = "experiment"
"""What stands for the keys of a file that are no tables."""
PARTS: Mapping[str, Key] = {
    TOP: (Top,),
    **{part: group for part, (group, _) in PLUGINS.items()},
    **LISTS,
    **{table: (made,) for table, made in TABLES.items()},
}
"""What stands at the top of a file and in its tables."""


@dataclass(frozen=True)
class Place:
    """Option classes that may stand in the same tables.

    tables: their names, as `client.schedule`; the first is that of the place. kinds: the classes by `kind`; where a
    table has no kinds, one under "".
    """

    tables: list[str]
    kinds: Mapping[str, type[Any]]


def gather(parts: Iterable[str] = PARTS, *, built_in: bool = False) -> dict[Key, Place]:
    """All places of these parts of a file, in its order. built_in: without the plug-ins of other packages."""
    found: dict[Key, Place] = {}

    def visit(table: str, key: Key) -> None:
        if key in found:
            if table not in found[key].tables:
                found[key].tables.append(table)
            return
        found[key] = Place([table], _kinds(key, built_in))
        for made in found[key].kinds.values():
            for name, hint in hints(made).items():
                inner = key_of(made, name, hint)
                if inner is not None:
                    visit(f"{table}.{name}", inner)

    for part in parts:
        visit(part, PARTS[part])
    return found


def hints(made: type[Any]) -> dict[str, Any]:
    """The annotation of each option of a class, by name."""
    annotated = typing.get_type_hints(made, include_extras=True)
    return {field.name: annotated[field.name] for field in dataclasses.fields(made)}


def key_of(made: type[Any], option: str, hint: Any) -> Key | None:
    """What an option names in a table of its own; None: it takes no table."""
    if issubclass(made, HasPlugins) and option in made.parts:
        return made.parts[option]
    return tuple(one for one in alternatives(hint) if is_option_class(one)) or None


def alternatives(hint: Any) -> list[Any]:
    """The types of values that a file may give to an option of this type: option classes and plain ones."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        inner, *metadata = arguments
        for note in metadata:
            if isinstance(note, BeforeValidator) and note.json_schema_input_type is not PydanticUndefined:
                return alternatives(note.json_schema_input_type)
        return [one if is_option_class(one) else Annotated[one, *metadata] for one in alternatives(inner)]
    if origin in (Union, UnionType):
        return [found for one in arguments if one is not NoneType for found in alternatives(one)]
    return [hint]


def kind_of(made: Any) -> str:
    """What an option class, or an object of it, is called among others; "" where nothing else can stand there."""
    return str(getattr(made, "kind", ""))


def is_option_class(hint: Any) -> bool:
    """Whether a type is a class of options."""
    return isinstance(hint, type) and dataclasses.is_dataclass(hint)


def is_required(field: dataclasses.Field[Any]) -> bool:
    """Whether an option must be given."""
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def default_of(field: dataclasses.Field[Any]) -> Any:
    """An option's default as a file would have it; None: it has none, or is off."""
    if field.default_factory is not dataclasses.MISSING:
        return _plain(field.default_factory())
    return None if is_required(field) else _plain(field.default)


def differing(made: Any) -> Iterator[tuple[str, Any, Any]]:
    """The options of an object that are not as by default: their names, values and defaults, as a file has them.

    One that must be given is among them. Of plug-ins in it, which have options of their own, there are none.
    """
    inner = made.parts if isinstance(made, HasPlugins) else ()
    for field in dataclasses.fields(made):
        value, default = _plain(getattr(made, field.name)), default_of(field)
        if field.name not in inner and value != default:
            yield field.name, value, default


def _plain(value: Any) -> Any:
    """A value as a file would have it; of a table what differs from its defaults, or the name of its kind alone."""
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    if not dataclasses.is_dataclass(value):
        return value
    kind = kind_of(value)
    given = {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    changed = {
        field.name: given[field.name] for field in dataclasses.fields(value) if given[field.name] != default_of(field)
    }
    return kind if kind and not changed else ({"kind": kind} if kind else {}) | changed


def _kinds(key: Key, built_in: bool) -> dict[str, type[Any]]:
    if isinstance(key, str):
        return {name: option_class(key, name, "kind") for name in (ours(key) if built_in else names(key))}
    return {kind_of(made): made for made in key}
