"""The small apps that strategies are tried with learn, under Flower's own strategies, and go wrong as they say."""

import logging

import numpy as np
import pytest
import torch
from apps.own import with_numpy, with_sklearn, with_torch
from apps.own.misbehaving import MISBEHAVIOUR, Leaving, Repeating, misbehaving
from apps.own.running import run, start
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp.exception import InconsistentMessageReplies
from flwr.serverapp.strategy import FedAvg

from fedsim.flower import VirtualGrid

APPS = {
    "numpy": (with_numpy.client, with_numpy.initial),
    "torch": (with_torch.client, with_torch.initial),
    "batch norm": (lambda mods=None: with_torch.client(True, mods), lambda: with_torch.initial(True)),
    "sklearn": (with_sklearn.client, with_sklearn.initial),
}


@pytest.fixture(autouse=True)
def short_log():
    logger = logging.getLogger("flwr")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)


def arrays_of(record):
    return {name: array.numpy() for name, array in record.items()}


@pytest.mark.parametrize("name", APPS)
def test_an_app_learns_the_same_each_time(name):
    client, initial = APPS[name]
    first = start(FedAvg(), client(), initial(), rounds=4, seed=1)
    again = start(FedAvg(), client(), initial(), rounds=4, seed=2)
    one, other = arrays_of(first.arrays), arrays_of(again.arrays)
    for key in one:  # in another order, as Flower's FedAvg adds replies up in that of its sample
        np.testing.assert_allclose(one[key], other[key], rtol=1e-5, atol=1e-6)
    losses = [measures["eval_loss"] for measures in first.evaluate_metrics_clientapp.values()]
    assert losses[-1] < losses[0]
    assert first.train_metrics_clientapp[4]["train_loss"] < first.train_metrics_clientapp[1]["train_loss"]


def test_linear_regression_is_what_can_be_reckoned():
    found = start(FedAvg(), with_numpy.app, with_numpy.initial(), rounds=1, nodes=2, config={"lr": 0.2, "steps": 2})
    # 6 and 8 examples.
    (w0, c0), (w1, c1) = (with_numpy.moved(node, np.zeros(3), np.zeros(1), 0.2, 2) for node in range(2))
    w, c = found.arrays.to_numpy_ndarrays()
    assert w == pytest.approx((6 * w0 + 8 * w1) / 14)
    assert c == pytest.approx((6 * c0 + 8 * c1) / 14)
    assert (list(found.arrays), w.dtype) == (["0", "1"], np.float64)
    # A step on each node is a step on all together, which is none where all are served best.
    best = with_numpy.solution(2)
    found = start(FedAvg(), with_numpy.app, ArrayRecord(list(best)), rounds=2, nodes=2, config={"lr": 0.5, "steps": 1})
    for one, other in zip(found.arrays.to_numpy_ndarrays(), best, strict=True):
        assert one == pytest.approx(other, abs=1e-12)


@pytest.mark.parametrize("app", [with_numpy.app, with_torch.app])
def test_proximal_terms_hold_clients_back(app):
    initial = with_numpy.initial() if app is with_numpy.app else with_torch.initial()
    lengths = []
    for config in ({"lr": 0.1}, {"lr": 0.1, "proximal-mu": 2.0}):
        found = start(FedAvg(), app, initial, rounds=1, config=config)
        pairs = zip(found.arrays.values(), initial.values(), strict=True)
        lengths.append(sum(np.square(one.numpy() - other.numpy()).sum() for one, other in pairs))
    assert 0 < lengths[1] < lengths[0]


def test_counters_of_batches_are_whole_numbers_without_an_axis():
    initial = with_torch.initial(norm=True)
    counter = initial["1.num_batches_tracked"]
    assert (counter.dtype, counter.shape) == ("int64", ())
    assert "1.num_batches_tracked" not in with_torch.initial()
    assert torch.equal(with_torch.net(True)[0].weight, with_torch.net()[0].weight)


@pytest.mark.parametrize("name", APPS)
def test_values_of_candidates_are_the_losses_there(name):
    client, initial = APPS[name]
    moved = ArrayRecord({key: Array(np.asarray(array.numpy() * 2 + 1)) for key, array in initial().items()})
    pairs = [(key, np.stack([array.numpy(), moved[key].numpy()])) for key, array in initial().items()]
    candidates = ArrayRecord({key: Array(stack) for key, stack in pairs})

    def main(grid, context):
        def ask(kind, key, record):
            sent = [Message(RecordDict({key: record}), node, kind) for node in grid.get_node_ids()]
            return [reply.content["metrics"] for reply in grid.send_and_receive(sent)]

        asked = ask("query", "candidates", candidates)
        for row, record in enumerate((initial(), moved)):
            losses = [metrics["eval_loss"] for metrics in ask("evaluate", "arrays", record)]
            assert [metrics["values"][row] for metrics in asked] == pytest.approx(losses)

    run(main, client(), nodes=2)


def replies(app, initial, kind=Repeating, durations=None, timeout=None, rounds=1, **named):
    """What comes to messages to train, by partition; an error as its code."""
    with kind(app, 3, durations=durations, **named) as grid:
        found = []
        for number in range(1, rounds + 1):
            content = RecordDict({"arrays": initial, "config": ConfigRecord({"server-round": number})})
            sent = [Message(content, node, "train") for node in grid.get_node_ids()]
            found.append(list(grid.send_and_receive(sent, timeout=timeout)))
    return found


@pytest.mark.parametrize("name", APPS)
def test_each_fault_is_in_one_reply_of_one_client(name):
    client, initial = APPS[name]
    faults = {(1, number): fault for number, fault in enumerate(MISBEHAVIOUR, 2)}
    results, plain = (
        replies(client(mods=[misbehaving(each)]), initial(), kind=VirtualGrid, rounds=len(MISBEHAVIOUR) + 2)
        for each in (faults, {})
    )
    pairs = zip(results, plain, strict=True)
    differ = [[one.content != other.content for one, other in zip(*pair, strict=True)] for pair in pairs]
    assert differ == [[False] * 3, *[[False, True, False]] * len(MISBEHAVIOUR), [False] * 3]


def test_flowers_own_strategy_ends_where_replies_do_not_fit():
    for fault in ("other names", "two models", "no examples' number", "a list of examples"):
        app = with_numpy.client(mods=[misbehaving({(1, 2): fault})])
        with pytest.raises(InconsistentMessageReplies):
            start(FedAvg(), app, with_numpy.initial(), rounds=2)
    app = with_numpy.client(mods=[misbehaving({(None, 2): "dies"})])
    found = start(FedAvg(), app, with_numpy.initial(), rounds=3)
    assert list(found.train_metrics_clientapp) == [1, 3]


def test_replies_that_come_twice_and_again():
    first, second = replies(with_numpy.app, with_numpy.initial(), rounds=2)
    ids = [reply.metadata.reply_to_message_id for reply in first]
    assert ids[:3] == ids[3:]
    assert [reply.metadata.reply_to_message_id for reply in second[6:]] == ids[:3]
    assert len(second) == 9


def test_nodes_that_leave_are_answered_for_by_the_superlink():
    # Node 0 is done after 1 s, 1 after 2; 1 leaves after 1.5 and 2, which would take 5, after 3, and is back after 4.
    options = {"durations": {0: 1.0, 1: 2.0, 2: 5.0}, "away": {1: (1.5, 100.0), 2: (3.0, 4.0)}}
    first, *later = replies(with_numpy.app, with_numpy.initial(), kind=Leaving, timeout=10.0, rounds=3, **options)
    assert [reply.has_error() and reply.error.code for reply in first] == [False, 5, 5]
    assert [reply.metadata.src_node_id for reply in first[1:]] == [1, 1]
    # The first round ends after 3 s, the second, of node 0, after 4.
    assert [[reply.has_error() for reply in found] for found in later] == [[False], [False, False]]
