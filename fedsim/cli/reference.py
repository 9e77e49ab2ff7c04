"""What option classes say of themselves: a plug-in's rule, and of each option its values, default and meaning.

The rule is a class's docstring, and that of its file where no other option class is in it. A sentence that begins with
authors and a year says where the rule is from.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fedsim.cli.places import TOP, Key, alternatives, default_of, gather, hints, is_required, key_of, kind_of
from fedsim.configuration.tables import LISTS
from fedsim.core.options import LONGEST, texts
from fedsim.core.plugins import BEHIND, HasPlugins, own

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
    takes, in words. kinds: of an option that takes one of several tables, each with its options. text: what it means;
    empty where its author has not said it.
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
    """Read the docstring, the options and their texts of an option class."""
    cited = list[str]()
    rule = [_uncited(_lines(paragraph), cited) for paragraph in _prose(made)]
    return Description(tuple(filter(None, rule)), tuple(options_of(made)), tuple(dict.fromkeys(cited)))


def options_of(made: type[Any]) -> Iterator[Option]:
    """The options of a class."""
    said, annotated = texts(made), hints(made)
    for field in dataclasses.fields(made):
        key = key_of(made, field.name, annotated[field.name])
        kinds = [one for one in key if kind_of(one)] if isinstance(key, tuple) else []
        each = tuple(f"{kind_of(one)}: {_plain_options(one) or 'no options'}" for one in kinds)
        values = _values(made, field.name, annotated[field.name], key)
        yield Option(field.name, _default(field), values, each, said[field.name])


def summary(made: type[Any]) -> str:
    """The first sentence about a plug-in."""
    return next((_sentence(paragraph) for paragraph in _prose(made) if paragraph), "")


def markdown() -> Iterator[str]:
    """Lines of a page about all tables of an experiment file, with our own plug-ins: a line an option."""
    shown = set[type]()
    for key, place in gather(built_in=True).items():
        yield ""
        yield f"## {', '.join(map(_heading, place.tables))}"
        behind = BEHIND.get(key) if isinstance(key, str) else None
        if behind is not None:
            yield ""
            yield f"And the {behind} of other names, for which see theirs."
        for kind, made in place.kinds.items():
            if behind is not None and kind not in own(str(key)):
                continue
            for base in reversed(_ancestors(made)):
                if base not in shown:
                    shown.add(base)
                    yield from _section(f"*{base.__name__}*", base)
            yield from _section(f"`{kind}`" if kind else "", made)


def _section(heading: str, made: type[Any]) -> Iterator[str]:
    """Lines about an option class, which describe the options that it declares itself."""
    if heading:
        yield ""
        yield f"### {heading}"
    file = _sentence(_of_file(made)) if heading.startswith("`") else ""
    note = " ".join(filter(None, (file, _sentence(_docstring(made)))))
    bases = [f"[*{base.__name__}*](#{base.__name__.lower()})" for base in _ancestors(made)[:1]]
    own = [option for option in options_of(made) if option.name in inspect.get_annotations(made)]
    if heading.startswith("*"):
        bases = []
    yield ""
    yield escaped(note)
    if bases:
        yield f"Options: those of {bases[0]}{', and' if own else '.'}"
    elif not own:
        yield "No options."
    if own:
        yield ""
        yield from table(own)


def table(options: Iterable[Option]) -> Iterator[str]:
    """Lines of a table of options."""
    yield "| option | default | values | meaning |"
    yield "|---|---|---|---|"
    for option in options:
        name = f"**`{option.name}`**" if option.default is None else f"`{option.name}`"
        default = f"`{option.default}`" if option.default else ""
        yield f"| {name} | {default} | {escaped(option.values)} | {escaped(option.text)} |"


def _heading(table: str) -> str:
    if table == TOP:
        return "The top of the file"
    return f"`[[{table}]]`" if table in LISTS else f"`[{table}]`"


def escaped(text: str) -> str:
    """A text as a cell of a table has it, in which Markdown sees no tags."""
    return re.sub(r"<(?=\w)", r"\\<", text).replace("|", "\\|")


def _values(made: type[Any], option: str, hint: Any, key: Key | None) -> str:
    """Which values an option takes, in words."""
    if isinstance(key, str):
        if issubclass(made, HasPlugins) and option in made.lists:
            return f"a list of {key}, each a name or a table with kind"
        return f"one of the {key}, a name or a table with kind"
    words = [] if key is None else [kind_of(one) for one in key if kind_of(one)]
    if words:
        return f"{' or '.join(words)}, a name or a table with kind"
    return " or ".join(map(_words, alternatives(hint)))


def _words(hint: Any) -> str:
    """Which values a type has, in words."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in PLAIN:
        return PLAIN[hint]
    if origin is Annotated:
        return _bounded(arguments[0], arguments[1:])
    if origin is Literal:
        return " or ".join(map(toml_of, arguments))
    if origin is tuple:
        inner = arguments[:1] if arguments[1:] == (Ellipsis,) else arguments
        return f"a list: {', '.join(' or '.join(map(_words, alternatives(one))) for one in inner)}"
    if origin is dict:
        return "a table"
    if dataclasses.is_dataclass(hint):
        return f"a table: {_plain_options(hint)}"
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
    return ", ".join([_words(hint), *words])


def _default(field: dataclasses.Field[Any]) -> str | None:
    if is_required(field):
        return None
    default = default_of(field)
    return "" if default is None else toml_of(default)


def toml_of(value: Any) -> str:
    """A value as TOML has it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, list):
        return f"[{', '.join(map(toml_of, value))}]"
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{name} = {toml_of(one)}' for name, one in value.items())} }}" if value else "{}"
    return str(value)


def _plain_options(made: Any) -> str:
    """The names and defaults of a class's options."""
    defaults = {field.name: _default(field) for field in dataclasses.fields(made)}
    return ", ".join(f"{name} = {default}" if default else name for name, default in defaults.items())


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
    """What is said of a class, by paragraph; where it says nothing itself, what its file says."""
    own = _docstring(made)
    file = _of_file(made) if own else inspect.cleandoc(sys.modules[made.__module__].__doc__ or "")
    return [*file.split("\n\n"), *own.split("\n\n")]


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


def _sentence(text: str) -> str:
    paragraph = " ".join(text.strip().partition("\n\n")[0].split())
    return re.split(SENTENCES, paragraph, maxsplit=1)[0]


def _ancestors(made: type[Any]) -> list[type[Any]]:
    """The classes with options of their own from which a class inherits, the nearest first."""
    return [base for base in made.__mro__[1:] if dataclasses.is_dataclass(base) and _declares(base)]


def _declares(made: Any) -> bool:
    """Whether a class declares an option itself."""
    return any(field.name in inspect.get_annotations(made) for field in dataclasses.fields(made))
