"""Work that would keep a server from answering others, done by one thread, a thing at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

T = TypeVar("T")


class Desk:
    """A thread that the process does not wait for when it ends, as it would for one of an executor's."""

    def __init__(self) -> None:
        self._asked: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()
        Thread(target=self._work, name="desk", daemon=True).start()

    async def do(self, work: Callable[[], T]) -> T:
        """What `work` returns, or raises, when its turn has come; nobody who has left by then has it done."""
        asked: Future[T] = Future()
        self._asked.put((asked, work))
        return await asyncio.wrap_future(asked)

    def _work(self) -> None:
        while True:
            asked, work = self._asked.get()
            if not asked.set_running_or_notify_cancel():
                continue
            try:
                asked.set_result(work())
            except BaseException as error:
                asked.set_exception(error)
