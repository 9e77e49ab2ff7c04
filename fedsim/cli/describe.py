"""`fedsim describe`: what a plug-in or a table does, its options, and where it is from, as plain text."""

from __future__ import annotations

import inspect
import json
import textwrap
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedsim.core.errors import InputError
from fedsim.core.near import meant, name_one
from fedsim.core.plugins import names, own
from fedsim.core.terminal import tell

if TYPE_CHECKING:
    from fedsim.cli.reference import Option

GROUPS = {
    "strategy": "strategies",
    "client": "clients",
    "optimizer": "optimizers",
    "server_optimizer": "server_optimizers",
    "estimator": "estimators",
    "guide": "guides",
    "defence": "defences",
    "attack": "attacks",
    "problem": "problems",
    "dataset": "datasets",
    "partition": "partitions",
    "model": "models",
    "loss": "losses",
    "measure": "measures",
    "selector": "selectors",
    "aggregator": "aggregators",
    "transform": "transforms",
    "speed": "speeds",
    "availability": "availabilities",
    "tracker": "trackers",
}
"""What one plug-in of a group is called."""
WIDTH = 80


def _groups(incomplete: str) -> list[str]:
    """What a shell completes a group to: one of plug-ins, or a table at the top of a file."""
    from fedsim.cli.places import PARTS

    return sorted(name for name in {*GROUPS, *PARTS} if name.startswith(incomplete))


def _kinds(context: typer.Context, incomplete: str) -> list[str]:
    """What a shell completes a kind to, of the group before it; of an unknown one to nothing."""
    try:
        plural, table = _table(context.params["group"])
    except InputError:
        return []
    return sorted(kind for kind in (names(plural) if table is None else table) if kind.startswith(incomplete))


Group = Annotated[
    str,
    typer.Argument(
        help=f"One of: {', '.join(GROUPS)}; or a table, as engine, evaluation or client.schedule.",
        autocompletion=_groups,
    ),
]
Kind = Annotated[
    str | None,
    typer.Argument(help="An installed name, module:Class or ./file.py:Class; without: all.", autocompletion=_kinds),
]


def describe(group: Group, kind: Kind = None) -> None:
    """Tell a plug-in's rule, its options and its source; without KIND, what is installed.

    GROUP is strategy, client, dataset or another of `fedsim list`; KIND a name, module:Class or ./file.py:Class. GROUP
    may also be a table of an experiment file, as engine, evaluation or devices.bandwidth, and experiment for the keys
    at its top.
    """
    tell("\n".join(_lines(group, kind)))


def _lines(group: str, kind: str | None) -> Iterator[str]:
    plural = GROUPS.get(group)
    if plural is None:
        plural, table = _table(group)
        if table is not None:
            return _table_page(group, table, kind)
    return _listing(plural) if kind is None else _page(group, plural, kind)


def _table(name: str) -> tuple[str, Mapping[str, type[Any]] | None]:
    """The group of plug-ins that a table names, or else the option classes that may stand in it, by kind."""
    from fedsim.cli.places import PARTS, gather

    top = name.partition(".")[0]
    for key, place in gather([top]).items() if top in PARTS else ():
        if name in place.tables:
            return (key, None) if isinstance(key, str) else ("", place.kinds)
    if name in GROUPS.values():
        return name, None
    groups = [group for group, plural in GROUPS.items() if name in own(plural)]
    if groups:
        remedy = f"is a kind of {' and of '.join(groups)}; name the group before it: {groups[0]} {name}"
        raise InputError("group", name, remedy)
    near = meant(name, [*GROUPS, *GROUPS.values(), *PARTS])
    raise InputError("group", name, f"name one of: {', '.join(GROUPS)}; or a table: {', '.join(PARTS)}{near}")


def _table_page(table: str, kinds: Mapping[str, type[Any]], kind: str | None) -> Iterator[str]:
    """What an option class says that is no plug-in; without a kind, which there are."""
    from fedsim.cli.reference import summary

    if "" in kinds:
        if kind is not None:
            raise InputError("kind", kind, f"{table} is a table without kinds; leave it out")
        return _described(table, kinds[""], kinds[""].__qualname__)
    if kind is None:
        return _listed({name: summary(made) for name, made in kinds.items()})
    if kind not in kinds:
        raise InputError("kind", kind, name_one(kind, kinds))
    return _described(f"{table} {kind}", kinds[kind], kinds[kind].__qualname__)


def _listing(group: str) -> Iterator[str]:
    from fedsim.cli.reference import summary
    from fedsim.core.plugins import find

    return _listed({name: summary(find(group, name, "kind")) for name in names(group)})


def _listed(summaries: Mapping[str, str]) -> Iterator[str]:
    for name, text in summaries.items():
        yield name
        yield from _wrapped(text, "    ")


def _page(group: str, plural: str, kind: str) -> Iterator[str]:
    from fedsim.core.plugins import option_class
    from fedsim.problems.measures.names import spelled

    heading, table = f"{group} {kind}", spelled(kind) if plural == "measures" else None
    if table is not None:
        kind = table["kind"]
        heading += f", which is {{ {', '.join(f'{key} = {json.dumps(value)}' for key, value in table.items())} }}"
    made = option_class(plural, kind, "kind")
    return _described(heading, made, _origin(plural, kind, made))


def _described(heading: str, made: type[Any], origin: str) -> Iterator[str]:
    from fedsim.cli.reference import describe as read

    description = read(made)
    yield heading
    for paragraph in description.rule:
        yield ""
        for line in paragraph:
            yield from _wrapped(line, "  ", hanging="    " if len(paragraph) > 1 else None)
    yield ""
    yield "Options" if description.options else "No options"
    for option in description.options:
        yield from _option(option)
    if description.sources:
        yield ""
        yield "Source"
        for named in description.sources:
            yield from _wrapped(named, "  ", hanging="    ")
    yield ""
    yield "Code"
    yield f"  {origin}"
    source: Any = getattr(made, "made_of", made)  # a strategy of Flower's has options of a class that is made for it
    yield f"  {inspect.getsourcefile(source)}"


def _option(option: Option) -> Iterator[str]:
    default = {None: " (must be given)", "": " (not given)"}.get(option.default, f" = {option.default}")
    yield from _wrapped(f"{option.name}{default}", "  ", hanging="      ")
    yield from _wrapped(option.values, "      ")
    for kind in option.kinds:
        yield from _wrapped(kind, "        ", hanging="          ")
    yield from _wrapped(option.text or "(no text)", "      ")


def _origin(group: str, kind: str, made: type[Any]) -> str:
    """The class, and the package that brings it where it is installed."""
    entry = names(group).get(kind)
    if entry is None or entry.dist is None:
        return made.__qualname__
    return f"{entry.value} of {entry.dist.name} {entry.dist.version}"


def _wrapped(text: str, indent: str, hanging: str | None = None) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=indent,
        subsequent_indent=indent if hanging is None else hanging,
        break_long_words=False,
        break_on_hyphens=False,
    )
