"""The bases of plug-ins, and what plug-ins declare by names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedsim.core.errors import InputError
from fedsim.core.plugins import kind_of
from fedsim.engine.client import Client
from fedsim.exchange.aggregation import Aggregator
from fedsim.exchange.messages import shown
from fedsim.exchange.transforms import Transform
from fedsim.nets.losses import Loss
from fedsim.nets.optimizers import Optimizer
from fedsim.problems.measures import Measure
from fedsim.server.selection.base import Selector
from fedsim.server.strategy import Strategy
from fedsim.trackers.base import Tracker

BASES: Mapping[str, tuple[str, type[Any]]] = {
    "strategies": ("fedsim.server", Strategy),
    "clients": ("fedsim.client", Client),
    "selectors": ("fedsim.server.selection", Selector),
    "aggregators": ("fedsim.exchange", Aggregator),
    "transforms": ("fedsim.exchange", Transform),
    "losses": ("fedsim.nets.losses", Loss),
    "optimizers": ("fedsim.client", Optimizer),
    "measures": ("fedsim.problems.measures", Measure),
    "trackers": ("fedsim.trackers", Tracker),
}
"""What plug-ins of these groups are subclasses of, and where authors import it from."""
NAMED: Mapping[str, tuple[str, ...]] = {
    "strategies": ("down", "up"),
    "clients": ("requires", "accepts", "up"),
    "selectors": ("reports",),
}
"""What plug-ins of these groups declare by sets of names."""


def hold_base(option: str, group: str, plugin: Any) -> None:
    """Refuse (InputError) a plug-in that has not the base of its group, or declares something else than names."""
    if group in BASES and not isinstance(plugin, BASES[group][1]):
        room, base = BASES[group]
        raise InputError(f"{option}.kind", kind_of(group, plugin), f"make it a subclass of {room}.{base.__name__}")
    for name in NAMED.get(group, ()):
        found = getattr(plugin, name)
        if not isinstance(found, frozenset | set) or not all(isinstance(one, str) for one in found):
            fault = "a method; put @property above it" if callable(found) else f"{shown(found)}, not a set of names"
            raise InputError(f"{option}.kind", kind_of(group, plugin), f"its `{name}` is {fault}")
