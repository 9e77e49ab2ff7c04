"""EF21's server, by hand."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import fedsim
from fedsim.compression.random_k import RandomK
from fedsim.compression.top_k import TopK
from fedsim.core.errors import InputError
from fedsim.core.streams import Streams
from fedsim.exchange.messages import Order, Replies
from fedsim.running.build import build_simulation
from fedsim.testing.problems import small_experiment, small_problem
from strategies.ef21 import EF21


def told(problem, changes, **options):
    """What a server comes to that hears of clients 0 and 2, of six, how their estimates have changed, twice."""
    strategy = EF21(**options)
    state = strategy.init(problem)
    state = replace(state, params=torch.zeros(2).double(), memory={**state.memory, "estimate": torch.zeros(2).double()})
    replies = Replies(
        clients=torch.tensor([0, 2]),
        payload={"delta": torch.tensor(changes, dtype=torch.float64)},
        metrics={},
        examples=problem.sizes[[0, 2]],
        failed=torch.zeros(0, dtype=torch.int64),
        round=0,
        versions=torch.zeros(2, dtype=torch.int64),
        durations=torch.ones(2, dtype=torch.int64),
        orders=[Order("train", torch.tensor([0, 2]), {})],
        origin=[0, 0],
    )
    for _ in range(2):
        state, _, done = strategy.tell(state, replies)
        assert done
    return state


def test_the_sum_is_over_all_clients_and_steps_go_on_along_it():
    """h = (6 + 12) / 6 = 3, then 6: the model moves by 3 and by 6."""
    problem = small_problem()
    assert problem.num_clients == 6
    state = told(problem, [[6.0, 0.0], [12.0, 6.0]])
    torch.testing.assert_close(state.memory["estimate"], torch.tensor([6.0, 2.0]).double())
    torch.testing.assert_close(state.params, torch.tensor([9.0, 3.0]).double())
    # By examples each counts with its share of all of them.
    sizes = problem.sizes.double()
    h = (sizes[0] * 6 + sizes[2] * 12) / sizes.sum()
    state = told(problem, [[6.0, 0.0], [12.0, 6.0]], weighting="examples")
    torch.testing.assert_close(state.memory["estimate"][0], 2 * h)


def test_new_clients_begin_with_an_estimate_of_zero():
    problem = small_problem()
    strategy, state = EF21(), told(problem, [[6.0, 0.0], [12.0, 6.0]])

    class Larger:
        num_clients = 12

    grown = strategy.resize(state, Larger())
    torch.testing.assert_close(grown.memory["estimate"], state.memory["estimate"] / 2)
    assert int(grown.memory["whole"]) == 12


A = torch.tensor([[[1, 0, 0], [0, 2, 0], [0, 0, 4]], [[2, 1, 0], [1, 3, 0], [0, 0, 1]]], dtype=torch.float64)
B = torch.tensor([[4, 1, -2], [-1, 3, 2]], dtype=torch.float64)


def answered(strategy, state, clients, changes):
    """The state after the replies of some clients."""
    ids, none = torch.tensor(clients), torch.zeros(len(clients), dtype=torch.int64)
    replies = Replies(ids, {"delta": changes}, {}, none + 1, none[:0], state.round, none, none + 1, (), ())
    return strategy.tell(state, replies)[0]


def of_three(clients, **options):
    """A server of a model of three numbers, each 1, and its state."""
    x, one = torch.ones(clients, 3).numpy(), nn.Linear(3, 1, bias=False)
    own = [[client] for client in range(clients)]
    problem = fedsim.supervised(x, x[:, 0], model=one, clients=own, loss="squared_error", dtype=torch.float64)
    strategy = EF21(**options)
    state = strategy.seeded(strategy.init(problem), Streams(0))
    return strategy, replace(state, params=torch.ones(3, dtype=torch.float64))


def test_steps_both_ways_to_the_last_bit():
    """Two quadratics, a step of 1/8, and the largest number of each message, up and down."""
    (strategy, state), h = of_three(2, downlink=TopK(k=1), server_lr=1 / 8), torch.zeros(2, 3, dtype=torch.float64)
    found = []
    for _ in range(3):
        gaps = B - A @ state.params - h
        sent = torch.where(gaps.abs() == gaps.abs().amax(dim=1, keepdim=True), gaps, 0.0)
        h += sent
        state = answered(strategy, state, [0, 1], sent)
        found.append(state.params.tolist())
    assert found == [[1, 1, 5 / 8], [1, 1, 43 / 128], [1, 1, 109 / 512]]
    assert torch.equal(state.memory["estimate"], h.mean(dim=0))


def test_who_has_missed_messages_is_sent_them_or_the_model():
    """A message is a number of 64 bits and a place of 2; the model takes 24 bytes."""
    strategy, state = of_three(4, downlink=TopK(k=1))
    everybody, rows = torch.arange(4), torch.ones(1, 3, dtype=torch.float64)

    def down(state):
        return strategy.ask(state, everybody)[0].encoded.tolist()

    told = [down(state)]
    for client in (0, 1, 0, 0):
        state = answered(strategy, state, [client], rows)
        told.append(down(state))
    assert told == [[24] * 4, [9, 24, 24, 24], [18, 9, 24, 24], [9, 18, 24, 24], [9, 24, 24, 24]]
    assert down(strategy.forget(state, torch.tensor([0]))) == [24, 24, 24, 24]
    assert answered(strategy, state, [], rows[:0]).memory["lacks"].tolist() == state.memory["lacks"].tolist()


def test_what_the_way_down_draws_and_remembers():
    """Each round another number of three; factors begin where the last message's ended; new clients have nothing."""
    strategy, state = of_three(1, downlink=RandomK(k=1, scaled=False))
    rows = torch.ones(1, 3, dtype=torch.float64)
    for turn in range(12):
        state = answered(strategy, state, [0], rows * (turn == 0))
    assert state.memory["sent"].tolist() == [1.0, 1.0, 1.0]
    problem, strategy = small_problem(), EF21(downlink={"kind": "low_rank", "rank": 1})
    state = strategy.seeded(strategy.init(problem), Streams(0))
    assert not state.memory["transforms/0/params/right"].any()
    state = answered(strategy, state, [0, 5], torch.ones(2, 83, dtype=torch.float64).cumsum(dim=1))
    assert state.memory["transforms/0/params/right"].any()

    class Larger:
        num_clients = 8

    lacks = strategy.resize(state, Larger()).memory["lacks"].tolist()
    assert lacks[6:] == [83 * 8] * 2
    assert lacks[:6] == state.memory["lacks"].tolist()


def test_bytes_down_are_those_of_messages():
    tables = {
        "strategy": {"kind": "ef21", "downlink": {"kind": "sign", "per": "layer"}},
        "transforms": [{"kind": "ef21", "arrives": "increment"}, {"kind": "top_k", "ratio": 0.2}],
        "selection": {"kind": "uniform", "fraction": 1.0},
    }
    simulation = build_simulation(small_experiment(rounds=4, **tables), small_problem())
    message = 4 * 8 + -(-83 // 8)  # a scale for each of four layers
    assert [row["bytes_down"] for row in simulation] == [6 * 83 * 8, *[6 * message] * 3]


@pytest.mark.parametrize(
    ("downlink", "said"),
    [
        ("ef21", "downlink.kind = ef21: it is handed the only vector, with feedback"),
        ({"kind": "random_k", "k": 9}, "downlink.kind = random_k: it may be 8.22 times off"),
        ({"kind": "top_k", "k": 99}, "downlink.k = 99: only 83 numbers come to it"),
        ({"kind": "sign", "vectors": ["params"]}, "downlink.kind = sign: it is handed the only vector"),
    ],
)
def test_what_does_not_go_down(downlink, said):
    with pytest.raises(InputError, match=said):
        EF21(downlink=downlink).init(small_problem())


def test_orders_are_compressed_once():
    with pytest.raises(InputError, match="order_transforms = params: this strategy counts itself"):
        build_simulation(
            small_experiment(
                strategy={"kind": "ef21", "downlink": "sign"},
                transforms=[{"kind": "ef21", "arrives": "increment"}, {"kind": "top_k", "ratio": 0.2}],
                order_transforms=[{"kind": "half"}],
            ),
            small_problem(),
        )
