"""The server's side."""

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from quickstart.task import digits, make_model

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    hidden = context.run_config["model.hidden"]

    def judge(server_round, arrays):
        model = make_model(hidden).eval()
        model.load_state_dict(arrays.to_torch_state_dict())
        x, y = digits()
        with torch.no_grad():
            return MetricRecord({"accuracy": (model(x).argmax(1) == y).float().mean().item()})

    result = FedAvg(fraction_train=context.run_config["fraction-train"]).start(
        grid=grid,
        initial_arrays=ArrayRecord(make_model(hidden).state_dict()),
        train_config=ConfigRecord({"lr": 0.1}),
        num_rounds=context.run_config["num-server-rounds"],
        evaluate_fn=judge,
    )
    torch.save(result.arrays.to_torch_state_dict(), "final_model.pt")
