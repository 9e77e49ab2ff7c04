"""Noticing random numbers that are not of the run's named streams."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch._ops import OpOverloadPacket
from torch.overrides import TorchFunctionMode

MAKERS = ((np.random, "default_rng"), (np.random, "RandomState"), (random, "Random"))
"""What makes a generator from a seed of somebody's own."""


def global_states() -> dict[str, object]:
    """The states of the process's generators, by the module that draws from them."""
    return {
        "random": random.getstate(),
        "numpy.random": repr(np.random.get_state()),  # noqa: NPY002
        "torch": torch.random.get_rng_state().numpy().tobytes(),
    }


@contextmanager
def drawing() -> Iterator[set[str]]:
    """Within this block, the names of functions that make generators or draw from those of PyTorch."""
    found: set[str] = set()
    with ExitStack() as patches:
        for module, name in MAKERS:
            patches.enter_context(patch.object(module, name, _noting(module, name, found)))
        patches.enter_context(_Draws(found))
        yield found


def _noting(module: Any, name: str, found: set[str]) -> Any:
    """What makes a generator, and notes that it has."""
    maker = getattr(module, name)

    def make(*args: Any, **named: Any) -> Any:
        found.add(f"{module.__name__}.{name}")
        return maker(*args, **named)

    def begin(self: Any, *args: Any, **named: Any) -> None:
        found.add(f"{module.__name__}.{name}")
        maker.__init__(self, *args, **named)

    return type(name, (maker,), {"__init__": begin}) if isinstance(maker, type) else make


class _Draws(TorchFunctionMode):
    """Sees every call of PyTorch, whatever generator it is handed."""

    def __init__(self, found: set[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        if _draws(name):
            self.found.add(f"torch.{name}")
        return function(*args, **(kwargs or {}))


@cache
def _draws(name: str) -> bool:
    """Whether a function of PyTorch of this name reads a generator, as PyTorch itself has it."""
    function = getattr(torch.ops.aten, name, None)
    if not isinstance(function, OpOverloadPacket):
        return False
    overloads = function.overloads()  # type: ignore[no-untyped-call]
    return any(torch.Tag.nondeterministic_seeded in getattr(function, overload).tags for overload in overloads)
