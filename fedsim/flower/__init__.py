"""Our experiments on Flower: the only part of fedsim that imports `flwr`; no other part imports it.

`flwr run .` runs an experiment on Flower's simulation engine, SuperLink and SuperNodes run it for real, and
`simulate` runs it on Ray from Python. Whatever the number of nodes, the result is that of `fedsim.run`.
"""

from __future__ import annotations

from fedsim.flower.apps import client_app, server_app, simulate
from fedsim.flower.grid import GridEngine, GridError
from fedsim.flower.recipe import Recipe

__all__ = ["GridEngine", "GridError", "Recipe", "client_app", "server_app", "simulate"]
