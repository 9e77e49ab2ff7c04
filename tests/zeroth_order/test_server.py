"""The guarded server step: what it keeps, whom it asks, and what that costs."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from fedsim.exchange.messages import Replies
from fedsim.problems.own_functions import black_box
from fedsim.running.build import build_simulation
from fedsim.running.simulation import Simulation
from fedsim.server.strategy import ServerState
from fedsim.testing.problems import DEVICE, small_problem
from fedsim.testing.problems import small_experiment as small
from fedsim.zeroth_order.server import GuardedStep

D, N = 3, 4
SHIFTS = torch.tensor([-1.0, 0.0, 0.5, 2.5], dtype=torch.float64, device=DEVICE)
START = torch.full((D,), 3.0, dtype=torch.float64)
COORDINATES = {"kind": "differences", "directions": "coordinate", "count": D, "difference": "central", "mu": 0.1}


def bowls(clients: Tensor, x: Tensor) -> Tensor:
    """|x - s_c|^2 / 2; F(x) = |x - 1/2|^2 / 2 and a constant, as the shifts' mean is 1/2."""
    return (x - SHIFTS[clients].view(-1, 1, 1)).square().sum(dim=-1) / 2.0


def simulation(
    rounds: int,
    lr: float,
    *,
    count: int = N,
    guard: bool = True,
    steps: int = 1,
    problem: Any = None,
    estimator: Any = None,
) -> Simulation:
    problem = problem or black_box(bowls, dimension=D, clients=N, bounds=None, start=3.0, device=DEVICE)
    client = {"kind": "fedzo", "steps": steps, "lr": lr, "optimizer": "sgd", "estimator": estimator or COORDINATES}
    return build_simulation(
        small(
            rounds,
            strategy={"kind": "fedzo", "guard": guard},
            client=client,
            selection={"kind": "uniform", "count": count},
        ),
        problem,
    )


def value(params: Tensor) -> float:
    return float(bowls(torch.arange(N, device=DEVICE), params.expand(N, 1, -1)).mean())


def replied(payload: dict[str, Tensor], clients: list[int] | None = None) -> Replies:
    count = len(next(iter(payload.values())))
    chosen = torch.tensor(clients if clients is not None else range(count))
    whole = torch.zeros(count, dtype=torch.int64)
    loss = {"loss": torch.zeros(count, dtype=torch.float64)}
    return Replies(chosen, payload, loss, whole + 1, whole[:0], 0, whole, whole, [], [])


def test_without_a_guard_a_round_is_one_window_and_the_mean_of_the_changes() -> None:
    server = GuardedStep(server_lr=0.5)
    state = server.init(black_box(bowls, dimension=D, clients=N, bounds=None, start=3.0))
    assert server.windows(state) == ("train",)
    state, _, done = server.tell(state, replied({"delta": torch.eye(3, dtype=torch.float64)}))
    assert done
    assert torch.allclose(state.params, START + 0.5 / 3)


def test_steps_that_do_not_lower_f_are_taken_back() -> None:
    """lr = 1 goes to the clients' own optima, and so to the best point; lr = 2 throws x - 1/2 to its opposite.

    There F is what it was, not lower; with lr = 2.5 it is higher. The guard keeps the model in both cases.
    """
    for lr, accepted in ((1.0, 1.0), (2.0, 0.0), (2.5, 0.0)):
        simulated = simulation(1, lr)
        assert simulated.step()["accepted"] == accepted
        wanted = torch.full_like(START, 0.5) if accepted else START
        assert torch.allclose(simulated.state.params.cpu(), wanted, rtol=0, atol=1e-11)
    free = simulation(1, 2.5, guard=False)
    free.step()
    assert torch.allclose(free.state.params.cpu(), START - 2.5 * 2.5, rtol=0, atol=1e-11)


def test_guarded_values_never_rise() -> None:
    """On rough bowls with two random directions some rounds lead down and some up; a model is kept to the bit."""

    def rough(clients: Tensor, x: Tensor) -> Tensor:
        return bowls(clients, x) + torch.cos(9.0 * x).sum(dim=-1)

    problem = black_box(rough, dimension=D, clients=N, bounds=None, start=3.0, device=DEVICE)
    simulated = simulation(20, 0.05, problem=problem, estimator={"kind": "differences", "count": 2, "mu": 1e-3})
    everybody, accepted = torch.arange(N, device=DEVICE), []
    held = [float(rough(everybody, START.to(DEVICE).expand(N, 1, -1)).mean())]
    for _ in range(20):
        accepted.append(simulated.step()["accepted"])
        held.append(float(rough(everybody, simulated.state.params.expand(N, 1, -1)).mean()))
        assert held[-1] < held[-2] if accepted[-1] else held[-1] == held[-2]
    assert 3 <= sum(accepted) <= 17


def test_with_everybody_the_value_is_known_from_the_last_round() -> None:
    """A round's search takes 2 d = 6 evaluations a client; the guard two in the first round, and then one."""
    simulated = simulation(4, 0.3)
    for extra in (2, 1, 1, 1):
        row = simulated.step()
        assert (row["queries"], row["extra_queries"]) == (N * (6 + extra), N * extra)
        # Up d numbers and a value for each candidate; down the model, and each candidate of d.
        assert row["bytes_up"] == N * 8 * (D + extra)
        assert row["bytes_down"] == N * 8 * (D + extra * D)
        assert row["clients"] == N
        # F of the guard is that of the model
        assert float(simulated.state.memory["value"]) == pytest.approx(value(simulated.state.params), rel=1e-13)


def test_with_some_both_points_are_measured_by_the_clients_of_the_round() -> None:
    simulated = simulation(4, 0.3, count=2)
    for _ in range(4):
        row = simulated.step()
        assert (row["queries"], row["extra_queries"]) == (2 * (6 + 2), 2 * 2)
        assert "value" not in simulated.state.memory
        assert "candidate" not in simulated.state.memory


def test_some_judge_by_their_own_functions() -> None:
    """Client 3 alone pulls from 1 to 2, nearer to its 2.5; that is accepted though F, least at 1/2, rises."""
    server = GuardedStep(guard=True)
    state = ServerState(torch.ones(D, dtype=torch.float64, device=DEVICE), memory={"clients": torch.tensor(N)})
    state, _, done = server.tell(state, replied({"delta": torch.ones(1, D, dtype=torch.float64, device=DEVICE)}, [3]))
    assert not done
    assert state.phase == 1
    orders, _ = server.ask(state, torch.tensor([3]))
    assert orders.action == "measure"
    candidates = orders.payload["candidates"]
    assert candidates.cpu().tolist() == [[1.0] * D, [2.0] * D]
    values = bowls(torch.tensor([3], device=DEVICE), candidates.unsqueeze(0))
    state, metrics, done = server.tell(state, replied({"values": values}, [3]))
    assert (done, state.phase, state.round, metrics["accepted"]) == (True, 0, 1, 1.0)
    assert torch.equal(state.params, candidates[1])


def test_of_more_clients_both_points_are_measured_again() -> None:
    """The mean of three functions is another one than that of two, whose value at the model was known."""
    server, params = GuardedStep(guard=True), torch.zeros(D, dtype=torch.float64)
    memory = {"clients": torch.tensor(2), "candidate": params + 1.0, "value": torch.tensor(1.0, dtype=torch.float64)}
    for count, points in ((2, 1), (3, 2)):
        problem = black_box(bowls, dimension=D, clients=count, bounds=None, start=3.0)
        state = server.resize(ServerState(params, phase=1, memory=memory), problem)
        orders, _ = server.ask(state, torch.arange(count))
        assert len(orders.payload["candidates"]) == points


def test_nobody_answers_and_the_model_stays() -> None:
    server, nothing = GuardedStep(guard=True), torch.zeros(0, D, dtype=torch.float64)
    state = server.init(black_box(bowls, dimension=D, clients=N, bounds=None, start=3.0))
    state, _, _ = server.tell(state, replied({"delta": nothing}))
    state, metrics, done = server.tell(state, replied({"values": nothing}))
    assert (done, metrics["accepted"], state.round) == (True, 0.0, 1)
    assert torch.equal(state.params, START)


def test_a_candidate_where_a_client_has_no_value_is_not_taken() -> None:
    """Client 3's function is infinite below 2.5, and so is F, whatever the other three may think.

    From 3 the step of 0.4 times 3 - 1/2 leads to 2.
    """

    def walled(clients: Tensor, x: Tensor) -> Tensor:
        wall = (clients == 3).unsqueeze(1) & (x < 2.5).all(dim=-1)
        return torch.where(wall, torch.inf, bowls(clients, x))

    problem = black_box(walled, dimension=D, clients=N, bounds=None, start=3.0, device=DEVICE)
    simulated = simulation(1, 0.4, problem=problem)
    row = simulated.step()
    assert row["accepted"] == 0.0
    assert torch.equal(simulated.state.params.cpu(), START)


@pytest.mark.parametrize("weighting", ["uniform", "examples"])
def test_f_is_weighted_as_the_changes_are(weighting: str) -> None:
    """Of examples (6, 1): values (0, 3) and (1, 0) have means 1.5 > 0.5, or 3/7 < 6/7."""
    server = GuardedStep(guard=True, weighting=weighting)
    params = torch.zeros(D, dtype=torch.float64)
    state = ServerState(params, phase=1, memory={"clients": torch.tensor(2), "candidate": params + 1})
    found = replied({"values": torch.tensor([[0.0, 1.0], [3.0, 0.0]], dtype=torch.float64)})
    found = Replies(**{**vars(found), "examples": torch.tensor([6, 1])})
    state, metrics, _ = server.tell(state, found)
    assert metrics["accepted"] == (weighting == "uniform")


def test_a_step_that_changes_nothing_is_not_taken() -> None:
    """F must be lower, not as low."""
    params = torch.zeros(D, dtype=torch.float64)
    for candidate, accepted in ((1.0, 0.0), (1.0 - 1e-12, 1.0)):
        state = ServerState(params, phase=1, memory={"clients": torch.tensor(2), "candidate": params + 1})
        values = torch.tensor([[1.0, candidate], [1.0, candidate]], dtype=torch.float64)
        state, metrics, _ = GuardedStep(guard=True).tell(state, replied({"values": values}))
        assert metrics["accepted"] == accepted
        assert float(state.params.sum()) == accepted * D


class Sharing(GuardedStep):
    """Ends rounds with the clients' thoughts on the new model."""

    sharing, shared = "think", "thought"


@pytest.mark.parametrize("guard", [False, True])
def test_what_is_shared_is_averaged_and_kept(guard: bool) -> None:
    server = Sharing(guard=guard)
    state = server.init(black_box(bowls, dimension=D, clients=N, bounds=None, start=3.0))
    assert server.windows(state) == (("train", "measure", "think") if guard else ("train", "think"))
    delta = torch.full((2, D), -1.0, dtype=torch.float64)
    state, _, done = server.tell(state, replied({"delta": delta}))
    assert not done
    if guard:
        state, _, done = server.tell(state, replied({"values": torch.tensor([[2.0, 1.0], [2.0, 1.0]])}))
        assert not done
    orders, _ = server.ask(state, torch.arange(2))
    assert orders.action == "think"
    assert torch.equal(orders.payload["params"], START - 1.0)
    thoughts = torch.tensor([[1.0, 2.0], [3.0, 6.0]], dtype=torch.float64)
    state, _, done = server.tell(state, replied({"thought": thoughts}))
    assert done
    assert state.memory["thought"].tolist() == [2.0, 4.0]
    assert (state.phase, state.round) == (0, 1)


def test_rounds_with_a_guard_can_be_interrupted() -> None:
    whole, first, second = (simulation(5, 1.9, steps=2) for _ in range(3))
    first.step()
    first.step()
    second.restore(first.snapshot())
    for simulated in (whole, second):
        for _ in simulated:
            pass
    assert torch.equal(whole.state.params, second.state.params)


def test_a_guarded_run_with_examples() -> None:
    """The mean loss on all of the clients' own examples never rises from round to round."""
    problem = small_problem()
    client = {"kind": "fedzo", "steps": 3, "batch_size": 4, "lr": 0.3, "estimator": {"kind": "differences", "count": 3}}
    experiment = small(
        6, strategy={"kind": "fedzo", "guard": True}, client=client, selection={"kind": "uniform", "fraction": 1.0}
    )
    simulated, everybody = build_simulation(experiment, problem), torch.arange(6, device=DEVICE)
    held = [float(problem.losses(problem.initial(), everybody)[:, 0].mean())]
    for _ in range(6):
        simulated.step()
        held.append(float(problem.losses(simulated.state.params, everybody)[:, 0].mean()))
    assert all(after <= before + 1e-12 for before, after in pairwise(held))
    assert held[-1] < held[0]
