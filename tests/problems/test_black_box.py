"""Black boxes: what is asked, what is answered, what is measured, and what is refused."""

import importlib
import math
import sys

import numpy as np
import pytest
import torch

import fedsim
from fedsim.core.errors import FedsimError, InputError
from fedsim.core.streams import Streams
from fedsim.problems.black_box import BlackBox
from fedsim.problems.evaluators import BlackBoxError, Stacked
from fedsim.problems.own_functions import black_box


def rows(clients, x):
    """f_c(x) = c + sum_j x_j."""
    return clients.unsqueeze(1) + x.sum(-1)


def made(function=rows, **options):
    return black_box(function, **({"dimension": 2, "clients": 4, "device": "cpu"} | options))


def scalars(functions, **options):
    return black_box(functions, kind="scalar", device="cpu", **({"dimension": 1} | options))


def ask(problem, clients, x, streams=None, number=0, step=0):
    points = torch.as_tensor(x, dtype=problem.dtype)
    return problem.query(torch.tensor(clients, dtype=torch.int64), points, streams or Streams(0), number, step)


# The problem


def test_a_problem_says_what_it_is():
    problem = made(bounds=(-1, 3))
    assert (problem.num_clients, problem.dimension, problem.largest) == (4, 2, 1)
    assert problem.sizes.tolist() == problem.sizes_on_device.tolist() == [1, 1, 1, 1]
    assert problem.sizes.dtype == torch.int64
    assert problem.bounds == (-1.0, 3.0)
    assert problem.dtype == torch.float64
    assert problem.device == torch.device("cpu")
    assert problem.labels() is None
    assert problem.initial().tolist() == [1.0, 1.0]
    problem.initial().zero_()
    assert problem.initial().tolist() == [1.0, 1.0]
    assert problem.tensors(problem.initial())["x"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("options", "start"),
    [
        ({}, [0.5, 0.5]),
        ({"bounds": None}, [0.0, 0.0]),
        ({"start": 1}, [1.0, 1.0]),
        ({"start": [0.25, 0.75]}, [0.25, 0.75]),
        ({"start": np.array([0.0, 1.0], np.float32)}, [0.0, 1.0]),
        ({"start": torch.tensor([0.5, 1.0], requires_grad=True)}, [0.5, 1.0]),
        ({"bounds": None, "start": -1e9}, [-1e9, -1e9]),
    ],
)
def test_it_starts_in_the_middle_or_where_it_is_told(options, start):
    found = made(**options).initial()
    assert found.tolist() == start
    assert not found.requires_grad


def test_measures_are_the_mean_the_gap_and_the_worst_off():
    point = torch.tensor([0.25, 0.5], dtype=torch.float64)
    # f = 0.75 + 0, 1, 2, 3: mean 2.25; the 0.9 quantile lies 0.7 of the way from the third to the last: 2.75 + 0.7.
    problem = made(optimum=1.5)
    assert problem.evaluate(point, clients=True) == pytest.approx(
        {"value": 2.25, "gap": 0.75, "client_value_p90": 3.45, "client_value_worst": 3.75}
    )
    assert problem.evaluate(point, clients=False) == {"value": 2.25, "gap": 0.75}
    assert made().evaluate(point, clients=False) == {"value": 2.25}
    for wanted in (True, False, "auto"):
        for each in (problem, made()):
            found = each.evaluate(point, clients=each.evaluates_clients(wanted))
            assert list(found) == each.measures(wanted)
    assert made(clients=1000).evaluates_clients("auto")
    assert not made(clients=1001).evaluates_clients("auto")
    assert made(clients=1001).evaluates_clients(True)
    assert not problem.evaluates_clients(False)


def test_all_clients_are_evaluated_however_many_go_at_once(monkeypatch):
    asked = []

    def watched(clients, x):
        asked.append(clients.tolist())
        return rows(clients, x)

    monkeypatch.setattr("fedsim.problems.black_box.AT_ONCE", 6)  # three clients of two coordinates
    assert made(watched).evaluate(torch.zeros(2, dtype=torch.float64), clients=False) == {"value": 1.5}
    assert asked == [[0, 1, 2], [3]]


# Answers

X = [[[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]], [[0.5, 0.5], [0.0, 0.0], [-1.0, 0.0]]]
ANSWERS = [[3.0, 7.0, 11.0], [1.0, 0.0, -1.0]]
"""For clients 2 and 0: c + x_1 + x_2."""


def one(client, kind):
    """The function of one client, in the form of that kind; it checks what it is handed."""

    def function(x):
        wanted = torch.Tensor if kind == "vectorised" else np.ndarray
        assert isinstance(x, wanted)
        assert x.shape == ((2,) if kind == "scalar" else (3, 2))
        return client + x.sum(-1)

    return function


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["stacked", "vectorised", "numpy", "scalar"])
def test_answers_come_in_order_whatever_the_kind(kind, dtype):
    if kind == "stacked":
        problem = made(dtype=dtype)
    else:
        problem = made([one(client, kind) for client in range(4)], kind=kind, clients=None, dtype=dtype)
    found = ask(problem, [2, 0], X)
    assert found.tolist() == ANSWERS
    assert found.dtype == dtype
    assert ask(problem, [], torch.zeros(0, 3, 2)).shape == (0, 3)
    assert ask(problem, [2, 0], torch.zeros(2, 0, 2)).shape == (2, 0)


def test_one_coordinate_and_one_client_are_enough():
    for problem in (
        made(lambda clients, x: x[..., 0] ** 2, dimension=1, clients=1),
        scalars([lambda x: x[0] ** 2]),
        black_box([lambda x: x[:, 0] ** 2], kind="numpy", dimension=1, device="cpu"),
    ):
        assert ask(problem, [0], [[[3.0], [-2.0]]]).tolist() == [[9.0, 4.0]]
        assert problem.evaluate(problem.initial(), clients=True)["client_value_worst"] == 0.25


def test_nan_and_infinity_are_passed_on():
    for problem in (
        made(lambda clients, x: torch.log(x[..., 0]), dimension=1, clients=1),
        scalars([lambda x: math.nan if x[0] < 0 else -math.inf if x[0] == 0 else math.log(x[0])]),
    ):
        found = ask(problem, [0], [[[-1.0], [0.0], [1.0]]])
        assert found[0, 0].isnan()
        assert found[0, 1:].tolist() == [-math.inf, 0.0]
    assert math.isnan(problem.evaluate(torch.tensor([-1.0], dtype=torch.float64), clients=True)["client_value_worst"])


def test_the_noise_of_a_client_is_named_and_not_drawn_in_turn():
    problem, streams = made(noise=0.5), Streams(7)
    x = torch.zeros(4, 2000, 2)
    found = ask(problem, [0, 1, 2, 3], x, streams, 5, 2) - torch.arange(4.0).unsqueeze(1)
    # 8000 draws: the mean is known to 0.5 / sqrt(8000) = 0.0056, the deviation to 0.5 / sqrt(16000) = 0.004.
    assert found.mean().item() == pytest.approx(0.0, abs=0.0224)
    assert found.std().item() == pytest.approx(0.5, abs=0.016)
    drawn = streams.normal("query-noise", torch.arange(4), (2000,), turn=5, step=2, dtype=torch.float64)
    assert torch.allclose(found, 0.5 * drawn, atol=1e-14)
    alone = ask(problem, [2], x[:1], streams, 5, 2)
    assert torch.equal(alone[0], ask(problem, [3, 2], x[:2], streams, 5, 2)[1])
    assert torch.equal(ask(problem, [2], x[:1], streams, torch.tensor([5]), 2), alone)
    for number, step in ((6, 2), (5, 3)):
        assert not torch.equal(alone, ask(problem, [2], x[:1], streams, number, step))
    assert not torch.equal(alone, ask(problem, [2], x[:1], Streams(8), 5, 2))
    assert problem.evaluate(problem.initial(), clients=False) == {"value": 2.5}


def test_no_noise_draws_nothing(monkeypatch):
    monkeypatch.setattr(Streams, "normal", lambda *_, **__: pytest.fail("drawn"))
    assert ask(made(), [1], [[[0.0, 0.0]]]).tolist() == [[1.0]]


# Gradients


def test_gradients_are_found_where_functions_are_differentiable():
    clients, x = torch.tensor([2, 0]), torch.tensor(X, dtype=torch.float64)
    stacked = made(lambda clients, x: clients.unsqueeze(1) * (x**2).sum(-1), differentiable=True, noise=1.0)
    listed = made(
        [lambda x, c=c: c * (x**2).sum(-1) for c in range(4)], kind="vectorised", clients=None, differentiable=True
    )
    by_hand = 2 * clients.view(2, 1, 1) * x
    for problem in (stacked, listed):
        assert problem.differentiable
        with torch.no_grad():
            assert torch.equal(problem.gradients(clients, x), by_hand)
        assert not ask(problem, [2, 0], X).requires_grad
    assert made().gradients(clients, x) is None
    assert not made().differentiable
    cut = made(lambda clients, x: x.detach().sum(-1), differentiable=True)
    with pytest.raises(BlackBoxError, match="autograd finds no way"):
        cut.gradients(clients, x)


# What functions do wrong


@pytest.mark.parametrize("on_error", ["stop", "nan"])
@pytest.mark.parametrize(
    ("kind", "function", "told"),
    [
        ("stacked", lambda clients, x: x, r"all clients, asked of 2: returned torch.float64 of shape \(2, 3, 2\), not"),
        ("stacked", lambda clients, x: x.sum(), r"shape \(\), not real numbers of shape \(2, 3\)"),
        ("stacked", lambda clients, x: x.sum(-1) + 1j, r"returned torch.complex128 of shape \(2, 3\)"),
        ("stacked", lambda clients, x: x.sum(-1) > 0, r"returned torch.bool of shape \(2, 3\)"),
        ("stacked", lambda clients, x: None, "returned NoneType"),
        ("vectorised", lambda x: x.sum(), r"client 2: returned torch.float64 of shape \(\), .* of shape \(3,\)"),
        ("numpy", lambda x: x.sum(-1)[:2], r"client 2: returned float64 of shape \(2,\), .* of shape \(3,\)"),
        ("numpy", lambda x: x.sum(-1).astype(str), r"client 2: returned <U\d+ of shape \(3,\)"),
        ("scalar", lambda x: x, r"client 2: returned float64 of shape \(2,\), not real numbers of shape \(\)"),
        ("scalar", lambda x: 1j, r"client 2: returned complex128 of shape \(\)"),
        ("scalar", lambda x: "1", "client 2: returned str"),
        ("numpy", lambda x: np.ma.masked_array(x.sum(-1), x.sum(-1) > 0), "client 2: returned an array with masked"),
    ],
)
def test_a_wrong_answer_is_an_error_that_names_the_client(kind, function, told, on_error):
    functions = function if kind == "stacked" else [rows, rows, function, rows]
    problem = made(functions, kind=kind, clients=4 if kind == "stacked" else None, on_error=on_error)
    with pytest.raises(BlackBoxError, match=told) as caught:
        ask(problem, [2, 0], X)
    assert isinstance(caught.value, FedsimError)
    assert not isinstance(caught.value, InputError)
    assert "\n" not in str(caught.value)


def refuse_client_2(clients, x):
    if 2 in clients:
        raise ValueError("out of\nrange")
    return rows(clients, x)


def refuse(x):
    raise ValueError("out of\nrange")


@pytest.mark.parametrize(
    ("kind", "functions", "answers"),
    [
        ("stacked", refuse_client_2, [[math.nan] * 3, ANSWERS[1]]),
        ("vectorised", [one(0, "vectorised"), rows, refuse, rows], [[math.nan] * 3, ANSWERS[1]]),
        ("numpy", [one(0, "numpy"), rows, refuse, rows], [[math.nan] * 3, ANSWERS[1]]),
        # One point at a time, a point that does not raise keeps its value.
        (
            "scalar",
            [one(0, "scalar"), rows, lambda x: refuse(x) if x[0] > 1 else x[1], rows],
            [[1.0, math.nan, math.nan], ANSWERS[1]],
        ),
    ],
)
def test_a_function_that_raises_stops_the_run_or_gives_nan(kind, functions, answers):
    clients = 4 if kind == "stacked" else None
    with pytest.raises(BlackBoxError) as caught:
        ask(made(functions, kind=kind, clients=clients), [2, 0], X)
    assert str(caught.value) == "client 2: raised ValueError: out of range"
    assert isinstance(caught.value.__cause__, ValueError)
    found = ask(made(functions, kind=kind, clients=clients, on_error="nan"), [2, 0], X)
    assert torch.equal(found.isnan(), torch.tensor(answers).isnan())
    assert found.nan_to_num().tolist() == torch.tensor(answers).nan_to_num().tolist()


def test_a_function_that_wants_to_end_the_process_has_failed():
    with pytest.raises(BlackBoxError, match="client 0: raised SystemExit: 3"):
        ask(scalars([lambda x: sys.exit(3)]), [0], [[[0.0]]])
    assert ask(scalars([lambda x: sys.exit(3)], on_error="nan"), [0], [[[0.0]]]).isnan().all()


def test_a_search_that_is_told_nothing_finite_says_where_to_look():
    problem = made(lambda clients, x: x.sum(-1) * math.nan)
    parts = {"strategy": {"kind": "cma_es"}, "client": {"kind": "values"}, "selection": {"kind": "uniform", "count": 4}}
    result = fedsim.run(problem=problem, rounds=1, save=False, **parts)
    assert result.status == "diverged"
    assert result.reason.endswith(
        "is finite; lower client.lr, if there is one, or see whether the functions give NaN or infinity"
    )


def test_an_interrupt_is_no_failure():
    def interrupted(x):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ask(scalars([interrupted], on_error="nan"), [0], [[[0.0]]])


SLOW = """
import os, time

def pick(x):
    if x[0] == 2:
        time.sleep(3600)
    if x[0] == 3:
        os._exit(7)
    if x[0] == 4 and not os.path.exists("died"):
        open("died", "x").close()
        os._exit(7)
    return x[0] / 3
"""


@pytest.fixture
def pick(tmp_path, monkeypatch):
    """A function in a module that a process can load."""
    (tmp_path / "slow_functions_of_test.py").write_text(SLOW)
    monkeypatch.syspath_prepend(tmp_path)
    return importlib.import_module("slow_functions_of_test").pick


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_processes_answer_as_this_one(pick, dtype):
    x = torch.rand(2, 5, 1, dtype=dtype, generator=torch.manual_seed(0))
    problem = scalars([pick, pick], workers=2, dtype=dtype)
    assert torch.equal(ask(problem, [1, 0], x), ask(scalars([pick, pick], dtype=dtype), [1, 0], x))
    assert problem.evaluate(problem.initial(), clients=False)["value"] == pytest.approx(0.5 / 3)
    problem.close()


def test_what_hangs_or_dies_stops_the_run_or_gives_nan(pick):
    stopped = scalars([pick, pick], workers=1, timeout=0.5)
    with pytest.raises(BlackBoxError, match=r"^client 1: took longer than 0\.5 s$"):
        ask(stopped, [0, 1], [[[0.0]], [[2.0]]])
    with pytest.raises(BlackBoxError, match=r"^client 0: ended its process with exit code 7$"):
        ask(stopped, [0, 1], [[[3.0]], [[2.0]]])
    stopped.close()
    going_on = scalars([pick, pick], workers=1, timeout=0.5, on_error="nan")
    found = ask(going_on, [0, 1], [[[3.0], [2.0]], [[0.0], [6.0]]])
    assert found[0].isnan().all()
    assert found[1].tolist() == [0.0, 2.0]
    going_on.close()


def test_a_process_that_dies_once_costs_no_value(pick, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    problem = scalars([pick], workers=1)
    assert ask(problem, [0], [[[4.0], [0.0]]]).tolist() == [[4 / 3, 0.0]]
    assert (tmp_path / "died").exists()
    problem.close()


# What is refused


@pytest.mark.parametrize(
    ("options", "blamed"),
    [
        ({"clients": None}, "clients"),
        ({"clients": 0}, "clients"),
        ({"dimension": 0}, "dimension"),
        ({"bounds": (1.0, 1.0)}, "bounds"),
        ({"bounds": (2.0, 1.0)}, "bounds"),
        ({"bounds": (0.0, math.inf)}, "bounds"),
        ({"bounds": (math.nan, 1.0)}, "bounds"),
        ({"bounds": (0.0, 1.0, 2.0)}, "bounds"),
        ({"bounds": 1.0}, "bounds"),
        ({"start": 1.5}, "start"),
        ({"start": [0.5, -0.1]}, "start"),
        ({"start": [0.5, math.nan]}, "start"),
        ({"bounds": None, "start": math.inf}, "start"),
        ({"start": [0.5]}, "start"),
        ({"start": [0.5, 0.5, 0.5]}, "start"),
        ({"start": [[0.5, 0.5]]}, "start"),
        ({"start": "middle"}, "start"),
        ({"start": [[0.5], [0.5, 0.5]]}, "start"),
        ({"noise": -0.1}, "noise"),
        ({"noise": math.nan}, "noise"),
        ({"noise": math.inf}, "noise"),
        ({"optimum": math.nan}, "optimum"),
        ({"on_error": "ignore"}, "on_error"),
        ({"dtype": torch.int64}, "dtype"),
        ({"kind": "python"}, "kind"),
        ({"workers": 2}, "workers"),
        ({"workers": -1}, "workers"),
        ({"timeout": 1.0}, "timeout"),
        ({"function": [rows]}, "functions"),
        ({"function": rows, "kind": "scalar", "clients": None}, "functions"),
        ({"function": [rows, 3], "kind": "scalar", "clients": None}, "functions"),
        ({"function": [], "kind": "scalar", "clients": None}, "functions"),
        ({"bounds": (0.0, 1e-320)}, "bounds"),
        ({"bounds": (-1e308, 1e308)}, "bounds"),
        ({"function": [rows], "kind": "scalar", "clients": 1}, "clients"),
        ({"function": [abs], "kind": "scalar", "clients": None, "timeout": 1.0}, "timeout"),
        ({"function": [abs], "kind": "scalar", "clients": None, "workers": 1, "timeout": 0.0}, "timeout"),
        ({"function": [lambda x: 0], "kind": "scalar", "clients": None, "workers": 1}, "functions"),
        ({"function": [abs], "kind": "scalar", "clients": None, "differentiable": True}, "differentiable"),
    ],
)
def test_bad_options_are_refused_by_name(options, blamed):
    with pytest.raises(InputError) as caught:
        made(**options)
    assert str(caught.value).startswith(f"{blamed} = ")
    assert "\n" not in str(caught.value)


def test_no_client_is_refused_by_the_problem_too():
    with pytest.raises(InputError, match="clients = 0"):
        BlackBox(Stacked(rows, 0), dimension=2)
