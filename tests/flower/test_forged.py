"""Replies of a node that lies: each is left out, counted and named, and the model is that of the run without it."""

import pickle
import random
from collections import Counter

import numpy as np
import pytest
import torch
from contract import ROWS
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord
from local_grid import LocalGrid, engine_of, partitions, tiny

import fedsim
from fedsim.exchange.forms import Form, misfit
from fedsim.exchange.messages import Order
from fedsim.exchange.windows import All
from fedsim.flower import GridError, client_app
from fedsim.flower.records import decoded
from fedsim.running.runner import execute

pytestmark = pytest.mark.usefixtures("local_flower")


def first(held):
    return next(iter(held))


def arrays(change):
    """Every array of the payload as `change` leaves it."""

    def forged(content, draw):
        held = content.array_records["arrays"]
        content["arrays"] = ArrayRecord({name: Array(change(array.numpy(), draw)) for name, array in held.items()})

    return forged


def metric(name, change):
    """A metric as `change` leaves it; `loss` stands for any of the client's own."""

    def forged(content, draw):
        held = dict(content.array_records["client-metrics"].items())
        held[name] = Array(np.asarray(change(held[name].numpy(), draw)))
        content["client-metrics"] = ArrayRecord(held)

    return forged


def record(name, change):
    """A record's arrays by name as `change` leaves them."""

    def forged(content, draw):
        held = dict(content.array_records[name].items())
        change(held, draw)
        content[name] = ArrayRecord(held)

    return forged


def announces(change):
    """The first array of the payload, which says of itself what it is not, or whose bytes are others."""

    def change_first(held, draw):
        name = first(held)
        array = held[name]
        said = change({"dtype": array.dtype, "shape": array.shape, "stype": array.stype, "data": array.data}, draw)
        held[name] = Array(**said)

    return record("arrays", change_first)


def filled(values, number):
    """Floats of this number, or of whole numbers one row fewer."""
    return np.full_like(values, number) if values.dtype.kind == "f" else values[1:].copy()


def header(text):
    """Bytes that begin as NumPy's do, with this in the place of a description."""
    padded = text.encode().ljust(118 - 1) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded


def pickled(said, draw):
    return said | {"data": b"\x93NUMPY\x01\x00" + b"v\x00" + pickle.dumps(draw.random()) * 20}


def flipped(said, draw):
    """A byte of the header is another, one that matters: in the description's first 60 letters."""
    data = bytearray(said["data"])
    data[draw.randrange(10, 50)] ^= 0xFF
    return said | {"data": bytes(data)}


HUGE = 2**40
SPOILED = {
    "one column": arrays(lambda v, _: v[:, :1].copy()),
    "a coordinate too few": arrays(lambda v, _: v[:, :-1].copy()),
    "a coordinate too many": arrays(lambda v, _: np.concatenate([v, v[:, :1]], axis=1)),
    "a row too many": arrays(lambda v, _: np.concatenate([v, v[:1]])),
    "no row": arrays(lambda v, _: v[:0].copy()),
    "flat": arrays(lambda v, _: v.reshape(-1).copy()),
    "transposed": arrays(lambda v, _: np.ascontiguousarray(v.T if v.shape[0] != v.shape[1] else v[None])),
    "one more dimension": arrays(lambda v, _: v[..., None].copy()),
    "one number": arrays(lambda v, _: np.asarray(3, v.dtype)),
    **{
        f"as {dtype}": arrays(lambda v, _, dtype=dtype: v.astype(dtype))
        for dtype in ("float64", "float16", "complex64", "int64", "bool", "U8", ">f4", "uint16")
    },
    "not a number": arrays(lambda v, _: filled(v, np.nan)),
    "infinite": arrays(lambda v, draw: filled(v, draw.choice([np.inf, -np.inf]))),
    "another name": record("arrays", lambda held, _: held.update(zzz=held.pop(first(held)))),
    "an array too many": record("arrays", lambda held, _: held.update(zzz=held[first(held)])),
    "a name of control characters": record("arrays", lambda held, _: held.update({"\x1b[2J": held[first(held)]})),
    "no array": record("arrays", lambda held, _: held.clear()),
    "no arrays": lambda content, _: content.__delitem__("arrays"),
    "arrays that are metrics": lambda content, _: content.__setitem__("arrays", MetricRecord({"delta": 1.0})),
    "no metrics": lambda content, _: content.__delitem__("client-metrics"),
    "a metric too few": record("client-metrics", lambda held, _: held.pop("loss")),
    "a metric too many": record("client-metrics", lambda held, _: held.update(zzz=held["loss"])),
    "a metric of other clients": metric("loss", lambda v, _: np.concatenate([v, v])),
    "a metric of one number": metric("loss", lambda v, _: v.sum()),
    "a complex metric": metric("loss", lambda v, _: v.astype(np.complex64)),
    "clients as floats": metric("clients", lambda v, _: v.astype(np.float64)),
    "other clients": metric("clients", lambda v, draw: v + draw.randrange(1, 9)),
    "clients beyond all": metric("clients", lambda v, _: v + 2**40),
    "negative clients": metric("clients", lambda v, _: -1 - v),
    "examples of others": metric("num-examples", lambda v, draw: v + draw.choice([-1, 1, 2**40])),
    "examples that are no numbers": metric("num-examples", lambda v, _: v * np.nan),
    "bytes": metric("payload-bytes", lambda v, draw: v + draw.choice([-(10**9), -1, 1, 2**62])),
    "queries": metric("queries", lambda v, draw: v + draw.choice([-(10**6), 1, 2**62])),
    "queries of which more have failed": metric(
        "queries", lambda v, draw: v + np.array([0, 0, draw.choice([-1, 10**9])])
    ),
    "queries of which more are beside": metric(
        "queries", lambda v, draw: v + np.array([0, draw.choice([-1, 10**9]), 0])
    ),
    "queries that are no numbers": metric("queries", lambda v, _: v * np.nan),
    "queries in one column": metric("queries", lambda v, _: v[:, :1].copy()),
    "a huge shape": announces(lambda said, _: said | {"shape": (HUGE, HUGE)}),
    "a negative shape": announces(lambda said, _: said | {"shape": (-1, *said["shape"][1:])}),
    "a huge shape in the bytes": announces(
        lambda said, _: (
            said
            | {"data": header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({HUGE}, {HUGE}), }}") + bytes(4)}
        )
    ),
    "a type that is none": announces(lambda said, _: said | {"dtype": "float33"}),
    "another way to write": announces(lambda said, _: said | {"stype": "torch.tensor"}),
    "bytes that end early": announces(lambda said, draw: said | {"data": said["data"][: draw.randrange(100)]}),
    "bytes that go on": announces(lambda said, draw: said | {"data": said["data"] + bytes(draw.randrange(1, 5000))}),
    "objects": announces(
        lambda said, _: said | {"data": header("{'descr': '|O', 'fortran_order': False, 'shape': (1, 2), }")}
    ),
    "a pickle": announces(pickled),
    "code for a description": announces(lambda said, _: said | {"data": header("__import__('os').abort()")}),
    "brackets without end": announces(lambda said, _: said | {"data": header("(" * 110)}),
    "minus without end": announces(lambda said, _: said | {"data": header("-" * 110)}),
    "no format": announces(lambda said, draw: said | {"data": draw.randbytes(300)}),
    "another version": announces(lambda said, _: said | {"data": said["data"][:6] + b"\x02" + said["data"][7:]}),
    "a flipped byte": announces(flipped),
}
"""What makes a reply another than the one that was asked for."""


def stale(grid, reply, name):
    return [grid.earlier[-1], reply] if grid.earlier else [reply]


def told(reply, **other):
    """A copy of a reply with other metadata, and with other numbers of the right form, which must not be taken."""
    copy = pickle.loads(pickle.dumps(reply))
    arrays(lambda v, _: (v * 2).astype(v.dtype))(copy.content, None)
    for name, value in other.items():
        copy.metadata.__dict__[f"_{name}"] = value
    return copy


STRAYS = {
    "twice": lambda grid, reply, name: [reply, told(reply)],
    "a replay": stale,
    "of another run": lambda grid, reply, name: [told(reply, run_id=reply.metadata.run_id + 1), reply],
    "of another node": lambda grid, reply, name: [told(reply, src_node_id=reply.metadata.src_node_id + 1), reply],
    "of another kind": lambda grid, reply, name: [told(reply, message_type="query"), reply],
    "to nothing": lambda grid, reply, name: [told(reply, reply_to_message_id="zzz"), reply],
}
"""What comes beside a reply that is as it should be."""
HARMLESS = {
    "a record too many": lambda content, _: content.__setitem__("zzz", ConfigRecord({"a": 1})),
    "no summary": lambda content, _: content.__delitem__("metrics"),
}


class Forging(LocalGrid):
    """A grid on which the last node's replies to orders are forged, one kind after the other.

    plain: a reply that would be spoiled is lost by numbers that are not finite, and others come as they are.
    """

    def __init__(self, experiment, kinds, nodes=3, *, plain=False, seed=0):
        super().__init__(client_app(experiment), partitions(nodes))
        self.kinds, self.plain, self.draw = list(kinds), plain, random.Random(seed)
        self.nodes, self.forged, self.queue, self.earlier, self.strays = nodes, Counter(), [], [], 0

    def deliver(self, message):
        name = super().deliver(message)
        reply = self.replies[name]
        liar = self.contexts[message.metadata.dst_node_id].node_config["partition-id"] == self.nodes - 1
        if liar and message.metadata.message_type == "train":
            kind = self.kinds[self.forged.total() % len(self.kinds)]
            self.forged[kind] += 1
            replies = [reply]
            if kind in STRAYS:
                replies = replies if self.plain else STRAYS[kind](self, reply, name)
                self.earlier.append(told(reply))
            elif self.plain:
                if kind in SPOILED:
                    SPOILED["not a number"](reply.content, self.draw)
            else:
                (SPOILED | HARMLESS)[kind](reply.content, self.draw)
            self.strays += len(replies) - 1
            del self.replies[name]
            self.queue += [pickle.loads(pickle.dumps(each)) for each in replies]
        return name

    def pull_messages(self, message_ids):
        if self.queue:
            return [self.queue.pop(0)]
        return super().pull_messages(message_ids)


def ran(experiment, kinds, **options):
    grid = Forging(experiment, kinds, **options)
    result = execute(experiment, engine=lambda problem, _: engine_of(experiment, grid, problem), save=False)
    return result, grid


COUNTED = ("clients", "failed", "queries", "extra_queries", "bytes_up", "bytes_down", "train_loss")


def hold_without_the_liar(experiment, kinds, at_least):
    """The model, and what is counted, are those of a run in which the liar's forged replies are lost."""
    forged, grid = ran(experiment, kinds)
    without, plain = ran(experiment, kinds, plain=True)
    assert torch.equal(forged.params, without.params)
    assert (forged.params - forged.problem.initial()).norm() > 1e-3, "nothing was learnt, so nothing is compared"
    assert forged.summary["orders"] == without.summary["orders"]
    for name in COUNTED:
        assert forged.history[name] == without.history[name], name
    assert forged.summary["total_failed"] > 0
    assert forged.summary.get("strays", 0) >= grid.strays - 1  # the very last one may not be pulled any more
    assert grid.forged == plain.forged
    assert grid.forged.total() >= at_least
    assert all(said.startswith(("partition 2, round", "a reply of node")) for said in forged.summary["failures"])
    assert all(said.isprintable() for said in forged.summary["failures"])


EVERYBODY = {"kind": "uniform", "fraction": 1.0}


def everybody(rounds, **tables):
    """The liar has two of seven clients, and an order in every round."""
    experiment = tiny(rounds=rounds, selection=EVERYBODY, evaluation={"every": 0})
    return fedsim.experiment(**experiment.resolved() | tables)


def test_no_kind_of_forged_reply_moves_the_model():
    kinds = [*SPOILED, *STRAYS, *HARMLESS]
    hold_without_the_liar(everybody(len(kinds)), kinds, len(kinds))


ROUNDS = {"": 500, "fedzo_guard": 75, "fedzo_batches": 75, "scaffold": 75, "fzoos": 75, "one_byte": 75, "fedkseed": 75}


@pytest.mark.slow
@pytest.mark.parametrize("row", ROUNDS)
def test_of_500_forged_replies_none_moves_the_model(row):
    kinds = [*SPOILED, *STRAYS, *HARMLESS]
    random.Random(row).shuffle(kinds)
    kinds = [*HARMLESS, *kinds]  # what a client asks beside in its first round is in no order
    hold_without_the_liar(everybody(ROUNDS[row], **ROWS.get(row, {})), kinds, ROUNDS[row])


def test_nor_do_forged_scores_and_utilities():
    """Every second order of a round asks for losses, and a selector is told utilities."""
    for loss in ("full", "last"):
        kinds = ["a row too many", "infinite", "queries", "twice", "clients beyond all", "an array too many"]
        selection = {"kind": "power_of_choice", "count": 3, "pool": 6, "loss": loss}
        hold_without_the_liar(everybody(10, selection=selection), kinds, 6)


@pytest.mark.parametrize("row", ["fedzo_guard", "one_byte", "fedkseed"])
def test_nor_where_values_and_codes_are_sent(row):
    kinds = ["one column", "not a number" if row == "fedzo_guard" else "as float16", "queries", "twice", "another name"]
    hold_without_the_liar(everybody(6, **ROWS[row]), kinds, 6)


def test_a_refusal_names_the_partition_the_round_and_what_is_wrong():
    experiment = everybody(3)
    result, _ = ran(experiment, ["one column", "queries that are no numbers", "a name of control characters"])
    d = result.problem.dimension
    assert result.summary["failures"] == [
        f"partition 2, round 1: delta is float32 [2, 1], not float32 [2, {d}]",
        "partition 2, round 2: queries is float64 [2, 3], not int64 [2, 3]",
        "partition 2, round 3: nobody has asked for '\\x1b[2J'",
    ]
    assert (result.status, result.summary["total_failed"], result.summary["used"]) == ("finished", 6, 15)


def test_where_every_reply_is_refused_the_run_says_so():
    experiment = everybody(100)
    result, _ = ran(experiment, ["flat"], nodes=1)
    assert result.status == "stalled"
    # 72 rounds of 7 clients are the first with 500 orders.
    assert result.reason == "504 orders in a row brought no reply that was used: 504 replies could not be used"
    assert result.summary["failures"][0].startswith("partition 0, round 1: delta is float32 [")


# --- What is not a reply to an order


@pytest.mark.parametrize(
    ("kind", "change", "complaint"),
    [
        ("query", lambda content: content.__delitem__("config"), r"node \d+ does not introduce itself .* it lacks"),
        ("query", lambda content: content["config"].pop("experiment"), "it lacks experiment"),
        ("query", lambda content: content["config"].update({"partition-id": "zero"}), "whole numbers as partition-id"),
        ("query", lambda content: content["config"].update({"num-partitions": 1.5}), "whole numbers as partition-id"),
        ("query", lambda content: content["config"].update({"data": "other"}), "other examples than the server's"),
    ],
)
def test_who_does_not_introduce_itself_is_refused(kind, change, complaint):
    class Strange(LocalGrid):
        def reply(self, message, context):
            reply = super().reply(message, context)
            change(reply.content)
            return reply

    with pytest.raises(GridError, match=complaint):
        engine_of(experiment := tiny(), Strange(client_app(experiment), partitions(2)))


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.__delitem__("state"),
        lambda content: content["state"].pop("clients"),
        lambda content: content["state"].update(clients=Array(np.array([0, 0]))),
        lambda content: content["state"].update(clients=Array(np.array([3, 5]))),
        lambda content: content["state"].update(clients=Array(np.array([0, 70]))),
        lambda content: content["state"].update(control=Array(np.zeros((2, 1), np.float32))),
    ],
)
def test_what_clients_remember_is_held_to_what_they_keep(change):
    class Forgetful(LocalGrid):
        def reply(self, message, context):
            reply = super().reply(message, context)
            asked = (message.metadata.message_type, context.node_config["partition-id"])
            if asked == ("query.hand_over", 0):
                change(reply.content)
            return reply

    experiment = tiny("scaffold", "scaffold")
    grid = Forgetful(client_app(experiment), partitions(2))
    engine = engine_of(experiment, grid)
    problem = engine.executor.problem
    payload = {"params": problem.initial(), "control": torch.zeros(problem.dimension)}
    engine.submit(Order("train", torch.tensor([0, 2, 3, 5]), payload))
    engine.collect(All(), 0)
    with pytest.raises(GridError, match="partition 0 does not say what its clients remember"):
        engine.snapshot()


# --- The parts


def test_forms_are_compared_by_name_type_and_shape():
    asked = {"a": Form("float32", (2, 3))}
    assert misfit(dict(asked), asked) is None
    assert misfit({}, asked) == "a is missing"
    assert misfit({"a": Form("float32", (2, 1))}, asked) == "a is float32 [2, 1], not float32 [2, 3]"
    assert misfit({"a": Form("float64", (2, 3))}, asked) == "a is float64 [2, 3], not float32 [2, 3]"
    assert misfit(asked | {"b": Form("float32", (2, 3))}, asked) == "nobody has asked for 'b'"


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.int32, np.uint8, np.int8, np.bool_])
@pytest.mark.parametrize("order", ["C", "F"])
def test_what_fits_is_decoded_as_flower_does(dtype, order):
    values = np.asarray(np.arange(6).reshape(2, 3) % 2, dtype, order=order)
    found = decoded(Array(values), Form(values.dtype.name, (2, 3)))
    assert np.array_equal(found.numpy(), values)
    assert found.numpy().dtype == dtype
    found.zero_()  # a copy, which is its owner's
