"""Server and nodes have worlds of their own: modules of the app, settings of the process, and nothing that leaks."""

import decimal
import gc
import importlib.util
import logging
import os
import shutil
import sys
import time
import types
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.clientapp import ClientApp

import strategies.fedavg
from fedsim.core.errors import FedsimError, InputError
from fedsim.flower import AppFolder, simulate
from fedsim.flower.calls import Call, Here, Pool, few_collections, imported
from fedsim.flower.settings import change, present
from fedsim.flower.worlds import AppFinder, Turns, World

APPS = Path(__file__).parent / "apps"


def run(folder, nodes=4, **kwargs):
    app = AppFolder.read(folder)
    with app.on_path():
        return simulate(app.server, app.client, nodes, run_config=app.run_config, **kwargs)


def read_settings():
    """This process's, as an app reads them."""
    spec = importlib.util.spec_from_file_location("of_a_test", APPS / "worlds" / "settings.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.read()


def found(result):
    return {name: dict(record) for name, record in result.context.state.items()}


@contextmanager
def a_caller():
    """Within this block this process has settings of its own, with which worlds begin, wherever they are."""
    precision, limit = torch.get_float32_matmul_precision(), sys.getrecursionlimit()
    with np.errstate(over="ignore"), decimal.localcontext(prec=11):
        torch.set_float32_matmul_precision("high")
        sys.setrecursionlimit(1234)
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(precision)
            sys.setrecursionlimit(limit)


@pytest.fixture(scope="module")
def here():
    with a_caller():
        before, modules = read_settings(), dict(sys.modules)
        result = run(APPS / "worlds")
        return before, read_settings(), set(sys.modules) - set(modules), result


def test_what_an_app_makes_of_its_process_is_gone_afterwards(here):
    before, after, modules, _ = here
    assert after == before
    assert not modules & {"kept", "settings", "client", "server", "late"}


def test_a_node_finds_what_it_has_left_and_nothing_of_others(here):
    before, _, _, result = here
    state = found(result)
    drawn = state.pop("drawn")["drawn"]
    assert len(state) == 4
    for row, node in state.items():
        first = {name: node[f"{name} 1"] for name in before}
        assert first == {**before, "threads": "1"}
        second = {name: node[f"{name} 2"] for name in before}
        assert [name for name in before if first[name] == second[name]] == []
        assert (node["seen 1"], node["seen 2"]) == ([], [f"node {row}"])
        assert (node["calls 1"], node["calls 2"]) == (1, 2)
        # Every import of the app draws the same.
        assert node["drawn 1"] == node["drawn 2"] == drawn


@pytest.mark.usefixtures("forked_workers")
@pytest.mark.parametrize("workers", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_workers_change_none_of_it(here, workers):
    with a_caller():
        others, ours = found(run(APPS / "worlds", workers=workers)), found(here[3])
    for row, node in ours.items():
        assert others[row] == node


def test_nodes_may_share_worlds(here):
    state = found(run(APPS / "worlds", worlds=2))
    # Nodes 0 and 2 share one; 0 is called first, then 2; and so again.
    assert [state[row]["seen 1"] for row in "0123"] == [[], [], ["node 0"], ["node 1"]]
    assert [state[row]["calls 2"] for row in "0123"] == [3, 3, 4, 4]


@pytest.mark.parametrize("initialised", [True, False])
def test_an_apps_folders_may_be_called_as_ours(initialised, tmp_path, capsys):
    ignored = shutil.ignore_patterns("__pycache__", *([] if initialised else ["__init__.py"]))
    shutil.copytree(APPS / "folders", tmp_path / "app", ignore=ignored)
    assert strategies.fedavg is sys.modules["strategies.fedavg"]
    run(tmp_path / "app", 2)
    assert capsys.readouterr().out.splitlines()[:3] == ["here is 0", "here is 1", "was sent 'fedavg'"]
    assert strategies.fedavg is sys.modules["strategies.fedavg"]


def app_folder(path, **files):
    """A folder with the app of `folders`, in other words."""
    path.mkdir()
    shutil.copy(APPS / "worlds" / "pyproject.toml", path)
    for name, text in files.items():
        place = path / f"{name.replace('__', '/')}.py"
        place.parent.mkdir(exist_ok=True)
        place.write_text(text)
    return path


SERVER = """
from flwr.app import Message, RecordDict
from flwr.serverapp import ServerApp
app = ServerApp()
@app.main()
def main(grid, context):
    sent = [Message(RecordDict(), node, "query") for node in grid.get_node_ids()]
    for reply in grid.send_and_receive(sent):
        print(reply.error.reason if reply.has_error() else reply.content["found"]["said"])
"""
CLIENT = """
{begin}
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
app = ClientApp()
@app.query()
def answer(message, context):
    return Message(RecordDict({{"found": ConfigRecord({{"said": str({said})}})}}), reply_to=message)
"""


COUNTING = "import {other}\ncalls, installed = [], {other}.calls"
COUNTED = "len(installed.append(1) or installed), len(calls.append(1) or calls)"


class Editable:
    """Finds one module where it lies, as a package that is installed editable is found."""

    def __init__(self, folder):
        self.folder = folder

    def find_spec(self, name, path=None, target=None):
        file = self.folder / f"{name}.py"
        return importlib.util.spec_from_file_location(name, file) if name == "editable_client" else None


@pytest.mark.parametrize("client", ["installed_client", "editable_client"])
def test_an_app_may_be_installed_and_is_apart_from_what_else_is(client, monkeypatch, tmp_path, capsys):
    installed = tmp_path / "site-packages"
    folder = installed if client == "installed_client" else tmp_path / "elsewhere"
    files = {client: CLIENT.format(begin=COUNTING.format(other="of_all"), said=f"({COUNTED})")}
    for place, written in ((installed, {"of_all": "calls = []", "a_server": SERVER}), (folder, files)):
        place.mkdir(exist_ok=True)
        for name, text in written.items():
            (place / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(installed))
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Editable(folder)])
    try:
        simulate("a_server:app", f"{client}:app", 3)
    finally:
        del sys.modules["of_all"]
    assert capsys.readouterr().out.splitlines()[:3] == ["(1, 1)", "(2, 1)", "(3, 1)"]
    assert not {client, "a_server"} & set(sys.modules)


@pytest.mark.parametrize("loaded", [False, True])
def test_what_is_installed_comes_before_a_folder_of_data(loaded, tmp_path, capsys):
    # `sklearn/` holds no module, as `data/` or `datasets/` do; Python finds the package that is installed.
    assert ("sklearn" in sys.modules) or not loaded
    folder = app_folder(
        tmp_path / "app", server=SERVER, client=CLIENT.format(begin="import sklearn, kinds.one", said="kinds.one.name"),
        kinds__one="from sklearn import __version__ as name", sklearn__table="raise ImportError",
    )  # fmt: skip
    run(folder, 1)
    import sklearn

    assert capsys.readouterr().out.splitlines()[0] == sklearn.__version__


def test_a_module_of_the_callers_of_the_same_name_is_hidden_meanwhile(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "client", strategies)
    run(app_folder(tmp_path / "app", server=SERVER, client=CLIENT.format(begin="", said="__file__")), 1)
    assert capsys.readouterr().out.splitlines()[0] == str(tmp_path / "app" / "client.py")
    assert sys.modules["client"] is strategies
    assert list(tmp_path.rglob("*.pyc")) == []


def test_an_import_that_fails_in_one_world_is_that_nodes_error(tmp_path, capsys):
    once = "import sys\nassert not hasattr(sys, 'of_a_test')\nsys.of_a_test = 1"
    try:
        run(app_folder(tmp_path / "app", server=SERVER, client=CLIENT.format(begin=once, said="3")), 2)
    finally:
        del sys.of_a_test
    said = capsys.readouterr().out
    assert said.startswith("3\nAssertionError: \nTraceback")
    assert "client.py" in said


def test_a_file_that_has_changed_is_read_again(tmp_path, capsys):
    folder = app_folder(tmp_path / "app", server=SERVER, client=CLIENT.format(begin="", said="'one'"))
    run(folder, 1)
    (folder / "client.py").write_text(CLIENT.format(begin="", said="'another'"))
    run(folder, 1)
    assert capsys.readouterr().out.split() == ["one", "another"]


BAD = {
    "worlds = 1": {"worlds": 1, "workers": 2},
    "worlds = 0": {"worlds": 0},
    "call_limit = 3.0": {"call_limit": 3.0},
    "call_limit = 0.0": {"call_limit": 0.0, "workers": 1},
    "workers = -1": {"workers": -1},
    r"node-config\.partition-id = 3": {"node_config": {"partition-id": 3}},
    r"node-config\.a = \[1\]": {"node_config": {"a": [1]}},
    r"node-config\.a = \{partition-id:q\}": {"node_config": {"a": "{partition-id:q}"}},
    "durations = ": {"durations": {0: 1.0}, "real_time": True},
}


@pytest.mark.parametrize("said", BAD)
def test_bad_options(said):
    with pytest.raises(InputError, match=f"^{said}"):
        run(APPS / "worlds", **BAD[said])


@pytest.mark.usefixtures("forked_workers")
def test_a_client_app_that_workers_cannot_import(tmp_path):
    folder = app_folder(tmp_path / "app", server=SERVER, client="raise LookupError('broken on purpose')")
    with pytest.raises(FedsimError, match=r"^the client app cannot be imported: .* LookupError: broken") as no:
        run(folder, workers=1)
    assert "client.py" in no.value.__notes__[0]


def test_what_is_wrong_with_a_client_app_in_a_worker_can_be_sent(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(app_folder(tmp_path / "app", nothing="app = 3")))
    place = "nothing:app"
    assert imported(Here(place, AppFinder.of([place])), 0) == (
        "clientapp",
        "nothing:app",
        "this is a int, not a ClientApp",
    )


def test_what_lies_in_context_variables_stays_in_its_world():
    around, held = present(), decimal.getcontext()
    with np.errstate(over="ignore"):  # the maker's, not what the worlds begin with
        worlds = [World(AppFinder(), around) for _ in range(2)]

    def read():
        return decimal.getcontext().prec, np.geterr()["over"], torch.get_default_dtype(), os.environ.get("FROM_APP")

    def spoil():
        decimal.getcontext().prec = 7
        np.seterr(over="raise")
        torch.set_default_dtype(torch.float64)
        os.environ["FROM_APP"] = "1"

    begun, left = read(), (7, "raise", torch.float64, "1")
    with Turns() as turns:
        assert turns.run(worlds[1], read) == begun
        turns.run(worlds[0], spoil)
        assert turns.run(worlds[1], read) == begun
    assert (read(), present()) == (begun, around)
    assert decimal.getcontext() is held
    with Turns() as turns:
        assert [turns.run(world, read) for world in worlds] == [left, begun]
    assert worlds[0].run(read) == left
    with pytest.raises(ZeroDivisionError), Turns() as turns:
        turns.run(worlds[0], lambda: 1 / 0)
    assert present() == around
    assert decimal.getcontext() is held


def test_loggers_that_take_a_place_that_was_kept_for_them_are_seen():
    logging.getLogger("of.a.test")
    count = len(logging.root.manager.loggerDict)
    before = present()
    logging.getLogger("of.a").setLevel(7)  # there is a placeholder of this name
    assert len(logging.root.manager.loggerDict) == count
    assert (before["log levels"].get("of.a"), present()["log levels"].get("of.a")) == (None, 7)
    change(present(), before)
    assert logging.getLogger("of.a").level == logging.NOTSET


@pytest.fixture
def nothing_passed_over():
    """A process whose collector looks through everything, as it is outside of tests."""
    gc.unfreeze()
    yield
    gc.freeze()


@pytest.mark.usefixtures("nothing_passed_over")
def test_the_collector_passes_over_what_calls_have_imported(monkeypatch):
    clients, counts, held = Here(ClientApp()), [], []
    with few_collections():
        for name in (None, "imported_by_a_call", None):
            held += [[number] for number in range(1000)]
            if name is not None:
                monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
            clients.answers([])
            counts.append(gc.get_freeze_count())
    assert counts[1] >= counts[0] + 1000
    assert counts[2] < counts[1] + 1000
    monkeypatch.setitem(sys.modules, "imported_afterwards", types.ModuleType("imported_afterwards"))
    clients.answers([])
    assert gc.get_freeze_count() == 0


class Silent:
    """Workers of which one never ends, or not within the time of a test."""

    count = 1

    def __init__(self, seconds):
        self.seconds = seconds

    def stream(self, function, tasks, *, homes, timeouts):
        for number, seconds in enumerate(self.seconds):
            time.sleep(seconds)
            yield number, [number]


@pytest.mark.parametrize("seconds", [(0.0, 0.3), (0.06,) * 5])
def test_a_silence_is_told_once(seconds, monkeypatch, capsys):
    monkeypatch.setattr("fedsim.flower.calls.SILENCE", 0.1)
    calls = [Call(None, None, 10 + number, 0, 1.0) for number in range(len(seconds))]
    assert Pool(Silent(seconds)).answers(calls) == list(range(len(seconds)))
    said = capsys.readouterr().err
    if len(seconds) == 5:  # one after the other, each in less than the silence
        assert said == ""
    else:
        assert said.startswith("fedsim: warning: no client has answered for 0.1 s; partitions at work, or waiting for ")
        assert said.endswith("their worker: 11; --call-limit ends calls that take too long\n")
