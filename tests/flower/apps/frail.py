"""A client app that goes wrong in every way, for worker processes; and one that is in order."""

import os
import random
import threading

from flwr.app import Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()
not_an_app = 3
kept = {}


@app.query()
def answer(message, context):
    """Partition 1 ends its process, 2 raises, 3 returns no records, 4 never ends; the others count and draw."""
    partition = context.node_config["partition-id"]
    if partition == 1:
        os._exit(7)
    if partition == 4:
        threading.Event().wait()
    if partition == 2:
        raise RuntimeError("out of order")
    calls = context.state.metric_records.setdefault("calls", MetricRecord({"count": 0}))
    calls["count"] += 1
    reply = Message(RecordDict({"found": MetricRecord({"drawn": random.random(), **calls})}), reply_to=message)
    if partition == 3:
        reply.content = "text"
    return reply
