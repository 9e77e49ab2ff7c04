"""The server's side: as with Flower's own strategies, but for the line that makes the strategy."""

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp

from digits.task import digits, judge, make_model
from fedsim.flower import as_flower_strategy

STRATEGIES = {
    "fedavg": {"kind": "fedavg"},
    "scaffold": {"kind": "scaffold"},
    "feddyn": {"kind": "feddyn", "alpha": 0.1},
    "fedprox": {"kind": "fedprox", "proximal_mu": 0.1},
    "curriculum": {"kind": "fedavg"},
}

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the method that the run configuration names, and keep its model."""
    held_out = digits(held_out=True)

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:  # noqa: ARG001
        model = make_model()
        model.load_state_dict(arrays.to_torch_state_dict())
        return MetricRecord({"accuracy": judge(model, held_out)[1]})

    strategy = as_flower_strategy(
        STRATEGIES[context.run_config["method"]], selection={"kind": "uniform", "fraction": 0.5}
    )
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(make_model().state_dict()),
        num_rounds=context.run_config["rounds"],
        train_config=ConfigRecord({"lr": context.run_config["lr"]}),
        evaluate_fn=evaluate,
    )
    torch.save(result.arrays.to_torch_state_dict(), "final_model.pt")
