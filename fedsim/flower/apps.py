"""The two apps that Flower runs, from its public interface only, and a way to run them on Ray from Python."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedsim.configuration.tables import Experiment
from fedsim.core.errors import DivergedError, InputError, StalledError
from fedsim.core.measures import ALWAYS, CENTRAL
from fedsim.core.terminal import tell
from fedsim.devices.fleet import Devices
from fedsim.exchange.aggregation import Aggregator
from fedsim.flower import node
from fedsim.flower.grid import GridEngine
from fedsim.flower.recipe import Recipe, configured
from fedsim.problems.base import Problem
from fedsim.running.build import build_executor
from fedsim.running.result import Callback, Result, Round
from fedsim.running.runner import execute

TIMEOUT = 600.0
"""Seconds to wait for all nodes at the start, for the replies of a round, and for any reply where some are awaited."""


def client_app(experiment: Experiment | None = None) -> ClientApp:
    """Make the app of a node. experiment: by default the one that the run configuration names."""
    recipe = None if experiment is None else Recipe.of(experiment)
    app = ClientApp()
    # Partial calls of importable functions: Ray pickles a closure by value, with every message.
    app.query()(partial(node.answer, node.introduce, recipe))
    app.query("hand_over")(partial(node.answer, node.hand_over, recipe))
    app.query("take_over")(partial(node.answer, node.take_over, recipe))
    app.train()(partial(node.answer, node.execute, recipe))
    return app


def server_app(
    experiment: Experiment | None = None,
    *,
    callbacks: Sequence[Callback] = (),
    out: Path | str | None = None,
    force: bool = False,
    save: bool = True,
    timeout: float | None = None,
    receive: Callable[[Result], None] | None = None,
) -> ServerApp:
    """Make the app of the server: the loop of `fedsim.run` over Flower's grid, with the same run folder.

    experiment: by default the one that the run configuration names; `out` and `timeout` may stand there too.
    callbacks, out, force, save: as for `fedsim.run`. receive: called with the result; without it a run that
    diverges or stalls is an error. InputError: the experiment describes virtual devices.
    """
    if experiment is not None:
        _refuse_devices(experiment)
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        config = context.run_config
        made = configured(config) if experiment is None else experiment
        recipe = Recipe.of(made)
        waited = float(config.get("timeout", TIMEOUT)) if timeout is None else timeout
        checked = dataclasses.replace(recipe.experiment(), track=made.track)
        _refuse_devices(checked)

        def engine(problem: Problem, aggregator: Aggregator) -> GridEngine:
            executor = build_executor(checked, problem)
            return GridEngine(grid, executor, aggregator, experiment=recipe.digest, timeout=waited)

        result = execute(
            checked,
            engine=engine,
            callbacks=[*callbacks, partial(_say, checked.rounds, checked.evaluation.asked)],
            out=out or str(config.get("out", "")) or None,
            force=force,
            save=save,
        )
        if result.folder is not None:
            tell(f"run folder: {result.folder.absolute()}")
        if result.status == "finished" and result.reason:
            tell(result.reason)
        if receive is not None:
            receive(result)
        elif result.status == "diverged":
            raise DivergedError(result.reason)
        elif result.status == "stalled":
            raise StalledError(result.reason)

    return app


def run_on_ray(
    experiment: Experiment,
    nodes: int = 2,
    *,
    gpus: float = 0.0,
    callbacks: Sequence[Callback] = (),
    out: Path | str | None = None,
    force: bool = False,
    save: bool = True,
    timeout: float = TIMEOUT,
) -> Result:
    """Run an experiment on Flower's simulation engine, which is Ray's, and return its result.

    nodes: how many; each has one CPU and a share `gpus` of a GPU while it works. timeout: seconds to wait for the nodes
    and for replies. The rest as for `fedsim.run`. Ray is started and stopped; it comes with the extra `ray`.
    """
    if nodes < 1:
        raise InputError("nodes", nodes, "at least one node must do the work")
    if importlib.util.find_spec("ray") is None:
        raise InputError("engine", "ray", "is not installed; pip install 'fedsim-lab[ray]'")
    from flwr.simulation import run_simulation

    results: list[Result] = []
    server_ = server_app(
        experiment,
        callbacks=callbacks,
        out=out,
        force=force,
        save=save,
        timeout=timeout,
        receive=results.append,
    )
    before = os.environ.get("PYTHONPATH")
    try:
        run_simulation(
            server_,
            client_app(experiment),
            num_supernodes=nodes,
            backend_config={"client_resources": {"num_cpus": 1, "num_gpus": gpus}},
        )
    finally:
        # Flower hands this process's path to Ray's workers through the environment, and leaves it there.
        if before is None:
            os.environ.pop("PYTHONPATH", None)
        else:
            os.environ["PYTHONPATH"] = before
    return results[0]


def _refuse_devices(experiment: Experiment) -> None:
    """Refuse a description of virtual devices, where clients take the time that they take."""
    given = experiment.resolved()["devices"]
    plain = dataclasses.replace(experiment, devices=Devices()).resolved()["devices"]
    found = [name for name, value in given.items() if value != plain.get(name)]
    if found:
        raise InputError(
            "devices", ", ".join(found), "describe virtual devices, and on Flower time is real; remove them"
        )


def _say(rounds: int | None, asked: Iterable[str], seen: Round) -> None:
    """Print a line a row, which Flower shows in its log. asked: measures beside loss and accuracy."""
    always = (f"{whose}_{kind}" for whose in CENTRAL for kind in reversed(ALWAYS))
    names = dict.fromkeys(("train_loss", *always, *(f"{whose}_{label}" for label in asked for whose in CENTRAL)))
    measures = [f"{name} {seen.row[name]:.4f}" for name in names if name in seen.row]
    end = f", {seen.row['time']:.1f} s" if rounds is None else f"/{rounds}"
    tell(f"round {seen.row['round']}{end}: {', '.join(measures)}")


client = client_app()
server = server_app()
