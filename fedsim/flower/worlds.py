"""Worlds: what would be a process of its own on Flower, within this process: the server app's, and each node's.

A world has its own modules of the app, its own settings of the process and its own context variables, from call to
call. Everything that is installed (Flower, NumPy, PyTorch) is imported once and shared.
"""

from __future__ import annotations

import contextvars
import decimal
import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import ParamSpec, TypeVar

from fedsim.core.blame import OURS, ROOT
from fedsim.flower.settings import Settings, change, present

SHARED = {"fedsim", "flwr", "__main__", "__mp_main__", *sys.stdlib_module_names}
"""Top-level names that no app has for itself."""
INSTALLED = {"site-packages", "dist-packages"}
"""Folders of what is installed."""
Given = ParamSpec("Given")
Made = TypeVar("Made")


class AppFinder:
    """Finds the modules of apps, and knows which they are; entered in `sys.meta_path` while a world is at work.

    roots: the apps' folders, of which all modules are theirs. own: the top-level names of the apps; where they are
    installed, as other packages are, these alone are theirs. A folder without `__init__.py` is found in a root before a
    package that came with fedsim, and after any other that is installed, as on a machine of Flower's. Files are
    compiled once, and nothing is written.
    """

    def __init__(self, roots: Sequence[str] = (), own: Iterable[str] = ()) -> None:
        self.roots, self.own = list(roots), set(own)
        self.names = set[str]()
        self._owned: dict[str, bool] = {}
        self.names |= {name for name in list(sys.modules) if self.roots and self._owns(name.partition(".")[0])}

    @classmethod
    def of(cls, places: Iterable[str]) -> AppFinder:
        """The finder for apps at `module:attribute`, as Python's path has them now."""
        own = {place.partition(":")[0].partition(".")[0] for place in places} - SHARED
        roots = [root for top in sorted(own) if (root := _root(top)) is not None]
        return cls(list(dict.fromkeys(roots)), own)

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        """What Python's import asks of a finder."""
        if not self._owns(fullname.partition(".")[0]):
            return None
        spec = PathFinder.find_spec(fullname, self.roots if path is None else path)
        if spec is None:
            return None
        self.names.add(fullname)
        if type(spec.loader) is SourceFileLoader:
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec

    def _owns(self, top: str) -> bool:
        """Whether a top-level name is the app's."""
        if top not in self._owned:
            self._owned[top] = self._found(top)
        return self._owned[top]

    def _found(self, top: str) -> bool:
        if top in SHARED or (top in OURS and str(ROOT) in self.roots):
            return False
        spec = PathFinder.find_spec(top, self.roots)
        if spec is None:
            return False
        if top in OURS or top in self.own:
            return True
        if _is_installed(spec.origin):
            return False
        loaded = sys.modules.get(top)
        if loaded is not None:
            return not _is_installed(getattr(loaded, "__file__", None))
        return spec.loader is not None or getattr(PathFinder.find_spec(top), "loader", None) is None


def _root(top: str) -> str | None:
    """The folder that holds a module: the first of the search path with one of the name, or where else it is found."""
    for entry in sys.path:
        folder = str(Path(entry).absolute())
        if PathFinder.find_spec(top, [folder]) is not None:
            return folder
    spec = None if top in sys.modules else importlib.util.find_spec(top)  # of a package that is installed editable
    if spec is None or spec.origin is None:
        return None
    return str(Path(spec.origin).absolute().parents[1 if spec.submodule_search_locations else 0])


def _is_installed(file: str | None) -> bool:
    return bool(INSTALLED & set(Path(file or "").parts))


class World:
    """Modules, settings and context variables apart. finder: which modules are apart. settings: those at the start."""

    def __init__(self, finder: AppFinder, settings: Settings) -> None:
        self.finder, self.settings, self.fresh = finder, settings, True
        self._modules: dict[str, ModuleType] = {}
        self.variables = contextvars.copy_context()
        self.variables.run(decimal.setcontext, decimal.getcontext().copy())  # which is edited where it is

    def run(self, function: Callable[Given, Made], *given: Given.args, **named: Given.kwargs) -> Made:
        """Call a function in this world; afterwards the one around it is as it was."""
        with Turns() as turns:
            return turns.run(self, function, *given, **named)

    @contextmanager
    def modules(self) -> Iterator[None]:
        """Within this block the app's modules are this world's."""
        outside = self._exchanged(self._modules)
        sys.meta_path.insert(0, self.finder)
        try:
            yield
        finally:
            sys.meta_path.remove(self.finder)
            self._modules = self._exchanged(outside)

    def _exchanged(self, modules: Mapping[str, ModuleType]) -> dict[str, ModuleType]:
        """Have these modules of the app loaded, and no others; those that were."""
        before = {name: sys.modules.pop(name) for name in self.finder.names if name in sys.modules}
        sys.modules.update(modules)
        return before


class Turns:
    """Calls in worlds, one after the other.

    Between two of them the settings stay as the last one has left them, for to read them takes longer than a short
    call does; after the block they are as they were before it. Context variables never leave their world.
    """

    def __enter__(self) -> Turns:
        self._around = self._now = present()
        return self

    def __exit__(self, *raised: object) -> None:
        contextvars.copy_context().run(change, self._now, self._around)

    def run(self, world: World, function: Callable[Given, Made], *given: Given.args, **named: Given.kwargs) -> Made:
        """Call a function in a world."""
        return world.variables.run(self._run, world, partial(function, *given, **named))

    def _run(self, world: World, function: Callable[[], Made]) -> Made:
        with world.modules():
            try:
                # What a new world has in its context variables is its maker's.
                change(present() if world.fresh else self._now, world.settings)
                world.fresh = False
                return function()
            finally:
                world.settings = self._now = present()


class _Loader(SourceFileLoader):
    """Loads a module of an app: many times, its code compiled once."""

    def get_code(self, fullname: str) -> CodeType:
        """What Python's import asks of a loader."""
        path = self.get_filename(fullname)
        seen = Path(path).stat()
        return _compiled(path, seen.st_mtime_ns, seen.st_size)


@cache
def _compiled(path: str, changed: int, size: int) -> CodeType:  # noqa: ARG001
    """A file's code. changed, size: what tells that another file has taken its place."""
    loader = SourceFileLoader("app", path)
    return loader.source_to_code(loader.get_data(path), path)
