"""The genetic algorithm: who breeds, who is the elite, what crosses, and that it learns."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from replicas import down, play, simulation
from torch import Tensor

import fedsim
from fedsim.core.errors import InputError
from fedsim.exchange.messages import Order, Replies
from fedsim.running.simulation import Simulation
from fedsim.testing.problems import DEVICE
from fedsim.zeroth_order import Chains, Genome
from fedsim.zeroth_order.chains import _KNOWN
from strategies.genetic import Genetic

ALL = {"kind": "uniform", "fraction": 1.0}


def genetic(strategy: dict[str, Any] | None = None, client: dict[str, Any] | None = None, **other: Any) -> Simulation:
    few = {"population": 6, "truncation": 3, "candidates": 3, "spread": 0.5}
    return simulation("genetic", few | (strategy or {}), client, **other)


def answered(order: Order, values: Tensor, clients: list[int] | None = None) -> Replies:
    """Replies of clients who all think the same."""
    ids = order.clients if clients is None else torch.tensor(clients)
    none = torch.zeros(len(ids), dtype=torch.int64)
    rows = {"fitness": values.expand(len(ids), -1)}
    return Replies(ids, rows, {}, none + 1, none[:0], 0, none, none + 1, [order], [0] * len(ids))


def generation(strategy: Genetic, state: Any, values: list[float], validated: list[float]) -> tuple[Any, list[int]]:
    """A generation with these answers: the state, and the last seeds of the candidates."""
    order, _ = strategy.ask(state, torch.arange(2))
    assert order.action == "evaluate"
    state, _, _ = strategy.tell(state, answered(order, torch.tensor(values)))
    order, _ = strategy.ask(state, torch.arange(2))
    assert order.action == "validate"
    candidates = Chains.of(order.payload).last.tolist()
    return strategy.tell(state, answered(order, torch.tensor(validated)))[0], candidates


def test_the_elite_is_the_best_validated_and_parents_are_the_best_with_it() -> None:
    """P 6, T 2, three candidates. Networks of generation g are numbered from 6 g."""
    begun = genetic({"truncation": 2})
    strategy = begun.parts.strategy
    assert isinstance(strategy, Genetic)
    # Ranked 3, 1, 0, ...: the candidate in second place, 1, is the elite, and one of the two parents.
    state, candidates = generation(strategy, begun.state, [3.0, 2.0, 4.0, 1.0, 5.0, 6.0], [9.0, 7.0, 8.0])
    assert candidates == [3, 1, 0]
    assert Chains.of(state.memory, "elite.").last.tolist() == [1]
    assert Chains.of(state.memory, "parents.").last.tolist() == [3, 1]
    assert set(state.memory["places"].tolist()) == {0, 1}
    # Now ranked 8, 9, ...: the elite of before stays, for equal values the first counts, and 9 is no parent.
    state, candidates = generation(strategy, state, [3.0, 3.0, 1.0, 2.0, 3.0, 3.0], [7.0, 8.0, 7.0])
    assert candidates == [1, 8, 9]
    assert Chains.of(state.memory, "elite.").last.tolist() == [1]
    assert Chains.of(state.memory, "parents.").last.tolist() == [1, 8]
    # Ties are by number, and what failed comes last: 12, 13.
    state, candidates = generation(strategy, state, [0.0, 0.0, 0.0, float("inf"), 0.0, 0.0], [3.0, 2.0, 1.0])
    assert candidates == [1, 12, 13]
    # Its elite, 13, is of the top two.
    assert Chains.of(state.memory, "parents.").last.tolist() == [12, 13]
    assert not torch.isin(Chains.of(state.memory, "elite.").last, state.memory["genes"]).any()


def test_without_validation_a_generation_is_a_round() -> None:
    begun = genetic({"candidates": 0, "truncation": 2})
    strategy, state = begun.parts.strategy, begun.state
    order, _ = strategy.ask(state, torch.arange(2))
    values = torch.tensor([3.0, 2.0, 4.0, 1.0, 5.0, 6.0])
    state, metrics, _ = strategy.tell(state, answered(order, values))
    assert (metrics["lowest_value"], metrics["genes"], int(state.memory["generation"])) == (1.0, 0, 1)
    assert Chains.of(state.memory, "parents.").last.tolist() == [3, 1]


def test_the_model_is_the_elites_chain_to_the_bit_after_a_restored_run() -> None:
    def ends(cut: bool) -> Simulation:
        first, second = genetic(rounds=12), genetic(rounds=12)
        for _ in range(7):
            first.step()
        if cut:
            _KNOWN.clear()  # as in another process
            second.restore(first.snapshot())
            first = second
        for _ in first:
            pass
        return first

    whole, restored = ends(False), ends(True)
    assert torch.equal(whole.state.params, restored.state.params)
    memory = restored.state.memory
    elite = Chains.of(memory, "elite.")
    assert int(elite.lengths) > 1
    own = Genome(memory["seed"], memory["start"], memory["scale"])
    assert torch.equal(own.whole(elite)[0], restored.state.params)


def test_what_clients_were_asked_is_the_populations_networks() -> None:
    asked: list[Tensor] = []

    def function(clients: Tensor, x: Tensor) -> Tensor:
        asked.append(x[0].clone())
        return x.square().sum(dim=2)

    problem = fedsim.black_box(function, dimension=4, clients=1, bounds=(-0.3, 2.0), start=0.1, device=DEVICE)
    run = genetic({"power": 0.3}, problem=problem, selection=ALL, rounds=4)
    run.step()
    state = run.state
    first = Genome(state.memory["seed"], state.memory["start"], state.memory["scale"])
    wanted = first.whole(Chains.begun(torch.arange(6))).clamp(-0.3, 2.0)
    assert torch.equal(asked[0], wanted)
    assert bool((wanted == -0.3).any())
    run.step()
    state = run.state
    run.step()
    memory = run.state.memory
    children = Chains.of(state.memory, "parents.").children(*(state.memory[name] for name in ("places", "genes")), 0.3)
    assert torch.equal(asked[-1], first.whole(children).clamp(-0.3, 2.0))
    assert float(run.state.params.min()) >= -0.3
    assert memory["genes"].tolist() == [6, 7, 8, 9, 10, 11]


def test_bytes_are_seeds_new_genes_and_chains_of_parents_to_who_lacks_them() -> None:
    """P 6, T 3, three candidates; floats of 4 bytes; 8 more for the seed, once."""
    run = genetic()
    sent, sizes = [], []
    for clients in [(0, 1), (0, 2), (0, 1), (0, 1), (0, 2), (0, 1)]:
        orders, replies = play(run, *clients)
        sent.append(down(orders))
        sizes.append(replies.payload["fitness"].shape[1])
    assert sizes == [6, 3] * 3
    # First 8 a network; then 4 a candidate, or 8 for its chain and the seed.
    assert sent[:2] == [[6 * 8 + 8] * 2, [3 * 4, 3 * 8 + 8]]
    # Both have seen the first population, so a gene each.
    assert sent[2] == [6 * 12] * 2
    assert sent[3] == [3 * 4] * 2
    # Client 2 was not asked about the second population: it is sent the chains of its parents, too.
    lacking = sent[4][1] - 6 * 12
    assert sent[4][0] == 6 * 12
    assert lacking in {8 * (3 - long) + 20 * long for long in range(4)}
    assert run.parts.engine.ledger.bytes_up == 2 * 3 * (6 + 3) * 4
    assert run.parts.engine.ledger.queries == 2 * 3 * (6 + 3)


def test_who_forgets_is_sent_everything_again() -> None:
    run = genetic()
    play(run, 0, 1)
    play(run, 0, 1)
    state = run.parts.strategy.forget(run.state, torch.tensor([1]))
    orders, _ = run.parts.strategy.ask(state, torch.tensor([0, 1]))
    assert down(orders) == [6 * 12, 6 * 12 + 3 * 8 + 8]


@pytest.mark.parametrize("evaluators", [1, 2, 4])
def test_every_network_has_its_evaluators(evaluators: int) -> None:
    run = genetic({"evaluators": evaluators, "candidates": 0})
    orders, replies = play(run, 0, 1, 2, 4)
    assigned = orders.payload["assigned"][replies.clients]
    assert replies.payload["fitness"].shape == assigned.shape
    counts = torch.bincount(assigned.flatten(), minlength=6)
    assert bool((counts >= evaluators).all())
    assert assigned.shape[1] == -(-6 * evaluators // 4)


def test_the_work_is_shared_by_examples_and_a_quorum_is_held() -> None:
    run = genetic({"evaluators": 2, "candidates": 0, "quorum": 2})
    strategy = run.parts.strategy
    order, _ = strategy.ask(run.state, torch.tensor([0, 1, 2]))
    assigned = order.payload["assigned"][order.clients]  # four each
    replies = answered(order, torch.zeros(4))
    values = torch.arange(12.0).view(3, 4)
    replies = replace(replies, payload={"fitness": values}, examples=torch.tensor([1, 2, 5]))
    found = strategy._fitness(replies, 6)
    for network in range(6):
        told = [
            (float(values[r, c]), w) for r, w in enumerate((1, 2, 5)) for c in range(4) if assigned[r, c] == network
        ]
        assert float(found[network]) == pytest.approx(sum(v * w for v, w in told) / sum(w for _, w in told))
    one = replies.where(torch.tensor([True, True, False]))
    alone = [int((assigned[:2] == network).sum()) for network in range(6)]
    assert torch.isfinite(strategy._fitness(one, 6)).tolist() == [count == 2 for count in alone]


def test_too_few_answers_ask_the_same_once_more() -> None:
    run = genetic({"quorum": 2})
    for _ in range(2):
        before, _ = run.parts.strategy.ask(run.state, torch.tensor([0, 1]))
        play(run, 0)
        after, _ = run.parts.strategy.ask(run.state, torch.tensor([0, 1]))
        assert before.action == after.action
        assert torch.equal(before.payload["seeds"], after.payload["seeds"])
        play(run, 0, 1)


def test_the_elite_never_falls_where_values_are_exact_and_it_learns() -> None:
    """|theta|^2 of 10 coordinates from N(0, I): a tenth of the first best after 30 generations."""
    problem = fedsim.black_box(
        lambda clients, x: x.square().sum(dim=2), dimension=10, clients=2, bounds=None, start=0.0, device=DEVICE
    )
    options = {"population": 40, "truncation": 8, "candidates": 4, "spread": 1.0, "power": 0.2}
    run = genetic(options, problem=problem, selection=ALL, rounds=60)
    elite = [row["lowest_value"] for row in run][1::2]
    assert all(later <= before for before, later in pairwise(elite))
    assert elite[-1] < 0.1 * elite[0]
    assert float(run.state.params.square().sum()) == elite[-1]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"population": 1}, "population"),
        ({"truncation": 7}, "truncation = 7: at most as many as the population, which is 6"),
        ({"truncation": 0}, "truncation"),
        ({"candidates": 7}, "candidates = 7: at most"),
        ({"candidates": 1}, "candidates = 1: it would be the same elite for ever"),
        ({"power": 0.0}, "power"),
        ({"evaluators": 1, "quorum": 2}, "quorum = 2: at most as many as evaluators, 1"),
        ({"quorum": 9}, "quorum = 9: 4 clients are asked at a time"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        genetic(options)
