"""`problem.shared`: what alone crosses of a model, and what stays with the clients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import fedsim
from fedsim.core.errors import InputError
from fedsim.engine.cohort import PRIVATE
from fedsim.problems.supervised import Supervised
from fedsim.running.build import build_problem, build_simulation
from fedsim.running.simulation import Simulation
from fedsim.testing.problems import blobs, mlp, small_experiment

DEALT = {"kind": "iid", "clients": 4, "holdout": 0.2}
WEIGHTS, BIASES, HEAD = 64 * 64, 64, 64 * 10 + 10
"""Parameters of an MLP 64-64-10."""


def final(simulation: Simulation) -> torch.Tensor:
    """What is shared at the end of a run, [d]."""
    for _ in simulation:
        pass
    return simulation.params


def built(shared: Any = "all", rounds: int = 1, model: Any = "mlp", **tables: Any) -> Simulation:
    """Digits by four clients, and a model of 64-64-10."""
    told = {"model": model, "shared": shared} | tables.pop("problem", {})
    experiment = small_experiment(rounds, problem=told, partition=DEALT, **tables)
    return build_simulation(experiment, build_problem(experiment))


def own(shared: Any = "all", model: nn.Module | None = None, statistics: Any = None, **settings: Any) -> Supervised:
    """Six clients, of whom the first four are judged on five examples of the test set each."""
    tests = [*torch.arange(20).view(4, 5).tolist(), [], []]
    model = mlp() if model is None else model
    given = {**blobs(**settings), "test_clients": tests if not settings else None}
    return fedsim.supervised(**given, model=model, statistics=statistics, shared=shared, dtype=torch.float64)


def normed(kind: type[nn.Module] = nn.BatchNorm1d) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), kind(8), nn.ReLU(), nn.Linear(8, 3))


@pytest.mark.parametrize(
    ("shared", "numbers"),
    [
        ("all", 4_810),  # FedAvg, 19,240 bytes
        ("body", WEIGHTS + BIASES),  # FedPer, 16,640
        ("head", HEAD),  # LG-FedAvg, 2,600
        (["1.weight"], WEIGHTS),
        ({"not": ["1.weight", "3.bias"]}, 4_810 - WEIGHTS - 10),
    ],
)
def test_a_round_costs_four_bytes_for_each_number_that_is_shared(shared, numbers):
    simulation = built(shared)
    row = simulation.step()
    assert (row["bytes_up"], row["bytes_down"]) == (4 * 4 * numbers, 4 * 4 * numbers)
    assert simulation.state.params.shape == (numbers,)
    assert row["clients"] == 4


def test_the_bytes_of_the_three_methods_are_the_published_ones():
    assert [4 * built(shared).parts.problem.dimension for shared in ("all", "body", "head")] == [19_240, 16_640, 2_600]


def test_what_is_shared_by_default_is_all_to_the_bit():
    said, silent = built("all", rounds=2), small_experiment(2, problem={"model": "mlp"}, partition=DEALT)
    assert torch.equal(final(said), final(build_simulation(silent, build_problem(silent))))
    assert said.parts.problem.model.private is None


@pytest.mark.parametrize("shared", ["3.bias", "body", {"not": "3.bias"}])
def test_alone_a_client_trains_as_if_all_were_shared(shared):
    """However little crosses: local training, of one client that shares three numbers."""
    tables = {"selection": {"kind": "uniform", "fraction": 1.0}, "evaluation": {"every": 0, "clients": False}}
    whole, part = (build_simulation(small_experiment(4, **tables), own(what, sizes=(12,))) for what in ("all", shared))
    final(whole), final(part)
    private = part.parts.problem.model.private
    rows, _ = part.parts.engine.memories().look(PRIVATE, torch.arange(1))
    torch.testing.assert_close(private.join(part.state.params, rows)[0], whole.state.params, rtol=0.0, atol=1e-12)
    assert float((whole.state.params - whole.parts.problem.initial()).norm()) > 0.1


def test_an_experiment_says_what_is_shared_as_it_was_written():
    for shared in ("body", ["1", "3.bias"], {"not": "head"}, {"not": ["3.*"]}):
        table = small_experiment(problem={"shared": shared}).resolved()["problem"]
        assert table["shared"] == shared
        assert fedsim.experiment(problem=table).resolved()["problem"] == table
    assert small_experiment().resolved()["problem"]["shared"] == "all"


def test_in_python_and_in_a_file_the_same_is_shared():
    problem = own({"not": "head"})
    assert problem.layout.names == own("body").layout.names == own(["1"]).layout.names == ("1.weight", "1.bias")
    assert own().keeping("3").layout == problem.layout
    assert own().sharing("all").model.private is None


@pytest.mark.parametrize(
    ("shared", "statistics", "crossing"),
    [
        # Running statistics go by normalisation, whatever layers are shared.
        ("body", "averaged", 56 + 16 + 16),
        ("head", "averaged", 27 + 16),
        ("head", "pooled", 27 + 16),
        ("head", "frozen", 27),
        ("body", "local_statistics", 56 + 16),
        # What either keeps stays.
        ("body", "local", 56),
        ("all", "local", 56 + 27),
        ({"not": "norm"}, "averaged", 56 + 27 + 16),
        ({"not": "norm"}, "local_statistics", 56 + 27),
        ({"not": "norm"}, "local", 56 + 27),
    ],
)
def test_normalisation_and_what_is_shared_go_together(shared, statistics, crossing):
    assert own(shared, normed(), statistics).dimension == crossing


def test_layers_that_normalise_are_shared_alone_by_their_type():
    assert own("norm", normed(nn.LayerNorm)).layout.names == ("1.weight", "1.bias")


def test_what_stays_is_added_up():
    problem = own(model=normed(), statistics="local").keeping("head").keeping("0.bias")
    assert problem.layout.names == ("0.weight",)


@pytest.mark.parametrize(
    ("shared", "words"),
    [
        ("bodies", r"problem\.shared = bodies: is no parameter of this model, which has 1\.weight.* mean body\?$"),
        ([], r"problem\.shared = \[\]: nothing that is trained would be shared"),
        ({"not": "all"}, r"problem\.shared = {'not': 'all'}: nothing that is trained would be shared"),
        ("*", r"problem\.shared = \*: is all of the model; say all"),
        (["body", "head"], r"problem\.shared = \['body', 'head'\]: is all of the model; say all"),
        ({"not": []}, r"problem\.shared = {'not': \[\]}: is all of the model; say all"),
        (None, r"problem\.shared = None: give a word or a name"),
    ],
)
def test_a_selection_of_nothing_or_of_all_is_refused(shared, words):
    with pytest.raises(InputError, match=f"^{words}"):
        own(shared)


@pytest.mark.parametrize(
    ("shared", "words"),
    [
        ("statistics", r"problem\.shared = statistics: the model has no batch normalisation"),
        ("norm", r"problem\.shared = norm: the model has no layer that normalises"),
        (3, r"problem\.shared = 3: give a word"),
        ({"but": "head"}, r"problem\.shared = {'but': 'head'}: give a word or a name"),
        ([], r"problem\.shared = \[\]: nothing that is trained would be shared"),
        ({"not": ["body", "1", "3"]}, r"problem\.shared = {'not': \['body', '1', '3'\]}: nothing that is trained"),
        ({}, r"problem\.shared = {}: give a word or a name"),
        (["1", 3], r"problem\.shared = \['1', 3\]: give a word or a name"),
    ],
)
def test_a_file_that_shares_what_there_is_not_is_refused(shared, words):
    with pytest.raises(InputError, match=f"^{words}"):
        built(shared)


def test_of_a_model_that_is_one_layer_no_part_is_shared():
    with pytest.raises(InputError, match=r"^problem\.shared = head: is all of the model"):
        built("head", model="logistic")
    with pytest.raises(InputError, match=r"^problem\.shared = body: the model has one layer"):
        built("body", model="logistic")


def test_normalisation_that_keeps_all_that_is_shared_leaves_nothing():
    with pytest.raises(InputError, match=r"^problem\.shared = norm: nothing that is trained would be shared"):
        own("norm", normed(), "local")


def test_running_statistics_alone_are_nothing_to_share():
    with pytest.raises(InputError, match=r"^problem\.shared = \[\]: nothing that is trained would be shared"):
        own([], normed())
    with pytest.raises(InputError, match=r"^private = all: nothing that is trained would be shared"):
        own(model=normed()).keeping("all")


def test_nobody_is_judged_on_what_it_is_trained_on():
    experiment = small_experiment(1, problem={"shared": "body"}, partition={"kind": "iid", "clients": 4})
    problem = build_problem(experiment)
    with pytest.raises(InputError, match=r"^partition\.holdout = 0"):
        build_simulation(experiment, problem)
