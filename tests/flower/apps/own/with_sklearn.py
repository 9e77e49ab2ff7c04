"""A client of scikit-learn: logistic regression by `partial_fit`; its arrays are coef [3, 4] and intercept [3].

Node p has 12 + 3p examples of 4 numbers, in turn of one of three classes.
"""

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import log_loss


def data(partition):
    generator, y = np.random.default_rng(partition), np.arange(12 + 3 * partition) % 3
    return generator.normal(size=(len(y), 4)) + 0.2 * partition + 1.5 * np.eye(3, 4)[y], y


def initial():
    return record(np.zeros((3, 4)), np.zeros(3))


def record(coef, intercept):
    return ArrayRecord({"coef": Array(np.asarray(coef)), "intercept": Array(np.asarray(intercept))})


def model_of(coef, intercept, lr=0.1):
    model = SGDClassifier(loss="log_loss", alpha=1e-3, learning_rate="constant", eta0=lr, shuffle=False)
    model.coef_, model.intercept_, model.classes_ = coef.copy(), intercept.copy(), np.arange(3)
    return model


def loss(coef, intercept, x, y):
    return float(log_loss(y, model_of(coef, intercept).predict_proba(x), labels=range(3)))


def client(mods=None):
    app = ClientApp(mods=mods)

    def answer(message, x, metrics, arrays=None):
        content = RecordDict({"metrics": MetricRecord({**metrics, "num-examples": len(x)})})
        if arrays is not None:
            content["arrays"] = arrays
        return Message(content, reply_to=message)

    def given(message, context, key="arrays"):
        arrays = [message.content[key][name].numpy() for name in ("coef", "intercept")]
        return arrays, data(context.node_config["partition-id"])

    @app.train()
    def train(message, context):
        arrays, (x, y) = given(message, context)
        model = model_of(*arrays, lr=message.content["config"].get("lr", 0.1))
        model.partial_fit(x, y, classes=range(3))
        return answer(message, x, {"train_loss": loss(*arrays, x, y)}, record(model.coef_, model.intercept_))

    @app.evaluate()
    def evaluate(message, context):
        arrays, (x, y) = given(message, context)
        accuracy = float(model_of(*arrays).score(x, y))
        return answer(message, x, {"eval_loss": loss(*arrays, x, y), "eval_acc": accuracy})

    @app.query()
    def query(message, context):
        arrays, (x, y) = given(message, context, "candidates")
        return answer(message, x, {"values": [loss(*each, x, y) for each in zip(*arrays, strict=True)]})

    return app


app = client()
