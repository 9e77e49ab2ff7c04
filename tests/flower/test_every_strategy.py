"""Every strategy and every selector of ours in a Flower app comes to what it does in one process, or is refused."""

from functools import partial

import numpy as np
import pytest
import torch
from apps.own import helped, with_sklearn, with_torch
from apps.own.running import start
from contract import ROWS
from flwr.app import Array, ArrayRecord
from flwr.clientapp import ClientApp
from torch import nn

import fedsim
from fedsim.core import plugins
from fedsim.core.clock import SECOND
from fedsim.core.errors import InputError
from fedsim.flower import as_flower_strategy
from fedsim.flower.local import searcher
from fedsim.running.build import build_fleet

NODES, SEED = len(helped.SIZES), 3
TRAINING = {"epochs": helped.STEPS, "batch_size": "full", "lr": helped.RATE}
SGD = {"kind": "sgd", **TRAINING}
SOME = {"kind": "uniform", "count": 4}
"""Whose clients remember work less often than there are rounds."""
ALL = {"kind": "uniform", "fraction": 1.0}
SPEEDS = {"compute": {"kind": "uniform", "low": 0.4, "high": 2.0}}
ASYNCHRONOUS = {"selection": ALL, "devices": SPEEDS, "rounds": 12}

TRAINED = {
    "fal": {"strategy": "fal"},
    "fedasync": {"strategy": {"kind": "fedasync", "proximal_mu": 0.1}, **ASYNCHRONOUS},
    "fedavg": {"strategy": {"kind": "fedavg", "server_lr": 0.7}},
    "fedavg_by_layers": {
        "strategy": {"kind": "fedavg", "server_lr": 0.1, "server_optimizer": {"kind": "steepest", "norm": "frobenius"}}
    },
    "fedavg_async": {"strategy": {"kind": "fedavg_async", "frequency": "observed"}, **ASYNCHRONOUS},
    "fedbuff": {"strategy": {"kind": "fedbuff", "size": 3}, **ASYNCHRONOUS},
    "fedbuff_window": {
        "strategy": {"kind": "fedbuff", "size": 2, "restart": "window", "weights": "unbiased"},
        **ASYNCHRONOUS,
    },
    "feddyn": {"strategy": {"kind": "feddyn", "alpha": 0.3}, "client": {"kind": "feddyn", **TRAINING}},
    "fedfix": {"strategy": {"kind": "fedfix", "window": 0.5}, **ASYNCHRONOUS},
    "fednova": {"strategy": "fednova"},
    "fedprox": {"strategy": {"kind": "fedprox", "proximal_mu": 0.5}},
    "scaffold": {"strategy": "scaffold", "client": {"kind": "scaffold", **TRAINING}},
    "sfat": {"strategy": {"kind": "sfat", "alpha": 0.5}},
    "qfedavg": {"strategy": {"kind": "qfedavg", "client_lr": helped.RATE}},
    "term": {"strategy": "term"},
    "afl": {"strategy": {"kind": "afl", "lambda_lr": 0.02}},
}
"""Strategies whose clients train."""
SEARCHED = ("decomfl", "fedes", "fedkseed", "fzoos", "fzoos_guard", "genetic", "one_byte", "scaffold_zo")
"""Those whose clients search with values, and know our orders."""
PLAIN = ("cbo", "cma_es", "cma_es_margin", "direct_search", "fedzo", "fedzo_guard")
"""Those whose clients search with values, too, in messages that any app knows."""
APART = {"evosax", "feddf", "fedivon"}
"""Of a package that tests do without; of classes (see `serving.test_distilling_apps`); whose draws no app repeats."""
REFUSED = {
    **dict.fromkeys(("dpsgd", "fedcbo", "gradient_tracking", "push_sum"), "sends clients each other's models"),
    "evofed": "sends steps along directions that its clients draw",
    "ef21": "adds up how delta changes; list a transform ef21",
    "fedproto": "models of their own",
    "gradient_coding": "go over each other's examples",
    "ifca": "sends clients several models",
    "local": "models of their own",
    "random_walk": "hands its model from client to client",
}
SELECTORS = {
    "curriculum": {"count": 2, "rounds": 6},
    "fastest": {"count": 3},
    "oort": {"count": 2, "exploration": 0.4, "exploration_floor": 0.1},
    "poisson": {"fraction": 0.4},
    "power_of_choice": {"count": 2, "pool": 4},
    "round_robin": {"count": 4},
    "uniform": {"count": 2},
    "weighted": {"count": 2},
}
BOX = (0.0, 1.0)
CENTRES = np.random.default_rng(5).uniform(0.1, 0.9, size=(NODES, 3))


def ours(group):
    """The plug-ins of a group that come with fedsim, as its entry points name them."""
    return set(plugins.ours(group))


def linear(even):
    """The problem of the app's clients in one process, in double precision."""
    parts = [helped.data(partition, even) for partition in range(NODES)]
    x, y = (np.concatenate(part) for part in zip(*parts, strict=True))
    ends = np.cumsum([len(part[1]) for part in parts])
    clients = [np.arange(end - len(part[1]), end) for end, part in zip(ends, parts, strict=True)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = nn.Linear(3, 1)
    return fedsim.supervised(
        x, y, model=model, clients=clients, loss="squared_error", device="cpu", dtype=torch.float64
    )


def squares(points, context=None, partition=None):
    """(x - c)^2 of the partition's c, and a wave, so that no method is done at once."""
    centre = CENTRES[context.node_config["partition-id"] if partition is None else partition]
    away = points - torch.from_numpy(centre).to(points.dtype)
    return (away**2).sum(1) + 0.1 * torch.cos(5.0 * away).sum(1)


def functions():
    """The same functions in one process."""
    each = [partial(squares, partition=partition) for partition in range(NODES)]
    return fedsim.black_box(each, dimension=3, kind="vectorised", bounds=BOX, dtype=torch.float64)


def experiment_of(row):
    tables = {"rounds": 6, "selection": SOME, "client": SGD, **row}
    return fedsim.experiment(seed=SEED, evaluation={"every": 1, "clients": False}, **tables)


def record_of(problem):
    """The model that a problem starts from, as an app has it."""
    if problem.model is None:
        return ArrayRecord({"x": Array(problem.initial().numpy())})
    named = problem.model.layout.named(problem.initial())
    return ArrayRecord({name: Array(tensor.numpy().copy()) for name, tensor in named.items()})


def in_an_app(row, app, problem, even=False, sure=1, **named):
    """What a strategy comes to in an app on nodes that are as fast as the clients in one process: a Result."""
    checked = experiment_of(row)
    fleet = build_fleet(checked, problem)
    taken = fleet.durations(np.arange(NODES), np.ones(NODES), 0, 0, 0)
    strategy = as_flower_strategy(
        row["strategy"],
        selection=row.get("selection", SOME),
        seed=SEED,
        fraction_evaluate=0.0,
        **named,
    )
    durations = {client: ticks / SECOND for client, ticks in enumerate(taken.tolist())} if "devices" in row else None
    initial = record_of(problem)
    config = {"even": even, "sure": sure}
    return start(strategy, app, initial, nodes=NODES, rounds=checked.rounds, durations=durations, run_config=config)


def assert_alike(result, own, tolerance=1e-9):
    """The model and who has told what of each round are the same."""
    found = np.concatenate([array.numpy().reshape(-1) for array in result.arrays.values()])
    wanted, begun = own.params.numpy(), own.problem.initial().numpy()
    assert np.linalg.norm(wanted - begun) > 1e-3, "nothing was learnt, so nothing is compared"
    np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance)
    told = result.train_metrics_clientapp
    for number, row in enumerate(own.history, 1):
        assert told.get(number, {}).get("replies", 0) == row["clients"], number


def test_every_strategy_of_ours_is_here():
    rows = [*TRAINED.values(), *(ROWS[name] for name in (*SEARCHED, *PLAIN))]
    tried = {plugins.kind_of("strategies", plugins.make("strategies", row["strategy"], "strategy")) for row in rows}
    assert not tried & REFUSED.keys()
    assert tried | APART | REFUSED.keys() == ours("strategies")


@pytest.mark.parametrize("name", TRAINED)
def test_clients_that_train(name):
    row, even = TRAINED[name], "devices" in TRAINED[name]
    own = fedsim.run(experiment_of(row), problem=linear(even), save=False)
    assert_alike(in_an_app(row, helped.client(), linear(even), even), own)


@pytest.mark.parametrize("sure", [1, -2])
def test_models_are_merged_by_the_precision_that_nodes_tell(sure):
    """Of the weight node p is p + sure sure, of the bias all are as sure; below 0 a node is refused altogether."""
    row = {"strategy": "fedivon", "rounds": 1, "selection": ALL, "client": {**SGD, "optimizer": "ivon"}}
    found = in_an_app(row, helped.client(), linear(False), sure=sure).arrays
    begun = {name: array.numpy() for name, array in record_of(linear(False)).items()}
    told = np.arange(NODES) + float(sure)
    ends = [helped.trained(begun, *helped.data(node, False), still)[0] for node in range(NODES)]
    for name, precision in (("weight", told), ("bias", np.ones(NODES))):
        weights = precision * helped.SIZES * (told >= 0.0)
        merged = np.tensordot(weights / weights.sum(), [end[name] for end in ends], axes=1)
        np.testing.assert_allclose(found[name].numpy(), merged, rtol=1e-9)


def still(model):
    """No correction."""
    return dict.fromkeys(model, 0.0)


def small(name):
    """A row of the contract, in small steps: these functions are steeper than its problem."""
    row = ROWS[name]
    return row | {"client": row["client"] | ({"lr": 0.02} if "lr" in row["client"] else {})}


@pytest.mark.parametrize("name", [*SEARCHED, *PLAIN])
def test_clients_that_search(name):
    """The box of the functions is their clients' affair, but where the server chooses the points."""
    row = small(name)
    own = fedsim.run(experiment_of(row), problem=functions(), save=False)
    app = ClientApp()
    searcher(app, row["client"], squares, bounds=BOX, seed=SEED)
    named = {"client": row["client"]} if name in SEARCHED else {}
    if row["client"]["kind"] == "values":
        named["bounds"] = BOX
    assert_alike(in_an_app(row, app, functions(), **named), own)


def test_a_box_is_for_what_keeps_to_it():
    for strategy, bounds, why in (
        ("fedavg", BOX, "keeps to no box"),
        ({"kind": "fedzo", "guard": True}, BOX, "by the bounds of searcher"),
        ("cbo", (1.0, 0.0), "the lower one first"),
        ("cbo", (1.0,), "no default"),
    ):
        with pytest.raises(InputError, match=f"^bounds.*{why}"):
            as_flower_strategy(strategy, bounds=bounds)
    with pytest.raises(InputError, match=r"initial_arrays = a number outside: the box is \[0.6, 1.0\]"):
        in_an_app(small("cbo"), ClientApp(), functions(), bounds=(0.6, 1.0))


@pytest.mark.parametrize("kind", REFUSED)
def test_what_no_app_can_do_is_refused_with_the_reason(kind):
    for named in ({}, {"client": kind}):
        with pytest.raises(InputError, match=REFUSED[kind]):
            as_flower_strategy(kind, **named)


def test_every_selector_of_ours_is_here():
    assert SELECTORS.keys() == ours("selectors")


@pytest.mark.parametrize("kind", SELECTORS)
def test_selectors_choose_whom_they_choose_in_one_process(kind, monkeypatch):
    """Clients have as many examples each, as a server knows before they have answered; and each its own speed."""
    cls, chosen = plugins.option_class("selectors", kind, "selection"), []
    select = cls.select

    def noted(self, state, turn, scores):
        clients, after = select(self, state, turn, scores)
        chosen.append(clients.tolist())
        return clients, after

    monkeypatch.setattr(cls, "select", noted)
    row = {"strategy": "fedavg", "selection": {"kind": kind, **SELECTORS[kind]}, "devices": SPEEDS, "rounds": 8}
    own = fedsim.run(experiment_of(row), problem=linear(even=True), save=False)
    here = chosen.copy()
    chosen.clear()
    assert_alike(in_an_app(row, helped.client(), linear(even=True), even=True), own)
    assert chosen == here
    assert len({tuple(clients) for clients in here}) > 2, "nothing was chosen between"


@pytest.mark.parametrize("app", [with_torch, with_sklearn], ids=["PyTorch", "scikit-learn"])
@pytest.mark.parametrize(
    ("strategy", "options", "durations"),
    [
        ("fedavg", {"selection": {"kind": "power_of_choice", "count": 3, "pool": 4}, "aggregator": "median"}, None),
        ({"kind": "fedbuff", "size": 2}, {}, {0: 0.5, 1: 0.9, 2: 1.3, 3: 2.1}),
        ({"kind": "cma_es", "sigma": 0.3}, {}, None),
    ],
    ids=["selected", "asynchronous", "searched"],
)
def test_apps_of_other_frameworks(app, strategy, options, durations):
    made = as_flower_strategy(strategy, seed=SEED, fraction_evaluate=1.0, **options)
    result = start(made, app.client(), app.initial(), rounds=10, durations=durations)
    assert {name: array.shape for name, array in result.arrays.items()} == {
        name: array.shape for name, array in app.initial().items()
    }
    losses = [told["eval_loss"] for told in result.evaluate_metrics_clientapp.values()]
    assert len(losses) == 10
    assert losses[-1] < losses[0]
