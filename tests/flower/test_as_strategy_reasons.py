"""What somebody is told whose app and whose options do not go together: in one line, with what to do."""

import logging
import tomllib
from contextlib import suppress

import pytest
from apps.own import with_numpy
from apps.own.running import start
from flwr.app import Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg as FlowersFedAvg

from fedsim.core.errors import InputError, StalledError
from fedsim.flower import as_flower_strategy
from strategies.fedavg import FedAvg


@pytest.mark.parametrize(
    ("strategy", "options", "line"),
    [
        ("fedes", {}, "strategy = fedes: it exchanges losses, .* give client=, the client that it has there"),
        ("fedcbo", {}, "strategy = fedcbo: it sends clients each other's models, so its clients are ours"),
        ("fedcbo", {"client": "fedcbo"}, "strategy = fedcbo: it sends clients each other's models"),
        ("fedes", {"client": {"kind": "fedes", "lrr": 1.0}}, "client.lrr = 1.0: no such option"),
        ("fedzo", {"client": "fedes"}, "client.kind = fedes: with strategy fedzo it must exchange delta"),
        (FlowersFedAvg(), {}, "strategy = FedAvg: it is Flower's own"),
        ("fedavg", {"fraction_train": 0.5}, 'fraction_train = 0.5: nodes are chosen by selection={"kind": "uniform"'),
        ("fedavg", {"min_train_nodes": 2}, 'min_train_nodes = 2: nodes are chosen by selection={"kind": "uniform"'),
        ("fedavg", {"fraction_evaluat": 0.5}, "fraction_evaluat = 0.5: .* did you mean fraction_evaluate"),
    ],
)
def test_what_does_not_go_is_one_line_when_it_is_made(strategy, options, line):
    with pytest.raises(InputError, match=f"^{line}"):
        as_flower_strategy(strategy, **options)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"selection": {"kind": "uniform", "count": 5}}, r"5 are needed \(selection.count\)"),
        ({"selection": {"kind": "uniform", "count": 5}, "min_available_nodes": 3}, r"3 are needed \(min_available"),
        ({"min_available_nodes": 5}, r"5 are needed \(min_available_nodes\)"),
    ],
)
def test_whoever_waits_for_too_many_is_told_which_option_says_so(options, told):
    with pytest.raises(StalledError, match=f"^2 nodes are connected, and {told}"):
        start(as_flower_strategy("fedavg", **options), with_numpy.client(), with_numpy.initial(), nodes=2)


def test_who_is_not_identified_is_told_so_without_a_traceback():
    with pytest.raises(
        InputError, match=r"(?m)call fedsim\.flower\.mods\.identify.* registered with name 'identify'\)$"
    ):
        start(as_flower_strategy("fedavg", identify=True), with_numpy.client(), with_numpy.initial(), nodes=2)


@pytest.mark.parametrize("names", [["0"], ("0",)], ids=["list", "tuple"])
def test_frozen_arrays_are_named_in_a_list_or_a_tuple(names):
    result = start(as_flower_strategy("fedavg", frozen=names), with_numpy.client(), with_numpy.initial(), rounds=1)
    moved = [bool(array.numpy().any()) for array in result.arrays.values()]
    assert moved == [False, True]


def failing():
    app = ClientApp()

    @app.train()
    def train(message: Message, context):
        raise ValueError("no data\nin the folder")

    return app


def steering():
    """An app whose clients name an array so that it would clear a terminal."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context):
        arrays = message.content["arrays"]
        content = {"arrays": arrays, "\x1b[2J": arrays, "metrics": MetricRecord({"num-examples": 1})}
        return Message(RecordDict(content), reply_to=message)

    return app


def test_a_node_that_fails_is_told_in_one_line_and_the_end_says_what_was_wrong_first(caplog, tmp_path):
    caplog.set_level(logging.WARNING, "flwr")
    strategy = as_flower_strategy("fedavg", fraction_evaluate=0.0, checkpoint=tmp_path / "run")
    with pytest.raises(StalledError, match=r"could not be used; the first: node .* ValueError: no data"):
        start(strategy, failing(), with_numpy.initial(), rounds=1, nodes=2)
    told = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert len(told) == 2
    assert all(text.endswith("round 1: it has failed: ValueError: no data") for text in told)
    assert "the first: node" in (tmp_path / "run" / "summary.json").read_text()


def test_what_a_node_says_steers_no_terminal(caplog):
    caplog.set_level(logging.WARNING, "flwr")
    with pytest.raises(StalledError, match=r"it has 2 records of arrays \(arrays, \\x1b\[2J\)"):
        start(as_flower_strategy("fedavg", fraction_evaluate=0.0), steering(), with_numpy.initial(), rounds=1, nodes=2)
    assert not any("\x1b[2J" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(
    ("strategy", "needed"),
    [
        ("scaffold", r"control-delta is missing: the app needs fedsim\.flower\.local\.scaffold"),
        ("term", r"start-loss is missing: the app needs a metric `start-loss`, the loss of the model that it was sent"),
    ],
)
def test_who_needs_help_that_the_app_has_not_is_told_which(strategy, needed):
    """The loss of training, which it tells, is of other models than the one that it was sent."""
    with pytest.raises(StalledError, match=needed):
        start(as_flower_strategy(strategy), with_numpy.client(), with_numpy.initial(), rounds=1, nodes=2)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"weighted_by_key": "n"}, "its metrics have no n; weighted_by_key says"),
        (
            {"selection": {"kind": "oort", "count": 2}, "loss_key": "l"},
            "; l would do, or what loss_key names",
        ),
        (
            {"selection": {"kind": "power_of_choice", "count": 1, "pool": 2}, "evaluate_loss_key": "l"},
            "l is missing; evaluate_loss_key says",
        ),
    ],
)
def test_a_metric_that_is_missing_is_told_with_the_option_that_names_it(options, told, caplog):
    caplog.set_level(logging.WARNING, "flwr")
    with suppress(StalledError):  # where a selector alone lacks it, the run goes on
        start(as_flower_strategy("fedavg", **options), with_numpy.client(), with_numpy.initial(), rounds=1, nodes=2)
    assert all(told in record.getMessage() for record in caplog.records if "left out" in record.getMessage())
    assert any(told in record.getMessage() for record in caplog.records)


def test_the_summary_says_what_clients_need(caplog):
    caplog.set_level(logging.INFO, "flwr")
    as_flower_strategy("fedes", client={"kind": "fedes"}).summary()
    as_flower_strategy("scaffold").summary()
    as_flower_strategy(FedAvg()).summary()
    needed = [record.getMessage() for record in caplog.records if "client app needs" in record.getMessage()]
    assert [text.split("needs ")[1].split(",")[0] for text in needed] == [
        "fedsim.flower.local.searcher",
        "fedsim.flower.local.scaffold (for control-delta)",
    ]


def test_the_client_of_a_search_is_written_down_with_the_run(tmp_path):
    """So that a server that goes on with another one is refused, as with any other option."""
    client = {"kind": "fedzo", "steps": 3}
    strategy = as_flower_strategy("fedzo", client=client, checkpoint=tmp_path / "run")
    with pytest.raises(StalledError):
        start(strategy, failing(), with_numpy.initial(), rounds=1, nodes=2)
    kept = tomllib.loads((tmp_path / "run" / "config.toml").read_text())
    assert client.items() <= kept["client"].items()
