"""`conformance`: one line that makes a test class of all checks for a plug-in."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

import pytest

from fedsim.core import plugins
from fedsim.core.errors import InputError
from fedsim.testing import checks
from fedsim.testing.on_ray import the_same_under_flowers_engine
from fedsim.testing.others import Other
from fedsim.testing.plugin import MARKER
from fedsim.testing.subject import DEFAULTS, Path, Subject, fits_functions, part_of, table_of


def conformance(
    plugin: Any,
    *,
    client: Any = None,
    strategy: Any = None,
    others: Mapping[str, Any] | None = None,
    crossing: Mapping[str, Any] | None = None,
    reporting: Mapping[str, Any] | None = None,
    refused: Collection[str] = (),
    alone: Mapping[str, Any] | None = None,
    tolerance: float = 1e-5,
    **tables: Any,
) -> type:
    """Make a test class of all that a strategy or a client keeps to; assign it to a name that begins with `Test`.

    plugin: a strategy or a client, made with options with which it runs on `small_problem`; or the tables of an
    experiment, whose strategy and client are held to the contract, whichever it names. client, strategy: the plug-in's
    partner, an object, a name or a table; by default `fedavg`, and `sgd` in two epochs of batches of 4. tables: others
    of the experiment, such as `selection` or `devices`.

    others: for options whose other values are not found by their types, a value that must change the run, or a pair
    of it and what it needs to matter: other options, tables, or `{"opaque": True}` for functions that only tell values.
    crossing, reporting: the same for options that change only what crosses, or only what is reported. refused: options
    that the plug-in has from others and takes no other value of. Where an option is one of a mapping's plug-ins it is
    named with its table, as in `client.lr`.

    alone: options of the strategy with which it makes do with a single client. tolerance: by how much executors may
    differ in single precision, of the largest parameter. InputError: an experiment could not name the plug-in.
    """
    tested = _parts(plugin)
    partners = {"strategy": strategy, "client": client}
    for part in tested:
        if partners[part] is not None:
            raise InputError(part, str(partners[part]), f"the plug-in is a {part} already; leave this one out")
    handed = tested | {part: partner for part, partner in partners.items() if partner is not None}
    named = {part: made if isinstance(made, Mapping | str) else table_of(part, made) for part, made in handed.items()}
    subject = Subject(
        {**tables, **(plugin if isinstance(plugin, Mapping) else {}), **named},
        given={part: made for part, made in handed.items() if not isinstance(made, Mapping | str)},
        tolerance=tolerance,
        alone=alone or {},
    )
    methods: dict[str, Any] = {f"test_{check.__name__}": _about(check, subject) for check in checks.CHECKS}
    asking = handed.get("client", DEFAULTS["client"])
    if fits_functions(plugins.make("clients", asking, "client") if isinstance(asking, Mapping | str) else asking):
        opaque = replace(subject, opaque=True)
        methods |= {f"test_{check.__name__}_on_functions": _about(check, opaque) for check in checks.ON_FUNCTIONS}
    options = _options(subject, tested, qualified=isinstance(plugin, Mapping))
    values = {"others": others or {}, "crossing": crossing or {}, "reporting": reporting or {}}
    for keyword, names in (*values.items(), ("refused", refused)):
        for name in names:
            if name not in options:
                raise InputError(keyword, name, f"no such option here; name one of: {', '.join(options)}")
    moving = [name for name in options if name not in {*values["crossing"], *values["reporting"], *refused}]
    for check, about, given in (
        (checks.every_option_moves_something, moving, values["others"]),
        (checks.an_option_that_is_refused, refused, {}),
        (checks.what_crosses_otherwise_changes_nothing_else, values["crossing"], values["crossing"]),
        (checks.what_is_reported_changes_nothing_else, values["reporting"], values["reporting"]),
    ):
        if about:
            methods[f"test_{check.__name__}"] = _about_options(check, subject, options, about, given)
    methods[f"test_{the_same_under_flowers_engine.__name__}"] = _on_ray(subject)
    return type("TestConformance", (), {"__doc__": "What every strategy and every client keeps to.", **methods})


def _parts(plugin: Any) -> dict[str, Any]:
    """What is held to the contract: strategy or client, or of an experiment's tables both that it names."""
    if not isinstance(plugin, Mapping):
        return {part_of(plugin): plugin}
    found = {part: plugin[part] for part in DEFAULTS if part in plugin}
    if not found:
        raise InputError("plugin", ", ".join(plugin), "name a strategy or a client in it, or hand over an object")
    return found


def _options(subject: Subject, parts: Collection[str], *, qualified: bool) -> dict[str, tuple[Path, str]]:
    """Where each option stands, by its name; qualified: with that of its table before it."""
    found: dict[str, tuple[Path, str]] = {}
    for part in parts:
        made = subject.given[part] if part in subject.given else subject.part((part,))
        for field in dataclasses.fields(made):
            found[f"{part}.{field.name}" if qualified else field.name] = ((part,), field.name)
    return found


def _about(check: checks.Check, subject: Subject) -> Callable[[Any], None]:
    def test(self: Any) -> None:  # noqa: ARG001
        check(subject)

    test.__doc__ = check.__doc__
    return test


def _about_options(
    check: Callable[..., None],
    subject: Subject,
    options: Mapping[str, tuple[Path, str]],
    about: Collection[str],
    values: Mapping[str, Any],
) -> Callable[[Any, str], None]:
    def test(self: Any, option: str) -> None:  # noqa: ARG001
        path, name = options[option]
        check(subject, path, name, _other(values[option]) if option in values else None)

    test.__doc__ = check.__doc__
    marked: Callable[[Any, str], None] = pytest.mark.parametrize("option", list(about))(test)
    return marked


def _other(value: Any) -> Other:
    """Another value, with what it needs to matter if that stands beside it."""
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], Mapping):
        return value
    return value, {}


def _on_ray(subject: Subject) -> Callable[[Any, pytest.FixtureRequest], None]:
    def test(self: Any, request: pytest.FixtureRequest) -> None:  # noqa: ARG001
        the_same_under_flowers_engine(subject, request.config)

    test.__doc__ = the_same_under_flowers_engine.__doc__
    marked: Callable[[Any, pytest.FixtureRequest], None] = getattr(pytest.mark, MARKER)(test)
    return marked
