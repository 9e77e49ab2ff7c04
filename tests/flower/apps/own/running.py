"""Run an app of our own, on nodes of this process."""

from flwr.app import ConfigRecord
from flwr.serverapp import ServerApp

from fedsim.flower import simulate


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
