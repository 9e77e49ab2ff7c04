"""XGBoost: every node adds a tree to the forest of the last round, and the server puts them together."""

import numpy as np
import xgboost as xgb
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedXgbBagging
from sklearn.datasets import load_breast_cancer

server, client = ServerApp(), ClientApp()
X, Y = load_breast_cancer(return_X_y=True)
PARAMS = {"objective": "binary:logistic", "max_depth": 3, "eta": 0.5, "nthread": 1, "eval_metric": "error"}


def loaded(message):
    """The forest that was sent."""
    forest = xgb.Booster(params=PARAMS)
    forest.load_model(bytearray(message.content["arrays"]["0"].numpy().tobytes()))
    return forest


@client.train()
def train(message, context):
    """Send one tree: the first, or the one that comes next."""
    number, count = context.node_config["partition-id"], context.node_config["num-partitions"]
    data = xgb.DMatrix(X[number::count], Y[number::count])
    if message.content["config"]["server-round"] == 1:
        tree = xgb.train(PARAMS, data, num_boost_round=1)
    else:
        forest = loaded(message)
        forest.update(data, forest.num_boosted_rounds())
        rounds = forest.num_boosted_rounds()
        tree = forest[rounds - 1 : rounds]
    arrays = ArrayRecord([np.frombuffer(tree.save_raw("json"), dtype=np.uint8)])
    metrics = MetricRecord({"num-examples": int(data.num_row())})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


@client.evaluate()
def evaluate(message, context):
    """Judge the forest."""
    number, count = context.node_config["partition-id"], context.node_config["num-partitions"]
    data = xgb.DMatrix(X[number::count], Y[number::count])
    right = (loaded(message).predict(data) > 0.5) == Y[number::count]
    metrics = MetricRecord({"accuracy": float(right.mean()), "num-examples": len(right)})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


@server.main()
def main(grid, context):
    """Two rounds from nothing."""
    FedXgbBagging(min_train_nodes=3, min_available_nodes=3).start(
        grid, ArrayRecord([np.frombuffer(b"", dtype=np.uint8)]), num_rounds=2
    )
