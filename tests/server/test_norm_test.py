"""Batch sizes that the server decides by a norm test."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
import torch

import fedsim
from clients.sgd import Sgd
from fedsim.client import spread
from fedsim.core.errors import InputError
from fedsim.engine.cohort import Cohort
from fedsim.exchange.messages import Order
from fedsim.running.build import build_executor
from fedsim.server.batches import NormTest
from fedsim.testing.problems import small_experiment as small
from fedsim.testing.problems import small_problem

GRADIENTS = torch.tensor([[3.0, 4.0], [1.0, 0.0], [2.0, 2.0], [0.0, 2.0]], dtype=torch.float64)
SECOND = torch.tensor([[1.1, 1.0], [0.9, 1.0], [1.0, 1.1], [1.0, 0.9]], dtype=torch.float64)


def told(*clients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """V and N of clients with such gradients, [k, 2], and the changes of one step at a rate of 0.1, [k, d]."""
    spread = [[float(own.var(dim=0).sum()), float(own.mean(dim=0).square().sum())] for own in clients]
    return torch.tensor(spread, dtype=torch.float64), torch.stack([-0.1 * own.mean(dim=0) for own in clients])


def judged(rule: NormTest, *clients: torch.Tensor, several: tuple[bool, ...] = (True, True)) -> tuple[float, float]:
    weights = torch.full((len(clients),), 1.0 / len(clients), dtype=torch.float64)
    return rule.tested(*told(*clients), weights, torch.tensor(several[: len(clients)]))


def test_the_published_oracle() -> None:
    """V = 13/3, N = 6.25: at eta = 0.5 a batch of 2.77 would do, so that 4 stays; at 0.25 it is 11.1."""
    variance, square = judged(NormTest(), GRADIENTS)
    assert (variance, square) == (pytest.approx(4.333333, abs=1e-6), pytest.approx(6.25))
    assert NormTest(eta=0.5).wanted(variance, square) == pytest.approx(2.773333, abs=1e-6)
    assert NormTest(eta=0.5).size(4, variance, square) == 4
    assert NormTest(eta=0.25).size(4, variance, square) == 12


def test_the_law_of_total_variance() -> None:
    """Means (1.5, 2), (1, 1) are 0.3125 in the square from theirs, (1.25, 1.5); within: 4.333333, 0.013333."""
    within, total = NormTest(), NormTest(across="total")
    assert judged(total, GRADIENTS, SECOND) == (pytest.approx(2.485833, abs=1e-6), pytest.approx(3.8125))
    assert judged(within, GRADIENTS, SECOND) == (pytest.approx(2.173333, abs=1e-6), pytest.approx(3.8125))


def test_a_client_with_one_example_says_nothing_of_variance() -> None:
    alone = torch.tensor([[1.0, 1.0]], dtype=torch.float64).expand(2, 2)
    variance, square = judged(NormTest(), GRADIENTS, alone, several=(True, False))
    assert (variance, square) == (pytest.approx(4.333333, abs=1e-6), pytest.approx(3.8125))
    assert judged(NormTest(), alone, several=(False,))[0] == 0.0


def test_a_size_never_falls_and_has_an_end() -> None:
    rule = NormTest(eta=1.0, max_batch=20)
    assert [rule.size(6, variance, 1.0) for variance in (0.0, 5.0, 6.5, 19.5, 1e30)] == [6, 6, 7, 20, 20]
    assert rule.size(6, 1.0, 0.0) == 20  # no gradient is left: all of it is noise
    assert NormTest(max_batch=2).size(6, 1.0, 0.0) == 6


@pytest.mark.parametrize("activation", [torch.nn.ReLU, torch.nn.Tanh])
@pytest.mark.parametrize("bias", [True, False])
def test_chains_know_the_variance_without_the_gradient_of_any_example(activation: Any, bias: bool) -> None:
    """Against autograd, example by example, of clients with 5, 1 and 2 of 5 places."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8, bias=bias), activation(), torch.nn.Linear(8, 3, bias=bias))
    network, y, batch = stacked(small_problem(model=model), (5, 1, 2))
    variance, square = network.spread(y, batch)
    for client, count in enumerate((5, 1, 2)):
        each = torch.stack([gradient(network, y, batch, client, [place]) for place in range(count)])
        wanted = each.var(dim=0).sum() if count > 1 else torch.tensor(0.0)
        assert variance[client].item() == pytest.approx(float(wanted), rel=1e-12)
        assert square[client].item() == pytest.approx(float(each.mean(dim=0).square().sum()), rel=1e-12)


def test_halves_are_right_on_average() -> None:
    """Over all ways to halve a client's examples: 4 into 2 and 2, and 5 into 2 and 3."""
    model = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.GELU(), torch.nn.Linear(4, 3))
    for count in (4, 5):
        network, y, batch = stacked(small_problem(model=model), (count,))
        each = torch.stack([gradient(network, y, batch, 0, [place]) for place in range(count)])
        found = []
        for first in combinations(range(count), 2):
            halved = [*first, *(place for place in range(count) if place not in first)]
            x, labels = batch.x[:, halved], batch.y[:, halved]
            variance, square = network.spread(y, type(batch)(x, labels, batch.weight[:, :count], batch.draw))
            found.append(float(variance))
            assert float(square) == pytest.approx(float(each.mean(dim=0).square().sum()), rel=1e-9)
        assert sum(found) / len(found) == pytest.approx(float(each.var(dim=0).sum()), rel=1e-9)
        assert max(found) > 1.1 * min(found)


def stacked(problem: Any, counts: tuple[int, ...]) -> tuple[Any, Any, Any]:
    """The problem's network, parameters of so many clients, and batches of so many examples of five or more places."""
    from fedsim.core.streams import Streams
    from fedsim.nets.dropout import Draw
    from fedsim.nets.network import Batch

    executor = build_executor(small(1, engine={"executor": "stacked"}), problem)
    clients, width = len(counts), max(counts)
    y = executor.network.layout.stack(problem.initial() + 0.1 * torch.randn(clients, problem.dimension).double())
    index = torch.arange(clients * width).view(clients, width)
    real = torch.arange(width) < torch.tensor(counts).unsqueeze(1)
    weight = real.double() / real.sum(dim=1, keepdim=True)
    draw = Draw(Streams(0), torch.arange(clients), 0, 0)
    return executor.network, y, Batch(problem.data.x[index], problem.data.y[index], weight, draw)


def gradient(network: Any, y: Any, batch: Any, client: int, places: list[int]) -> torch.Tensor:
    """The mean gradient of some of a client's examples, [d]."""
    own = slice(client, client + 1)
    weight = torch.zeros_like(batch.weight[own])
    weight[0, places] = 1.0 / len(places)
    alone = type(batch)(batch.x[own], batch.y[own], weight, batch.draw)
    return network.gradients(y[own], alone)[1].flat()[0]


@pytest.mark.parametrize("passes", [{"epochs": 3}, {"steps": 5}])
@pytest.mark.parametrize("executor", ["stacked", "fused"])
def test_it_is_of_the_first_of_the_batches_that_are_taken(
    passes: dict[str, int], executor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = small_problem()
    working = build_executor(small(1, engine={"executor": executor}), problem)
    clients = torch.tensor([2, 5, 0, 4, 1, 3])  # those with more steps first
    cohort = Cohort(problem, working.network, working.streams, working.assign(order(problem, clients)), {})
    taken = next(cohort.batches(batch_size=4, **passes))
    wanted = torch.stack(cohort.network.spread(cohort.stack(problem.initial()), taken), dim=1)
    before = cohort.steps_taken.clone()
    given = {"epochs": None, "steps": None, "batch_size": 4, "course": None, **passes}
    for numbers in (1, 4 * problem.dimension, 2**22):  # of one client, four and all at once
        monkeypatch.setattr(spread, "AT_ONCE", numbers)
        assert torch.equal(spread.spreads(cohort, problem.initial(), given), wanted)
    assert torch.equal(cohort.steps_taken, before)


def order(problem: Any, clients: torch.Tensor, **config: Any) -> Order:
    return Order("train", clients, {"params": problem.initial()}, config)


def test_sizes_follow_the_rule_in_a_run_and_their_numbers_cross() -> None:
    """All clients in all rounds, of 7, 3, 12, 1, 5 and 9 examples: batches are as the rule has said, or all."""
    rule = {"kind": "norm_test", "eta": 1.0, "max_batch": 6}
    settings: dict[str, Any] = {
        "client": {"kind": "sgd", "epochs": 2, "batch_size": 2, "lr": 0.1},
        "selection": {"kind": "uniform", "count": 6},
        "engine": {"precision": "float64"},
    }
    run = fedsim.run(
        small(4, strategy={"kind": "fedavg", "batch_rule": rule}, **settings), problem=small_problem(), save=False
    )
    plain = fedsim.run(small(4, **settings), problem=small_problem(), save=False)
    rows, sizes, size = run.history.rows, torch.tensor([7, 3, 12, 1, 5, 9]), 2
    for row in rows:
        assert row["batch_size"] == pytest.approx(float(sizes.clamp(max=size) @ sizes) / 37)
        size = max(size, min(6, -int(-row["wanted_batch"] // 1)))
    assert size == 6
    assert rows[0]["train_loss"] == plain.history.rows[0]["train_loss"]
    assert rows[0]["bytes_up"] - plain.history.rows[0]["bytes_up"] == 6 * 2 * 8


FGSM = {"kind": "standard", "attack": {"kind": "fgsm", "epsilon": 0.1}}


@pytest.mark.parametrize(
    ("client", "said"),
    [
        ({"kind": "sgd", "epochs": 1, "batch_size": "full"}, "client.batch_size = full"),
        ({"kind": "sgd", "epochs": 1, "batch_size": 1}, "client.batch_size = 1"),
        ({"kind": "sgd", "epochs": 1, "adversarial": FGSM}, "client.adversarial = given"),
        (
            {"kind": "feddyn", "epochs": 1},
            "feddyn: .* spread, which this client does not send back; take client.kind = sgd",
        ),
    ],
)
def test_clients_that_cannot_do_it_are_refused(client: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        fedsim.experiment(strategy={"kind": "fedavg", "batch_rule": "norm_test"}, client=client)


def test_a_client_takes_no_less_than_its_own_batch_and_declares_what_it_takes() -> None:
    client, examples = Sgd(epochs=2, batch_size=4, lr=0.1), torch.tensor([3, 8, 20])
    problem = small_problem()
    for asked, steps in ((1, [2, 4, 10]), (8, [2, 2, 6]), (50, [2, 2, 2])):
        cost = client.cost(order(problem, torch.arange(3), **{"batch-size": asked}), examples)
        assert cost.steps.tolist() == steps
        assert cost.effort.tolist() == [1.0, 1.0, 1.0]
        assert cost.reply["spread"].nbytes == 16


def test_cohorts_have_room_for_the_largest_batch() -> None:
    """As many clients are stacked as if they took it by themselves."""
    rule = {"kind": "norm_test", "max_batch": 12}

    def chunk(batch_size: int, **strategy: Any) -> int:
        client = {"kind": "sgd", "epochs": 1, "batch_size": batch_size}
        tables = {"client": client, "strategy": {"kind": "fedavg", **strategy}, "engine": {"executor": "stacked"}}
        return build_executor(small(1, **tables), small_problem()).chunk

    assert chunk(2, batch_rule=rule) == chunk(12) < chunk(2)


def test_rates_that_scale_with_batches_grow_with_those_that_the_server_asks_for() -> None:
    problem = small_problem()
    client = {"kind": "sgd", "steps": 1, "batch_size": 2, "lr": 0.1}
    deltas = []
    for own in (client, client | {"lr_scaling": "linear"}):
        working = build_executor(small(1, client=own), problem)
        job = working.assign(order(problem, torch.tensor([1, 2]), **{"batch-size": 6}))
        deltas.append(working.execute(job).payload["delta"])
    ratio = torch.tensor([3 / 2, 6 / 2], dtype=torch.float64)  # of 3 and 12 examples batches have 3 and 6
    assert torch.allclose(deltas[1], ratio.unsqueeze(1) * deltas[0], rtol=0, atol=1e-14)
