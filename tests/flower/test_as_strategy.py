"""Our strategies in apps that know nothing of us: the model and the rounds are those of the rule, by either loop."""

import numpy as np
import pytest
import torch
from apps.own import with_numpy, with_torch
from apps.own.running import run, start
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg as FlowersFedAvg
from flwr.serverapp.strategy import Strategy as FlowersStrategy

from fedsim.core.errors import InputError, StalledError
from fedsim.flower import as_flower_strategy
from strategies.fedavg import FedAvg
from strategies.fedbuff import FedBuff
from strategies.fedprox import FedProx

NODES = 4
SIZES = [6, 8, 10, 12]


def numbers(arrays):
    return [array.numpy() for array in arrays.values()]


def averaged(rounds, **training):
    """FedAvg by hand, with all nodes in each round."""
    w, c = numbers(with_numpy.initial())
    for _ in range(rounds):
        moved = [with_numpy.moved(node, w, c, **training) for node in range(NODES)]
        w, c = (np.average(np.stack(part), axis=0, weights=SIZES) for part in zip(*moved, strict=True))
    return w, c


def held_by_flower(strategy, app, initial, **named):
    """Flower's own loop, with a strategy of ours in it."""
    return run(lambda grid, context: FlowersStrategy.start(strategy, grid, initial, **named), app)


def test_it_is_a_strategy_of_flowers_and_its_start_gives_flowers_result():
    strategy = as_flower_strategy(FedAvg())
    assert isinstance(strategy, FlowersStrategy)
    seen = []

    def evaluate(round_, arrays):
        seen.append((round_, numbers(arrays)[0].copy()))
        return MetricRecord({"accuracy": round_ / 10})

    result = start(strategy, with_numpy.client(), with_numpy.initial(), rounds=3, evaluate_fn=evaluate)
    for found, wanted in zip(numbers(result.arrays), averaged(3), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-10)
    assert [round_ for round_, _ in seen] == [0, 1, 2, 3]
    assert not seen[0][1].any()
    assert np.array_equal(seen[3][1], numbers(result.arrays)[0])
    assert {number: dict(told) for number, told in result.evaluate_metrics_serverapp.items()} == {
        number: {"accuracy": number / 10} for number in range(4)
    }
    assert sorted(result.train_metrics_clientapp) == sorted(result.evaluate_metrics_clientapp) == [1, 2, 3]
    told = result.train_metrics_clientapp[3]
    assert (told["replies"], told["failed"], told["staleness"]) == (NODES, 0, 0.0)


def test_metrics_are_those_of_flowers_own_strategy_and_some_of_ours():
    ours = start(as_flower_strategy(FedAvg()), with_numpy.client(), with_numpy.initial(), rounds=2)
    theirs = start(FlowersFedAvg(), with_numpy.client(), with_numpy.initial(), rounds=2)
    for part in ("train_metrics_clientapp", "evaluate_metrics_clientapp"):
        for number, told in getattr(theirs, part).items():
            found = getattr(ours, part)[number]
            assert {name: pytest.approx(value, rel=1e-9) for name, value in told.items()}.items() <= found.items()


@pytest.mark.parametrize(
    "made", [FedAvg(), FedAvg(server_lr=0.5), FedProx(proximal_mu=0.3)], ids=["plain", "lr", "prox"]
)
def test_flowers_own_loop_comes_to_the_same(made):
    own = start(as_flower_strategy(made), with_numpy.client(), with_numpy.initial(), rounds=4)
    held = held_by_flower(as_flower_strategy(made), with_numpy.client(), with_numpy.initial(), num_rounds=4)
    assert [array.data for array in own.arrays.values()] == [array.data for array in held.arrays.values()]
    assert own.train_metrics_clientapp == held.train_metrics_clientapp
    assert own.evaluate_metrics_clientapp == held.evaluate_metrics_clientapp


def test_who_holds_it_may_make_another_model_between_the_rounds():
    class Halving(FlowersFedAvg):
        """Halves what the strategy in it has made, as one that adds noise would change it."""

        def __init__(self, held):
            super().__init__()
            self.held = held

        def configure_train(self, server_round, arrays, config, grid):
            return self.held.configure_train(server_round, arrays, config, grid)

        def aggregate_train(self, server_round, replies):
            arrays, metrics = self.held.aggregate_train(server_round, replies)
            return ArrayRecord([array.numpy() / 2 for array in arrays.values()]), metrics

    w, c = numbers(with_numpy.initial())
    for _ in range(3):
        moved = [with_numpy.moved(node, w, c) for node in range(NODES)]
        w, c = (np.average(np.stack(part), axis=0, weights=SIZES) / 2 for part in zip(*moved, strict=True))
    result = start(Halving(as_flower_strategy(FedAvg())), with_numpy.client(), with_numpy.initial(), rounds=3)
    for found, wanted in zip(numbers(result.arrays), (w, c), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-10)


def test_a_round_that_nobody_aggregates_is_forgotten():
    held = as_flower_strategy(FedAvg())
    kept = []

    def main(grid, context):
        arrays, config = with_numpy.initial(), ConfigRecord()
        list(held.configure_train(1, arrays, config, grid))
        messages = held.configure_train(2, arrays, config, grid)
        assert [message.content["config"]["server-round"] for message in messages] == [2] * NODES
        replies = grid.send_and_receive(messages)
        kept.append(held.aggregate_train(2, replies))
        with pytest.raises(Exception, match="call configure_train first"):
            held.aggregate_train(2, replies)

    run(main, with_numpy.client())
    assert kept[0][1]["replies"] == NODES
    for found, wanted in zip(numbers(kept[0][0]), averaged(1), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-10)


def test_asynchronous_strategies_and_checkpoints_take_our_own_start(tmp_path):
    for strategy, option in (
        (as_flower_strategy(FedBuff(size=2)), "strategy"),
        (as_flower_strategy(FedAvg(first=2)), "strategy"),
        (as_flower_strategy(FedAvg(deadline=2.0)), "strategy"),
        (as_flower_strategy(FedAvg(), checkpoint=tmp_path / "run"), "checkpoint"),
        (as_flower_strategy(FedAvg(), duration=3.0), "duration"),
    ):
        with pytest.raises(InputError, match=f"^{option}"):
            held_by_flower(strategy, with_numpy.client(), with_numpy.initial())


def test_selection_is_drawn_from_the_seed_and_as_in_one_process():
    def selected(seed, **options):
        who = []

        def noted(contents, key):
            who.append(sorted(int(next(iter(content.metric_records.values()))[key]) for content in contents))
            return MetricRecord({})

        strategy = as_flower_strategy(
            FedAvg(), selection={"kind": "uniform", "count": 2}, seed=seed, train_metrics_aggr_fn=noted
        )
        start(strategy, with_numpy.client(), with_numpy.initial(), rounds=6, **options)
        return who

    first = selected(3)
    assert first == selected(3) != selected(4)
    assert all(len(round_) == 2 for round_ in first)


def test_settings_of_the_app_and_of_the_strategy_reach_clients():
    seen = []
    app = ClientApp()

    @app.train()
    def train(message, context):
        seen.append(dict(message.content["settings"]))
        content = {"model": message.content["model"], "metrics": MetricRecord({"weight": 1.5, "train_loss": 1.0})}
        return Message(RecordDict(content), reply_to=message)

    strategy = as_flower_strategy(
        FedProx(proximal_mu=0.25),
        arrayrecord_key="model",
        configrecord_key="settings",
        weighted_by_key="weight",
        fraction_evaluate=0.0,
    )
    result = start(strategy, app, with_numpy.initial(), rounds=2, nodes=2, config={"lr": 0.5})
    assert [one["server-round"] for one in seen] == [1, 1, 2, 2]
    assert all(one["lr"] == 0.5 and one["proximal-mu"] == 0.25 for one in seen)
    assert not result.evaluate_metrics_clientapp


def test_too_few_nodes_are_said_at_once_where_all_are_there():
    strategy = as_flower_strategy(FedAvg(), min_available_nodes=7)
    with pytest.raises(StalledError, match="4 nodes are connected, and 7 are needed"):
        start(strategy, with_numpy.client(), with_numpy.initial())


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"selection": {"kind": "uniform", "count": 9}, "min_available_nodes": 2}, "selection.count"),
        ({"aggregator": {"kind": "krum", "malicious": 2}}, "aggregation.malicious"),
        ({"frozen": ("encoder.*",)}, "frozen"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_sent(options, named):
    with pytest.raises(InputError, match=f"^{named}"):
        start(as_flower_strategy(FedAvg(), **options), with_numpy.client(), with_numpy.initial())


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"strategy": "fedavgg"}, "strategy.kind"),
        ({"strategy": "fedcbo"}, "strategy"),
        ({"strategy": "fedavg", "aggregator": "medain"}, "aggregator.kind"),
        ({"strategy": "fedavg", "fraction_evaluate": 1.5}, "fraction_evaluate"),
        ({"strategy": "fedavg", "nodes": 3}, "nodes"),
        ({"strategy": "fedavg", "transforms": [{"kind": "clip"}]}, "transforms.0.max_norm"),
    ],
)
def test_options_are_checked_when_it_is_made(options, named):
    with pytest.raises(InputError, match=f"^{named}"):
        as_flower_strategy(options.pop("strategy"), **options)


def test_a_robust_aggregator_and_transforms_go_with_any_strategy():
    strategy = as_flower_strategy(FedAvg(), aggregator="median", transforms=[{"kind": "clip", "max_norm": 0.05}])
    result = start(strategy, with_numpy.client(), with_numpy.initial(), rounds=1)
    moved = [np.concatenate(with_numpy.moved(node, *numbers(with_numpy.initial()))) for node in range(NODES)]
    clipped = [row * min(1.0, 0.05 / np.linalg.norm(row)) for row in moved]
    np.testing.assert_allclose(np.concatenate(numbers(result.arrays)), np.median(clipped, axis=0), rtol=1e-10)


def test_a_pytorch_app_is_trained():
    strategy = as_flower_strategy(FedAvg())
    result = start(strategy, with_torch.client(), with_torch.initial(), rounds=3)
    losses = [result.evaluate_metrics_clientapp[number]["eval_loss"] for number in (1, 3)]
    assert losses[1] < losses[0]
    assert all(torch.isfinite(tensor).all() for tensor in result.arrays.to_torch_state_dict().values())


def asked(values):
    """An app that answers `query` messages with values(partition, points [n, 4]), and says nothing else."""
    app = ClientApp()

    @app.query()
    def query(message, context):
        parts = [array.numpy() for array in message.content["candidates"].values()]
        points = np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)
        told = [float(value) for value in values(context.node_config["partition-id"], points)]
        return Message(RecordDict({"metrics": MetricRecord({"values": told})}), reply_to=message)

    return app


@pytest.mark.parametrize("failed", [np.nan, np.inf])
def test_a_value_that_failed_ranks_last_and_nobody_needs_to_say_what_it_weighs(failed):
    seen = []

    def bowl(partition, points):
        seen.append(points)
        found = ((points - 0.5) ** 2).sum(axis=1) + partition
        return np.where(found == found.min(), failed, found)

    # So large an alpha takes the best particle alone.
    strategy = {"kind": "cbo", "particles": 20, "alpha": 1e5, "spread": 1.0}
    result = start(as_flower_strategy(strategy, fraction_evaluate=0.0), asked(bowl), with_numpy.initial(), rounds=1)
    order = np.argsort(((seen[0] - 0.5) ** 2).sum(axis=1))
    np.testing.assert_allclose(np.concatenate(numbers(result.arrays)), seen[0][order[1]], atol=1e-9)
    assert result.train_metrics_clientapp[1]["replies"] == NODES
    assert "values" not in result.train_metrics_clientapp[1]


def test_who_has_no_value_at_all_is_left_out():
    def mute(partition, points):
        return np.full(len(points), np.nan) if partition == 2 else (points**2).sum(axis=1)

    strategy = as_flower_strategy({"kind": "cbo", "particles": 5}, fraction_evaluate=0.0)
    result = start(strategy, asked(mute), with_numpy.initial(), rounds=2)
    assert (result.train_metrics_clientapp[2]["replies"], result.train_metrics_clientapp[2]["failed"]) == (3, 1)
