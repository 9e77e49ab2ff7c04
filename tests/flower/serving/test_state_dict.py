"""Any state dict crosses: names, order, shapes and types are restored, and a change is against what a node was sent."""

import numpy as np
import pytest
import torch
from apps.own import with_torch
from apps.own.running import run, start, watched
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedsim.core.errors import InputError
from fedsim.flower import as_flower_strategy
from fedsim.flower.replies import RefusedError
from fedsim.flower.serving.state_dict import StateDict
from strategies.fedavg import FedAvg
from strategies.fedbuff import FedBuff

MODEL = {
    "b.half": np.array([[1.0, 0.1], [2048.5, -3.0]], np.float16),
    "count": np.array(7, np.int64),
    "a": np.array([1.0, 2.0, 1 / 3], np.float32),
    "a.scale": np.array(0.25, np.float32),
    "mask": np.array([True, False]),
    "a.empty": np.zeros((0, 4), np.float32),
    "wide": np.arange(6.0).reshape(1, 2, 3) / 7,
    "steps": np.array([1, 2], np.uint8),
}
"""Names that are not in order, several types, arrays without an axis and without numbers."""


def record(arrays, order=None):
    return ArrayRecord({name: Array(np.asarray(arrays[name])) for name in order or arrays})


def arrays_of(held):
    return {name: array.numpy() for name, array in held.items()}


def same(found, wanted):
    assert list(found) == list(wanted)
    for name, array in wanted.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def app_of(answer, examples=lambda partition: 1 + partition, metrics=None):
    """An app whose reply is `answer(arrays, partition, round)`, a dict of arrays or a record."""
    app = ClientApp()

    @app.train()
    def train(message, context):
        partition, number = context.node_config["partition-id"], message.content["config"]["server-round"]
        found = answer(arrays_of(message.content["arrays"]), partition, number)
        content = {
            "mine": found if isinstance(found, ArrayRecord) else record(found),
            "metrics": MetricRecord({"num-examples": examples(partition), "train_loss": 1.0, **(metrics or {})}),
        }
        return Message(RecordDict(content), reply_to=message)

    return app


def trained(answer, model=MODEL, strategy=None, rounds=1, nodes=2, durations=None, examples=None, **options):
    made = as_flower_strategy(strategy or FedAvg(), fraction_evaluate=0.0, **options)
    app = app_of(answer, examples or (lambda partition: 1 + partition))
    return watched(made, app, record(model), nodes=nodes, rounds=rounds, durations=durations)


def test_names_order_shapes_and_types_come_back():
    model = StateDict.of(record(MODEL))
    vector = model.vector(record(MODEL))
    assert vector.dtype == torch.float64
    assert vector.tolist() == [
        float(number) for name in ("b.half", "a", "a.scale", "wide") for number in MODEL[name].reshape(-1)
    ]
    same(arrays_of(model.record(model.model_floats(vector), model.kept(record(MODEL)))), MODEL)
    without = {name: array for name, array in MODEL.items() if name != "wide"}
    assert StateDict.of(record(without)).dtype == torch.float32


def test_arrays_in_any_order_of_names_and_of_memory_are_read_as_they_are():
    model = StateDict.of(record(MODEL))
    moved = {name: array + array.dtype.type(1) if array.dtype.kind == "f" else array for name, array in MODEL.items()}
    fortran = {name: np.array(array, order="F") for name, array in moved.items()}
    row = np.zeros(model.layout.dimension)
    whole = model.read(record(fortran, order=sorted(fortran)), row)
    same(arrays_of(model.record(model.model_floats(torch.from_numpy(row)), whole)), moved)


def test_nodes_are_sent_the_model_and_give_it_back():
    seen = []

    def answer(arrays, partition, number):
        seen.append(arrays)
        return dict(reversed(arrays.items()))

    result, _ = trained(answer, rounds=2)
    for arrays in [*seen, arrays_of(result.arrays)]:
        same(arrays, MODEL)


def test_the_mean_is_of_each_array_in_its_type():
    def answer(arrays, partition, number):
        return {name: array + array.dtype.type(partition) if array.dtype.kind == "f" else array
                for name, array in arrays.items()}  # fmt: skip

    # Two clients, of 1 and 2 examples, of whom the second adds 1: 2/3 more, rounded to each type.
    found = arrays_of(trained(answer)[0].arrays)
    for name, array in MODEL.items():
        if array.dtype.kind == "f":
            halves = (array + array.dtype.type(1)).astype(np.float64) - array  # float16 has no 2049.5
            np.testing.assert_allclose(found[name], (array + halves * 2 / 3).astype(array.dtype), rtol=1e-7)


def test_float64_answers_to_narrow_arrays_are_rounded_to_the_vectors_type():
    def answer(arrays, partition, number):
        return {name: array.astype(np.float64) + 0.1 if array.dtype.kind == "f" else array
                for name, array in arrays.items()}  # fmt: skip

    model = {name: array for name, array in MODEL.items() if name != "wide"}
    found = arrays_of(trained(answer, model)[0].arrays)
    np.testing.assert_array_equal(found["a"], (MODEL["a"].astype(np.float64) + 0.1).astype(np.float32))
    assert found["a"].dtype == np.float32


def test_a_change_is_against_what_the_node_was_sent_so_that_rounding_moves_nothing():
    # A model of float16 that has moved by less than float16 can say is sent rounded; a client that does nothing
    # leaves it where it is, and one that moves by a step of float16 moves it by that.
    step = np.float16(2.0**-10)  # of numbers from 1 to 2

    def answer(arrays, partition, number):
        moves = number == 1 and partition == 0
        return {"w": arrays["w"] + step * moves}

    model, served = {"w": np.array([1.0, 1.5], np.float16)}, []
    made = as_flower_strategy(FedAvg(), fraction_evaluate=0.0)
    serve = made._serve
    made._serve = lambda *given: served.append(serve(*given)) or served[0]
    watched(made, app_of(answer, lambda partition: (1, 9)[partition]), record(model), nodes=2, rounds=5)
    # A tenth of a step in the first round, and nothing after it.
    params = served[0].state.params
    assert params.tolist() == pytest.approx([1 + float(step) / 10, 1.5 + float(step) / 10], abs=1e-7)
    assert served[0].engine.dialect.model.arrived(params).tolist() == [1.0, 1.5]


def test_a_late_change_is_against_the_version_that_the_node_was_sent():
    def answer(arrays, partition, number):
        return {"w": arrays["w"] + np.float16(0.125) * (1 + partition)}

    # Node 0 takes 2.5 s, node 1 one: two replies of 1 are in before that of 0, which is about the first version.
    result, engine = trained(
        answer,
        {"w": np.zeros(2, np.float16)},
        FedBuff(size=1, staleness="constant"),
        rounds=4,
        durations={0: 2.5, 1: 1.0},
    )
    assert engine.trace.staleness == {0: 2, 2: 1, 1: 1}
    # 0.25 from each of node 1's three, 0.125 of node 0's one.
    assert result.arrays["w"].numpy().tolist() == [3 * 0.25 + 0.125] * 2


@pytest.mark.parametrize(("integers", "found"), [("largest", 20), ("latest", 10)])
def test_whole_numbers_are_those_of_the_largest_or_of_the_latest(integers, found):
    def answer(arrays, partition, number):
        flags = np.array([partition == 1, True])
        return arrays | {"count": arrays["count"] + 10 * (1 + partition) - 7, "mask": flags}

    # Node 0 is the last to answer, node 1 has more examples.
    result, _ = trained(answer, integers=integers, durations={0: 2.0, 1: 1.0})
    assert result.arrays["count"].numpy() == found
    assert result.arrays["mask"].numpy().tolist() == [found == 20, True]
    assert (result.arrays["count"].dtype, result.arrays["count"].shape) == ("int64", ())


def test_whole_numbers_stay_where_nobody_sends_them_and_are_of_who_was_not_left_out():
    def answer(arrays, partition, number):
        arrays["count"] = arrays["count"] + 1 + partition
        if partition == 1:
            arrays["a"] = arrays["a"] * np.nan
        return {name: array for name, array in arrays.items() if number == 1 or array.dtype.kind == "f"}

    result, engine = trained(answer, rounds=2)
    assert result.arrays["count"].numpy() == 8
    assert engine.ledger.failed == 2


def test_whole_numbers_of_a_round_that_is_skipped_are_not_taken():
    def answer(arrays, partition, number):
        if number == 2 and partition in (1, 2):
            return {"other": arrays["a"]}  # so that Krum has too few
        return {"count": arrays["count"] + 1, "a": arrays["a"] + np.float32(1)}

    result, engine = trained(answer, nodes=5, rounds=2, aggregator={"kind": "krum", "malicious": 1})
    assert engine.trace.skipped == 1
    assert result.arrays["count"].numpy() == 8
    np.testing.assert_array_equal(result.arrays["a"].numpy(), MODEL["a"] + np.float32(1))
    assert [told["replies"] for told in result.train_metrics_clientapp.values()] == [5, 3]


def test_frozen_arrays_stay_and_may_come_back_or_not():
    def answer(arrays, partition, number):
        answered = {name: array + array.dtype.type(1) if array.dtype.kind == "f" else array
                    for name, array in arrays.items()}  # fmt: skip
        return answered if partition else {"a.scale": answered["a.scale"], "wide": answered["wide"]}

    result, engine = trained(answer, frozen=("b.*", "a", "steps"))
    found = arrays_of(result.arrays)
    assert engine.ledger.failed == 0
    for name in ("b.half", "a", "steps", "count"):
        np.testing.assert_array_equal(found[name], MODEL[name])
    np.testing.assert_allclose(found["a.scale"], 1.25)
    np.testing.assert_allclose(found["wide"], MODEL["wide"] + 1)


def test_frozen_arrays_need_be_no_numbers_and_names_may_look_like_patterns():
    model = {"layers[0].w": np.ones(2), "layers0.w": np.ones(2), "words": np.array(["a", "b"])}
    held = StateDict.of(record(model), ["layers[0].w", "words"])
    assert held.layout.names == ("layers0.w",)
    assert list(held.record(held.model_floats(torch.zeros(2, dtype=torch.float64)), {})) == list(model)


def test_a_part_of_the_arrays_is_a_reply_that_leaves_the_others():
    # As apps with adapters of low rank send them; the number of examples counts for what is sent.
    def answer(arrays, partition, number):
        return {"lora.a": arrays["lora.a"] + 1} if partition else {name: array + 2 for name, array in arrays.items()}

    model = {"base": np.zeros(3), "lora.a": np.zeros((2, 1))}
    found = arrays_of(trained(answer, model)[0].arrays)
    # Of 1 and 2 examples: what is not sent has not changed.
    np.testing.assert_allclose(found["base"], 2 / 3)
    np.testing.assert_allclose(found["lora.a"], (2 + 2 * 1) / 3)


def test_a_pytorch_model_with_buffers_loads_what_comes_back():
    strategy = as_flower_strategy(FedAvg(), fraction_evaluate=0.0)
    result = start(strategy, with_torch.client(norm=True), with_torch.initial(norm=True), rounds=2, nodes=3)
    state, net = result.arrays.to_torch_state_dict(), with_torch.net(norm=True)
    assert list(state) == list(net.state_dict())
    net.load_state_dict(state)
    # Node 1 has 12 examples and node 2 has 16, in batches of 4: two rounds of four steps.
    assert state["1.num_batches_tracked"] == 8
    assert state["1.num_batches_tracked"].shape == ()


WRONG = {
    "another shape": ({"a": np.zeros(4, np.float32)}, "a is float32 [4], not floats [3]"),
    "another axis": ({"a": np.zeros((3, 1), np.float32)}, "a is float32 [3, 1], not floats [3]"),
    "no axis": ({"a": np.float32(1.0)}, "a is float32 [], not floats [3]"),
    "an axis too many": ({"a.scale": np.zeros(1, np.float32)}, "a.scale is float32 [1], not floats []"),
    "whole numbers for floats": ({"a": np.zeros(3, np.int64)}, "a is int64 [3], not floats [3]"),
    "truths for floats": ({"a": np.zeros(3, np.bool_)}, "a is bool [3], not floats [3]"),
    "complex numbers": ({"a": np.zeros(3, np.complex64)}, "a: its bytes are no array of numbers"),
    "letters": ({"a": np.array(["x", "y", "z"])}, "a: its bytes are no array of numbers"),
    "the other end first": ({"a": np.zeros(3, ">f4")}, "a: its bytes are no array of numbers"),
    "floats for whole numbers": ({"a": MODEL["a"], "count": np.array(7.5)}, "count is float64 [], not int64 []"),
    "another shape of whole numbers": ({"a": MODEL["a"], "count": np.zeros(1, np.int64)}, "count is int64 [1], not"),
    "whole numbers that do not fit": (
        {"a": MODEL["a"], "steps": np.array([1, 256])},
        "steps has numbers that are no uint8",
    ),
    "less than none": ({"a": MODEL["a"], "steps": np.array([1, -1])}, "steps has numbers that are no uint8"),
    "another name": ({"a": MODEL["a"], "b": np.zeros(1)}, "nobody has asked for 'b'"),
    "nothing": ({}, "it has none of the model's arrays"),
    "whole numbers alone": ({"count": MODEL["count"]}, "it has none of the model's arrays"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_not_of_the_model_is_refused(name):
    arrays, said = WRONG[name]
    model = StateDict.of(record(MODEL))
    with pytest.raises(RefusedError) as caught:
        model.read(record(arrays), np.zeros(model.layout.dimension))
    assert str(caught.value).startswith(said)


def described(array, **said):
    """An array whose description says something else."""
    made = Array(array)
    for name, value in said.items():
        object.__setattr__(made, name, value)
    return made


def test_bytes_count_and_not_what_is_said_of_them():
    model = StateDict.of(record(MODEL))
    row = np.zeros(model.layout.dimension)
    lying = described(np.array(9, np.int64), dtype="float32", shape=[5])
    whole = model.read(ArrayRecord({"a": Array(MODEL["a"]), "count": lying}), row, row)
    assert (whole["count"].dtype, whole["count"].shape, whole["count"].numpy()) == ("int64", (), 9)
    for wrong in (described(MODEL["a"], stype="pickle"), described(MODEL["a"], data=Array(MODEL["a"]).data[:-1])):
        with pytest.raises(RefusedError, match=r"^a: its"):
            model.read(ArrayRecord({"a": wrong}), row, row)


def test_whole_numbers_of_narrower_and_wider_types_are_taken():
    model = StateDict.of(record(MODEL))
    sent = {
        "a": MODEL["a"],
        "count": np.array(9, np.int8),
        "steps": np.array([3, 255], np.int64),
        "mask": np.array([1, 0]),
    }
    row = np.zeros(model.layout.dimension)
    whole = model.read(record(sent), row, row)
    assert {name: (array.dtype, array.numpy().tolist()) for name, array in whole.items()} == {
        "count": ("int64", 9),
        "steps": ("uint8", [3, 255]),
        "mask": ("bool", [True, False]),
    }


@pytest.mark.parametrize(
    ("model", "frozen", "said"),
    [
        ({}, (), "initial_arrays = (nothing): there are no floats"),
        ({"count": np.array(1)}, (), "initial_arrays = count: there are no floats"),
        ({"a": np.zeros((0, 2))}, (), "initial_arrays = a: there are no floats"),
        ({"a": np.zeros(2)}, ("*",), "initial_arrays = a: there are no floats"),
        ({"a": np.zeros(2), "words": np.array(["x"])}, (), "initial_arrays = words: its bytes are no array of numbers"),
        ({"a.weight": np.zeros(2)}, ("a.wieght",), "frozen = a.wieght: is no array of the model"),
        ({"a.weight": np.zeros(2)}, ("b.*",), "frozen = b.*: is no array of the model"),
    ],
)
def test_a_model_that_cannot_be_trained_is_refused(model, frozen, said):
    with pytest.raises(InputError) as caught:
        trained(lambda arrays, partition, number: arrays, model, frozen=frozen)
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda arrays: {"a": arrays["a"]}, "b is missing"),
        (lambda arrays: {**arrays, "b": arrays["b"][:1]}, "b is float64 [1], not floats [2]"),
        (lambda arrays: {**arrays, "c": arrays["b"]}, "nobody has asked for 'c'"),
    ],
)
def test_who_holds_a_strategy_and_hands_over_another_model_is_told(change, said):
    model = {"a": np.zeros(1), "b": np.zeros(2)}
    held = as_flower_strategy(FedAvg())

    def main(grid, context):
        held.configure_train(1, record(model), ConfigRecord(), grid)
        with pytest.raises(InputError, match=r"^arrays = ") as caught:
            held.configure_train(2, record(change(model)), ConfigRecord(), grid)
        assert said in str(caught.value)

    run(main, app_of(lambda arrays, partition, number: arrays), nodes=2)
