"""What is needed of Flower beyond its public interface, all of it; `tests/flower/test_internals.py` guards it."""

from __future__ import annotations

import concurrent.futures
import io
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import lru_cache, wraps
from inspect import isfunction
from itertools import count
from pathlib import Path
from typing import Any, NoReturn, cast

import click
import flwr.server.server as legacy
import flwr.serverapp.server_app as apps
import flwr.serverapp.strategy.strategy_utils as sampling
import numpy as np
from flwr.app import Array, ArrayRecord, Context, Error, Message, Metadata, RecordDict
from flwr.common.config import flatten_dict, fuse_dicts, get_project_config, parse_config_args
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode, SType
from flwr.server.client_manager import SimpleClientManager
from flwr.server.compat.grid_client_proxy import GridClientProxy
from flwr.server.history import History as History
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from flwr.supercore.constant import SYSTEM_MESSAGE_TYPE
from flwr.supercore.run import Run, RunNotRunningException
from flwr.supercore.task_identity import TaskIdentity

NUMPY = SType.NUMPY
"""How arrays say that NumPy has written them."""
SERVER = SUPERLINK_NODE_ID
"""The node in whose name a server app sends."""
RAISED, CRASHED, EXPIRED = (
    ErrorCode.CLIENT_APP_RAISED_EXCEPTION,
    ErrorCode.CLIENT_APP_CRASHED,
    ErrorCode.MESSAGE_UNAVAILABLE,
)
"""Codes of errors: of an exception in a client app, of a process that died, of a message whose time was over."""
UNANSWERED = frozenset({EXPIRED, ErrorCode.REPLY_MESSAGE_UNAVAILABLE, ErrorCode.NODE_UNAVAILABLE})
"""Codes by which Flower itself says that nobody answers: the message's time is over, or its node has gone."""
Ended = RunNotRunningException
"""What Flower's threads end at when they look for nodes and the run is over."""
Outcome = Result | History
"""What a run comes to: of a strategy of `flwr.serverapp.strategy`, or of one of `flwr.server.strategy`."""


@contextmanager
def acting_as(node: int, run: int = 1) -> Iterator[None]:
    """Within this block messages are made in the name of this node and run, as Flower's processes have them made."""
    held = TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id
    TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id = 1, run, node
    try:
        yield
    finally:
        TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id = held


def empty_run(run: int) -> Run:
    """A run of an app that is in no bundle."""
    return Run.create_empty(run)


def name_message(message: Message, name: str) -> None:
    """Give a message its id, which Flower's grids do when they take it."""
    message.metadata.__dict__["_message_id"] = name


def copied(message: Message) -> Message:
    """A message that shares only what cannot be edited, such as the bytes of arrays: what a receiver has of it."""
    metadata = object.__new__(Metadata)
    metadata.__dict__.update(message.metadata.__dict__)
    made = object.__new__(Message)
    made.__dict__["_metadata"] = metadata
    made.__dict__["_content"] = copied_records(message.content) if message.has_content() else None
    made.__dict__["_error"] = message.error if message.has_error() else None
    return made


def copied_context(context: Context) -> Context:
    """A node's context with a state, and settings, of its own."""
    return Context(
        context.run_id,
        context.node_id,
        dict(context.node_config),
        copied_records(context.state),
        dict(context.run_config),
        context.series_id,
    )


def copied_records(records: RecordDict) -> RecordDict:
    """Records whose arrays, lists and names are their own; bytes are shared."""
    made = RecordDict()
    for name, record in records.items():
        copy = record.copy()
        held = copy.__dict__["_data"]
        if isinstance(record, ArrayRecord):
            for key, array in held.items():
                held[key] = _array(array.dtype, array.shape, array.stype, bytes(array.data))
        else:
            for key, value in held.items():
                if isinstance(value, list):
                    held[key] = list(value)
        made.__dict__["_data"][name] = copy
    return made


def unavailable(name: str, run: int, now: float) -> Message:
    """What Flower answers who asks for the reply to a message that is unknown, or whose time is over.

    now: the wall clock's seconds.
    """
    metadata = Metadata(run, "", SERVER, SERVER, name, "", now, 0.0, SYSTEM_MESSAGE_TYPE)
    metadata.delivered_at = ""
    made = object.__new__(Message)
    reason = "the message is not known here, or its time to live is over"
    made.__dict__.update(_metadata=metadata, _content=None, _error=Error(EXPIRED, reason))
    return made


@contextmanager
def watched(grid: Grid, note: Callable[[Outcome], None], stall: Callable[[int | None], NoReturn]) -> Iterator[None]:
    """Within this block Flower's server side works on nodes that are all there and answer at once.

    Strategies, those too that override `start`, and legacy servers hand what they came to also to `note`. Who would
    wait for nodes calls `stall`, with their number where it is known. A legacy server asks its clients as one batch, in
    order, instead of each in a thread of its own, whose replies would come in any order.
    """
    start_grid = vars(apps)["start_grid"]

    def started_grid(**named: Any) -> History:
        history: History = start_grid(**named)
        note(history)
        return history

    def waits(manager: SimpleClientManager, num_clients: int, timeout: int = 0) -> bool:  # noqa: ARG001
        if manager.num_available() < num_clients:
            stall(num_clients)
        return True

    with ExitStack() as stack:
        for owner, name, value in (
            (apps, "start_grid", started_grid),
            (sampling, "sleep", lambda _: stall(None)),
            (SimpleClientManager, "wait_for", waits),
            (legacy, "concurrent", _InTurn(grid)),
        ):
            stack.enter_context(_replaced(owner, name, value))
        stack.enter_context(_started(note))
        yield


@contextmanager
def _started(note: Callable[[Outcome], None]) -> Iterator[None]:
    """Within this block each strategy's `start` hands its result to `note`, once, whoever has written it.

    A `start` that calls another one, its base class's or another strategy's, speaks for both: what counts is what it
    returns, or, where that is no Result, the last that was returned within it. Classes that come into being within the
    block are like the others. At the end each class has its own function again.
    """
    theirs: dict[Callable[..., Any], Callable[..., Any]] = {}
    found: ContextVar[list[Result] | None] = ContextVar("found", default=None)

    def noting(start: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(start)
        def begun(*given: Any, **named: Any) -> Any:
            outer = found.get()
            results: list[Result] = [] if outer is None else outer
            token = found.set(results)
            try:
                outcome = start(*given, **named)
            finally:
                found.reset(token)
            if isinstance(outcome, Result):
                results.append(outcome)
            if outer is None and results:
                note(results[-1])
            return outcome

        theirs[begun] = start
        return begun

    def watch(kind: type[Any]) -> None:
        owner, start = _start_of(kind)
        if isfunction(start) and start not in theirs:
            owner.start = noting(start)

    def made(kind: type[Any], /, **named: Any) -> None:
        super(Strategy, kind).__init_subclass__(**named)
        watch(kind)

    for kind in _kinds(Strategy):
        watch(kind)
    Strategy.__init_subclass__ = classmethod(made)  # type: ignore[assignment]
    try:
        yield
    finally:
        del Strategy.__init_subclass__
        for kind in _kinds(Strategy):
            owner, start = _start_of(kind)
            if isfunction(start) and start in theirs:
                owner.start = theirs[start]


def _kinds(kind: type[Any]) -> set[type[Any]]:
    """A class and all that are derived from it."""
    return {kind}.union(*map(_kinds, kind.__subclasses__()))


def _start_of(kind: type[Any]) -> tuple[Any, Any]:
    """What a class of strategies begins with, and the class that has it: one that is no strategy, too."""
    owner = next(owner for owner in kind.__mro__ if "start" in vars(owner))
    return owner, vars(owner)["start"]


@contextmanager
def quick_arrays() -> Iterator[None]:
    """Within this block arrays are encoded to, and decoded from, the same bytes as else, in a tenth of the time.

    NumPy writes and reads the text that describes an array anew for each; of most arrays it is one that was seen.
    """
    encode, decode = Array.from_numpy_ndarray, Array.numpy

    def encoded(_: type[Array], ndarray: Any) -> Array:
        dtype = ndarray.dtype
        if type(ndarray) is not np.ndarray or dtype.isbuiltin != 1 or dtype.hasobject or not ndarray.flags.c_contiguous:
            return encode(ndarray)
        return _array(str(dtype), ndarray.shape, NUMPY, _head(dtype, ndarray.shape) + ndarray.tobytes())

    def decoded(array: Array) -> Any:
        data, begin = array.data, 10 + int.from_bytes(array.data[8:10], "little")
        if array.stype != NUMPY or data[:8] != b"\x93NUMPY\x01\x00":
            return decode(array)
        dtype, shape, fortran = _described(data[:begin])
        if fortran or dtype.hasobject or len(data) != begin + dtype.itemsize * math.prod(shape):
            return decode(array)
        return np.frombuffer(data, dtype, offset=begin).reshape(shape).copy()

    with _replaced(Array, "from_numpy_ndarray", classmethod(encoded)), _replaced(Array, "numpy", decoded):
        yield


@lru_cache(maxsize=4096)
def _head(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """What stands before the numbers of an array in C order."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": dtype.str, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


@lru_cache(maxsize=4096)
def _described(head: bytes) -> tuple[np.dtype[Any], tuple[int, ...], bool]:
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(io.BytesIO(head[8:]))
    return dtype, shape, fortran


def _array(dtype: str, shape: tuple[int, ...], stype: str, data: bytes) -> Array:
    """An array as its constructor makes it, which checks what is known here, and takes ten times as long."""
    made = object.__new__(Array)
    made.__dict__.update(dtype=dtype, shape=shape, stype=stype, data=data)
    return made


class _Asked(BaseException):
    """A call has been stopped at what it sends."""


class _InTurn:
    """What a legacy server knows of the module `concurrent`: calls of clients, done in turn as one batch of messages.

    A call is made twice: the first time it is stopped at the message that it sends, the second time it finds the reply.
    """

    def __init__(self, grid: Grid) -> None:
        self.futures, self._grid, self._numbers = self, grid, count()
        self._calls: dict[concurrent.futures.Future[Any], tuple[int, Callable[[], Any], GridClientProxy | None]] = {}

    def ThreadPoolExecutor(self, max_workers: int | None = None) -> _InTurn:  # noqa: N802, ARG002  # the library's name
        return self

    def __enter__(self) -> _InTurn:
        return self

    def __exit__(self, *raised: object) -> None:
        self._calls.clear()

    def submit(self, function: Callable[..., Any], *given: Any) -> concurrent.futures.Future[Any]:
        made: concurrent.futures.Future[Any] = concurrent.futures.Future()
        proxy = given[0] if type(given[0]) is GridClientProxy else None
        self._calls[made] = next(self._numbers), lambda: function(*given), proxy
        return made

    def wait(
        self,
        fs: Iterable[concurrent.futures.Future[Any]],
        timeout: float | None = None,  # noqa: ARG002
    ) -> tuple[list[concurrent.futures.Future[Any]], set[concurrent.futures.Future[Any]]]:
        ordered = sorted(fs, key=lambda future: self._calls[future][0])
        stub = _Stub(self._grid)
        asked = [future for future in ordered if self._made(future, stub)]
        stub.answer(self._grid.send_and_receive(stub.sent))
        for future in asked:
            self._made(future, stub)
        return ordered, set()

    def _made(self, future: concurrent.futures.Future[Any], stub: _Stub) -> bool:
        """Make a call; whether it was stopped at what it sends."""
        _, call, proxy = self._calls[future]
        try:
            with ExitStack() as stack:
                if proxy is not None:
                    stack.enter_context(_replaced(proxy, "grid", stub))
                future.set_result(call())
        except _Asked:
            return True
        except Exception as error:
            future.set_exception(error)
        return False


class _Stub:
    """A grid that keeps what is sent until there are answers, which it then gives in the same order."""

    def __init__(self, grid: Grid) -> None:
        self.run, self.sent = grid.run, list[Message]()
        self._answers: Iterator[list[Message]] | None = None

    def answer(self, replies: Iterable[Message]) -> None:
        found = {reply.metadata.reply_to_message_id: reply for reply in replies}
        names = [message.metadata.message_id for message in self.sent]
        self._answers = iter([[found[name]] if name in found else [] for name in names])

    def send_and_receive(self, messages: Iterable[Message]) -> list[Message]:
        if self._answers is not None:
            return next(self._answers)
        self.sent += messages
        raise _Asked


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = vars(owner)[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def project(folder: Path) -> Mapping[str, Any]:
    """What the pyproject.toml of an app's folder says. ValueError or OSError: it describes no app."""
    return cast("Mapping[str, Any]", get_project_config(folder))


def run_config(app: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """An app's configuration, flat, with overrides as after `flwr run --run-config`. ValueError, OSError: bad ones."""
    return dict(fuse_dicts(flatten_dict(app.get("config", {})), written(overrides)))


def written(texts: Sequence[str]) -> dict[str, Any]:
    """What texts of `name=value ...` say, or a TOML file, by flat names. ValueError, OSError: they cannot be read."""
    for text in texts:  # Flower passes over what it does not understand
        if not text.endswith(".toml") and (rest := _WRITTEN.sub("", text).strip()):
            raise ValueError(f"{rest} is not name=value")
    try:
        return dict(parse_config_args(list(texts)))
    except click.ClickException as error:
        raise ValueError(error.message) from error


_WRITTEN = re.compile(r"""\S+?=('[^']*'|"[^"]*"|\S+)""")
"""What Flower takes for a name and its value."""
