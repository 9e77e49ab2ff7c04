"""Examples that nobody trains on: each rule against a plain recount, on every partition."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedsim.attacks.gradient import FGSM
from fedsim.core.errors import InputError
from fedsim.core.streams import Streams
from fedsim.nets.losses import IGNORED
from fedsim.problems.base import Trial
from fedsim.problems.datasets import Dataset
from fedsim.problems.own_data import supervised
from fedsim.problems.partitions.base import Partition, hold_out
from fedsim.problems.partitions.dirichlet_equal import DirichletEqual
from fedsim.problems.partitions.library import IID, Dirichlet, Linear, Pathological, Shards
from fedsim.problems.partitions.natural import Natural
from fedsim.problems.partitions.validation import set_aside
from fedsim.running.build import build_problem
from fedsim.testing.problems import blobs, mlp, small_experiment

OWNERS = np.sort(np.random.default_rng(1).integers(0, 12, 240))
DATA = Dataset(
    "labelled",
    np.zeros((240, 1), np.float32),
    np.random.default_rng(2).integers(0, 6, 240),
    np.zeros((60, 1), np.float32),
    np.random.default_rng(3).integers(0, 6, 60),
    6,
    OWNERS,
    np.arange(60) % 12,
)
EVERY = [
    IID(clients=20),
    Dirichlet(clients=20, alpha=0.5),
    Pathological(clients=20, classes_per_client=3),
    Shards(clients=20),
    Linear(clients=20),
    Natural(),
    DirichletEqual(clients=20, alpha=0.5, replace=False),
]


def lists(order: Any, offset: Any) -> list[list[int]]:
    return [order[begin:end].tolist() for begin, end in pairwise(offset)]


def trained(partition: Partition) -> list[list[int]]:
    return lists(partition.order, partition.offset)


def aside(partition: Partition) -> list[list[int]]:
    return lists(partition.validation_order, partition.validation_offset)


@pytest.mark.parametrize("plan", EVERY, ids=lambda plan: type(plan).__name__)
@pytest.mark.parametrize("share", [0.1, 0.3, 0.9])
def test_of_each_client_its_share_is_set_aside_to_the_nearest_and_one_is_left(plan, share):
    whole = plan.split(DATA, 3)
    made = set_aside(whole, share, None, 3)
    dealt, kept, taken = trained(whole), trained(made), aside(made)
    for before, own, apart in zip(dealt, kept, taken, strict=True):
        assert sorted(own + apart) == sorted(before)
        assert len(apart) == min(math.floor(len(before) * share + 0.5), len(before) - 1)
    assert not set(made.order.tolist()) & set(made.validation_order.tolist())
    assert aside(set_aside(whole, share, None, 3)) == taken
    assert aside(set_aside(whole, share, None, 4)) != taken


def test_the_draw_is_another_than_that_of_the_hold_out_and_comes_after_it():
    whole = IID(clients=6).split(DATA, 3)
    held = hold_out(whole, 0.5, 3)
    assert aside(set_aside(whole, 0.5, None, 3)) != lists(held.holdout_order, held.holdout_offset)
    both = set_aside(held, 0.25, None, 3)
    assert both.holdout_order.tolist() == held.holdout_order.tolist()
    assert [len(own) for own in aside(both)] == [5] * 6  # 40 dealt, 20 held out, a quarter of the others


def test_where_clients_share_examples_one_is_set_aside_for_all_who_have_it():
    whole = DirichletEqual(clients=20, alpha=0.5, size=30).split(DATA, 0)
    made = set_aside(whole, 0.2, None, 0)
    assert not set(made.order.tolist()) & set(made.validation_order.tolist())
    for before, own, apart in zip(trained(whole), trained(made), aside(made), strict=True):
        assert Counter(own + apart) == Counter(before)
        assert own
    distinct = len(set(whole.order.tolist()))
    assert len(set(made.validation_order.tolist())) == round(0.2 * distinct)


def test_who_would_be_left_with_nothing_is_given_its_last_back_and_so_is_everybody_who_has_it():
    whole = Partition.from_lists([[4], [4, 5], [0, 1, 2, 3, 5], [5]])
    for seed in range(20):
        made = set_aside(whole, 0.9, None, seed)
        rank = Streams(seed).generator("partition/validation").permutation(6)
        apart = {example for example in range(6) if rank[example] < 5}
        left = [own for own in trained(whole) if set(own) <= apart]
        apart -= {max(own, key=lambda example: rank[example]) for own in left}
        assert trained(made) == [[one for one in own if one not in apart] for own in trained(whole)]
        assert aside(made) == [[one for one in own if one in apart] for own in trained(whole)]


@pytest.mark.parametrize("plan", [*EVERY, Natural(holdout=0.2)], ids=lambda plan: type(plan).__name__)
@pytest.mark.parametrize(("share", "count"), [(0.01, 1), (0.2, None)])
def test_of_clients_that_are_set_aside_all_is_and_the_others_have_what_they_had(plan, share, count):
    whole = plan.split(DATA, 3)
    made = set_aside(whole, None, share, 3)
    chosen = made.validation_clients.tolist()
    assert len(chosen) == (count or math.floor(share * whole.clients + 0.5))
    assert aside(made) == [trained(whole)[client] for client in chosen]
    others = [client for client in range(whole.clients) if client not in chosen]
    assert trained(made) == [trained(whole)[client] for client in others]
    for order, offset in (("order_test", "offset_test"), ("holdout_order", "holdout_offset")):
        if getattr(whole, order) is not None:
            before = lists(getattr(whole, order), getattr(whole, offset))
            assert lists(getattr(made, order), getattr(made, offset)) == [before[client] for client in others]


def test_what_the_others_train_on_is_no_example_of_those_who_are_set_aside():
    whole = DirichletEqual(clients=10, alpha=1.0, size=40).split(DATA, 0)
    made = set_aside(whole, None, 0.2, 0)
    used = set(made.order.tolist())
    expected = [[one for one in trained(whole)[client] if one not in used] for client in made.validation_clients]
    assert aside(made) == expected
    assert 0 < len(made.validation_order) < 80


@pytest.mark.parametrize(
    ("given", "partition", "option", "words"),
    [
        ((0.2, 0.1), IID(clients=4).split(DATA, 0), "partition.validation", "leave one of the two out"),
        ((0.1, None), Partition.from_lists([[0, 1], [2], [3, 4, 5]]), "partition.validation", "none is set aside"),
        ((None, 0.9), Partition.from_lists([[0, 1], [2]]), "partition.validation_clients", "none is left"),
        ((None, 0.5), Partition.from_lists([[0, 1], [0, 1]]), "partition.validation_clients", "others train on"),
        (
            (0.5, None),
            set_aside(IID(clients=4).split(DATA, 0), 0.2, None, 0),
            "partition.validation",
            "by itself",
        ),
    ],
)
def test_what_cannot_be_set_aside_is_refused(given, partition, option, words):
    with pytest.raises(InputError, match=words) as caught:
        set_aside(partition, *given, 0)
    assert caught.value.option == option


def test_nothing_is_set_aside_where_nothing_is_asked_for():
    whole = IID(clients=4).split(DATA, 0)
    assert set_aside(whole, None, None, 0) is whole
    assert set_aside(whole, 0.0, 0.0, 0) is whole
    assert "validation" not in small_experiment(partition={"kind": "iid", "clients": 4}).resolved()["partition"]


def test_labels_for_validation_are_as_noisy_as_those_that_are_trained_on_and_those_held_out_are_clean():
    dealt = {"kind": "iid", "clients": 4, "holdout": 0.25, "validation": 0.5}
    clean, noisy = (
        build_problem(small_experiment(problem={"dataset": "digits"}, partition=dealt | {"noise": noise}))
        for noise in (0.0, 0.5)
    )
    changed = clean.data.y != noisy.data.y
    share = {name: float(changed[order].double().mean()) for name, order, _ in noisy.partition.rows()}
    assert share == pytest.approx({"training": 0.5, "validation": 0.5, "holdout": 0.0}, abs=0.06)


# What is measured.


def problem(**given: Any) -> Any:
    return supervised(**blobs(), model=mlp(), dtype=torch.float64, **given)


def outputs_of(made: Any, rows: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = made.module(made.initial())(made.data.x[rows])
    return found


def test_loss_and_accuracy_are_of_all_the_examples_set_aside_together_and_of_each_clients():
    made = problem(validation=0.3)
    found = made.evaluate(made.initial(), clients=True, on=("validation",))
    own = aside(made.partition)
    rows = [one for part in own for one in part]
    # Of 7, 3, 12, 1, 5 and 9 examples three tenths, to the nearest.
    assert [len(part) for part in own] == [2, 1, 4, 0, 2, 3]
    right = outputs_of(made, rows).argmax(dim=1) == made.data.y[rows]
    each = [float((outputs_of(made, part).argmax(dim=1) == made.data.y[part]).double().mean()) for part in own if part]
    loss = nn.functional.cross_entropy(outputs_of(made, rows), made.data.y[rows])
    assert found == pytest.approx(
        {
            "validation_loss": float(loss),
            "validation_accuracy": float(right.double().mean()),
            "validation_client_accuracy_mean": np.mean(each),
            "validation_client_accuracy_p10": np.quantile(each, 0.1),
            "validation_client_accuracy_worst": min(each),
        }
    )
    assert list(found) == made.measures(True, ("validation",))
    table = made.client_measures(made.initial(), on=("validation",))
    assert table["examples"].tolist() == [2, 1, 4, 0, 2, 3]
    assert table["accuracy"][table["examples"] > 0].tolist() == pytest.approx(each)


def test_beside_the_test_set_clients_are_judged_on_both_and_the_training_set_is_what_is_trained_on():
    made = problem(validation=0.3)
    params, on = made.initial(), ("test", "train", "validation")
    found = made.evaluate(params, clients=True, on=on)
    assert list(found) == made.measures(True, on)
    alone = made.evaluate(params, clients=True, on=("validation",)) | made.evaluate(params, clients=True)
    assert {name: found[name] for name in alone} == alone
    loss = nn.functional.cross_entropy(outputs_of(made, made.partition.order), made.data.y[made.partition.order])
    assert found["global_train_loss"] == pytest.approx(float(loss))
    assert made.sizes.tolist() == [5, 2, 8, 1, 3, 6]


@pytest.mark.parametrize("clients", [False, True])
def test_no_example_of_the_test_set_goes_through_the_model(clients):
    made = problem(validation=0.3, test_clients=[[0], [1], [2], [3], [4], [5]])
    before = made.evaluate(made.initial(), clients=clients, on=("validation",))
    made.x_test.fill_(math.nan)
    assert made.evaluate(made.initial(), clients=clients, on=("validation",)) == before
    assert math.isnan(made.evaluate(made.initial(), clients=False)["test_loss"])
    assert made.judged_examples(("validation",), clients=clients) == 12


def test_examples_set_aside_are_attacked_as_others_are():
    made = problem(validation=0.3)
    attack = FGSM(epsilon=0.0, domain="none")
    asked = Trial((attack,), ("validation",), None, True, Streams(0))
    found = made.attacked(made.initial(), asked)
    assert list(found) == made.attacked_measures(asked)
    clean = made.evaluate(made.initial(), clients=True, on=("validation",))
    assert found == pytest.approx(
        {name.replace("accuracy", "fgsm_accuracy").replace("loss", "fgsm_loss"): clean[name] for name in clean}
    )
    assert made.attacked_examples(asked) == 24


def test_of_clients_set_aside_each_is_judged_and_has_no_line_among_those_who_train():
    dealt = {"kind": "natural", "validation_clients": 0.25}
    made = build_problem(small_experiment(problem={"dataset": "synthetic"}, partition=dealt))
    found = made.evaluate(made.initial(), clients=True, on=("validation",))
    each = [
        float((outputs_of(made, part).argmax(dim=1) == made.data.y[part]).double().mean())
        for part in aside(made.partition)
    ]
    assert found["validation_client_accuracy_mean"] == pytest.approx(np.mean(each))
    assert found["validation_client_accuracy_worst"] == min(each)
    assert made.client_measures(made.initial(), on=("validation",)) == {}
    assert len(made.client_measures(made.initial(), on=("test", "validation"))["examples"]) == made.num_clients


# The user's own data.


def test_examples_for_validation_may_be_named():
    given = blobs()
    given["clients"] = [part[:-1] if len(part) > 1 else part for part in given["clients"]]
    named = [[6], [9], [21], [], [27], [36]]
    made = supervised(**given, model=mlp(), validation=named)
    assert aside(made.partition) == named
    assert made.sizes.tolist() == [6, 2, 11, 1, 4, 8]


@pytest.mark.parametrize(
    ("validation", "value"),
    [
        ([[0], [], [], [], [], []], "example 0"),
        ([[40], [], [], [], [], []], "own"),
        ([[6], []], "2 lists"),
        ([[], [], [], [], [], []], "no example"),
        (1.0, "1.0"),
        (0.0, "0.0"),
        ("all", "'all'"),
    ],
)
def test_what_cannot_be_for_validation_is_refused(validation, value):
    given = blobs()
    given["clients"] = [part[:-1] if len(part) > 1 else part for part in given["clients"]]
    with pytest.raises(InputError) as caught:
        supervised(**given, model=mlp(), validation=validation)
    assert str(caught.value.value) == value


def test_a_share_of_own_data_is_what_an_experiment_would_set_aside_under_seed_0():
    given = blobs()
    made = supervised(**given, model=mlp(), validation=0.4)
    whole = Partition.from_lists(given["clients"])
    assert aside(made.partition) == aside(set_aside(whole, 0.4, None, 0))
    with pytest.raises(InputError, match=r"^validation = 0\.01: clients have too few examples"):
        supervised(**given, model=mlp(), validation=0.01)


def tagger() -> nn.Module:
    return nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3))


@pytest.mark.parametrize("task", ["numbers", "tags", "tokens"])
def test_targets_of_every_task_are_measured_on_what_was_set_aside(task):
    generator = np.random.default_rng(0)
    x: Any = generator.normal(size=(12, 3))
    y: Any = {
        "numbers": generator.normal(size=12),
        "tags": generator.integers(0, 2, (12, 4)),
        "tokens": generator.integers(0, 3, (12, 4)),
    }[task]
    if task == "tokens":
        x = generator.integers(0, 5, (12, 4))
        y[2:5, 1] = IGNORED
    model = {"numbers": nn.Linear(3, 1), "tags": nn.Linear(3, 4), "tokens": tagger()}[task]
    kind = {"task": "tags"} if task == "tags" else {}
    made = supervised(x, y, model=model, clients=[range(6), range(6, 12)], validation=0.5, dtype=torch.float64, **kind)
    found = made.evaluate(made.initial(), clients=True, on=("validation",))
    rows = made.partition.validation_order
    outputs, targets = outputs_of(made, rows), made.data.y[rows]
    if task == "numbers":
        assert found["validation_loss"] == pytest.approx(float((outputs[:, 0] - targets).square().mean()))
        assert "validation_client_loss_p90" in found
        assert "validation_accuracy" not in found
    elif task == "tags":
        expected = nn.functional.binary_cross_entropy_with_logits(outputs, targets)
        assert found["validation_loss"] == pytest.approx(float(expected))
        assert found["validation_accuracy"] == pytest.approx(float(((outputs > 0) == (targets > 0)).double().mean()))
    else:
        each = [
            float(nn.functional.cross_entropy(one[own != IGNORED], own[own != IGNORED]))
            for one, own in zip(outputs, targets, strict=True)
        ]
        assert found["validation_loss"] == pytest.approx(np.mean(each))
        assert 0.0 <= found["validation_accuracy"] <= 1.0
    assert list(found) == made.measures(True, ("validation",))
