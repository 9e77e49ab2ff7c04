"""Flower apps, unchanged, in this process or over worker processes, without Ray: `simulate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from flwr.app import Context, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fedsim.core.errors import InputError
from fedsim.core.streams import Streams
from fedsim.flower.calls import Here, Pool, load_clients
from fedsim.flower.internals import SERVER, History, Outcome
from fedsim.flower.places import app_of, parts, place_of
from fedsim.flower.removed import removed
from fedsim.flower.settings import portable, present
from fedsim.flower.virtual_grid import Exchange, VirtualGrid
from fedsim.flower.worlds import AppFinder, World
from fedsim.parallel.workers import Workers

Measures = Mapping[int, Mapping[str, Any]]
"""Metrics by name, by round."""


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
    def trouble(self) -> str:
        """How many replies are errors, and the first; empty where none is."""
        return told(self.errors)

    @property
    def failed(self) -> bool:
        """Whether all replies, or all to messages to train, are errors."""
        training = [each for each in self.exchanges if each.message_type.partition(".")[0] == MessageType.TRAIN]
        return any(sent and all(each.error for each in sent) for sent in (self.exchanges, training))


def told(errors: Sequence[Exchange]) -> str:
    """How many replies are errors, and the first, in words; nothing where none is."""
    if not errors:
        return ""
    first = errors[0]
    return f"{len(errors)} replies are errors; the first, of partition {first.partition}: {first.error.strip()}"


def simulate(
    server_app: ServerApp | str,
    client_app: ClientApp | str,
    nodes: int = 10,
    *,
    run_config: Mapping[str, Any] | None = None,
    seed: int = 0,
    workers: int = 0,
    worlds: int | None = None,
    node_config: Mapping[str, Any] | None = None,
    durations: Mapping[int, float] | None = None,
    real_time: bool = False,
    call_limit: float | None = None,
) -> AppResult:
    """Run a Flower app on `nodes` nodes of this process; see `VirtualGrid` for what they are.

    server_app, client_app: as `flwr run` takes them, or where they are, as in `package.module:app`. Of an app that is
    given by its place, the server and each node import the modules that lie beside it by themselves, in a world of
    their own (`fedsim.flower.worlds`). seed: begins the global generators of Python, NumPy and PyTorch, before the
    server app, each call of a client and the import of an app that is given by its place; afterwards they are put back.
    workers: processes that make the calls, with one core each; 0: this process does. The result is the same. worlds:
    how many the nodes have together, where each by itself would take too much memory: those with the same remainder of
    their partition share one. The rest: see `VirtualGrid`.

    Raises what the server app raises, the first error of a client in a note. What a client raises is the reply's error,
    as on Flower. StalledError: it waits for more nodes than there are.
    """
    if workers < 0:
        raise InputError("workers", workers, "at least none, for this process to do the work")
    if call_limit is not None and not workers:
        raise InputError("call_limit", call_limit, "only calls in workers can be ended; give workers, too")
    if worlds is not None and worlds < max(workers, 1):
        raise InputError("worlds", worlds, f"each worker needs one at least: {max(workers, 1)}")
    if worlds is not None and not isinstance(client_app, str) and not workers:
        raise InputError("worlds", worlds, "a client app that is given itself is in the caller's; give its place")
    start, settings = Streams(seed).derive("import"), present()
    places = [app for app in (server_app, client_app) if isinstance(app, str)]
    for app, kind in ((server_app, ServerApp), (client_app, ClientApp)):
        if isinstance(app, str):
            parts(app, kind)
    if not isinstance(client_app, str):
        app_of(client_app, ClientApp, start)
    with ExitStack() as stack:
        clients: Here | Pool
        if workers:
            place = client_app if isinstance(client_app, str) else place_of(client_app, workers)
            finder = AppFinder.of([*places, place])
            given = place, (finder.roots, finder.own), portable(settings), start, worlds
            processes = Workers(min(workers, max(nodes, 1)), load_clients, *given)
            clients = Pool(stack.enter_context(processes), worlds)
        else:
            finder = AppFinder.of(places)
            clients = Here(client_app, finder, settings, start, worlds)
        grid = VirtualGrid(
            clients,
            nodes,
            run_config=run_config,
            seed=seed,
            node_config=node_config,
            durations=durations,
            real_time=real_time,
            call_limit=call_limit,
        )
        if workers:
            processes.start()
        world = World(finder if isinstance(server_app, str) else AppFinder(), settings)
        server = world.run(app_of, server_app, ServerApp, start)
        clients.begin()
        context = Context(grid.run.run_id, SERVER, {}, RecordDict(), dict(run_config or {}))
        try:
            with grid:
                world.run(server, grid, context)
        except BaseException as error:
            for note in filter(None, (removed(error), told(grid.errors))):
                error.add_note(note)
            raise
    outcome = grid.outcomes[-1] if grid.outcomes else None
    wall = grid.elapsed
    return AppResult(outcome, _history(outcome), _seconds(grid.exchanges, wall), wall, context, tuple(grid.exchanges))


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
