"""A client that does linear regression by gradient steps in NumPy; its arrays have numbers for names and 64 bits.

Node p has 6 + 2p examples: A [n, 3], y [n]. The model is w [3] and c [1], the loss |A w + c - y|^2 / 2n.
"""

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp


def data(partition):
    """A and y of a node. Each has a truth of its own, so that averages are worth something."""
    generator = np.random.default_rng(partition)
    a = generator.normal(size=(6 + 2 * partition, 3))
    return a, a @ (np.array([1.0, -2.0, 0.5]) + 0.3 * partition) + 0.1 * partition + 0.05 * generator.normal(
        size=len(a)
    )


def initial():
    return ArrayRecord([np.zeros(3), np.zeros(1)])


def loss(partition, w, c):
    a, y = data(partition)
    return float(((a @ w + c - y) ** 2).mean() / 2)


def moved(partition, w, c, lr=0.1, steps=3, mu=0.0):
    """The model after some steps on the loss of a node, plus mu/2 the squared distance from where it began."""
    (a, y), (w0, c0) = data(partition), (w, c)
    for _ in range(steps):
        residual = a @ w + c - y
        w, c = w - lr * (a.T @ residual / len(y) + mu * (w - w0)), c - lr * (residual.mean() + mu * (c - c0))
    return w, c


def solution(nodes):
    """Where the losses of nodes, weighted with their examples, are smallest together: w and c."""
    a, y = (np.concatenate(parts) for parts in zip(*map(data, range(nodes)), strict=True))
    found = np.linalg.lstsq(np.column_stack([a, np.ones(len(a))]), y, rcond=None)[0]
    return found[:3], found[3:]


def client(mods=None):
    app = ClientApp(mods=mods)

    def answer(message, context, metrics, arrays=None):
        partition = context.node_config["partition-id"]
        content = RecordDict({"metrics": MetricRecord({**metrics, "num-examples": len(data(partition)[1])})})
        if arrays is not None:
            content["arrays"] = ArrayRecord(list(arrays))
        return Message(content, reply_to=message)

    @app.train()
    def train(message, context):
        partition, config = context.node_config["partition-id"], message.content["config"]
        w, c = message.content["arrays"].to_numpy_ndarrays()
        named = {name: config[key] for name, key in (("lr", "lr"), ("mu", "proximal-mu")) if key in config}
        found = moved(partition, w, c, steps=config.get("steps", 3), **named)
        return answer(message, context, {"train_loss": loss(partition, w, c)}, found)

    @app.evaluate()
    def evaluate(message, context):
        w, c = message.content["arrays"].to_numpy_ndarrays()
        return answer(message, context, {"eval_loss": loss(context.node_config["partition-id"], w, c)})

    @app.query()
    def query(message, context):
        ws, cs = message.content["candidates"].to_numpy_ndarrays()
        values = [loss(context.node_config["partition-id"], w, c) for w, c in zip(ws, cs, strict=True)]
        return answer(message, context, {"values": values})

    return app


app = client()
CONFIG = ConfigRecord({"lr": 0.1, "steps": 3})
