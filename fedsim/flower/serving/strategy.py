"""A strategy of ours as one of Flower's: a whole run by `start`, or one round of it in pieces."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import flwr.serverapp.strategy as flower
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid

from fedsim.configuration.evaluation import Evaluation
from fedsim.configuration.tables import Checkpointing, described
from fedsim.core.errors import DivergedError, FedsimError, InputError, StalledError, naming
from fedsim.core.options import LONGEST
from fedsim.core.plugins import kind_of
from fedsim.core.streams import Streams
from fedsim.engine.client import Client
from fedsim.exchange.transforms import Chain
from fedsim.exchange.windows import All
from fedsim.flower.searching import Search
from fedsim.flower.serving.dialect import DIFFERS, FOLLOWED, HELP, Dialect
from fedsim.flower.serving.engine import AppEngine
from fedsim.flower.serving.folder import AppFolder, hold_usable, kept_in, status_of
from fedsim.flower.serving.options import AppOptions
from fedsim.flower.serving.problem import AppProblem
from fedsim.flower.serving.register import LOOK
from fedsim.flower.serving.run import Combine, Served
from fedsim.flower.serving.state_dict import StateDict
from fedsim.flower.serving.student import Student
from fedsim.flower.virtual_grid import VirtualGrid
from fedsim.flower.windows import GridClock, WallClock
from fedsim.running.history import Row
from fedsim.running.promises import at_once
from fedsim.running.setup import Setup
from fedsim.running.simulation import UnderWay
from fedsim.server.selection.base import Selector
from fedsim.server.strategy import Strategy

TIMEOUT = 3600.0
"""Seconds that a message lives where somebody else sends it, and says nothing of that."""
LEAST = 2
"""Nodes that are waited for where nobody says how many, as by Flower's strategies."""
RESULTS = {
    "train_metrics_clientapp": "train",
    "evaluate_metrics_clientapp": "evaluate",
    "evaluate_metrics_serverapp": "server",
}
"""The parts of Flower's `Result`, and which metrics of a run they have."""


class FlowerStrategy(flower.Strategy):
    """A strategy of ours as one of Flower's; made by `as_flower_strategy`."""

    def __init__(
        self,
        strategy: Strategy,
        selector: Selector,
        aggregator: Any,
        transforms: tuple[Any, ...],
        client: Client | None,
        student: Student | None,
        settings: AppOptions,
        checkpoint: Path | None,
        combine: Mapping[str, Combine],
    ) -> None:
        self.strategy, self.selector, self.aggregator, self.transforms = strategy, selector, aggregator, transforms
        self.client, self.student, self.settings = client, student, settings
        self.checkpoint, self.combine = checkpoint, combine
        self._handed: Served | None = None
        self._round: UnderWay | None = None

    @property
    def weighted_by_key(self) -> str:
        """What replies weigh by, among their metrics."""
        return self.settings.weighted_by_key

    def summary(self) -> None:
        """Log what will be done, and what the app's clients must do for it."""
        for name, table in self._tables().items():
            _log("\t├──> %s: %s", name, table)
        if self.client is not None:
            _log("\t├──> The client app needs fedsim.flower.local.searcher, with this client")
        for name, need in needs(self.strategy).items():
            _log("\t├──> The client app needs %s (for %s)", need, name)
        _log("\t└──> Checkpoints: %s", self.checkpoint or "none")

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int | None = None,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> flower.Result:
        """Run on the nodes of a grid; the arguments are those of Flower's strategies.

        num_rounds: by default 3, or with a `duration` as many as there are in it. timeout: seconds that a message
        lives; who has not answered by then is left out. DivergedError, StalledError: the run came to nothing, and why.
        """
        if num_rounds is None and self.settings.duration is None:
            num_rounds = 3
        began = time.monotonic()
        _log("Starting %s strategy:", type(self.strategy).__name__)
        self.summary()
        run = self._serve(grid, initial_arrays, timeout, train_config, evaluate_config, num_rounds)
        result = flower.Result()
        with self._folder(run, num_rounds) as folder:
            error: BaseException | None = None
            try:
                if run.round == 0:
                    self._evaluate(run, evaluate_fn)
                for row in run:
                    self._evaluate(run, evaluate_fn)
                    _log("[ROUND %s] %s", row["round"], run.metrics["train"].get(row["round"], {}))
                    if folder is not None:
                        folder.add(row | measured(run))
            except (DivergedError, StalledError, KeyboardInterrupt) as caught:
                error = caught
            status, reason = status_of(run, error)
            if folder is not None:
                folder.end(status, reason, run.record)
        if status == "stalled":
            raise StalledError(reason) from error
        if error is not None:
            raise error
        result.arrays = run.record
        for part, kind in RESULTS.items():
            getattr(result, part).update({number: MetricRecord(told) for number, told in run.metrics[kind].items()})
        _log("Strategy execution finished in %.2fs", time.monotonic() - began)
        return result

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Choose nodes, and give the messages that they are to be sent. arrays: the model, whoever has made it.

        InputError: the strategy is asynchronous, which only `start` can be; or there is a `checkpoint`.
        """
        for option, value in (("checkpoint", self.checkpoint), ("duration", self.settings.duration)):
            if value is not None:
                raise InputError(option, str(value), "only start() keeps it; call that, or leave it out")
        run = self._handing_over(grid, arrays, begins=server_round <= 1)
        run.take(server_round, arrays, config)
        self._round = run.begin()
        order = run.ask(self._round)
        if order.late == "keep" or self._round.window != All():
            kind = kind_of("strategies", self.strategy)
            raise InputError("strategy", kind, "it does not wait for everybody, which takes its own start()")
        return run.engine.outbox

    def aggregate_train(
        self,
        server_round: int,  # noqa: ARG002
        replies: Iterable[Message],
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Take in the replies to what `configure_train` gave; without a usable one there is no new model."""
        run, current = self._under_way()
        run.engine.deliver(replies)
        run.tell(current)
        if not current.done:
            kind = kind_of("strategies", self.strategy)
            raise InputError("strategy", kind, "its rounds have several exchanges, which takes its own start()")
        run.complete(current)
        run.step()
        told = run.metrics["train"].pop(run.round, None)
        return (None, None) if told is None else (run.record, MetricRecord(told))

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Give the messages to the nodes that are to evaluate the model; a round that nobody aggregated is over."""
        run = self._handing_over(grid, arrays)
        run.engine.forget()
        fraction = 1.0 if self.settings.fraction_evaluate is None else self.settings.fraction_evaluate
        if fraction == 0.0:
            return []
        return run.evaluation_of(arrays, config, server_round, fraction, self.settings.min_evaluate_nodes)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:  # noqa: ARG002
        """Combine the metrics of the replies to what `configure_evaluate` gave."""
        contents = [] if self._handed is None else self._handed.engine.readable(replies)
        return self.combine["evaluate"](contents, self.weighted_by_key) if contents else None

    def _serve(
        self,
        grid: Grid,
        arrays: ArrayRecord,
        timeout: float,
        train_config: ConfigRecord | None,
        evaluate_config: ConfigRecord | None,
        rounds: int | None,
    ) -> Served:
        """A run over the nodes of a grid, when there are enough of them, at its beginning."""
        settings = self.settings
        if not 0.0 < timeout <= LONGEST:
            raise InputError("timeout", timeout, f"write seconds above 0, {LONGEST:g} at most")
        if rounds is not None and rounds < 1:
            raise InputError("num_rounds", rounds, "one round at least")
        model = StateDict.of(arrays, settings.frozen)
        params, box = model.vector(arrays), settings.bounds
        if box is not None and not bool(((params >= box[0]) & (params <= box[1])).all()):
            raise InputError("initial_arrays", "a number outside", f"the box is {list(box)}; start in it")
        problem = AppProblem(params, model.layout, box)
        bench = None if self.student is None else self.student.bench(arrays, model)
        dialect = Dialect(
            kind_of("strategies", self.strategy),
            model,
            settings,
            ConfigRecord(dict(train_config or {})),
            ConfigRecord(dict(evaluate_config or {})),
            self.strategy.up,
            model.kept(arrays),
            None if self.client is None else Search(self.strategy, self.client, problem.initial(), settings.seed),
        )
        self._hold_keepable(dialect, rounds)
        clock = GridClock(grid) if isinstance(grid, VirtualGrid) else WallClock(grid)
        streams = Streams(settings.seed)
        engine = AppEngine(
            grid,
            clock,
            problem,
            dialect,
            self.aggregator,
            streams,
            transforms=self.transforms,
            ttl=timeout,
            identify=settings.identify,
        )
        self._wait_for_nodes(engine, timeout)
        clock.start(0)
        population = problem.num_clients
        self.selector.check(population)
        together = at_once(self.selector, population)
        with naming("strategy"):
            self.strategy.check(together, population, steady=True)
        self.aggregator.check(together)
        setup = Setup(
            problem=problem,
            strategy=self.strategy,
            selector=self.selector,
            engine=engine,
            streams=streams,
            rounds=rounds,
            duration=settings.duration,
            evaluation=Evaluation(every=settings.evaluate_every),
            stopping=None,
            order_transforms=Chain((), "order_transforms"),
            steady=False,
            bench=bench,
        )
        integers, combine = settings.integers, self.combine["train"]
        return Served(setup, engine, problem, integers=integers, combine=combine, weight=settings.weighted_by_key)

    def _wait_for_nodes(self, engine: AppEngine, timeout: float) -> None:
        """Wait until enough nodes are connected, and have said who they are where they are asked.

        StalledError: they never are. InputError: one does not say it.
        """
        least, count = self.settings.min_available_nodes, getattr(self.selector, "count", None)
        option = "selection.count" if count and least is None else "min_available_nodes"
        wanted = least or count or LEAST
        register, clock, end, told = engine.register, engine.clock, time.monotonic() + timeout, -1
        while (there := engine.meet()) < wanted or register.asked or register.refused:
            if register.refused:
                raise InputError("identify", True, next(iter(register.refused.values())))
            if not register.asked and (not clock.real or time.monotonic() >= end):
                raise StalledError(f"{there} nodes are connected, and {wanted} are needed ({option})")
            if there != told and there < wanted:
                _log("Waiting for nodes to connect: %d connected (minimum required: %d).", there, wanted)
            told = there
            clock.wait([sent.name for sent in register.asked], LOOK, min(register.asked.values(), default=None))

    def _handing_over(self, grid: Grid, arrays: ArrayRecord, *, begins: bool = False) -> Served:
        """The run that is gone through in pieces; begins: a new one."""
        if self._handed is None or begins:
            self._handed = self._serve(grid, arrays, TIMEOUT, None, None, None)
            self._handed.engine.hands_over = True
        return self._handed

    def _under_way(self) -> tuple[Served, UnderWay]:
        """The run that is gone through in pieces, and its round. FedsimError: none has begun."""
        if self._handed is None or self._round is None:
            raise FedsimError("there are no replies to anything; call configure_train first")
        current, self._round = self._round, None
        return self._handed, current

    def _tables(self) -> dict[str, Any]:
        """What decides on a run, as tables of a config.toml."""
        told = {field.name: getattr(self.settings, field.name) for field in fields(AppOptions)}
        app = {name: list(value) if isinstance(value, tuple) else value for name, value in told.items()}
        return {
            "name": kind_of("strategies", self.strategy),
            "seed": app.pop("seed"),
            "strategy": described("strategies", self.strategy),
            "selection": described("selectors", self.selector),
            **({} if self.client is None else {"client": described("clients", self.client)}),
            "aggregation": described("aggregators", self.aggregator),
            "transforms": [described("transforms", one) for one in self.transforms],
            "app": {name: value for name, value in app.items() if value is not None},
        }

    def _config(self, dialect: Dialect, rounds: int | None) -> dict[str, Any]:
        """The tables of config.toml, as far as nodes have no part in them."""
        config = self._tables() | ({} if rounds is None else {"rounds": rounds})
        config |= {"problem": {"kind": "own"}, "model": dialect.model.described()}
        config |= {} if self.student is None else {"public": self.student.described()}
        return config | {name: _for_toml(getattr(dialect, name)) for name in ("train_config", "evaluate_config")}

    def _hold_keepable(self, dialect: Dialect, rounds: int | None) -> None:
        """Refuse a folder before anything is asked of nodes."""
        if self.checkpoint is None:
            return
        name = kind_of("strategies", self.strategy)
        if self.strategy.unresumable is not None:
            remedy = f"a run of {name} cannot go on: {self.strategy.unresumable}"
            raise InputError("checkpoint", str(self.checkpoint), remedy)
        hold_usable(self.checkpoint, name, self._config(dialect, rounds))

    @contextmanager
    def _folder(self, run: Served, rounds: int | None) -> Iterator[AppFolder | None]:
        """Where the run is kept, if it is."""
        if self.checkpoint is None:
            yield None
            return
        problem, config = run.parts.problem, self._config(run.engine.dialect, rounds)
        config["resolved"] = {"nodes": problem.num_clients, "parameters": problem.dimension}
        when = Checkpointing(every=self.settings.checkpoint_every, last=False)
        with kept_in(self.checkpoint, config["name"], config, run, when) as folder:
            yield folder

    def _evaluate(self, run: Served, evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None) -> None:
        """Have the model judged, by nodes and by the app's server, if it is time to and it has not been already."""
        if run.round % self.settings.evaluate_every and not run.over:
            return
        fraction = self.settings.fraction_evaluate
        if fraction is None:
            fraction = 0.0 if run.keeps else 1.0
        number = run.round
        if number and fraction and number not in run.metrics["evaluate"]:
            run.judge_by_nodes(fraction, self.settings.min_evaluate_nodes, self.combine["evaluate"])
        if evaluate_fn is not None and number not in run.metrics["server"]:
            told = evaluate_fn(number, run.record)
            if told is not None:
                run.metrics["server"][number] = dict(told)


def needs(strategy: Strategy) -> dict[str, str]:
    """What a client app must have for a strategy beside training, by what it is for."""
    return {name: need for name, need in (HELP | DIFFERS | FOLLOWED).items() if name in strategy.up | strategy.down}


def _for_toml(settings: ConfigRecord) -> dict[str, Any]:
    """Settings as a table, bytes in hexadecimal digits."""

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return list(map(plain, value))
        return value.hex() if isinstance(value, bytes) else value

    return {name: plain(value) for name, value in settings.items()}


def measured(run: Served) -> Row:
    """What the last round's model comes to, for a row: of the app's server as test_..., of its nodes as evaluate_..."""
    found = dict[str, Any]()
    for kind, prefix in (("server", "test_"), ("evaluate", "evaluate_")):
        told = run.metrics[kind].get(run.round, {})
        found |= {f"{prefix}{name.removeprefix(prefix)}": value for name, value in told.items()}
    return {name: float(value) for name, value in found.items() if not isinstance(value, list)}


def _log(text: str, *values: object) -> None:
    logging.getLogger("flwr").info(text, *values)
