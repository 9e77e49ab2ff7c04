"""How often a model is judged where nobody has said it: by declared work, the same whenever and however often asked."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

import fedsim
from fedsim.core.errors import InputError
from fedsim.problems import supervised
from fedsim.problems.supervised import Supervised
from fedsim.running import pace as place
from fedsim.running import runner
from fedsim.running.build import build_problem, build_simulation
from fedsim.running.resume import resume
from fedsim.running.runner import run
from fedsim.running.stored import CONFIG, METRICS
from tests.running.test_more_rounds import left

TABLES: dict[str, Any] = {
    "problem": {
        "dataset": {"kind": "synthetic", "clients": 6, "features": 5, "classes": 3, "examples_per_client": 20},
        "model": {"kind": "mlp", "hidden": [6]},
    },
    "partition": {"kind": "iid", "clients": 6},
    "client": {"kind": "sgd", "epochs": 1, "batch_size": 6, "lr": 0.1},
    "selection": {"kind": "uniform", "count": 2},
    "strategy": "fedavg",
    "rounds": 5,
}
FGSM = {"kind": "fgsm", "epsilon": 0.1, "domain": "none"}
THREE = {"kind": "differences", "count": 3}
FEDZO = {"kind": "fedzo", "steps": 1, "lr": 0.1, "batch_size": "full", "estimator": THREE}
PGD = {"kind": "pgd", "epsilon": 0.1, "steps": 10, "domain": "none"}


@pytest.fixture(autouse=True)
def nothing_is_cheap(monkeypatch) -> None:
    """So that small models show the rule; and pictures take most of the time."""
    monkeypatch.setattr(place, "CHEAP", 0)
    monkeypatch.setattr(runner, "curves", lambda *_: None)
    monkeypatch.setattr(Supervised, "illustrate", lambda *_: None)


def made(**tables: Any) -> fedsim.Experiment:
    return fedsim.experiment(**{name: value for name, value in (TABLES | tables).items() if value is not None})


def paced(**tables: Any) -> dict[str, int]:
    experiment = made(**tables)
    problem = build_problem(experiment)
    return build_simulation(experiment, problem).pace.notes


def judged_rounds(folder: Path) -> list[int]:
    rows = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    return [row["round"] for row in rows if "test_accuracy" in row]


# Two clients of 18 examples take three forward passes of each in their steps: judging may take 21.6 a round, a fifth of
# 108. There are 12 test examples and 108 that are trained on.
EVERY = {
    "the test set and the clients' own, 120": ({}, {"every": 10}),
    "the test set alone": ({"evaluation": {"clients": False}}, {"every": 1}),
    "the same 108, by two measures": ({"evaluation": {"on": "train"}}, {"every": 5}),
    "two epochs, 43.2 passes": ({"client": TABLES["client"] | {"epochs": 2}}, {"every": 5}),
    "full batches": ({"client": {"kind": "sgd", "steps": 1, "batch_size": "full"}}, {"every": 10}),
    "batches of more than all examples": ({"client": {"kind": "sgd", "epochs": 1, "batch_size": 64}}, {"every": 10}),
    # Five times 2 x 5 x 5 x 6 + 5^3 multiply-adds in each of six steps, of a model of 57: 332 passes in all.
    "steps of more work than their gradients": (
        {"client": TABLES["client"] | {"optimizer": "muon"}},
        {"every": 2},
    ),
    "values, 2 x 4 and 2 steps, on 6 of 2 clients: 33.6 passes": (
        {"strategy": "fedzo", "client": {"kind": "fedzo", "steps": 2, "lr": 0.1, "batch_size": 6, "estimator": THREE}},
        {"every": 5},
    ),
    "a reply a round, 10.8 passes": ({"strategy": {"kind": "fedbuff", "size": 1}}, {"every": 20}),
    "the clients' own, of the test set": ({"partition": {"kind": "natural"}}, {"every": 1}),
    # 12 of the test set, twice 10 of five clients, 2 of a newcomer; and three passes of 11 of the training of all six.
    "what is trained before it is judged, 232": (
        {
            "partition": {"kind": "natural", "newcomers": 0.1},
            "evaluation": {"finetune": {"steps": 1, "batch_size": 11}},
        },
        {"every": 20},
    ),
    "by time": ({"evaluation": {"every_seconds": 1.0}}, {}),
    "as somebody says": ({"evaluation": {"every": 3}}, {"every": 3}),
    "at the end, as somebody says": ({"evaluation": {"every": 0}}, {"every": 0}),
    "the end follows a measure": ({"stopping": {"target": 0.9}}, {"every": 1}),
    "the end follows the queries, 4 of 18 of 2 clients: 28.8 passes": (
        {"strategy": "fedzo", "client": FEDZO, "stopping": {"queries": 10_000}},
        {"every": 5},
    ),
    "the best model is kept": ({"evaluation": {"keep_best": "test_accuracy"}}, {"every": 1}),
    # With attacks each half is 10.8: 120 of them every 20 rounds, and of an attack 12 (1 + 3 x its gradients).
    "an attack of one gradient": ({"evaluation": {"attacks": [FGSM]}}, {"every": 20, "attacks_every": 20}),
    "an attack of ten": ({"evaluation": {"attacks": [PGD]}}, {"every": 20, "attacks_every": 40}),
    "an attack of ten, on four examples": (
        {"evaluation": {"attacks": [PGD], "examples": 4, "clients": False}},
        {"every": 2, "attacks_every": 20},
    ),
    "both attacks on the clients' own, too": (
        {"evaluation": {"attacks": [FGSM, PGD], "attack_clients": True}},
        {"every": 20, "attacks_every": 400},
    ),
    "a divisor of what is said of attacks": (
        {"evaluation": {"attacks": [FGSM], "attacks_every": 80}},
        {"every": 20, "attacks_every": 80},
    ),
    "no divisor is rare enough": (
        {"evaluation": {"attacks": [FGSM], "attacks_every": 30}},
        {"every": 30, "attacks_every": 30},
    ),
    "attacks at the end": ({"evaluation": {"attacks": [FGSM], "attacks_every": 0}}, {"every": 20, "attacks_every": 0}),
    "attacks of a model that is judged at the end": ({"evaluation": {"attacks": [FGSM], "every": 0}}, {"every": 0}),
}


@pytest.mark.parametrize("case", EVERY)
def test_judging_takes_a_fifth_of_the_training(case):
    tables, expected = EVERY[case]
    assert paced(**tables) == expected


def test_what_is_cheap_is_judged_in_every_round(monkeypatch):
    work = 120 * build_problem(made()).model.footprint.operations
    monkeypatch.setattr(place, "CHEAP", work)
    assert paced() == {"every": 1}
    monkeypatch.setattr(place, "CHEAP", work - 1)
    assert paced() == {"every": 2}


def test_black_boxes_are_judged_in_every_round():
    functions = {"kind": "benchmark", "dimension": 6, "clients": 5}
    client = {"kind": "fedzo", "steps": 1, "lr": 0.05}
    assert paced(problem=functions, partition=None, strategy="fedzo", client=client) == {}


def test_it_is_said_and_noted_and_the_last_round_is_judged(tmp_path, capsys):
    run(made(rounds=13), out=tmp_path / "a")
    assert capsys.readouterr().err == (
        "fedsim: the model is judged every 10 rounds and at the end: its 120 examples take 1.1 times a round's "
        "training; say evaluation.every for another pace\n"
    )
    config = tomllib.loads((tmp_path / "a" / CONFIG).read_text())
    assert config["resolved"]["evaluation"] == {"every": 10}
    assert "every" not in config["evaluation"]
    assert judged_rounds(tmp_path / "a") == [10, 13]
    run(made(rounds=1, evaluation={"every": 1, "attacks": [PGD], "clients": False}), save=False)
    assert capsys.readouterr().err == (
        "fedsim: the model is attacked every 50 rounds and at the end: attacks take more than their share of the "
        "training; say evaluation.attacks_every for another pace\n"
    )
    run(made(rounds=1, evaluation={"every": 7}), save=False)
    assert capsys.readouterr().err == ""


def test_a_run_goes_on_at_the_pace_that_it_began_with(tmp_path, monkeypatch):
    whole, more, broken = tmp_path / "whole", tmp_path / "more", tmp_path / "broken"
    often = {"checkpoint": {"every": 1}}
    run(made(rounds=20, **often), out=whole)
    run(made(rounds=10, **often), out=more)

    def interrupts(told: fedsim.Round) -> None:
        if told.row["round"] == 13:
            raise KeyboardInterrupt

    assert run(made(rounds=20, **often), out=broken, callbacks=[interrupts]).status == "interrupted"
    monkeypatch.setattr(place, "CHEAP", 10**9)  # by which every round would be judged
    resume(more, made(rounds=20, **often))
    resume(broken)
    assert judged_rounds(whole) == [10, 20]
    assert left(more) == left(whole) == left(broken)


def test_more_rounds_are_refused_where_the_last_was_judged_as_the_last_alone(tmp_path):
    run(made(), out=tmp_path / "a")
    with pytest.raises(InputError, match=r"evaluation\.every = 10: the model was judged after round 5 only because"):
        resume(tmp_path / "a", made(rounds=20))


@pytest.mark.parametrize(
    ("noted", "fault"), [("[3]", "change it back"), ("{also = 3}", "change it back"), ("{every = -1}", "every")]
)
def test_a_pace_that_no_run_has_noted_is_refused(noted, fault, tmp_path):
    run(made(rounds=10), out=tmp_path / "a")
    config = tmp_path / "a" / CONFIG
    text = config.read_text().replace("[resolved.evaluation]\nevery = 10\n", "")
    config.write_text(text.replace("[resolved]\n", f"[resolved]\nevaluation = {noted}\n"))
    with pytest.raises(InputError, match=rf"resolved\.evaluation.*{fault}"):
        resume(tmp_path / "a", made(rounds=20))


def test_an_evaluation_is_of_batches_that_all_cores_have_some_of(monkeypatch):
    problem, sent = build_problem(made()), list[int]()
    whole, plain = problem.evaluate(problem.initial(), clients=True), Supervised._forward

    def counted(self: Supervised, params: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        sent.append(len(x))
        return plain(self, params, x)

    monkeypatch.setattr(Supervised, "_forward", counted)
    monkeypatch.setattr(supervised, "WORK_AT_ONCE", 50 * problem.model.footprint.operations + 1)
    assert problem.evaluate(problem.initial(), clients=True) == pytest.approx(whole)
    assert sorted(sent) == [8, 12, 50, 50]


@pytest.mark.parametrize(("partition", "sets", "examples"), [("iid", ("train",), 108), ("natural", ("test",), 12)])
def test_the_same_examples_go_through_the_model_once(partition, sets, examples, monkeypatch):
    """Clients' own are those that are trained on, or each client's part of the test set."""
    dealt = {"kind": partition} | ({"clients": 6} if partition == "iid" else {})
    problem, sent = build_problem(made(partition=dealt)), list[int]()
    plain = Supervised._forward

    def counted(self: Supervised, params: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        sent.append(len(x))
        return plain(self, params, x)

    other = ("train",) if sets == ("test",) else ("test",)
    apart = problem.evaluate(problem.initial(), clients=True, on=other)
    apart |= problem.evaluate(problem.initial(), clients=False, on=sets)
    monkeypatch.setattr(Supervised, "_forward", counted)
    together = problem.evaluate(problem.initial(), clients=True, on=sets)
    assert sum(sent) == examples == problem.judged_examples(sets, clients=True)
    assert together == {name: apart[name] for name in together}
