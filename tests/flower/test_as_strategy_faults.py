"""Replies that do not fit a strategy of ours are as good as none, and the log says what is wrong with each."""

import logging
import re

import numpy as np
import pytest
from apps.own import with_numpy, with_torch
from apps.own.misbehaving import MISBEHAVIOUR, misbehaving

from fedsim.flower import VirtualGrid, as_flower_strategy
from strategies.fedavg import FedAvg
from strategies.fedbuff import FedBuff

USED = {"far away", "part of the arrays"}
"""What a server cannot tell from a reply that is right."""
TOLD = {
    "wrong shapes": r" is float(32|64) \[\d+.*\], not floats \[\d+",
    "another type": "no array of numbers",
    "nan": "not finite",
    "infinite": "not finite",
    "other names": "'other'",
    "an extra array": "'more'",
    "two models": r"2 records of arrays \(arrays, again\)",
    "no arrays": "0 records of arrays",
    "no metrics": "0 records of metrics",
    "no examples' number": "no num-examples",
    "no examples": "num-examples is 0",
    "less than no examples": "num-examples is -1",
    "nan examples": "num-examples is nan",
    "a list of examples": "num-examples is a list",
    "dies": "this client dies",
}
DURATIONS = {0: 1.0, 1: 1.3, 2: 2.1, 3: 3.7}
STRATEGIES = {
    "fedavg": lambda: as_flower_strategy(FedAvg(), fraction_evaluate=0.0),
    "fedbuff": lambda: as_flower_strategy(FedBuff(size=2), selection={"kind": "uniform", "count": 4}),
}


@pytest.fixture(autouse=True)
def told():
    """The warnings of Flower's log, which is short."""

    class Lines(logging.Handler):
        def emit(self, record):
            lines.append(record.getMessage())

    lines, handler, logger = [], Lines(logging.WARNING), logging.getLogger("flwr")
    before = logger.level, logger.handlers
    logger.setLevel(logging.WARNING)
    logger.handlers = [handler]
    yield lines
    logger.setLevel(before[0])
    logger.handlers = before[1]


def run(strategy, faults, app, rounds):
    """What a strategy comes to over four nodes, and the grid with all messages."""
    with VirtualGrid(app.client(mods=[misbehaving(faults)]), 4, durations=DURATIONS) as grid:
        return STRATEGIES[strategy]().start(grid, app.initial(), num_rounds=rounds), grid


def values(result):
    return {name: array.numpy().tolist() for name, array in result.arrays.items()}


def counts(result, name):
    return [metrics[name] for metrics in result.train_metrics_clientapp.values()]


def test_every_misbehaviour_has_a_row():
    assert set(MISBEHAVIOUR) | {"dies"} == set(TOLD) | USED


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("app", [with_torch, with_numpy])
def test_replies_that_do_not_fit_are_as_good_as_none(strategy, app, told):
    rounds = len(TOLD) + 2
    faults = {(number % 4, number): fault for number, fault in enumerate(TOLD, 2)}
    found, grid = run(strategy, faults, app, rounds)
    lines = list(told)
    expected, plain = (run(strategy, other, app, rounds)[0] for other in (dict.fromkeys(faults, "dies"), {}))
    assert values(found) == values(expected) != values(plain)
    for name in ("replies", "failed", "staleness"):
        assert counts(found, name) == counts(expected, name)
    # With FedBuff not every client is at work for every version of the model.
    sent = {(each.partition, each.round) for each in grid.exchanges if each.message_type == "train"}
    happened = {row: fault for row, fault in faults.items() if row in sent}
    assert len(lines) == len(happened) == sum(counts(found, "failed"))
    assert len(happened) == len(TOLD) or strategy == "fedbuff"
    nodes = grid.get_node_ids()
    for (partition, number), fault in happened.items():
        text = rf"node {nodes[partition]} \(client {partition}\), round {number}: (.|\n)*{TOLD[fault]}"
        assert any(re.search(text, line) for line in lines), text


def test_part_of_the_arrays_leaves_the_rest_as_it_was_sent():
    found, _ = run("fedavg", {(1, 2): "part of the arrays"}, with_numpy, 2)
    w, c = np.zeros(3), np.zeros(1)
    for number in (1, 2):
        models = [list(with_numpy.moved(node, w, c)) for node in range(4)]
        if number == 2:
            models[1][0] = w  # of partition 1 only the constant has come
        # 6, 8, 10 and 12 examples.
        shares = np.array([6, 8, 10, 12]) / 36
        w, c = (np.tensordot(shares, np.stack(parts), 1) for parts in zip(*models, strict=True))
    assert found.arrays["0"].numpy() == pytest.approx(w)
    assert found.arrays["1"].numpy() == pytest.approx(c)
    assert counts(found, "failed") == [0, 0]
