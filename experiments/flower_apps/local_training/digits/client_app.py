"""The client's side: local SGD, and the few lines that make it another method's."""

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch.utils.data import DataLoader

from digits.task import fit, judge, load_data, make_model
from fedsim.flower.local import curriculum, feddyn, proximal, scaffold

BATCH = 32

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the model that was sent, by the method that the run configuration names."""
    model, epochs = make_model(), context.run_config["local-epochs"]
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    data = load_data(context.node_config["partition-id"], context.node_config["num-partitions"])
    batches = (batch for _ in range(epochs) for batch in DataLoader(data, batch_size=BATCH, shuffle=True))
    optimizer = torch.optim.SGD(model.parameters(), lr=message.content["config"]["lr"])
    records, metrics = {}, {}
    match context.run_config["method"]:
        case "scaffold":
            control = scaffold(message, context)
            loss = fit(model, batches, optimizer, control.correct)
            records = control.finish(model)  # the record control-delta
        case "feddyn":
            dynamic = feddyn(message, context)
            loss = fit(model, batches, optimizer, lambda model, _: dynamic.correct(model))
            metrics = dynamic.finish(model)  # the metric feddyn-alpha
        case "fedprox":
            near = proximal(message)
            loss = fit(model, batches, optimizer, lambda model, _: near.correct(model))
        case "curriculum":
            losses, _ = judge(model, data)  # under the model that was sent
            chosen = curriculum(message, context, losses, epochs=epochs, batch_size=BATCH)
            loss = fit(model, DataLoader(data, batch_sampler=chosen), optimizer)
        case _:
            loss = fit(model, batches, optimizer)
    told = MetricRecord({"train_loss": loss, "num-examples": len(data), **metrics})
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": told, **records})
    return Message(content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Judge the model that was sent on this client's examples."""
    model = make_model()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    data = load_data(context.node_config["partition-id"], context.node_config["num-partitions"])
    losses, accuracy = judge(model, data)
    metrics = MetricRecord({"eval_loss": losses.mean().item(), "accuracy": accuracy, "num-examples": len(data)})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
