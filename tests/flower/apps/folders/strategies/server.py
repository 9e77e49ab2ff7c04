"""A server without a strategy."""

from experiments.names import NAME
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()


@app.main()
def main(grid, context):
    content = RecordDict({"config": ConfigRecord({"said": NAME})})
    sent = [Message(content, node, "query") for node in grid.get_node_ids()]
    for reply in grid.send_and_receive(sent):
        print(reply.content["config"]["said"])
    print(f"was sent {content['config']['said']!r}")
