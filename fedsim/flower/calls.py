"""Calls of a client app: in this process, or in worker processes; each in its node's world, wherever that is."""

from __future__ import annotations

import gc
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Protocol

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from fedsim.core.errors import FedsimError, InputError, warn
from fedsim.core.generators import begin_globals, seeded_globals
from fedsim.core.terminal import printable
from fedsim.flower.internals import CRASHED, RAISED, copied, copied_context, quick_arrays
from fedsim.flower.places import app_of
from fedsim.flower.removed import removed
from fedsim.flower.settings import Settings, present
from fedsim.flower.worlds import AppFinder, Turns, World
from fedsim.parallel.cores import one_core_an_operation
from fedsim.parallel.workers import Failed, Raised, TimedOut, Workers

SILENCE = 60.0
"""Wall-clock seconds without an answer after which a user is told."""
_kept = ExitStack()
"""What a worker has begun and never ends."""


@dataclass(frozen=True)
class Call:
    """What the node of a partition is to do: handle a message in its context, drawing from generators from `seed` on.

    limit: wall-clock seconds after which a worker process that is still at it is ended.
    """

    message: Message
    context: Context
    partition: int
    seed: int
    limit: float


@dataclass(frozen=True)
class Answer:
    """What came of a call. context: what the node goes on with; None: what it had. seconds: of the wall clock."""

    reply: Message
    context: Context | None
    seconds: float


class Clients(Protocol):
    """Whatever makes calls of the client app."""

    def answers(self, calls: Sequence[Call]) -> list[Answer]:
        """Make calls of different nodes; the answers in the calls' order."""


class Here:
    """Calls in this process, one after the other, each in its node's world.

    app: the client app, which then has its modules where the caller has them, or where each world imports it from.
    finder: of the app's modules. settings: what worlds begin with. seed: of the import. count: how many worlds there
    are, for nodes with the same remainder of their partition; None: one for each.
    """

    def __init__(
        self,
        app: ClientApp | str,
        finder: AppFinder | None = None,
        settings: Settings | None = None,
        seed: int = 0,
        count: int | None = None,
    ) -> None:
        self._app, self._seed, self._count = app, seed, count
        self._finder = AppFinder() if finder is None else finder
        self._settings = {**(present() if settings is None else settings), "threads": 1}
        self._worlds: dict[int, tuple[World, ClientApp | None]] = {}

    def begin(self) -> None:
        """Import the app for the first node. Raises as `app_of`."""
        self.load(0)

    def load(self, partition: int) -> tuple[World, ClientApp]:
        """The world of a partition's node, and the app as it is there, imported if need be. Raises as `app_of`."""
        number = partition if self._count is None else partition % self._count
        world, app = self._worlds.get(number) or (World(self._finder, self._settings), None)
        self._worlds[number] = world, app
        if app is None:
            with one_core_an_operation():
                app = world.run(app_of, self._app, ClientApp, self._seed)
            self._worlds[number] = world, app
        return world, app

    def answers(self, calls: Sequence[Call]) -> list[Answer]:
        """Make the calls."""
        _collector.pass_over()
        with seeded_globals(0), one_core_an_operation(), Turns() as turns:
            return [self._answer(call, turns) for call in calls]

    def _answer(self, call: Call, turns: Turns) -> Answer:
        try:
            world, app = self.load(call.partition)
        except (Exception, SystemExit) as error:
            return Answer(failure(call.message, RAISED, _told(error)), None, 0.0)
        return turns.run(world, handle, app, call)


def handle(app: ClientApp, call: Call) -> Answer:
    """Make a call, on copies of message and context; what it returns is copied, for the app may keep it.

    An exception, and a reply that is none, are answered as an error and leave the context as it was. The global
    generators are left wherever the call leaves them.
    """
    message, began = call.message, time.perf_counter()
    name = message.metadata.message_id
    context: Context | None = None
    try:
        begin_globals(call.seed)  # they are not put back after each call, which takes ten times as long
        own = copied_context(call.context)
        returned = app(copied(message), own)
        if not isinstance(returned, Message) or returned.metadata.reply_to_message_id != name:
            raise TypeError(f"the client app returned {type(returned).__name__}, not a reply to its message")
        reply, context = copied(returned), copied_context(own)
    except (Exception, SystemExit) as error:
        reply = failure(message, RAISED, _told(error))
    return Answer(reply, context, time.perf_counter() - began)


def failure(message: Message, code: int, reason: str) -> Message:
    """The reply that something went wrong."""
    return Message(Error(code, reason), reply_to=message)


def _told(error: BaseException) -> str:
    """What an error says, and where; Flower logs it as it is, to a terminal, which it must not steer."""
    return printable(
        "\n".join(filter(None, (f"{type(error).__name__}: {error}", removed(error), traceback.format_exc())))
    )


@dataclass(frozen=True)
class Pool:
    """Calls in worker processes. A node's world stays where it is: in the worker of its number's remainder.

    workers: which have loaded with `load_clients`. count: of worlds, as of `Here`.
    """

    workers: Workers
    count: int | None = None

    def begin(self) -> None:
        """Have every worker import the app. InputError, FedsimError: it cannot be."""
        numbers = range(self.workers.count)
        for found in self.workers.map(imported, numbers, homes=numbers):
            if isinstance(found, Failed):
                error = FedsimError(f"the client app cannot be imported: a worker process {found.reason}")
                if isinstance(found, Raised):
                    error.add_note(found.traceback)
                raise error
            if found is not None:
                raise InputError(*found)

    def answers(self, calls: Sequence[Call]) -> list[Answer]:
        """Make the calls; what a process leaves behind that has died or was ended is an error."""
        homes = [self._world(call) % self.workers.count for call in calls]
        limits = [call.limit for call in calls]
        found: dict[int, Answer] = {}
        with _silence_told(calls, found):
            for number, outcome in self.workers.stream(
                Here.answers, [[call] for call in calls], homes=homes, timeouts=limits
            ):
                if isinstance(outcome, list):
                    (found[number],) = outcome
                else:
                    taken = outcome.seconds if isinstance(outcome, TimedOut) else 0.0
                    lost = failure(calls[number].message, CRASHED, f"a node that {outcome.reason}")
                    found[number] = Answer(lost, None, taken)
        return [found[number] for number in range(len(calls))]

    def _world(self, call: Call) -> int:
        return call.partition if self.count is None else call.partition % self.count


@contextmanager
def _silence_told(calls: Sequence[Call], found: Mapping[int, Answer]) -> Iterator[None]:
    """Within this block a minute without an answer is told, once: a client may hang, and its limit be far away."""
    done = threading.Event()

    def watch() -> None:
        before = 0
        while not done.wait(SILENCE):
            if len(found) == before:
                waiting = [str(call.partition) for number, call in enumerate(calls) if number not in found]
                warn(
                    f"no client has answered for {SILENCE:g} s; partitions at work, or waiting for their worker: "
                    f"{', '.join(waiting)}; --call-limit ends calls that take too long"
                )
                return
            before = len(found)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def imported(clients: Here, partition: int) -> tuple[str, object, str] | None:
    """Import the app for a node: None, or what an InputError has to say, which cannot be sent itself."""
    try:
        clients.load(partition)
    except InputError as error:
        return error.option, error.value, error.remedy
    return None


def load_clients(
    place: str, finder: tuple[Sequence[str], Iterable[str]], settings: Settings, seed: int, count: int | None
) -> Here:
    """What a worker holds. finder: its roots and own names. settings: the portable ones of who has started it."""
    _kept.enter_context(one_core_an_operation())
    _kept.enter_context(quick_arrays())
    _kept.enter_context(few_collections())
    return Here(place, AppFinder(*finder), {**present(), **settings}, seed, count)


class _Collector:
    """Python's collector passes over what was imported; every message has it look through all else again and again.

    modules: how many there were when it was last told so; None: it is not to be told.
    """

    def __init__(self) -> None:
        self.modules: int | None = None

    def pass_over(self) -> None:
        """Have it pass over what was imported since: PyTorch's first optimizer, for one, imports 800 modules."""
        if self.modules is not None and self.modules < (count := len(sys.modules)):
            self.modules = count
            gc.collect()
            gc.freeze()


_collector = _Collector()


@contextmanager
def few_collections() -> Iterator[None]:
    """Within this block Python's collector passes over what was imported, before it and before each batch of calls."""
    if gc.get_freeze_count():
        yield
        return
    gc.freeze()
    _collector.modules = len(sys.modules)
    try:
        yield
    finally:
        _collector.modules = None
        gc.unfreeze()
