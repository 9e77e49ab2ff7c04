"""EF21's server, by hand."""

from dataclasses import replace

import torch

from fedsim.exchange.messages import Order, Replies
from fedsim.testing.problems import small_problem
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
