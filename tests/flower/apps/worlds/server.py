"""A server that spoils its own process, asks all nodes twice, and keeps what it and they have found."""

import kept
import late
import settings
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()


@app.main()
def main(grid, context):
    settings.spoil()
    kept.seen.append("server")
    mine = settings.read()
    for round_ in (1, 2):
        for kind in ("query", "query.twice"):
            sent = [Message(RecordDict(), node, kind) for node in grid.get_node_ids()]
            for row, reply in enumerate(grid.send_and_receive(sent)):
                assert reply.has_content(), reply.error.reason
                found = context.state.config_records.setdefault(f"{row}", ConfigRecord())
                found.update({f"{name} {round_}": value for name, value in reply.content["found"].items()})
    assert settings.read() == mine
    assert (kept.seen, late.called()) == (["server"], 1)
    context.state["drawn"] = ConfigRecord({"drawn": kept.drawn})
