"""A client of the shape of Flower's PyTorch quickstart: a classifier of dense layers, or one with BatchNorm.

Node p has 8 + 4 (p mod 3) examples of 4 numbers and one of 3 classes; batches of 4, in order. FedProx's term is in its
loss where the server sends `proximal-mu`, as Flower's FedProx asks for.
"""

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn


def net(norm=False):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Linear(4, 8), nn.BatchNorm1d(8)] if norm else [nn.Linear(4, 8)]
        return nn.Sequential(*layers, nn.ReLU(), nn.Linear(8, 3))


def initial(norm=False):
    return ArrayRecord(net(norm).state_dict())


def data(partition):
    generator = np.random.default_rng(partition)
    x = generator.normal(size=(8 + 4 * (partition % 3), 4)) + 0.3 * partition
    y = (x @ np.random.default_rng(99).normal(size=(4, 3))).argmax(axis=1)
    return torch.tensor(x, dtype=torch.float32), torch.tensor(y)


def fit(model, x, y, lr, epochs, mu):
    """Train, and the mean of the losses of the batches before each step."""
    began = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=lr), []
    model.train()
    for _ in range(epochs):
        for inputs, labels in zip(x.split(4), y.split(4), strict=True):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(inputs), labels)
            losses.append(loss.item())
            if mu:
                pairs = zip(model.parameters(), began, strict=True)
                loss = loss + mu / 2 * sum(((one - other) ** 2).sum() for one, other in pairs)
            loss.backward()
            optimizer.step()
    return sum(losses) / len(losses)


@torch.no_grad()
def judge(model, x, y):
    model.eval()
    output = model(x)
    return nn.functional.cross_entropy(output, y).item(), (output.argmax(1) == y).float().mean().item()


def client(norm=False, mods=None):
    app = ClientApp(mods=mods)

    @app.train()
    def train(msg: Message, context: Context):
        model = net(norm)
        model.load_state_dict(msg.content["arrays"].to_torch_state_dict())
        x, y = data(context.node_config["partition-id"])
        config = msg.content["config"]
        train_loss = fit(model, x, y, config.get("lr", 0.1), config.get("epochs", 1), config.get("proximal-mu", 0.0))
        metrics = {"train_loss": train_loss, "num-examples": len(x)}
        content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord(metrics)})
        return Message(content=content, reply_to=msg)

    @app.evaluate()
    def evaluate(msg: Message, context: Context):
        model = net(norm)
        model.load_state_dict(msg.content["arrays"].to_torch_state_dict())
        x, y = data(context.node_config["partition-id"])
        eval_loss, eval_acc = judge(model, x, y)
        metrics = {"eval_loss": eval_loss, "eval_acc": eval_acc, "num-examples": len(x)}
        return Message(content=RecordDict({"metrics": MetricRecord(metrics)}), reply_to=msg)

    @app.query()
    def query(msg: Message, context: Context):
        model, (x, y) = net(norm), data(context.node_config["partition-id"])
        candidates, values = msg.content["candidates"].to_torch_state_dict(), []
        for row in range(len(next(iter(candidates.values())))):
            model.load_state_dict({name: rows[row] for name, rows in candidates.items()})
            values.append(judge(model, x, y)[0])
        metrics = {"values": values, "num-examples": len(x)}
        return Message(content=RecordDict({"metrics": MetricRecord(metrics)}), reply_to=msg)

    return app


app, normed = client(), client(norm=True)
