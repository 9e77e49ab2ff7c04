"""Flower apps, unchanged, in this process or over worker processes, without Ray: `simulate`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from types import ModuleType
from typing import Any, TypeVar

import torch
from flwr.app import Context, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fedsim.core.errors import InputError
from fedsim.core.generators import seeded_globals
from fedsim.core.streams import Streams
from fedsim.flower.internals import CRASHED, SERVER, History, Outcome, quick_arrays
from fedsim.flower.virtual_grid import Answer, Call, Clients, Exchange, Here, VirtualGrid, failure, few_collections
from fedsim.parallel.workers import Failed, Workers

Measures = Mapping[int, Mapping[str, Any]]
"""Metrics by name, by round."""
App = TypeVar("App", ServerApp, ClientApp)
OPTIONS: Mapping[type[Any], str] = {ServerApp: "serverapp", ClientApp: "clientapp"}
"""What components of an app's folder are called."""
SHARES = 5
"""Into how many parts a worker's work is cut: few messages, and no worker waits long for the last part of another."""
_kept = ExitStack()
"""What a worker has begun and never ends."""


@dataclass(frozen=True)
class AppResult:
    """What a Flower app came to.

    result: what the strategy's `start` returned, or the legacy server's history; None where the app ran neither.
    history: its metrics as `train` and `evaluate`, of the clients, and `server`, by round. seconds: of the wall clock,
    by round, from its first message to the next round's. wall: seconds of the whole app. context: the server's.
    exchanges: every message and what came of it.
    """

    result: Outcome | None
    history: Mapping[str, Measures]
    seconds: Mapping[int, float]
    wall: float
    context: Context
    exchanges: Sequence[Exchange]

    @property
    def errors(self) -> list[Exchange]:
        """The exchanges whose reply is an error, with its traceback."""
        return [exchange for exchange in self.exchanges if exchange.error]

    @property
    def failed(self) -> bool:
        """Whether all replies, or all to messages to train, are errors."""
        training = [each for each in self.exchanges if each.message_type.partition(".")[0] == MessageType.TRAIN]
        return any(sent and all(each.error for each in sent) for sent in (self.exchanges, training))


def simulate(
    server_app: ServerApp | str,
    client_app: ClientApp | str,
    nodes: int = 10,
    *,
    run_config: Mapping[str, Any] | None = None,
    seed: int = 0,
    workers: int = 1,
    durations: Mapping[int, float] | None = None,
) -> AppResult:
    """Run a Flower app on `nodes` nodes of this process; see `VirtualGrid` for what they are.

    server_app, client_app: as `flwr run` takes them, or where they are, as in `package.module:app`. seed: begins the
    global generators of Python, NumPy and PyTorch, before the server app, each call of a client and the import of an
    app that is given by its place; afterwards they are put back. workers: processes that make the calls, with one core
    each; 1: this process does. The result is the same. durations: see `VirtualGrid`.

    Raises what the server app raises. What a client raises is the reply's error, as on Flower. StalledError: it waits
    for more nodes than there are.
    """
    if workers < 1:
        raise InputError("workers", workers, "at least one process must do the work")
    start = Streams(seed).derive("import")
    with ExitStack() as stack:
        client = app_of(client_app, ClientApp, start)
        clients: Clients = Here(client)
        if workers > 1:
            place = client_app if isinstance(client_app, str) else place_of(client_app, workers)
            clients = Pool(stack.enter_context(Workers(workers, load_client_app, place, start)), workers)
        server = app_of(server_app, ServerApp, start)
        grid = VirtualGrid(clients, nodes, run_config=run_config, seed=seed, durations=durations)
        context = Context(grid.run.run_id, SERVER, {}, RecordDict(), dict(run_config or {}))
        with grid:
            server(grid, context)
    outcome = grid.outcomes[-1] if grid.outcomes else None
    wall = grid.elapsed
    return AppResult(outcome, _history(outcome), _seconds(grid.exchanges, wall), wall, context, tuple(grid.exchanges))


@dataclass(frozen=True)
class Pool:
    """Calls in worker processes, several to a message between them: the bytes that these share are sent once."""

    workers: Workers
    count: int

    def answers(self, calls: Sequence[Call]) -> list[Answer]:
        """Make the calls; what a dead process leaves behind is an error."""
        size = -(-len(calls) // (SHARES * self.count))
        parts = [calls[begin : begin + size] for begin in range(0, len(calls), size)]
        found: list[Answer] = []
        for part, made in zip(parts, self.workers.map(answers, parts), strict=True):
            if not isinstance(made, Failed):
                found += made
            elif len(part) > 1:  # which of them it was is not known
                for call in part:
                    found += self.answers([call])
            else:
                lost = failure(part[0].message, CRASHED, f"a node that {made.reason}")
                found.append(Answer(lost, None, 0.0))
        return found


def answers(app: ClientApp, calls: Sequence[Call]) -> list[Answer]:
    """What a worker does."""
    return Here(app).answers(calls)


def load_client_app(place: str, seed: int) -> ClientApp:
    """What a worker holds: the app, on one core."""
    torch.set_num_threads(1)
    _kept.enter_context(quick_arrays())
    app = load(place, ClientApp, seed)
    _kept.enter_context(few_collections())
    return app


def app_of(given: App | str, kind: type[App], seed: int) -> App:
    """The app itself, or the one at `module:attribute`. InputError: it is another thing."""
    return load(given, kind, seed) if isinstance(given, str) else _held(given, kind, given)


def load(place: str, kind: type[App], seed: int) -> App:
    """The app at `module:attribute`. InputError: there is none. What the module itself raises is passed on."""
    option = OPTIONS[kind]
    module_name, _, path = place.partition(":")
    if not module_name or not path:
        raise InputError(option, place, "write it as package.module:app")
    with seeded_globals(seed):
        try:
            found: Any = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
                raise
            raise InputError(option, place, f"there is no module {error.name} on the path") from error
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError as error:
            raise InputError(option, place, f"{module_name} has no {path}") from error
    return _held(found, kind, place)


def _held(found: Any, kind: type[App], named: object) -> App:
    """An app, held to be of this kind. named: what the user calls it."""
    if not isinstance(found, kind):
        raise InputError(OPTIONS[kind], named, f"this is a {type(found).__name__}, not a {kind.__name__}")
    return found


def place_of(app: ClientApp, workers: int) -> str:
    """Where other processes find an app. InputError: nowhere."""
    for name, module in sorted(sys.modules.items()):
        if name in ("__main__", "__mp_main__") or not isinstance(module, ModuleType):
            continue
        for attribute, value in list(vars(module).items()):
            if value is app:
                return f"{name}:{attribute}"
    remedy = "other processes do not find a client app of __main__ or of a function; put it into a module, or take 1"
    raise InputError("workers", workers, remedy)


def _history(outcome: Outcome | None) -> dict[str, Measures]:
    """Metrics of a result of either kind, as one."""
    if outcome is None:
        return {"train": {}, "evaluate": {}, "server": {}}
    if not isinstance(outcome, History):
        return {
            "train": _plain(outcome.train_metrics_clientapp),
            "evaluate": _plain(outcome.evaluate_metrics_clientapp),
            "server": _plain(outcome.evaluate_metrics_serverapp),
        }
    return {
        "train": _turned(outcome.metrics_distributed_fit),
        "evaluate": _turned({"loss": outcome.losses_distributed, **outcome.metrics_distributed}),
        "server": _turned({"loss": outcome.losses_centralized, **outcome.metrics_centralized}),
    }


def _plain(records: Mapping[int, Mapping[str, Any]]) -> Measures:
    return {round_: dict(record) for round_, record in records.items()}


def _turned(series: Mapping[str, Sequence[tuple[int, Any]]]) -> Measures:
    """Series of (round, value) by name, as values by name by round."""
    found: dict[int, dict[str, Any]] = {}
    for name, values in series.items():
        for round_, value in values:
            found.setdefault(round_, {})[name] = value
    return dict(sorted(found.items()))


def _seconds(exchanges: Sequence[Exchange], end: float) -> dict[int, float]:
    first: dict[int, float] = {}
    for exchange in exchanges:
        if exchange.round is not None:
            first.setdefault(exchange.round, exchange.pushed)
    ends = pairwise([*first.values(), end])
    return {round_: later - earlier for round_, (earlier, later) in zip(first, ends, strict=True)}
