"""The client's side: some steps on its own digits, with SCAFFOLD's correction where the server asks for it."""

import time

from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedsim.flower.local import scaffold
from linear.task import RATE, STEPS, load_data, trained

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the model that was sent, and say when that was, for whoever asks how nodes spend their time."""
    began, partition = time.time(), context.node_config["partition-id"]
    sent = {name: array.numpy() for name, array in message.content["arrays"].items()}
    x, y = load_data(partition, context.node_config["num-partitions"])
    further = {}
    if "control" in message.content:
        control = scaffold(message, context)
        model, loss = trained(sent, x, y, control.correction())
        further = control.finish(model, lr=RATE, steps=STEPS)
    else:
        model, loss = trained(sent, x, y)
    seconds = context.run_config["seconds"].split()
    if seconds:
        time.sleep(max(0.0, began + float(seconds[partition]) - time.time()))
    metrics = {"train_loss": loss, "num-examples": len(y)}
    metrics |= {"partition": partition, "began": began, "ended": time.time()}
    arrays = ArrayRecord({name: Array(array) for name, array in model.items()})
    return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord(metrics), **further}), reply_to=message)
