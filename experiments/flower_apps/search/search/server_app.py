"""The server's side: a strategy of ours, over nodes that say values and nothing else."""

import numpy as np
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp

from fedsim.flower import as_flower_strategy
from search.task import METHODS, distances

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the method that the run configuration names."""
    config = context.run_config
    strategy, client = METHODS[config["method"]]
    nodes = len(list(grid.get_node_ids()))

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:  # noqa: ARG001
        (x,) = arrays.to_numpy_ndarrays()
        return MetricRecord({"value": float(np.mean([distances(x, partition) for partition in range(nodes)]))})

    as_flower_strategy(strategy, client=client, seed=config["seed"], identify=True).start(
        grid=grid,
        initial_arrays=ArrayRecord([np.full(config["dimension"], 0.2)]),
        num_rounds=config["rounds"],
        evaluate_fn=evaluate,
    )
