"""What an experiment file may hold, as a JSON Schema, by which editors complete and check it.

It is about one option at a time: its name, type and range. What options must be together is checked when a file is
read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from pydantic import PydanticInvalidForJsonSchema, PydanticSchemaGenerationError, TypeAdapter

from fedsim.cli.places import (
    PARTS,
    TOP,
    Key,
    alternatives,
    default_of,
    gather,
    hints,
    is_option_class,
    is_required,
    key_of,
)
from fedsim.cli.reference import summary
from fedsim.configuration.tables import LISTS, NOTES, PLUGINS
from fedsim.core.options import texts
from fedsim.core.plugins import HasPlugins
from fedsim.problems.measures.names import SHORT, TOP_K

Json = dict[str, Any]
DIALECT = "https://json-schema.org/draft/2020-12/schema"
ELSEWHERE: Json = {"type": "string", "pattern": "^.+:[^:]+$"}
"""A kind that is not installed: `module:Class`, `./file.py:Class` or `flwr:Class`, whose options are not known here."""


def document(*, built_in: bool = False) -> Json:
    """The schema of an experiment file. built_in: without the plug-ins of other packages."""
    places = gather(built_in=built_in)
    made = _Definitions({key: place.tables[0] for key, place in places.items()})
    for key, place in places.items():
        made.add(key, place.kinds)
    top = made.definitions.pop(TOP)
    for part, key in PARTS.items():
        if part in LISTS:
            top["properties"][part] = {"type": "array", "items": made.reference(key)}
        elif part != TOP:
            top["properties"][part] = made.reference(key)
    for note in NOTES:
        top["properties"][note] = {"type": "object", "description": "Noted by a run; nothing follows from it."}
    return {"$schema": DIALECT, "title": "An experiment of fedsim", **top, "$defs": made.definitions}


class _Definitions:
    """Schemas of option classes, which refer to each other by name. names: of places."""

    def __init__(self, names: Mapping[Key, str]) -> None:
        self.definitions: dict[str, Json] = {}
        self._names = names

    def reference(self, key: Key) -> Json:
        """What may stand at a place."""
        return {"$ref": f"#/$defs/{self._names[key]}"}

    def add(self, key: Key, kinds: Mapping[str, type[Any]]) -> None:
        """A place: a table of options, or the name of a kind or a table of its options with `kind`."""
        place = self._names[key]
        if "" in kinds:
            self.definitions[place] = self._table(kinds[""])
            return
        tables = {kind: self._table(made, kind) for kind, made in kinds.items()}
        plain = [kind for kind, table in tables.items() if table["required"] == ["kind"]]
        if place == "problem":  # which alone may leave its kind out
            tables[str(PLUGINS[place][1])]["required"].remove("kind")
        if key == "measures":
            plain += SHORT
        choices: list[Json] = [{"enum": plain}] if plain else []
        choices += [{"type": "string", "pattern": f"^{TOP_K.pattern}$"}] if key == "measures" else []
        choices += [{"$ref": f"#/$defs/{place}:{kind}"} for kind in tables]
        if isinstance(key, str):
            choices += [ELSEWHERE, {"type": "object", "properties": {"kind": ELSEWHERE}, "required": ["kind"]}]
        self.definitions[place] = {"oneOf": choices}
        self.definitions |= {f"{place}:{kind}": table for kind, table in tables.items()}

    def _table(self, made: type[Any], kind: str = "") -> Json:
        """The options of a class."""
        annotated, said = hints(made), texts(made)
        properties: Json = {"kind": {"const": kind}} if kind else {}
        required = list(properties)
        for field in dataclasses.fields(made):
            option = self._values(made, field.name, annotated[field.name])
            if said[field.name]:
                option |= {"description": said[field.name]}
            default = default_of(field)
            if default is not None:
                option |= {"default": default}
            if is_required(field):
                required.append(field.name)
            properties[field.name] = option
        return {
            "type": "object",
            "description": summary(made),
            "properties": properties,
            "required": required,
            "additionalProperties": False,
        }

    def _values(self, made: type[Any], option: str, hint: Any) -> Json:
        """Which values an option takes."""
        key = key_of(made, option, hint)
        if isinstance(key, str):
            one = self.reference(key)
            several = issubclass(made, HasPlugins) and option in made.lists
            return {"anyOf": [one, {"type": "array", "items": one}]} if several else one
        choices = [self._plain(one) for one in alternatives(hint) if not is_option_class(one)]
        choices += [] if key is None else [self.reference(key)]
        return choices[0] if len(choices) == 1 else {"anyOf": choices}

    def _plain(self, hint: Any) -> Json:
        """The values of a type that is no option class; any, where only Python could give one."""
        try:
            found: Json = TypeAdapter(hint).json_schema()
        except (PydanticSchemaGenerationError, PydanticInvalidForJsonSchema):
            return {}
        self.definitions |= found.pop("$defs", {})
        return found
