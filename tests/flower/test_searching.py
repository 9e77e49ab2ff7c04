"""Our zeroth-order clients in an app with a function of its own come to what they do in one process."""

import importlib
import pickle
import re
import sys
from functools import partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from apps.own.running import start
from contract import ALL, FEDES, ROWS
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

import fedsim
from fedsim.core import plugins
from fedsim.core.errors import InputError
from fedsim.core.streams import Streams
from fedsim.engine.executor import Executor
from fedsim.engine.job import JobResult, gathered
from fedsim.engine.virtual import VirtualEngine
from fedsim.exchange.messages import Order
from fedsim.flower import as_flower_strategy, simulate
from fedsim.flower.local import searcher
from fedsim.flower.mods import identify
from fedsim.flower.replies import RefusedError
from fedsim.flower.searching import MEMORY, Search
from fedsim.flower.serving.engine import AppEngine
from fedsim.flower.serving.problem import AppProblem
from fedsim.nets.stack import Layout
from fedsim.running.build import build_fleet, build_simulation

pytestmark = pytest.mark.usefixtures("local_flower")

ROOT = Path(__file__).parents[2]
CENTRES = np.array([[0.2, 0.7, 0.4], [0.6, 0.1, 0.9], [0.5, 0.3, 0.3], [0.9, 0.8, 0.1]])
BOX = (0.0, 1.0)


def squares(points, context):
    """(x - c)^2 of the partition's c, and a wave, so that no method is done at once."""
    away = points - torch.from_numpy(CENTRES[context.node_config["partition-id"]]).to(points.dtype)
    return (away**2).sum(1) + 0.1 * torch.cos(5.0 * away).sum(1)


def context_of(partition, partitions=4):
    config = {"partition-id": partition, "num-partitions": partitions}
    return Context(1, 1000 + 7 * partition, config, RecordDict(), {})


def sent(content, kind, node=1000):
    message = Message(content, dst_node_id=node, message_type=kind)
    message.metadata.__dict__["_message_id"] = "1"
    return pickle.loads(pickle.dumps(message))


def app_of(client, function=squares, **options):
    app = ClientApp()
    searcher(app, client, function, **options)
    return app


class ByMessages(Executor):
    """An executor that sends a message to an app for each client; as bytes, as they cross a network."""

    def begin(self, app, search):
        self.app, self.search = app, search
        self.contexts = [context_of(partition) for partition in range(self.problem.num_clients)]
        self.sent = 0

    def execute(self, job):
        if not len(job):
            return self.search.asked(job.orders[0]).nothing
        rows = [
            self.ask(job.orders[0 if job.origin is None else job.origin[row]], client)
            for row, client in enumerate(job.clients.tolist())
        ]
        order = torch.arange(len(rows))
        numbers = (torch.cat([getattr(row, name) for row in rows]) for name in ("finite", "nbytes", "queries"))
        payload, metrics = (gathered([getattr(row, name) for row in rows], order) for name in ("payload", "metrics"))
        return JobResult(payload, metrics, *numbers)

    def ask(self, orders, client):
        place = orders.clients.tolist().index(client)
        content = self.search.questions(orders, self.problem.num_clients)[place]
        context = pickle.loads(pickle.dumps(self.contexts[client]))
        reply = pickle.loads(pickle.dumps(self.app(sent(content, "query.search"), context)))
        self.contexts[client] = context
        self.sent += 1
        return self.search.answer(reply.content, orders)


def problem_of(dtype=torch.float64, on_error="stop", function=squares, bounds=BOX):
    functions = [partial(function, context=context_of(number)) for number in range(len(CENTRES))]
    return fedsim.black_box(
        functions, dimension=3, kind="vectorised", bounds=bounds, start=0.5, dtype=dtype, on_error=on_error
    )


def experiment_of(row, **tables):
    return fedsim.experiment(
        name="search", seed=3, rounds=4, selection={"kind": "uniform", "count": 3},
        evaluation={"every": 1, "clients": False}, **row, **tables,
    )  # fmt: skip


def by_messages(experiment, problem, rounds=None, **options):
    app = app_of(experiment.client, options.pop("function", squares), bounds=BOX, **options)
    search = Search(experiment.strategy, experiment.client, problem.initial(), experiment.seed)
    executor = ByMessages(problem, experiment.client, Streams(experiment.seed))
    executor.begin(app, search)
    engine = VirtualEngine(executor, experiment.aggregation, build_fleet(experiment, problem))
    simulation = build_simulation(experiment, problem, lambda *_: engine)
    rows = list(islice(simulation, rounds))
    return simulation, rows, executor


def whole(row):
    """A row of the contract whose client asks about everything, as it does on black boxes, in small steps."""
    client = {name: value for name, value in row["client"].items() if name != "batch_size"}
    if "lr" in client:
        client["lr"] = 0.02
    return {**row, "client": client}


NAMES = (
    "fedzo", "fedzo_guard", "fzoos", "fzoos_guard", "scaffold_zo", "scaffold_zo_average", "fedes", "fedes_losses",
    "decomfl", "decomfl_forward", "fedkseed", "fedkseed_dense", "fedkseed_pro", "one_byte", "one_byte_sign",
    "one_byte_float",
)  # fmt: skip
CASES = {name: whole(ROWS[name]) for name in NAMES} | {"cma_es": {"strategy": "cma_es", "client": "values"}}
COLUMNS = ("clients", "failed", "bytes_up", "bytes_down", "queries", "extra_queries")


@pytest.mark.parametrize("name", CASES)
def test_over_messages_a_search_is_that_of_one_process(name):
    """Windows, logs and memories that differ from client to client: nodes have whatever was drawn for whom."""
    experiment = experiment_of(CASES[name])
    ours = fedsim.run(experiment, problem=problem_of(), save=False)
    theirs, rows, executor = by_messages(experiment, problem_of())
    assert (ours.params - ours.problem.initial()).norm() > 1e-4, "nothing was learnt, so nothing is compared"
    assert executor.sent >= 12
    torch.testing.assert_close(theirs.params, ours.params, rtol=0.0, atol=0.0)
    for column in (*COLUMNS, "train_loss"):
        assert [row.get(column) for row in rows] == list(ours.history[column]), column


def test_evaluations_that_fail_and_single_precision_are_those_of_one_process():
    def fails(points, context):
        if context.node_config["partition-id"] == 1:
            raise RuntimeError("no value today")
        return torch.where(points[:, 0] > 0.55, torch.nan, squares(points, context))

    experiment = experiment_of(whole(ROWS["fedes"]), engine={"precision": "float32"})
    both = [problem_of(torch.float32, "nan", fails) for _ in range(2)]
    ours = fedsim.run(experiment, problem=both[0], save=False)
    theirs, rows, _ = by_messages(experiment, both[1], function=fails, on_error="nan")
    assert sum(ours.history["failed"]) > 0
    assert sum(ours.history["failed_queries"]) > 30
    assert theirs.params.dtype == torch.float32
    torch.testing.assert_close(theirs.params, ours.params, rtol=0.0, atol=0.0)
    for column in (*COLUMNS, "failed_queries"):
        assert [row[column] for row in rows] == list(ours.history[column]), column


@pytest.mark.parametrize("name", ["decomfl", "fedes_losses", "fedkseed", "one_byte", "one_byte_float"])
def test_clients_that_have_forgotten_begin_again(name):
    """As if they had not, to the last bit: what they lack is sent again."""
    experiment = experiment_of(CASES[name])
    ours = fedsim.run(experiment, problem=problem_of(), save=False)
    for forgetful in ([0, 1, 2, 3], [2]):
        simulation, rows, executor = by_messages(experiment, problem_of(), rounds=2)
        for client in forgetful:
            executor.contexts[client] = context_of(client)
        server = simulation._server
        state = experiment.strategy.forget(server.state, torch.tensor(forgetful))
        simulation._server = server._replace(state=state)
        assert len([*rows, *simulation]) == 4
        torch.testing.assert_close(simulation.params, ours.params, rtol=0.0, atol=0.0)


def test_a_node_in_anothers_place_has_forgotten_what_that_knew():
    grid = SimpleNamespace(ids=[11, 12, 13], get_node_ids=lambda: grid.ids)
    clock = SimpleNamespace(real=False, read=lambda: 0, start=lambda tick: None)
    problem = AppProblem(torch.zeros(2), Layout.flat(2))
    engine = AppEngine(grid, clock, problem, None, None, Streams(0), identify=True)
    engine.register._said = {11: 0, 12: 1, 13: 2, 14: 1}
    engine.meet()
    assert problem.renewed == set()
    grid.ids = [11, 13]
    engine.meet()
    grid.ids = [11, 14, 13]  # whoever was 12 is back, under another name
    engine.meet()
    assert problem.renewed == {1}


def test_a_search_goes_on_where_its_server_was_killed(tmp_path):
    """In a new run, whose nodes remember nothing of the old one."""

    def searched(rounds, end=None, folder=None):
        def evaluate(number, arrays):
            if number == end:
                raise RuntimeError("the machine is gone")

        app = app_of("decomfl")
        identify(app)
        named = {"checkpoint": folder, "checkpoint_every": 1, "fraction_evaluate": 0.0}
        strategy = as_flower_strategy({"kind": "decomfl", "lr": 0.1}, client="decomfl", seed=3, identify=True, **named)
        initial = ArrayRecord([np.full(3, 0.5)])
        return start(strategy, app, initial, rounds=rounds, evaluate_fn=evaluate).arrays["0"].numpy()

    with pytest.raises(RuntimeError, match="the machine is gone"):
        searched(5, end=3, folder=tmp_path / "run")
    found = searched(5, folder=tmp_path / "run")
    assert found.tobytes() == searched(5).tobytes()
    assert abs(found - 0.5).max() > 1e-3


@pytest.fixture
def example(monkeypatch):
    """The modules of the example app, whose folder is where Python looks for them meanwhile."""
    monkeypatch.syspath_prepend(str(ROOT / "experiments" / "flower_apps" / "search"))
    before = set(sys.modules)
    yield importlib.import_module("search.task")
    for name in set(sys.modules) - before:
        if name.partition(".")[0] == "search":
            del sys.modules[name]


@pytest.mark.parametrize("method", ["fedes", "fedzo", "scaffold_zo", "decomfl", "fedkseed", "one_byte", "fzoos"])
def test_the_example_app_under_our_strategies_is_a_run_in_one_process(example, method):
    config = {"method": method, "rounds": 3, "dimension": 4, "noise": 0.01, "seed": 5}
    theirs = simulate("search.server_app:app", "search.client_app:app", 3, run_config=config)
    assert theirs.errors == []
    nodes = [Context(1, 1, {"partition-id": number}, RecordDict(), config) for number in range(3)]
    functions = [partial(example.cost, context=node) for node in nodes]
    problem = fedsim.black_box(functions, dimension=4, kind="numpy", bounds=example.BOX, start=0.2)
    strategy, client = example.METHODS[method]
    ours = fedsim.run(
        fedsim.experiment(name="example", seed=5, rounds=3, strategy=strategy, client=client, selection=ALL),
        problem=problem,
        save=False,
    )
    assert (ours.params - 0.2).norm() > 1e-3
    np.testing.assert_allclose(theirs.result.arrays["0"].numpy(), ours.params.numpy(), rtol=0.0, atol=1e-12)
    server = theirs.result.evaluate_metrics_serverapp
    assert server[3]["value"] < server[0]["value"]


@pytest.mark.parametrize("method", ["fedzo", "cma_es"])
def test_a_server_that_does_not_know_the_client_sends_what_any_app_understands(method):
    """The model to train, or candidates to tell values of; draws are those of one process all the same."""
    row = {**CASES[method], "selection": ALL}
    app = app_of(row["client"], seed=3)
    identify(app)
    initial = ArrayRecord([np.full((1, 2), 0.5), np.full(1, 0.5)])
    theirs = start(as_flower_strategy(row["strategy"], seed=3, identify=True), app, initial, rounds=4)
    ours = fedsim.run(fedsim.experiment(name="s", seed=3, rounds=4, **row), problem=problem_of(bounds=None), save=False)
    assert (ours.params - 0.5).norm() > 1e-3
    found = np.concatenate([array.numpy().reshape(-1) for array in theirs.arrays.values()])
    np.testing.assert_allclose(found, ours.params.numpy(), rtol=0.0, atol=1e-9)


def model_of(dtype=np.float32):
    """A model of three numbers in two arrays, and a count."""
    arrays = {"w": np.array([[0.3], [0.4]], dtype), "steps": np.array(7), "b": np.array(0.5, dtype)}
    return ArrayRecord({name: Array(values) for name, values in arrays.items()})


def test_a_client_that_needs_the_model_alone_trains_it():
    """Draws are named by the seed, the partition and the round: those of client 2 in round 3 of a run."""
    client = plugins.make("clients", whole(ROWS["fedzo_sgd"])["client"], "client")
    app = app_of(client, bounds=BOX, seed=3)
    content = RecordDict({"model": model_of(), "settings": ConfigRecord({"server-round": 3, "lr": 0.1})})
    reply = app(sent(content, "train"), context_of(2)).content
    problem = problem_of(torch.float32)
    executor = Executor(problem, client, Streams(3))
    order = Order("train", torch.tensor([2]), {"params": torch.tensor([0.3, 0.4, 0.5])}, round=2)
    ours = executor.execute(executor.assign(order))
    assert ours.payload["delta"].norm() > 0.002
    found = {name: array.numpy() for name, array in reply["model"].items()}
    assert [(name, one.dtype, one.shape) for name, one in found.items()] == [
        ("w", np.float32, (2, 1)), ("steps", np.int64, ()), ("b", np.float32, ()),
    ]  # fmt: skip
    assert found["steps"] == 7
    y = (order.payload["params"] + ours.payload["delta"][0]).numpy()
    assert [*found["w"][:, 0], found["b"]] == list(y)
    assert dict(reply["metrics"]) == {"num-examples": 1, "train_loss": float(ours.metrics["loss"][0])}


@pytest.mark.parametrize("kind", ["vectorised", "numpy", "scalar"])
def test_values_at_candidates_and_at_the_model(kind):
    # Of partition 1 the function is sum(x) + 10: at (1, 2, 3), (4, 5, 6) and (0, 0, 0) that is 16, 25 and 10.
    def total(points, context):
        assert isinstance(points, torch.Tensor if kind == "vectorised" else np.ndarray)
        return points.sum(0 if kind == "scalar" else 1) + 10.0 * context.node_config["partition-id"]

    app = app_of("values", total, kind=kind)
    w, b = np.array([[[1.0], [2.0]], [[4.0], [5.0]], [[0.0], [0.0]]]), np.array([3.0, 6.0, 0.0])
    content = RecordDict({"candidates": ArrayRecord({"w": Array(w), "b": Array(b)})})
    metrics = dict(app(sent(content, "query"), context_of(1)).content["metrics"])
    assert metrics == {"num-examples": 1, "values": [16.0, 25.0, 10.0]}
    content = RecordDict({"arrays": model_of(np.float64), "config": ConfigRecord({"server-round": 1})})
    metrics = dict(app(sent(content, "evaluate"), context_of(1)).content["metrics"])
    assert metrics == {"num-examples": 1, "eval_loss": pytest.approx(11.2)}


@pytest.mark.parametrize("w", [np.zeros((2, 1)), np.zeros(())])
def test_candidates_of_different_numbers_are_refused(w):
    content = RecordDict({"candidates": ArrayRecord({"w": Array(w), "b": Array(np.zeros(3))})})
    with pytest.raises(InputError, match=r"arrays = .*send as many rows of each array"):
        app_of("values")(sent(content, "query"), context_of(1))


def test_what_a_client_remembers_lies_in_its_nodes_state():
    search, orders = fedes_search()
    app, context = app_of("fedes"), context_of(2)
    context.state["state"] = ConfigRecord({"of": "the app"})
    app(sent(search.questions(orders, 4)[1], "query.search"), context)
    assert context.state["state"] == ConfigRecord({"of": "the app"})
    assert {name: array.numpy().tolist() for name, array in context.state[MEMORY].items()} == {
        "clients": [2], "replica": [[0.5, 0.5, 0.5]], "version": [1.0],
    }  # fmt: skip


def fedes_search(dtype=torch.float64):
    """The server's side of FedES, and its first order to clients 0 and 2."""
    strategy = plugins.make("strategies", FEDES["strategy"], "strategy")
    problem = problem_of(dtype)
    state = strategy.seeded(strategy.init(problem), Streams(0))
    return Search(strategy, "fedes", problem.initial(), 0), strategy.ask(state, torch.tensor([0, 2]))[0]


def changed(content, record, **arrays):
    held = {name: array for name, array in content[record].items() if arrays.get(name, 1) is not None}
    made = {name: Array(values) for name, values in arrays.items() if values is not None}
    return RecordDict({**content, record: ArrayRecord({**held, **made})})


def test_an_answer_is_held_to_what_its_client_answers():
    search, orders = fedes_search()
    content = app_of("fedes")(sent(search.questions(orders, 4)[1], "query.search"), context_of(2)).content
    good = search.answer(content, orders)
    assert good.payload["losses"].shape == (1, 6)
    assert good.finite.tolist() == [True]
    assert good.queries.tolist() == [[6, 0, 0]]
    spoilt = np.full((1, 6), np.nan)
    assert search.answer(changed(content, "arrays", losses=spoilt), orders).finite.tolist() == [False]
    for bad, why in (
        (RecordDict(), "it does not say which of the order's clients has answered"),
        (RecordDict({**content, "arrays": ConfigRecord()}), "a record is missing"),
        (changed(content, "arrays", losses=None), "losses is missing"),
        (changed(content, "arrays", delta=np.zeros((1, 3))), "nobody has asked for 'delta'"),
        (changed(content, "arrays", losses=np.zeros((1, 7))), "losses is float64 [1, 7], not float64 [1, 6]"),
        (changed(content, "arrays", losses=np.zeros((1, 6), np.float32)), "losses is float32 [1, 6], not float64"),
        (changed(content, "client-metrics", clients=np.array([1])), "it does not say which of the order's clients"),
        (changed(content, "client-metrics", clients=np.array([0, 2])), "clients: its bytes are not int64 [1]"),
        (changed(content, "client-metrics", queries=np.array([[5, 0, 0]])), "its queries are [5], not 6"),
    ):
        with pytest.raises(RefusedError, match=re.escape(why)):
            search.answer(bad, orders)


def one_argument(points):
    return points.sum(1)


def test_what_cannot_work_is_refused_in_one_line():
    for client, options, why in (
        ({"kind": "sgd", "epochs": 1}, {}, "client.kind = sgd: it needs gradients"),
        ({"kind": "fedes", "batch_size": 4}, {}, "client.batch_size = 4: a black box has no examples"),
        ("fedes", {"kind": "stacked"}, "kind = stacked: name one of"),
        ("fedes", {"function": one_argument}, "function = one_argument: has to take two arguments"),
        ("fedes", {"bounds": (1.0, 0.0)}, "bounds = (1.0, 0.0): give two finite numbers"),
        ("fedes", {"on_error": "go on"}, "on_error = go on: name one of"),
    ):
        with pytest.raises(InputError, match=re.escape(why)):
            app_of(client, **options)
    strategy = plugins.make("strategies", FEDES["strategy"], "strategy")
    with pytest.raises(InputError, match=r"client.kind = decomfl: with strategy fedes it must exchange"):
        Search(strategy, "decomfl", torch.zeros(3), 0)


def test_messages_that_lack_what_names_draws_are_refused():
    app, settings = app_of("fedzo"), ConfigRecord({"server-round": 1})
    nowhere = Context(1, 1, {}, RecordDict(), {})
    two, whole_numbers = {"arrays": model_of(), "config": settings}, ArrayRecord({"n": Array(np.array([1]))})
    for content, context, why in (
        ({"arrays": model_of()}, context_of(0), "server-round = (nothing)"),
        (two, nowhere, "partition-id = None: start the node with"),
        ({"a": model_of(), "b": model_of(), "config": settings}, context_of(0), "message = a, b"),
        ({"arrays": whole_numbers, "config": settings}, context_of(0), "arrays = n: there are no floats"),
    ):
        with pytest.raises(InputError, match=re.escape(why)):
            app(sent(RecordDict(content), "train"), context)


def test_a_client_that_needs_more_than_the_model_cannot_train_it():
    content = RecordDict({"arrays": model_of(), "config": ConfigRecord({"server-round": 1})})
    why = "train = the model alone: lacks antithetic, .*give as_flower_strategy the client"
    with pytest.raises(InputError, match=why):
        app_of("fedes")(sent(content, "train"), context_of(0))


def test_a_nodes_context_may_say_which_client_it_is():
    search, orders = fedes_search()
    question = sent(search.questions(orders, 4)[0], "query.search")
    app, context = app_of(lambda context: {"kind": context.run_config["method"]}), context_of(0)
    context.run_config["method"] = "fedes"
    own = app_of("fedes")(question, context_of(0)).content
    assert app(question, context).content["arrays"]["losses"].data == own["arrays"]["losses"].data
    context.run_config["method"] = "scaffold"
    with pytest.raises(InputError, match=r"client.epochs = None"):
        app(question, context)
