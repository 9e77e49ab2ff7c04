"""Vertical: every node has other columns of the same rows, and a part of the model that never leaves it."""

import numpy as np
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

server, client = ServerApp(), ClientApp()
X = np.random.default_rng(0).normal(size=(12, 6))
Y = X @ np.arange(6.0)
LR = 0.05


def _part(context):
    """The node's columns, and its weights as it has left them."""
    config = context.node_config
    columns = X[:, config["partition-id"] :: config["num-partitions"]]
    held = context.state.get("weights")
    return columns, np.zeros(columns.shape[1]) if held is None else held["w"].numpy()


@client.query("embed")
def embed(message, context):
    """Its part of the prediction."""
    columns, weights = _part(context)
    return Message(RecordDict({"found": ArrayRecord({"part": Array(columns @ weights)})}), reply_to=message)


@client.train("step")
def step(message, context):
    """A step along the gradient that the server sends, by example."""
    columns, weights = _part(context)
    moved = weights - LR * columns.T @ message.content["gradient"]["g"].numpy()
    context.state["weights"] = ArrayRecord({"w": Array(moved)})
    return Message(RecordDict(), reply_to=message)


@server.main()
def main(grid, context):
    """Ten steps; the server has the labels."""
    nodes = list(grid.get_node_ids())
    for round_ in range(10):
        sent = [Message(RecordDict(), node, "query.embed", group_id=str(round_)) for node in nodes]
        parts = [reply.content["found"]["part"].numpy() for reply in grid.send_and_receive(sent)]
        residual = sum(parts) - Y
        content = RecordDict({"gradient": ArrayRecord({"g": Array(residual / len(Y))})})
        grid.send_and_receive([Message(content, node, "train.step", group_id=str(round_)) for node in nodes])
    context.state["residual"] = ArrayRecord({"r": Array(residual)})
