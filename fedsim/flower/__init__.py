"""fedsim and Flower, in both directions: the only part of fedsim that imports `flwr`; no other part imports it.

Our experiments on Flower: `flwr run .` runs an experiment on its simulation engine, SuperLink and SuperNodes run it
for real, and `run_on_ray` runs it on Ray from Python. Whatever the number of nodes, the result is that of `fedsim.run`.

Flower's apps in this process: `simulate` and `fedsim flower run` run one, unchanged, over a `VirtualGrid`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedsim.flower.apps import client_app, run_on_ray, server_app
    from fedsim.flower.folder import AppFolder
    from fedsim.flower.grid import GridEngine, GridError
    from fedsim.flower.recipe import Recipe
    from fedsim.flower.simulation import AppResult, simulate
    from fedsim.flower.virtual_grid import Exchange, VirtualGrid

# Loaded when first asked for: neither side needs what the other one imports.
_HOMES = {
    "AppFolder": "folder",
    "AppResult": "simulation",
    "Exchange": "virtual_grid",
    "GridEngine": "grid",
    "GridError": "grid",
    "Recipe": "recipe",
    "VirtualGrid": "virtual_grid",
    "client_app": "apps",
    "run_on_ray": "apps",
    "server_app": "apps",
    "simulate": "simulation",
}

__all__ = [
    "AppFolder",
    "AppResult",
    "Exchange",
    "GridEngine",
    "GridError",
    "Recipe",
    "VirtualGrid",
    "client_app",
    "run_on_ray",
    "server_app",
    "simulate",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fedsim.flower' has no attribute {name!r}")
    return getattr(importlib.import_module(f"fedsim.flower.{_HOMES[name]}"), name)
