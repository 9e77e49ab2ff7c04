"""Persistent worker processes, for work that Python's lock would keep to one core.

Processes are spawned, never forked: a fork would copy the locks of PyTorch's threads in whatever state they are. They
start when there is work for them, all at the same time, load what they need once and stay. A process that dies is
replaced, and its task given out once more, for what ended it may have been meant for another (a system short of memory
picks the largest). Messages are those of `fedsim.parallel.shared_memory`.

Nothing here imports NumPy or PyTorch, so that a process is ready at once, and small where it needs neither.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import pickle
import secrets
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from multiprocessing.util import Finalize
from typing import Any

from fedsim.core.blame import mistake
from fedsim.core.errors import FedsimError, named_line
from fedsim.parallel.shared_memory import Channel, UnreadableError

GUARD = 'a script has to start workers below `if __name__ == "__main__":`'
"""The remedy where a process ends before it is ready."""
LOADING = -1
"""The task of a process that is not ready yet."""
PARTING = 1.0
"""Seconds within which a process that has closed its connection is expected to be gone."""


class WorkerError(FedsimError):
    """Workers cannot be started. reason: what their processes did, in one line. remedy: what may help."""

    def __init__(self, reason: str, remedy: str = "") -> None:
        self.reason = reason
        super().__init__("; ".join(filter(None, (f"a worker process {reason}", remedy))))


@dataclass(frozen=True)
class Raised:
    """A task that raised an exception. text: its class and message, in one line; traceback: as Python prints it."""

    text: str
    traceback: str

    @property
    def reason(self) -> str:
        """What went wrong, in a line that says what the process did."""
        return f"raised {self.text}"


@dataclass(frozen=True)
class Lost:
    """A task whose process ended, twice. exit_code: of the second; minus the number of the signal that ended it."""

    exit_code: int | None

    @property
    def reason(self) -> str:
        """What went wrong, in a line that says what the process did."""
        return f"ended its process with exit code {self.exit_code}"


@dataclass(frozen=True)
class TimedOut:
    """A task that was stopped because it took too long."""

    seconds: float

    @property
    def reason(self) -> str:
        """What went wrong, in a line that says what the process did."""
        return f"took longer than {self.seconds:g} s"


Failed = Raised | Lost | TimedOut
"""Outcomes of tasks that gave no value."""


class Workers:
    """Processes that stay. load(*arguments) is called once in each, and what it returns is kept there.

    count: how many processes at most. timeout: seconds for one task, without end for None; a process that takes longer
    is killed, with all that it has started, and another takes its place. A process is deaf to interrupts at the
    keyboard, and ends with the process that has started it, however that ends. A script has to start them below
    `if __name__ == "__main__":`, as every process begins by importing it.

    WorkerError: `load` or its arguments cannot be pickled; and where tasks are given out, `load` raises or ends its
    process.
    """

    def __init__(self, count: int, load: Callable[..., Any], *arguments: Any, timeout: float | None = None) -> None:
        self.count, self.timeout = count, math.inf if timeout is None else timeout
        try:
            pickled = pickle.dumps((load, arguments))
        except Exception as error:
            raise WorkerError(f"cannot be sent what it is to load: {named_line(error)}") from error
        self._workers = [_Worker(pickled) for _ in range(count)]
        self._lock = threading.Lock()
        # Before Python waits for its processes, when it ends, and in no process that has been forked from this one.
        Finalize(self, _end, (self._workers,), exitpriority=0)

    def start(self) -> None:
        """Start the processes, which load while this one goes on, instead of when there is work for them."""
        with self._lock:
            for worker in self._workers:
                if worker.process is None:
                    worker.start()

    def map(
        self,
        function: Callable[[Any, Any], Any],
        tasks: Iterable[Any],
        homes: Sequence[int] | None = None,
        timeouts: Sequence[float] | None = None,
    ) -> list[Any]:
        """Call function(held, task) for every task, on whichever process is free: the outcomes in the tasks' order.

        `held` is what `load` has returned in the process. An outcome is a value, or one of `Failed`. homes: for each
        task the number of the process, from 0, that is to do it. timeouts: of each, instead of the one for all.
        """
        listed = list(tasks)
        outcomes: list[Any] = [None] * len(listed)
        for number, outcome in self.stream(function, listed, homes=homes, timeouts=timeouts):
            outcomes[number] = outcome
        return outcomes

    def stream(
        self,
        function: Callable[[Any, Any], Any],
        tasks: Sequence[Any],
        stop: Callable[[Any], bool] | None = None,
        *,
        homes: Sequence[int] | None = None,
        timeouts: Sequence[float] | None = None,
    ) -> Generator[tuple[int, Any], None, None]:
        """Do the same, and yield the tasks' numbers with their outcomes as they end.

        Tasks are given out in their order. stop: after an outcome for which it is true no more are given out, and those
        that were are waited for, so that the first such task of all does not depend on the number of workers. When the
        generator is closed, processes at work are ended; until then every other call waits, for ever if it is of
        the same thread.
        """
        waiting, again, done = deque(range(len(tasks))), set[int](), list[tuple[int, Any]]()
        with self._lock:
            try:
                while waiting or any(worker.at_work for worker in self._workers):
                    self._give_out(waiting, function, tasks, homes, timeouts)
                    yield from done
                    done = []
                    for number, outcome in self._receive():
                        if isinstance(outcome, Lost) and number not in again:
                            again.add(number)
                            waiting.appendleft(number)
                            continue
                        done.append((number, outcome))
                        if stop is not None and stop(outcome):
                            waiting = deque(number for number in waiting if number in again)
                yield from done
            finally:
                _end(worker for worker in self._workers if worker.at_work)

    def close(self) -> None:
        """End the processes; the next call starts them again."""
        with self._lock:
            _end(self._workers)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _give_out(
        self,
        waiting: deque[int],
        function: Callable[[Any, Any], Any],
        tasks: Sequence[Any],
        homes: Sequence[int] | None,
        timeouts: Sequence[float] | None,
    ) -> None:
        loading = sum(worker.task == LOADING for worker in self._workers)
        for place, worker in enumerate(self._workers):
            number = next((number for number in waiting if homes is None or homes[number] == place), None)
            if number is None:
                continue
            if worker.process is None and (homes is not None or loading < len(waiting)):
                worker.start()
                loading += 1
            elif worker.process is not None and worker.task is None:
                timeout = self.timeout if timeouts is None else timeouts[number]
                if worker.give(number, (function, tasks[number]), timeout):
                    waiting.remove(number)

    def _receive(self) -> Iterator[tuple[int, Any]]:
        """Wait until a process answers, ends or has had its time; give the tasks that are done with their outcomes."""
        working = {worker.channel.connection: worker for worker in self._workers if worker.task is not None}
        if not working:
            return
        left = min(worker.deadline for worker in working.values()) - time.monotonic()
        ready = wait(list(working), None if left == math.inf else max(left, 0.0))
        for connection, worker in working.items():
            task = worker.task
            outcome: Any
            if connection in ready:
                outcome = worker.receive()
            elif worker.deadline <= time.monotonic():
                outcome = TimedOut(worker.timeout)
                worker.end()
            else:
                continue
            if task is not None and task != LOADING:
                yield task, outcome
            elif isinstance(outcome, Failed):
                worker.end()
                error = WorkerError(outcome.reason, GUARD if isinstance(outcome, Lost) else "")
                if isinstance(outcome, Raised):
                    error.add_note(outcome.traceback)
                raise error


class _Worker:
    """A process, or the place for one. task: the number of what it does now, None if nothing."""

    def __init__(self, pickled: bytes) -> None:
        self.process: SpawnProcess | None = None
        self.task: int | None = None
        self.timeout = self.deadline = math.inf
        self._pickled = pickled

    @property
    def at_work(self) -> bool:
        return self.task is not None and self.task != LOADING

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        connection, far = context.Pipe()
        # Both ends name their memory after this; some systems allow 31 letters.
        name = f"fedsim-{os.getpid()}-{secrets.token_hex(4)}"
        process = context.Process(target=_serve, args=(far, name, self._pickled))
        with _deaf():
            process.start()
            self.process, self.channel = process, Channel(connection, f"{name}-a", f"{name}-b")
            self.task, self.deadline = LOADING, math.inf
            far.close()

    def give(self, number: int, message: object, timeout: float) -> bool:
        """Begin a task, which may take so many seconds; False where the process has ended meanwhile."""
        self.task = number  # first: an interrupt may come when half of it is done
        try:
            self.channel.send(message)
        except OSError:
            self.end()
            return False
        self.timeout, self.deadline = timeout, time.monotonic() + timeout
        return True

    def receive(self) -> Any:
        """The outcome of a process that has one or has ended."""
        assert self.process is not None
        try:
            outcome = self.channel.receive()
        except UnreadableError as error:
            outcome = _raised(error.__cause__ or error)
        except (EOFError, OSError):
            self.process.join(PARTING)
            outcome = Lost(self.process.exitcode)
            self.end()
            return outcome
        self.task, self.deadline = None, math.inf
        return outcome

    def end(self) -> None:
        """Kill the process if it is alive, with all that it has started."""
        if self.process is None:
            return
        if self.process.is_alive():
            if hasattr(os, "killpg"):
                with suppress(ProcessLookupError):  # it has not come so far as to make its group
                    os.killpg(self.process.ident or 0, signal.SIGKILL)
            self.process.kill()
        self.process.join()
        self.process.close()
        self.channel.close()
        self.process, self.task, self.deadline = None, None, math.inf


def _end(workers: Iterable[_Worker]) -> None:
    for worker in workers:
        worker.end()


@contextmanager
def _deaf() -> Iterator[None]:
    """A process that is started within this block does not hear interrupts from its first instruction on."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # which would end this block when the first process starts it
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(connection: Connection, name: str, pickled: bytes) -> None:
    """What a process does: load what it needs, then do tasks until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    if hasattr(os, "setpgrp"):
        os.setpgrp()  # what tasks start can be ended with this process
    threading.Thread(target=_end_with_parent, daemon=True).start()
    channel = Channel(connection, f"{name}-b", f"{name}-a")
    with suppress(EOFError, OSError):
        try:
            load, arguments = pickle.loads(pickled)
            held = load(*arguments)
        except Exception as error:
            channel.send(_raised(error))
            return
        channel.send(None)
        while True:
            _answer(channel, held)
    _end_group()


def _answer(channel: Channel, held: Any) -> None:
    """Do one task; its arguments and its outcome end with this call."""
    outcome: Any
    try:
        function, task = channel.receive()
    except UnreadableError as error:
        outcome = _raised(error.__cause__ or error)
    else:
        try:
            outcome = function(held, task)
        except Exception as error:
            outcome = _raised(error)
    try:
        channel.send(outcome)
    except OSError:
        raise
    except Exception as error:
        channel.send(_raised(error))


def _end_with_parent() -> None:
    """Wait for the end of the process that has started this one; then end, with all that this one has started."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    _end_group()


def _end_group() -> None:
    """End this process, with all that it has started."""
    if hasattr(os, "killpg"):
        os.killpg(os.getpgrp(), signal.SIGKILL)
    os._exit(1)


def take_cores(count: int) -> None:
    """Something for a process to load: PyTorch, given so many cores; operations of NumPy take one each."""
    os.environ["OMP_NUM_THREADS"] = "1"  # which NumPy reads when it is loaded

    import torch

    torch.set_num_threads(count)  # before fedsim.parallel.cores asks how many there are


def _raised(error: BaseException) -> Raised:
    return Raised(mistake(error), "".join(traceback.format_exception(error)))
