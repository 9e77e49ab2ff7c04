"""Other values of an option, to see whether it moves anything: known ones of fedsim's own, and guesses by type."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from fedsim.client.training import LocalTraining
from fedsim.exchange.transforms import Transform
from fedsim.problems.measures import Measure
from fedsim.server.selection.size import FixedSize
from fedsim.server.strategy import ServerStep
from fedsim.zeroth_order.search import EstimatedSearch, LocalSearch

Other = tuple[Any, Mapping[str, Any]]
"""A value that must change the run, and what it needs to matter: other options beside it (None: without that one),
tables of the experiment, or `{"values_only": True}` for a problem of functions."""
Others = dict[str, Other]

PGD = {"kind": "pgd", "epsilon": 0.3, "steps": 2, "domain": "none"}
VALUES_ONLY = {"values_only": True}
EPOCHS = {"epochs": 2, "steps": None}
LOCAL: Others = {
    "epochs": (3, EPOCHS),
    "steps": (7, {"epochs": None, "steps": 4}),
    "batch_size": (3, {}),
    "lr": (0.05, {}),
    "schedule": ({"kind": "exponential", "gamma": 0.5}, {}),
    "epochs_schedule": ({"kind": "exponential", "gamma": 0.5}, EPOCHS),
    "inverse_decay": (0.5, {}),
    "inverse_power": (2.0, {"inverse_decay": 0.5}),
    "local_schedule": ("linear", {}),
    "lr_scaling": ("linear", {"batch_size": 32}),
    "reference_batch": (16, {"batch_size": 32, "lr_scaling": "linear"}),
    "adversarial": ({"kind": "standard", "attack": PGD}, {}),
    "curriculum": ({"floor": 1}, EPOCHS),
}
"""Of clients that train."""
STEPPING: Others = {
    "optimizer": ("adam", {}),
    "weight_decay": (0.1, {}),
    "clip_norm": (0.1, {}),
}
"""Of how they step, which some refuse."""
SEARCHING: Others = {
    "steps": (4, {}),
    "batch_size": (4, {}),
    "lr": (0.02, {}),
    "schedule": ({"kind": "exponential", "gamma": 0.5}, {}),
    "optimizer": ("sgd", {}),
    "project": (False, {"lr": 0.5, **VALUES_ONLY}),
}
"""Of clients that search along estimated gradients."""
ESTIMATED: Others = SEARCHING | {
    "estimator": ({"kind": "differences", "count": 4, "mu": 0.1, "directions": "sphere"}, {})
}
"""Of those whose estimator is a plug-in. The first that a plug-in is one of is what is known of it."""
SIZED: Others = {
    "count": (2, {"count": 3, "fraction": None}),
    "fraction": (0.5, {"count": None, "fraction": 0.2}),
}
"""Of selectors that take so many clients."""
REPORTED: Others = {"report_norms": (True, {})}
"""Of strategies that take a server's step, what changes no more than what is reported."""
KNOWN: Mapping[type[Any], Others] = {
    ServerStep: {"server_optimizer": ("adagrad", {})},
    FixedSize: SIZED,
    Transform: {"vectors": (["second"], {})},
    EstimatedSearch: ESTIMATED,
    LocalSearch: SEARCHING,
    LocalTraining: LOCAL | STEPPING,
    Measure: {"name": ("another", {})},
}


def others_of(plugin: Any, option: str) -> Iterator[Other]:
    """Values of an option other than the plug-in's own: known ones first, then guesses by its type."""
    current = getattr(plugin, option)
    known = next((others for owner, others in KNOWN.items() if isinstance(plugin, owner)), {})
    if option in known and known[option][0] != current:
        yield known[option]
    (field,) = (field for field in dataclasses.fields(plugin) if field.name == option)
    if current is not None and field.default is None:
        yield None, {}
    for member in _members(get_type_hints(type(plugin), include_extras=True)[option]):
        for value in _of_type(member, current):
            if value != current:
                yield value, {}


def _members(hint: Any) -> Iterator[Any]:
    """The types that an annotation allows."""
    if get_origin(hint) is Annotated:
        yield from _members(get_args(hint)[0])
    elif get_origin(hint) in (Union, types.UnionType):
        for inner in get_args(hint):
            yield from _members(inner)
    else:
        yield hint


def _of_type(member: Any, current: Any) -> Iterator[Any]:
    """Values of a type, near the current one if that is of it."""
    number = isinstance(current, int | float) and not isinstance(current, bool) and current != 0
    if get_origin(member) is Literal:
        yield from get_args(member)
    elif member is bool:
        yield from (True, False)
    elif member is int:
        yield from (current + 1, current - 1) if isinstance(current, int) else (2, 1, 5)
    elif member is float:
        yield from (current * 0.5, current * 2.0) if number else (0.5, 0.1, 2.0)
    elif member is str and current:
        yield f"{current}-too"
    elif get_origin(member) is tuple and current:
        yield tuple(value + 1 for value in current)
    elif isinstance(member, type) and hasattr(member, "kind") and not isinstance(current, member):
        yield {"kind": member.kind}
