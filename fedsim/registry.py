"""Finding plug-ins by name: the built-in ones are registered like anybody's, through entry points.

A table of an experiment file names its plug-in by `kind`; every other key is one of its options:
`{kind = "mlp", hidden = [64]}` becomes `MLP(hidden=(64,))`. A kind may also be `module:Class` or
`./file.py:Class`, for a plug-in that is not installed.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from fedsim.errors import InputError, naming

GROUPS = (
    "strategies",
    "clients",
    "estimators",
    "defences",
    "attacks",
    "problems",
    "datasets",
    "partitions",
    "models",
    "selectors",
    "aggregators",
    "transforms",
)
OURS = ("strategies", "clients", "experiments")


@cache
def names(group: str) -> dict[str, importlib.metadata.EntryPoint]:
    """The plug-ins installed in `group` (one of `GROUPS`), by name."""
    found = importlib.metadata.entry_points(group=f"fedsim.{group}")
    return {entry.name: entry for entry in sorted(found, key=lambda entry: entry.name)}


def find(group: str, kind: str, option: str) -> type[Any]:
    """The class that `kind` names in `group`; `option` is the option to blame when there is none."""
    if ":" in kind:
        return _load_from(kind, option)
    entry = names(group).get(kind)
    if entry is None:
        known = ", ".join(names(group)) or "none is installed"
        raise InputError(option, kind, f"not one of the installed {group}: {known}")
    try:
        loaded: type[Any] = entry.load()
    except ModuleNotFoundError as error:
        shadow = _shadowed(entry.module) if entry.module.startswith(error.name or ".") else None
        if shadow is None:
            raise
        raise InputError(
            option, kind, f"the folder {shadow} hides the installed package of that name; rename it"
        ) from error
    return loaded


def make(group: str, table: str | Mapping[str, Any], option: str) -> Any:
    """The plug-in that `table` describes: a name, or a mapping with `kind` and the plug-in's options."""
    if not isinstance(table, str | Mapping):
        raise InputError(option, table, "write a table with `kind` and options, or a name")
    settings = {"kind": table} if isinstance(table, str) else dict(table)
    kind = settings.pop("kind", None)
    if not isinstance(kind, str):
        raise InputError(f"{option}.kind", kind, f"name one of: {', '.join(names(group))}")
    made = find(group, kind, f"{option}.kind")
    if "__dataclass_fields__" not in vars(made):
        raise InputError(f"{option}.kind", kind, "its options cannot be read; put @options above the class")
    with naming(option):
        return made(**settings)


def _load_from(kind: str, option: str) -> type[Any]:
    place, _, name = kind.rpartition(":")
    if place.endswith(".py"):
        path = Path(place).resolve()
        if not path.is_file():
            raise InputError(option, kind, f"there is no file {path}")
        # A name of its own for each file: two may be called alike, or like a module of the standard library.
        module_name = f"fedsim_plugin_{hashlib.blake2b(str(path).encode(), digest_size=6).hexdigest()}_{path.stem}"
        spec = importlib.util.spec_from_file_location(module_name, path)
        if spec is None or spec.loader is None:
            raise InputError(option, kind, f"{path} is not a Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        try:
            spec.loader.exec_module(module)
        except SyntaxError as error:
            raise InputError(option, kind, f"line {error.lineno}: {error.msg}") from error
    else:
        if importlib.util.find_spec(place.partition(".")[0]) is None:
            raise InputError(option, kind, f"there is no module {place}")
        module = importlib.import_module(place)
    if not hasattr(module, name):
        raise InputError(option, kind, f"{place} has no {name}")
    found: type[Any] = getattr(module, name)
    if not isinstance(found, type):
        raise InputError(option, kind, f"{name} is not a class")
    return found


def _shadowed(module: str) -> str | None:
    """The folder that stands before the installed top-level package of `module` on the path, if any."""
    top = module.partition(".")[0]
    if top not in OURS:
        return None
    spec = importlib.util.find_spec(top)
    places = list(spec.submodule_search_locations or []) if spec else []
    return places[0] if places else None
