"""Flower's grid in this process: what a node sees, what crosses, when it arrives, and that nothing is left behind."""

import math
import random
import time

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity

from fedsim.core.errors import FedsimError, InputError, StalledError
from fedsim.flower import VirtualGrid


def app_of(handler, **kwargs):
    app = ClientApp(**kwargs)
    app.query()(handler)
    return app


def echo(message, context):
    return Message(message.content, reply_to=message)


def asked(grid, content=None, partitions=None, **kwargs):
    """A query for each node, or for those of some partitions; each with the same content, as strategies send it."""
    content = RecordDict() if content is None else content
    nodes = grid.get_node_ids()
    return [Message(content, nodes[row], "query", **kwargs) for row in partitions or range(len(nodes))]


def partition_of(message, context):
    found = MetricRecord({"partition": context.node_config["partition-id"]})
    return Message(RecordDict({"found": found}), reply_to=message)


def partitions(replies):
    return [reply.content["found"]["partition"] for reply in replies]


def test_nodes_have_a_place_a_configuration_and_an_id_that_the_seed_names():
    def describe(message, context):
        seen.append((context.node_id, context.run_id, dict(context.node_config), dict(context.run_config)))
        return echo(message, context)

    seen = []
    with VirtualGrid(app_of(describe), 3, run_config={"lr": 0.1}, seed=4) as grid:
        ids = grid.get_node_ids()
        assert [node.node_id for node in grid.get_nodes()] == ids
        replies = grid.send_and_receive(asked(grid))
    config = [{"partition-id": row, "num-partitions": 3} for row in range(3)]
    assert seen == [(ids[row], grid.run.run_id, config[row], {"lr": 0.1}) for row in range(3)]
    assert [reply.metadata.src_node_id for reply in replies] == ids
    assert ids == VirtualGrid(app_of(echo), 3, seed=4).get_node_ids()
    assert not set(ids) & set(VirtualGrid(app_of(echo), 3, seed=5).get_node_ids())


def test_a_nodes_configuration_may_have_entries_with_a_place_for_the_partition():
    def describe(message, context):
        seen.append(dict(context.node_config))
        return echo(message, context)

    seen = []
    entries = {"path": "d/{partition-id}/{partition-id:03}.csv", "text": "{no} {} {partition-id", "lr": 0.5, "on": True}
    with VirtualGrid(app_of(describe), 12, node_config=entries) as grid:
        grid.send_and_receive(asked(grid))
    assert seen[11] == {"partition-id": 11, "num-partitions": 12, **entries, "path": "d/11/011.csv"}
    assert [config["path"] for config in seen[:2]] == ["d/0/000.csv", "d/1/001.csv"]


def test_a_partitions_number_is_written_in_no_more_digits_than_a_name_has():
    with pytest.raises(InputError, match=r"^node-config\.path = \{partition-id:99999\}: .*999 digits at most$"):
        VirtualGrid(app_of(echo), 1, node_config={"path": "{partition-id:99999}"})


def records():
    arrays = ArrayRecord({"w": Array(np.zeros(2, np.float32))})
    return RecordDict({"arrays": arrays, "config": ConfigRecord({"names": ["a"], "lr": 1.0})})


def test_what_a_client_edits_nobody_else_sees():
    def edit(message, context):
        content = message.content
        found.append(
            (content["arrays"]["w"].numpy().tolist(), list(content["config"]["names"]), content["config"]["lr"])
        )
        content["arrays"]["w"].data = Array(np.ones(2, np.float32)).data
        content["arrays"]["v"] = Array(np.ones(1))
        content["config"]["names"].append("b")
        content["config"]["lr"] = 2.0
        content["more"] = MetricRecord()
        message.metadata.group_id = "edited"
        message.metadata.dst_node_id = 5
        return Message(content, reply_to=message)

    found, content = [], records()
    with VirtualGrid(app_of(edit), 3) as grid:
        replies = grid.send_and_receive(asked(grid, content))
    assert found == [([0.0, 0.0], ["a"], 1.0)] * 3
    assert list(content) == ["arrays", "config"]
    assert list(content["arrays"]) == ["w"]
    assert content["arrays"]["w"].numpy().tolist() == [0.0, 0.0]
    assert content["config"] == {"names": ["a"], "lr": 1.0}
    assert replies[2].content["config"]["names"] == ["a", "b"]
    assert replies[2].content["arrays"]["w"].numpy().tolist() == [1.0, 1.0]


def test_bytes_of_arrays_are_shared_not_copied():
    content = records()
    with VirtualGrid(app_of(echo), 2) as grid:
        replies = grid.send_and_receive(asked(grid, content))
    for reply in replies:
        assert reply.content["arrays"]["w"].data is content["arrays"]["w"].data


def test_what_a_client_keeps_of_its_reply_and_of_its_state_is_its_own():
    def keep(message, context):
        seen = context.state.metric_records.setdefault("calls", MetricRecord({"list": []}))
        seen["list"].append(len(kept))
        kept.append(seen)
        reply = Message(RecordDict({"found": seen}), reply_to=message)
        for earlier in kept[:-1]:
            earlier["list"].append(-1)
        return reply

    kept = []
    with VirtualGrid(app_of(keep), 2) as grid:
        replies = [reply for _ in range(3) for reply in grid.send_and_receive(asked(grid))]
    # Calls 0, 2 and 4 are of the first node, and each of the second edits what the first has kept.
    lists = [[0], [1], [0, 2], [1, 3], [0, 2, 4], [1, 3, 5]]
    assert [reply.content["found"]["list"] for reply in replies] == lists
    assert kept[0]["list"] == [0, -1, -1, -1, -1, -1]


def test_a_message_that_is_sent_stays_as_it_was_sent():
    def see(message, context):
        seen.append((message.content["config"]["lr"], len(message.content["arrays"]["w"].data)))
        return echo(message, context)

    seen, content = [], records()
    size = len(content["arrays"]["w"].data)
    with VirtualGrid(app_of(see), 1) as grid:
        names = grid.push_messages(asked(grid, content))
        content["config"]["lr"], content["arrays"]["w"].data = 3.0, b""
        grid.pull_messages(names)
    assert seen == [(1.0, size)]


def test_a_node_remembers_what_it_did_and_forgets_what_failed():
    def count(message, context):
        calls = context.state.metric_records.setdefault("calls", MetricRecord({"count": 0, "list": []}))
        calls["count"] += 1
        calls["list"].append(calls["count"])
        if message.content["config"]["fail"]:
            raise RuntimeError("not this time")
        return Message(RecordDict({"found": MetricRecord(dict(calls))}), reply_to=message)

    found = []
    with VirtualGrid(app_of(count), 2) as grid:
        for fail in (False, True, False):
            content = RecordDict({"config": ConfigRecord({"fail": fail})})
            found.append(grid.send_and_receive(asked(grid, content)))
    assert [dict(reply.content["found"]) for reply in found[0]] == [{"count": 1, "list": [1]}] * 2
    assert all(reply.has_error() for reply in found[1])
    assert [dict(reply.content["found"]) for reply in found[2]] == [{"count": 2, "list": [1, 2]}] * 2


def another(message, context):
    return Message(message.content, dst_node_id=1, message_type="query")


def leave(message, context):
    raise SystemExit(3)


def unwell(message, context):
    raise ArithmeticError("client trouble")


def steer(message, context):
    raise ValueError("\x1b]0;title\x07\u202e")


WRONG = {
    "an exception": (unwell, "ArithmeticError: client trouble"),
    "an exit": (leave, "SystemExit: 3"),
    "letters that steer a terminal": (steer, r"ValueError: \x1b]0;title\x07\u202e"),
    "nothing": (lambda message, context: None, "the client app returned NoneType, not a reply"),
    "another message": (another, "the client app returned Message, not a reply"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_goes_wrong_in_a_client_is_an_error_reply_with_its_traceback(case):
    handler, said = WRONG[case]

    def one(message, context):
        return handler(message, context) if context.node_config["partition-id"] == 1 else echo(message, context)

    with VirtualGrid(app_of(one), 3) as grid:
        replies = grid.send_and_receive(asked(grid))
    assert [reply.has_error() for reply in replies] == [False, True, False]
    assert replies[1].error.code == 2
    assert said in replies[1].error.reason
    assert "Traceback" in replies[1].error.reason
    assert replies[1].error.reason.replace("\n", "").isprintable()
    assert [(error.partition, error.error) for error in grid.errors] == [(1, replies[1].error.reason)]
    assert replies[1].metadata.reply_to_message_id
    assert replies[1].metadata.src_node_id == grid.get_node_ids()[1]


def test_no_function_for_a_message_is_an_error_reply():
    with VirtualGrid(app_of(echo), 1) as grid:
        node = grid.get_node_ids()[0]
        (reply,) = grid.send_and_receive([Message(RecordDict(), node, "train")])
    assert "No train function registered" in reply.error.reason


def test_an_interrupt_is_the_users_not_the_clients():
    def interrupt(message, context):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), VirtualGrid(app_of(interrupt), 1) as grid:
        grid.send_and_receive(asked(grid))


def test_replies_come_in_the_order_of_their_times_then_of_their_messages():
    with VirtualGrid(app_of(partition_of), 4, durations={0: 2.0, 2: 2.0, 3: 1.0}) as grid:
        replies = grid.send_and_receive(reversed(asked(grid)))
        # Node 1 takes no time; 3 one second; 2 and 0 two, and 2 was asked first.
        assert partitions(replies) == [1, 3, 2, 0]
        assert grid.now == 2 * 10**9


def test_a_timeout_is_virtual_and_what_is_late_can_be_pulled():
    with VirtualGrid(app_of(partition_of), 3, durations={1: 5.0, 2: 3600.0}) as grid:
        messages = asked(grid)
        assert partitions(grid.send_and_receive(messages, timeout=4.0)) == [0]
        assert grid.now == 4 * 10**9
        names = [message.metadata.message_id for message in messages[1:]]
        # Nothing is there, so the clock moves to what comes first; then to the rest.
        assert partitions(grid.pull_messages(names)) == [1]
        assert grid.now == 5 * 10**9
        assert partitions(grid.pull_messages(names[1:])) == [2]
        assert partitions(grid.send_and_receive(asked(grid, partitions=[1], ttl=math.inf), timeout=math.inf)) == [1]
        assert grid.now == 3605 * 10**9


def test_an_app_that_polls_ends():
    found, sleeps = [], 0
    with VirtualGrid(app_of(partition_of), 3, durations={0: 7.0, 1: 3.0, 2: 3.0}) as grid:
        left = set(grid.push_messages(asked(grid)))
        while left:
            replies = grid.pull_messages(left)
            left -= {reply.metadata.reply_to_message_id for reply in replies}
            found.append(partitions(replies))
            sleeps += 1
    assert (found, sleeps) == ([[1, 2], [0]], 2)


def test_an_app_that_polls_for_all_it_ever_sent_ends_too():
    with VirtualGrid(app_of(partition_of), 3, durations={1: 2.0, 2: 4.0}) as grid:
        names = grid.push_messages(asked(grid))
        polled = [grid.pull_messages(names) for _ in range(3)]
    # At 0, 2 and 4 seconds; what was handed over before is an error, as on Flower.
    assert [partitions(reply for reply in replies if reply.has_content()) for replies in polled] == [[0], [1], [2]]
    assert [sum(reply.has_error() for reply in replies) for replies in polled] == [0, 1, 2]


SECOND = 10**9


def test_a_server_looks_without_pulling_time_forward():
    with VirtualGrid(app_of(partition_of), 3, durations={0: 7.0, 1: 3.0, 2: 3.0}) as grid:
        slow, *quick = grid.push_messages(asked(grid))
        names = [*reversed(quick), slow]

        def waited(ids, until=None):
            return [names.index(name) for name in grid.wait(ids, until)], grid.now / SECOND

        # The replies are there after 3, 3 and 7 seconds: of nodes 2, 1 and 0 here, and node 1 was asked before node 2.
        assert waited(names, 2 * SECOND) == ([], 2.0)
        assert waited(names, 1 * SECOND) == ([], 2.0)  # the past leaves the clock as it is
        assert waited([], 5 * SECOND // 2) == ([], 2.5)
        assert waited([]) == ([], 2.5)
        assert waited([names[2]], 3 * SECOND - 1) == ([], 3.0 - 1e-9)
        assert waited(names, 9 * SECOND) == ([1, 0], 3.0)
        assert waited(names) == ([1, 0], 3.0)  # nothing was taken, and the clock waits for nobody else
        assert partitions(grid.pull_messages(names)) == [1, 2]
        # What was handed over, and what is unknown, is ignored.
        assert waited([*names, "unknown"], 4 * SECOND) == ([], 4.0)
        assert waited(["unknown", names[0]]) == ([], 4.0)
        assert waited([names[2], names[2]]) == ([2], 7.0)
        assert waited([names[2]], 6 * SECOND) == ([2], 7.0)
        assert partitions(grid.pull_messages(names[2:])) == [0]


def test_a_wait_begins_with_what_was_sent_meanwhile_and_knows_whose_node_is_busy_and_whose_time_is_over():
    with VirtualGrid(app_of(partition_of), 2, durations={0: 2.0, 1: 5.0}) as grid:
        first, second = grid.push_messages(asked(grid, partitions=[0, 0]))
        (brief,) = grid.push_messages(asked(grid, partitions=[1], ttl=3.0))
        # Node 0 is done after 2 and 4 seconds; the message to node 1 lives for 3 of the 5 that it would take.
        assert grid.wait([second, brief, first], 10 * SECOND) == [first]
        assert grid.now == 2 * SECOND
        assert grid.wait([second, brief]) == [brief]
        assert grid.now == 3 * SECOND
        assert grid.pull_messages([brief])[0].error.code == 3
        (third,) = grid.push_messages(asked(grid, partitions=[0]))
        assert grid.wait([third, second], 20 * SECOND) == [second]
        assert grid.now == 4 * SECOND
        assert grid.wait([third]) == [third]
        assert grid.now == 6 * SECOND
        assert len(grid.pull_messages([first, second, third])) == 3


def test_a_wait_lasts_as_long_as_a_call_takes_where_time_is_real():
    def sleep(message, context):
        time.sleep(0.02)
        return partition_of(message, context)

    with VirtualGrid(app_of(sleep), 1, real_time=True) as grid:
        names = grid.push_messages(asked(grid))
        assert grid.wait(names, SECOND // 100) == []
        assert grid.now == SECOND // 100
        assert grid.wait(names, 10**4 * SECOND) == names
        assert grid.now / SECOND == grid.exchanges[0].due >= 0.02


def test_a_node_does_one_thing_after_the_other():
    with VirtualGrid(app_of(partition_of), 2, durations={0: 2.0, 1: 3.0}) as grid:
        names = grid.push_messages(asked(grid, partitions=[0, 1, 0]))
        # Done at 2, 3 and 4 seconds: the second message of node 0 waits for its first.
        done = []
        while len(done) < 3:
            done += [(partitions([reply])[0], grid.now // 10**9) for reply in grid.pull_messages(names)]
            names = [name for name in names if name in grid._flights]
    assert done == [(0, 2), (1, 3), (0, 4)]


def test_a_message_lives_as_long_as_it_says():
    def count(message, context):
        worked.append(context.node_config["partition-id"])
        return partition_of(message, context)

    worked = []
    with VirtualGrid(app_of(count), 2, durations={0: 2.0, 1: 3.0}) as grid:
        # Node 0 has done its first message after 2 s, and its second after 4, of which it may last 3.
        # Node 1 works 3 s for a message that may last 3. The third of node 0 is over before it is looked at.
        replies = grid.send_and_receive(asked(grid, partitions=[0, 0, 1, 0], ttl=3.0))
        assert [reply.has_error() for reply in replies] == [False, True, False, True]
        assert [reply.error.code for reply in replies if reply.has_error()] == [3, 3]
        assert partitions([replies[0], replies[2]]) == [0, 1]
        assert sorted(worked) == [0, 0, 1]
        assert grid.now == 3 * 10**9
        assert [exchange.due for exchange in grid.exchanges] == [2.0, 3.0, 3.0, 3.0]


def test_whoever_asks_for_what_is_unknown_gets_an_error():
    with VirtualGrid(app_of(partition_of), 1, durations={0: 1.0}) as grid:
        (name,) = grid.push_messages(asked(grid))
        unknown, reply = grid.pull_messages(["unknown", name])
        assert (unknown.error.code, unknown.metadata.reply_to_message_id) == (3, "unknown")
        assert partitions([reply]) == [0]
        (name,) = grid.push_messages(asked(grid))
        assert partitions(grid.pull_messages([name, name])) == [0]
        assert grid.pull_messages([name])[0].error.code == 3
        assert grid.pull_messages([]) == []
        assert grid.send_and_receive([]) == []


def test_messages_that_cannot_be_sent():
    with VirtualGrid(app_of(echo), 1) as grid:
        (message,) = asked(grid)
        grid.push_messages([message])
        with pytest.raises(ValueError, match="Invalid message"):
            grid.push_messages([Message(RecordDict(), reply_to=message)])
        with pytest.raises(ValueError, match="Invalid message"):
            grid.push_messages(asked(grid, ttl=-1.0))
        assert len(grid.push_messages([Message(RecordDict(), 17, "query"), message])) == 1
        made = grid.create_message(RecordDict(), "query", message.metadata.dst_node_id, "3", ttl=5.0)
        (reply,) = grid.send_and_receive([made])
        assert (reply.metadata.group_id, made.metadata.ttl) == ("3", 5.0)
    assert [exchange.round for exchange in grid.exchanges] == [None, None, 3]


def test_what_nobody_asks_for_is_done_all_the_same():
    def note(message, context):
        seen.append(context.node_config["partition-id"])
        return echo(message, context)

    seen = []
    with VirtualGrid(app_of(note), 2) as grid:
        grid.push_messages(asked(grid))
        assert seen == []
    assert seen == [0, 1]


def draws():
    return [random.random(), float(np.random.normal()), float(torch.rand(()))]  # noqa: NPY002  # as apps do


def draw(message, context):
    return Message(RecordDict({"found": MetricRecord({"drawn": draws()})}), reply_to=message)


def drawn(replies):
    return {reply.metadata.src_node_id: reply.content["found"]["drawn"] for reply in replies}


def test_draws_are_named_by_seed_node_and_call_and_by_nothing_else():
    def rounds(seed, *orders):
        with VirtualGrid(app_of(draw), 3, seed=seed) as grid:
            nodes = grid.get_node_ids()
            found = [drawn(grid.send_and_receive(asked(grid, partitions=order))) for order in orders]
        return [{nodes.index(node): values for node, values in part.items()} for part in found]

    first, second = rounds(0, [0, 1, 2], [0, 1, 2])
    values = [tuple(found[row]) for found in (first, second) for row in range(3)]
    assert len(set(values)) == 6
    # Another order, fewer nodes, and another round in between change nobody's numbers.
    backwards, later = rounds(0, [2, 1, 0], [1])
    assert backwards == first
    assert later == {1: second[1]}
    assert rounds(1, [0, 1, 2]) != [first]


def test_the_servers_draws_are_its_own_and_the_processs_generators_are_put_back():
    def run(seed, nodes):
        found = [draws()]
        with VirtualGrid(app_of(draw), nodes, seed=seed) as grid:
            found.append(draws())
            grid.send_and_receive(asked(grid))
            found.append(draws())
        return found

    random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
    expected = [draws(), draws()]
    random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
    before, *inside = run(7, 2)
    assert [before, draws()] == expected
    # However many clients have drawn meanwhile.
    assert run(7, 3)[1:] == inside
    assert run(8, 2)[1:] != inside


def test_flowers_own_sampling_is_the_seeds():
    def sampled(seed):
        with VirtualGrid(app_of(echo), 20, seed=seed) as grid:
            strategy = FedAvg(fraction_train=0.2)
            messages = strategy.configure_train(1, ArrayRecord(), ConfigRecord(), grid)
            nodes = grid.get_node_ids()
            return [nodes.index(message.metadata.dst_node_id) for message in messages]

    assert sampled(3) == sampled(3)
    assert len(sampled(3)) == 4
    assert sampled(3) != sampled(4)


def test_one_core_an_operation_for_clients_and_as_before_for_the_server(monkeypatch):
    def threads(message, context):
        seen.append(torch.get_num_threads())
        torch.set_num_threads(3)
        return echo(message, context)

    seen, before = [], torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with VirtualGrid(app_of(threads), 1) as grid:
            grid.send_and_receive(asked(grid))
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == [1]


@pytest.mark.parametrize("failing", [False, True])
def test_nothing_is_left_behind(failing):
    identity = dict(vars(TaskIdentity))
    start, encode, decode = FedAvg.start, vars(Array)["from_numpy_ndarray"], Array.numpy
    try:
        with VirtualGrid(app_of(echo), 1):
            assert TaskIdentity.node_id == 1
            assert FedAvg.start is not start
            if failing:
                raise LookupError
    except LookupError:
        pass
    assert dict(vars(TaskIdentity)) == identity
    assert (FedAvg.start, vars(Array)["from_numpy_ndarray"], Array.numpy) == (start, encode, decode)
    with VirtualGrid(app_of(echo), 1):  # the lock is free again
        pass


def test_one_app_at_a_time():
    with (
        VirtualGrid(app_of(echo), 1),
        pytest.raises(FedsimError, match="another Flower app is running"),
        VirtualGrid(app_of(echo), 1),
    ):
        pass


def test_an_app_that_waits_for_nodes_is_told_that_none_will_come():
    complaint = "the app waits for more nodes and there are 3; give it more"
    with VirtualGrid(app_of(echo), 3) as grid, pytest.raises(StalledError, match=complaint):
        FedAvg(min_available_nodes=4).start(grid, ArrayRecord(), num_rounds=1)


@pytest.mark.parametrize(
    ("kwargs", "option"),
    [
        ({"nodes": 0}, "nodes = 0"),
        ({"nodes": 2, "durations": {2: 1.0}}, "durations = 2"),
        ({"nodes": 2, "durations": {1: -1.0}}, r"durations\.1 = -1\.0"),
        ({"nodes": 2, "durations": {1: math.nan}}, r"durations\.1 = nan"),
    ],
)
def test_bad_options(kwargs, option):
    with pytest.raises(InputError, match=f"^{option}: "):
        VirtualGrid(app_of(echo), **kwargs)


def test_exchanges_say_what_crossed():
    def train(message, context):
        message.content.clear()
        return Message(RecordDict({"arrays": ArrayRecord([np.zeros(3)])}), reply_to=message)

    content = RecordDict({"arrays": ArrayRecord([np.zeros(2)]), "config": ConfigRecord({"server-round": 5})})
    with VirtualGrid(app_of(train), 2, durations={1: 1.5}) as grid:
        grid.send_and_receive(asked(grid, content))
    first, second = grid.exchanges
    assert (first.partition, first.message_type, first.round, first.sent, first.due) == (0, "query", 5, 0.0, 0.0)
    assert (second.partition, second.due, second.error) == (1, 1.5, "")
    # NumPy's file format: 128 bytes of description and 8 for each number.
    assert (second.bytes_down, second.bytes_up) == (128 + 2 * 8, 128 + 3 * 8)
    assert 0 <= first.seconds < 10
