"""Runs of several seeds executed as one: their draws, their functions, and how one of them ends."""

from __future__ import annotations

import pytest
import torch

from clients.fedzo import FedZO
from fedsim.core.errors import BrokenPromiseError, FedsimError, InputError
from fedsim.core.streams import SERVER, Streams
from fedsim.engine.job import Job
from fedsim.exchange.messages import Cost, Order, Size
from fedsim.problems.benchmark_functions import BenchmarkFunctions, OneFamily
from fedsim.problems.black_box import BlackBox
from fedsim.problems.evaluators import Joined, Stacked, Vectorised
from fedsim.problems.own_functions import black_box
from fedsim.running.lockstep import JointProblem, JointStreams, Lockstep, Member
from fedsim.zeroth_order import directions

SEEDS = (7, 3, 2**40)
N = 4
JOINT = JointStreams(SEEDS, N)
# Joint clients in no order, with rounds of their own: 9 = 2 * 4 + 1 is client 1 of the third seed.
CLIENTS = torch.tensor([9, 0, 11, 5, 4, 3])
ROUNDS = torch.tensor([0, 6, 2, 2, 9, 1])


def each(draw):
    """What each client's own run draws for it alone, row by row."""
    rows = zip(CLIENTS.tolist(), ROUNDS.tolist(), strict=True)
    return torch.cat([draw(Streams(SEEDS[one // N]), torch.tensor([one % N]), number) for one, number in rows])


@pytest.mark.parametrize(
    "draw",
    [
        lambda streams, clients, rounds: streams.bits("a", clients, 5, turn=rounds, step=3),
        lambda streams, clients, rounds: streams.normal("a", clients, (2, 3), turn=rounds),
        lambda streams, clients, rounds: streams.uniform("a", clients, (3,), turn=rounds, dtype=torch.float64),
        lambda streams, clients, rounds: streams.integers("a", clients, (3,), 1000, turn=rounds),
        lambda streams, clients, rounds: streams.permutation("a", clients, 6, turn=rounds),
        lambda streams, clients, rounds: streams.ragged_bits("a", clients, clients % N + 1, turn=rounds),
    ],
)
def test_clients_draw_under_the_seed_of_their_run(draw):
    assert torch.equal(draw(JOINT, CLIENTS, ROUNDS), each(draw))


@pytest.mark.parametrize("kind", directions.KINDS)
def test_clients_draw_the_directions_of_their_run(kind, monkeypatch):
    monkeypatch.setitem(directions.PIECE, "cpu", 16)  # several pieces, of one or two names each

    def draw(streams, clients, rounds):
        return directions.draw(kind, streams, "a", clients, 3, 10, turn=rounds, step=1, dtype=torch.float64)

    assert torch.equal(draw(JOINT, CLIENTS, ROUNDS), each(draw))


def test_nobody_draws_nothing():
    assert JOINT.normal("a", torch.zeros(0, dtype=torch.int64), (2,)).shape == (0, 2)


@pytest.mark.parametrize(
    "draw",
    [
        lambda: JOINT.normal("features", torch.tensor([SERVER])),
        lambda: JOINT.derive("features"),
        lambda: JOINT.generator("features"),
    ],
)
def test_what_is_drawn_for_a_whole_run_is_refused(draw):
    with pytest.raises(BrokenPromiseError, match="drew features for the whole run"):
        draw()


def test_functions_are_asked_in_runs_of_rows_under_their_own_clients():
    """Function i of run s is 100 s + 10 i + x."""
    runs = [Vectorised([lambda x, s=s, i=i: 100 * s + 10 * i + x[:, 0] for i in range(N)]) for s in range(3)]
    joined = runs[0].join(runs[1:])
    assert isinstance(joined, Joined)
    assert joined.num_clients == 3 * N
    found = torch.cat([answer.found for answer in joined.ask(CLIENTS, torch.ones(6, 1, 1))])
    assert found.tolist() == [211.0, 1.0, 231.0, 111.0, 101.0, 31.0]


def test_functions_that_all_runs_have_in_common_are_asked_once():
    asked = []

    def function(clients, x):
        asked.append(clients.tolist())
        return x[:, :, 0]

    one = Stacked(function, N)
    list(Joined((one, one, one)).ask(CLIENTS, torch.ones(6, 1, 1)))
    assert asked == [[1, 0, 3, 1, 0, 3]]


def synthetic(seed: int, **options) -> BlackBox:
    made = BenchmarkFunctions(dimension=6, clients=N, **options)
    family = made.family(Streams(seed), torch.device("cpu"), torch.float64)
    return BlackBox(OneFamily(family, N, differentiable=True), dimension=6, noise=made.noise)


@pytest.mark.parametrize("function", ["quadratic", "ackley", "levy", "rosenbrock", "rastrigin"])
def test_synthetic_functions_are_evaluated_in_one_call(function):
    problems = [synthetic(seed, function=function, noise=0.1) for seed in SEEDS]
    joint = JointProblem(problems)
    assert isinstance(joint.functions, OneFamily)
    x = Streams(0).uniform("x", CLIENTS, (3, 6), dtype=torch.float64)
    answers = joint.query(CLIENTS, x, JOINT, ROUNDS, 2)
    for row, (client, number) in enumerate(zip(CLIENTS.tolist(), ROUNDS.tolist(), strict=True)):
        own, seed = torch.tensor([client % N]), SEEDS[client // N]
        expected = problems[client // N].query(own, x[row : row + 1], Streams(seed), number, 2)
        assert torch.equal(answers[row], expected[0])


def test_functions_of_different_kinds_are_not_one_family():
    problems = [synthetic(0), synthetic(0, function="levy")]
    assert isinstance(JointProblem(problems).functions, Joined)


def test_the_gradient_of_f_is_that_of_the_clients_own_run():
    problems = [synthetic(seed) for seed in SEEDS]
    x = Streams(0).uniform("x", CLIENTS, (6,), dtype=torch.float64)
    found = JointProblem(problems).truth(CLIENTS, x)
    everyone = torch.arange(N)
    for row, client in enumerate(CLIENTS.tolist()):
        gradients = problems[client // N].gradients(everyone, x[row].expand(N, 1, -1))
        assert torch.equal(found[row], gradients.mean(dim=0)[0])


def test_the_gradient_of_f_may_not_be_known():
    problem = black_box(lambda clients, x: x[:, :, 0], clients=N, dimension=6)
    assert JointProblem([problem, problem]).truth(torch.arange(3), torch.zeros(3, 6)) is None


@pytest.mark.parametrize("option", [{"noise": 0.5}, {"dimension": 3}, {"bounds": None}, {"dtype": torch.float32}])
def test_runs_whose_problems_differ_are_refused(option):
    function = Stacked(lambda clients, x: x[:, :, 0], N)
    problems = [BlackBox(function, dimension=2), BlackBox(function, **{"dimension": 2, **option})]
    with pytest.raises(InputError, match=f"its {next(iter(option))} follows the seed"):
        JointProblem(problems)


@pytest.mark.parametrize(
    ("payload", "together"),
    [({"params": torch.ones(6)}, True), ({"params": torch.ones(5)}, False), ({"x": torch.zeros(6)}, False)],
)
def test_orders_are_executed_together_where_their_payloads_have_the_same_shapes(payload, together):
    member = Member(synthetic(0), FedZO(), Streams(0), lockstep=Lockstep(1), number=0)

    def alike(sent):
        nobody = torch.zeros(0, dtype=torch.int64)
        return member.alike(Job((Order("train", nobody, sent),), None, nobody, Cost(nobody, {"delta": Size(1, 64)}), 8))

    assert (alike({"params": torch.zeros(6)}) == alike(payload)) == together


def test_what_a_run_raises_ends_all():
    """Nothing waits here: the second raises before the third has begun."""
    begun = []

    def job(number):
        begun.append(number)
        if number == 1:
            raise ZeroDivisionError("on purpose")
        return number

    with pytest.raises(ZeroDivisionError, match="on purpose"):
        Lockstep(3).drive([lambda number=number: job(number) for number in range(3)])
    assert begun == [0, 1]


def test_runs_that_wait_for_nothing_give_their_results():
    assert Lockstep(2).drive([lambda: "a", lambda: "b"]) == ["a", "b"]


def test_an_error_of_the_project_is_one_line():
    with pytest.raises(FedsimError, match=r"^ended$"):
        Lockstep(1).drive([lambda: (_ for _ in ()).throw(FedsimError("ended"))])
