"""Evaluating the functions of a black box: all at once on tensors, one a client, or one point at a time in processes.

Nothing here imports PyTorch, so that a process which only evaluates functions is ready at once and small.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import pickle
import signal
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from fedsim.errors import FedsimError, InputError

if TYPE_CHECKING:
    from torch import Tensor

LOADING = -1
"""The task of a process that is not ready yet."""
PARTING = 1.0
"""Seconds within which a process that has closed its connection is expected to be gone."""


class BlackBoxError(FedsimError):
    """A function of a black box raised, ran out of time, or returned what is no value."""


@dataclass(frozen=True)
class Failure:
    """Why an evaluation gave no value. wrong: it returned something that is none; cause: what it raised, if known."""

    reason: str
    wrong: bool = False
    cause: Exception | None = None


class Answer(NamedTuple):
    """What an evaluation gave. who: who was asked; shape: of the values; found: what came, a Failure if nothing."""

    who: str
    shape: tuple[int, ...]
    found: object


class Functions(Protocol):
    """The functions f_i of N clients."""

    @property
    def num_clients(self) -> int:
        """N, how many functions there are."""
        ...

    @property
    def differentiable(self) -> bool:
        """Whether autograd finds the way from the values back to the points."""
        ...

    def ask(self, clients: Tensor, x: Tensor) -> Iterable[Answer]:
        """Evaluate f_c of clients int64 [C] at x [C, Q, d]; the answers joined are the values [C, Q], row by row.

        The functions get copies, which they may change.
        """
        ...

    def close(self) -> None:
        """End what was started for the evaluation; the next one starts it again."""
        ...


@dataclass(frozen=True)
class Stacked:
    """One function for all clients: function(clients int64 [C], x [C, Q, d]) -> values [C, Q].

    num_clients: N. A row may depend on nothing but its client and its points. When the function raises for several
    clients, each is asked by itself, to find those that it raises for.
    """

    function: Callable[[Tensor, Tensor], Any]
    num_clients: int
    differentiable: bool = False

    def ask(self, clients: Tensor, x: Tensor) -> Iterator[Answer]:
        """Evaluate all rows in one call."""
        count, queries = x.shape[:2]
        found = attempt(self.function, clients, x.clone())
        if count > 1 and isinstance(found, Failure):
            for row in range(count):
                yield from self.ask(clients[row : row + 1], x[row : row + 1])
            return
        who = f"client {int(clients[0])}" if count == 1 else f"the function of all clients, asked of {count}"
        yield Answer(who, (count, queries), found)

    def close(self) -> None:
        """Nothing was started."""


@dataclass(frozen=True)
class Vectorised:
    """One function a client: f_i(x [Q, d]) -> values [Q]. arrays: the points are NumPy's, on the CPU, not tensors."""

    functions: Sequence[Callable[[Any], Any]]
    arrays: bool = False
    differentiable: bool = False

    @property
    def num_clients(self) -> int:
        """N, how many functions there are."""
        return len(self.functions)

    def ask(self, clients: Tensor, x: Tensor) -> Iterator[Answer]:
        """Evaluate the clients one after the other."""
        points = _copied(x) if self.arrays else x.clone()
        for row, client in enumerate(clients.tolist()):
            found = attempt(self.functions[client], points[row])
            yield Answer(f"client {client}", (x.shape[1],), found)

    def close(self) -> None:
        """Nothing was started."""


@dataclass(frozen=True)
class Scalar:
    """One function a client, one point at a time: f_i(x [d], a NumPy array) -> a number."""

    functions: Sequence[Callable[[Any], Any]]
    differentiable = False

    @property
    def num_clients(self) -> int:
        """N, how many functions there are."""
        return len(self.functions)

    def ask(self, clients: Tensor, x: Tensor) -> Iterator[Answer]:
        """Evaluate the points one after the other."""
        for client, points in zip(clients.tolist(), _copied(x), strict=True):
            for point in points:
                yield Answer(f"client {client}", (), attempt(self.functions[client], point))

    def close(self) -> None:
        """Nothing was started."""


class Processes:
    """`Scalar`, in processes of its own, which are started when first asked and stay.

    functions: picklable. workers: how many processes. timeout: seconds for one evaluation, none for None; a process
    that takes longer is killed, with what it has started, and another takes its place, as for one that ends by itself.
    hurry: after a failure evaluate nothing more of the same call. Values and failures do not depend on `workers`.
    """

    differentiable = False

    def __init__(
        self, functions: Sequence[Callable[[Any], Any]], workers: int, timeout: float | None = None, hurry: bool = True
    ) -> None:
        self.num_clients, self.hurry = len(functions), hurry
        self.timeout = math.inf if timeout is None else timeout
        try:
            pickled = pickle.dumps(list(functions))
        except Exception as error:
            remedy = f"cannot be sent to processes; define them at the top of a module, or leave workers out ({error})"
            raise InputError("functions", f"{len(functions)} functions", _line(remedy)) from error
        self._workers = [_Worker(pickled) for _ in range(workers)]
        self._lock = Lock()
        weakref.finalize(self, _end, self._workers)

    def ask(self, clients: Tensor, x: Tensor) -> list[Answer]:
        """Evaluate the points on whichever process is free. After a failure in a hurry, the points behind it are None.

        InputError: a process cannot load the functions.
        """
        owners = [client for client in clients.tolist() for _ in range(x.shape[1])]
        points = _copied(x).reshape(len(owners), -1)
        with self._lock:
            found = self._evaluate(list(zip(owners, points, strict=True)))
        return [Answer(f"client {client}", (), value) for client, value in zip(owners, found, strict=True)]

    def close(self) -> None:
        """End the processes."""
        with self._lock:
            _end(self._workers)

    def _evaluate(self, tasks: Sequence[tuple[int, np.ndarray]]) -> list[object]:
        found: list[object] = [None] * len(tasks)
        # In order, so that all before a task that failed have been given out: the first failure is always the same one.
        waiting = deque(range(len(tasks)))
        try:
            while waiting or any(worker.task is not None and worker.task != LOADING for worker in self._workers):
                self._give_out(waiting, tasks)
                for task, value in self._receive():
                    found[task] = value
                    if isinstance(value, Failure) and (self.hurry or value.wrong):
                        waiting.clear()
        finally:
            for worker in self._workers:
                if worker.task is not None and worker.task != LOADING:  # interrupted: its answer is not waited for
                    worker.end()
        return found

    def _give_out(self, waiting: deque[int], tasks: Sequence[tuple[int, np.ndarray]]) -> None:
        loading = sum(worker.task == LOADING for worker in self._workers)
        for worker in self._workers:
            if loading < len(waiting) and worker.process is None:
                worker.start()
                loading += 1
            elif waiting and worker.process is not None and worker.task is None:
                task = waiting.popleft()
                if not worker.give(task, tasks[task], time.monotonic() + self.timeout):
                    waiting.appendleft(task)

    def _receive(self) -> Iterator[tuple[int, object]]:
        """Wait until a process answers, ends or has had its time; give the tasks that are done with what they gave."""
        working = {worker.connection: worker for worker in self._workers if worker.task is not None}
        if not working:
            return
        left = min(worker.deadline for worker in working.values()) - time.monotonic()
        ready = wait(list(working), None if left == math.inf else max(left, 0.0))
        for connection, worker in working.items():
            task = worker.task
            if connection in ready:
                value = worker.receive()
            elif worker.deadline <= time.monotonic():
                worker.end()
                value = Failure(f"took longer than {self.timeout:g} s")
            else:
                continue
            if task is not None and task != LOADING:
                yield task, value
            elif isinstance(value, Failure):
                worker.end()
                remedy = "define functions at the top of a module, and run a script below `if __name__ == '__main__':`"
                raise InputError("functions", f"a process that loads them {value.reason}", remedy)


class _Worker:
    """A process that evaluates functions, or the place for one. task: what it does now, None if nothing."""

    def __init__(self, pickled: bytes) -> None:
        self.process: SpawnProcess | None = None
        self.task: int | None = None
        self.deadline = math.inf
        self._pickled = pickled

    def start(self) -> None:
        # A fork would copy the locks of PyTorch's threads in whatever state they are.
        context = multiprocessing.get_context("spawn")
        self.connection, far = context.Pipe()
        self.process = context.Process(target=_serve, args=(far, self._pickled), daemon=True)
        self.task, self.deadline = LOADING, math.inf
        self.process.start()
        far.close()

    def give(self, task: int, given: tuple[int, np.ndarray], deadline: float) -> bool:
        """Begin a task; False where the process has ended meanwhile."""
        try:
            self.connection.send(given)
        except OSError:
            self.end()
            return False
        self.task, self.deadline = task, deadline
        return True

    def receive(self) -> object:
        """The answer of a process that has one or has ended."""
        assert self.process is not None
        try:
            value: object = self.connection.recv()
        except (EOFError, OSError):
            self.process.join(PARTING)
            value = Failure(f"ended its process with exit code {self.process.exitcode}")
            self.end()
            return value
        self.task, self.deadline = None, math.inf
        return value

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
        self.connection.close()
        self.process, self.task, self.deadline = None, None, math.inf


def _end(workers: Iterable[_Worker]) -> None:
    for worker in workers:
        worker.end()


def _serve(connection: Connection, pickled: bytes) -> None:
    """What a process does: load the functions, then answer (client, point) until nobody asks any more."""
    if hasattr(os, "setpgrp"):
        # A group of its own: an interrupt at the keyboard is not for it, and what functions start can be ended with it.
        os.setpgrp()
    functions = attempt(pickle.loads, pickled)
    with suppress(EOFError, OSError):
        if isinstance(functions, Failure):
            connection.send(Failure(functions.reason))
            return
        connection.send(None)
        while True:
            client, point = connection.recv()
            found = real(attempt(functions[client], point), ())
            connection.send(Failure(found.reason, found.wrong) if isinstance(found, Failure) else found)


def attempt(function: Callable[..., Any], *given: Any) -> Any:
    """What the function returns, or a Failure that says what it raised."""
    try:
        return function(*given)
    except Exception as error:
        return Failure(_line(f"raised {type(error).__name__}: {error}"), cause=error)


def real(found: object, shape: tuple[int, ...]) -> np.ndarray | Failure:
    """What a function returned as float64 of that shape; a Failure if it is not, or is one already.

    NaN and infinity are numbers here; True and False are none.
    """
    if isinstance(found, Failure):
        return found
    try:
        array = np.asarray(found)
    except Exception:
        return misfit(type(found).__name__, shape)
    if array.dtype.kind not in "iuf" or array.shape != shape:
        plain = array.dtype.kind == "O" or isinstance(found, str | bytes)
        return misfit(type(found).__name__ if plain else f"{array.dtype} of shape {array.shape}", shape)
    return array.astype(np.float64)


def misfit(described: str, shape: tuple[int, ...]) -> Failure:
    """The Failure of a function that returned something else than real numbers of that shape."""
    return Failure(f"returned {described}, not real numbers of shape {shape}", wrong=True)


def _copied(x: Tensor) -> np.ndarray:
    return np.array(x.detach().cpu().numpy())


def _line(text: str) -> str:
    return " ".join(text.split())[:300]
