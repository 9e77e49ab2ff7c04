"""`fedsim describe`: what a plug-in does, its options, and where it is from, as plain text."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedsim.errors import InputError

if TYPE_CHECKING:
    from fedsim.reference import Option

GROUPS = {
    "strategy": "strategies",
    "client": "clients",
    "estimator": "estimators",
    "defence": "defences",
    "attack": "attacks",
    "problem": "problems",
    "dataset": "datasets",
    "partition": "partitions",
    "model": "models",
    "selector": "selectors",
    "aggregator": "aggregators",
    "transform": "transforms",
    "device": "devices",
    "availability": "availabilities",
}
"""What one plug-in of a group is called."""
WIDTH = 80

Group = Annotated[str, typer.Argument(help=f"One of: {', '.join(GROUPS)}.")]
Kind = Annotated[str | None, typer.Argument(help="An installed name, module:Class or ./file.py:Class; without: all.")]


def describe(group: Group, kind: Kind = None) -> None:
    """Tell a plug-in's rule, its options and its source; without KIND, what is installed.

    GROUP is strategy, client, dataset or another of `fedsim list`; KIND a name, module:Class or ./file.py:Class.
    """
    plural = GROUPS.get(group, group)
    if plural not in GROUPS.values():
        raise InputError("group", group, f"name one of: {', '.join(GROUPS)}")
    print("\n".join(_listing(plural) if kind is None else _page(group, plural, kind)))


def _listing(group: str) -> Iterator[str]:
    from fedsim.reference import summary
    from fedsim.registry import find, names

    for name in names(group):
        yield name
        yield from _wrapped(summary(find(group, name, "kind")), "    ")


def _page(group: str, plural: str, kind: str) -> Iterator[str]:
    from fedsim.reference import describe as read
    from fedsim.registry import option_class

    made = option_class(plural, kind, "kind")
    description = read(made)
    yield f"{group} {kind}"
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
    yield f"  {_origin(plural, kind, made)}"
    source: Any = getattr(made, "made_of", made)  # a strategy of Flower's has options of a class that is made for it
    yield f"  {inspect.getsourcefile(source)}"


def _option(option: Option) -> Iterator[str]:
    default = {None: " (must be given)", "": " (not given)"}.get(option.default, f" = {option.default}")
    yield from _wrapped(f"{option.name}{default}", "  ", hanging="      ")
    yield from _wrapped(option.values, "      ")
    for kind in option.kinds:
        yield from _wrapped(kind, "        ", hanging="          ")
    yield from _wrapped(option.text, "      ")


def _origin(group: str, kind: str, made: type[Any]) -> str:
    """The class, and the package that brings it where it is installed."""
    from fedsim.registry import names

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
