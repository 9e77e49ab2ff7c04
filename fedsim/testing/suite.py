"""`conformance`: one line that makes a test class of all checks for a plug-in."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path as FilePath
from typing import Any

import pytest

from fedsim.configuration.tables import PLUGINS
from fedsim.core import plugins
from fedsim.core.errors import InputError
from fedsim.core.near import name_one
from fedsim.testing import (
    aggregators,
    checks,
    datasets,
    losses,
    measures,
    models,
    optimizers,
    option_checks,
    selectors,
    trackers,
    transforms,
)
from fedsim.testing.on_ray import the_same_under_flowers_engine
from fedsim.testing.others import REPORTED, Other
from fedsim.testing.plugin import MARKER
from fedsim.testing.specimen import (
    EVERY,
    Check,
    Specimen,
    an_option_that_is_refused,
    every_option_moves_something,
)
from fedsim.testing.subject import DEFAULTS, PARTS, Path, Subject, fits_functions, group_of, table_of

KITS: Mapping[str, tuple[type[Specimen], Sequence[Check]]] = {
    "selectors": (selectors.Choosing, selectors.CHECKS),
    "aggregators": (aggregators.Combining, aggregators.CHECKS),
    "transforms": (transforms.Crossing, transforms.CHECKS),
    "datasets": (datasets.Loading, datasets.CHECKS),
    "losses": (losses.Costing, losses.CHECKS),
    "measures": (measures.Measuring, measures.CHECKS),
    "models": (models.Making, models.CHECKS),
    "optimizers": (optimizers.Stepping, optimizers.CHECKS),
    "trackers": (trackers.Following, trackers.CHECKS),
}
"""Of the kinds that work on plain numbers a class of specimens, and what each keeps to."""
SETTINGS = (("datasets", "folder"), ("trackers", "read"), ("optimizers", "lr"))
"""What these take beside the plug-in, by their groups."""


def conformance(
    plugin: Any,
    *,
    others: Mapping[str, Any] | None = None,
    refused: Collection[str] = (),
    folder: FilePath | None = None,
    read: trackers.Read | None = None,
    **settings: Any,
) -> type:
    """Make a test class of all that plug-ins of a kind keep to; assign it to a name that begins with `Test`.

    plugin: a strategy, a client, an optimizer, a selector, an aggregator, a transform, a data set, a loss, a measure, a
    model or a tracker, made with options with which it works: a strategy or a client on `small_problem`, as a client
    that trains by an optimizer, a selector among 6 clients, an aggregator on 12 replies, a loss of four classes,
    numbers or tags, a measure of six. Or the tables of an experiment, whose strategy and client are held to the
    contract, whichever it names.

    others: for options whose other values are not found by their types, a value that must change something, or a pair
    of it and what it needs to matter: other options, and of a strategy or a client also tables, or
    `{"values_only": True}` for functions. refused: options that it has from others and takes no other value of.
    folder: where a data set finds its files, by default where FEDSIM_DATA says; without that its tests are skipped.
    read: gives the rows that a tracker has of the run in a folder; without it these are not looked at.

    settings, of an optimizer: `lr`, by default its usual one; of strategies and clients: `strategy` or `client`, the
    partner, an object, a name or a table; by default `fedavg`, and `sgd` in two epochs of batches of 4. `crossing`,
    `reporting`: as others, for options that change only what crosses, or only what is reported. `alone`: options of the
    strategy with which it makes do with a single client. `tolerance`: by how much executors may differ in single
    precision, of the largest parameter, 1e-5, and in double by a ten-thousandth of that. Other tables of the
    experiment, such as `selection` or `devices`; of `problem` what it says of `shared` counts. Where an option is one
    of a mapping's plug-ins it is named with its table, as in `client.lr`.

    InputError: an experiment could not name the plug-in, or a setting is none for its kind.
    """
    group = "algorithms" if isinstance(plugin, Mapping) else group_of(plugin)
    if group in KITS:
        settings |= {name: one for name, one in (("folder", folder), ("read", read)) if one is not None}
        return _of_specimen(group, plugin, others or {}, refused, settings)
    if folder is not None:
        raise InputError("folder", str(folder), "only a data set is read from one; leave it out")
    if read is not None:
        raise InputError("read", str(read), "only of a tracker rows are read; leave it out")
    return _of_algorithms(plugin, others=others or {}, refused=refused, **settings)


def _of_specimen(
    group: str, plugin: Any, others: Mapping[str, Any], refused: Collection[str], settings: Mapping[str, Any]
) -> type:
    """The tests of a plug-in that works on plain numbers."""
    made, own = KITS[group]
    for name, value in settings.items():
        if (group, name) not in SETTINGS:
            raise InputError(name, str(value), f"is no setting for {group}; leave it out")
    specimen = made(plugin, **settings)
    options = [field.name for field in dataclasses.fields(plugin)]
    _hold_known({"others": others, "refused": refused}, options)
    methods: dict[str, Any] = {f"test_{check.__name__}": _about(check, specimen) for check in (*EVERY, *own)}
    if isinstance(specimen, optimizers.Stepping):
        methods |= {f"test_{check.__name__}": _about(check, specimen.subject) for check in checks.CHECKS}
    for check, about, given in (
        (every_option_moves_something, [name for name in options if made.moving and name not in refused], others),
        (an_option_that_is_refused, refused, {}),
    ):
        if about:
            methods[f"test_{check.__name__}"] = _about_options(
                check, specimen, {name: (name,) for name in about}, given
            )
    return type("TestConformance", (), {"__doc__": f"What all {group} keep to.", "specimen": specimen, **methods})


def _hold_known(keywords: Mapping[str, Collection[str]], options: Collection[str]) -> None:
    """Refuse what is said of options that there are not."""
    for keyword, names in keywords.items():
        for name in names:
            if name not in options:
                raise InputError(keyword, name, f"no such option here; {name_one(name, options)}")


def _of_algorithms(
    plugin: Any,
    *,
    others: Mapping[str, Any],
    refused: Collection[str],
    client: Any = None,
    strategy: Any = None,
    crossing: Mapping[str, Any] | None = None,
    reporting: Mapping[str, Any] | None = None,
    alone: Mapping[str, Any] | None = None,
    tolerance: float = 1e-5,
    **tables: Any,
) -> type:
    """The tests of a strategy, a client, or both."""
    tested = _parts(plugin)
    partners = {"strategy": strategy, "client": client}
    for part in tested:
        if partners[part] is not None:
            raise InputError(part, str(partners[part]), f"the plug-in is a {part} already; leave this one out")
    handed = tested | {part: partner for part, partner in partners.items() if partner is not None}
    named = {
        part: made if isinstance(made, Mapping | str) else table_of(PLUGINS[part][0], made)
        for part, made in handed.items()
    }
    subject = Subject(
        {**tables, **(plugin if isinstance(plugin, Mapping) else {}), **named},
        given={part: made for part, made in handed.items() if not isinstance(made, Mapping | str)},
        tolerance=tolerance,
        alone=alone or {},
    )
    methods: dict[str, Any] = {f"test_{check.__name__}": _about(check, subject) for check in checks.CHECKS}
    asking = handed.get("client", DEFAULTS["client"])
    if fits_functions(plugins.make("clients", asking, "client") if isinstance(asking, Mapping | str) else asking):
        values_only = replace(subject, values_only=True)
        methods |= {f"test_{check.__name__}_on_functions": _about(check, values_only) for check in checks.ON_FUNCTIONS}
    options = _options(subject, tested, qualified=isinstance(plugin, Mapping))
    reported = {name: REPORTED[field] for name, (_, field) in options.items() if field in REPORTED}
    values = {"others": others, "crossing": crossing or {}, "reporting": {**reported, **(reporting or {})}}
    _hold_known({**values, "refused": refused}, options)
    moving = [name for name in options if name not in {*values["crossing"], *values["reporting"], *refused}]
    for check, about, given in (
        (option_checks.every_option_moves_something, moving, values["others"]),
        (option_checks.an_option_that_is_refused, refused, {}),
        (option_checks.what_crosses_otherwise_changes_nothing_else, values["crossing"], values["crossing"]),
        (option_checks.what_is_reported_changes_nothing_else, values["reporting"], values["reporting"]),
    ):
        if about:
            places = {name: options[name] for name in about}
            methods[f"test_{check.__name__}"] = _about_options(check, subject, places, given)
    methods[f"test_{the_same_under_flowers_engine.__name__}"] = _on_ray(subject)
    return type("TestConformance", (), {"__doc__": "What every strategy and every client keeps to.", **methods})


def _parts(plugin: Any) -> dict[str, Any]:
    """What is held to the contract: strategy or client, or of an experiment's tables both that it names."""
    if not isinstance(plugin, Mapping):
        return {PARTS[group_of(plugin)]: plugin}
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


def _about(check: Callable[[Any], None], tested: Any) -> Callable[[Any], None]:
    def test(self: Any) -> None:  # noqa: ARG001
        with _excused(tested):
            check(tested)

    test.__doc__ = check.__doc__
    return test


def _about_options(
    check: Callable[..., None], tested: Any, options: Mapping[str, tuple[Any, ...]], values: Mapping[str, Any]
) -> Callable[[Any, str], None]:
    """A test for each option. options: what tells the check which option it is, by its name."""

    def test(self: Any, option: str) -> None:  # noqa: ARG001
        with _excused(tested):
            check(tested, *options[option], _other(values[option]) if option in values else None)

    test.__doc__ = check.__doc__
    marked: Callable[[Any, str], None] = pytest.mark.parametrize("option", list(options))(test)
    return marked


@contextmanager
def _excused(tested: Any) -> Iterator[None]:
    """Skip a test where what it needs is not there."""
    try:
        yield
    except InputError as error:
        reason = tested.excuse(error) if isinstance(tested, Specimen) else None
        if reason is None:
            raise
        pytest.skip(reason)


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
