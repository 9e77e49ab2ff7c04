"""Where methods are used: the tables of experiment files, and of the blocks of pages, that name them."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from fedsim.cli.places import PARTS, alternatives, hints, is_option_class, key_of
from fedsim.configuration.tables import LISTS, PLUGINS
from fedsim.core.blame import ROOT
from fedsim.core.plugins import names, option_class
from fedsim.problems.measures.names import spelled

FENCES = re.compile(r"^```toml\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Use:
    """A table that names a method. page: where it stands, from the root of the repository; place: as client.schedule.

    value: the table, or the name alone.
    """

    page: Path
    place: str
    value: Any

    @property
    def is_experiment(self) -> bool:
        """Whether it stands in an experiment file, which can be run."""
        return self.page.suffix == ".toml"


@cache
def uses() -> Mapping[tuple[str, str], list[Use]]:
    """Uses of each method, by group and kind, those of experiment files first."""
    found: dict[tuple[str, str], list[Use]] = {}
    for page, table in _tables():
        for group, kind, place, value in _named(table):
            found.setdefault((group, kind), []).append(Use(page, place, value))
    return found


def _tables() -> Iterator[tuple[Path, Mapping[str, Any]]]:
    folder = ROOT / "experiments"
    for path in sorted(folder.rglob("*.toml"), key=_plainness):
        if path.name != "pyproject.toml":
            yield path.relative_to(ROOT), tomllib.loads(path.read_text(encoding="utf-8"))
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for block in FENCES.findall(path.read_text(encoding="utf-8")):
            yield path.relative_to(ROOT), tomllib.loads(block)


def _plainness(path: Path) -> tuple[int, bool, Path]:
    """By which experiments are sorted: the simplest first, then others without a study, then those of studies."""
    return len(path.parts), path.stem != "digits_fedavg", path


def _named(table: Mapping[str, Any]) -> Iterator[tuple[str, str, str, Any]]:
    """The group, kind, place and value of each method that an experiment names."""
    for part, value in table.items():
        key = PARTS.get(part)
        if isinstance(key, str):
            for one in value if part in LISTS else [value]:
                yield from _of_group(key, one, part)
        elif key is not None:
            yield from _of_options(key[0], value, part)


def _of_group(group: str, value: Any, place: str) -> Iterator[tuple[str, str, str, Any]]:
    kind = value.get("kind") if isinstance(value, Mapping) else value
    if kind is None and place in PLUGINS:
        default = PLUGINS[place][1]
        kind = default if isinstance(default, str) else default["kind"]
    if group == "measures" and kind not in names(group):
        short = spelled(str(kind))
        kind = None if short is None else short["kind"]
    if kind not in names(group):
        return
    yield group, str(kind), place, value
    if isinstance(value, Mapping):
        yield from _of_options(option_class(group, str(kind), "kind"), value, place)


def _of_options(made: type[Any], table: Mapping[str, Any], place: str) -> Iterator[tuple[str, str, str, Any]]:
    annotated = hints(made)
    for option, value in table.items():
        if option not in annotated:
            continue
        key = key_of(made, option, annotated[option])
        if isinstance(key, str):
            for one in value if isinstance(value, list) else [value]:
                yield from _of_group(key, one, f"{place}.{option}")
        elif isinstance(value, Mapping):
            for one in alternatives(annotated[option]):
                if is_option_class(one) and getattr(one, "kind", "") in (value.get("kind"), ""):
                    yield from _of_options(one, value, f"{place}.{option}")
