"""Run an app of our own, on nodes of this process."""

from flwr.app import ConfigRecord
from flwr.serverapp import ServerApp

from fedsim.core.errors import FedsimError
from fedsim.flower import VirtualGrid, simulate


def run(main, app, nodes=4, **options):
    """What the strategy came to that `main(grid, context)` starts: Flower's Result. options: of `simulate`."""
    server = ServerApp()
    server.main()(main)
    return simulate(server, app, nodes, **options).result


def start(strategy, app, initial, nodes=4, rounds=10, config=None, evaluate_fn=None, timeout=3600.0, **options):
    """What a strategy comes to, a Result. config: of training. options: of `simulate`."""

    def main(grid, context):
        settings = ConfigRecord(dict(config or {}))
        strategy.start(
            grid, initial, num_rounds=rounds, timeout=timeout, train_config=settings, evaluate_fn=evaluate_fn
        )

    return run(main, app, nodes, **options)


def watched(strategy, app, initial, nodes=4, rounds=10, kind=VirtualGrid, durations=None, start=None, **options):
    """What a strategy of ours comes to on a grid of its own, and the engine over it.

    start: further arguments of the strategy's start. options: of the grid.
    """
    with kind(app, nodes, durations=durations, **options) as grid:
        return watched_on(grid, strategy, initial, rounds, **(start or {}))


def watched_on(grid, strategy, initial, rounds=10, **named):
    """The same on any grid: the Result, or what was raised, and the engine."""
    engines, serve = [], strategy._serve

    def watching(*given):
        run = serve(*given)
        engines.append(run.engine)
        return run

    strategy._serve = watching
    try:
        return strategy.start(grid, initial, num_rounds=rounds, **named), engines[0]
    except FedsimError as error:
        if not engines:
            raise
        return error, engines[0]
    finally:
        del strategy._serve
