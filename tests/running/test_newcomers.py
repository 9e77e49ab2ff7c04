"""Newcomers in runs: they are judged by what they would use if they came now, and never take part."""

from __future__ import annotations

import csv
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from clients.ditto import Ditto
from fedsim.core.errors import InputError
from fedsim.core.graph import decode, encode
from fedsim.core.options import options
from fedsim.engine.cohort import Cohort
from fedsim.exchange.messages import Update
from fedsim.problems.datasets import Dataset
from fedsim.problems.own_data import supervised
from fedsim.problems.partitions.natural import Natural
from fedsim.problems.partitions.newcomers import parted_newcomers
from fedsim.problems.supervised import Supervised
from fedsim.running.build import build_simulation
from fedsim.running.runner import run
from fedsim.running.simulation import Simulation
from fedsim.server.strategy import Averaging
from fedsim.testing.problems import blobs, mlp, small_experiment

NEW = [1, 4]
"""Of the six clients of `blobs`, with 3 and 5 examples, which are clients 4 and 5 of the problem."""
TESTS = [[0, 1], [2, 3, 4], [5], [6], [7, 8, 9, 10, 11], [12]]
FULL = {"steps": 3, "batch_size": "full", "lr": 0.2}
DITTO = {"kind": "ditto", "lam": 0.5, "epochs": 2, "batch_size": 4, "lr": 0.1}


@options
class ForNobody(Averaging):
    """FedAvg whose parameters nobody is to use."""

    for_all: ClassVar[bool] = False


def problem(**given: Any) -> Supervised:
    given = {"test_clients": TESTS, "newcomers": NEW} | given
    return supervised(**(blobs() | given), model=mlp(), dtype=torch.float64, device="cpu")


def simulation(rounds: int = 2, own: Supervised | None = None, finetune: Any = None, **tables: Any) -> Simulation:
    evaluation = {"every": 1} if finetune is None else {"every": 1, "finetune": finetune}
    tables = {"evaluation": evaluation, "selection": {"kind": "uniform", "count": 2}} | tables
    return build_simulation(small_experiment(rounds, **tables), own or problem())


def by_hand(model: nn.Module, client: int, steps: int = 0, lr: float = 0.2) -> tuple[float, float]:
    """The loss and the accuracy of one of the six after so many steps on all of its examples."""
    data = blobs()
    x, y = (torch.tensor(data[name][data["clients"][client]]) for name in "xy")
    rule = torch.optim.SGD(model.parameters(), lr)
    for _ in range(steps):
        rule.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        rule.step()
    x, y = (torch.tensor(part[TESTS[client]]) for part in data["test"])
    outputs = model(x).detach()
    return float(nn.functional.cross_entropy(outputs, y)), float((outputs.argmax(dim=1) == y).double().mean())


def together(found: list[tuple[float, float]]) -> dict[str, float]:
    """What is said of clients with 3 and 5 test examples."""
    (losses, right), count = zip(*found, strict=True), [3, 5]
    return {
        "newcomer_loss": float(np.average(losses, weights=count)),
        "newcomer_accuracy": float(np.average(right, weights=count)),
        "newcomer_accuracy_mean": float(np.mean(right)),
        "newcomer_accuracy_p10": float(np.quantile(right, 0.1)),
        "newcomer_accuracy_worst": min(right),
        "newcomer_accuracy_std": float(np.std(right)),
    }


def newcomers_of(row: Any) -> dict[str, float]:
    return {name: value for name, value in row.items() if name.startswith("newcomer")}


# What they use.


@pytest.mark.parametrize("steps", [0, 3])
def test_they_use_the_model_for_all_and_what_fine_tuning_makes_of_it(steps):
    made = simulation(3, finetune=FULL if steps else None)
    *_, row = made
    own = made.parts.problem
    expected = together([by_hand(own.module(made.params).train(), client, steps) for client in NEW])
    assert newcomers_of(row) == pytest.approx(expected, rel=1e-12)
    assert ("personal_loss" in row) == bool(steps)
    assert "client_accuracy_mean" in row


def test_who_has_more_examples_than_anybody_else_is_trained_on_all_of_them():
    made = simulation(1, problem(newcomers=[2]), FULL, client={"kind": "sgd", "steps": 1, "batch_size": 4, "lr": 0.1})
    (row,) = made
    loss, _ = by_hand(made.parts.problem.module(made.params).train(), 2, 3)
    assert row["newcomer_loss"] == pytest.approx(loss, rel=1e-12)


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize(
    "client",
    [
        DITTO,
        {"kind": "apfl", "epochs": 2, "batch_size": 4, "lr": 0.1, "adaptive": True},
        {"kind": "pfedme", "epochs": 2, "batch_size": 4, "lam": 1.0, "lr": 0.5, "inner_lr": 0.1},
    ],
    ids=lambda client: client["kind"],
)
def test_a_model_of_their_own_begins_as_the_model_for_all_does_now(client, steps):
    made = simulation(3, finetune=FULL if steps else None, client=client)
    *_, row = made
    own = made.parts.problem
    expected = together([by_hand(own.module(made.params).train(), client, steps) for client in NEW])
    assert newcomers_of(row) == pytest.approx(expected, rel=1e-12)


def test_their_models_are_named_by_their_numbers():
    tables = {"client": DITTO, "selection": {"kind": "uniform", "count": 2}}
    result = run(small_experiment(2, **tables), problem=problem(), save=False)
    models = [result.model(client)[1].weight for client in (None, 3, 4, 5)]
    assert torch.equal(models[2], models[0])
    assert torch.equal(models[3], models[0])
    assert not torch.equal(models[1], models[0])


def test_where_no_model_is_for_all_it_begins_as_the_problem_does():
    made = simulation(3, finetune=FULL, client=DITTO, strategy=ForNobody())
    *_, row = made
    own = made.parts.problem
    expected = together([by_hand(own.module(own.initial()).train(), client, 3) for client in NEW])
    assert newcomers_of(row) == pytest.approx(expected, rel=1e-12)


def test_a_part_of_their_own_begins_as_the_problem_does_and_is_trained_along():
    for kept, steps in (("head", 0), ("head", 3), ("1.*", 3)):
        made = simulation(3, problem().keeping(kept), FULL if steps else None)
        *_, row = made
        own = made.parts.problem
        expected = together([by_hand(own.module(made.params).train(), client, steps) for client in NEW])
        assert newcomers_of(row) == pytest.approx(expected, rel=1e-12)


def test_a_client_algorithm_is_asked_as_for_clients_of_these_numbers_and_nothing_is_kept():
    asked: list[tuple[list[int], list[int], float]] = []

    @options
    class Looks(Ditto):
        """Says who is judged."""

        def train(self, cohort: Cohort) -> Update:
            assert int(cohort.clients.max()) < 4
            return super().train(cohort)

        def personal(self, cohort: Cohort) -> Tensor:
            asked.append((cohort.clients.tolist(), cohort.examples.tolist(), float(cohort.state["personal"].sum())))
            cohort.keep(personal=cohort.state["personal"] + 1.0)
            return super().personal(cohort)

    made = simulation(2, client=Looks(lam=0.5, epochs=1, batch_size=4, lr=0.1))
    list(made)
    assert asked[1::2] == [([4, 5], [3, 5], asked[1][2]), ([4, 5], [3, 5], asked[3][2])]
    assert asked[1][2] != asked[3][2]
    assert not made.parts.engine.memories().look("personal", torch.tensor([4, 5]))[1].any()


def test_they_take_no_part_and_change_nothing_of_it():
    """The rows are those of the others alone, but for their columns."""
    lists = blobs()["clients"]
    left = {name: [part[client] for client in (0, 2, 3, 5)] for name, part in (("clients", lists), ("test", TESTS))}
    alone = problem(clients=left["clients"], test_clients=left["test"], newcomers=None)
    given = {"epochs": 2, "batch_size": 4, "lr": 0.1}
    for tables in ({}, {"client": DITTO}):
        made = [simulation(3, own, given, **tables) for own in (problem(), alone)]
        rows = [[dict(row) | {"wall": 0.0} for row in each] for each in made]
        for new, plain in zip(*rows, strict=True):
            assert {name: value for name, value in new.items() if name not in newcomers_of(new)} == plain
        assert made[0].parts.engine.trace.participation == made[1].parts.engine.trace.participation


def test_mini_batches_are_drawn_under_their_own_numbers():
    """Two newcomers with the same examples come to different models, as two clients do."""
    lists, tests = blobs()["clients"], [[client] for client in range(6)]
    lists[1] = lists[4]
    given = {"steps": 4, "batch_size": 2, "lr": 0.5}
    result = run(
        small_experiment(1, evaluation={"every": 0, "finetune": given}, selection={"kind": "uniform", "count": 2}),
        problem=problem(clients=lists, test_clients=tests),
        save=False,
    )
    assert not torch.equal(result.model(4)[1].weight, result.model(5)[1].weight)


# What is measured and left.


def test_a_run_leaves_a_line_of_each(tmp_path):
    tables = {"selection": {"kind": "uniform", "count": 2}, "evaluation": {"every": 1, "finetune": FULL}}
    result = run(small_experiment(2, **tables), problem=problem(), out=tmp_path / "run")
    with (tmp_path / "run" / "newcomers.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [(line["client"], line["examples"]) for line in table] == [("4", "3"), ("5", "5")]
    expected = [by_hand(result.problem.module(result.params).train(), client, 3) for client in NEW]
    assert [(float(line["loss"]), float(line["accuracy"])) for line in table] == [
        pytest.approx(pair, rel=1e-12) for pair in expected
    ]
    assert [by_hand(result.model(4 + place), client) for place, client in enumerate(NEW)] == [
        pytest.approx(pair, rel=1e-12) for pair in expected
    ]
    with (tmp_path / "run" / "clients.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 4
    assert "newcomer_accuracy" in repr(result)


def test_without_models_of_their_own_the_lines_are_of_the_model_for_all(tmp_path):
    run(small_experiment(2, selection={"kind": "uniform", "count": 2}), problem=problem(), out=tmp_path / "run")
    lines = (tmp_path / "run" / "newcomers.csv").read_text().splitlines()
    assert [line.split(",")[:2] for line in lines] == [["client", "examples"], ["4", "3"], ["5", "5"]]


def test_they_are_called_as_the_data_set_calls_its_owners(tmp_path):
    generator, called = np.random.default_rng(0), ["Ann", "Bob", "Cy", "Dee", "Eve"]
    x, owner = generator.normal(size=(40, 6)), np.arange(40) % 5
    data = Dataset("own", x, owner % 3, x, owner % 3, 3, owner, owner, told={"owners": called})
    others, theirs = parted_newcomers(Natural().split(data, 0), 0.4, 0)
    own = Supervised(data, others, mlp(), newcomers=theirs)
    made = small_experiment(1, selection={"kind": "uniform", "count": 2}, evaluation={"every": 0})
    run(made, problem=own, out=tmp_path / "run")
    with (tmp_path / "run" / "newcomers.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [line["client"] for line in table] == ["3", "4"]
    assert sorted([line["name"] for line in table] + own.names) == called


def test_measures_that_are_asked_for_are_of_them_too():
    made = simulation(2, evaluation={"every": 1, "metrics": ["f1_macro", "brier"]})
    *_, row = made
    assert {"newcomer_f1_macro", "newcomer_f1_macro_p10", "newcomer_brier", "newcomer_brier_p90"} <= row.keys()


def test_on_validation_they_are_judged_by_what_was_set_aside_of_theirs():
    lists = blobs()["clients"]
    lists, apart = (
        [own[:-1] if len(own) > 1 else own for own in lists],
        [own[-1:] if len(own) > 1 else [] for own in lists],
    )
    own = problem(clients=lists, validation=apart)
    own.x_test.fill_(torch.nan)
    *_, row = simulation(2, own, FULL, evaluation={"every": 1, "on": "validation", "finetune": FULL})
    names = {name for name in row if "newcomer" in name}
    assert {"validation_newcomer_loss", "validation_newcomer_accuracy_std"} <= names
    assert not [name for name in names if name.startswith("newcomer")]
    assert row["validation_newcomer_accuracy"] in (0.0, 0.5, 1.0)


def test_a_run_stops_by_what_they_come_to_and_the_best_model_is_kept_where_it_is_theirs(tmp_path):
    tables = {"stopping": {"metric": "newcomer_accuracy", "target": 0.0}, "selection": {"kind": "uniform", "count": 2}}
    judged = {"every": 1, "keep_best": "newcomer_accuracy"}
    result = run(small_experiment(5, evaluation=judged, **tables), problem=problem(), out=tmp_path / "run")
    assert (result.status, len(result.history)) == ("stopped", 1)
    assert (tmp_path / "run" / "best.safetensors").is_file()
    with pytest.raises(InputError, match=r"^evaluation\.keep_best = newcomer_accuracy: is of models of"):
        simulation(1, evaluation=judged | {"finetune": FULL})


# Refusals.


@pytest.mark.parametrize(
    ("given", "tables", "said"),
    [
        (
            {"test_clients": None},
            {},
            r"^partition\.newcomers = 2 clients: each is judged on examples of its own .* hold",
        ),
        ({"test_clients": [[0], [], [1], [2], [], [3]]}, {}, r"^partition\.newcomers = 2 clients: each is judged"),
        (
            {},
            {"evaluation": {"clients": False}},
            r"^partition\.newcomers = 2 clients: they are there to be judged, and evaluation\.clients = false",
        ),
        ({}, {"evaluation": {"on": "validation"}}, r"^evaluation\.on = validation: no example is set aside"),
    ],
)
def test_who_could_not_be_judged_is_refused(given, tables, said):
    with pytest.raises(InputError, match=said):
        simulation(1, problem(**given), **tables)


# However it is executed.


@pytest.mark.parametrize("client", [{"kind": "sgd", "epochs": 1, "batch_size": 4, "lr": 0.1}, DITTO])
@pytest.mark.parametrize("executor", ["loop", "fused"])
def test_every_executor_comes_to_the_same(client, executor):
    given = {"epochs": 2, "batch_size": 4, "lr": 0.1}
    rows = [list(simulation(2, None, given, client=client, engine={"executor": own})) for own in ("stacked", executor)]
    for stacked, other in zip(*rows, strict=True):
        assert newcomers_of(other) == pytest.approx(newcomers_of(stacked), rel=1e-12)


def test_the_memory_that_there_is_changes_no_bit():
    given = {"epochs": 2, "batch_size": 4, "lr": 0.1}
    first, second = simulation(2, None, given, client=DITTO), simulation(2, None, given, client=DITTO)
    second.parts.engine.executor.memory = 1
    assert [newcomers_of(row) for row in second] == [newcomers_of(row) for row in first]


def test_a_restored_run_ends_like_an_uninterrupted_one():
    given = {"epochs": 1, "batch_size": 4, "lr": 0.1}
    whole, first, second = (simulation(4, None, given, client=DITTO) for _ in range(3))
    rows = [first.step(), first.step()]
    second.restore(decode(encode(first.snapshot())))
    rows += second
    assert [newcomers_of(row) for row in rows] == [newcomers_of(row) for row in whole]
