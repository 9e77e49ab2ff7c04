"""Flower apps by the place where they are, `module:attribute`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any, TypeVar

from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fedsim.core.errors import InputError
from fedsim.core.generators import seeded_globals
from fedsim.flower.removed import removed

App = TypeVar("App", ServerApp, ClientApp)
OPTIONS: Mapping[type[Any], str] = {ServerApp: "serverapp", ClientApp: "clientapp"}
"""What components of an app's folder are called."""


def app_of(given: App | str, kind: type[App], seed: int) -> App:
    """The app itself, or the one at `module:attribute`. InputError: it is another thing."""
    return load(given, kind, seed) if isinstance(given, str) else _held(given, kind, given)


def parts(place: str, kind: type[ServerApp] | type[ClientApp]) -> tuple[str, str]:
    """The module and the attribute of `module:attribute`. InputError: it is written otherwise."""
    module, _, path = place.partition(":")
    if not path or not all(name.isidentifier() for name in module.split(".")):
        raise InputError(OPTIONS[kind], place, "write it as package.module:app")
    return module, path


def load(place: str, kind: type[App], seed: int) -> App:
    """The app at `module:attribute`. What its modules raise is passed on.

    InputError: there is none, or it needs what Flower has removed.
    """
    option, (module_name, path) = OPTIONS[kind], parts(place, kind)
    with seeded_globals(seed):
        try:
            found: Any = importlib.import_module(module_name)
        except ImportError as error:
            if gone := removed(error):
                raise InputError(option, place, gone) from error
            if not isinstance(error, ModuleNotFoundError) or not f"{module_name}.".startswith(f"{error.name}."):
                raise
            raise InputError(option, place, f"there is no module {error.name} on the path") from error
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError as error:
            raise InputError(option, place, f"{module_name} has no {path}") from error
    return _held(found, kind, place)


def _held(found: Any, kind: type[App], named: object) -> App:
    """An app, held to be of this kind. named: what the user calls it."""
    if not isinstance(found, kind):
        raise InputError(OPTIONS[kind], named, f"this is a {type(found).__name__}, not a {kind.__name__}")
    return found


def place_of(app: ClientApp, workers: int) -> str:
    """Where other processes find an app. InputError: nowhere."""
    for name, module in sorted(sys.modules.items()):
        if name in ("__main__", "__mp_main__") or not isinstance(module, ModuleType):
            continue
        for attribute, value in list(vars(module).items()):
            if value is app:
                return f"{name}:{attribute}"
    remedy = "other processes do not find a client app of __main__ or of a function; put it into a module, or take 0"
    raise InputError("workers", workers, remedy)
