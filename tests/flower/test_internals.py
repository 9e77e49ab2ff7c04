"""What fedsim needs of Flower beyond its public interface is there and does what it did.

When one of these fails after an update of Flower, `fedsim/flower/internals.py` is what has to follow.
"""

import concurrent.futures
import inspect
import time

import flwr.server.server as legacy
import flwr.serverapp.server_app as apps
import flwr.serverapp.strategy as strategies
import flwr.serverapp.strategy.strategy_utils as sampling
import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.server.client_manager import SimpleClientManager
from flwr.server.compat.grid_client_proxy import GridClientProxy
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from fedsim.flower import VirtualGrid, internals


def test_messages_are_made_in_the_name_of_the_task():
    with internals.acting_as(1, 7):
        assert (TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id) == (1, 7, 1)
        message = Message(RecordDict(), 5, "train")
    assert (message.metadata.run_id, message.metadata.src_node_id, message.metadata.dst_node_id) == (7, 1, 5)
    internals.name_message(message, "m")
    assert message.metadata.message_id == "m"


def test_a_message_is_its_metadata_its_content_and_its_error():
    with internals.acting_as(1):
        message = Message(RecordDict({"a": ArrayRecord([np.ones(1)])}), 5, "train.fast", ttl=3.0, group_id="2")
        failed = Message(Error(2, "why"), reply_to=message)
    assert set(vars(message)) == {"_metadata", "_content", "_error"}
    for one in (message, failed):
        copy = internals.copied(one)
        assert vars(copy).keys() == vars(one).keys()
        assert (copy.metadata, copy.metadata is one.metadata) == (one.metadata, False)
    copy = internals.copied(message)
    assert copy.content == message.content
    assert internals.copied(failed).error == failed.error


def test_records_are_a_dictionary_and_arrays_four_fields():
    records = RecordDict(
        {
            "a": ArrayRecord({"w": Array(np.arange(3.0))}),
            "m": MetricRecord({"x": [1, 2], "y": 0.5}),
            "c": ConfigRecord({"names": ["a"], "raw": b"1", "on": True}),
        }
    )
    # The last one says whether the array's name in Flower's store is to be computed anew, and is made when asked for.
    assert set(vars(records["a"]["w"])) == {"dtype", "shape", "stype", "data", "_is_dirty"}
    copy = internals.copied_records(records)
    assert copy == records
    assert [type(record) for record in copy.values()] == [ArrayRecord, MetricRecord, ConfigRecord]
    assert copy["a"]["w"] is not records["a"]["w"]
    assert copy["m"]["x"] is not records["m"]["x"]
    for record in copy.values():
        with pytest.raises(TypeError):  # what may stand in a record is checked as before
            record[3] = record
    with pytest.raises(TypeError):
        copy["a"] = 3
    # No other record has come into being, and none has another field that would have to be copied.
    assert set(vars(records)) == set(vars(copy)) == {"_check_key_fn", "_check_value_fn", "_data"}
    assert set(inspect.signature(Context).parameters) == {
        *("run_id", "node_id", "node_config", "state", "run_config", "series_id")
    }


NUMBERS = np.random.default_rng(0).normal(size=(3, 4))
ARRAYS = {
    **{str(dtype): NUMBERS.astype(dtype) for dtype in ("f2", "f4", "f8", "i1", "u1", "i8", "?", "c16")},
    "a scalar": np.array(2.5),
    "none": np.zeros((0, 3), np.float32),
    "a slice": NUMBERS[:, ::2],
    "columns": np.asfortranarray(NUMBERS),
    "another order of bytes": NUMBERS.astype(">f4"),
    "text": np.array(["a", "bc"]),
    "one axis": np.arange(5),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_quick_arrays_are_the_same_bytes_and_the_same_numbers(name):
    numbers = ARRAYS[name]
    plain = Array(numbers)
    with internals.quick_arrays():
        quick = Array(numbers)
        read = plain.numpy()
    assert quick == plain
    assert quick.object_id == plain.object_id
    np.testing.assert_array_equal(read, numbers)
    assert (read.dtype, read.shape) == (numbers.dtype, numbers.shape)
    assert read.flags.writeable
    assert read.flags.owndata or read.base.flags.owndata


def test_quick_arrays_refuse_what_flower_refuses():
    with internals.quick_arrays():
        with pytest.raises(ValueError, match="allow_pickle"):
            Array(np.array([None]))
        with pytest.raises(TypeError, match="Unsupported serialization"):
            Array("float32", (1,), "other", b"1234").numpy()
        with pytest.raises(ValueError, match=r".*"):
            Array("float32", (9,), "numpy.ndarray", Array(np.zeros(9)).data[:-1]).numpy()
        state = {"w": torch.arange(4.0), "b": torch.tensor(1.5)}
        read = ArrayRecord(state).to_torch_state_dict()
        read["w"] += 1
    assert torch.equal(read["w"], state["w"] + 1)
    assert torch.equal(read["b"], state["b"])


def test_strategies_begin_in_one_place_and_return_their_result():
    for name in strategies.__all__:
        made = getattr(strategies, name)
        if name != "Result":
            assert made.start is strategies.Strategy.start, name
    assert "__init_subclass__" not in vars(strategies.Strategy)
    assert sampling.sleep is time.sleep
    assert vars(apps)["start_grid"].__name__ == "start_grid"


def test_legacy_servers_ask_clients_through_the_module_of_threads():
    assert legacy.concurrent.futures is concurrent.futures
    for function in (legacy.fit_clients, legacy.evaluate_clients, legacy.reconnect_clients):
        source = inspect.getsource(function)
        for call in ("concurrent.futures.ThreadPoolExecutor(", "executor.submit(", "concurrent.futures.wait("):
            assert call in source, (function.__name__, call)
    assert "grid" in inspect.signature(GridClientProxy).parameters
    assert list(inspect.signature(SimpleClientManager.wait_for).parameters) == ["self", "num_clients", "timeout"]


def test_the_grid_is_what_flower_asks_of_one():
    for name in Grid.__abstractmethods__:
        assert name in vars(VirtualGrid), name
        ours, theirs = getattr(VirtualGrid, name), getattr(Grid, name)
        if not isinstance(ours, property):
            assert list(inspect.signature(ours).parameters) == list(inspect.signature(theirs).parameters), name
    assert internals.empty_run(5).run_id == 5
    assert (internals.RAISED, internals.CRASHED, internals.EXPIRED, internals.SERVER) == (2, 8, 3, 1)


def test_configurations_are_read_as_flower_reads_them(tmp_path):
    app = {"config": {"lr": 0.1, "model": {"hidden": 8, "name": "mlp"}, "on": False}}
    given = ['lr=0.2 model.name="a b"', "on=true"]
    assert internals.run_config(app, given) == {"lr": 0.2, "model.hidden": 8, "model.name": "a b", "on": True}
    file = tmp_path / "other.toml"
    file.write_text("lr = 0.3\n[model]\nhidden = 4\n")
    found = internals.run_config(app, [str(file)])
    assert found == {"lr": 0.3, "model.hidden": 4, "model.name": "mlp", "on": False}
    assert internals.run_config({}, []) == {}
    for bad in (["rate=1"], ["lr=fast"], [str(file), "lr=1"]):
        with pytest.raises(ValueError, match=r".+"):
            internals.run_config(app, bad)
