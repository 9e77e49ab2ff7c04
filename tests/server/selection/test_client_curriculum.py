"""Client curriculum: pools by score and pacing, every client of a pool once, who is asked, and what that costs."""

from __future__ import annotations

import math
from itertools import chain

import numpy as np
import pytest
import torch
from turns import turn

import fedsim
from fedsim.configuration.tables import experiment
from fedsim.core.errors import InputError
from fedsim.core.plugins import make
from fedsim.exchange.actions import SCORE
from fedsim.problems.supervised import Supervised
from fedsim.running.build import build_problem, build_simulation
from fedsim.server.selection.curriculum import ClientCurriculum
from fedsim.testing.problems import small_experiment as small
from fedsim.testing.problems import small_problem

SIZES = torch.ones(20, dtype=torch.int64)
LOSSES = [float((7 * client) % 20) for client in range(20)]  # all different: 0 .. 19
EASIEST = sorted(range(20), key=LOSSES.__getitem__)
ALL = [True] * 20


def curriculum(**options):
    """4 of 20 clients in each of 10 rounds: u goes to 40; with a = 0.8 and b = 0.2 all 20 are in from u = 32 on."""
    return ClientCurriculum(**({"count": 4, "rounds": 10} | options))


def selections(selector, count, losses=LOSSES, *, free=lambda number: ALL, wanted=4, seed=0):
    """What each of so many selections asked (None: nobody) and chose, in order."""
    state, found = selector.start(SIZES), []
    for number in range(count):
        now = turn(free(number), wanted, round=number, seed=seed)
        asked = selector.candidates(state, now)
        scores = None if asked is None else torch.tensor(losses, dtype=torch.float64)[asked]
        before = {name: value.clone() for name, value in state.items()}
        chosen, after = selector.select(state, now, scores)
        assert all(torch.equal(state[name], before[name]) for name in before)
        ids = chosen.tolist()
        assert ids == sorted(set(ids))
        assert now.free.mask[ids].all()
        assert 1 <= len(ids) <= now.wanted
        found.append((None if asked is None else asked.tolist(), ids))
        state = after
    return found


def joined(lists):
    return list(chain.from_iterable(lists))


def pools(found):
    """The pools of a run in which every pool but the last was asked for, each as the lists of its selections."""
    parts = []
    for asked, ids in found:
        if asked is not None:
            parts.append([])
        parts[-1].append(ids)
    return parts


def test_pools_grow_as_the_pacing_says_and_each_client_of_one_has_one_turn():
    parts = pools(selections(curriculum(), 10))
    # n(u) = int(20 (0.2 + 0.8 u / 32)): of u = 0, 4, 10, 20 it is 4, 6, int(9) = 9 and so on.
    wanted, used = [], 0
    for _ in parts[:-1]:
        wanted.append(int(20 * (0.2 + 0.8 * used / 32) + 1e-9))
        used += wanted[-1]
    sizes = [sum(map(len, part)) for part in parts[:-1]]
    assert sizes == wanted
    assert sizes[:3] == [4, 6, 9]
    for size, part in zip(sizes, parts, strict=False):
        assert sorted(joined(part)) == sorted(EASIEST[:size])
        # Four at a time, and what is left over in the last: rounds of fewer clients.
        assert list(map(len, part)) == [4] * (size // 4) + [size % 4] * (size % 4 > 0)


@pytest.mark.parametrize(("b", "size"), [(0.05, 1), (0.29, 5), (0.5, 10)])
@pytest.mark.parametrize("kind", ["linear", "quadratic", "sqrt", "step", "exponential", "logarithmic"])
def test_the_first_pool_has_b_n_clients_whatever_the_function(b, size, kind):
    found = selections(curriculum(pacing={"kind": kind, "a": 0.8, "b": b}), 3, wanted=20)
    assert found[0][1] == sorted(EASIEST[:size])


def test_everybody_is_in_from_a_of_the_budget_on_and_then_nobody_is_asked():
    selector = curriculum(pacing={"kind": "step", "a": 0.5, "b": 0.2})
    found = selections(selector, 15)
    # Pools of four up to u = 20, half of 40; then all twenty, five selections of four each.
    assert [asked is None for asked, _ in found] == [False] * 5 + [True] * 10
    assert [ids for _, ids in found[:5]] == [sorted(EASIEST[:4])] * 5
    for lap in (found[5:10], found[10:15]):
        assert sorted(joined(ids for _, ids in lap)) == list(range(20))


@pytest.mark.parametrize("order", ["curriculum", "anti", "random"])
def test_with_b_1_everybody_is_in_from_the_first_and_the_order_is_of_no_account(order):
    found = selections(curriculum(order=order, pacing={"kind": "linear", "b": 1.0}), 5)
    assert all(asked is None for asked, _ in found)
    assert sorted(joined(ids for _, ids in found)) == list(range(20))


def test_orders():
    first = {order: selections(curriculum(order=order), 1)[0] for order in ("curriculum", "anti", "random")}
    assert first["curriculum"][1] == sorted(EASIEST[:4])
    assert first["anti"][1] == sorted(EASIEST[-4:])
    assert first["random"][0] is None
    chosen = [selections(curriculum(order="random"), 1, seed=seed)[0][1] for seed in range(100)]
    counts = np.bincount(joined(chosen), minlength=20)
    # Binomial(100, 1/5): 20 with a standard deviation of 4.
    assert counts.min() >= 6
    assert counts.max() <= 36


@pytest.mark.parametrize("order", ["curriculum", "anti"])
def test_the_pool_follows_the_losses_and_not_the_numbers_of_the_clients(order):
    other = np.random.default_rng(3).permutation(20)
    one = pools(selections(curriculum(order=order), 8))
    moved = pools(selections(curriculum(order=order), 8, losses=[LOSSES[client] for client in other]))
    for part, twin in zip(one[:-1], moved[:-1], strict=True):
        assert sorted(joined(part)) == sorted(int(other[client]) for client in joined(twin))


def test_a_pool_is_served_in_random_order():
    step = {"kind": "step", "b": 0.4}  # pools of eight: two selections
    firsts = {tuple(selections(curriculum(pacing=step), 1, seed=seed)[0][1]) for seed in range(30)}
    assert len(firsts) > 15
    one, again = (selections(curriculum(pacing=step), 2, seed=1) for _ in range(2))
    assert one == again


def test_pools_of_one_round_are_drawn_apart():
    selector = curriculum(order="random", pacing={"kind": "step", "b": 0.2})
    state, drawn = selector.start(SIZES), []
    for _ in range(2):
        chosen, state = selector.select(state, turn(ALL, 4), None)
        drawn.append(chosen.tolist())
    assert drawn[0] != drawn[1]


def test_clients_that_score_alike_are_drawn():
    chosen = [selections(curriculum(), 1, losses=[1.0] * 20, seed=seed)[0][1] for seed in range(100)]
    counts = np.bincount(joined(chosen), minlength=20)
    # As above: no client is preferred for its number.
    assert counts.min() >= 6
    assert counts.max() <= 36


@pytest.mark.parametrize("order", ["curriculum", "anti"])
def test_who_did_not_answer_is_the_last_and_in_descending_order_the_first(order):
    losses = [math.nan if client % 2 else 1.0 for client in range(20)]
    losses[0] = math.inf
    selector = curriculum(order=order, pacing={"kind": "step", "b": 0.5})
    chosen = joined(ids for _, ids in selections(selector, 3, losses=losses))
    # Ten of twenty: those with a number, infinite or not, or those without.
    assert sorted(chosen) == list(range(int(order == "anti"), 20, 2))
    few = curriculum(order=order, pacing={"kind": "step", "b": 0.45})
    nine = joined(ids for _, ids in selections(few, 3, losses=losses))
    assert (0 in nine) is False


def test_who_sleeps_when_scores_are_told_is_replaced_by_the_next():
    sleeping = EASIEST[1]
    free = [client != sleeping for client in range(20)]
    ((asked, ids),) = selections(curriculum(), 1, free=lambda number: free)
    assert asked == [client for client in range(20) if client != sleeping]
    assert ids == sorted([EASIEST[0], *EASIEST[2:5]])


def test_with_fewer_awake_than_are_in_all_of_them_are_the_pool_and_nobody_is_asked():
    free = [client in (3, 5, 8) for client in range(20)]
    assert selections(curriculum(), 2, free=lambda number: free) == [(None, [3, 5, 8])] * 2


def test_who_sleeps_at_its_turn_is_passed_over_until_the_others_have_had_theirs():
    selector = curriculum(pacing={"kind": "step", "b": 0.5})  # the pool is the ten easiest
    _, first = selections(selector, 1)[0]
    left = [client for client in EASIEST[:10] if client not in first]
    asleep = left[:2]

    def free(number, back=99):
        return [client not in asleep or not 1 <= number < back for client in range(20)]

    # Six are left, and two of them sleep: the four others have their turn.
    found = selections(selector, 3, free=free)
    assert found[1] == (None, sorted(left[2:]))
    # They sleep on: there is another pool, which is asked for, without them.
    assert set(found[2][0]) == set(range(20)) - set(asleep)
    # They are back in time: they have their turn.
    found = selections(selector, 3, free=lambda number: free(number, back=2))
    assert found[1:] == [(None, sorted(left[2:])), (None, sorted(asleep))]


def test_selections_that_fill_up_what_is_missing_go_through_the_same_pool():
    selector, at_work = curriculum(pacing={"kind": "step", "b": 0.3}), []  # pools of six
    state, served, asked_at = selector.start(SIZES), [], []
    for number in range(15):
        now = turn([client not in at_work for client in range(20)], 4 - len(at_work), round=number)
        asked = selector.candidates(state, now)
        if asked is not None:
            asked_at.append(len(served))
            assert not set(asked.tolist()) & set(at_work)
        scores = None if asked is None else torch.tensor(LOSSES, dtype=torch.float64)[asked]
        chosen, state = selector.select(state, now, scores)
        served += chosen.tolist()
        at_work = (at_work + chosen.tolist())[1:]  # the one that has worked longest returns
    # Asked after every six; the first six are the easiest, and the next are those that are not at work then.
    assert asked_at == list(range(0, len(served), 6))
    assert sorted(served[:6]) == sorted(EASIEST[:6])
    assert int(state["selected"]) == len(served)


def test_a_missing_answer_is_not_taken_for_one():
    selector = curriculum()
    with pytest.raises(ValueError, match="have not been asked"):
        selector.select(selector.start(SIZES), turn(ALL, 4), None)


def test_every_option_moves_something():
    found = selections(curriculum(), 10)
    for options in (
        {"order": "anti"},
        {"order": "random"},
        {"rounds": 20},
        {"pacing": {"kind": "quadratic"}},
        {"pacing": {"kind": "linear", "b": 0.4}},
        {"pacing": {"kind": "linear", "a": 0.4}},
    ):
        assert selections(curriculum(**options), 10) != found
    assert curriculum(score_examples=5).score_examples == 5
    assert curriculum().score_examples is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 0}, "rounds = 0:"),
        ({"order": "easy"}, "order = easy:"),
        ({"pacing": {"kind": "cubic"}}, "pacing.kind = cubic: name one of"),
        ({"pacing": {"kind": "linear", "b": 1.5}}, "pacing.b = 1.5:"),
        ({"order": "random", "score_examples": 8}, "score_examples = 8: nobody is asked"),
        ({"count": None}, "count = (nothing): give count or fraction"),
    ],
)
def test_bad_options_are_one_clear_line(options, message):
    with pytest.raises(InputError) as error:
        curriculum(**options)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"^rounds = \(nothing\): this option has no default"):
        ClientCurriculum(count=4)
    with pytest.raises(InputError, match=r"^selection.count = 4: there are only 3 clients"):
        curriculum().check(3)


# In runs

STEP = {"kind": "step", "a": 0.5, "b": 0.5}
SELECTION = {"kind": "curriculum", "count": 2, "rounds": 6, "pacing": STEP}


def submitted(simulation):
    """Simulate; the action and the clients of all orders."""
    orders, submit = [], simulation.parts.engine.submit
    simulation.parts.engine.submit = lambda order: (
        orders.append((order.action, order.clients.tolist())) or submit(order)
    )
    rows = list(simulation)
    return orders, rows


def test_scores_are_losses_under_the_current_model_and_their_traffic_is_counted():
    simulation = build_simulation(small(rounds=6, selection=SELECTION), small_problem())
    problem, engine = simulation.parts.problem, simulation.parts.engine
    orders, rows = submitted(simulation)
    # u = 0: six are asked and three are in, two and one at a time; u = 3 the same; from u = 6, half of 6 * 2, all.
    assert [(action, len(clients)) for action, clients in orders] == [
        *[(SCORE, 6), ("train", 2), ("train", 1)] * 2,
        *[("train", 2)] * 2,
    ]
    losses = problem.losses(problem.initial(), torch.arange(6))[:, 0]
    assert sorted(orders[1][1] + orders[2][1]) == sorted(losses.argsort()[:3].tolist())
    number = problem.dtype.itemsize
    model = problem.dimension * number
    assert engine.ledger.bytes_down == (2 * 6 + 10) * model
    assert engine.ledger.bytes_up == 2 * 6 * number + 10 * model
    assert sum(row["clients"] for row in rows) == 10
    # The first row has the asking of the first pool in it.
    assert rows[0]["bytes_down"] == (6 + 2) * model
    assert rows[1]["bytes_down"] == model


def test_a_restored_run_goes_on_in_the_middle_of_a_pool():
    whole, part, other = (build_simulation(small(rounds=6, selection=SELECTION), small_problem()) for _ in range(3))
    list(whole)
    part.step()  # two of the first three have had their turn
    other.restore(part.snapshot())
    orders, _ = submitted(other)
    assert [len(clients) for _, clients in orders[:2]] == [1, 6]
    assert torch.equal(other.params, whole.params)


def test_an_asynchronous_run_ends_with_all_its_replies():
    tables = {
        "strategy": {"kind": "fedbuff", "size": 2},
        "selection": {**SELECTION, "count": 3},
        "devices": {"compute": {"kind": "lognormal", "median": 1.0, "sigma": 0.5}},
    }
    simulation = build_simulation(small(rounds=8, **tables), small_problem())
    orders, rows = submitted(simulation)
    assert rows[-1]["round"] == 8
    assert any(action == SCORE for action, _ in orders)
    assert simulation.parts.engine.ledger.clients == 16


def test_sleepers_and_failures_hold_up_nobody():
    devices = {
        "availability": {"kind": "bernoulli", "probability": 0.5, "period": 1.0},
        "failure": {"mean_seconds": 3.0, "repair_seconds": 1.0},
    }
    simulation = build_simulation(small(rounds=20, selection=SELECTION, devices=devices), small_problem())
    assert len(list(simulation)) == 20


def test_both_curricula_on_clients_that_differ_in_difficulty():
    """The synergy: clients and examples, easy ones first, on digits dealt by an expert's losses."""
    tables = {
        "problem": {"dataset": "digits", "model": "logistic"},
        "partition": {"kind": "difficulty", "clients": 20, "model": "logistic", "expert": {"epochs": 3, "lr": 0.05}},
        "selection": {"kind": "curriculum", "count": 2, "rounds": 12},
        "client": {"kind": "sgd", "epochs": 2, "batch_size": 10, "lr": 0.1, "curriculum": {"score": "global"}},
        "evaluation": {"every": 0},
    }
    described = experiment(rounds=12, **tables)
    again = experiment(**described.resolved())
    runs = []
    for checked in (described, again):
        simulation = build_simulation(checked, build_problem(checked))
        orders, rows = submitted(simulation)
        runs.append((orders, simulation.params))
    assert runs[0][0] == runs[1][0]
    assert torch.equal(runs[0][1], runs[1][1])
    assert rows[-1]["test_accuracy"] > 0.5
    problem = simulation.parts.problem
    assert isinstance(problem, Supervised)
    # The first scores are all ln 10, for the model is 0; at the second scoring the model has learnt, and the seven that
    # are in, int(20 (0.2 + 0.8 * 4 / 19.2)), are those whose examples are the easiest for an expert.
    second = [place for place, (action, _) in enumerate(orders) if action == SCORE][1]
    assert sorted(joined(clients for _, clients in orders[second + 1 : second + 5])) == list(range(7))


def test_it_is_installed():
    assert isinstance(make("selectors", {"kind": "curriculum", "count": 2, "rounds": 3}, "selection"), ClientCurriculum)
    table = fedsim.experiment(rounds=3, selection={"kind": "curriculum", "count": 2, "rounds": 3}).resolved()
    assert table["selection"]["pacing"] == {"kind": "linear", "a": 0.8, "b": 0.2}
