"""What option classes say of themselves: a plug-in's rule, and of each option its values, default and meaning.

A docstring speaks of an option as `name: text`, of several as `name, name: text`; that ends with the next such name or
with the paragraph. What it says besides is the rule, which a class that is alone in its file may leave to the file's
docstring. A sentence that begins with authors and a year says where the rule is from.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union

from fedsim import configuration, registry
from fedsim.adversarial.training import Defence
from fedsim.checkpoint import Checkpointing
from fedsim.curriculum.samples import SampleCurriculum
from fedsim.devices.fleet import Devices
from fedsim.evaluation import Evaluation, Stopping
from fedsim.faults import Faults
from fedsim.options import LONGEST
from fedsim.parts import Parts
from fedsim.problems.expert import Expert

TABLES = (
    ("strategy", "strategies"),
    ("client", "clients"),
    ("client.adversarial", "defences"),
    ("client.adversarial.attack", "attacks"),
    ("client.estimator", "estimators"),
    ("problem", "problems"),
    ("problem.dataset", "datasets"),
    ("problem.model", "models"),
    ("partition", "partitions"),
    ("selection", "selectors"),
    ("aggregation", "aggregators"),
    ("[transforms]", "transforms"),
    ("devices.compute", "devices"),
    ("devices.availability", "availabilities"),
)
"""Tables of an experiment file, and the group of plug-ins that each names by `kind`."""
PLAIN: dict[Any, str] = {bool: "true or false", int: "whole number", float: "number", str: "text"}
FORMULA = re.compile(r"<-|->| = | ~ ")
ITEM = re.compile(r"[-*] |\d+\. ")
AUTHORS = r"[A-Z][\w'-]+(?:,? (?:[A-Z][\w'-]+|and|et al\.))*"
CITATION = re.compile(rf"(?:Source: )?{AUTHORS} \(?(?:19|20)\d\d\b")
SENTENCES = re.compile(r"(?<=[^.]\.) (?=[A-Z`])")
BOUNDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}


@dataclass(frozen=True)
class Option:
    """An option as a reader meets it.

    default: as TOML has it; empty: it is off, or follows from the others; None: it must be given. values: which it
    takes, in words. kinds: of an option that takes one of several tables, each with its options. text: what it means.
    """

    name: str
    default: str | None
    values: str
    kinds: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class Description:
    """An option class in words. rule: paragraphs of lines; formulas have their own. sources: where it is from."""

    rule: tuple[tuple[str, ...], ...]
    options: tuple[Option, ...]
    sources: tuple[str, ...]


def describe(made: type[Any]) -> Description:
    """Read the docstrings and annotations of an option class, and of those that it has options from."""
    fields = dataclasses.fields(made)
    texts: dict[str, str] = {}
    for base in reversed(made.__mro__):
        if dataclasses.is_dataclass(base):
            for name, text in _spoken(base)[1].items():
                texts[name] = f"{texts[name]} {text}" if name in texts else text
    cited = list[str]()
    rule = [_uncited(_lines(paragraph), cited) for paragraph in _prose(made)]
    hints = typing.get_type_hints(made, include_extras=True)
    options = tuple(_option(made, field, hints[field.name], texts.get(field.name, ""), cited) for field in fields)
    return Description(tuple(filter(None, rule)), options, tuple(dict.fromkeys(cited)))


def summary(made: type[Any]) -> str:
    """The first sentence about a plug-in."""
    return next((_sentence(paragraph) for paragraph in _prose(made) if paragraph), "")


def markdown() -> Iterator[str]:
    """Lines of a table: one for each of our plug-ins and for each table of an experiment file without plug-ins."""
    yield "| table | kind | options | notes |"
    yield "|---|---|---|---|"
    yield _row("", "", configuration._Top)
    shown: set[type] = set()
    for table, group in TABLES:
        for name, entry in registry.names(group).items():
            made = entry.load()
            if made in _installed():
                yield from _bases(table, made, shown)
                yield _row(table, f"`{name}`", made)
    for field, owner in (("server_optimizer", "strategy"), ("staleness", "strategy"), ("schedule", "client")):
        entries = registry.names(dict(TABLES)[owner]).values()
        yield from _nested(owner, field, [entry.load() for entry in entries], shown)
    yield _row("client.curriculum", "", SampleCurriculum)
    yield from _nested("client.curriculum", "pacing", [SampleCurriculum], shown)
    yield _row("client.curriculum.expert", "", Expert)
    yield from _nested("client.adversarial", "growth", [Defence], shown)
    for table, made in (
        ("evaluation", Evaluation),
        ("stopping", Stopping),
        ("devices", Devices),
        ("faults", Faults),
        ("engine", configuration.EngineOptions),
        ("checkpoint", Checkpointing),
    ):
        yield _row(table, "", made)
        for field, inner in _tables(made):
            yield from _bases(table, inner, shown)
            yield _row(f"{table}.{field}", "", inner)


def _option(made: type[Any], field: dataclasses.Field[Any], hint: Any, text: str, cited: list[str]) -> Option:
    part = made.parts.get(field.name) if issubclass(made, Parts) else None
    if part is None:
        values = _values(hint)
    elif field.name in made.lists:
        values = f"a list of {part}, each a name or a table with kind"
    else:
        values = f"one of the {part}, a name or a table with kind"
    kinds = tuple(
        f"{kind.kind}: {', '.join(map(_plain, dataclasses.fields(kind))) or 'no options'}" for kind in _kinds(hint)
    )
    return Option(field.name, _default(field), values, kinds, " ".join(_uncited((text,), cited)))


def _values(hint: Any) -> str:
    """Which values a field of this type takes, in words."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in PLAIN:
        return PLAIN[hint]
    if origin is Annotated:
        return _bounded(arguments[0], arguments[1:])
    if origin is Literal:
        return " or ".join(map(_toml, arguments))
    if origin in (Union, UnionType):
        if kinds := _kinds(hint):
            return f"{' or '.join(kind.kind for kind in kinds)}, a name or a table with kind"
        return " or ".join(_values(one) for one in arguments if one is not NoneType)
    if origin is tuple:
        inner = arguments[:1] if arguments[1:] == (Ellipsis,) else arguments
        return f"a list: {', '.join(map(_values, inner))}"
    if dataclasses.is_dataclass(hint):
        return "a table"
    return "anything" if hint is Any else str(getattr(hint, "__name__", hint))


def _bounded(hint: Any, metadata: Iterable[Any]) -> str:
    """The values of a type within the bounds that an annotation adds."""
    bounds = {
        name: getattr(bound, name)
        for annotation in metadata
        for bound in getattr(annotation, "metadata", ())
        for name in BOUNDS
        if hasattr(bound, name)
    }
    if bounds.get("le") == LONGEST:
        return "seconds, at least 0" if bounds["ge"] == 0 else "seconds"
    words = [f"{BOUNDS[name]} {bound:.10g}" for name, bound in bounds.items()]
    return ", ".join([_values(hint), *words])


def _kinds(hint: Any) -> list[Any]:
    """The option classes that a field with several kinds takes."""
    if typing.get_origin(hint) is Annotated:
        hint = typing.get_args(hint)[0]
    return [made for made in typing.get_args(hint) if hasattr(made, "kind")]


def _default(field: dataclasses.Field[Any]) -> str | None:
    if field.default is dataclasses.MISSING:
        return None
    return "" if field.default is None else _toml(getattr(field.default, "kind", field.default))


def _toml(value: Any) -> str:
    """A value as TOML has it; a table that is there by default as Python shows it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    return str(list(value)) if isinstance(value, tuple) else str(value)


def _plain(field: dataclasses.Field[Any]) -> str:
    default = _default(field)
    return f"{field.name} = {default}" if default else field.name


def _docstring(made: type[Any]) -> str:
    """A class's own text; none for what a dataclass says of itself where its author said nothing."""
    text = inspect.cleandoc(vars(made).get("__doc__") or "")
    return "" if text.startswith(f"{made.__name__}(") else text


def _of_file(made: type[Any]) -> str:
    """The docstring of a class's file where it is the only option class in it."""
    module = sys.modules[made.__module__]
    there = [one for one in vars(module).values() if isinstance(one, type) and "__dataclass_fields__" in vars(one)]
    alone = [one for one in there if one.__module__ == made.__module__ and hasattr(one, "__pydantic_config__")]
    return inspect.cleandoc(module.__doc__ or "") if alone == [made] else ""


def _prose(made: type[Any]) -> list[str]:
    """What is said of a class besides its options, by paragraph; where it says nothing, what its file says."""
    own = _spoken(made)[0]
    file = _of_file(made) if any(own) else inspect.cleandoc(sys.modules[made.__module__].__doc__ or "")
    return [*file.split("\n\n"), *own]


def _marker(names: Iterable[str]) -> str:
    """A pattern of what stands before the text about options: `name:`, or `name, name:`."""
    one = "|".join(names) or "-"
    return rf"\b(?:{one})(?:,\s+(?:or\s+)?(?:{one}))*:(?=\s)"


def _spoken(made: type[Any]) -> tuple[list[str], Mapping[str, str]]:
    """What a class's docstring says besides its options, by paragraph, and what it says of each option."""
    marker = _marker(field.name for field in dataclasses.fields(made))
    rule, texts = list[str](), dict[str, str]()
    for paragraph in _docstring(made).split("\n\n"):
        before, *rest = re.split(f"({marker})", paragraph)
        rule.append(before)
        for names, text in zip(rest[::2], rest[1::2], strict=True):
            texts |= dict.fromkeys(re.findall(r"\w+", names), " ".join(text.split()))
    return rule, texts


def _lines(paragraph: str) -> tuple[str, ...]:
    """The lines of a paragraph as its author meant them: of formulas and items as they are, of prose in one."""
    lines = list[str]()
    for line in paragraph.splitlines():
        line = line.strip()
        formulas = lines and FORMULA.search(lines[-1]) and (FORMULA.search(line) or line[:1].isupper())
        if lines and not formulas and not ITEM.match(line):
            lines[-1] = f"{lines[-1]} {line}"
        else:
            lines.append(line)
    return tuple(lines)


def _uncited(lines: Iterable[str], cited: list[str]) -> tuple[str, ...]:
    """Lines without their sentences about where the rule is from, which are added to `cited`."""
    kept = list[str]()
    for line in lines:
        sentences = re.split(SENTENCES, line)
        cited += [sentence.removeprefix("Source: ") for sentence in sentences if CITATION.match(sentence)]
        kept += filter(None, [" ".join(sentence for sentence in sentences if not CITATION.match(sentence))])
    return tuple(kept)


def _bases(table: str, made: type[Any], shown: set[type]) -> Iterator[str]:
    """Lines about the classes from which a class has options, but for those that were shown already."""
    for base in reversed(_ancestors(made)):
        if base not in shown:
            shown.add(base)
            yield _row(table, f"*{base.__name__}*", base)


def _nested(table: str, field: str, owners: Iterable[type[Any]], shown: set[type]) -> Iterator[str]:
    """Lines about the classes of a field that takes one of several, in any of the classes that have it."""
    found = (_kinds(typing.get_type_hints(owner, include_extras=True).get(field)) for owner in owners)
    for kind, made in {made.kind: made for kinds in found for made in kinds}.items():
        yield from _bases(f"{table}.{field}", made, shown)
        yield _row(f"{table}.{field}", f"`{kind}`", made)


def _row(table: str, kind: str, made: type[Any]) -> str:
    options = [f"those of *{base.__name__}*" for base in _ancestors(made)[:1] if not kind.startswith("*")]
    options += [_shown(field) for field in _own_fields(made)]
    heading = f"`[{table}]`" if table else "(top)"
    return f"| {heading} | {kind} | {', '.join(options) or 'none'} | {_notes(made)} |"


def _shown(field: dataclasses.Field[Any]) -> str:
    return f"**`{field.name}`**" if _default(field) is None else f"`{_plain(field)}`"


def _notes(made: type[Any]) -> str:
    """The first sentence of the docstring, and what it says of the options, from the first `name:` on.

    A plug-in that is alone in its file is introduced by the file's first sentence.
    """
    text = _docstring(made)
    options = re.search(_marker(field.name for field in _own_fields(made)), text)
    cut = len(text) if options is None else options.start()
    parts = [
        _sentence(_of_file(made)) if made in _installed() else "",
        _sentence(text[:cut]),
        " ".join(text[cut:].split()),
    ]
    return " ".join(filter(None, parts)).replace("|", "\\|")


def _sentence(text: str) -> str:
    paragraph = " ".join(text.strip().partition("\n\n")[0].split())
    return re.split(SENTENCES, paragraph, maxsplit=1)[0]


def _tables(made: type[Any]) -> Iterator[tuple[str, type[Any]]]:
    """The fields of a class that take a table of options, and whose options those are."""
    for name, hint in typing.get_type_hints(made).items():
        for one in typing.get_args(hint) or (hint,):
            if isinstance(one, type) and dataclasses.is_dataclass(one):
                yield name, one


def _ancestors(made: type[Any]) -> list[type[Any]]:
    """The classes with options of their own from which a class inherits, the nearest first."""
    return [base for base in made.__mro__[1:] if dataclasses.is_dataclass(base) and _own_fields(base)]


def _own_fields(made: Any) -> list[dataclasses.Field[Any]]:
    declared = inspect.get_annotations(made)
    return [field for field in dataclasses.fields(made) if field.name in declared]


@cache
def _installed() -> list[type]:
    """The plug-ins of fedsim itself."""
    ours = (entry for _, group in TABLES for entry in registry.names(group).values())
    return [entry.load() for entry in ours if entry.dist is None or entry.dist.name == "fedsim"]
