"""q-FedAvg, TERM and AFL: what they weigh by, where they end, and FedAvg where they weigh nothing."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fedsim
from fedsim.core.errors import InputError
from fedsim.exchange.messages import Order, Replies
from fedsim.server import Averaging, ServerState
from fedsim.testing.problems import DEVICE, Fewer, blobs, small_experiment, small_problem
from strategies.afl import AFL, onto_simplex
from strategies.fedavg import FedAvg
from strategies.qfedavg import QFedAvg
from strategies.term import Term

APART = torch.tensor([0.0, 1.0, 4.0], dtype=torch.float64)
"""f_i(y) = (y - a_i)^2 of these a_i, whose gradient is 2 (y - a_i)."""


@dataclass
class Heard:
    """An aggregator that notes what it is handed, and takes the mean."""

    rows: Tensor | None = None
    weights: Tensor | None = None

    def __call__(self, rows: Tensor, weights: Tensor) -> Tensor:
        """The mean by weights."""
        self.rows, self.weights = rows.clone(), weights.clone()
        return (weights / weights.sum()) @ rows


def replies(delta: Any, losses: Any, examples: Sequence[int] | None = None, clients: Sequence[int] = ()) -> Replies:
    """Of as many clients, from 0 unless these are named, of one example each unless these are told."""
    rows = torch.as_tensor(delta, dtype=torch.float64)
    told, count = torch.as_tensor(losses, dtype=torch.float64), len(rows)
    ids = torch.tensor(clients) if clients else torch.arange(count)
    return Replies(
        clients=ids,
        payload={"delta": rows.view(count, rows[:1].numel()), "start-loss": told.view(count, 1)},
        metrics={},
        examples=torch.tensor(examples or [1] * count),
        failed=ids[:0],
        round=0,
        versions=torch.zeros_like(ids),
        durations=torch.ones_like(ids),
        orders=[Order("train", ids, {})],
        origin=[0] * count,
    )


def state(params: Any = 0.0, **given: Any) -> ServerState:
    return ServerState(torch.as_tensor(params, dtype=torch.float64).reshape(-1), **given)


def ended(strategy: Averaging, rounds: int, lr: float, begin: ServerState | None = None) -> ServerState:
    """Where a server of three clients with f_i(y) = (y - a_i)^2 ends, each of which takes one step."""
    server = state() if begin is None else begin
    for _ in range(rounds):
        away = server.params - APART
        server, _, _ = strategy.tell(server, replies(-lr * 2.0 * away, away.square()))
    return server


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.ReLU(), nn.Linear(8, 3))


def run(strategy: dict[str, Any], dtype: torch.dtype, **tables: Any) -> Tensor:
    """The model after three rounds of four of six clients, with batch normalisation."""
    problem = fedsim.supervised(**blobs(), model=network(), dtype=dtype, device=DEVICE)
    return fedsim.run(small_experiment(strategy=strategy, **tables), problem=problem, save=False).params


@pytest.mark.parametrize(("weighting", "dtype"), [("examples", torch.float32), ("uniform", torch.float64)])
def test_what_weighs_nothing_is_fedavg(weighting, dtype):
    """To the bit; AFL, which divides by shares of all clients, to rounding."""
    common = {"weighting": weighting, "server_optimizer": {"kind": "sgd", "momentum": 0.5}}
    plain = run({"kind": "fedavg", **common}, dtype)
    for strategy in ({"kind": "qfedavg", "q": 0.0}, {"kind": "term", "t": 0.0}):
        assert torch.equal(run(strategy | common, dtype), plain)
    still = run({"kind": "afl", "lambda_lr": 0.0} | common, dtype)
    torch.testing.assert_close(still, plain, rtol=0, atol=1e-12 if dtype == torch.float64 else 1e-6)
    for strategy in ({"kind": "qfedavg", "q": 0.5}, {"kind": "term", "t": 0.5}, {"kind": "afl", "lambda_lr": 0.2}):
        assert not torch.allclose(run(strategy | common, dtype), plain, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "plain", [QFedAvg(q=0.0, weighting="examples"), Term(t=0.0)], ids=lambda own: type(own).__name__
)
def test_whatever_the_examples_and_losses_nothing_is_nothing_to_the_bit(plain):
    """Also where the weights do not sum to one, by rounding."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        delta, losses = (torch.rand(9, width, dtype=torch.float64, generator=generator) for width in (4, 1))
        told = replies(delta, losses, torch.randint(1, 50, (9,), generator=generator).tolist())
        found, expected = (strategy.tell(state([1.0] * 4), told)[0].params for strategy in (plain, FedAvg()))
        assert torch.equal(found, expected)


@pytest.mark.parametrize("q", [0.0, 0.3, 1.0, 5.0])
def test_a_step_of_q_fedavg_is_the_published_one(q):
    """theta - sum_i w_i D_i / sum_i h_i in the words of the paper, of four clients and five numbers, L = 1 / 0.05."""
    generator = torch.Generator().manual_seed(3)
    delta = torch.randn(4, 5, dtype=torch.float64, generator=generator)
    losses = torch.tensor([0.2, 3.0, 0.7, 1.1], dtype=torch.float64)
    steep, moved = 1 / 0.05, -delta / 0.05
    w = (losses + 1e-10) ** q
    h = q * (losses + 1e-10) ** (q - 1) * moved.square().sum(1) + steep * w
    found, metrics, done = QFedAvg(q=q, client_lr=0.05).tell(state([1.0] * 5), replies(delta, losses))
    torch.testing.assert_close(found.params, 1.0 - w @ moved / h.sum(), rtol=0, atol=1e-14)
    assert done
    assert found.round == 1
    # s is how far this is of the mean by w_i.
    assert metrics["step_scale"] == pytest.approx(float(steep * w.sum() / h.sum()), rel=1e-12)
    # A client of two examples counts as two of the same, where examples weigh.
    twice = torch.tensor([0, 0, 1, 2, 3])
    one, _, _ = QFedAvg(q=q, weighting="examples").tell(state([1.0] * 5), replies(delta, losses, [2, 1, 1, 1]))
    other, _, _ = QFedAvg(q=q).tell(state([1.0] * 5), replies(delta[twice], losses[twice]))
    torch.testing.assert_close(one.params, other.params, rtol=0, atol=1e-14)


def test_an_aggregator_is_handed_what_q_fedavg_adds_up():
    """F_i^2 Delta_i in units of the largest: (1/4)^2 and 1 times the changes, with the weights of clients."""
    heard = Heard()
    told = replies([[1.0, 0.0], [0.0, 1.0]], [1.0, 4.0], [3, 1])
    QFedAvg(q=2.0, weighting="examples").tell(state([0.0, 0.0]), replace(told, aggregator=heard))
    torch.testing.assert_close(heard.rows, torch.tensor([[0.0625, 0.0], [0.0, 1.0]], dtype=torch.float64))
    assert heard.weights.tolist() == [0.75, 0.25]


def test_running_statistics_are_averaged_as_losses_weigh_and_lengthen_no_change():
    """q = 1: v = (1/4, 3/4). |Delta|^2 = 1 of what is trained, s = 1 / (1 + 10 (1/4 / 1 + 3/4 / 3)) = 1/6."""
    told = replies([[1.0, 0.0, 8.0], [0.0, 1.0, 16.0]], [1.0, 3.0])
    found, metrics, _ = QFedAvg().tell(state([0.0] * 3, trained=2), told)
    expected = torch.tensor([0.25 / 6, 0.75 / 6, 14.0], dtype=torch.float64)
    torch.testing.assert_close(found.params, expected, rtol=0, atol=1e-8)
    assert metrics["step_scale"] == pytest.approx(1 / 6, abs=1e-9)


def test_losses_that_have_no_power_count_as_none():
    """One of 0 or below keeps its client from weighing; where all are, steps are short and none is no number."""
    for low in (0.0, -2.0):
        found, _, _ = QFedAvg(q=2.0).tell(state(), replies([1.0, -1.0], [low, 1.0]))
        alone, _, _ = QFedAvg(q=2.0).tell(state(), replies([-1.0], [1.0]))
        torch.testing.assert_close(found.params, alone.params, rtol=0, atol=1e-10)
        nowhere, metrics, _ = QFedAvg(q=2.0).tell(state(), replies([1.0, 1.0], [low, low]))
        assert 0.0 < float(nowhere.params) < 1e-8
        assert 0.0 < metrics["step_scale"] < 1e-8
    huge, _, _ = QFedAvg(q=9.0).tell(state(), replies([1.0, -1.0], [1e100, 1e90]))
    assert float(huge.params) == pytest.approx(1.0)


def test_tilted_weights_by_hand():
    """Losses that are ln 2 apart, with t = 1: twice as much, so 3 and 1 examples count 3 : 2; with t = -1 6 : 1."""
    told = replies([1.0, 0.0], [0.5, 0.5 + float(torch.tensor(2.0, dtype=torch.float64).log())], [3, 1])
    for t, expected in ((1.0, 3 / 5), (-1.0, 6 / 7), (0.0, 3 / 4), (2.0, 3 / 7)):
        found, _, _ = Term(t=t).tell(state(), told)
        assert float(found.params) == pytest.approx(expected, abs=1e-15)
    uniform, _, _ = Term(weighting="uniform").tell(state(), told)
    assert float(uniform.params) == pytest.approx(1 / 3, abs=1e-15)


def test_a_large_tilt_follows_the_worst_client_and_a_large_one_below_0_the_best():
    told = replies([1.0, 2.0, 3.0], [0.1, 1e6, 0.3], [5, 1, 5])
    for t, expected in ((1e6, 2.0), (-1e6, 1.0)):
        found, _, _ = Term(t=t).tell(state(), told)
        assert float(found.params) == pytest.approx(expected, abs=1e-14)


def test_losses_are_those_of_the_model_that_was_sent_on_all_examples(quadratics):
    """Three rounds of simulated clients, two steps each, are NumPy's."""
    client = {"kind": "sgd", "steps": 2, "batch_size": "full", "lr": 0.05}
    parts = [(quadratics.x[own], quadratics.y[own]) for own in quadratics.clients]
    for strategy in ({"kind": "qfedavg", "q": 1.0, "client_lr": 0.05}, {"kind": "term", "t": 0.1}):
        end = np.zeros(3)
        for _ in range(3):
            losses = np.array([((x @ end - y) ** 2).mean() for x, y in parts])
            moved = np.array([a @ end + c - end for a, c in (quadratics.local(i, 2, 0.05) for i in range(6))])
            if strategy["kind"] == "term":
                weights = np.exp(0.1 * losses)
                end = end + weights @ moved / weights.sum()
            else:
                end = end + losses @ moved / (losses + (moved**2).sum(1) / 0.05).sum()
        np.testing.assert_allclose(quadratics.run(3, strategy, client), end, rtol=0, atol=1e-9)


def spread(y: float) -> tuple[float, float]:
    """The worst loss at y, and their deviation."""
    losses = (y - APART).square()
    return float(losses.max()), float(losses.std())


def test_q_fedavg_ends_where_losses_to_the_power_q_times_gradients_cancel_and_more_alike_with_q():
    """sum_i (y - a_i)^(2q + 1) = 0: of q = 0 the mean, 5/3; of q = 1 3 y^3 - 15 y^2 + 51 y - 65 = 0."""
    ends = {q: float(ended(QFedAvg(q=q, client_lr=0.1), 400, 0.1).params) for q in (0.0, 1.0, 5.0)}
    for q, y in ends.items():
        losses = (y - APART).square() + 1e-10
        assert float(((losses / losses.max()) ** q * (y - APART)).sum()) == pytest.approx(0.0, abs=1e-11)
    assert ends[0.0] == pytest.approx(5 / 3, abs=1e-9)
    assert 3 * ends[1.0] ** 3 - 15 * ends[1.0] ** 2 + 51 * ends[1.0] == pytest.approx(65.0, abs=1e-8)
    for one, other in itertools.pairwise(map(spread, ends.values())):
        assert one > other
        assert one[1] > other[1]


def test_term_ends_where_tilted_gradients_cancel_and_nearer_to_the_least_worst_with_t():
    ends = {t: float(ended(Term(t=t), 400, 0.2 / max(1.0, 10.0 * t)).params) for t in (0.0, 0.1, 1.0, 10.0)}
    for t, y in ends.items():
        weights = torch.exp(t * ((y - APART).square() - (y - APART).square().max()))
        assert float((weights * (y - APART)).sum() / weights.sum()) == pytest.approx(0.0, abs=1e-9)
    assert ends[0.0] == pytest.approx(5 / 3, abs=1e-9)
    assert ends[10.0] == pytest.approx(2.0, abs=1e-6)
    worst = [spread(y)[0] for y in ends.values()]
    assert worst == sorted(worst, reverse=True)
    assert worst[-1] == pytest.approx(4.0, abs=1e-5)


def test_term_below_0_lets_go_of_the_outlier():
    """From 1 it stays near 0 and 1, whose mean is 0.5; the client at 4 has e^(-3.5^2 + 0.5^2) of their weight."""
    assert float(ended(Term(t=-1.0), 400, 0.1, state(1.0)).params) == pytest.approx(0.5, abs=1e-4)


def test_afl_ends_at_the_least_worst_with_the_mixture_that_holds_it_there():
    """y = 2 = (0 + 4) / 2, where both losses are 4 and the third, 1, weighs nothing."""
    begun = state(memory={"mixture": torch.full((3,), 1 / 3, dtype=torch.float64)})
    found = ended(AFL(lambda_lr=0.01), 1500, 0.1, begun)
    assert float(found.params) == pytest.approx(2.0, abs=1e-6)
    torch.testing.assert_close(found.memory["mixture"], torch.tensor([0.5, 0.0, 0.5]).double(), rtol=0, atol=1e-6)


def test_the_mixture_by_hand():
    """Of 4 clients 1 and 3 answer, with losses 1 and 2: (1/4, 7/20, 1/4, 9/20) - 3/40; weights are of before, 1/2 each.

    Then client 0 with a loss of 20 alone: all of it is its. Then 1 and 2, who have nothing: the model stays.
    """
    strategy, sizes = AFL(), torch.tensor([5, 1, 1, 2])
    begun = strategy.init(Fewer(small_problem(), sizes))
    server = ServerState(torch.zeros(1, dtype=torch.float64), memory=begun.memory)
    assert server.memory["mixture"].tolist() == [0.25] * 4
    server, metrics, _ = strategy.tell(server, replies([1.0, 3.0], [1.0, 2.0], clients=[1, 3]))
    assert float(server.params) == pytest.approx(2.0)
    assert metrics["largest_weight"] == 0.25
    assert server.memory["mixture"].tolist() == pytest.approx([0.175, 0.275, 0.175, 0.375])
    server, metrics, _ = strategy.tell(server, replies([1.0], [20.0], clients=[0]))
    assert float(server.params) == pytest.approx(3.0)
    assert metrics["largest_weight"] == pytest.approx(0.375)
    assert server.memory["mixture"].tolist() == [1.0, 0.0, 0.0, 0.0]
    server, _, done = strategy.tell(server, replies([7.0, 7.0], [0.1, 0.0], clients=[1, 2]))
    assert float(server.params) == pytest.approx(3.0)
    assert done
    examples = AFL(weighting="examples").init(Fewer(small_problem(), sizes)).memory["mixture"]
    assert examples.tolist() == pytest.approx([5 / 9, 1 / 9, 1 / 9, 2 / 9])


def test_whoever_comes_later_counts_as_an_average_client():
    """Before the first round nothing but p is known; afterwards two more of six take 1/6 each, and leave 2/3."""
    problem, strategy = small_problem(), AFL()
    four = Fewer(problem, problem.sizes[:4])
    begun = strategy.init(four)
    for weighting in ("uniform", "examples"):
        own = AFL(weighting=weighting)
        assert torch.equal(own.resize(own.init(four), problem).memory["mixture"], own.init(problem).memory["mixture"])
    moved = ServerState(begun.params, 1, memory={"mixture": torch.tensor([0.6, 0.4, 0.0, 0.0]).double()})
    found = strategy.resize(moved, problem).memory["mixture"]
    assert found.tolist() == pytest.approx([0.4, 4 / 15, 0.0, 0.0, 1 / 6, 1 / 6])
    assert torch.equal(strategy.resize(moved, four).memory["mixture"], moved.memory["mixture"])
    heavy = AFL(weighting="examples").resize(moved, problem).memory["mixture"]
    assert heavy[4:].tolist() == pytest.approx([5 / 37, 9 / 37])
    assert float(heavy.sum()) == pytest.approx(1.0)


def test_the_nearest_point_of_the_simplex_is_the_nearest_of_all_its_faces():
    """On a face it is the point less what its sum is above 1, in equal parts, if then no number is below 0."""
    generator = torch.Generator().manual_seed(1)
    for number in range(40):
        point = 1.5 * torch.randn(1 + number % 5, dtype=torch.float64, generator=generator)
        candidates = []
        for size in range(1, len(point) + 1):
            for face in map(list, itertools.combinations(range(len(point)), size)):
                there = torch.zeros_like(point)
                there[face] = point[face] - (point[face].sum() - 1.0) / size
                if bool((there >= 0.0).all()):
                    candidates.append(there)
        nearest = min(candidates, key=lambda there: float((there - point).square().sum()))
        torch.testing.assert_close(onto_simplex(point), nearest, rtol=0, atol=1e-14)
    inside = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    torch.testing.assert_close(onto_simplex(inside), inside, rtol=0, atol=1e-16)
    assert onto_simplex(torch.tensor([2.0, 2.0, -9.0]).double()).tolist() == [0.5, 0.5, 0.0]


def test_rounds_without_replies_change_nothing():
    mixture = torch.tensor([0.25, 0.75], dtype=torch.float64)
    none = replies(torch.zeros(0, 2), torch.zeros(0))
    none = replace(none, payload={**none.payload, "delta": torch.zeros(0, 2, dtype=torch.float64)})
    for strategy in (QFedAvg(), Term(), AFL()):
        found, _, done = strategy.tell(state([1.0, 2.0], memory={"mixture": mixture}), none)
        assert (found.params.tolist(), found.round, done) == ([1.0, 2.0], 1, True)
        assert found.memory["mixture"].tolist() == [0.25, 0.75]


def test_a_rate_that_clients_do_not_have_is_warned_of(capsys):
    for client, warned in ((0.1, False), (0.05, True), (None, False)):
        rate = {} if client is None else {"lr": client}
        given = small_experiment(1, strategy="qfedavg", client={"kind": "sgd", "steps": 1, **rate})
        fedsim.run(given, problem=small_problem(), save=False)
        said = capsys.readouterr().err
        assert ("strategy.client_lr = 0.1: the clients' learning rate, client.lr, is 0.05" in said) == warned


@pytest.mark.parametrize("strategy", ["qfedavg", "term", "afl"])
def test_clients_that_do_not_tell_are_refused_with_the_one_that_does(strategy):
    with pytest.raises(
        InputError, match=r"client\.kind = values: .* exchange delta, start-loss.* take client.kind = .*moon or .*sgd"
    ):
        small_experiment(strategy=strategy, client={"kind": "values"})
