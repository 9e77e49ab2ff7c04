"""pandas: no model, but questions; every node counts in its part of a table, and the server adds up."""

import numpy as np
import pandas as pd
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

server, client = ServerApp(), ClientApp()
EDGES = [0.0, 2.5, 5.0, 10.0]


def table():
    """Twenty rows."""
    numbers = np.arange(20)
    return pd.DataFrame({"length": numbers / 2.0, "kind": np.where(numbers % 3 == 0, "a", "b")})


@client.query()
def count(message, context):
    """A histogram, and the rows of each kind."""
    config = context.node_config
    rows = table().iloc[config["partition-id"] :: config["num-partitions"]]
    found = np.histogram(rows["length"], bins=message.content["query"]["edges"])[0]
    kinds = rows["kind"].value_counts()
    metrics = MetricRecord({"length": found.tolist(), **{name: int(number) for name, number in kinds.items()}})
    return Message(RecordDict({"counts": metrics}), reply_to=message)


@server.main()
def main(grid, context):
    """Add up what half of the nodes say, and then what all say."""
    for number in (2, 4):
        content = RecordDict({"query": ConfigRecord({"edges": EDGES})})
        nodes = list(grid.get_node_ids())[:number]
        replies = list(grid.send_and_receive([Message(content, node, "query") for node in nodes], timeout=60.0))
        found = [reply.content["counts"] for reply in replies]
        length = [sum(counts["length"][row] for counts in found) for row in range(len(EDGES) - 1)]
        kinds = {name: sum(counts.get(name, 0) for counts in found) for name in ("a", "b")}
        context.state[f"of {number}"] = MetricRecord({"length": length, **kinds})
