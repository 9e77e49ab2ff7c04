"""Clients who never take part: which they are, and that nobody's training or judging has anything of theirs."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from fedsim.core.errors import InputError
from fedsim.problems.datasets import Dataset
from fedsim.problems.own_data import supervised
from fedsim.problems.partitions.base import Partition
from fedsim.problems.partitions.dirichlet_equal import DirichletEqual
from fedsim.problems.partitions.library import IID, Dirichlet, Shards
from fedsim.problems.partitions.natural import Natural
from fedsim.problems.partitions.newcomers import parted_newcomers
from fedsim.problems.partitions.validation import set_aside
from fedsim.running.build import build_problem, build_simulation
from fedsim.testing.problems import blobs, mlp, small_experiment

DATA = Dataset(
    "labelled",
    np.zeros((240, 1), np.float32),
    np.random.default_rng(2).integers(0, 6, 240),
    np.zeros((60, 1), np.float32),
    np.random.default_rng(3).integers(0, 6, 60),
    6,
    np.sort(np.random.default_rng(1).integers(0, 12, 240)),
    np.arange(60) % 12,
)
EVERY = [
    IID(clients=20, holdout=0.2),
    Dirichlet(clients=20, alpha=0.5),
    Shards(clients=20),
    Natural(holdout=0.2),
    DirichletEqual(clients=20, alpha=0.5, replace=False),
]
ROWS = ("training", "test", "holdout", "validation")
NEW = [1, 4]
"""Of the six clients of `blobs`, with 3 and 5 examples."""


def rows(partition: Partition) -> dict[str, list[list[int]]]:
    return {
        name: [order[begin:end].tolist() for begin, end in pairwise(offset)] for name, order, offset in partition.rows()
    }


@pytest.mark.parametrize("plan", EVERY, ids=lambda plan: type(plan).__name__)
@pytest.mark.parametrize(("share", "count"), [(0.01, 1), (0.26, None)])
def test_each_has_what_it_was_dealt_and_so_have_the_others(plan, share, count):
    whole = set_aside(plan.split(DATA, 3), 0.2, None, 3)
    others, theirs = parted_newcomers(whole, share, 3)
    assert theirs is not None
    assert theirs.clients == (count or math.floor(share * whole.clients + 0.5))
    before, first, second = rows(whole), rows(others), rows(theirs)
    new = [before["training"].index(own) for own in second["training"]]
    assert new == sorted(new)
    left = [client for client in range(whole.clients) if client not in new]
    for name, dealt in before.items():
        assert second[name] == [dealt[client] for client in new]
        assert first[name] == [dealt[client] for client in left]


def test_the_draw_is_the_seeds_and_another_than_that_for_validation():
    whole = IID(clients=20).split(DATA, 3)
    chosen = [rows(parted_newcomers(whole, 0.3, seed)[1])["training"] for seed in (3, 3, 4)]
    assert chosen[0] == chosen[1] != chosen[2]
    apart = set_aside(whole, None, 0.3, 3)
    assert rows(apart)["validation"] != chosen[0]


def test_what_others_train_on_is_nothing_to_judge_newcomers_by_and_they_may_train_on_it():
    whole = set_aside(DirichletEqual(clients=20, alpha=0.5, size=30, holdout=0.3).split(DATA, 0), 0.1, None, 0)
    others, theirs = parted_newcomers(whole, 0.2, 0)
    used, before = set(others.order.tolist()), rows(whole)
    new = [before["training"].index(own) for own in rows(theirs)["training"]]
    for name in ("holdout", "validation"):
        assert rows(theirs)[name] == [[one for one in before[name][client] if one not in used] for client in new]
    assert 0 < len(theirs.holdout_order) < sum(len(before["holdout"][client]) for client in new)
    assert used & set(theirs.order.tolist())


def test_of_nobody_there_is_no_partition():
    whole = IID(clients=4).split(DATA, 0)
    assert parted_newcomers(whole, None, 0) == (whole, None)
    assert parted_newcomers(whole, 0.0, 0) == (whole, None)
    assert "newcomers" not in small_experiment(partition={"kind": "iid", "clients": 4}).resolved()["partition"]


@pytest.mark.parametrize(
    ("partition", "share", "words"),
    [
        (IID(clients=2).split(DATA, 0), 0.9, r"^partition\.newcomers = 0\.9: of 2 clients 2 .* none is left"),
        (set_aside(IID(clients=9).split(DATA, 0), None, 0.2, 0), 0.2, r"^partition\.newcomers = 0\.2: .* set aside"),
    ],
)
def test_who_cannot_be_taken_out_is_refused(partition, share, words):
    with pytest.raises(InputError, match=words):
        parted_newcomers(partition, share, 0)


def test_labels_that_newcomers_train_on_are_as_noisy_as_others_and_those_that_judge_them_are_clean():
    dealt = {"kind": "iid", "clients": 4, "holdout": 0.4, "newcomers": 0.5}
    clean, noisy = (
        build_problem(small_experiment(problem={"dataset": "digits"}, partition=dealt | {"noise": noise}))
        for noise in (0.0, 0.5)
    )
    changed = clean.data.y != noisy.data.y
    share = {name: float(changed[order].double().mean()) for name, order, _ in noisy.newcomers.partition.rows()}
    assert share == pytest.approx({"training": 0.5, "holdout": 0.0}, abs=0.06)


# The problem.


def problem(**given: Any) -> Any:
    return supervised(**(blobs() | given), model=mlp(), dtype=torch.float64)


def with_newcomers(**given: Any) -> Any:
    return problem(test_clients=[[one] for one in range(6)], newcomers=NEW, **given)


def test_newcomers_are_numbered_after_the_others_and_strategies_and_selectors_know_of_none():
    made, lists = with_newcomers(), blobs()["clients"]
    assert (made.num_clients, made.sizes.tolist()) == (4, [7, 12, 1, 9])
    assert made.sizes_on_device.tolist() == [7, 12, 1, 9, 3, 5]
    assert made.largest == 12
    assert made.newcomers.data.order.tolist() == [*lists[1], *lists[4]]
    assert made.newcomers.data.begin.tolist() == [0, 3]
    for client, own in enumerate([lists[0], lists[2], lists[3], lists[5], lists[1], lists[4]]):
        begin = int(made.data.begin[client])
        assert made.data.order[begin : begin + int(made.data.count[client])].tolist() == own.tolist()


@pytest.mark.parametrize("on", [("train",), ("test", "train", "validation")])
def test_the_model_for_all_is_judged_without_them(on):
    lists = blobs()["clients"]
    lists = [own[:-1] if len(own) > 1 else own for own in lists]
    apart = [own[-1:] if len(own) > 1 else [] for own in blobs()["clients"]]
    tests = [[one] for one in range(6)]
    made = problem(clients=lists, validation=apart, test_clients=tests, newcomers=NEW)
    left = [[part[client] for client in (0, 2, 3, 5)] for part in (lists, apart, tests)]
    alone = problem(clients=left[0], validation=left[1], test_clients=left[2])
    params = made.initial()
    assert made.evaluate(params, clients=True, on=on) == alone.evaluate(params, clients=True, on=on)
    assert made.measures(True, on) == alone.measures(True, on)
    assert made.judged_examples(on, clients=True) == alone.judged_examples(on, clients=True)
    assert made.labels().tolist() == alone.labels().tolist()
    table, plain = made.client_measures(params), alone.client_measures(params)
    assert {name: values.tolist() for name, values in table.items()} == {
        name: values.tolist() for name, values in plain.items()
    }


def test_without_tests_clients_are_judged_on_what_those_who_take_part_train_on():
    made = problem(newcomers=NEW)
    rows, count = made.judged.own()
    lists = blobs()["clients"]
    assert rows.numbers.tolist() == np.concatenate([lists[client] for client in (0, 2, 3, 5)]).tolist()
    assert count.tolist() == [7, 12, 1, 9]
    assert not made.judged.has_own(("test",))
    assert not made.newcomers.has_own(("test",))


def test_training_is_that_of_the_others_alone():
    """To the bit, for the client with most examples is one of them."""
    lists = blobs()["clients"]
    alone = problem(clients=[lists[client] for client in (0, 2, 3, 5)])
    found = []
    for own in (with_newcomers(), alone):
        client = {"kind": "scaffold", "epochs": 2, "batch_size": 4, "lr": 0.1}
        made = build_simulation(
            small_experiment(3, strategy="scaffold", client=client, selection={"kind": "uniform", "count": 2}), own
        )
        list(made)
        found.append((made.state.params, made.parts.engine.trace.participation))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]


# The user's own data.


def test_a_share_of_own_data_is_what_an_experiment_would_take_out_under_seed_0():
    made = problem(newcomers=0.4)
    _, theirs = parted_newcomers(Partition.from_lists(blobs()["clients"]), 0.4, 0)
    assert rows(made.newcomers.partition) == rows(theirs)
    assert len(rows(theirs)["training"]) == 2


@pytest.mark.parametrize("given", [[4, 1], [1, 4, 4], np.array([1, 4], np.int32), iter([1, 4]), torch.tensor([1, 4])])
def test_newcomers_may_be_numbered(given):
    assert problem(newcomers=given).newcomers.data.count.tolist() == [3, 5]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (0.0, r"^newcomers = 0\.0: give a share above 0"),
        (1.0, r"^newcomers = 1\.0: give a share"),
        (0.99, r"^newcomers = 0\.99: of 6 clients 6 would"),
        ([], r"^newcomers = \[\]: give a share"),
        (range(6), r"^newcomers = range\(0, 6\): .* leave some others"),
        ([6], r"^newcomers = 6: clients are numbered from 0 to 5"),
        ([-1, 2], r"^newcomers = -1: clients are numbered"),
        ("all", r"^newcomers = 'all': give"),
        (["first"], r"^newcomers = \['first'\]: give"),
        ([0.5], r"^newcomers = \[0\.5\]: give"),
        (2, r"^newcomers = 2: give"),
        ([[1], [2, 3]], r"^newcomers = \[\[1\], \[2, 3\]\]: give"),
    ],
)
def test_what_names_no_newcomers_is_refused(given, said):
    with pytest.raises(InputError, match=said):
        problem(newcomers=given)
