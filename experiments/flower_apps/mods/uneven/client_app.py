"""The client's side: a training loop that knows nothing of strategies, and mods around it."""

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedsim.flower.mods import identify, steps, transformed
from uneven.task import data_of, trained

app = ClientApp(
    mods=[
        transformed({"kind": "clip", "max_norm": 1.0}, {"kind": "noise", "std": 0.001}, seed=0),
        steps("local-epochs", "batch-size"),
    ]
)
identify(app)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the model that was sent on the node's own examples."""
    partition, config = context.node_config["partition-id"], context.run_config
    x, y = data_of(partition, context.node_config["num-partitions"])
    (weights,) = message.content["arrays"].to_numpy_ndarrays()
    generator = np.random.default_rng([partition, message.content["config"]["server-round"]])
    found, loss = trained(weights, x, y, config["local-epochs"], config["batch-size"], config["lr"], generator)
    metrics = MetricRecord({"train_loss": loss, "num-examples": len(y)})
    return Message(RecordDict({"arrays": ArrayRecord([found]), "metrics": metrics}), reply_to=message)
