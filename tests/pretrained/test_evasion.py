"""Attacks: margins against hand-made classifiers, the box and the clamping, and classifiers trained once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fedsim.core.errors import InputError
from fedsim.core.streams import Streams
from fedsim.plots.evasion import ADVERSARIAL
from fedsim.pretrained import classifiers
from fedsim.pretrained.classifiers import Fit, by_class
from fedsim.pretrained.evasion import Ensemble, Evasion, EvasionProblem, Goal, perturbed
from fedsim.problems.datasets import DataFolder, Dataset
from fedsim.problems.datasets.embedded import Digits
from fedsim.problems.models.dense import MLP
from fedsim.running.build import setting_of
from fedsim.testing.problems import DEVICE, small_experiment

SETTING = setting_of(small_experiment(engine={"device": DEVICE, "precision": "float64"}))
# Two classifiers of two inputs and three classes: logits (a, b, 0) and (2 a, 2 b, 1).
PARAMS = torch.tensor(
    [[1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0], [2.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0, 0.0, 1.0]], dtype=torch.float64
)


def linear(image=(0.6, 0.5), target=None, epsilon=0.3, **settings):
    ensemble = Ensemble(nn.Linear(2, 3), PARAMS.to(DEVICE), (2,))
    return EvasionProblem(
        ensemble, torch.tensor(image, dtype=torch.float64, device=DEVICE), Goal(0, target), epsilon, **settings
    )


def asked(problem, *points, clients=None):
    """Values [C, Q] of all clients, or of some, at the same points."""
    clients = torch.arange(problem.num_clients, device=DEVICE) if clients is None else torch.tensor(clients)
    x = torch.tensor(points, dtype=problem.dtype, device=DEVICE).expand(len(clients), -1, -1)
    return problem.query(clients.to(DEVICE), x, Streams(0), 0, 0)


def built(**options):
    return Evasion(**({"epochs": 6, "lr": 0.02} | options)).build(SETTING)


def test_margins_are_those_of_hand_made_classifiers():
    values = asked(linear(), (0.5, 0.5), (0.0, 1.0), (1.0, 0.5))
    # (0.6, 0.5): 0.6 - 0.5 and 1.2 - 1. (0.3, 0.8): 0.3 - 0.8 and 0.6 - 1.6. (0.9, 0.5): 0.9 - 0.5 and 1.8 - 1.
    expected = torch.tensor([[0.1, -0.5, 0.4], [0.2, -1.0, 0.8]], dtype=torch.float64, device=DEVICE)
    torch.testing.assert_close(values, expected)


def test_with_a_target_the_margin_is_what_the_target_lacks():
    values = asked(linear(target=1), (0.5, 0.5), (0.0, 1.0), (0.0, 0.0))
    # (0.6, 0.5): 0.6 - 0.5 and 1.2 - 1. (0.3, 0.8): 0.3 - 0.8 and 1 - 1.6. (0.3, 0.2): 0.3 - 0.2 and 1 - 0.4.
    expected = torch.tensor([[0.1, -0.5, 0.1], [0.2, -0.6, 0.6]], dtype=torch.float64, device=DEVICE)
    torch.testing.assert_close(values, expected)


def test_pixels_stay_between_black_and_white():
    values = asked(linear(image=(0.9, 0.1)), (1.0, 0.0), clients=[0])
    # (1.2, -0.2) is clamped to (1, 0): 1 - 0, where it would be 1.2 - 0.
    assert values.item() == pytest.approx(1.0)


def test_a_point_outside_the_box_is_taken_for_the_nearest_inside():
    problem = linear()
    assert problem.bounds == (0.0, 1.0)
    assert torch.equal(asked(problem, (-3.0, 7.0)), asked(problem, (0.0, 1.0)))


@pytest.mark.parametrize(
    ("point", "value", "share"),
    [
        ((0.5, 0.6), 0.06, 0.0),  # pixels (0.6, 0.56): margins 0.6 - 0.56 and 1.2 - 1.12
        ((0.5, 0.7), -0.03, 1.0),  # pixels (0.6, 0.62): margins 0.6 - 0.62 and 1.2 - 1.24
        ((0.0, 0.0), -0.15, 0.5),  # pixels (0.3, 0.2): margins 0.3 - 0.2 and 0.6 - 1
    ],
)
def test_an_attack_succeeds_where_the_mean_margin_is_below_0(point, value, share):
    found = linear().evaluate(torch.tensor(point, dtype=torch.float64, device=DEVICE), clients=False)
    assert found["value"] == pytest.approx(value)
    assert found["attack_success"] == float(value < 0)
    assert found["success_share"] == share
    assert set(found) == set(linear().measures(False))


def test_a_colour_image_is_changed_by_one_plane():
    image = torch.full((1, 3, 2, 2), 0.5)
    image[0, 1] = 0.95
    changed = perturbed(image, torch.tensor([0.0, 0.5, 0.75, 1.0]), 0.1) - image
    plane = torch.tensor([[-0.1, 0.0], [0.05, 0.1]])
    torch.testing.assert_close(changed[0, 0], plane)
    torch.testing.assert_close(changed[0, 2], plane)
    torch.testing.assert_close(changed[0, 1], plane.clamp(max=0.05))  # 0.95 has 0.05 to white
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    ensemble = Ensemble(module, torch.zeros(1, 26, device=DEVICE), (3, 2, 2))
    assert EvasionProblem(ensemble, image[0].to(DEVICE), Goal(0), 0.1).dimension == 4


def test_each_client_has_its_portion_of_the_classes():
    labels = np.arange(100) % 10
    partition = by_class(labels, 10, 10, 0.7, np.random.default_rng(0))
    for client in range(10):
        held = np.bincount(labels[partition.indices(client)], minlength=10)
        # Ten examples of each class for its seven owners: one or two each.
        assert set(np.flatnonzero(held)) == {(client + more) % 10 for more in range(7)}
        assert held[held > 0].max() <= 2
    assert sorted(partition.order) == list(range(100))


def test_fewer_clients_than_classes_are_spread_over_them():
    labels = np.arange(60) % 6
    partition = by_class(labels, 6, 3, 0.34, np.random.default_rng(0))
    # int(6 * 0.34) = 2 classes each, from 0, 2 and 4 on.
    owned = [sorted(set(labels[partition.indices(client)].tolist())) for client in range(3)]
    assert owned == [[0, 1], [2, 3], [4, 5]]


def test_a_portion_is_not_cut_by_rounding():
    # 100 * 0.29 is 28.999999999999996 in floating point.
    labels = np.arange(2900) % 100
    partition = by_class(labels, 100, 100, 0.29, np.random.default_rng(0))
    assert {len(set(labels[partition.indices(client)])) for client in range(100)} == {29}


def test_a_client_without_examples_is_refused():
    with pytest.raises(InputError, match=r"^problem.clients = 3: client \d gets no example"):
        by_class(np.zeros(2, dtype=np.int64), 1, 3, 1.0, np.random.default_rng(0))


def test_trained_classifiers_know_their_classes(tmp_path):
    data = Digits().load(DataFolder())
    partition = by_class(data.y, 10, 5, 0.4, np.random.default_rng(0))
    options = Fit(epochs=15, batch_size=16, lr=0.01, optimizer="adam")
    module, params = classifiers.classifiers(data, partition, MLP(), options, 0, folder=tmp_path)
    ensemble = Ensemble(module, params, (64,))
    logits = ensemble.logits(range(5), torch.from_numpy(data.x_test).expand(5, -1, -1))
    for client in range(5):
        own = np.isin(data.y_test, [(2 * client + more) % 10 for more in range(4)])
        right = logits[client].argmax(dim=1).numpy() == data.y_test
        assert right[own].mean() > 0.9
        assert right[~own].sum() == 0  # a class that it has never seen is never its answer


def test_cached_classifiers_equal_fresh_ones(tmp_path, monkeypatch):
    data = Digits().load(DataFolder())
    partition = by_class(data.y, 10, 3, 0.7, np.random.default_rng(0))

    def made(seed=0, folder=tmp_path):
        return classifiers.classifiers(data, partition, MLP(hidden=(8,)), Fit(epochs=1), seed, DEVICE, folder)[1]

    fresh = made()
    (file,) = tmp_path.iterdir()
    assert torch.equal(made(folder=tmp_path / "other"), fresh)
    assert not torch.equal(made(seed=1), fresh)
    file.write_bytes(file.read_bytes()[:-4])  # damaged: made again
    assert torch.equal(made(), fresh)
    monkeypatch.setattr(classifiers, "train", None)
    assert torch.equal(made(), fresh)


def test_each_classifier_starts_from_draws_of_its_own(tmp_path):
    data = Digits().load(DataFolder())
    partition = by_class(data.y, 10, 2, 1.0, np.random.default_rng(0))
    still = Fit(epochs=1, lr=1e-12)
    _, params = classifiers.classifiers(data, partition, MLP(hidden=(8,)), still, 0, DEVICE, tmp_path)
    # Weights uniform in +-1/8 and +-1/sqrt(8): two draws of one differ by a third of the width on average.
    assert (params[0] - params[1]).abs().mean() > 0.05


def test_a_training_that_diverges_and_a_model_with_running_statistics_are_refused(tmp_path):
    data = Digits().load(DataFolder())
    partition = by_class(data.y, 10, 2, 1.0, np.random.default_rng(0))
    with pytest.raises(InputError, match=r"^problem.lr = 1e\+30"):
        classifiers.classifiers(data, partition, MLP(), Fit(epochs=1, lr=1e30), 0, DEVICE, tmp_path)
    with pytest.raises(InputError, match=r"^problem\.model = mlp: these classifiers have no running statistics"):
        classifiers.classifiers(data, partition, MLP(norm="batch"), Fit(epochs=1), 0, DEVICE, tmp_path)


def test_a_build_depends_on_its_own_seed_alone():
    # One client has all examples, whatever the seed that deals them: what differs is its training.
    first, again, other = (built(clients=1, portion=1.0, training_seed=seed) for seed in (0, 0, 1))
    point = torch.linspace(0.2, 0.8, 64).tolist()
    assert torch.equal(asked(first, point), asked(again, point))
    assert not torch.equal(asked(first, point), asked(other, point))


def test_the_image_is_one_that_starts_with_f_above_0():
    data = Digits().load(DataFolder())
    for start in (0.5, 0.0):
        chosen = [built(image=number, start=start, portion=1.0) for number in range(3)]
        for problem in chosen:
            assert problem.evaluate(problem.initial(), clients=False)["value"] >= 0
            assert problem.initial().unique().tolist() == [start]
        places = [
            int((torch.from_numpy(data.x_test) == problem.image.cpu()).all(dim=1).nonzero()) for problem in chosen
        ]
        # Those left out between the first and the third do not qualify.
        for place in range(places[2]):
            goal = Goal(int(data.y_test[place]))
            image = torch.from_numpy(data.x_test[place]).to(chosen[0].image)
            value = EvasionProblem(chosen[0].ensemble, image, goal, 0.3, start=start)
            at_start = value.evaluate(value.initial(), clients=False)["value"]
            assert (at_start >= 0) == (place in places)


def test_with_a_target_images_of_its_class_are_left_out():
    # Two classifiers of ten know of threes, so that most images, threes too, are far from being taken for one.
    labels = {built(target=3, portion=0.2, image=number).goal.label for number in range(20)}
    assert labels == set(range(10)) - {3}


def test_no_row_depends_on_who_else_is_asked(monkeypatch):
    problem = built(clients=4)
    x = torch.rand(4, 5, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    clients = torch.arange(4, device=DEVICE)
    together = problem.query(clients, x, Streams(0), 0, 0)
    assert torch.equal(problem.query(clients[2:3], x[2:3], Streams(0), 0, 0), together[2:3])
    assert torch.equal(problem.query(clients.flip(0), x.flip(0), Streams(0), 0, 0), together.flip(0))
    assert problem.query(clients[:0], x[:0], Streams(0), 0, 0).shape == (0, 5)
    monkeypatch.setattr(problem.ensemble, "_at_once", 2)  # 5 images in parts of 2, 2 and 1
    torch.testing.assert_close(problem.query(clients, x, Streams(0), 0, 0), together)


def test_noise_is_added_to_answers_but_not_to_measures():
    plain, noisy = built(), built(noise=0.5)
    point = [0.5] * 64
    assert not torch.equal(asked(plain, point), asked(noisy, point))
    x = plain.initial()
    assert plain.evaluate(x, clients=True) == noisy.evaluate(x, clients=True)


def test_the_picture_is_drawn(tmp_path):
    problem = built()
    problem.illustrate(lambda name: tmp_path / name, problem.initial())
    assert (tmp_path / ADVERSARIAL).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "breast_cancer"}, "problem.dataset = breast_cancer: its inputs lie in"),
        ({"target": 10}, "problem.target = 10: name a class of 0 .. 9"),
        ({"image": 360}, "problem.image = 360: only"),
        ({"dataset": "nowhere"}, "dataset.kind = nowhere: not one of the installed"),
        ({"model": "cnn"}, "problem.model = cnn: needs images"),
        ({"portion": 1.5}, "portion = 1.5:"),
        ({"epsilon": 0.0}, "epsilon = 0.0:"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(options, message):
    with pytest.raises(InputError) as error:
        built(**options)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_characters_are_refused():
    data = Dataset("text", *[np.zeros((4, 3), np.int64), np.zeros(4, np.int64)] * 2, num_classes=2, vocabulary=2)
    with pytest.raises(InputError, match=r"^problem.dataset = text: is not of numbers in classes"):
        Evasion()._check(data)


def test_mnist(data_dir: Path):
    setting = replace(SETTING, dtype=torch.float32, folder=DataFolder(data_dir))
    problem = Evasion(dataset="mnist", clients=2, portion=1.0, epochs=1, batch_size=512, lr=0.01).build(setting)
    assert problem.dimension == 784
    assert problem.evaluate(problem.initial(), clients=False)["value"] >= 0
    assert problem.image.shape == (1, 28, 28)
