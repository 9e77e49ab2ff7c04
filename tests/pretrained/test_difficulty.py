"""Difficulty partitions: by the expert's losses, within classes or across them, and the control at random."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import numpy as np
import pytest

import fedsim
from fedsim.client.curriculum import Expert
from fedsim.core.errors import InputError
from fedsim.core.streams import Streams
from fedsim.pretrained import classifiers
from fedsim.pretrained.difficulty import Difficulty
from fedsim.pretrained.expert import expert_losses
from fedsim.problems.datasets import DataFolder, Dataset
from fedsim.problems.datasets.embedded import Digits
from fedsim.problems.modules import build_model
from fedsim.problems.partitions.base import Partition
from fedsim.problems.partitions.cached import cached_partition
from fedsim.problems.supervised import Supervised
from fedsim.running.build import build_problem

EXPERT = Expert(epochs=3, lr=0.05)
DATA = Digits().load(DataFolder())


@pytest.fixture(autouse=True)
def own_experts(tmp_path_factory, monkeypatch):
    """Experts that other tests of this file have trained are read."""
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path_factory.getbasetemp() / "difficulty"))


def planned(**options):
    return Difficulty(**({"clients": 8, "model": "logistic", "expert": EXPERT} | options))


def losses(data=DATA, chosen=None):
    """What a logistic expert says of every example of the data, when it has learnt from those chosen."""
    everybody = Partition.from_lists([np.arange(len(data.y)) if chosen is None else chosen])
    model = build_model(planned().made["model"], data, Streams(0))
    return expert_losses(Supervised(data, everybody, model), EXPERT).numpy()


def counts(made, data=DATA):
    return np.array([np.bincount(data.y[made.indices(client)], minlength=10) for client in range(made.clients)])


def means(made, hard):
    return np.array([hard[made.indices(client)].mean() for client in range(made.clients)])


@pytest.mark.parametrize("order", ["increasing", "random"])
@pytest.mark.parametrize("stratified", [True, False])
def test_every_example_once_in_equal_shares_and_the_same_again(order, stratified):
    plan = planned(order=order, stratified=stratified)
    made = plan.split(DATA, 3)
    assert sorted(made.order.tolist()) == list(range(len(DATA.y)))
    assert np.ptp(made.sizes) <= 1
    assert np.array_equal(plan.split(DATA, 3).order, made.order)
    assert not np.array_equal(plan.split(DATA, 4).order, made.order) or order == "increasing"


def test_a_plain_sort_cuts_the_losses_into_ranges():
    made, hard = planned(stratified=False).split(DATA, 0), losses()
    for client in range(7):
        assert hard[made.indices(client)].max() <= hard[made.indices(client + 1)].min()


def test_stratified_the_clients_differ_in_difficulty_within_every_class():
    made, hard = planned().split(DATA, 0), losses()
    for label in range(10):
        own = [hard[row[DATA.y[row] == label]] for row in map(made.indices, range(8))]
        for easier, harder in pairwise(own):
            assert easier.max() <= harder.min()
    assert (np.diff(means(made, hard)) > 0).all()


def test_stratified_every_client_has_the_classes_in_proportion():
    share = np.bincount(DATA.y) / 8
    # A cut between two clients may fall between the classes' turns at the same share of each.
    assert np.abs(counts(planned().split(DATA, 0)) - share).max() <= 2
    # What that is good for: of a plain sort some client has hardly any of a class that is common with others.
    plain = counts(planned(stratified=False).split(DATA, 0))
    assert plain.min() <= 0.3 * share.min()
    assert plain.max() >= 2 * share.max()


@pytest.mark.parametrize("stratified", [True, False])
def test_the_control_differs_in_nothing_and_trains_no_expert(stratified, monkeypatch):
    hard = losses()
    monkeypatch.setattr(classifiers, "train", None)
    monkeypatch.setenv("FEDSIM_CACHE", "/nowhere")
    made = planned(order="random", stratified=stratified).split(DATA, 0)
    spread, sorted_spread = np.ptp(means(made, hard)), np.ptp(means(planned_increasing(hard), hard))
    assert spread < 0.3 * sorted_spread
    if stratified:
        assert np.abs(counts(made) - np.bincount(DATA.y) / 8).max() <= 2


def planned_increasing(hard):
    return Partition.from_lists(np.array_split(np.argsort(hard), 8))


def test_examples_that_are_not_dealt_teach_the_expert_nothing():
    made = planned(examples=400, stratified=False).split(DATA, 0)
    assert len(made.order) == len(set(made.order.tolist())) == 400
    hard = losses(chosen=made.order)
    for client in range(7):
        assert hard[made.indices(client)].max() <= hard[made.indices(client + 1)].min()
    # Those that are dealt are those of any partition of 400.
    assert set(made.order.tolist()) == set(planned(examples=400, order="random").split(DATA, 0).order.tolist())


def test_a_holdout_is_taken_of_each_client():
    made = planned(holdout=0.25).split(DATA, 0)
    whole = planned().split(DATA, 0)
    for client in range(8):
        held = made.holdout_order[made.holdout_offset[client] : made.holdout_offset[client + 1]]
        assert len(held) == int(whole.sizes[client] * 0.25 + 0.5)
        assert sorted([*made.indices(client), *held]) == sorted(whole.indices(client))


def test_data_with_the_same_labels_and_other_inputs_are_dealt_otherwise(tmp_path):
    turned = dataclasses.replace(DATA, x=np.ascontiguousarray(DATA.x[::-1]))
    plan = planned(expert=Expert(epochs=1))
    first, other = (cached_partition(plan, data, 0, tmp_path) for data in (DATA, turned))
    assert not np.array_equal(first.order, other.order)
    assert np.array_equal(cached_partition(plan, DATA, 0, tmp_path).order, first.order)


def test_the_expert_decides(tmp_path):
    made = planned().split(DATA, 0).order
    assert not np.array_equal(planned(expert=Expert(epochs=1)).split(DATA, 0).order, made)
    assert not np.array_equal(planned(model={"kind": "mlp", "hidden": [8]}).split(DATA, 0).order, made)


TABLE = {"kind": "difficulty", "clients": 8, "model": "logistic", "expert": {"epochs": 3, "lr": 0.05}}


def test_label_noise_comes_after_the_partition():
    clean, noisy = (
        build_problem(fedsim.experiment(rounds=1, partition=TABLE | {"noise": noise}, problem={"dataset": "digits"}))
        for noise in (0.0, 0.4)
    )
    assert np.array_equal(clean.partition.order, noisy.partition.order)
    changed = (clean.data.y != noisy.data.y).float()
    assert changed.mean().item() == pytest.approx(0.4, abs=0.001)
    by_client = [changed[noisy.partition.indices(client)].mean().item() for client in range(8)]
    # 180 examples a client: a standard deviation of sqrt(0.24 / 180) = 0.037.
    assert max(abs(share - 0.4) for share in by_client) < 0.13


def test_an_experiment_says_what_its_expert_was():
    experiment = fedsim.experiment(rounds=1, partition=TABLE)
    table = experiment.resolved()["partition"]
    assert table["model"] == {"kind": "logistic", "zero": True}
    assert table["expert"] == {**dataclasses.asdict(Expert()), "epochs": 3, "lr": 0.05}
    assert fedsim.experiment(rounds=1, partition=table).partition == dataclasses.replace(
        experiment.partition, model=table["model"]
    )


def regression():
    x, y = np.zeros((20, 2), np.float32), np.zeros(20, np.float32)
    return Dataset("numbers", x, y, x, y, num_classes=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: planned(clients=5000).split(DATA, 0), "partition.clients = 5000: 1438 training examples are dealt"),
        (lambda: planned(examples=5).split(DATA, 0), "partition.clients = 8: 5 training examples are dealt"),
        (lambda: planned(examples=5000).split(DATA, 0), "partition.examples = 5000: there are 1438 training examples"),
        (lambda: planned(order="decreasing"), "order = decreasing:"),
        (lambda: planned(model="nothing"), "model.kind = nothing: not one of the installed models"),
        (lambda: planned(model="cnn").split(DATA, 0), "problem.model = cnn:"),
        (lambda: planned(expert={"epochs": 0}), "expert.epochs = 0:"),
        (lambda: planned(expert={"rate": 0.1}), "expert.rate = 0.1: no such option here"),
        (lambda: planned(model="mlp", expert=Expert(lr=1e30)).split(DATA, 0), "partition.expert.lr = 1e+30:"),
        (lambda: planned().split(regression(), 0), "partition.stratified = True: "),
        (lambda: planned(stratified=False).split(regression(), 0), "partition.expert.label_smoothing = 0.1:"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(make, message):
    with pytest.raises(InputError) as error:
        make()
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
