"""NumPy: mean squares of a line, one gradient step a round; points of partition p lie on y = (p + 1) x."""

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

server, client = ServerApp(), ClientApp()
X = np.array([1.0, 2.0, 3.0])


@client.train()
def train(message, context):
    """Move from w to w - 0.1 mean(x (w x - y))."""
    slope, y = message.content["arrays"]["slope"].numpy(), (context.node_config["partition-id"] + 1) * X
    moved = slope - message.content["config"]["lr"] * np.mean(X * (slope * X - y))
    metrics = MetricRecord({"num-examples": len(X), "loss": float(np.mean((slope * X - y) ** 2) / 2)})
    return Message(RecordDict({"arrays": ArrayRecord({"slope": Array(moved)}), "metrics": metrics}), reply_to=message)


@server.main()
def main(grid, context):
    """Average over all; on Flower not all nodes are there from the beginning."""
    start = ArrayRecord({"slope": Array(np.zeros(1))})
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=4, min_available_nodes=4)
    strategy.start(grid, start, num_rounds=3, train_config=ConfigRecord({"lr": 0.1}))
