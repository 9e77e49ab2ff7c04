"""Our strategies in a Flower app come to what Flower's own do: in our loop, in Flower's, and in Flower's wrappers."""

import logging

import flwr.serverapp.strategy as flower
import numpy as np
import pytest
from apps.own import with_numpy, with_sklearn, with_torch
from apps.own.misbehaving import misbehaving
from apps.own.running import start
from flwr.app import MetricRecord
from flwr.clientapp.mod import adaptiveclipping_mod, fixedclipping_mod
from flwr.serverapp import NeighboringRelation, PrivacyConfig, SamplingMethod

from fedsim.core.errors import StalledError
from fedsim.flower import as_flower_strategy
from fedsim.server.optimizers import Adagrad, Adam, Sgd, Yogi
from strategies.fedavg import FedAvg
from strategies.fedprox import FedProx

NODES = 7
CHOOSING = {"Krum", "MultiKrum", "Bulyan"}


def adaptive(kind, lr, **options):
    return FedAvg(server_optimizer=kind(variant="flwr", **options), server_lr=lr)


def one_by_one(contents, malicious, count):
    """Bulyan's choice as its paper has it, by Krum again and again; Flower takes the best of one ranking."""
    rows = [np.concatenate([a.numpy().ravel() for a in content["arrays"].values()]) for content in contents]
    left, chosen = list(range(len(rows))), []
    while len(chosen) < count:
        near = max(1, len(left) - malicious - 2)
        away = {one: sorted(((rows[one] - rows[other]) ** 2).sum() for other in left if other != one) for one in left}
        # Two that are each other's only neighbour are told apart by all their distances.
        chosen.append(min(left, key=lambda one: (sum(away[one][:near]), sum(away[one]))))
        left.remove(chosen[-1])
    return [contents[row] for row in sorted(chosen)]


OURS = {
    "FedAvg": lambda: (FedAvg(), "mean"),
    "FedProx": lambda: (FedProx(proximal_mu=0.5), "mean"),
    "FedAvgM": lambda: (FedAvg(server_optimizer=Sgd(momentum=0.9), server_lr=0.5), "mean"),
    "FedAdam": lambda: (adaptive(Adam, 0.02, beta1=0.9, beta2=0.99, tau=1e-2), "mean"),
    "FedYogi": lambda: (adaptive(Yogi, 0.05, beta1=0.9, beta2=0.99, tau=1e-3), "mean"),
    "FedAdagrad": lambda: (adaptive(Adagrad, 0.05, tau=1e-3), "mean"),
    "FedMedian": lambda: (FedAvg(), "median"),
    "FedTrimmedAvg": lambda: (FedAvg(), {"kind": "trimmed_mean", "beta": 0.2}),
    "Krum": lambda: (FedAvg(), {"kind": "krum", "malicious": 1}),
    "MultiKrum": lambda: (FedAvg(), {"kind": "multi_krum", "malicious": 1, "keep": 4}),
    "Bulyan": lambda: (FedAvg(), {"kind": "bulyan", "malicious": 1}),
}
# With a smaller tau Adam makes so much of rounding that Flower's own models differ by 1e-6 in another order of nodes.
OPTIONS = {
    "FedProx": {"proximal_mu": 0.5},
    "FedAvgM": {"server_momentum": 0.9, "server_learning_rate": 0.5},
    "FedAdam": {"eta": 0.02, "tau": 1e-2},
    "FedYogi": {"eta": 0.05, "tau": 1e-3},
    "FedAdagrad": {"eta": 0.05},
    "FedTrimmedAvg": {"beta": 0.2},
    "Krum": {"num_malicious_nodes": 1},
    "MultiKrum": {"num_malicious_nodes": 1, "num_nodes_to_select": 4},
    "Bulyan": {"num_malicious_nodes": 1, "selection_rule": one_by_one},
}
APPS = {
    "numpy": (with_numpy.client, with_numpy.initial),
    "torch": (with_torch.client, with_torch.initial),
    "sklearn": (with_sklearn.client, with_sklearn.initial),
}
ROWS = [(name, "numpy") for name in OURS]
ROWS += [(name, "torch") for name in ("FedAvg", "FedProx", "FedAdam", "FedMedian", "Krum")] + [("FedAvg", "sklearn")]


def ours(name, **settings):
    strategy, aggregator = OURS[name]()
    return as_flower_strategy(strategy, aggregator=aggregator, **settings)


def theirs(name, **settings):
    return getattr(flower, name)(**OPTIONS.get(name, {}), **settings)


class InFlowersLoop:
    """A strategy that is driven by Flower's own start, as a wrapper is."""

    def __init__(self, strategy):
        self.strategy = strategy

    def start(self, *given, **named):
        return flower.Strategy.start(self.strategy, *given, **named)


@pytest.fixture(autouse=True)
def short_log():
    logger = logging.getLogger("flwr")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)


def judged(number, arrays):
    return MetricRecord({"size": float(sum(np.square(array.numpy()).sum() for array in arrays.values()))})


def run(strategy, app="numpy", mods=None, nodes=NODES, rounds=10, **named):
    client, initial = APPS[app]
    return start(strategy, client(mods=mods), initial(), nodes, rounds, evaluate_fn=judged, **named)


def compare(one, other, tolerance=1e-6, left_out=()):
    """Hold two results equal: arrays, names, and all that the second has of metrics but `left_out`."""
    assert list(one.arrays) == list(other.arrays)
    for name, array in other.arrays.items():
        np.testing.assert_allclose(one.arrays[name].numpy(), array.numpy(), rtol=0, atol=tolerance)
    for part in ("train_metrics_clientapp", "evaluate_metrics_clientapp", "evaluate_metrics_serverapp"):
        found, expected = getattr(one, part), getattr(other, part)
        assert list(found) == list(expected), part
        for number, metrics in expected.items():
            for name, value in metrics.items():
                if name in left_out:
                    continue
                assert found[number][name] == pytest.approx(value, rel=1e-5, abs=1e-6), (part, number, name)


@pytest.mark.parametrize(("name", "app"), ROWS)
def test_it_comes_to_what_flowers_own_comes_to(name, app):
    nodes = NODES if app == "numpy" else 5
    found, expected = (run(strategy, app, nodes=nodes, rounds=6) for strategy in (ours(name), theirs(name)))
    # Flower's rules that choose replies average the metrics of these alone.
    compare(found, expected, left_out={"train_loss"} if name in CHOOSING else ())
    assert len(expected.train_metrics_clientapp) == len(expected.evaluate_metrics_clientapp) == 6
    began = APPS[app][1]()
    assert any(np.abs(found.arrays[key].numpy() - began[key].numpy()).max() > 0.05 for key in began)


def test_types_are_as_they_were_and_counters_are_whole_numbers():
    app, initial = with_torch.client(norm=True), with_torch.initial(norm=True)
    found, expected = (start(strategy, app, initial, rounds=10) for strategy in (ours("FedAvg"), theirs("FedAvg")))
    assert [array.dtype for array in found.arrays.values()] == [array.dtype for array in initial.values()]
    counter = "1.num_batches_tracked"
    # Nodes have 8, 12, 16 and 8 examples in batches of 4: the largest counts 4 a round, from what it was sent.
    assert found.arrays[counter].numpy() == 40
    assert expected.arrays[counter].dtype == "float64"
    for name in set(found.arrays) - {counter}:
        np.testing.assert_allclose(found.arrays[name].numpy(), expected.arrays[name].numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", OURS)
def test_flowers_own_loop_drives_it_to_the_same(name):
    found, expected = run(InFlowersLoop(ours(name)), rounds=4), run(ours(name), rounds=4)
    compare(found, expected, tolerance=0.0)
    compare(expected, found, tolerance=0.0)


@pytest.mark.parametrize("around", [lambda strategy: strategy, InFlowersLoop])
def test_who_fails_is_left_out_as_by_flower(around):
    def mods():
        return [misbehaving({(1, 2): "dies", (3, 2): "dies", (None, 4): "dies", (6, 7): "dies"})]

    found, expected = (run(strategy, mods=mods()) for strategy in (around(ours("FedAvgM")), theirs("FedAvgM")))
    assert 4 not in expected.train_metrics_clientapp
    compare(found, expected)


FIXED = {"noise_multiplier": 0.02, "clipping_norm": 0.3, "num_sampled_clients": NODES}
ADAPTIVE = {"noise_multiplier": 0.02, "initial_clipping_norm": 0.3, "num_sampled_clients": NODES}
WRAPPERS = {
    "DifferentialPrivacyServerSideFixedClipping": (FIXED, None),
    "DifferentialPrivacyClientSideFixedClipping": (FIXED, fixedclipping_mod),
    "DifferentialPrivacyServerSideAdaptiveClipping": (ADAPTIVE, None),
    "DifferentialPrivacyClientSideAdaptiveClipping": (ADAPTIVE, adaptiveclipping_mod),
}


def test_every_wrapper_has_a_row():
    kinds = [name for name in flower.__all__ if not issubclass(getattr(flower, name), flower.FedAvg)]
    assert set(kinds) - {"Strategy", "Result"} == set(WRAPPERS)


@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.parametrize("inner", ["FedAvg", "FedMedian"])
def test_flowers_wrappers_hold_it(name, inner):
    options, mod = WRAPPERS[name]

    def wrapped(strategy):
        # The noise is of NumPy's global generator, which is the run's; the arrays that are noisy are the next model.
        return run(getattr(flower, name)(strategy, **options), mods=[mod] if mod else None, rounds=4)

    found, expected = wrapped(ours(inner, fraction_evaluate=0.0)), wrapped(theirs(inner, fraction_evaluate=0.0))
    compare(found, expected)
    plain = run(ours(inner, fraction_evaluate=0.0), rounds=4)
    assert not np.allclose(found.arrays["0"].numpy(), plain.arrays["0"].numpy(), atol=1e-3)


@pytest.mark.parametrize("inner", ["FedAvg", "FedAvgM"])
def test_a_wrapper_that_drops_a_round_in_which_somebody_failed_leaves_it_out(inner):
    def wrapped(strategy):
        around = flower.DifferentialPrivacyServerSideFixedClipping(strategy, 0.0, 0.3, NODES)
        return run(around, mods=[misbehaving({(2, 3): "dies", (0, 4): "dies"})])

    found, expected = wrapped(ours(inner)), wrapped(theirs(inner))
    assert set(range(1, 11)) - set(expected.train_metrics_clientapp) == {3, 4}
    compare(found, expected)


def test_a_wrapper_with_an_accountant_takes_flowers_fedavg_alone():
    class Accountant:
        """What the wrapper asks of one before it looks at the strategy."""

        config = PrivacyConfig(1e-5, NODES, NeighboringRelation.ADD_OR_REMOVE_ONE, SamplingMethod.NO_AMPLIFICATION)

    for name in ("DifferentialPrivacyServerSideFixedClipping", "DifferentialPrivacyClientSideFixedClipping"):
        kind = getattr(flower, name)
        kind(theirs("FedAvg"), 1.0, 1.0, NODES, accountant=Accountant())
        with pytest.raises(ValueError, match=r"requires a strategy using FedAvg\.aggregate_train"):
            kind(ours("FedAvg"), 1.0, 1.0, NODES, accountant=Accountant())


@pytest.mark.parametrize("name", ["FedAvg", "FedProx"])
@pytest.mark.parametrize("around", [lambda strategy: strategy, InFlowersLoop])
def test_an_app_sees_the_same_messages(name, around):
    def seen(strategy):
        def see(message, context, call_next):
            config = sorted(message.content["config"].items())
            names = sorted(message.content), list(message.content["arrays"])
            found.append((message.metadata.message_type, context.node_config["partition-id"], config, names))
            return call_next(message, context)

        found = []
        run(strategy, mods=[see], rounds=2, nodes=3, config={"lr": 0.2, "text": "a"})
        return sorted(found, key=str)

    expected = seen(theirs(name))
    assert len(expected) == 12
    assert seen(around(ours(name))) == expected


@pytest.mark.parametrize("around", [lambda strategy: strategy, InFlowersLoop])
def test_weights_and_means_of_metrics_are_of_ones_own(around):
    def copies(message, context, call_next):
        reply = call_next(message, context)
        reply.content["metrics"]["copies"] = 1 + context.node_config["partition-id"] ** 2
        return reply

    def worst(contents, key):
        assert key == "copies"
        return MetricRecord({"worst": max(next(iter(content["metrics"].values())) for content in contents)})

    options = {"weighted_by_key": "copies", "train_metrics_aggr_fn": worst, "evaluate_metrics_aggr_fn": worst}
    found, expected = (
        run(strategy, mods=[copies], rounds=3)
        for strategy in (around(ours("FedAvg", **options)), theirs("FedAvg", **options))
    )
    compare(found, expected)
    assert list(expected.train_metrics_clientapp[1]) == list(expected.evaluate_metrics_clientapp[1]) == ["worst"]


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.7])
@pytest.mark.parametrize("around", [lambda strategy: strategy, InFlowersLoop])
def test_as_many_nodes_evaluate_as_with_flower(fraction, around):
    def counted(strategy):
        def count(message, context, call_next):
            found.append((message.metadata.message_type, message.content["config"]["server-round"]))
            return call_next(message, context)

        found = []
        run(strategy, mods=[count], rounds=3)
        return sorted(found)

    settings = {"fraction_evaluate": fraction, "min_evaluate_nodes": 3}
    assert counted(around(ours("FedAvg", **settings))) == counted(theirs("FedAvg", **settings))


def test_who_waits_for_more_nodes_than_there_are_is_told_so():
    for strategy in (ours("FedAvg", min_available_nodes=8), theirs("FedAvg", min_available_nodes=8)):
        with pytest.raises(StalledError, match=r"\b7\b.*nodes|nodes.*\b7\b"):
            run(strategy)
