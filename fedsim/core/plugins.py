"""Finding plug-ins by name: the built-in ones are registered like anybody's, through entry points.

A table of an experiment file names its plug-in by `kind`; every other key is one of its options:
`{kind = "mlp", hidden = [64]}` becomes `MLP(hidden=(64,))`. A kind may also be `module:Class`, or
`./file.py:Class` from the folder of the experiment file, for a plug-in that is not installed.
What stands before a colon may also be the name of an entry point of `fedsim.resolvers`: a function of the group, the
kind and the option to blame, which returns the class (`flwr:FedAdam`).
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import inspect
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache, cached_property
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, ClassVar

from fedsim.core.blame import OURS, ROOT, mistake
from fedsim.core.errors import InputError, naming
from fedsim.core.files import look
from fedsim.core.members import misfit
from fedsim.core.near import meant
from fedsim.core.options import undefined_name

GROUPS: Mapping[str, tuple[str, ...]] = {
    "strategies": ("down", "up", "init", "ask", "tell"),
    "clients": ("requires", "up", "cost"),
    "optimizers": ("begin", "step"),
    "server_optimizers": ("init", "step"),
    "estimators": ("estimate", "evaluations"),
    "guides": ("history", "slope"),
    "defences": ("arm",),
    "attacks": ("perturb",),
    "problems": ("build", "values_only"),
    "datasets": ("load",),
    "partitions": ("split",),
    "models": ("build",),
    "losses": ("examples", "with_gradient", "fitted"),
    "measures": ("__call__", "higher_is_better"),
    "selectors": ("select", "observe"),
    "aggregators": ("__call__", "check"),
    "transforms": ("vectors", "state", "size", "apply"),
    "speeds": ("start",),
    "availabilities": ("start",),
    "trackers": ("check", "begin"),
}
"""The groups of plug-ins, and what one of each has at least."""
BEHIND: Mapping[str, str] = {"server_optimizers": "optimizers"}
"""Groups in whose places plug-ins of another may stand, too, but for those that have a name of theirs."""
CALLED: Mapping[str, Mapping[str, int]] = {
    "estimators": {"evaluations": 1, "state": 1, "check": 1, "estimate": 4},
    "guides": {"slope": 3},
    "attacks": {"check": 1, "perturb": 5},
    "problems": {"build": 1},
    "datasets": {"load": 1},
    "partitions": {"split": 2},
    "models": {"build": 3},
    "speeds": {"start": 3},
    "availabilities": {"start": 3},
}
"""How many arguments methods of plug-ins get that need not have a base of ours; the others get those of their base."""
KIND = "_fedsim_kind"
"""The attribute of a plug-in that says what the table calls it from which it was made."""
FILE_KIND = r"(?P<resolver>\w+:)?(?P<file>[^:\x00]+\.py):(?P<name>[^:/\x00]+)"
"""What a kind is like that names a class in a file, after the prefix of a resolver where there is one."""
MAIN = "__main__"
"""The module of a script, and of the cells of a notebook."""
DISTRIBUTION = "fedsim-lab"
"""What we are called where packages are installed; what is imported is `fedsim`."""
RENAMED = {("problems", "attack"): "evasion", ("problems", "synthetic"): "benchmark"}
"""Kinds of plug-ins that had another name, by their group: the name that they have now."""
LIKE = 0.8
"""How alike two names are at least, of 1, for one to be taken for a slip of the other."""


def names(group: str) -> dict[str, importlib.metadata.EntryPoint]:
    """The plug-ins that may stand where one of `group` (one of `GROUPS`) is named: its own, and then those behind."""
    return {name: entries[0] for name, entries in _standing(group).items()}


def own(group: str) -> list[str]:
    """Names of the plug-ins installed in a group itself, and not behind it."""
    return list(_installed(group))


def ours(group: str) -> list[str]:
    """Names of the plug-ins of a group, and of what is behind it, that came with this file."""
    return [name for name, entry in names(group).items() if entry.dist is not None and _is_ours(entry.dist)]


def find(group: str, kind: str, option: str) -> type[Any]:
    """The class that `kind` names in `group`; `option` is the option to blame when there is none."""
    prefix, colon, _ = kind.partition(":")
    if colon:
        resolver = names("resolvers").get(prefix)
        if resolver is not None:
            resolved: type[Any] = resolver.load()(group, kind, option)
            return resolved
        return _load_from(kind, option)
    entries = _standing(group).get(kind)
    if entries is None and kind.endswith(".py"):
        raise InputError(option, kind, f"name the class in it, too: {kind}:Class")
    if entries is None and (group, kind) in RENAMED:
        raise InputError(option, kind, f"is called {RENAMED[group, kind]} now")
    if entries is None:
        known = ", ".join(names(group)) or "none is installed"
        others = [other for other in GROUPS if kind in own(other)]
        hint = f"; it is one of the {' and of the '.join(others)}" if others else meant(kind, names(group))
        raise InputError(option, kind, f"not one of the installed {group}: {known}{hint}")
    if len(entries) > 1:
        places = " and ".join(entry.value for entry in entries)
        raise InputError(option, kind, f"is installed by several packages; write {places}, whichever you mean")
    (entry,) = entries
    if entry.dist is not None and _is_ours(entry.dist):
        _claim(entry.module, kind, option)
    with _loading(kind, option):
        loaded: type[Any] = entry.load()
    return loaded


def option_class(group: str, kind: str, option: str) -> type[Any]:
    """The class that `kind` names, as of `find`, which must have options that can be read, and be of the group."""
    found = find(group, kind, option)
    _hold_member(group, found, kind, option)
    return found


def _has(made: type[Any], name: str) -> bool:
    """Whether a class has a member, and does not only say that its subclasses must."""
    return hasattr(made, name) and not (inspect.isabstract(made) and name in made.__abstractmethods__)


def refuse_misspelt(made: type[Any], base: type[Any]) -> None:
    """InputError: a class has a member that overrides nothing, and is called nearly like one of its base.

    Options are called as they like: an option is asked for by nobody else.
    """
    known = [name for name in vars(base) if not name.startswith("_")]
    fields = {name for name, hint in vars(made).get("__annotations__", {}).items() if "ClassVar" not in str(hint)}
    for name in vars(made).keys() - fields - {name for above in made.__mro__[1:] for name in vars(above)}:
        meant = [] if name.startswith("_") else difflib.get_close_matches(name, known, n=1, cutoff=LIKE)
        if meant:
            remedy = f"nobody asks a {base.__name__} for that; write {meant[0]}, or call it something quite different"
            raise InputError(made.__name__, name, remedy)


def make(group: str, table: Any, option: str) -> Any:
    """The plug-in that `table` describes: a name, or a mapping with `kind` and the plug-in's options.

    An object of a class of the group is that plug-in already, be its class installed or not.
    """
    if isinstance(table, type):
        raise InputError(option, table.__name__, "hand over an object, made with its options")
    if not isinstance(table, str | Mapping):
        if not dataclasses.is_dataclass(table):
            raise InputError(option, table, "write a table with `kind` and options, or a name; or hand over a plug-in")
        _hold_member(group, type(table), type(table).__name__, option)
        return table
    settings = {"kind": table} if isinstance(table, str) else dict(table)
    kind = settings.pop("kind", None)
    if not isinstance(kind, str):
        raise InputError(f"{option}.kind", kind, f"name one of: {', '.join(names(group))}")
    cls = option_class(group, kind, f"{option}.kind")
    with naming(option):
        made = cls(**settings)
    object.__setattr__(made, KIND, kind)
    return made


def hold_returned(option: str, group: str, plugin: Any, method: str, given: Any, wanted: type[Any]) -> None:
    """Refuse (InputError) what a method of a plug-in has returned before a run, where it is something else."""
    if not isinstance(given, wanted):
        found = "nothing" if given is None else f"a {type(given).__name__}"
        raise InputError(f"{option}.kind", kind_of(group, plugin), f"{method} returns {found}, not a {wanted.__name__}")


def kind_of(group: str, plugin: Any) -> str:
    """What a table calls a plug-in: as that did from which it was made, or as one could.

    That is the name of an entry point, `module:Class`, or `/path/to/file.py:Class` where no import finds the module.
    """
    written: str | None = getattr(plugin, KIND, None)
    if written is not None:
        return written
    cls = type(plugin)
    path = f"{cls.__module__}:{cls.__qualname__}"
    for name, entries in _standing(group).items():
        if [entry.value for entry in entries] == [path]:
            return name
    file = getattr(sys.modules[cls.__module__], "__file__", None)
    if cls.__module__ == MAIN or file is None or _is_importable(cls.__module__.partition(".")[0]):
        return path
    return f"{file}:{cls.__qualname__}"


def is_only_here(kind: str) -> bool:
    """Whether no other process finds the class of this kind: it is one of a notebook's cell, or made in a function."""
    place, _, name = kind.rpartition(":")
    return "<locals>" in name or (place == MAIN and not hasattr(sys.modules[MAIN], "__file__"))


def _hold_member(group: str, cls: type[Any], kind: str, option: str) -> None:
    """Refuse a class whose options cannot be read, or that is not of the group."""
    if "__dataclass_fields__" not in vars(cls) or not cls.__dictoffset__:
        raise InputError(option, kind, "its options cannot be read; put @options above the class")
    undefined = undefined_name(cls)
    if undefined is not None:
        raise InputError(option, kind, undefined)
    absent = [name for name in GROUPS[group] if not _has(cls, name)]
    if absent and not (group in BEHIND and all(_has(cls, name) for name in GROUPS[BEHIND[group]])):
        raise InputError(option, kind, f"it has no {', '.join(absent)}, which all {group} have")
    fault = None if is_ours(cls) else misfit(cls, is_ours, CALLED.get(group, {}))
    if fault is not None:
        raise InputError(option, kind, fault)


def is_ours(cls: type[Any]) -> bool:
    """Whether a class stands in one of our packages."""
    return cls.__module__.partition(".")[0] in ("fedsim", *OURS)


def _is_importable(top: str) -> bool:
    """Whether another process with the same path would find this module or package."""
    return any(finder.find_spec(top, None) is not None for finder in sys.meta_path)


@cache
def _installed(group: str) -> dict[str, list[importlib.metadata.EntryPoint]]:
    """The entry points of a group by name; of one name several only where they lead to different classes."""
    found: dict[str, dict[str, importlib.metadata.EntryPoint]] = {}
    for entry in importlib.metadata.entry_points(group=f"fedsim.{group}"):
        found.setdefault(entry.name, {}).setdefault(entry.value, entry)
    return {name: list(found[name].values()) for name in sorted(found)}


def _standing(group: str) -> dict[str, list[importlib.metadata.EntryPoint]]:
    """The entry points whose plug-ins may stand in a group's places, by name."""
    own, behind = _installed(group), _installed(BEHIND[group]) if group in BEHIND else {}
    return {**own, **{name: entries for name, entries in behind.items() if name not in own}}


@cache
def _is_ours(distribution: importlib.metadata.Distribution) -> bool:
    """Whether an entry point came with this file. Kept, as each look at its name parses a README in its METADATA."""
    return distribution.name == DISTRIBUTION


def _load_from(kind: str, option: str) -> type[Any]:
    place, _, name = kind.rpartition(":")
    module = _from_file(place, kind, option) if place.endswith(".py") else _from_path(place, kind, option)
    if not hasattr(module, name):
        lost = "; it was defined in a script or a notebook: move it to a file" if place == MAIN else ""
        classes = [known for known, value in vars(module).items() if isinstance(value, type)]
        raise InputError(option, kind, f"{place} has no {name}{lost or meant(name, classes)}")
    found: type[Any] = getattr(module, name)
    if not isinstance(found, type):
        raise InputError(option, kind, f"{name} is not a class")
    return found


def _from_path(place: str, kind: str, option: str) -> ModuleType:
    """The module of this name on Python's path."""
    if not all(part.isidentifier() for part in place.split(".")):
        raise InputError(option, kind, "write module:Class or ./file.py:Class")
    with _loading(kind, option, place):
        return importlib.import_module(place)


def _from_file(place: str, kind: str, option: str) -> ModuleType:
    """The file's module, executed once until the file changes."""
    look(Path(place), option)
    path = Path(place).resolve()
    if not path.is_file():
        raise InputError(option, kind, f"there is no file {path}")
    with _loading(kind, option):
        return _executed(path, path.stat().st_mtime_ns)


@contextmanager
def _loading(kind: str, option: str, module: str = "") -> Iterator[None]:
    """Say in one line, as an InputError, what is wrong with the code that is loaded in this block, and where.

    module: what is imported, which may be what there is not.
    """
    try:
        yield
    except InputError as error:
        raise InputError(option, kind, str(error)) from error
    except ModuleNotFoundError as error:
        _blame_shadow(error, kind, option)
        absent = error.name is not None and f"{module}.".startswith(f"{error.name}.")
        raise InputError(option, kind, f"there is no module {error.name}" if absent else mistake(error)) from error
    except (Exception, SystemExit) as error:
        raise InputError(option, kind, mistake(error)) from error


@cache
def _executed(path: Path, changed: int) -> ModuleType:  # noqa: ARG001  # names the version of the file
    # A name of its own for each file: two may be called alike, or like a module of the standard library.
    name = f"fedsim_plugin_{hashlib.blake2b(str(path).encode(), digest_size=6).hexdigest()}_{path.stem}"
    loader = _Source(name, str(path))
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    folder = str(path.parent)
    lent = folder not in sys.path
    if lent:
        sys.path.append(folder)  # for what it imports from beside it; last, so that it hides nothing
    try:
        loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        if lent:
            sys.path.remove(folder)
    return module


class _Source(importlib.machinery.SourceFileLoader):
    """A file as it is: compiled files are looked up by the second, so that one of a moment ago passes for it."""

    def get_code(self, fullname: str) -> CodeType:  # noqa: ARG002
        code: CodeType = self.source_to_code(self.get_data(self.path), self.path)
        return code


def _claim(module: str, kind: str, option: str) -> None:
    """Load the package of one of our modules from beside this one, whatever of that name comes first on the path.

    InputError: something else has been imported under that name.
    """
    top = module.partition(".")[0]
    if top not in sys.modules:
        spec = importlib.machinery.PathFinder.find_spec(top, [str(ROOT)])
        if spec is not None and spec.loader is not None:
            package = sys.modules[top] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(package)
        return
    shadow = _shadow(top)
    if shadow is not None:
        raise _shadowed(shadow, kind, option)


def _shadow(top: str) -> Path | None:
    """What stands for our top-level package of this name, if it is not ours."""
    package = sys.modules.get(top)
    spec = importlib.util.find_spec(top) if package is None else package.__spec__
    if spec is None:
        return None
    places = [*(spec.submodule_search_locations or ()), *([spec.origin] if spec.origin else ())]
    ours = ROOT / top
    if places[0] == str(ours):  # as nearly always; to resolve it is most of the work of making a small plug-in
        return None
    place = Path(places[0]).resolve()
    return None if place == ours else place


def _shadowed(shadow: Path, kind: str, option: str) -> InputError:
    return InputError(option, kind, f"{shadow} hides the installed package of that name; rename it")


def _blame_shadow(error: ModuleNotFoundError, kind: str, option: str) -> None:
    """Raise InputError where a module of ours was not found because something else has its package's name."""
    top = (error.name or "").partition(".")[0]
    shadow = _shadow(top) if top in OURS else None
    if shadow is not None:
        raise _shadowed(shadow, kind, option) from error


class HasPlugins:
    """Base of option classes.

    parts: by option, the group of plug-ins that it names: a name, or a table with `kind`; or None. lists: options that
    name several.
    """

    parts: ClassVar[Mapping[str, str]] = {}
    lists: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        self.made  # noqa: B018  # a bad option is refused when the experiment is read

    @cached_property
    def made(self) -> Mapping[str, Any]:
        """The plug-ins that the options name; of a list a tuple, and of None none."""
        named = {option: (group, getattr(self, option)) for option, group in self.parts.items()}
        return {
            option: tuple(make(group, table, f"{option}.{number}") for number, table in enumerate(value))
            if option in self.lists
            else make(group, value, option)
            for option, (group, value) in named.items()
            if value is not None
        }
