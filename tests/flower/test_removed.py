"""Apps that need what Flower has removed are told which version has it."""

import importlib
import importlib.util
from importlib.metadata import version

import pytest
from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fedsim.core.errors import InputError
from fedsim.flower import simulate
from fedsim.flower.removed import REMOVED, removed

HERE = f"Flower {version('flwr')} has no"


def imported(name):
    """Import a module, or a name of a module, as an app does."""
    module, _, attribute = name.rpartition(".")
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        exec(f"from {module} import {attribute}")


@pytest.mark.parametrize("name", REMOVED)
def test_what_is_said_to_be_gone_is_gone(name):
    with pytest.raises(ImportError):
        imported(name)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("import flwr.server.driver", "flwr.server.driver; Flower 1.16 has it"),
        ("from flwr.common.record.recordset import RecordSet", "flwr.common.record; Flower 1.30 has it"),
        ("from flwr.common.typing import UserConfig", "flwr.common.typing.UserConfig; Flower 1.31 has it"),
        ("from flwr.server import start_driver", "flwr.server.start_driver; Flower 1.8 has it"),
        ("import flwr.of_a_test", None),
        ("from flwr.server import of_a_test", None),
        ("import json.of_a_test", None),
    ],
)
def test_the_version_that_had_it_is_named(line, said):
    with pytest.raises(ImportError) as caught:
        exec(line)
    assert removed(caught.value) == (f"{HERE} {said}" if said else "")
    assert removed(LookupError("flwr.server.driver")) == ""


def server_app(line):
    app = ServerApp()

    @app.main()
    def main(grid, context):
        exec(line)
        (reply,) = grid.send_and_receive([Message(RecordDict(), grid.get_node_ids()[0], "query")])
        said.append(reply.error.reason.splitlines()[1])

    said = []
    return app, said


def test_it_is_named_wherever_the_import_is(monkeypatch, tmp_path):
    client, gone = ClientApp(), "from flwr.server.driver import Driver"
    client.query()(lambda message, context: exec(gone))
    (tmp_path / "an_old_app.py").write_text(gone)
    monkeypatch.syspath_prepend(str(tmp_path))
    app, said = server_app("")
    with pytest.raises(InputError, match=f"^clientapp = an_old_app:app: {HERE} flwr.server.driver; Flower 1.16 has it"):
        simulate(app, "an_old_app:app", nodes=1)
    simulate(app, client, nodes=1)
    assert said == [f"{HERE} flwr.server.driver; Flower 1.16 has it"]
    with pytest.raises(ModuleNotFoundError) as caught:
        simulate(server_app(gone)[0], client, nodes=1)
    assert caught.value.__notes__ == said
