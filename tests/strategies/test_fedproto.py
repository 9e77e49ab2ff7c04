"""FedProto against its algorithm by hand, its cases of no pull and no prototypes, what crosses, and whom it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from clients.fedproto import FedProto as Client
from fedsim.core.errors import InputError
from fedsim.core.streams import Streams
from fedsim.engine.executor import Executor
from fedsim.exchange.bits import from_bits, to_bits
from fedsim.exchange.messages import Order, Replies
from fedsim.problems.own_data import supervised
from fedsim.problems.supervised import Supervised
from fedsim.running.build import build_simulation
from fedsim.running.personal import own_models
from fedsim.running.simulation import Simulation
from fedsim.testing.problems import TRAINING, blobs, mlp, small_experiment
from strategies.fedproto import FedProto

EVERYBODY = {"kind": "uniform", "fraction": 1.0}
K, H = 3, 8


def problem(model: nn.Module | None = None, dtype: torch.dtype = torch.float64, **settings: Any) -> Supervised:
    """Clients who are judged on examples that are held out."""
    data = blobs(**settings)
    tests = np.array_split(np.arange(20), len(data["clients"]))
    return supervised(**data, test_clients=tests, model=model or mlp(), dtype=dtype, device="cpu")


def simulation(
    rounds: int = 3, own: Supervised | None = None, strategy: dict[str, Any] | None = None, **tables: Any
) -> Simulation:
    client = {"kind": "fedproto", **TRAINING} | tables.pop("client", {})
    client = {name: value for name, value in client.items() if value is not None}
    given = {"strategy": {"kind": "fedproto", **(strategy or {})}, "client": client, "selection": EVERYBODY}
    return build_simulation(small_experiment(rounds, **given | tables), own or problem())


def models(run: Simulation) -> Tensor:
    """Those of all clients, [N, d]."""
    parts = run.parts
    assert isinstance(parts.problem, Supervised)
    owned = own_models(parts.engine, parts.problem, parts.strategy, run.state, None)
    return owned.models(torch.arange(parts.problem.num_clients)).flat()


def ended(*given: Any, **tables: Any) -> Simulation:
    run = simulation(*given, **tables)
    for _ in run:
        pass
    return run


def known(run: Simulation) -> Tensor:
    return from_bits(run.state.memory["has"], K)


def deep() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        return nn.Sequential(nn.Linear(6, 7), nn.BatchNorm1d(7), nn.Tanh(), nn.Dropout(0.3), nn.Linear(7, 3))


def test_two_rounds_by_hand():
    """Three full batches a round: CE + lam MSE, own features for classes that nobody has; prototypes before each step.

    The first two clients have no example of class 2 between them, and the third is not there in the first round.
    """
    data = blobs(sizes=(11, 6))
    data["y"] = data["y"] % 2
    tests = np.array_split(np.arange(20), 2)
    own = supervised(**data, test_clients=tests, model=mlp(), dtype=torch.float64, num_classes=3, device="cpu")
    x, y, lam = own.data.x, own.data.y, 0.7
    nets, mean, has = [mlp().double(), mlp().double()], torch.zeros(K, H, dtype=torch.float64), torch.zeros(K) > 1
    for _ in range(2):
        sent = []
        for net, rows in zip(nets, own.data.order.split([11, 6]), strict=True):
            for _ in range(3):
                z = net[:3](x[rows])
                towards = torch.where(has[y[rows]].unsqueeze(1), mean[y[rows]], z.detach())
                loss = functional.cross_entropy(net[3](z), y[rows]) + lam * functional.mse_loss(z, towards)
                last = {c: z[y[rows] == c].mean(dim=0).detach() for c in y[rows].unique().tolist()}
                for part, gradient in zip(net.parameters(), torch.autograd.grad(loss, net.parameters()), strict=True):
                    part.data -= 0.1 * gradient
            sent.append(last)  # of the last of three passes over all examples
        for c in range(K):
            having = [last[c] for last in sent if c in last]
            if having:
                mean[c], has[c] = torch.stack(having).mean(dim=0), True
    for executor in ("stacked", "loop"):
        client = {"lam": lam, "epochs": 3, "batch_size": "full"}
        run = ended(2, own, client=client, engine={"executor": executor})
        assert known(run).tolist() == has.tolist() == [True, True, False]
        assert torch.allclose(run.state.memory["prototypes"], mean, rtol=0, atol=1e-12)
        for net, row in zip(nets, models(run), strict=True):
            flat = torch.nn.utils.parameters_to_vector(net.parameters()).detach()
            assert torch.allclose(row, flat, rtol=0, atol=1e-12)


@pytest.mark.parametrize("executor", ["stacked", "loop"])
def test_without_a_pull_it_is_local_training_to_the_bit(executor):
    for own in (problem(), problem(deep())):
        found = ended(3, own, client={"lam": 0.0}, engine={"executor": executor})
        alone = ended(3, own, strategy={"kind": "local"}, client={"kind": "local"}, engine={"executor": executor})
        assert torch.equal(models(found), models(alone))
        assert not torch.equal(models(ended(3, own, engine={"executor": executor})), models(alone))


def test_executors_agree_with_dropout_and_statistics():
    own = problem(deep())
    one, other = (ended(3, own, engine={"executor": executor}) for executor in ("stacked", "loop"))
    assert torch.allclose(models(one), models(other), rtol=0, atol=1e-12)
    prototypes = [run.state.memory["prototypes"] for run in (one, other)]
    assert torch.allclose(*prototypes, rtol=0, atol=1e-12)


def test_the_first_round_knows_no_prototype():
    """The second loss is 0, to the bit, and training is local."""
    run, alone = (
        simulation(2, client={"lam": 50.0}),
        simulation(2, strategy={"kind": "local"}, client={"kind": "local"}),
    )
    assert run.step()["train_loss"] == alone.step()["train_loss"]
    assert torch.equal(models(run), models(alone))
    assert run.step()["train_loss"] > alone.step()["train_loss"]


def sent(own: Supervised, counts: bool = False, **training: Any) -> dict[str, Tensor]:
    """What all clients reply to a first order."""
    given = {"epochs": 2, "batch_size": 4, "lr": 0.1} | training
    executor = Executor(own, Client(**given), Streams(0), choice="stacked")
    payload = {
        "prototypes": own.initial().new_zeros(K, own.features()),
        "has": to_bits(torch.zeros(K, dtype=torch.bool)),
    }
    config = {"report-counts": True} if counts else {}
    order = Order("train", torch.arange(own.num_clients), payload, config)
    return executor.execute(executor.assign(order)).payload


@pytest.mark.parametrize(
    "training",
    [
        {},
        {"epochs": None, "steps": 1, "batch_size": 12},
        {"batch_size": 1},
        {"optimizer": "sam"},
    ],
)
def test_prototypes_are_of_each_example_once_whatever_the_batches(training):
    """At a rate of next to nothing features stay; of the last epoch each example counts, also of partial batches."""
    own = problem()
    found = sent(own, counts=True, lr=1e-13, **training)
    features = mlp().double()[:3](own.data.x).detach()
    for client, rows in enumerate(own.data.order.split(own.sizes.tolist())):
        for c in range(K):
            having = rows[own.data.y[rows] == c]
            assert found["counts"][client, c] == len(having)
            mean = features[having].mean(dim=0) if len(having) else torch.zeros(H, dtype=torch.float64)
            assert torch.allclose(found["prototypes"][client, c], mean, rtol=0, atol=1e-11)
    assert torch.equal(from_bits(sent(own, lr=1e-13, **training)["has"], K), found["counts"] > 0)


def test_dropped_features_are_told_of_as_they_were_seen():
    dropping = nn.Sequential(nn.Linear(6, 40), nn.Tanh(), nn.Dropout(0.5), nn.Linear(40, 3))
    found = sent(problem(dropping, sizes=(1, 1)), epochs=1, batch_size="full")["prototypes"]
    own = found[found.abs().sum(dim=2) > 0]
    assert 0.2 < (own == 0).double().mean() < 0.8


def replies_of(prototypes: Tensor, has: Tensor, counts: Tensor | None = None) -> Replies:
    """What so many clients have sent, [C, k, h] and [C, k]."""
    clients = torch.arange(len(has))
    told = {"has": to_bits(has)} if counts is None else {"counts": counts}
    zeros = torch.zeros_like(clients)
    return Replies(
        clients, {"prototypes": prototypes, **told}, {}, zeros + 1, zeros[:0], 0, zeros, zeros, [], []
    )  # fmt: skip


def drawn(*shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(3).normal(size=shape))


def test_means_are_of_those_who_have_a_class_in_any_order():
    own, prototypes = problem(), drawn(5, K, H)
    has = torch.tensor([[1, 0, 0], [1, 0, 1], [0, 0, 1], [1, 0, 0], [1, 0, 0]], dtype=torch.bool)
    prototypes = prototypes * has.unsqueeze(2)
    strategy, counts = FedProto(), has * torch.tensor([[1.0], [2.0], [3.0], [4.0], [5.0]], dtype=torch.float64)
    begun = strategy.init(own)
    state, metrics, done = strategy.tell(begun, replies_of(prototypes, has))
    assert done
    assert metrics["known_classes"] == 2.0
    assert from_bits(state.memory["has"], K).tolist() == [True, False, True]
    assert torch.allclose(state.memory["prototypes"][0], prototypes[has[:, 0], 0].mean(dim=0), rtol=0, atol=1e-15)
    order = torch.tensor([3, 1, 4, 0, 2])
    again, _, _ = strategy.tell(begun, replies_of(prototypes[order], has[order]))
    assert torch.allclose(again.memory["prototypes"], state.memory["prototypes"], rtol=0, atol=1e-15)
    weighed, _, _ = FedProto(weights="examples").tell(begun, replies_of(prototypes, has, counts))
    wanted = (prototypes[[1, 2], 2] * torch.tensor([[2.0], [3.0]], dtype=torch.float64)).sum(dim=0) / 5.0
    assert torch.allclose(weighed.memory["prototypes"][2], wanted, rtol=0, atol=1e-15)
    # Class 2 by one client is its own mean; who sends nothing of a class leaves its prototype.
    single, _, _ = strategy.tell(state, replies_of(prototypes[1:2], has[1:2] & torch.tensor([[False, False, True]])))
    assert torch.equal(single.memory["prototypes"][2], prototypes[1, 2])
    assert torch.equal(single.memory["prototypes"][:2], state.memory["prototypes"][:2])
    assert from_bits(single.memory["has"], K).tolist() == [True, False, True]
    nobody, _, _ = strategy.tell(state, replies_of(prototypes[:0], has[:0]))
    assert nobody.round == 2
    assert torch.equal(nobody.memory["prototypes"], state.memory["prototypes"])


def test_weights_by_examples_are_the_means_of_all_examples():
    own = problem()
    run = ended(1, own, strategy={"weights": "examples"}, client={"lr": 1e-13})
    features = mlp().double()[:3](own.data.x).detach()
    for c in range(K):
        mean = features[own.data.y == c].mean(dim=0)
        assert torch.allclose(run.state.memory["prototypes"][c], mean, rtol=0, atol=1e-11)


def test_bytes_are_those_of_features_and_bits():
    """4 k h + ceil(k / 8) each way, of k = 3 and h = 8; with counts 4 k up for the bits."""
    for weights, up in (("clients", 4 * K * H + 1), ("examples", 4 * K * H + 4 * K)):
        rows = list(simulation(2, problem(dtype=torch.float32), strategy={"weights": weights}))
        assert [(row["bytes_up"], row["bytes_down"]) for row in rows] == [(6 * up, 6 * (4 * K * H + 1))] * 2


def judged(run: Simulation) -> Tensor:
    """Outputs of all clients' models for their own examples, one client after the other."""
    parts = run.parts
    assert isinstance(parts.problem, Supervised)
    owned = own_models(parts.engine, parts.problem, parts.strategy, run.state, None)
    ((rows, count),) = parts.problem.judged.by_clients(("test",)).values()
    return owned.outputs(rows, count)


@pytest.mark.parametrize("executor", ["stacked", "loop"])
def test_clients_are_judged_by_the_nearest_prototype_or_by_their_heads(executor):
    own, engine = problem(), {"executor": executor}
    nearest, head = simulation(2, own, engine=engine), simulation(2, own, engine=engine, client={"predict": "head"})
    assert torch.equal(judged(nearest), judged(head))  # there is no prototype yet
    for run in (nearest, head):
        run.step()
    run, other = nearest, head
    assert torch.equal(models(run), models(other))
    ((rows, count),) = own.judged.by_clients(("test",)).values()
    memory = dict(run.state.memory)
    memory["has"] = to_bits(torch.tensor([True, False, True]))
    object.__setattr__(run.state, "memory", memory)
    begin = 0
    for row, several in zip(models(run), count.tolist(), strict=True):
        net, here = own.module(row), slice(begin, begin + several)
        x = rows.x[rows.numbers[here]]
        far = torch.cdist(net[:3](x), memory["prototypes"]).square().detach()
        assert torch.allclose(judged(run)[here][:, [0, 2]], -far[:, [0, 2]], rtol=0, atol=1e-12)
        assert (judged(run)[here][:, 1] < -far[:, [0, 2]].amax(dim=1)).all()
        assert torch.allclose(judged(other)[here], net(x).detach(), rtol=0, atol=1e-12)
        begin += several
    assert judged(run).isfinite().all()


def test_a_model_may_be_tuned_before_it_is_judged():
    evaluation = {"every": 1, "finetune": {"steps": 3, "lr": 0.1, "batch_size": 4}}
    tuned, plain = list(simulation(2, evaluation=evaluation)), list(simulation(2, evaluation={"every": 1}))
    assert tuned[1]["personal_loss"] != plain[1]["personal_loss"]


@pytest.mark.parametrize(
    ("own", "tables", "why"),
    [
        (lambda: problem(nn.Sequential(nn.Flatten(), nn.Linear(6, 3))), {}, "nothing is trained before its head"),
        (lambda: regression(), {}, "problem.dataset = numbers: .*classes"),
        (problem, {"aggregation": "median"}, "averages nothing"),
        (problem, {"transforms": [{"kind": "noise", "std": 0.1}]}, "name what it goes over"),
        (problem, {"client": {"kind": "local", **TRAINING}}, "prototypes"),
        (problem, {"strategy": {"kind": "local"}}, "prototypes"),
        (lambda: problem().keeping("head"), {}, "a part of one stays with them"),
    ],
)
def test_what_does_not_go_with_prototypes_is_refused(own, tables, why):
    with pytest.raises(InputError, match=why) as refused:
        simulation(2, own(), **tables)
    assert "\n" not in str(refused.value)


def regression() -> Supervised:
    data = blobs()
    data["y"] = data["y"].astype(float)
    data["test"] = (data["test"][0], data["test"][1].astype(float))
    tests = np.array_split(np.arange(20), 6)
    return supervised(**data, test_clients=tests, model=mlp(classes=1), dtype=torch.float64, device="cpu")


def test_prototypes_may_be_noised():
    noise = {"kind": "noise", "std": 0.1, "vectors": ["prototypes"]}
    one, other = ended(1, transforms=[noise]), ended(1)
    assert not torch.equal(one.state.memory["prototypes"], other.state.memory["prototypes"])
    assert torch.equal(one.state.memory["has"], other.state.memory["has"])
