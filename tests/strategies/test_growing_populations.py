"""Strategies whose population grows while they are at work: what they remember, and where they end."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fedsim
from fedsim.core.errors import InputError
from fedsim.exchange.messages import Replies
from fedsim.running.build import build_simulation
from fedsim.running.simulation import Simulation
from fedsim.server import Strategy
from fedsim.server.strategy import ServerState
from fedsim.testing.problems import Fewer, small_experiment, small_problem
from fedsim.testing.rounds import everybody, exchange
from strategies.fedavg import FedAvg
from strategies.fedavg_async import FedAvgAsync
from strategies.fedbuff import FedBuff
from strategies.fedcbo import FedCBO
from strategies.feddyn import FedDyn
from strategies.fedfix import FedFix
from strategies.scaffold import Scaffold

PROBLEM = small_problem()
"""Six clients, of 7, 3, 12, 1, 5 and 9 examples; d = 83."""
FOUR = Fewer(PROBLEM, PROBLEM.sizes[:4])


def answered(clients: list[int], round_: int = 0, **payload: Tensor) -> Replies:
    """These clients' replies, changes of zero unless the payload says otherwise."""
    ids, none = torch.tensor(clients), torch.zeros(len(clients), dtype=torch.int64)
    rows = payload or {"delta": torch.zeros(len(clients), 83, dtype=torch.float64)}
    return Replies(ids, rows, {}, PROBLEM.sizes[ids], none[:0], round_, none + round_, none + 1, (), ())


def weight(strategy: Strategy, state: ServerState, client: int) -> float:
    """By how much the server goes along the next change if it is this client's."""
    one = torch.ones(1, 83, dtype=torch.float64)
    told, _, _ = strategy.tell(state, answered([client], state.round, delta=one))
    return float((told.params - state.params)[0])


@pytest.mark.parametrize(
    "strategy",
    [
        FedFix(window=1.0, frequency="observed"),
        FedBuff(size=1, weights="unbiased"),
        FedAvgAsync(frequency="observed"),
    ],
    ids=lambda made: type(made).__name__,
)
def test_who_comes_late_has_missed_nothing(strategy):
    """Client 4 comes after 50 rounds, and 5 after 52. p_4 = 5/28 at first, and p = (7, 3, 12, 1, 5, 9) / 37 of all six.

    Whoever answers in the first round in which it is there weighs p_i, and not 51 times as much, as with the rounds
    before it came in the count. Client 4 is then in two rounds of three.
    """
    state = strategy.init(FOUR)
    for number in range(50):
        state, _, _ = strategy.tell(state, answered([0], number))
    assert strategy.resize(state, FOUR).memory.keys() == state.memory.keys()
    state = strategy.resize(state, Fewer(PROBLEM, PROBLEM.sizes[:5]))
    assert weight(strategy, state, 4) == pytest.approx(5 / 28)
    assert weight(strategy, state, 0) == pytest.approx(7 / 28)
    for client in (4, 0):
        state, _, _ = strategy.tell(state, answered([client], state.round))
    state = strategy.resize(state, PROBLEM)
    assert weight(strategy, state, 5) == pytest.approx(9 / 37)
    assert weight(strategy, state, 4) == pytest.approx(5 / 37 * 3 / 2)
    assert weight(strategy, state, 0) == pytest.approx(7 / 37 * 53 / 52)
    # Where another number of its examples is heard of, it has come when it came.
    more = Fewer(PROBLEM, torch.tensor([7, 3, 12, 1, 18, 9]))
    assert weight(strategy, strategy.resize(state, more), 4) == pytest.approx(18 / 50 * 3 / 2)


def test_declared_frequencies_know_nobody_who_comes_later():
    durations = torch.ones(4, dtype=torch.float64)
    fixed = FedFix(window=1.0, weights="identical")
    planned = fixed.plan(fixed.init(FOUR), durations)
    assert fixed.resize(planned, FOUR).memory["identical"] == planned.memory["identical"]
    asynchronous = FedAvgAsync()
    for strategy, state in ((fixed, planned), (asynchronous, asynchronous.plan(asynchronous.init(FOUR), durations))):
        with pytest.raises(InputError, match=r"frequency = declared: clients that come later .* use observed"):
            strategy.resize(state, PROBLEM)


def test_unbiased_windows_need_only_the_share():
    strategy = FedFix(window=1.0)
    state = strategy.resize(strategy.init(FOUR), PROBLEM)
    assert weight(strategy, state, 5) == pytest.approx(9 / 37)


def test_identical_weights_are_one_for_everybody():
    strategy = FedAvgAsync(weights="identical")
    state = strategy.resize(strategy.init(FOUR), PROBLEM)
    assert weight(strategy, state, 5) == 1.0


def test_who_remembers_nobody_stays():
    for strategy in (FedAvg(), FedBuff(size=1)):
        state = strategy.init(FOUR)
        assert strategy.resize(state, PROBLEM) is state


class Constant(nn.Module):
    """One number, whatever the inputs are."""

    def __init__(self) -> None:
        super().__init__()
        self.number = nn.Parameter(torch.zeros(1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.number.repeat(len(x), 1)


def grown(strategy: dict[str, Any], client: dict[str, Any]) -> tuple[Simulation, ServerState]:
    """f_i(y) = (y - a_i)^2, a = (0, 1, 4), of 1, 5 and 4 examples; the third client comes after three rounds."""
    y = np.repeat([0.0, 1.0, 4.0], [1, 5, 4])
    lists = [[0], range(1, 6), range(6, 10)]
    problem = fedsim.supervised(np.zeros((10, 1)), y, model=Constant(), clients=lists, dtype=torch.float64)
    full = {"steps": 3, "batch_size": "full", "lr": 0.1}
    simulation = build_simulation(
        small_experiment(strategy=strategy, client=client | full, selection={"kind": "uniform", "count": 3}), problem
    )
    server = simulation.parts.strategy
    # Of the second client's examples only one is known until it has answered.
    state = server.init(Fewer(problem, torch.tensor([1, 1])))
    for number in range(3):
        _, replies = exchange(simulation, state, torch.arange(2))
        if number == 0:
            state = server.resize(state, Fewer(problem, problem.sizes[:2]))
        state, _, _ = server.tell(state, replies)
    return simulation, server.resize(state, problem)


def ends(simulation: Simulation, state: ServerState, rounds: int) -> float:
    for _ in range(rounds):
        _, replies = exchange(simulation, state, everybody(simulation))
        state, _, _ = simulation.parts.strategy.tell(state, replies)
    return float(state.params)


@pytest.mark.parametrize(("weighting", "end"), [("examples", 2.1), ("uniform", 5 / 3)])
def test_scaffold_ends_at_the_optimum_of_everybody(weighting, end):
    """(0 + 5 + 16) / 10, or (0 + 1 + 4) / 3. If c were not the mean of the c_i any more, it would end elsewhere."""
    simulation, state = grown({"kind": "scaffold", "weighting": weighting}, {"kind": "scaffold"})
    assert ends(simulation, state, 80) == pytest.approx(end, abs=1e-6)


def test_feddyn_ends_at_the_optimum_of_everybody():
    """(0 + 1 + 4) / 3. If h were not the mean of the L_i any more, it would end elsewhere."""
    simulation, state = grown({"kind": "feddyn", "alpha": 1.0}, {"kind": "feddyn"})
    assert ends(simulation, state, 80) == pytest.approx(5 / 3, abs=1e-6)


def test_the_drift_and_the_control_variate_are_means_over_everybody():
    """Of two clients 6 and of three 4, as the third has nothing of its own; of 10 examples of 15 likewise."""
    feddyn, six = FedDyn(alpha=1.0), torch.full((83,), 6.0, dtype=torch.float64)
    two, three = (Fewer(PROBLEM, torch.tensor(sizes)) for sizes in ([4, 6], [4, 6, 5]))
    state = feddyn.init(two)
    state = feddyn.resize(ServerState(state.params, 1, memory={**state.memory, "drift": six}), three)
    assert state.memory["drift"].tolist() == [4.0] * 83
    assert int(state.memory["clients"]) == 3
    for weighting, whole in (("uniform", 3), ("examples", 15)):
        scaffold = Scaffold(weighting=weighting)
        state = scaffold.init(two)
        state = scaffold.resize(ServerState(state.params, 1, memory={**state.memory, "control": six}), three)
        assert state.memory["control"].tolist() == [4.0] * 83
        assert int(state.memory["whole"]) == whole


def test_fedcbo_knows_the_models_and_scores_that_it_knew():
    strategy = FedCBO()
    state = strategy.init(FOUR)
    state, _, _ = strategy.tell(state, answered([0, 2], model=torch.ones(2, 83, dtype=torch.float64)))
    scores = torch.arange(16.0, dtype=torch.float64).reshape(4, 4)
    state = strategy.resize(ServerState(state.params, 1, memory={**state.memory, "scores": scores}), PROBLEM)
    assert state.memory["known"].tolist() == [True, False, True, False, False, False]
    assert state.memory["models"][:, 0].tolist() == [1.0, 0.0, 1.0, 0.0, 0.0, 0.0]
    assert torch.equal(state.memory["scores"][:4, :4], scores)
    assert state.memory["scores"][4:].tolist() == [[1.0] * 6] * 2
    assert state.memory["scores"][:, 4:].tolist() == [[1.0] * 2] * 6


@pytest.mark.parametrize(
    ("table", "client"),
    [
        ({"kind": "fedes", "population": 4}, {"kind": "fedes"}),
        ({"kind": "decomfl"}, {"kind": "decomfl"}),
        ({"kind": "one_byte"}, {"kind": "one_byte"}),
        ({"kind": "fedkseed", "pool": 8}, {"kind": "fedkseed"}),
    ],
    ids=lambda table: table["kind"],
)
def test_who_comes_later_is_sent_what_one_begins_with(table, client):
    """The order of the next round takes as many bytes for clients 4 and 5 as where they never took part before."""
    simulation = build_simulation(small_experiment(strategy=table, client=client), small_problem())
    server, found = simulation.parts.strategy, list[list[int]]()
    for problem in (FOUR, PROBLEM):
        state = server.seeded(server.init(problem), simulation.parts.streams)
        for _ in range(2):
            _, replies = exchange(simulation, state, torch.arange(4))
            state, _, _ = server.tell(state, replies)
        orders, _ = server.ask(server.resize(state, PROBLEM), torch.arange(6))
        found.append(torch.as_tensor(orders.encoded).expand(6).tolist())
    assert found[0] == found[1]
    assert min(found[0][4:]) > max(found[0][:4])
