"""An experiment as it travels: the same text on the server and on every node, and a digest to compare."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from fedsim.configuration.tables import Experiment, experiment, load
from fedsim.core.blame import ROOT
from fedsim.core.errors import InputError
from fedsim.core.version import __version__

SOURCES = ("fedsim", "strategies", "clients")
"""The packages whose source decides what an experiment computes."""


@dataclass(frozen=True)
class Recipe:
    """tables: the resolved experiment, as JSON. data_dir: where its data lie on this machine, or empty."""

    tables: str
    data_dir: str = ""

    @classmethod
    def of(cls, made: Experiment) -> Recipe:
        """Write an experiment down; its data folder absolute, for other processes start elsewhere."""
        place = "" if made.data_dir is None else str(made.data_dir.absolute())
        tables = {name: table for name, table in made.resolved().items() if name != "track"}  # of the server alone
        return cls(json.dumps(tables, sort_keys=True), place)

    @classmethod
    def configured(cls, run_config: Mapping[str, Any], node_config: Mapping[str, Any] | None = None) -> Recipe:
        """Write down what `configured` reads. Raises InputError."""
        return cls.of(configured(run_config, node_config))

    def experiment(self) -> Experiment:
        """Make the experiment."""
        return experiment(data_dir=self.data_dir or None, **json.loads(self.tables))

    @property
    def digest(self) -> str:
        """Hash the experiment, without the place of its data."""
        return hashlib.sha256(self.tables.encode()).hexdigest()[:16]


def configured(run_config: Mapping[str, Any], node_config: Mapping[str, Any] | None = None) -> Experiment:
    """Read the experiment that Flower's run configuration names: `experiment`, `overrides`, `data-dir`.

    A node's own `data-dir`, in its node configuration, comes before the run's. Raises InputError.
    """
    name = str(run_config.get("experiment", ""))
    if not name:
        raise InputError("experiment", "(nothing)", "name a file of the experiments package in [tool.flwr.app.config]")
    data_dir = str((node_config or {}).get("data-dir", run_config.get("data-dir", "")))
    if data_dir and not Path(data_dir).is_absolute():
        raise InputError("data-dir", data_dir, "write it absolute; nodes do not start in this folder")
    assignments = [part.strip() for part in re.split("[;\n]", str(run_config.get("overrides", "")))]
    path = ROOT / "experiments" / name
    return load(path, overrides=filter(None, assignments), data_dir=data_dir or None)


@cache
def identity() -> dict[str, str]:
    """Tell what node and server must have in common: fedsim's version, and a hash of its source."""
    found = hashlib.sha256()
    for package in SOURCES:
        folder = ROOT / package
        for path in sorted(folder.rglob("*.py")):
            found.update(f"{package}/{path.relative_to(folder).as_posix()}\0".encode())
            found.update(path.read_bytes())
    return {"version": __version__, "source": found.hexdigest()[:16]}
