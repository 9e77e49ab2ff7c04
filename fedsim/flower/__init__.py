"""fedsim and Flower, in all directions: the only part of fedsim that imports `flwr`; no other part imports it.

Our experiments on Flower: `flwr run .` runs an experiment on its simulation engine, SuperLink and SuperNodes run it
for real, and `run_on_ray` runs it on Ray from Python. Whatever the number of nodes, the result is that of `fedsim.run`.

Our strategies in anybody's Flower app: `as_flower_strategy` makes one of Flower's of them.

Flower's apps in this process: `simulate` and `fedsim flower run` run one, unchanged, over a `VirtualGrid`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedsim.core.lazy import lazily

if TYPE_CHECKING:
    from fedsim.flower.apps import client_app, run_on_ray, server_app
    from fedsim.flower.as_strategy import as_flower_strategy
    from fedsim.flower.folder import AppFolder
    from fedsim.flower.grid import GridEngine
    from fedsim.flower.nodes import GridError
    from fedsim.flower.recipe import Recipe
    from fedsim.flower.serving.options import AppOptions
    from fedsim.flower.serving.strategy import FlowerStrategy
    from fedsim.flower.simulation import AppResult, simulate
    from fedsim.flower.virtual_grid import Exchange, VirtualGrid

# Loaded when first asked for: neither side needs what the other one imports.
_HOMES = {
    "AppFolder": "fedsim.flower.folder",
    "AppOptions": "fedsim.flower.serving.options",
    "AppResult": "fedsim.flower.simulation",
    "FlowerStrategy": "fedsim.flower.serving.strategy",
    "Exchange": "fedsim.flower.virtual_grid",
    "GridEngine": "fedsim.flower.grid",
    "GridError": "fedsim.flower.nodes",
    "Recipe": "fedsim.flower.recipe",
    "VirtualGrid": "fedsim.flower.virtual_grid",
    "as_flower_strategy": "fedsim.flower.as_strategy",
    "client_app": "fedsim.flower.apps",
    "run_on_ray": "fedsim.flower.apps",
    "server_app": "fedsim.flower.apps",
    "simulate": "fedsim.flower.simulation",
}

__all__ = [
    "AppFolder",
    "AppOptions",
    "AppResult",
    "Exchange",
    "FlowerStrategy",
    "GridEngine",
    "GridError",
    "Recipe",
    "VirtualGrid",
    "as_flower_strategy",
    "client_app",
    "run_on_ray",
    "server_app",
    "simulate",
]

__getattr__, __dir__ = lazily(__name__, _HOMES)
