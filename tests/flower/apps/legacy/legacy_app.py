"""An app of the time before messages: a NumPyClient, a `client_fn`, a `server_fn` and a mod."""

import random

import numpy as np
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.common import Context, MetricRecord, ndarrays_to_parameters
from flwr.server import ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.serverapp import ServerApp


class Client(NumPyClient):
    """It pulls the model half way to a point of its own, and adds a little noise."""

    def __init__(self, context):
        self.state, self.point, self.fails = context.state, context.node_config["partition-id"], False
        self.fails = self.point == context.run_config["fail"]

    def fit(self, parameters, config):
        if self.fails:
            raise RuntimeError(f"partition {self.point} is out of order")
        visits = self.state.metric_records.setdefault("visits", MetricRecord({"count": 0}))
        visits["count"] += 1
        moved = parameters[0] + 0.5 * (self.point - parameters[0]) + 1e-3 * np.random.normal(size=2)  # noqa: NPY002  # as many apps do
        return [moved], 1 + self.point, {"visits": visits["count"], "coin": random.random()}

    def evaluate(self, parameters, config):
        return float(((parameters[0] - self.point) ** 2).sum()), 1, {}


def tally(message, context, call_next):
    """A mod: it counts the messages of a node."""
    seen = context.state.metric_records.setdefault("seen", MetricRecord({"count": 0}))
    seen["count"] += 1
    return call_next(message, context)


def average(metrics):
    return {name: sum(found[name] for _, found in metrics) / len(metrics) for name in ("visits", "coin")}


def server_fn(context: Context):
    strategy = FedAvg(
        fraction_fit=0.5,
        initial_parameters=ndarrays_to_parameters([np.zeros(2)]),
        fit_metrics_aggregation_fn=average,
        evaluate_fn=lambda round_, arrays, config: (float(arrays[0].sum()), {"sent": context.run_config["rounds"]}),
    )
    return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=context.run_config["rounds"]))


client = ClientApp(client_fn=lambda context: Client(context).to_client(), mods=[tally])
server = ServerApp(server_fn=server_fn)
