"""What an experiment says and a problem, a client or the length of a run leaves without effect is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fedsim
from fedsim.core.errors import InputError
from fedsim.engine.options import EngineOptions
from fedsim.problems.benchmark_functions import BenchmarkFunctions
from fedsim.problems.partitions.library import IID
from fedsim.problems.supervised import SupervisedOptions
from fedsim.testing.problems import DEVICE, small_functions, small_problem

OTHER = "cpu" if DEVICE == "cuda" else "cuda"
CLIENT = {"kind": "sgd", "epochs": 1, "batch_size": 4, "lr": 0.1}
SEARCH = {"strategy": "fedzo", "client": {"kind": "fedzo", "steps": 2}}


def run(own: Any = None, **tables: Any) -> fedsim.Result:
    """Two rounds of an experiment on a problem of one's own."""
    made = fedsim.experiment(**{"rounds": 2, "client": CLIENT} | tables)
    return fedsim.run(made, problem=small_problem(torch.float32) if own is None else own, save=False)


OTHERS = {"loss": "cross_entropy", "start": "model.safetensors", "clients": 3}
"""Values of options that are not given by default."""
TABLES = [
    (table, kind, field.name, OTHERS.get(field.name, field.default) if kind != "benchmark" else field.default)
    for table, kind, cls in (
        ("problem", "supervised", SupervisedOptions),
        ("problem", "benchmark", BenchmarkFunctions),
        ("partition", "iid", IID),
    )
    for field in dataclasses.fields(cls)
    if field.name in OTHERS or field.default not in (dataclasses.MISSING, None)
]


@pytest.mark.parametrize(("table", "kind", "option", "value"), TABLES)
def test_what_is_said_of_a_problem_that_is_another_is_refused(table, kind, option, value):
    """Every option, whatever it says: it would have no effect."""
    parts = (SEARCH, small_functions()) if kind == "benchmark" else ({}, None)
    given = {"kind": kind, option: value} | ({"clients": 3} if kind == "iid" else {})
    with pytest.raises(InputError, match=rf"^{table}\.({option}|clients) = .*the problem is your own"):
        run(parts[1], **parts[0], **{table: given})


def test_objects_beside_a_problem_of_ones_own_are_refused():
    with pytest.raises(InputError, match=r"^problem\.model = .*the problem is your own"):
        run(problem=SupervisedOptions(model="logistic"))
    with pytest.raises(InputError, match=r"^partition\.clients = 3: the problem is your own"):
        run(partition=IID(clients=3))


@pytest.mark.parametrize(
    ("table", "kind"), [("problem", "supervised"), ("partition", "natural"), ("problem", "benchmark")]
)
def test_a_kind_beside_a_problem_of_ones_own_is_refused(table, kind):
    parts = SEARCH if kind == "benchmark" else {}
    for given in (kind, {"kind": kind}):
        with pytest.raises(InputError, match=rf"^{table} = {kind}: the problem is your own"):
            run(**{table: given}, **parts)


def test_where_to_start_says_how_a_problem_of_ones_own_does():
    with pytest.raises(InputError, match=r"problem\.start_from\(state_dict\)"):
        run(problem={"start": "model.pt"})


@pytest.mark.parametrize(
    ("dtype", "engine", "line"),
    [
        (torch.float32, {"precision": "float64"}, r"^engine\.precision = float64: .* of float32; .* dtype="),
        (torch.float64, {"precision": "float32"}, r"^engine\.precision = float32: .* of float64; .* dtype="),
        (torch.float32, EngineOptions(precision="float64"), r"^engine\.precision = float64"),
        (torch.float32, {"device": OTHER}, rf"^engine\.device = {OTHER}: .* of {DEVICE}; .* device="),
    ],
)
def test_another_precision_or_device_than_that_of_a_problem_is_refused(dtype, engine, line):
    with pytest.raises(InputError, match=line):
        run(small_problem(dtype), engine=engine)


def test_the_precision_and_the_device_that_a_problem_has_are_accepted():
    for dtype, name in ((torch.float32, "float32"), (torch.float64, "float64")):
        engine = {"precision": name, "device": DEVICE}
        assert run(small_problem(dtype), engine=engine).params.dtype == dtype


def test_a_run_on_a_problem_of_ones_own_is_resumed_as_it_was_written(tmp_path):
    """config.toml says the precision and the device that the problem had, and nothing of another problem."""
    parts = {"strategy": "fedavg", "client": CLIENT, "rounds": 3, "out": tmp_path / "run"}

    def interrupt(done: fedsim.Round) -> None:
        if done.row["round"] == 2:
            raise KeyboardInterrupt

    fedsim.run(problem=small_problem(), callbacks=[interrupt], checkpoint={"every": 1}, **parts)
    for given in ({"partition": "natural"}, {"engine": {"precision": "float32"}}):
        made = fedsim.experiment(rounds=3, client=CLIENT, **given)
        with pytest.raises(InputError, match="the problem is your own"):
            fedsim.resume(tmp_path / "run", made, problem=small_problem())
    assert fedsim.resume(tmp_path / "run", problem=small_problem()).status == "finished"


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"out": "runs/there"}, "out = runs/there: save = False"),
        ({"force": True}, "force = True: save = False"),
        ({"callbacks": print}, "callbacks = print: give a list of functions"),
        ({"callbacks": [3]}, "callbacks = list: give a list of functions"),
        ({"callbacks": None}, "callbacks = NoneType: give a list of functions"),
    ],
)
def test_arguments_of_a_run_that_could_do_nothing_are_refused(given, line):
    with pytest.raises(InputError, match=line):
        fedsim.run(problem=small_problem(), client=CLIENT, rounds=1, save=False, **given)


ATTACK = {"kind": "fgsm", "epsilon": 0.1, "domain": "none"}


@pytest.mark.parametrize(
    ("parts", "line"),
    [
        ({"stopping": {"queries": 5}}, r"queries = 5: the client sgd trains, and asks for no values"),
        ({"stopping": {"patience": 2}}, r"patience = 2: test_accuracy is measured 2 times only"),
        ({"stopping": {"patience": 1}, "evaluation": {"every": 2}}, "patience = 1: test_accuracy is measured 1 times"),
        (
            {"stopping": {"target": 0.5}, "evaluation": {"every": 0}},
            "target = 0.5: test_accuracy is measured at the end",
        ),
        ({"stopping": {"target": 1.5}}, r"target = 1\.5: test_accuracy is a share"),
        ({"stopping": {"target": -0.1, "metric": "test_loss"}}, r"target = -0\.1: test_loss is never below 0"),
        (
            {
                "rounds": 9,
                "evaluation": {"attacks": [ATTACK], "attacks_every": 3},
                "stopping": {"patience": 3, "metric": "test_fgsm_loss"},
            },
            "patience = 3: test_fgsm_loss is measured 3 times only",
        ),
        (
            {
                "rounds": None,
                "duration": 5.0,
                "evaluation": {"every_seconds": 2.0},
                "stopping": {"patience": 3},
            },
            "patience = 3: test_accuracy is measured 3 times only",
        ),
        (
            {"stopping": {"queries": 5, "metric": "test_loss"}},
            "metric = test_loss: only target and patience",
        ),
    ],
)
def test_an_end_that_never_comes_is_refused(parts, line):
    with pytest.raises(InputError, match=rf"^stopping\.{line}"):
        run(**parts)


@pytest.mark.parametrize(
    "parts",
    [
        {"stopping": {"patience": 1}},
        {"stopping": {"target": 1.0}},
        {"stopping": {"target": 0.0, "metric": "test_loss"}},
        {"stopping": {"patience": 4}, "rounds": None, "duration": 5.0},
    ],
)
def test_an_end_that_can_come_is_accepted(parts):
    assert run(**parts).status in ("finished", "stopped")


def test_sets_of_examples_are_none_of_a_black_box():
    with pytest.raises(InputError, match=r"^evaluation\.on = train: the clients of a black box have no examples"):
        run(small_functions(), evaluation={"on": "train"}, **SEARCH)


def test_checkpoints_that_nothing_could_go_on_from_are_refused(monkeypatch):
    from strategies.fedavg import FedAvg

    monkeypatch.setattr(FedAvg, "unresumable", "it keeps its state to itself")
    with pytest.raises(InputError, match=r"checkpoint\.every = 1: no run could go on from there: it keeps its state"):
        run(checkpoint={"every": 1})
    with pytest.raises(InputError, match=r"checkpoint\.keep = 3: every = 0 says that there are none"):
        run(checkpoint={"every": 0, "keep": 3})


def test_clients_of_a_regression_are_judged_by_their_losses():
    """Targets 1 for the first client, 3 for the second; a model that says 0 throughout costs them 1 and 9."""
    model = nn.Linear(1, 1)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    x, y = np.zeros((5, 1)), np.array([1.0, 1.0, 3.0, 3.0, 3.0])
    problem = fedsim.supervised(x, y, model=model, clients=[[0, 1], [2, 3, 4]], dtype=torch.float64)
    found = problem.evaluate(problem.initial(), clients=True)
    assert found["client_loss_mean"] == 5.0
    assert found["client_loss_worst"] == 9.0
    assert found["client_loss_p90"] == pytest.approx(1 + 0.9 * 8)
    assert found.keys() == set(problem.measures(True))
    assert not problem.evaluates_clients("auto")
    row = run(problem, evaluation={"clients": True}, stopping={"metric": "client_loss_worst", "patience": 1}).history
    assert {"client_loss_mean", "client_loss_p90", "client_loss_worst"} <= set(row.columns)


@pytest.mark.parametrize("lr", [1e31, 1e39, 1e300])
def test_a_rate_that_is_no_number_in_single_precision_is_refused(lr):
    for option, parts in (
        ("client.lr", {"client": CLIENT | {"lr": lr}}),
        ("client.weight_decay", {"client": CLIENT | {"weight_decay": lr}}),
        ("strategy.server_lr", {"strategy": {"kind": "fedavg", "server_lr": lr}}),
        ("client.lr", {"strategy": "fedzo", "client": {"kind": "fedzo", "lr": lr}}),
    ):
        with pytest.raises(InputError, match=rf"^{option} = .*1000000"):
            run(**parts)


@pytest.mark.parametrize(
    ("client", "words"),
    [
        ({"lr": 1e30, "weight_decay": 1e30}, "1e+30 times the decay 1e+30"),
        ({"lr": 1e-9, "schedule": {"kind": "exponential", "gamma": 1e200}}, "the learning rate of round 2 is 1e+191"),
    ],
)
def test_a_rate_that_grows_too_large_ends_the_run(client, words):
    result = run(client=CLIENT | client, rounds=3)
    assert result.status == "diverged"
    assert words in result.reason


def test_a_test_set_that_is_not_there_is_named_where_it_is_asked_for():
    generator = np.random.Generator(np.random.PCG64(0))
    x, y = generator.normal(size=(8, 3)), np.arange(8) % 2
    problem = fedsim.supervised(x, y, model=nn.Linear(3, 2), clients=[range(4), range(4, 8)], test=(x[:0], y[:0]))
    with pytest.raises(InputError, match=r"^evaluation\.on = test, train: there is no test example"):
        run(problem, evaluation={"on": ["test", "train"]})
    assert "global_train_loss" in run(problem, evaluation={"on": "train"}).history.columns


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")])
def test_memory_that_is_used_up_in_a_run_is_said_in_a_line(error, tmp_path):
    def fill(done: fedsim.Round) -> None:
        if done.row["round"] == 2:
            raise error

    with pytest.raises(fedsim.FedsimError, match="no memory is left in round 3; take a smaller model") as caught:
        fedsim.run(problem=small_problem(), client=CLIENT, rounds=4, callbacks=[fill], out=tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert (tmp_path / "run" / "traceback.txt").exists()


def test_another_error_of_a_run_is_as_it_was_raised():
    def fail(done: fedsim.Round) -> None:
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match=r"^something else$"):
        fedsim.run(problem=small_problem(), client=CLIENT, rounds=1, callbacks=[fail], save=False)


@pytest.mark.parametrize(
    ("client", "line"),
    [
        ({"inverse_power": 0.5}, r"client\.inverse_power = 0\.5: is the exponent of inverse_decay"),
        ({"optimizer": {"kind": "lion", "epsilon": 1e-3}}, r"client\.optimizer\.epsilon = 0\.001: no such option here"),
    ],
)
def test_options_of_another_way_to_train_are_refused(client, line):
    with pytest.raises(InputError, match=line):
        run(client=CLIENT | client)


@pytest.mark.parametrize(
    ("call", "option"),
    [
        (lambda: fedsim.load(5), "experiment"),
        (lambda: fedsim.resume(5), "run"),
        (lambda: fedsim.experiment(data_dir=5), "data_dir"),
        (lambda: fedsim.run(problem=small_problem(), client=CLIENT, rounds=1, out=5), "out"),
    ],
)
def test_what_is_no_path_is_refused(call, option):
    with pytest.raises(InputError, match=rf"^{option} = 5: give a path"):
        call()
