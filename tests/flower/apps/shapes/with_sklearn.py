"""scikit-learn: logistic regression of the irises, its coefficients averaged; the older interface of clients."""

import warnings

import numpy as np
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.common import ndarrays_to_parameters
from flwr.server import ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.serverapp import ServerApp
from sklearn.datasets import load_iris
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

X, Y = load_iris(return_X_y=True)


class Irises(NumPyClient):
    """Every third flower is a partition's."""

    def __init__(self, partition, count):
        self.model = LogisticRegression(max_iter=20, warm_start=True)
        self.model.classes_ = np.arange(3)
        self.x, self.y = X[partition::count], Y[partition::count]

    def fit(self, parameters, config):
        """Go on from the model."""
        self.model.coef_, self.model.intercept_ = parameters
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            self.model.fit(self.x, self.y)
        return [self.model.coef_, self.model.intercept_], len(self.x), {}

    def evaluate(self, parameters, config):
        """Judge it."""
        self.model.coef_, self.model.intercept_ = parameters
        accuracy = float(self.model.score(self.x, self.y))
        return float(log_loss(self.y, self.model.predict_proba(self.x))), len(self.x), {"accuracy": accuracy}


def client_fn(context):
    """A client, as old apps make it."""
    config = context.node_config
    return Irises(config["partition-id"], config["num-partitions"]).to_client()


def mean(results):
    """The clients' accuracies, weighted."""
    return {"accuracy": sum(n * m["accuracy"] for n, m in results) / sum(n for n, _ in results)}


def server_fn(context):
    """A server, as old apps make it."""
    model = ndarrays_to_parameters([np.zeros((3, 4)), np.zeros(3)])
    strategy = FedAvg(initial_parameters=model, evaluate_metrics_aggregation_fn=mean)
    return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=2))


client, server = ClientApp(client_fn=client_fn), ServerApp(server_fn=server_fn)
