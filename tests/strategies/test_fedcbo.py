"""FedCBO: the move to the consensus by hand, who is chosen, and two groups of agents that find each other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fedsim
from fedsim.problems.supervised import Supervised
from fedsim.running.build import build_simulation
from fedsim.running.simulation import Simulation
from fedsim.testing.problems import DEVICE, small_problem

TRAINING = {"steps": 5, "batch_size": "full", "lr": 0.1}
D, EXAMPLES = 5, 12


def truths(agents: int, seed: int = 0) -> np.ndarray:
    """w for even agents and -w for odd ones, [N, d]."""
    w = np.random.Generator(np.random.PCG64(seed)).normal(size=D)
    return np.array([w, -w])[np.arange(agents) % 2]


def groups(agents: int = 6, seed: int = 0, *, equal: bool = False) -> Supervised:
    """Linear regression of twelve examples an agent, with noise of 0.3. equal: all agents have the first's examples."""
    generator = np.random.Generator(np.random.PCG64([seed, 1]))
    x = generator.normal(size=(agents, EXAMPLES, D))
    y = np.einsum("ijk,ik->ij", x, truths(agents, seed)) + 0.3 * generator.normal(size=(agents, EXAMPLES))
    if equal:
        x[:], y[:] = x[0], y[0]
    model = nn.Linear(D, 1, bias=False)
    nn.init.zeros_(model.weight)
    lists = list(np.arange(agents * EXAMPLES).reshape(agents, EXAMPLES))
    return fedsim.supervised(
        x.reshape(-1, D), y.reshape(-1), model=model, clients=lists, dtype=torch.float64, device=DEVICE
    )


def simulated(problem: Supervised | None = None, rounds: int = 3, seed: int = 0, **tables: Any) -> Simulation:
    experiment = fedsim.experiment(
        rounds=rounds,
        seed=seed,
        strategy={"kind": "strategies.fedcbo:FedCBO", "peers": 3} | tables.get("strategy", {}),
        client={"kind": "clients.fedcbo:FedCBO"} | TRAINING | tables.get("client", {}),
        selection=tables.get("selection", {"kind": "uniform", "fraction": 1.0}),
        evaluation={"every": 0},
        engine={"executor": tables.get("executor", "auto")},
    )
    return build_simulation(experiment, groups() if problem is None else problem)


def final(run: Simulation) -> torch.Tensor:
    """The agents' own models at the end, [N, d]."""
    for _ in run:
        pass
    return models(run)


def models(run: Simulation) -> torch.Tensor:
    store = run.parts.engine.executor.store.snapshot()
    return store["model"][store["clients"].argsort()]


class Recorder:
    """A strategy that notes whose models were sent to whom, and what losses came back."""

    def __init__(self, run: Simulation) -> None:
        self.strategy = run.parts.strategy
        self.down = self.strategy.down
        self.selections: list[torch.Tensor] = []
        self.losses: list[torch.Tensor] = []
        run.parts = replace(run.parts, strategy=self)

    def ask(self, state: Any, chosen: torch.Tensor) -> Any:
        orders, window = self.strategy.ask(state, chosen)
        if orders.action == "mix":
            self.selections.append(orders.payload["selection"])
        return orders, window

    def tell(self, state: Any, replies: Any) -> Any:
        if "losses" in replies.payload:
            self.losses.append(replies.payload["losses"])
        return self.strategy.tell(state, replies)


def test_with_one_peer_and_a_full_pull_it_is_copied():
    run = simulated(strategy={"peers": 1}, client={"pull": 1.0})
    recorder = Recorder(run)
    for _ in range(3):
        run.step()
        sent = run.state.memory["models"]
        assert torch.equal(models(run), sent[recorder.selections[-1][:, 0]])
        assert not torch.equal(models(run), sent)


def test_with_alpha_of_zero_it_is_drawn_to_the_mean_of_its_peers():
    run = simulated(client={"pull": 0.25, "alpha": 0.0})
    recorder = Recorder(run)
    run.step()
    sent = run.state.memory["models"]
    mean = sent[recorder.selections[0]].mean(dim=1)
    assert torch.allclose(models(run), 0.75 * sent + 0.25 * mean, rtol=0, atol=1e-14)


def test_the_consensus_weighs_the_peers_by_their_losses_on_the_agents_own_examples():
    problem = groups()
    run = simulated(problem, client={"pull": 0.5, "alpha": 2.0})
    recorder = Recorder(run)
    run.step()
    sent, peers = run.state.memory["models"], recorder.selections[0]
    x, y = problem.data.x.view(6, EXAMPLES, D), problem.data.y.view(6, EXAMPLES)
    for agent in range(6):
        seen = torch.cat((sent[agent : agent + 1], sent[peers[agent]]))
        losses = (seen @ x[agent].T - y[agent]).square().mean(dim=1)
        assert torch.allclose(recorder.losses[0][agent], losses, rtol=1e-12, atol=0)
        weights = torch.exp(-2.0 * losses[1:]) / torch.exp(-2.0 * losses[1:]).sum()
        moved = 0.5 * sent[agent] + 0.5 * weights @ seen[1:]
        assert torch.allclose(models(run)[agent], moved, rtol=0, atol=1e-13)
    # P_ij = 1 + L_i(theta_i) - L_i(theta_j) for the peers, and 1 for the others.
    scores = torch.ones(6, 6, dtype=torch.float64, device=DEVICE)
    scores.scatter_add_(1, peers, recorder.losses[0][:, :1] - recorder.losses[0][:, 1:])
    assert torch.equal(run.state.memory["scores"], scores)


def test_a_large_alpha_takes_the_best_peer_and_does_not_underflow():
    run = simulated(client={"pull": 1.0, "alpha": 1e6})
    recorder = Recorder(run)
    run.step()
    best = recorder.losses[0][:, 1:].argmin(dim=1, keepdim=True)
    chosen = recorder.selections[0].gather(1, best)[:, 0]
    assert torch.equal(models(run), run.state.memory["models"][chosen])


def test_agents_that_are_equal_stay_equal():
    end = final(simulated(groups(equal=True)))
    assert torch.allclose(end, end[:1].expand(6, -1), rtol=0, atol=1e-14)
    assert bool(end.any())


def test_noise_moves_agents_by_its_share_of_their_way():
    """|moved - quiet| = noise |theta - m| |xi|, and E|xi|^2 = d: over 60 agents the mean of ratio^2 is 5 +- 0.4."""
    runs = [simulated(groups(60), client={"pull": 0.5, "noise": noise}) for noise in (0.0, 0.1)]
    for run in runs:
        run.step()
    sent, (quiet, moved) = runs[0].state.memory["models"], map(models, runs)
    way = (sent - quiet).norm(dim=1) / 0.5
    ratio = ((moved - quiet).norm(dim=1) / (0.1 * way)).square().mean()
    assert float(ratio) == pytest.approx(5.0, abs=1.6)


def test_no_noise_comes_to_running_statistics():
    """One round: what is trained of the agents differs with noise, and their statistics, its last 6, do not."""
    model = nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3))
    noisy, quiet = (
        final(simulated(small_problem(model=model), rounds=1, client={"noise": noise})) for noise in (0.1, 0.0)
    )
    assert torch.equal(noisy[:, -6:], quiet[:, -6:])
    assert not torch.isclose(noisy[:, :-6], quiet[:, :-6]).all(dim=1).any()


def test_two_groups_find_each_other():
    """Mean |theta_i - w_i|^2: alone an agent has 0.09 x 5 / (12 - 5 - 1) = 0.075 (least squares of 12 examples).

    One model for all is at best 0, |w|^2 away. All peers are of the own group in the end.
    """
    true = torch.from_numpy(truths(20)).to(DEVICE)
    errors = {}
    for name, pull in (("alone", 0.0), ("fedcbo", 0.5)):
        run = simulated(groups(20), 60, strategy={"peers": 8}, client={"pull": pull, "alpha": 20.0})
        errors[name] = float((final(run) - true).square().sum(dim=1).mean())
    peers = run.parts.strategy.chosen_peers(run.state, torch.arange(20, device=DEVICE)).cpu()
    assert torch.equal(peers % 2, torch.arange(20).unsqueeze(1).expand(-1, 8) % 2)
    experiment = fedsim.experiment(rounds=60, client={"kind": "sgd"} | TRAINING, evaluation={"every": 0})
    averaged = build_simulation(experiment, groups(20))
    for _ in averaged:
        pass
    errors["fedavg"] = float((averaged.state.params - true).square().sum(dim=1).mean())
    assert errors["fedcbo"] < errors["alone"] / 3 < errors["fedavg"] / 9


def test_bytes_and_queries():
    """Of 8-byte numbers, for 6 agents with 3 peers: to begin, d down; then 3 d down, d + 4 up, 4 evaluations each."""
    run = simulated()
    first, second = run.step(), run.step()
    assert first["bytes_down"] == 6 * 8 * (D + 3 * D)
    assert second["bytes_down"] == 6 * 8 * 3 * D
    for row in (first, second):
        assert row["bytes_up"] == 6 * 8 * (D + 4)
        assert (row["queries"], row["extra_queries"], row["clients"]) == (6 * 4, 0, 6)
    assert second["own_loss"] < first["own_loss"]


def known_state(run: Simulation, known: list[int], scores: torch.Tensor | None = None, round_: int = 0) -> Any:
    memory = dict(run.state.memory)
    memory["known"] = torch.zeros_like(memory["known"]).index_fill(0, torch.tensor(known, device=DEVICE), True)
    if scores is not None:
        memory["scores"] = scores.to(memory["scores"])
    return replace(run.state, memory=memory, round=round_, phase=1)


@pytest.mark.parametrize(("known", "count"), [([0, 1, 2, 3, 4, 5], 3), ([0, 2, 5], 2), ([1, 2], 1), ([4], 0)])
def test_peers_are_others_that_have_sent_a_model(known, count):
    run = simulated()
    agents = torch.tensor(known, device=DEVICE)
    peers = run.parts.strategy.chosen_peers(known_state(run, known), agents)
    assert peers.shape == (len(known), count)
    for agent, row in zip(known, peers.tolist(), strict=True):
        assert len(set(row)) == count
        assert set(row) <= set(known) - {agent}


def test_later_the_best_scores_are_taken_and_some_at_random():
    """Agent 0 prefers 5, then 3 and 4 alike. epsilon = max(0.1, 0.5 - 0.01 r): 1 of 3 at random, from 17 on none."""
    run = simulated()
    scores = torch.ones(6, 6, dtype=torch.float64)
    scores[0] = torch.tensor([9.0, -3.0, -4.0, 2.0, 2.0, 3.0])
    one = torch.tensor([0], device=DEVICE)
    strategy = run.parts.strategy
    late = [
        set(strategy.chosen_peers(known_state(run, list(range(6)), scores, number), one)[0].tolist())
        for number in range(17, 30)
    ]
    assert all(peers == {5, 3, 4} for peers in late)
    seen = set()
    for number in range(17):
        peers = set(strategy.chosen_peers(known_state(run, list(range(6)), scores, number), one)[0].tolist())
        assert {5, 3} < peers
        seen |= peers
    assert seen == {1, 2, 3, 4, 5}
    # A row as it began says nothing: other peers in every round.
    began = [
        tuple(sorted(strategy.chosen_peers(known_state(run, list(range(6)), None, number), one)[0].tolist()))
        for number in range(17, 30)
    ]
    assert len(set(began)) > 3


def test_agents_keep_their_models_through_rounds_without_them():
    run = simulated(selection={"kind": "uniform", "count": 2}, rounds=4)
    seen: dict[int, torch.Tensor] = {}
    for _ in range(4):
        run.step()
        store = run.parts.engine.executor.store.snapshot()
        now = dict(zip(store["clients"].tolist(), store["model"], strict=True))
        changed = [agent for agent, row in now.items() if agent not in seen or not torch.equal(row, seen[agent])]
        assert len(changed) == 2
        seen = {agent: row.clone() for agent, row in now.items()}


def test_one_agent_alone_trains():
    """Nobody to be drawn to: 3 rounds of 5 steps are 15 steps along the gradient 2/n X^T (X w - y)."""
    problem = groups(1)
    w = torch.zeros(D, dtype=torch.float64, device=DEVICE)
    for _ in range(15):
        w = w - 0.1 * 2 / EXAMPLES * problem.data.x.T @ (problem.data.x @ w - problem.data.y.view(-1))
    assert torch.allclose(final(simulated(problem))[0], w, rtol=0, atol=1e-12)


def test_loop_equals_stacked():
    runs = (simulated(small_problem(), executor=name, client={"batch_size": 4}) for name in ("loop", "stacked"))
    assert torch.allclose(*(final(run) for run in runs), rtol=0, atol=1e-9)


def test_a_restored_run_ends_like_an_uninterrupted_one_and_inputs_stay():
    whole, first, second = (simulated(rounds=4, selection={"kind": "uniform", "count": 4}) for _ in range(3))
    first.step()
    first.step()
    second.restore(first.snapshot())
    state = first.state
    held = {name: rows.clone() for name, rows in state.memory.items()}
    first.step()
    assert all(torch.equal(state.memory[name], rows) for name, rows in held.items())
    assert torch.equal(final(second), final(whole))
    assert torch.equal(second.state.params, whole.state.params)


@pytest.mark.parametrize(
    "other",
    [
        {"strategy": {"peers": 2}},
        {"strategy": {"exploration": 1.0}},
        {"strategy": {"exploration": 1.0, "decay": 0.5}},
        {"strategy": {"exploration": 0.0, "least": 1.0}},
        {"client": {"alpha": 1.0}},
        {"client": {"pull": 0.2}},
        {"client": {"noise": 0.1}},
        {"seed": 1},
    ],
)
def test_options_and_the_seed_move_something(other):
    base = {"strategy": {"exploration": 1.0}} if "decay" in other.get("strategy", {}) else {}
    base |= {"strategy": {"exploration": 0.0}} if "least" in other.get("strategy", {}) else {}
    assert not torch.allclose(final(simulated(rounds=5, **base)), final(simulated(rounds=5, **other)), rtol=1e-6)


def test_a_round_without_replies_changes_nothing_but_its_number():
    run = simulated()
    run.step()
    strategy, engine = run.parts.strategy, run.parts.engine
    orders, window = strategy.ask(run.state, torch.arange(6))
    engine.submit(orders)
    replies = engine.collect(window, run.round)
    state, metrics, done = strategy.tell(run.state, replies.where(torch.zeros(6, dtype=torch.bool)))
    assert (state.round, state.phase, metrics, done) == (2, 0, {}, True)
    assert state.params is run.state.params
