"""Using the cores of a CPU: one operation takes one core, and different clients or batches take different cores.

Operations that share cores among themselves wait for each other, badly so on a busy machine, and the shape of their
parts, and with it the last bits of their results, follows the number of cores. Here every number is computed by
one core, so it does not depend on how many there are.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

import torch

_given = threading.local()
"""`core` is there in the threads of the pool."""
Item = TypeVar("Item")
Result = TypeVar("Result")


@cache
def cores() -> int:
    """How many cores PyTorch was given when the process began to use them."""
    return torch.get_num_threads()


@contextmanager
def one_core_an_operation() -> Iterator[None]:
    """Within this block, and in threads begun in it, an operation on the CPU takes one core."""
    cores()
    before = torch.get_num_threads()
    if before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def spread(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Apply `function` to each item, different items on different cores; the results in the items' order.

    On a core that such a call has been given, one item after the other: all cores may be waiting for it.
    """
    with one_core_an_operation():
        if len(items) < 2 or cores() == 1 or hasattr(_given, "core"):
            return [function(item) for item in items]
        return list(_pool().map(function, items))


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(cores(), "fedsim", initializer=_begin)


def _begin() -> None:
    """Each thread says for itself that it has one core: the setting of the process may change meanwhile."""
    torch.set_num_threads(1)
    _given.core = True
