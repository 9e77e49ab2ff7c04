"""The folder of a Flower app, which is read and never written."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsim.core.errors import InputError, one_line
from fedsim.flower.internals import project, run_config, written


@dataclass(frozen=True)
class AppFolder:
    """What an app's pyproject.toml says. path: absolute. server, client: where the apps are, as `module:attribute`.

    run_config: flat, with the overrides. nodes: what its default federation says, or None.
    """

    path: Path
    server: str
    client: str
    run_config: Mapping[str, Any]
    nodes: int | None

    @classmethod
    def read(cls, path: Path, overrides: Sequence[str] = ()) -> AppFolder:
        """Read a folder. overrides: as after `flwr run --run-config`: `name=value ...`, or a TOML file. InputError."""
        try:
            found = project(path)["tool"]["flwr"]
        except (OSError, ValueError) as error:
            raise InputError("path", str(path), one_line(error)) from error
        app = found["app"]
        components = app["components"]
        if "serverapp" not in components:
            raise InputError("path", str(path), "this app has no serverapp; only server and client apps run here")
        try:
            config = run_config(app, overrides)
        except (OSError, ValueError) as error:
            raise InputError("run-config", " ".join(overrides), one_line(error)) from error
        return cls(path.absolute(), components["serverapp"], components["clientapp"], config, _nodes(found))

    @contextmanager
    def on_path(self) -> Iterator[None]:
        """Within this block modules of the folder are found first."""
        before = list(sys.path)
        sys.path.insert(0, str(self.path))
        try:
            yield
        finally:
            sys.path[:] = before


def node_config(texts: Sequence[str]) -> dict[str, Any]:
    """Entries of nodes' configurations, as after `flower-supernode --node-config`. InputError: they cannot be read."""
    try:
        return written(texts)
    except (OSError, ValueError) as error:
        raise InputError("node-config", " ".join(texts), one_line(error)) from error


def _nodes(tables: Mapping[str, Any]) -> int | None:
    """The number of nodes of the default federation, as Flower's older templates have it."""
    federations = tables.get("federations", {})
    chosen = federations.get(federations.get("default", ""), {})
    options = chosen.get("options", {}) if isinstance(chosen, Mapping) else {}
    number = options.get("num-supernodes")
    return number if isinstance(number, int) else None
