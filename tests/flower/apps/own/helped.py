"""A client of linear regression in NumPy that gives every help a strategy of ours may ask for, and knows which by what
it is sent: SCAFFOLD's control variates, FedDyn's and FedProx's terms, FedNova's work, losses and utilities.

Node p has examples x [n, 3], y [n]. The model is of PyTorch's names, weight [1, 3] and bias [1]; the loss is the mean
of (x w + b - y)^2, and training is STEPS steps of gradient descent over all examples.
"""

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedsim.flower.local import feddyn, proximal, scaffold
from fedsim.flower.mods import steps

STEPS, RATE = 3, 0.05
SIZES = (5, 9, 6, 12, 7, 10)


def data(partition, even):
    """x and y of a node. even: all have as many examples."""
    generator, size = np.random.default_rng(partition), 8 if even else SIZES[partition]
    x = generator.normal(size=(size, 3))
    return x, x @ (np.array([1.0, -2.0, 0.5]) + 0.4 * generator.normal(size=3)) + 0.2 * generator.normal(size=size)


def residuals(model, x, y):
    return x @ model["weight"][0] + model["bias"] - y


def trained(model, x, y, correction):
    """The model after the steps, and the loss before each. correction(model): what is added to the gradients."""
    losses = []
    for _ in range(STEPS):
        residual, added = residuals(model, x, y), correction(model)
        losses.append(float((residual**2).mean()))
        gradient = {"weight": 2 * (residual @ x)[None] / len(y), "bias": 2 * residual.mean(keepdims=True)}
        model = {name: model[name] - RATE * (gradient[name] + added[name]) for name in model}
    return model, losses


def client():
    app = ClientApp(mods=[steps(STEPS, 100)])

    def given(message, context):
        model = {name: array.numpy() for name, array in message.content["arrays"].items()}
        return model, *data(context.node_config["partition-id"], context.run_config["even"])

    @app.train()
    def train(message, context):
        theta, x, y = given(message, context)
        config, further, metrics = message.content["config"], {}, {"num-examples": len(y)}
        if "control" in message.content:
            control = scaffold(message, context)
            model, losses = trained(theta, x, y, lambda _: control.correction())
            further = control.finish(model, lr=RATE, steps=STEPS)
        elif "feddyn-alpha" in config:
            regulariser = feddyn(message, context)
            model, losses = trained(theta, x, y, regulariser.correction)
            metrics |= regulariser.finish(model)
        else:
            model, losses = trained(theta, x, y, proximal(message).correction)
        if config.get("report-precision"):
            sure = float(context.run_config.get("sure", 1) + context.node_config["partition-id"])
            told = {"weight": np.full((1, 3), sure), "bias": np.ones(1)}
            further = {"precision": ArrayRecord({name: Array(array) for name, array in told.items()})}
        squares = residuals(theta, x, y) ** 2
        metrics |= {"train_loss": float(np.mean(losses)), "last-loss": losses[-1]}
        metrics |= {"utility": float(np.sqrt((squares**2).mean())), "start-loss": float(squares.mean())}
        arrays = ArrayRecord({name: Array(array) for name, array in model.items()})
        return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord(metrics), **further}), reply_to=message)

    @app.evaluate()
    def evaluate(message, context):
        model, x, y = given(message, context)
        metrics = MetricRecord({"eval_loss": float((residuals(model, x, y) ** 2).mean()), "num-examples": len(y)})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app
