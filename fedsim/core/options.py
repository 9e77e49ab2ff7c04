"""Options: frozen dataclasses whose fields are checked when they are made.

`@options` turns a class with annotated fields into a frozen, keyword-only dataclass. Unknown names, wrong
types, values out of range, NaN and infinity are refused with an `InputError`, from TOML and from Python
alike. The annotated types below say the ranges once. What an option means is said in a string under it (see `texts`).
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import re
import sys
from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal, TypeVar, dataclass_transform

from pydantic import BeforeValidator, ConfigDict, Field, PydanticUndefinedAnnotation, PydanticUserError, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic.dataclasses import rebuild_dataclass

from fedsim.core.errors import InputError
from fedsim.core.near import meant, name_one

PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
LARGEST = 1e30
"""The most that a rate may be, so that it is a number in single precision."""
Rate = Annotated[float, Field(gt=0, le=LARGEST)]
"""A learning rate."""
Decay = Annotated[float, Field(ge=0, le=LARGEST)]
"""A factor of weights that is added to gradients."""
Share = Annotated[float, Field(ge=0, le=1)]
"""A share of something, 0 to 1 inclusive."""
Fraction = Annotated[float, Field(ge=0, lt=1)]
"""A factor in [0, 1), such as a momentum."""
LONGEST = 1e9
"""Seconds, 31 years: the most that an option or a row of a trace may say, so that ticks stay far from 2^63."""
Seconds = Annotated[float, Field(ge=1e-9, le=LONGEST)]
"""A duration in virtual seconds, from one tick of the clock to 31 years."""
PositiveInt = Annotated[int, Field(ge=1)]
Passes = Annotated[int, Field(ge=1, le=1_000_000)]
"""Epochs, or steps, of one round: so many that a count of steps stays a number of 64 bits."""
NonNegativeInt = Annotated[int, Field(ge=0)]
Name = Annotated[str, Field(min_length=1, pattern=r"^[^/\x00-\x1f]+$")]
"""A name that can be a folder's."""
Counts = Annotated[tuple[PositiveInt, ...], Field(strict=False)]
"""Several counts; a TOML array."""
Texts = Annotated[tuple[str, ...], Field(strict=False)]
"""Several texts; a TOML array, in Python a list or a tuple."""
Box = Annotated[tuple[float, float], Field(strict=False)]
"""A lower and an upper bound; a TOML array, in Python a list or a tuple."""

BatchSize = PositiveInt | Literal["full"]
"""How many examples a step is about; full: all that the client has."""

T = TypeVar("T")
CONFIG = ConfigDict(
    extra="forbid", strict=True, allow_inf_nan=False, arbitrary_types_allowed=True, validate_default=True
)


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(Field,))
def options(cls: type[T]) -> type[T]:
    """Make `cls` a frozen, keyword-only dataclass that checks its fields (see the module's text)."""
    for base in cls.__mro__[1:]:
        for name in getattr(base, "__dataclass_fields__", {}):
            if isinstance(vars(cls).get(name), property | staticmethod | classmethod):
                raise InputError(
                    cls.__qualname__, name, f"is an option of {base.__qualname__}; call the method otherwise"
                )
    made = pydantic_dataclass(frozen=True, kw_only=True, config=CONFIG)(cls)
    checked = made.__init__

    @functools.wraps(checked)
    def check(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            checked(self, *args, **kwargs)
        except ValidationError as error:
            raise first_error(error, "", made) from None
        except PydanticUserError as error:
            said = undefined_name(made)
            if said is None:
                raise
            raise InputError("class", made.__qualname__, said) from error

    made.__init__ = check  # type: ignore[method-assign]
    return made  # type: ignore[return-value]


def undefined_name(cls: type[Any]) -> str | None:
    """What to say of an option class one of whose annotations names what there is not; None: all are known."""
    try:
        rebuild_dataclass(cls)
    except PydanticUndefinedAnnotation as error:
        absent = error.name
    else:
        return None
    written = {
        name: str(hint) for base in reversed(cls.__mro__) for name, hint in inspect.get_annotations(base).items()
    }
    fields = [name for name, hint in written.items() if re.search(rf"\b{re.escape(absent or '')}\b", hint)]
    place = getattr(sys.modules.get(cls.__module__), "__file__", cls.__module__)
    said = f"option {fields[0]} is a {written[fields[0]]}" if fields else "an option's type is not known"
    return f"{place}, class {cls.__qualname__}: {said}, and {absent} is not defined; import it, or correct its name"


def texts(cls: type[Any]) -> dict[str, str]:
    """What each option of a class means, by name: the string under it, where it is declared; "" where nothing is said.

    Strings are read from the source when they are asked for, so that making a class costs nothing. A class whose source
    is not at hand, as of a notebook's cell, says nothing.
    """
    said: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            said |= _texts_in(base)
    return {field.name: said.get(field.name, "") for field in dataclasses.fields(cls)}


@functools.cache
def _texts_in(cls: type[Any]) -> dict[str, str]:
    """The strings that stand under annotations in a class's own body, each in one line."""
    try:
        source = inspect.getsource(cls)
    except (OSError, TypeError):  # which is how `inspect` says that there is none
        return {}
    nested = source[0].isspace()
    (tree,) = ast.parse(f"if True:\n{source}" if nested else source).body
    body = (tree.body[0] if isinstance(tree, ast.If) else tree).body  # type: ignore[attr-defined]
    return {
        above.target.id: " ".join(below.value.value.split())
        for above, below in pairwise(body)
        if isinstance(above, ast.AnnAssign) and isinstance(above.target, ast.Name)
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str)
    }


def one_of(**kinds: type[Any]) -> BeforeValidator:
    """A field that takes one of several option classes: an object, a name, or a table with `kind` and options.

    Each class learns its name as `kind`, so that it can be written out again.
    """
    for name, made in kinds.items():
        made.kind = name

    def parse(given: object) -> object:
        if isinstance(given, tuple(kinds.values())):
            return given
        if not isinstance(given, str | Mapping):
            raise InputError("kind", given, name_one(given, kinds))
        table = {"kind": given} if isinstance(given, str) else dict(given)
        kind = table.pop("kind", None)
        if kind not in kinds:
            raise InputError("kind", kind, name_one(kind, kinds))
        return kinds[kind](**table)

    return BeforeValidator(parse)


def kind_named(made: Any) -> str:
    """What an object of one of the classes of `one_of` is called in a table."""
    kind: str = made.kind
    return kind


def table_of(made: type[Any]) -> BeforeValidator:
    """A field that takes an object of an option class, or a table of its options."""
    return BeforeValidator(lambda given: made(**given) if isinstance(given, Mapping) else given)


def first_error(error: ValidationError, prefix: str, cls: type[Any]) -> InputError:
    """The first of pydantic's complaints about a `cls` as one line; `prefix` is the table the option stands in."""
    first = error.errors(include_url=False)[0]
    unknown = first["type"] in ("extra_forbidden", "unexpected_keyword_argument")
    # Pydantic adds the kinds that a union tried, such as `constrained-int`, which nobody has written; the name of an
    # unknown option, at the end, somebody has, whatever it is like.
    tag, last = re.compile(r"constrained-|function-|.*\[|(str|int|float|bool)$"), len(first["loc"]) - unknown
    named = [
        str(part)
        for place, part in enumerate(first["loc"])
        if place >= last or isinstance(part, int) or not tag.match(part)
    ]
    path = ".".join(part for part in (prefix, *named) if part != "")
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, InputError):  # which names an option inside this one, or with "" this one itself
        return InputError(".".join(part for part in (path, cause.option) if part), cause.value, cause.remedy)
    if unknown:
        near = meant(named[-1], [field.name for field in dataclasses.fields(cls)])
        return InputError(path, first["input"], f"no such option here; remove it or correct its name{near}")
    if first["type"] in ("missing", "missing_argument"):
        return InputError(path, "(nothing)", "this option has no default; give it a value")
    if first["type"] == "string_pattern_mismatch":
        return InputError(path, first["input"], "leave out / and control characters")
    if first["type"] in ("dataclass_type", "dataclass_exact_type"):
        return InputError(path, first["input"], "is a table; write its options under it")
    said = first["msg"][0].lower() + first["msg"][1:]
    if first["type"] == "literal_error":
        said += meant(first["input"], re.findall("'([^']*)'", first["ctx"]["expected"]))
    return InputError(path, first["input"], said)
