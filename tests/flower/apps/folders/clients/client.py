"""A client that says where it is."""

from flwr.app import Message
from flwr.clientapp import ClientApp

app = ClientApp()


@app.query()
def answer(message, context):
    message.content["config"]["said"] = f"here is {context.node_config['partition-id']}"
    return Message(message.content, reply_to=message)
