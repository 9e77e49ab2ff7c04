"""Flower's strategies over fedsim's clients."""

import random
from dataclasses import replace

import flwr.serverapp.strategy as flower
import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord

import fedsim
from fedsim.configuration.tables import experiment as checked
from fedsim.core.errors import FedsimError, InputError
from fedsim.exchange.messages import Replies
from fedsim.flower import stock
from fedsim.running.build import build_problem, build_simulation

CLIENTS = 8
PRIVATE = {"noise_multiplier": 0.01, "num_sampled_clients": CLIENTS, "strategy": "flwr:FedAvg"}
FIXED = {"clipping_norm": 0.5, **PRIVATE}
OPTIONS = {
    "Bulyan": {"num_malicious_nodes": 1},
    "DifferentialPrivacyClientSideAdaptiveClipping": PRIVATE,
    "DifferentialPrivacyClientSideFixedClipping": FIXED,
    "DifferentialPrivacyServerSideAdaptiveClipping": PRIVATE,
    "DifferentialPrivacyServerSideFixedClipping": FIXED,
    "FedAdagrad": {},
    "FedAdam": {"eta": 0.01},
    "FedAvg": {},
    "FedAvgM": {"server_momentum": 0.9},
    "FedMedian": {},
    "FedProx": {"proximal_mu": 0.5},
    "FedTrimmedAvg": {},
    "FedYogi": {"eta": 0.01},
    "Krum": {"num_malicious_nodes": 1},
    "MultiKrum": {"num_malicious_nodes": 1, "num_nodes_to_select": 3},
    "QFedAvg": {"client_learning_rate": 0.1},
}
TREES = {"FedXgbBagging", "FedXgbCyclic"}


def experiment(strategy, **tables):
    return fedsim.experiment(
        **{
            "rounds": 3,
            "problem": {"dataset": "digits", "model": {"kind": "mlp", "hidden": [8]}},
            "partition": {"kind": "dirichlet", "clients": CLIENTS, "alpha": 0.5},
            "strategy": strategy,
            "client": {"kind": "sgd", "epochs": 1, "batch_size": 16, "lr": 0.1},
        }
        | tables
    )


def of(name, **options):
    return {"kind": f"flwr:{name}", **OPTIONS[name], **options}


def run(strategy, **tables):
    return fedsim.run(experiment(strategy, **tables), save=False)


def test_every_strategy_of_flower_has_a_row():
    assert set(OPTIONS) | TREES | {"Result", "Strategy"} == set(flower.__all__)


@pytest.mark.parametrize("name", OPTIONS)
def test_it_trains_the_same_each_time_and_leaves_global_generators_alone(name):
    random.seed(1)
    torch.manual_seed(1)
    drawn = random.getstate(), torch.random.get_rng_state()
    arrays = np.random.get_state()[1].copy()  # noqa: NPY002
    first = run(of(name))
    assert random.getstate() == drawn[0]
    assert torch.equal(torch.random.get_rng_state(), drawn[1])
    assert (np.random.get_state()[1] == arrays).all()  # noqa: NPY002
    random.seed(2)
    second = run(of(name))
    assert first.status == "finished"
    assert torch.equal(first.params, second.params)
    start = build_problem(experiment(of(name))).initial()
    assert not torch.equal(first.params, start)


@pytest.mark.parametrize("name", OPTIONS)
def test_lazy_arrays_are_what_encoded_ones_are(name, monkeypatch):
    lazy = run(of(name)).params

    def eager(layout, values):
        named = layout.named(torch.from_numpy(values))
        return ArrayRecord({name: Array(part.numpy()) for name, part in named.items()})

    monkeypatch.setattr(stock, "_lazy", eager)
    assert torch.equal(lazy, run(of(name)).params)


@pytest.mark.parametrize(
    ("theirs", "ours"), [("FedAvg", "fedavg"), ("FedProx", {"kind": "fedprox", "proximal_mu": 0.5})]
)
def test_it_equals_our_own(theirs, ours):
    # Flower averages the models, and we the changes: in single precision they differ by rounding.
    theirs, ours = run(of(theirs)), run(ours)
    assert torch.allclose(theirs.params, ours.params, atol=1e-6)
    assert theirs.history["bytes_up"] == ours.history["bytes_up"]
    assert np.allclose(theirs.history["train_loss"], ours.history["train_loss"], atol=1e-6)


def test_clipping_on_clients_is_clipping_on_the_server():
    where = {side: run(of(f"DifferentialPrivacy{side}SideFixedClipping")).params for side in ("Client", "Server")}
    assert torch.equal(where["Client"], where["Server"])
    assert not torch.equal(
        where["Client"], run(of("DifferentialPrivacyClientSideFixedClipping", clipping_norm=0.1)).params
    )


def test_the_noise_is_of_the_run_s_seed():
    name = "DifferentialPrivacyServerSideFixedClipping"
    quiet = run(of(name, noise_multiplier=0.0)).params
    noises = [run(of(name, noise_multiplier=0.1), seed=seed).params - quiet for seed in (0, 1)]
    assert not torch.allclose(noises[0], noises[1])


def test_the_noise_is_another_in_each_round():
    seen = []
    noisy = of("DifferentialPrivacyServerSideFixedClipping", noise_multiplier=1.0)
    nearly_still = {"kind": "sgd", "epochs": 1, "lr": 1e-6}
    fedsim.run(experiment(noisy, client=nearly_still), save=False, callbacks=[lambda row: seen.append(row.params)])
    # What moves the model is the noise, of standard deviation 1 * 0.5 / 8.
    first, second = seen[1] - seen[0], seen[2] - seen[1]
    assert first.std() == pytest.approx(0.0625, rel=0.1)
    assert not torch.allclose(first, second, atol=1e-3)


def test_options_survive_toml():
    made = experiment(of("DifferentialPrivacyServerSideFixedClipping", strategy=of("FedAdam")))
    again = checked(**made.resolved())
    assert again.resolved() == made.resolved()
    assert again.strategy.made["strategy"].eta == 0.01


@pytest.mark.parametrize(
    ("strategy", "tables", "said"),
    [
        ("flwr:FedXgbBagging", {}, "train no trees"),
        ("flwr:FedAvgg", {}, "name one of: Bulyan"),
        ("flwr:Result", {}, "no strategy of Flower's"),
        ({"kind": "flwr:FedAvg", "fraction_train": 0.5}, {}, "strategy.fraction_train"),
        (
            of("DifferentialPrivacyServerSideFixedClipping", clipping_norm=-1.0),
            {},
            "norm should be a positive",
        ),
        ("flwr:FedAdam", {"aggregation": "median"}, "averages nothing"),
        ("flwr:FedAvg", {"client": {"kind": "scaffold", "epochs": 1}}, "control"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(strategy, tables, said):
    with pytest.raises(InputError, match=said) as refused:
        run(strategy, **tables)
    assert "\n" not in str(refused.value)


OWN = '''
from flwr.app import ConfigRecord, Message
from flwr.serverapp.strategy import FedAvg

class Halved(FedAvg):
    """Trains half of those that were selected."""

    def __init__(self, divisor: int = 2, **others):
        super().__init__(**others)
        self.divisor, self.errors = divisor, []

    def configure_train(self, server_round, arrays, config, grid):
        messages = list(super().configure_train(server_round, arrays, config, grid))
        return sorted(messages, key=lambda message: message.metadata.dst_node_id)[:: self.divisor]

    def aggregate_train(self, server_round, replies):
        replies = list(replies)
        self.errors += [reply.error.reason for reply in replies if reply.has_error()]
        return super().aggregate_train(server_round, replies)


class Different(FedAvg):
    def configure_train(self, server_round, arrays, config, grid):
        messages = list(super().configure_train(server_round, arrays, config, grid))
        content = messages[0].content.copy()
        content["arrays"] = type(arrays)([array.numpy() + 1 for array in arrays.values()])
        first = messages[0].metadata.dst_node_id
        return [Message(content, dst_node_id=first, message_type="train"), *messages[1:]]


class Listing(FedAvg):
    def configure_train(self, server_round, arrays, config, grid):
        config["layers"] = [1, 2]
        return super().configure_train(server_round, arrays, config, grid)


class Chatty(FedAvg):
    def configure_train(self, server_round, arrays, config, grid):
        config["warmth"] = 0.5
        return super().configure_train(server_round, arrays, config, grid)


class Blind(FedAvg):
    def aggregate_train(self, server_round, replies):
        list(replies)
        return None, None
'''


@pytest.fixture
def own(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    return lambda name, **options: {"kind": f"flwr:{tmp_path / 'own.py'}:{name}", **options}


def test_a_strategy_of_one_s_own_chooses_among_the_selected(own):
    seen = run(own("Halved", weighted_by_key="num-examples"))
    assert seen.history["clients"] == [4, 4, 4]  # of 8
    assert run(own("Halved", divisor=4)).history["clients"] == [2, 2, 2]


@pytest.mark.parametrize(
    ("name", "said"), [("Different", "different models"), ("Listing", "layers is no plain"), ("Chatty", "warmth")]
)
def test_orders_that_cannot_be_stacked_are_refused(own, name, said):
    with pytest.raises(FedsimError, match=said):
        run(own(name))


def test_a_strategy_that_reads_no_array_costs_none(own, monkeypatch):
    monkeypatch.setattr(stock.LazyArray, "numpy", None)  # whoever calls it fails
    monkeypatch.setattr(stock.LazyArray, "data", property(None))
    result = run(own("Blind"))
    assert torch.equal(result.params, build_problem(experiment("fedavg")).initial())


def test_what_is_sent_is_decoded_once_a_round(monkeypatch):
    decoded = []
    plain = stock._flat
    monkeypatch.setattr(stock, "_flat", lambda *given: decoded.append(1) or plain(*given))
    run(of("FedAvg"))
    assert len(decoded) == 3  # of each round's new model; what is then sent is known


def test_an_update_that_is_not_finite_comes_as_an_error(own):
    made = experiment(own("Halved", divisor=1), rounds=1, client={"kind": "sgd", "epochs": 1, "lr": 0.1})
    simulation = build_simulation(made, build_problem(made))
    state = simulation.state
    orders, _ = made.strategy.ask(state, torch.arange(3))
    after, _, done = made.strategy.tell(state, replace(_replies(orders), failed=torch.tensor([1])))
    assert done
    assert after.live.server.errors == ["the update is not finite"]
    # Of the other two, changed by 1 and 3 with 10 and 30 examples: (10 * 1 + 30 * 3) / 40 = 2.5.
    assert torch.allclose(after.params - state.params, torch.tensor(2.5), atol=1e-6)


def _replies(orders):
    rows = torch.ones_like(orders.payload["params"])
    return Replies(
        clients=torch.tensor([0, 2]),
        payload={"delta": torch.stack([rows, 3 * rows])},
        metrics={"loss": torch.tensor([1.0, 2.0])},
        examples=torch.tensor([10, 30]),
        failed=torch.tensor([], dtype=torch.int64),
        round=0,
        versions=torch.zeros(2, dtype=torch.int64),
        durations=torch.ones(2, dtype=torch.int64),
        orders=[orders],
        origin=[0, 0],
    )
