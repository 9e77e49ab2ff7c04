"""Whatever the number of nodes, an experiment on a Flower grid comes to what it does in one process."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import torch
from codes import CHAIN, most
from contract import ROWS
from flwr.app import Array, ArrayRecord, Context, Error, Message, RecordDict
from local_grid import LocalGrid, engine_of, grid_of, partitions, tiny

import fedsim
from fedsim.core.errors import InputError
from fedsim.engine.virtual import VirtualEngine
from fedsim.exchange.aggregation import WeightedMean
from fedsim.exchange.messages import Order
from fedsim.exchange.windows import All
from fedsim.flower import GridError, Recipe, client_app, node, server_app
from fedsim.flower.records import CLIENT_METRICS, SOUND
from fedsim.running.build import build_executor, build_fleet, build_problem, build_simulation
from fedsim.running.simulation import Simulation
from fedsim.running.stored import StoredRun
from fedsim.trackers import CSV

# Sums of the same float32 numbers in the same order: nothing may differ by more than the last bits.
SAME = {"rtol": 0.0, "atol": 1e-6}


pytestmark = pytest.mark.usefixtures("local_flower")


def simulated(experiment, problem, engine) -> Simulation:
    return build_simulation(experiment, problem, lambda *_: engine)


def on_grid(experiment, nodes=2):
    """The experiment's result through both apps."""
    results = []
    app = server_app(experiment, save=False, timeout=5.0, receive=results.append)
    app(grid_of(experiment, nodes), Context(1, 1, {}, RecordDict(), {}))
    return results[0]


@pytest.mark.parametrize("nodes", [1, 2, 3])
@pytest.mark.parametrize("method", [("fedavg", "sgd"), ("scaffold", "scaffold")])
def test_any_number_of_nodes_gives_the_result_of_one_process(method, nodes):
    experiment = tiny(*method)
    ours, theirs = fedsim.run(experiment, save=False), on_grid(experiment, nodes)
    start = ours.problem.initial()
    assert (ours.params - start).norm() > 0.1, "nothing was learnt, so nothing is compared"
    torch.testing.assert_close(theirs.params, ours.params, **SAME)
    for name in ("clients", "failed", "bytes_up", "bytes_down", "train_loss", "test_accuracy"):
        assert theirs.history[name] == pytest.approx(ours.history[name], abs=1e-6), name
    assert theirs.status == "finished"


@pytest.mark.parametrize("nodes", [1, 3])
@pytest.mark.parametrize("code", [{"kind": "gc", "stragglers": 2}, {"kind": "m_sgc", "most": 2}])
def test_codes_are_those_of_one_process(code, nodes):
    """Nobody is left out: how long a node takes is not known."""
    strategy = {"kind": "gradient_coding", "code": code, "server_lr": 1.0, "patience": 1e6}
    experiment = tiny(strategy, {"kind": "gradient_coding"}, selection={"kind": "uniform", "fraction": 1.0})
    ours, theirs = fedsim.run(experiment, save=False), on_grid(experiment, nodes)
    assert (ours.params - ours.problem.initial()).norm() > 0.1
    torch.testing.assert_close(theirs.params, ours.params, **SAME)
    assert theirs.history["bytes_up"] == ours.history["bytes_up"]


def test_running_statistics_are_those_of_one_process():
    model = {"kind": "mlp", "hidden": [8], "norm": "batch"}
    problem = {"dataset": "digits", "model": model, "normalisation": {"statistics": "pooled"}}
    experiment = tiny(rounds=2, problem=problem)
    ours, theirs = fedsim.run(experiment, save=False), on_grid(experiment)
    assert (ours.params - ours.problem.initial())[-16:].abs().min() > 0, "no statistic has moved"
    torch.testing.assert_close(theirs.params, ours.params, **SAME)
    assert theirs.history["bytes_up"] == ours.history["bytes_up"]


@pytest.mark.parametrize("nodes", [1, 3])
@pytest.mark.parametrize(
    "row",
    ["fedzo_guard", "fedzo_batches", "fzoos", "fzoos_guard", "scaffold_zo", "one_byte", "fedkseed", "fedes", "fedcbo"],
)
def test_rounds_of_questions_are_those_of_one_process(row, nodes):
    """Several windows a round, states and logs that differ from client to client, and what was asked."""
    experiment = fedsim.experiment(**tiny(rounds=3).resolved() | ROWS[row])
    ours, theirs = fedsim.run(experiment, save=False), on_grid(experiment, nodes)
    assert (ours.params - ours.problem.initial()).norm() > 1e-3
    torch.testing.assert_close(theirs.params, ours.params, **SAME)
    counted = ("clients", "failed", "bytes_up", "bytes_down", "queries", "extra_queries")
    assert sum(ours.history["queries"]) > 0
    for name in (*counted, "train_loss", "test_accuracy"):
        assert theirs.history[name] == pytest.approx(ours.history[name], abs=1e-6), name


def test_a_server_distils_the_models_of_its_nodes_as_those_of_one_process():
    """Nodes leave out the examples that are public, too."""
    tables = tiny(rounds=2).resolved() | {"strategy": {"kind": "feddf", "steps": 5, "lr": 0.01}}
    tables["problem"] = tables["problem"] | {"public": {"kind": "held_out", "examples": 200}}
    experiment = fedsim.experiment(**tables)
    ours, theirs = fedsim.run(experiment, save=False), on_grid(experiment, 3)
    torch.testing.assert_close(theirs.params, ours.params, **SAME)
    for name in ("bytes_up", "distillation_loss"):
        assert theirs.history[name] == pytest.approx(ours.history[name], rel=1e-5), name


@pytest.mark.parametrize("nodes", [1, 3])
def test_what_codes_take_is_counted_where_it_crosses(nodes):
    """Bytes that differ from client to client, and what each owes to the next round."""
    experiment = tiny(transforms=CHAIN, order_transforms=[CHAIN[1]])
    ours, theirs = fedsim.run(experiment, save=False), on_grid(experiment, nodes)
    torch.testing.assert_close(theirs.params, ours.params, **SAME)
    d, sent = ours.problem.dimension, ours.history["bytes_up"]
    assert len(set(sent)) == 4
    assert max(sent) < 4 * most(d, 32)
    assert theirs.history["bytes_up"] == sent
    assert theirs.history["bytes_down"] == ours.history["bytes_down"] == [4 * (d + 4)] * 4


@pytest.mark.parametrize(("nodes", "client"), [(1, {}), (3, {"kind": "fedrep", "head_epochs": 1})])
def test_what_stays_with_clients_stays_on_their_nodes_and_is_judged_as_in_one_process(nodes, client):
    dealt = {"kind": "iid", "clients": 8, "holdout": 0.2, "validation": 0.2, "newcomers": 0.1}
    judging = {"on": ["test", "validation"], "finetune": {"epochs": 1, "batch_size": 4}}
    tables = tiny().resolved() | {"partition": dealt, "evaluation": judging}
    tables["client"] = {"kind": "sgd", "epochs": 1, "batch_size": 32, "lr": 0.1} | client
    tables["problem"] = tables["problem"] | {"shared": "body"}
    experiment = fedsim.experiment(**tables)
    grid, results = grid_of(experiment, nodes), []
    server_app(experiment, save=False, timeout=5.0, receive=results.append)(grid, Context(1, 1, {}, RecordDict(), {}))
    ours, theirs = fedsim.run(experiment, save=False), results[0]
    assert ours.problem.dimension == 64 * 8 + 8
    judged = ("personal_loss", "personal_accuracy", "validation_personal_loss", "newcomer_loss")
    for name in ("clients", "bytes_up", "bytes_down", *judged, "personal_untrained"):
        assert theirs.history[name] == pytest.approx(ours.history[name], abs=1e-6), name
    torch.testing.assert_close(theirs.own.tensors(), ours.own.tensors(), **SAME)
    sent = [message for message in grid.seen if message.metadata.message_type == "train"]
    assert {array.shape for message in sent for array in message.content["arrays"].values()} == {(64 * 8 + 8,)}


@pytest.mark.parametrize(("strategy", "client"), [("ifca", "ifca"), ("fedavg", "fedala"), ("push_sum", "push_sum")])
def test_models_of_the_clients_own_are_those_of_one_process(strategy, client):
    problem = {"dataset": {"kind": "shifted_digits", "clients": 7}, "model": {"kind": "mlp", "hidden": [8]}}
    everybody = {"kind": "uniform", "fraction": 1.0}
    experiment = tiny(strategy, client, lr=0.5, problem=problem, partition="natural", selection=everybody)
    ours, theirs = fedsim.run(experiment, save=False), on_grid(experiment, 2)
    own = ours.own.tensors()
    assert (own["1.weight"] - own["1.weight"][:1]).norm() > 0.1, "all have the same model"
    torch.testing.assert_close(theirs.own.tensors(), own, **SAME)
    judged = ("bytes_up", "bytes_down", "train_loss", "personal_loss", "personal_accuracy", "personal_untrained")
    for name in (*judged, *(("clusters_used", "cluster_0") if strategy == "ifca" else ("test_accuracy",))):
        assert theirs.history[name] == pytest.approx(ours.history[name], abs=1e-6), name


@pytest.mark.parametrize("nodes", [1, 3])
@pytest.mark.parametrize("method", ["local", "fedproto"])
def test_models_that_do_not_cross_are_those_of_one_process(method, nodes):
    """Where nothing crosses, and where prototypes do, by which clients are judged."""
    tables = tiny(method, method).resolved() | {"partition": {"kind": "iid", "clients": 7, "holdout": 0.2}}
    experiment = fedsim.experiment(**tables | {"evaluation": {"every": 1}})
    ours, theirs = fedsim.run(experiment, save=False), on_grid(experiment, nodes)
    for name in ("clients", "bytes_up", "bytes_down", "personal_loss", "personal_accuracy", "personal_untrained"):
        assert theirs.history[name] == pytest.approx(ours.history[name], abs=1e-6), name
    torch.testing.assert_close(theirs.own.tensors(), ours.own.tensors(), **SAME)
    assert (ours.own.tensors()["1.weight"] - ours.own.tensors()["1.weight"][0]).abs().max() > 1e-3


def test_who_has_nothing_to_send_says_whether_it_has_failed():
    class Broken(LocalGrid):
        def reply(self, message, context):
            reply = super().reply(message, context)
            if message.metadata.message_type == "train" and context.node_config["partition-id"] == 1:
                held = dict(reply.content[CLIENT_METRICS].items())
                assert held[SOUND].numpy().tolist() == [True, True]
                held[SOUND] = Array(np.array([True, False]))
                reply.content[CLIENT_METRICS] = ArrayRecord(held)
            return reply

    experiment = tiny("local", "local", partition={"kind": "iid", "clients": 7, "holdout": 0.2})
    engine = engine_of(experiment, Broken(client_app(experiment), partitions(2)))
    engine.submit(Order("train", torch.tensor([0, 1, 2, 3]), {}))
    replies = engine.collect(All(), 0)
    assert replies.clients.tolist() == [0, 1, 2]
    assert replies.failed.tolist() == [3]
    assert (engine.ledger.clients, engine.ledger.failed, engine.ledger.bytes_up) == (4, 1, 0)


@pytest.mark.parametrize("row", ["ditto", "pfedme", "apfl"])
def test_models_of_their_own_are_judged_as_in_one_process(row):
    dealt = {"kind": "iid", "clients": 7, "holdout": 0.2}
    experiment = fedsim.experiment(**tiny().resolved() | {"partition": dealt, "client": ROWS[row]["client"]})
    ours, theirs = fedsim.run(experiment, save=False), on_grid(experiment, 3)
    for name in ("bytes_up", "bytes_down", "personal_loss", "client_loss", "personal_untrained"):
        assert theirs.history[name] == pytest.approx(ours.history[name], abs=1e-6), name
    assert ours.history["personal_loss"] != pytest.approx(ours.history["client_loss"], abs=1e-4)
    torch.testing.assert_close(theirs.own.tensors(), ours.own.tensors(), **SAME)


def test_clients_state_is_needed_for_that():
    # Without the control variates in the context every round would begin from zero ones.
    experiment = tiny("scaffold", "scaffold")
    grid = grid_of(experiment)
    forget = grid.deliver

    def deliver(message):
        name = forget(message)
        for context in grid.contexts.values():
            context.state = RecordDict()
        return name

    grid.deliver = deliver
    results = []
    app = server_app(experiment, save=False, timeout=5.0, receive=results.append)
    app(grid, Context(1, 1, {}, RecordDict(), {}))
    assert (results[0].params - fedsim.run(experiment, save=False).params).abs().max() > 1e-3


def test_a_node_keeps_the_state_of_its_own_clients_only():
    grid = grid_of(experiment := tiny("scaffold", "scaffold"))
    engine = engine_of(experiment, grid)
    problem = engine.executor.problem
    payload = {"params": problem.initial(), "control": torch.zeros(problem.dimension)}
    engine.submit(Order("train", torch.tensor([0, 2, 3, 5]), payload))
    assert (engine.in_flight, engine.free().mask.nonzero()[0].tolist()) == (4, [1, 4, 6])
    engine.collect(All(), 0)
    assert (engine.in_flight, engine.free().count) == (0, 7)
    held = {
        context.node_config["partition-id"]: context.state["state"]["clients"].numpy().tolist()
        for context in grid.contexts.values()
    }
    assert {partition: sorted(clients) for partition, clients in held.items()} == {0: [0, 2], 1: [3, 5]}


def test_an_order_is_one_train_message_a_node_in_flowers_words():
    grid = grid_of(experiment := tiny(), 3)
    engine = engine_of(experiment, grid)
    grid.seen.clear()
    engine.submit(Order("train", torch.tensor([1, 4]), {"params": engine.executor.problem.initial()}, {"mu": 0.5}, 2))
    (message,) = grid.seen  # 1 and 4 are both partition 1 of 3
    assert (message.metadata.message_type, message.metadata.group_id) == ("train", "3")
    content = message.content
    assert dict(content["config"]) == {"server-round": 3, "mu": 0.5}
    assert dict(content["order"]) == {"action": "train", "clients": [1, 4], "turn": 2, "late": "cancel"}
    assert list(content["arrays"]) == ["params"]
    (reply,) = grid.replies.values()
    assert reply.content["metrics"]["num-examples"] == int(engine.executor.problem.sizes[[1, 4]].sum())
    assert reply.content["arrays"]["delta"].shape == (2, engine.executor.problem.dimension)


@pytest.mark.parametrize("engine", ["grid", "process"])
def test_a_snapshot_is_resumed_on_other_nodes_and_in_one_process(engine):
    experiment = tiny("scaffold", "scaffold")
    problem = build_problem(experiment)
    whole = simulated(experiment, problem, engine_of(experiment, grid_of(experiment, 2), problem))
    for _ in range(2):
        whole.step()
    saved = whole.snapshot()
    expected = [whole.step(), whole.step()]
    other = (
        engine_of(experiment, grid_of(experiment, 3), problem)
        if engine == "grid"
        else VirtualEngine(build_executor(experiment, problem), WeightedMean(), build_fleet(experiment, problem))
    )
    resumed = simulated(experiment, problem, other)
    resumed.step()  # what it remembers from here must be forgotten
    resumed.restore(saved)
    rows = [resumed.step(), resumed.step()]
    torch.testing.assert_close(resumed.state.params, whole.state.params, **SAME)
    assert [row["bytes_up"] for row in rows] == [row["bytes_up"] for row in expected]
    assert [row["round"] for row in rows] == [3, 4]


def test_a_snapshot_between_rounds_only():
    engine = engine_of(experiment := tiny(), grid_of(experiment))
    orders = Order("train", torch.tensor([1]), {"params": engine.executor.problem.initial()})
    with pytest.raises(GridError, match="submit one first"):
        engine.collect(All(), 0)
    engine.submit(orders)
    with pytest.raises(GridError, match=r"^1 clients are at work .* between synchronous rounds"):
        engine.snapshot()


def test_updates_that_are_not_finite_are_left_out_and_counted():
    class Broken(LocalGrid):
        def reply(self, message, context):
            reply = super().reply(message, context)
            if message.metadata.message_type == "train" and context.node_config["partition-id"] == 1:
                rows = reply.content["arrays"]["delta"].numpy()
                rows[1, 5] = float("nan")  # the second of 1, 3
                reply.content["arrays"] = ArrayRecord({"delta": Array(rows)})
            return reply

    experiment = tiny()
    engine = engine_of(experiment, Broken(client_app(experiment), partitions(2)))
    engine.submit(Order("train", torch.tensor([0, 1, 2, 3]), {"params": engine.executor.problem.initial()}))
    replies = engine.collect(All(), 0)
    assert replies.clients.tolist() == [0, 1, 2]
    assert replies.failed.tolist() == [3]
    assert replies.payload["delta"].shape == (3, engine.executor.problem.dimension)
    assert (engine.ledger.clients, engine.ledger.failed) == (4, 1)
    assert engine.ledger.bytes_up == 4 * 4 * engine.executor.problem.dimension  # four float32 vectors arrived


def test_robust_aggregators_work_on_a_grid():
    experiment = tiny(aggregation="median")
    ours = fedsim.run(experiment, save=False)
    torch.testing.assert_close(on_grid(experiment).params, ours.params, **SAME)
    assert (ours.params - fedsim.run(tiny(), save=False).params).abs().max() > 1e-3


def test_an_exception_on_a_node_arrives_with_its_traceback(monkeypatch):
    def fail(*_):
        raise RuntimeError("the battery is empty")

    grid = grid_of(experiment := tiny())
    engine = engine_of(experiment, grid)
    monkeypatch.setattr(node, "tensors", fail)
    engine.submit(Order("train", torch.tensor([1]), {"params": engine.executor.problem.initial()}))
    with pytest.raises(GridError, match=r"^partition 1 has failed: RuntimeError: the battery is empty\nTraceback"):
        engine.collect(All(), 0)
    monkeypatch.setattr(node, "build_problem", fail)
    node._node.cache_clear()
    with pytest.raises(GridError, match=r"RuntimeError: the battery is empty\nTraceback") as caught:
        engine_of(experiment, grid_of(experiment))
    assert "in introduce" in str(caught.value)


def test_errors_of_flower_itself_are_reported():
    class Lost(LocalGrid):
        def reply(self, message, context):
            return Message(Error(code=5, reason="Node Unavailable"), reply_to=message)

    with pytest.raises(GridError, match=r"^node 10\d\d has failed: Node Unavailable"):
        engine_of(experiment := tiny(), Lost(client_app(experiment), partitions(2)))


def test_messages_that_flower_does_not_take_are_an_error():
    class Full(LocalGrid):
        def push_messages(self, messages):
            return [""] * len(list(messages))

    with pytest.raises(GridError, match="Flower took 0 of 2 messages"):
        engine_of(experiment := tiny(), Full(client_app(experiment), partitions(2)))


def test_silence_ends_after_the_timeout():
    class Silent(LocalGrid):
        def pull_messages(self, message_ids):
            return []

    experiment = tiny()
    with pytest.raises(GridError, match=r"no reply within 0.02 s from node 1000, 1007"):
        engine_of(experiment, Silent(client_app(experiment), partitions(2)), timeout=0.02)


def test_nodes_that_come_late_are_waited_for():
    class Slow(LocalGrid):
        def get_node_ids(self):
            found = list(super().get_node_ids())
            self.late.clear()
            return found

    grid = Slow(client_app(experiment := tiny()), partitions(2), late=[1007])
    assert len(engine_of(experiment, grid)._nodes) == 2


@pytest.mark.parametrize(
    ("configs", "complaint"),
    [
        ([{"partition-id": 0, "num-partitions": 2}], r"waited 0.05 s for nodes; missing partitions: \[1\]"),
        ([], "missing partitions: all"),
        (partitions(2) + partitions(2)[:1], "nodes 1000 and 1014 are both partition 1"),
        ([{"partition-id": 2, "num-partitions": 2}], "partition 2 of 2; ids are below 2"),
        (partitions(2)[:1] + partitions(3)[:1], "counts 3 partitions where another counts 2"),
        ([{"num-partitions": 2}], "partition-id = .nothing.: start the node with --node-config"),
    ],
)
def test_partitions_must_be_complete_and_different(configs, complaint):
    experiment = tiny()
    with pytest.raises(GridError, match=complaint):
        engine_of(experiment, LocalGrid(client_app(experiment), configs), timeout=0.05)


@pytest.mark.parametrize("what", ["version", "source"])
def test_another_fedsim_is_refused_before_it_builds_anything(what, monkeypatch):
    own = node.identity()
    monkeypatch.setattr(node, "identity", lambda: own | {what: "9.9"})
    monkeypatch.setattr(node, "build_problem", lambda *_: pytest.fail("it was built"))
    node._node.cache_clear()
    experiment = tiny()
    with pytest.raises(GridError, match=r"has fedsim .*9\.9.*install the same on both"):
        engine_of(experiment, grid_of(experiment))


def test_another_experiment_is_refused():
    with pytest.raises(GridError, match="reads another experiment"):
        engine_of(tiny(), grid_of(tiny(seed=1)))


def test_other_data_are_refused_at_the_meeting():
    problem = build_problem(experiment := tiny())
    problem.sizes = problem.sizes + 1
    with pytest.raises(GridError, match=r"the clients of node 10\d\d have other examples than the server's"):
        engine_of(experiment, grid_of(experiment), problem)


def test_a_diverged_run_is_a_failed_run():
    # A step of 1e30 along the gradient: the second forward pass overflows.
    experiment = tiny(lr=1e30)
    with pytest.raises(fedsim.DivergedError, match=r"not finite|finite; lower"):
        server_app(experiment, save=False)(grid_of(experiment), Context(1, 1, {}, RecordDict(), {}))


def test_run_configuration_names_the_experiment(tmp_path, monkeypatch, capsys):
    config = {
        "experiment": "digits_fedavg.toml",
        "overrides": "rounds=2; partition.clients=6;selection.count=3\nclient.epochs=1; client.batch_size=32",
        "data-dir": "",
        "out": str(tmp_path / "run"),
        "timeout": 5.0,
    }
    server_app()(LocalGrid(client_app(), partitions(2), config), Context(1, 1, {}, RecordDict(), config))
    folder = tmp_path / "run"
    rows = (folder / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == 2
    assert (folder / "model.safetensors").is_file()
    settled = (folder / "config.toml").read_text()
    assert "nodes = 2" in settled
    assert "clients = 6" in settled
    said = capsys.readouterr().out
    assert "round 2/2: train_loss" in said
    assert str(folder) in said


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({}, "experiment = .nothing."),
        ({"experiment": "absent.toml"}, "absent.toml: there is no such file"),
        ({"experiment": "digits_fedavg.toml", "data-dir": "data"}, "data-dir = data: write it absolute"),
        ({"experiment": "digits_fedavg.toml", "overrides": "rounds=0"}, "rounds = 0"),
    ],
)
def test_run_configuration_is_checked(config, complaint):
    with pytest.raises(InputError, match=complaint):
        Recipe.configured(config)


def test_a_nodes_own_data_folder_comes_first():
    config = {"experiment": "digits_fedavg.toml", "data-dir": "/run"}
    assert Recipe.configured(config).data_dir == "/run"
    own = Recipe.configured(config, {"data-dir": "/node"})
    assert own.data_dir == "/node"
    assert own.digest == Recipe.configured(config).digest


def test_a_recipe_is_the_experiment():
    experiment = tiny(transforms=[{"kind": "clip", "max_norm": 2.0}])
    assert Recipe.of(experiment).experiment().resolved() == experiment.resolved()
    assert Recipe.of(tiny(seed=1)).digest != Recipe.of(tiny()).digest


def test_nothing_else_imports_flower(tmp_path):
    code = (
        "import sys, fedsim, fedsim.cli.main\n"
        "sys.argv = ['fedsim', 'run', sys.argv[1], '--set', 'rounds=1', '--out', sys.argv[2]]\n"
        "try: fedsim.cli.main.main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "print([name for name in sys.modules if name.partition('.')[0] in ('flwr', 'ray')])\n"
    )
    file = fedsim_experiment()
    done = subprocess.run(
        [sys.executable, "-c", code, file, str(tmp_path / "run")],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "[]"


def fedsim_experiment():
    from importlib.resources import files

    return str(files("experiments") / "digits_fedavg.toml")


def test_the_server_tells_trackers_of_which_nodes_know_nothing(tmp_path):
    experiment = dataclasses.replace(tiny(rounds=2), track=(CSV(),))
    app = server_app(experiment, out=tmp_path / "run", timeout=5.0, receive=lambda _: None)
    app(grid_of(tiny(rounds=2), 2), Context(1, 1, {}, RecordDict(), {}))
    header, *lines = (tmp_path / "run" / "rows.csv").read_text().splitlines()
    losses = [float(line.split(",")[header.split(",").index("train_loss")]) for line in lines]
    assert losses == StoredRun(tmp_path / "run").history["train_loss"]
