"""Nodes that go wrong: what they send is counted, told and left out, and the others' run goes on as without them."""

import logging
import math

import numpy as np
import pytest
from apps.own import with_numpy
from apps.own.misbehaving import MISBEHAVIOUR, Leaving, Repeating, misbehaving
from apps.own.running import run, watched
from flwr.app import Context
from flwr.serverapp.strategy import Strategy as FlowersStrategy

from fedsim.core.errors import DivergedError, StalledError
from fedsim.flower import as_flower_strategy
from strategies.fedavg import FedAvg
from strategies.fedbuff import FedBuff
from strategies.fedfix import FedFix

DURATIONS = {0: 2.0, 1: 1.5, 2: 1.0, 3: 0.5}
HARMLESS = {"far away", "part of the arrays"}
"""What is a reply like another: nobody can see that it should not be, and only part of a model is what LoRA sends."""
FAULTS = ["dies", *(fault for fault in MISBEHAVIOUR if fault not in HARMLESS)]
NOT_FINITE = {"nan", "infinite"}


@pytest.fixture
def warnings(caplog):
    caplog.set_level(logging.WARNING, "flwr")
    return lambda: [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]


def ours(strategy, **options):
    return as_flower_strategy(strategy, fraction_evaluate=0.0, **options)


def going_wrong(strategy, faults, rounds=5, **options):
    app = with_numpy.client(mods=[misbehaving(faults)])
    return watched(ours(strategy), app, with_numpy.initial(), rounds=rounds, durations=DURATIONS, **options)


def without_node_1(strategy, rounds=5):
    """The run of nodes 0, 2 and 3 alone."""

    def mod(message, context, call_next):
        partition = (0, 2, 3)[context.node_config["partition-id"]]
        config = {**context.node_config, "partition-id": partition}
        return call_next(message, Context(1, context.node_id, config, context.state, {}))

    times = {row: DURATIONS[partition] for row, partition in enumerate((0, 2, 3))}
    app = with_numpy.client(mods=[mod])
    return watched(ours(strategy), app, with_numpy.initial(), nodes=3, rounds=rounds, durations=times)[0]


def vector(result):
    return np.concatenate([array.numpy() for array in result.arrays.values()])


@pytest.fixture(scope="module")
def alone():
    return {made: vector(without_node_1(made())) for made in (FedAvg, buffered)}


def buffered():
    return FedBuff(size=2)


@pytest.mark.parametrize("made", [FedAvg, buffered])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_node_that_always_goes_wrong_is_told_once_and_the_rest_comes_to_what_it_comes_to_alone(
    made, fault, alone, warnings
):
    result, engine = going_wrong(made(), {(1, None): fault})
    np.testing.assert_array_equal(vector(result), alone[made])
    assert engine.trace.participation[1] == 0
    assert engine.ledger.failed == (5 if made is FedAvg else 2)  # at 1.5 s and 3 s, when the last buffer is full
    assert sum(told["failed"] for told in result.train_metrics_clientapp.values()) == engine.ledger.failed
    (told,) = warnings()
    (kept,) = engine.trace.failures
    assert told == f"left out: {kept}"
    assert "(client 1), round 1: " in kept
    assert "\n" not in kept
    assert ("not finite" in kept) == (fault in NOT_FINITE)


@pytest.mark.parametrize(
    ("made", "fault"),
    [(FedAvg, "dies"), (buffered, "dies"), (FedAvg, "wrong shapes"), (FedAvg, "nan"), (buffered, "nan")],
)
def test_a_run_whose_nodes_all_go_wrong_ends_and_says_why(made, fault):
    error, engine = going_wrong(made(), {(None, None): fault})
    assert isinstance(error, DivergedError if fault in NOT_FINITE else StalledError)
    assert ("updates of round 1 is finite" if fault in NOT_FINITE else engine.trace.failures[0]) in str(error)


def test_a_node_that_goes_wrong_once_takes_part_again():
    result, engine = going_wrong(FedAvg(), {(1, 2): "wrong shapes"}, rounds=3)
    assert engine.trace.participation == [3, 2, 3, 3]
    assert [told["replies"] for told in result.train_metrics_clientapp.values()] == [4, 3, 4]
    assert [told["failed"] for told in result.train_metrics_clientapp.values()] == [0, 1, 0]


@pytest.mark.parametrize("made", [FedAvg, buffered, lambda: FedAvg(first=2)])
def test_replies_that_come_again_are_strays(made, warnings):
    app, initial = with_numpy.app, with_numpy.initial()
    plain, _ = watched(ours(made()), app, initial, rounds=5, durations=DURATIONS)
    result, engine = watched(ours(made()), app, initial, rounds=5, durations=DURATIONS, kind=Repeating)
    np.testing.assert_array_equal(vector(result), vector(plain))
    assert engine.trace.strays >= engine.ledger.clients
    assert len(warnings()) == len(set(warnings())) <= 4
    assert "answers nothing that it was sent" in warnings()[0]


def test_who_does_not_answer_in_time_is_given_up():
    # Node 0 would take 100 s; the others' rounds last until its time is over.
    durations = DURATIONS | {0: 100.0}
    result, engine = watched(
        ours(FedAvg()), with_numpy.app, with_numpy.initial(), rounds=3, durations=durations, start={"timeout": 10.0}
    )
    assert (engine.ledger.crashed, engine.ledger.clients, engine.now) == (3, 9, 30 * 10**9)
    assert [told["replies"] for told in result.train_metrics_clientapp.values()] == [3, 3, 3]
    assert "(client 0), round 1: has not answered" in engine.trace.failures[0]


@pytest.mark.parametrize(
    "made", [FedAvg, lambda: FedAvg(first=2), buffered, lambda: FedFix(window=1.0, frequency="observed")]
)
def test_who_leaves_while_at_work_is_no_reply_and_takes_part_again(made):
    away = {1: (1.2, 5.0)}
    options = {"rounds": 12, "durations": DURATIONS, "kind": Leaving, "away": away}
    result, engine = watched(ours(made()), with_numpy.app, with_numpy.initial(), **options)
    assert len(result.train_metrics_clientapp) == 12
    assert engine.ledger.failed == 0
    begun = [
        entry["start"] for entry in engine.trace.summary([0.25] * 4, engine.now)["timeline"] if entry["client"] == 1
    ]
    assert not [start for start in begun if 1.2 <= start < 5.0]
    assert max(begun) >= 5.0


@pytest.mark.parametrize(
    "made",
    [
        FedAvg,
        lambda: FedAvg(first=2, deadline=1.0),
        buffered,
        lambda: FedBuff(size=4, restart="window"),
        lambda: FedFix(window=1.0, frequency="observed"),
    ],
)
def test_a_run_goes_on_when_all_have_left_and_come_back(made):
    away = dict.fromkeys(range(4), (1.2, 5.0))
    options = {"rounds": 6, "durations": DURATIONS, "kind": Leaving, "away": away}
    result, engine = watched(ours(made()), with_numpy.app, with_numpy.initial(), **options)
    assert len(result.train_metrics_clientapp) >= 4
    assert 2 <= engine.ledger.crashed <= 4
    assert engine.now > 5 * 10**9
    assert min(engine.trace.participation) >= 1 or made is not FedAvg


def test_a_buffer_that_waits_for_somebody_who_is_free_again_has_him_start_again():
    # Node 1 leaves after 1.2 s, when the buffer of four holds two: it is sent the order again when it is back.
    options = {"rounds": 3, "durations": DURATIONS, "kind": Leaving, "away": {1: (1.2, 1.3)}}
    result, engine = watched(ours(FedBuff(size=4, restart="window")), with_numpy.app, with_numpy.initial(), **options)
    assert [told["replies"] for told in result.train_metrics_clientapp.values()] == [4, 4, 4]
    assert engine.trace.participation == [3, 3, 3, 3]


def test_metrics_of_any_kind_do_not_end_a_run():
    def mod(message, context, call_next):
        reply = call_next(message, context)
        metrics, partition = reply.content["metrics"], context.node_config["partition-id"]
        metrics.update(
            {"list": [1.0, float(partition)], "other lengths": [1.0] * (1 + partition // 3), "nan": math.nan}
        )
        metrics.update({f"only {partition}": partition, "huge": 1.7e308, "train_loss": math.inf, "whole": 2**60})
        metrics["other kinds"] = [1.0] if partition else 5.0
        return reply

    result, _ = watched(ours(FedAvg()), with_numpy.client(mods=[mod]), with_numpy.initial(), rounds=2)
    plain, _ = watched(ours(FedAvg()), with_numpy.app, with_numpy.initial(), rounds=2)
    np.testing.assert_array_equal(vector(result), vector(plain))
    told = result.train_metrics_clientapp[2]
    # Nodes weigh 6, 8, 10 and 12: a mean partition of (8 + 20 + 36) / 36.
    assert told["list"] == pytest.approx([1.0, 64 / 36])
    assert (told["only 3"], told["huge"], told["whole"]) == pytest.approx((3.0, 1.7e308, 2.0**60))
    assert math.isnan(told["nan"])
    assert told["train_loss"] == math.inf
    assert (told["other lengths"], told["other kinds"]) == ([1.0], [1.0])
    assert "num-examples" not in told


BAD_METRICS = {
    "none": lambda content: content.pop("metrics"),
    "no weight": lambda content: content["metrics"].pop("num-examples"),
    "a weight of nothing": lambda content: content["metrics"].update({"num-examples": 0}),
    "weights": lambda content: content["metrics"].update({"num-examples": [1, 2]}),
    "a weight that is no number": lambda content: content["metrics"].update({"num-examples": math.nan}),
}


@pytest.mark.parametrize("name", ["dies", *BAD_METRICS])
def test_an_evaluation_that_cannot_be_used_is_left_out_by_either_loop(name, warnings):
    def mod(message, context, call_next):
        reply = call_next(message, context)
        if message.metadata.message_type == "evaluate" and context.node_config["partition-id"] == 1:
            BAD_METRICS[name](reply.content)  # or, where it has no such row, the client dies
        return reply

    app, initial = with_numpy.client(mods=[mod]), with_numpy.initial()
    own, _ = watched(as_flower_strategy(FedAvg()), app, initial, rounds=2)
    assert len(warnings()) == 1
    held = run(lambda grid, _: FlowersStrategy.start(as_flower_strategy(FedAvg()), grid, initial, num_rounds=2), app)
    w, c = own.arrays.to_numpy_ndarrays()
    losses = [with_numpy.loss(node, w, c) for node in (0, 2, 3)]
    for result in (own, held):
        assert result.evaluate_metrics_clientapp[2]["eval_loss"] == pytest.approx(
            np.average(losses, weights=[6, 10, 12])
        )
    assert len(warnings()) == 2
