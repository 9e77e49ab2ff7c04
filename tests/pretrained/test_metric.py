"""Metrics of a changed network: held equal to scikit-learn's, and to the network run by itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn import metrics
from sklearn.preprocessing import StandardScaler
from torch import nn

from fedsim.core.errors import InputError
from fedsim.core.streams import Streams
from fedsim.pretrained import metric
from fedsim.pretrained.metric import Metric, MetricProblem, Scorer, macro
from fedsim.problems.datasets import DataFolder
from fedsim.problems.datasets.base import split_dataset
from fedsim.problems.datasets.covertype import Covertype
from fedsim.problems.datasets.embedded import Digits
from fedsim.problems.partitions.base import Partition
from fedsim.running.build import setting_of
from fedsim.testing.problems import DEVICE, small_experiment

SETTING = setting_of(small_experiment(engine={"device": DEVICE, "precision": "float64"}))
SCORES = {
    "precision": metrics.precision_score,
    "recall": metrics.recall_score,
    "f1": metrics.f1_score,
    "jaccard": metrics.jaccard_score,
}
SIZES = (5, 4, 3, 4)
PARAMETERS = 5 * 4 + 4 + 4 * 3 + 3 + 3 * 4 + 4


def by_sklearn(measure, true, predicted, classes):
    settings = {"average": "macro", "zero_division": 0, "labels": np.arange(classes)}
    return SCORES[measure](true, predicted, **settings)


def examples(count=40):
    generator = np.random.default_rng(3)
    return generator.normal(size=(count, SIZES[0])), generator.integers(0, SIZES[-1], count)


def scored(dimension, measure="f1", reach=2.0, **settings):
    """A random network and two clients: the first 25 of 40 examples, and the others."""
    x, y = examples()
    params = torch.from_numpy(np.random.default_rng(4).normal(size=PARAMETERS)).to(DEVICE)
    scorer = Scorer(SIZES, params, torch.from_numpy(x).to(DEVICE), torch.from_numpy(y).to(DEVICE), dimension)
    shards = Partition.from_lists([np.arange(25), np.arange(25, 40)])
    return MetricProblem(scorer, shards, measure, reach, **settings), params


def predicted(params, x):
    """What PyTorch's own layers say with these parameters [m]."""
    module = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 4)).double()
    nn.utils.vector_to_parameters(params.cpu(), module.parameters())
    return module(torch.from_numpy(x)).argmax(dim=1).numpy()


def points(problem, queries, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (problem.num_clients, queries, problem.dimension)
    return torch.rand(shape, dtype=problem.dtype, generator=generator).to(DEVICE)


def built(**options):
    return Metric(**options).build(SETTING)


@pytest.mark.parametrize("measure", SCORES)
@pytest.mark.parametrize("classes", [2, 5])
def test_macro_averages_are_those_of_scikit_learn(measure, classes):
    generator = np.random.default_rng(classes)
    true, guessed = generator.integers(0, classes, 50), generator.integers(0, classes, 50)
    # Of 5 classes, 4 never occurs, 3 is never predicted, 2 is predicted without occurring.
    true[true == 4], guessed[guessed >= 3] = 0, 1
    true[true == 2] = 3 if classes == 5 else 0
    confusion = torch.from_numpy(metrics.confusion_matrix(true, guessed, labels=np.arange(classes)))
    assert macro(confusion, measure).item() == pytest.approx(by_sklearn(measure, true, guessed, classes))


def test_macro_f1_by_hand():
    # True 0 0 0 1, predicted 0 0 1 1: F1 is 2*2/(3+2) = 0.8 and 2*1/(1+2) = 2/3; no third class, 0.
    confusion = torch.tensor([[2, 1, 0], [0, 1, 0], [0, 0, 0]])
    assert macro(confusion, "f1").item() == pytest.approx((0.8 + 2 / 3) / 3)


@pytest.mark.parametrize("measure", SCORES)
@pytest.mark.parametrize("dimension", [1, 16, 17, 20, 31, 32, PARAMETERS])
def test_functions_are_those_of_the_changed_network(measure, dimension):
    """The last layer has 16 parameters and the one before 15."""
    problem, params = scored(dimension, measure)
    at, (x, y) = points(problem, 3), examples()
    values = problem.query(torch.arange(2, device=DEVICE), at, Streams(0), 0, 0)
    for client, rows in enumerate((slice(0, 25), slice(25, 40))):
        for query in range(3):
            changed = params.clone()
            changed[-dimension:] += 2.0 * (2.0 * at[client, query] - 1.0)
            expected = 1.0 - by_sklearn(measure, y[rows], predicted(changed, x[rows]), 4)
            assert values[client, query].item() == pytest.approx(expected)
    assert len(values.unique()) > 1 or dimension == 1


@pytest.mark.parametrize(("dimension", "width"), [(16, 3), (17, 4), (31, 4), (32, 5)])
def test_what_no_query_changes_is_computed_once(dimension, width):
    """The layers read 5, 4 and 3 numbers of an example."""
    assert scored(dimension)[0].scorer.read.shape == (40, width)


def test_the_metric_is_measured_on_all_test_examples_at_once():
    problem, params = scored(16, "f1")
    x, y = examples()
    start = problem.initial()
    assert start.tolist() == [0.5] * 16
    found = problem.evaluate(start, clients=False)
    assert found["f1"] == pytest.approx(by_sklearn("f1", y, predicted(params, x), 4))
    both = [by_sklearn("f1", y[rows], predicted(params, x[rows]), 4) for rows in (slice(0, 25), slice(25, 40))]
    assert found["value"] == pytest.approx(1.0 - sum(both) / 2)
    assert set(found) == set(problem.measures(False))


def test_a_point_outside_the_box_is_taken_for_the_nearest_inside():
    problem, _ = scored(16)
    far = 5.0 * (2.0 * points(problem, 4) - 1.0)
    clients = torch.arange(2, device=DEVICE)
    inside = problem.query(clients, far.clamp(0.0, 1.0), Streams(0), 0, 0)
    assert torch.equal(problem.query(clients, far, Streams(0), 0, 0), inside)


def test_no_row_depends_on_who_else_is_asked(monkeypatch):
    problem, _ = scored(20)
    x, clients = points(problem, 5), torch.arange(2, device=DEVICE)
    together = problem.query(clients, x, Streams(0), 0, 0)
    assert torch.equal(problem.query(clients[1:], x[1:], Streams(0), 0, 0), together[1:])
    assert problem.query(clients[:0], x[:0], Streams(0), 0, 0).shape == (0, 5)
    monkeypatch.setattr(metric, "EVALUATED_AT_ONCE", 250)  # 25 examples by 4 numbers: two queries at once
    assert torch.equal(problem.query(clients, x, Streams(0), 0, 0), together)


def test_halves_are_standardized_by_the_training_half():
    whole = Digits().load(DataFolder())
    data = Metric()._halves(whole)
    assert len(data.x) + len(data.x_test) == 1797
    # Half of each class, rounded to the nearest: no class is off by more than one.
    assert np.abs(np.bincount(data.y) - np.bincount(data.y_test)).max() <= 1
    x, y = np.concatenate((whole.x, whole.x_test)), np.concatenate((whole.y, whole.y_test))
    raw = split_dataset("digits", x, y, 10, 0.5, 0)
    scaler = StandardScaler().fit(raw.x)
    np.testing.assert_allclose(data.x, scaler.transform(raw.x), atol=1e-5)
    np.testing.assert_allclose(data.x_test, scaler.transform(raw.x_test), atol=1e-4)


def test_shards_have_three_of_ten_classes_each():
    problem = built()
    assert problem.num_clients == 7
    for client, rows in enumerate(problem._rows):
        # int(10 * 0.3) = 3 from class 10 c // 7 on.
        held = {(client * 10 // 7 + more) % 10 for more in range(3)}
        assert set(problem.scorer.y[rows].tolist()) == held
    everybody = torch.cat(problem._rows)
    assert len(everybody.unique()) == len(everybody) == len(problem.scorer.y)


def test_a_trained_network_has_room_for_improvement_in_its_last_layer():
    problem = built()
    assert problem.dimension == (14 + 1) * 10
    found = problem.evaluate(problem.initial(), clients=False)
    assert 0.3 < found["f1"] < 0.8
    longer = built(epochs=20)
    assert longer.evaluate(longer.initial(), clients=False)["f1"] > 0.9


def test_a_build_depends_on_its_own_seeds_alone():
    first, again, other = built(), built(), built(training_seed=1)
    x, clients = points(first, 4), torch.arange(7, device=DEVICE)
    values = [problem.query(clients, x, Streams(0), 0, 0) for problem in (first, again, other)]
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])
    assert not torch.equal(first.scorer.y, built(split_seed=1).scorer.y)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dimension": 3000}, "problem.dimension = 3000: the network has 2534 parameters; take fewer"),
        ({"clients": 400}, "problem.clients = 400: client"),
        ({"dataset": "nowhere"}, "dataset.kind = nowhere: not one of the installed"),
        ({"measure": "accuracy"}, "measure = accuracy:"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(options, message):
    # 64 * 30 + 30 + 30 * 14 + 14 + 14 * 10 + 10 = 2534
    with pytest.raises(InputError) as error:
        built(**options)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_covertype_that_is_not_on_the_disk_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"^problem.dataset = covertype: is not on this disk"):
        Covertype().load(DataFolder(tmp_path))
