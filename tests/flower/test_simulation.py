"""Flower apps, unchanged: what they come to, in one process and in several, from Python and from the command line."""

import inspect
import logging
import random
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common import ndarrays_to_parameters
from flwr.server import ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg as LegacyFedAvg
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg, Result, Strategy
from local_grid import tiny

import fedsim
from fedsim.cli.flower import summary
from fedsim.cli.main import main
from fedsim.core.errors import InputError, StalledError
from fedsim.flower import AppFolder, AppResult, client_app, server_app, simulate
from fedsim.flower.places import place_of

APPS = Path(__file__).parent / "apps"


@pytest.fixture(autouse=True)
def apart():
    """Flower's log is short, and no module of an app is left loaded."""
    before, level = set(sys.modules), logging.getLogger("flwr").level
    logging.getLogger("flwr").setLevel(logging.WARNING)
    yield
    logging.getLogger("flwr").setLevel(level)
    files = {name: str(getattr(sys.modules[name], "__file__", "")) for name in set(sys.modules) - before}
    assert [name for name, file in files.items() if str(APPS) in file] == []


def run_folder(name, *overrides, nodes=None, **kwargs):
    folder = AppFolder.read(APPS / name, overrides)
    with folder.on_path():
        return simulate(folder.server, folder.client, nodes or folder.nodes, run_config=folder.run_config, **kwargs)


def pull(step=0.5):
    """Clients that move the model towards their partition's number, and say how far they were."""
    app = ClientApp()

    @app.train()
    def train(message, context):
        point, model = context.node_config["partition-id"], message.content["arrays"].to_numpy_ndarrays()[0]
        metrics = MetricRecord({"distance": float(abs(point - model[0])), "num-examples": 1})
        moved = ArrayRecord([model + step * (point - model)])
        return Message(RecordDict({"arrays": moved, "metrics": metrics}), reply_to=message)

    @app.evaluate()
    def evaluate(message, context):
        metrics = MetricRecord({"model": float(message.content["arrays"].to_numpy_ndarrays()[0][0]), "num-examples": 1})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def averaging(rounds=2, **kwargs):
    app = ServerApp()

    @app.main()
    def main(grid, context):
        context.state["done"] = ConfigRecord({"rounds": context.run_config.get("rounds", rounds)})
        return FedAvg(**kwargs).start(grid, ArrayRecord([np.zeros(1)]), num_rounds=rounds)

    return app


def test_a_strategys_result_and_history_are_the_apps():
    result = simulate(averaging(rounds=2), pull(), nodes=5, run_config={"rounds": 7})
    # Partitions 0 to 4 have the mean 2: from 0 the model moves to 1, and from there to 1.5.
    # Distances are 0, 1, 2, 3, 4 at first, of mean 2, then 1, 0, 1, 2, 3, of mean 7/5.
    assert result.result.arrays.to_numpy_ndarrays()[0] == pytest.approx([1.5])
    assert result.history["train"] == {1: {"distance": 2.0}, 2: {"distance": pytest.approx(1.4)}}
    assert result.history["evaluate"] == {1: {"model": 1.0}, 2: {"model": pytest.approx(1.5)}}
    assert result.history["server"] == {}
    assert result.context.state["done"]["rounds"] == 7
    assert (len(result.exchanges), result.errors) == (20, [])
    assert list(result.seconds) == [1, 2]
    assert 0 < sum(result.seconds.values()) <= result.wall


def run(strategy, **kwargs):
    """What is noted when an app starts what `strategy()` makes, and what its `start` returned."""
    app, returned = ServerApp(), []

    @app.main()
    def main(grid, context):
        returned.append(strategy().start(grid, ArrayRecord([np.zeros(1)]), num_rounds=2, **kwargs))
        noted.extend(grid.outcomes)

    noted = []
    return simulate(app, pull(), nodes=3), noted, returned[0]


class Own(FedAvg):
    """A strategy that begins in its own way, without Flower's."""

    def start(self, grid, initial_arrays, num_rounds=1, **named):
        """Train once, whatever was asked."""
        sent = self.configure_train(1, initial_arrays, ConfigRecord(), grid)
        arrays, metrics = self.aggregate_train(1, grid.send_and_receive(sent))
        return Result(arrays, {1: metrics})


class Timed(FedAvg):
    """A strategy that does more before and after Flower's own start."""

    def start(self, *given, **named):
        return replace(super().start(*given, **named), train_metrics_clientapp={7: MetricRecord({"all": 1})})


class Silent(Timed):
    """A strategy that forgets to return what it came to."""

    def start(self, *given, **named):
        super().start(*given, **named)


class Turns:
    """What begins a strategy, and is none itself."""

    def start(self, grid, initial_arrays, **named):
        first = FedAvg().start(grid, initial_arrays, num_rounds=1)
        return FedAvg().start(grid, first.arrays, num_rounds=1)


class InTurn(Turns, FedAvg):
    """A strategy whose start comes from elsewhere, and lets others do the work."""


def late():
    @dataclass(slots=True)  # which makes the class twice
    class Late(Own):
        def __init__(self):
            FedAvg.__init__(self)

        def start(self, *given, **named):
            return replace(Own.start(self, *given, **named), evaluate_metrics_serverapp={0: MetricRecord({"late": 1})})

    made.append(Late)
    return Late()


made = []


@pytest.mark.parametrize(
    ("strategy", "rounds"),
    [(Own, [1]), (Timed, [7]), (InTurn, [1]), (late, [1]), (FedAvg, [1, 2])],
    ids=lambda row: getattr(row, "__name__", ""),
)
def test_whatever_start_a_strategy_has_its_result_is_noted_once(strategy, rounds):
    before = {kind: vars(kind)["start"] for kind in (Own, Timed, Turns, Strategy)}
    result, noted, returned = run(strategy)
    assert list(result.history["train"]) == rounds
    assert noted == [returned]
    assert result.result is returned
    assert {kind: vars(kind)["start"] for kind in before} == before
    assert "__init_subclass__" not in vars(Strategy)
    assert [vars(kind)["start"].__module__ for kind in made] == [__name__] * len(made)
    assert [hasattr(vars(kind)["start"], "__wrapped__") for kind in made] == [False] * len(made)
    made.clear()


def test_a_strategy_that_returns_nothing_came_to_what_flowers_start_did():
    result, noted, returned = run(Silent)
    assert (returned, noted) == (None, [result.result])
    assert list(result.history["train"]) == [7]


def test_a_start_that_fails_is_not_noted_and_hides_none_that_follows():
    class Failing(Own):
        def start(self, grid, *given, **named):
            FedAvg().start(grid, *given, **named)
            raise LookupError

    def main(grid, context):
        assert list(inspect.signature(FedAvg.start).parameters)[:3] == ["self", "grid", "initial_arrays"]
        with pytest.raises(LookupError):
            Failing().start(grid, ArrayRecord([np.zeros(1)]), num_rounds=2)
        assert grid.outcomes == []
        for _ in range(2):
            Own().start(grid, ArrayRecord([np.zeros(1)]))
        assert len(grid.outcomes) == 2

    app = ServerApp()
    app.main()(main)
    assert list(simulate(app, pull(), nodes=3).history["train"]) == [1]


def test_an_app_without_a_strategy_has_no_result():
    app = ServerApp()

    @app.main()
    def main(grid, context):
        found.append(len(list(grid.get_node_ids())))

    found = []
    result = simulate(app, pull(), nodes=3)
    assert (found, result.result, result.seconds, len(result.exchanges)) == ([3], None, {}, 0)
    assert summary(result, 3) == [f"3 nodes, 0 rounds, 0 messages in {result.wall:.1f} s"]
    bare = replace(result, history={"train": {1: {}}, "evaluate": {1: {"loss": 0.5}, 2: {}}})
    assert summary(bare, 3)[1:] == []


def test_slow_nodes_miss_the_round():
    app = ServerApp()

    @app.main()
    def main(grid, context):
        FedAvg(fraction_evaluate=0.0).start(grid, ArrayRecord([np.zeros(1)]), num_rounds=1, timeout=60.0)

    result = simulate(app, pull(step=1.0), nodes=3, durations={2: 61.0})
    assert result.result.arrays.to_numpy_ndarrays()[0] == pytest.approx([0.5])  # the mean of 0 and 1, without 2


def sleepy(message, context):
    """A client that takes 0.05 seconds in partition 0."""
    if context.node_config["partition-id"] == 0:
        time.sleep(0.05)
    return Message(message.content, reply_to=message)


@pytest.mark.parametrize("real_time", [False, True])
def test_real_seconds_count_when_they_are_asked_for_and_are_told_else(real_time):
    def main(grid, context):
        sent = [Message(RecordDict(), node, "query") for node in grid.get_node_ids()]
        found.append(len(list(grid.send_and_receive(sent, timeout=0.04))))
        again = [Message(RecordDict(), sent[0].metadata.dst_node_id, "query", ttl=0.03)]
        found.append([reply.has_error() for reply in grid.send_and_receive(again)])

    app, client, found = ServerApp(), ClientApp(), []
    app.main()(main)
    client.query()(sleepy)
    result = simulate(app, client, nodes=3, real_time=real_time)
    said = [line for line in summary(result, 3) if "by the wall clock" in line]
    if real_time:
        # Node 0 is late, and when it is asked again it is still at the first.
        assert (found, said) == ([2, [True]], [])
        assert result.exchanges[0].due == pytest.approx(result.exchanges[0].seconds, abs=1e-6)
    else:
        assert found == [3, [False]]
        assert said == [
            "2 replies took longer than the timeout of 0.03 s by the wall clock, and were counted all the same; "
            "--real-time leaves such replies out"
        ]


def test_what_the_server_app_raises_is_raised():
    app = ServerApp()

    @app.main()
    def main(grid, context):
        random.random()
        for node in grid.get_node_ids():
            grid.send_and_receive([Message(RecordDict(), node, "query")])  # for which the client has no function
        raise LookupError("the app's own trouble")

    state = random.getstate()
    with pytest.raises(LookupError, match="own trouble") as raised:
        simulate(app, pull(), nodes=2)
    assert random.getstate() == state
    (note,) = raised.value.__notes__
    assert note.startswith("2 replies are errors; the first, of partition 0: ValueError: No query function registered")


@pytest.mark.usefixtures("forked_workers")
def test_the_quickstart_is_the_same_in_this_process_and_in_a_worker(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = {path: path.read_bytes() for path in (APPS / "quickstart").rglob("*") if path.is_file()}
    models = []
    for kwargs in ({}, {"workers": 1}, {"seed": 1}):
        result = run_folder("quickstart", "num-server-rounds=3", **kwargs)
        models.append(torch.load(tmp_path / "final_model.pt"))
        # 3 of 6 nodes train, all evaluate.
        assert [exchange.message_type for exchange in result.exchanges] == (["train"] * 3 + ["evaluate"] * 6) * 3
        accuracies = [metrics["accuracy"] for metrics in result.history["server"].values()]
        assert len(accuracies) == 4
        assert accuracies[-1] > accuracies[0] + 0.1
        assert result.history["evaluate"][3]["accuracy"] == pytest.approx(accuracies[-1], abs=1e-6)
    for name, tensor in models[0].items():
        assert torch.equal(tensor, models[1][name]), name
        assert not torch.equal(tensor, models[2][name]), name
    after = {path: path.read_bytes() for path in before}
    assert after == before
    assert str(APPS / "quickstart") not in sys.path


@pytest.mark.usefixtures("forked_workers")
def test_workers_that_go_wrong_are_error_replies_of_their_nodes(monkeypatch):
    app = ServerApp()

    @app.main()
    def main(grid, context):
        nodes = list(grid.get_node_ids())
        for asked in (nodes, [*nodes[:1], *nodes[2:4], *nodes[5:]]):
            found.append(grid.send_and_receive([Message(RecordDict(), node, "query") for node in asked]))

    monkeypatch.syspath_prepend(str(APPS))
    found = []
    result = simulate(app, "frail:app", nodes=12, workers=2, call_limit=1.5)
    assert [row for row, reply in enumerate(found[0]) if reply.has_error()] == [1, 2, 3, 4]
    assert [row for row, reply in enumerate(found[1]) if reply.has_error()] == [1, 2]
    died, raised, odd, hung = (found[0][row].error for row in (1, 2, 3, 4))
    assert (died.code, raised.code, odd.code, hung.code) == (8, 2, 2, 8)
    assert died.reason == "a node that ended its process with exit code 7"
    assert hung.reason == "a node that took longer than 1.5 s"
    assert "RuntimeError: out of order" in raised.reason
    assert "Traceback" in raised.reason
    assert "AttributeError: 'str' object has no attribute 'items'" in odd.reason
    for number, replies in enumerate(found):
        good = [reply.content["found"] for reply in replies if not reply.has_error()]
        assert [one["count"] for one in good] == [number + 1] * 8  # what nodes remember is safe from workers that end
        assert len({one["drawn"] for one in good}) == 8
    assert [error.partition for error in result.errors] == [1, 2, 3, 4, 2, 3]


def test_a_client_app_that_no_other_process_finds(monkeypatch):
    complaint = r"^workers = 2: other processes do not find a client app of __main__ or of a function; "
    with pytest.raises(InputError, match=complaint):
        simulate(averaging(), pull(), nodes=2, workers=2)
    app = pull()
    monkeypatch.setattr(sys.modules["__main__"], "an_app", app, raising=False)
    with pytest.raises(InputError, match=complaint):
        place_of(app, 2)
    monkeypatch.setattr(fedsim.flower, "an_app", app, raising=False)
    assert place_of(app, 2) == "fedsim.flower:an_app"


PLACES = {
    "frail": "clientapp = frail: write it as package.module:app",
    "nowhere.at_all:app": "clientapp = nowhere.at_all:app: there is no module nowhere on the path",
    "frail:none": "clientapp = frail:none: frail has no none",
    "frail:not_an_app": "clientapp = frail:not_an_app: this is a int, not a ClientApp",
}


@pytest.mark.parametrize("place", PLACES)
def test_places_without_an_app(place, monkeypatch):
    monkeypatch.syspath_prepend(str(APPS))
    with pytest.raises(InputError) as caught:
        simulate(averaging(), place, nodes=2)
    assert str(caught.value) == PLACES[place]
    with pytest.raises(InputError, match=r"^workers = -1: "):
        simulate(averaging(), pull(), nodes=2, workers=-1)


def test_apps_in_each_others_place():
    with pytest.raises(InputError, match=r"^clientapp = .*: this is a ServerApp, not a ClientApp$"):
        simulate(pull(), averaging(), nodes=2)
    with pytest.raises(InputError, match=r"^serverapp = .*: this is a ClientApp, not a ServerApp$"):
        simulate(pull(), pull(), nodes=2)


IMPORTED = """
import random
from flwr.app import Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
drawn, app = random.random(), ClientApp()
@app.query()
def answer(message, context):
    return Message(RecordDict({"found": MetricRecord({"drawn": drawn})}), reply_to=message)
"""


def test_what_an_app_draws_when_it_is_imported_is_the_seeds(monkeypatch, tmp_path):
    app = ServerApp()

    @app.main()
    def main(grid, context):
        (reply,) = grid.send_and_receive([Message(RecordDict(), grid.get_node_ids()[0], "query")])
        found.append(reply.content["found"]["drawn"])

    (tmp_path / "drawing_app.py").write_text(IMPORTED)
    monkeypatch.syspath_prepend(str(tmp_path))
    found = []
    for seed in (0, 0, 1):
        simulate(app, "drawing_app:app", nodes=1, seed=seed)
    assert found[0] == found[1] != found[2]


def test_legacy_apps_and_mods_run_and_repeat_themselves():
    before = set(threading.enumerate())
    first, again, other = (run_folder("legacy", nodes=6, seed=seed) for seed in (0, 0, 1))
    assert str(first.result) == str(again.result)
    assert first.history == again.history
    assert str(first.result) != str(other.result)
    # Half of 6 train in each of 3 rounds, and all evaluate.
    assert [exchange.message_type for exchange in first.exchanges] == (["train"] * 3 + ["evaluate"] * 6) * 3
    assert list(first.seconds) == [1, 2, 3]
    assert set(first.history["train"][3]) == {"visits", "coin"}
    assert first.history["train"][1]["visits"] == 1.0
    assert [metrics["sent"] for metrics in first.history["server"].values()] == [3] * 4
    assert set(first.history["evaluate"][1]) == {"loss"}
    assert set(threading.enumerate()) <= before


def test_a_legacy_client_that_fails_is_a_failure_of_its_server():
    result = run_folder("legacy", "fail=2", "rounds=1", nodes=6, seed=2)
    fits = [exchange for exchange in result.exchanges if exchange.message_type == "train"]
    assert [exchange.partition for exchange in fits if exchange.error] == [2], "take another seed: 2 must be chosen"
    assert "partition 2 is out of order" in result.errors[0].error
    assert "legacy_app.py" in result.errors[0].error


def test_a_legacy_server_that_waits_for_nodes_is_told_that_none_will_come():
    def server(context):
        model = ndarrays_to_parameters([np.zeros(1)])
        strategy = LegacyFedAvg(min_available_clients=5, min_fit_clients=5, initial_parameters=model)
        return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=1))

    with pytest.raises(StalledError, match="the app waits for 5 nodes and there are 3"):
        simulate(ServerApp(server_fn=server), pull(), nodes=3)


def test_our_own_experiments_come_to_what_they_do_without_flower():
    experiment = tiny()
    expected = fedsim.run(experiment, save=False)
    found = []
    simulate(server_app(experiment, save=False, receive=found.append), client_app(experiment), nodes=3)
    assert torch.equal(found[0].params, expected.params)


def test_a_folder_says_what_is_in_it():
    folder = AppFolder.read(APPS / "quickstart", ["model.hidden=16"])
    assert (folder.server, folder.client) == ("quickstart.server_app:app", "quickstart.client_app:app")
    assert (folder.nodes, folder.run_config["model.hidden"], folder.run_config["local-epochs"]) == (6, 16, 1)
    assert AppFolder.read(APPS / "legacy").nodes is None


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["fedsim", "flower", "run", *map(str, arguments)])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_the_command_runs_a_folder_and_sums_up(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, APPS / "quickstart", "--nodes", 4, "--run-config", "num-server-rounds=1", "--seed", 5) == 0
    said = capsys.readouterr().out.splitlines()
    # Half of 4 nodes train, and all evaluate.
    assert said[0].startswith("4 nodes, 1 rounds, 6 messages in ")
    assert [line.partition(":")[0] for line in said[1:]] == ["train, round 1", "evaluate, round 1", "server, round 1"]
    assert (tmp_path / "final_model.pt").exists()


BAD = {
    "no folder": (["nowhere"], "path = nowhere: Cannot find pyproject.toml in nowhere"),
    "no app": (["empty"], "path = empty: Invalid pyproject.toml: - Missing [tool.flwr.app] section"),
    "an unknown name": (["legacy", "-c", "rate=1"], "run-config = rate=1: Key 'rate' is not present"),
    "no text": (["legacy", "-c", "rounds=many"], "run-config = rounds=many: The provided configuration string is in"),
    "no file": (["legacy", "-c", "no.toml"], "run-config = no.toml: "),
    "no value": (["legacy", "-c", "rounds"], "run-config = rounds: rounds is not name=value"),
    "no node value": (["legacy", "--node-config", "a=1 b"], "node-config = a=1 b: b is not name=value"),
    "a partition": (["legacy", "--node-config", "partition-id=1"], "node-config.partition-id = 1: partitions are"),
    "no nodes": (["legacy", "--nodes", "0"], "Invalid value for '--nodes'"),
    "no name of a module": (["outside"], "serverapp = ../gone:server: write it as package.module:app"),
    "no module": (["moved"], "serverapp = gone:server: there is no module gone on the path"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_code_2(case, monkeypatch, tmp_path, capsys):
    arguments, complaint = BAD[case]
    shutil.copytree(APPS / "legacy", tmp_path / "legacy")
    for name in ("empty", "moved", "outside"):
        (tmp_path / name).mkdir()
    (tmp_path / "empty" / "pyproject.toml").write_text('[project]\nname = "a"\nversion = "1"\n')
    described = (APPS / "legacy" / "pyproject.toml").read_text().replace("legacy_app:server", "gone:server")
    (tmp_path / "moved" / "pyproject.toml").write_text(described.replace("legacy_app:client", "moved_client:app"))
    (tmp_path / "outside" / "pyproject.toml").write_text(described.replace("gone:server", "../gone:server"))
    (tmp_path / "moved" / "moved_client.py").write_text("from flwr.clientapp import ClientApp\napp = ClientApp()\n")
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, *arguments) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert complaint in said


def app_folder(path, server, client):
    path.mkdir()
    described = (APPS / "legacy" / "pyproject.toml").read_text().replace("legacy_app", "own_app")
    (path / "pyproject.toml").write_text(described)
    text = "from flwr.app import Message, RecordDict\nfrom flwr.clientapp import ClientApp\n"
    text += "from flwr.serverapp import ServerApp\nfrom flwr.serverapp.strategy import FedAvg\n"
    text += "server, client = ServerApp(), ClientApp()\n"
    text += f"@server.main()\ndef main(grid, context):\n    {server}\n"
    text += f"@client.query()\ndef answer(message, context):\n    {client}\n"
    (path / "own_app.py").write_text(text)


ASK = "list(grid.send_and_receive(Message(RecordDict(), node, 'query') for node in grid.get_node_ids()))"
FAIL = "raise RuntimeError('broken on purpose')"


ADMITTED = "2 replies are errors; the first, of partition 0: RuntimeError: broken on purpose"
CASES = {
    "server": (FAIL, "pass", "err", "RuntimeError: broken on purpose"),
    "every client": (ASK, FAIL, "out", ADMITTED),
    "client, then server": (f"{ASK}[0].content['found']", FAIL, "err", ADMITTED),
    "client, then server by an exit": (f"{ASK}\n    raise SystemExit(1)", FAIL, "err", ADMITTED),
    "client, then a server that waits": (
        f"{ASK}\n    FedAvg(min_available_nodes=9).start(grid, {{}})", FAIL, "err", ADMITTED
    ),
}  # fmt: skip


@pytest.mark.parametrize(("server", "client", "where", "end"), CASES.values(), ids=list(CASES))
def test_an_app_that_fails_ends_with_exit_code_1_and_tracebacks(
    server, client, where, end, monkeypatch, tmp_path, capsys
):
    app_folder(tmp_path / "app", server, client)
    assert call(monkeypatch, tmp_path / "app", "--nodes", 2) == 1
    said = getattr(capsys.readouterr(), where)
    before, named, after = said.rpartition(end)
    assert named
    if end == ADMITTED:  # and behind it where that was
        assert "own_app.py" in after
    if where == "err" and "FedAvg" not in server:  # and before it what the server has come to
        assert before.startswith("Traceback")
        assert "own_app.py" in before


def test_an_app_that_never_trains_ends_with_exit_code_1_whatever_else_is_answered(monkeypatch, tmp_path, capsys):
    server = f"{ASK}\n    {ASK.replace('query', 'train')}"  # for which the client has no function
    app_folder(tmp_path / "app", server, "return Message(RecordDict(), reply_to=message)")
    assert call(monkeypatch, tmp_path / "app", "--nodes", 2) == 1
    assert "2 replies are errors" in capsys.readouterr().out


def test_a_folder_may_have_packages_of_the_names_of_ours():
    done = subprocess.run(
        [sys.executable, "-m", "fedsim", "flower", "run", ".", "--nodes", "2"],
        cwd=APPS / "folders",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:3] == ["here is 0", "here is 1", "was sent 'fedavg'"]


def test_results_are_values():
    result = simulate(averaging(rounds=1), pull(), nodes=2)
    assert isinstance(result, AppResult)
    lines = summary(result, 2)
    assert lines[1:] == ["train, round 1: distance 0.5000", "evaluate, round 1: model 0.2500"]
