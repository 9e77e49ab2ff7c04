"""The client's side."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from quickstart.task import load_data, make_model, test
from quickstart.task import train as train_model

app = ClientApp()


def _loaded(message, context):
    model = make_model(context.run_config["model.hidden"])
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    return model, load_data(context.node_config["partition-id"], context.node_config["num-partitions"])


@app.train()
def train(message: Message, context: Context):
    model, loader = _loaded(message, context)
    loss = train_model(model, loader, context.run_config["local-epochs"], message.content["config"]["lr"])
    metrics = MetricRecord({"train_loss": loss, "num-examples": len(loader.dataset)})
    return Message(RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context):
    model, loader = _loaded(message, context)
    metrics = MetricRecord({"accuracy": test(model, loader), "num-examples": len(loader.dataset)})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
