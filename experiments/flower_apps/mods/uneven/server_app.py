"""The server's side: as with Flower's own strategies, but for the line that makes the strategy."""

import numpy as np
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp

from fedsim.flower import as_flower_strategy
from uneven.task import held_out, probabilities

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the strategy that the run configuration names."""
    x, y = held_out()

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:  # noqa: ARG001
        (weights,) = arrays.to_numpy_ndarrays()
        return MetricRecord({"accuracy": float((probabilities(weights, x).argmax(axis=1) == y).mean())})

    as_flower_strategy(context.run_config["strategy"], fraction_evaluate=0.0, identify=True).start(
        grid=grid,
        initial_arrays=ArrayRecord([np.zeros((65, 10))]),
        num_rounds=context.run_config["rounds"],
        evaluate_fn=evaluate,
    )
