"""Using the cores of a CPU: one operation takes one core, and different clients or batches take different cores.

Operations that share cores among themselves wait for each other, badly so on a busy machine, and the shape of their
parts, and with it the last bits of their results, follows the number of cores. Here every number is computed by
one core, so it does not depend on how many there are.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import cache
from typing import Generic, TypeVar, cast

import torch

_own = threading.local()
"""`cores`: how many the thread may take, where that has been said."""
Item = TypeVar("Item")
Result = TypeVar("Result")


@cache
def given() -> int:
    """How many cores PyTorch was given when the process began to use them."""
    return torch.get_num_threads()


def cores() -> int:
    """How many cores what this thread begins may take: all that were given, or as many as `at_most` says."""
    return cast("int", getattr(_own, "cores", given()))


@contextmanager
def at_most(count: int | None) -> Iterator[None]:
    """Within this block, and in this thread, no more cores are taken than `count`; None: as many as before."""
    if count is None:
        yield
        return
    before, said = cores(), hasattr(_own, "cores")
    with _threads(min(count, before)) as taken:
        _own.cores = taken
        try:
            yield
        finally:
            if said:
                _own.cores = before
            else:
                del _own.cores


@contextmanager
def one_core_an_operation() -> Iterator[None]:
    """Within this block, and in threads begun in it, an operation on the CPU takes one core."""
    given()
    with _threads(1):
        yield


@contextmanager
def _threads(count: int) -> Iterator[int]:
    """Within this block an operation takes so many cores at most."""
    before = torch.get_num_threads()
    if before <= count:
        yield count
        return
    torch.set_num_threads(count)
    try:
        yield count
    finally:
        torch.set_num_threads(before)


def spread(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Apply `function` to each item, different items on different cores; the results in the items' order.

    Items are begun in their order, each by the first core that is free; this thread is one of them. On a core that such
    a call has been given, one item after the other: all cores may be waiting for it. What an item raises is raised, of
    several the first, once no core is at work.
    """
    helpers = min(cores(), len(items)) - 1
    if helpers < 1:
        with one_core_an_operation():
            return [function(item) for item in items]
    work = _Spread(function, items)
    with at_most(1):
        futures = [_pool().submit(work.take) for _ in range(helpers)]
        try:
            work.take()
        finally:
            work.end()
            wait([future for future in futures if not future.cancel()])
    if work.errors:
        raise work.errors[min(work.errors)]
    return [work.results[place] for place in range(len(items))]


class _Spread(Generic[Item, Result]):
    """Items that several threads take, one at a time, until none is left or one has raised an error."""

    def __init__(self, function: Callable[[Item], Result], items: Sequence[Item]) -> None:
        self.results: dict[int, Result] = {}
        self.errors: dict[int, BaseException] = {}
        self._function, self._left, self._ended = function, iter(list(enumerate(items))), False

    def take(self) -> None:
        """Work on what is left."""
        for place, item in self._left:  # a list's iterator gives an item to one thread alone
            if self._ended:
                return
            try:
                self.results[place] = self._function(item)
            except BaseException as error:  # raised in the thread that has begun this
                self.errors[place] = error
                self.end()

    def end(self) -> None:
        """Have no more items begun."""
        self._ended = True


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(given() - 1, 1), "fedsim", initializer=_begin)


def _begin() -> None:
    """Each thread says for itself that it has one core: the setting of the process may change meanwhile."""
    torch.set_num_threads(1)
    _own.cores = 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a forked process has none of these threads
