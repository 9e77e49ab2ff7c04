"""A client that tells what it found, and then leaves everything as nobody should find it."""

import kept
import settings
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.query()
def answer(message, context):
    found = ConfigRecord(settings.read())
    found["seen"], found["drawn"] = list(kept.seen), kept.drawn
    settings.spoil()
    kept.seen.append(f"node {context.node_config['partition-id']}")
    return Message(RecordDict({"found": found}), reply_to=message)


@app.query("twice")
def twice(message, context):
    import late

    return Message(RecordDict({"found": ConfigRecord({"calls": late.called()})}), reply_to=message)
