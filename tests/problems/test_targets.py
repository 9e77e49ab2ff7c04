"""Targets of every kind: one class an example, a token or a pixel; numbers; tags; on every executor."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fedsim
from fedsim.core.data_files import DataFolder
from fedsim.core.errors import InputError
from fedsim.engine.cohort import Cohort
from fedsim.nets.fused import fits
from fedsim.nets.losses import IGNORED, BinaryCrossEntropy, CrossEntropy
from fedsim.problems.datasets.arrays import NPZ
from fedsim.problems.datasets.base import Dataset
from fedsim.problems.datasets.tables import CSV
from fedsim.problems.partitions.dirichlet_equal import DirichletEqual
from fedsim.problems.partitions.library import IID, Dirichlet, Shards
from fedsim.testing.problems import DEVICE

ROWS, FEATURES = 11, 4
DRAW = np.random.default_rng(0)
X = DRAW.normal(size=(ROWS, 5, FEATURES))
CLIENTS = [range(3), range(3, 4), range(4, ROWS)]
CLASSES = DRAW.integers(0, 3, size=(ROWS, 5))
CLASSES[:, 3:][DRAW.random((ROWS, 2)) < 0.7] = IGNORED
TAGS = DRAW.integers(0, 2, size=(ROWS, 2))


class Tokens(nn.Module):
    """Of each of five tokens the logits of three classes, [B, 5, 3]."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(FEATURES, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.outer(torch.tanh(self.inner(x)))
        return found


class Pixels(nn.Module):
    """Images [B, 1, 5, 4] to logits of three classes at each pixel, [B, 5, 4, 3]."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(x).permute(0, 2, 3, 1)
        return found


def flat(outputs: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(5 * FEATURES, 6), nn.Tanh(), nn.Linear(6, outputs))


CASES: dict[str, dict[str, Any]] = {
    "a class a token": {"y": CLASSES, "model": Tokens},
    "a class a token, in a chain": {
        "y": CLASSES,
        "model": lambda: nn.Sequential(nn.Linear(FEATURES, 6), nn.Tanh(), nn.Linear(6, 3)),
    },
    "a class a pixel": {"x": X[:, None], "y": DRAW.integers(0, 3, size=(ROWS, 5, FEATURES)), "model": Pixels},
    "several numbers": {"y": DRAW.normal(size=(ROWS, 2)), "model": lambda: flat(2)},
    "one number of a row": {"y": DRAW.normal(size=(ROWS, 1)), "model": lambda: flat(1), "loss": "log_cosh"},
    "tags": {"y": TAGS, "task": "tags", "model": lambda: flat(2)},
}


def problem(name: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    given = {"x": X, "clients": CLIENTS, "dtype": torch.float64, "device": DEVICE, **CASES[name], **changes}
    return fedsim.supervised(**{**given, "model": given["model"]()})


def by_hand(name: str) -> Tensor:
    """The mean loss of the problem's first outputs, by PyTorch's own functions: of each example, then of all."""
    given = problem(name)
    with torch.no_grad():
        outputs, y = given.model.module(given.data.x), given.data.y
    if name.startswith("a class"):
        each = functional.cross_entropy(outputs.movedim(-1, 1), y, reduction="none").flatten(1)
        return (each.sum(dim=1) / (y != IGNORED).flatten(1).sum(dim=1)).mean()
    if name == "tags":
        return functional.binary_cross_entropy_with_logits(outputs, y)
    away = outputs - y
    return (away.cosh().log() if "row" in name else away.square()).mean()


@pytest.mark.parametrize("name", CASES)
def test_the_loss_is_pytorchs_of_what_counts(name):
    given = problem(name)
    found = given.evaluate(given.initial(), clients=False)
    assert found["test_loss"] == pytest.approx(float(by_hand(name)), rel=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_one_step_is_autograds_and_executors_agree(name):
    """All clients in one cohort, whose batches of the small ones are padded; a client of all examples by autograd."""
    ends = {}
    for executor in ("loop", "stacked"):
        client = {"kind": "sgd", "epochs": 2, "batch_size": 4, "lr": 0.1, "optimizer": {"kind": "sgd", "momentum": 0.5}}
        made = fedsim.run(
            rounds=2, problem=problem(name), client=client, engine={"executor": executor, "device": "cpu"}, save=False
        )
        ends[executor] = made.params
    assert torch.allclose(ends["loop"], ends["stacked"], rtol=0, atol=1e-12)
    given = problem(name, clients=[range(ROWS)])
    one = fedsim.run(
        rounds=1, problem=given, client={"kind": "sgd", "steps": 1, "batch_size": "full", "lr": 1.0}, save=False
    )
    module = given.module(given.initial())
    outputs = module(given.data.x)
    given.model.loss.examples(outputs, given.data.y).mean().backward()
    expected = given.initial() - torch.cat([own.grad.flatten() for own in module.parameters()])
    assert torch.allclose(one.params, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["a class a token", "several numbers", "tags"])
@pytest.mark.parametrize("estimator", ["differences", "forward_gradient"])
def test_values_and_slopes_that_a_search_asks_for_are_those_of_each_executor(name, estimator):
    ends = []
    for executor in ("loop", "stacked"):
        client = {"kind": "fedzo", "steps": 2, "batch_size": 2, "lr": 0.1, "estimator": estimator}
        engine = {"executor": executor, "device": "cpu"}
        ends.append(fedsim.run(rounds=1, problem=problem(name), client=client, engine=engine, save=False).params)
    assert torch.allclose(*ends, rtol=0, atol=1e-9)
    assert not torch.equal(ends[0], problem(name).initial())


def test_what_has_no_kernel_is_stacked_and_refused_by_name():
    """Two numbers an example, and a weighted loss, of a network that is compiled otherwise."""
    weighted = {"y": DRAW.integers(0, 3, size=ROWS), "model": lambda: flat(3)}
    for given in (
        problem("several numbers"),
        problem("tags", **weighted, task=None, loss={"kind": "cross_entropy", "weights": "balanced"}),
    ):
        assert not fits(given.model.module, given.model.layout, given.model.loss, given.data.x)
        with pytest.raises(InputError, match=r"^engine\.executor = fused: it does not know the loss "):
            fedsim.run(rounds=1, problem=given, client=SGD, engine={"executor": "fused"}, save=False)
    plain = problem("tags", **weighted, task=None)
    assert fits(plain.model.module, plain.model.layout, plain.model.loss, plain.data.x)


SGD = {"kind": "sgd", "epochs": 1, "batch_size": 4, "lr": 0.1}
PGD = {"kind": "pgd", "epsilon": 0.1, "steps": 2, "step_size": 0.05}
NEEDS_A_CLASS = {
    "trades": (
        {"client": {**SGD, "adversarial": {"kind": "trades", "attack": PGD}}},
        "its loss is about one class an example",
    ),
    "standard": (
        {"client": {**SGD, "adversarial": {"kind": "standard", "attack": PGD}}},
        "an example has several classes",
    ),
    "wrong": (
        {"client": {**SGD, "curriculum": {"measure": "error"}}},
        "examples do not have one class each; take loss",
    ),
    "attacks": (
        {"evaluation": {"attacks": [PGD]}, "client": SGD},
        "an example has several classes, and it is against one",
    ),
    "devices": (
        {"client": SGD, "devices": {"compute": {"kind": "fixed", "by": "label"}}},
        "no labels, or several each",
    ),
}


@pytest.mark.parametrize("name", NEEDS_A_CLASS)
def test_what_needs_one_class_an_example_is_refused(name):
    tables, words = NEEDS_A_CLASS[name]
    with pytest.raises(InputError, match=words) as caught:
        fedsim.run(rounds=1, problem=problem("a class a token", dtype=torch.float32), save=False, **tables)
    assert "\n" not in str(caught.value)


def data(y: Any, **settings: Any) -> Dataset:
    y = np.asarray(y)
    return Dataset("own", X[: len(y)], y, X[: len(y)], y, **{"num_classes": 3, **settings})


@pytest.mark.parametrize(
    "kind", [Dirichlet(clients=2, alpha=1.0), Shards(clients=2), DirichletEqual(clients=2, alpha=1.0)]
)
def test_clients_are_dealt_by_class_only_where_an_example_has_one(kind):
    with pytest.raises(InputError, match="has no classes to deal by"):
        kind.split(data(CLASSES), 0)
    assert IID(clients=2).split(data(CLASSES), 0).sizes.tolist() == [6, 5]


@pytest.mark.parametrize(
    ("y", "settings", "words"),
    [
        ([[0, 1], [IGNORED, IGNORED]], {}, "labels of example 1 are all -100, which does not count"),
        ([[0, -1]], {}, r"lie in -1 \.\. 0, not in 0 \.\. 2"),
        ([IGNORED, 0], {}, r"lie in -100 \.\. 0"),
        ([[0.0, 0.5]], {"num_classes": 0, "tags": True}, "are no tags; give 0 and 1"),
        ([[[0.5]]], {"num_classes": 0}, r"labels have shape \(1, 1, 1\)"),
    ],
)
def test_targets_that_are_none_are_refused(y, settings, words):
    with pytest.raises(InputError, match=words):
        data(y, **settings)


def test_the_picture_has_every_place_and_tag(monkeypatch, tmp_path):
    """A client's tokens that count, by class; its tags; of several numbers none."""
    seen = []
    monkeypatch.setattr("fedsim.plots.label_distribution", lambda dealt, path: seen.append(dealt))
    for name in ("a class a token", "tags", "several numbers"):
        problem(name).illustrate(lambda name: tmp_path / name, torch.zeros(0))
    assert [dealt.counted for dealt in seen] == ["places", "tags"]
    for dealt, y in zip(seen, (CLASSES, TAGS), strict=True):
        for client, own in enumerate(CLIENTS):
            held = dealt.labels[dealt.order[dealt.offset[client] : dealt.offset[client + 1]]]
            rows = y[list(own)]
            expected = rows[rows != IGNORED] if y is CLASSES else rows.nonzero()[1]
            assert sorted(held.tolist()) == sorted(expected.tolist())


def test_accuracy_is_the_share_of_places_that_count_and_of_tags():
    """Outputs that are right at the first place alone, of three that count; and two of three tags."""
    z = torch.tensor([[[9.0, 0.0], [9.0, 0.0], [9.0, 0.0], [9.0, 0.0]]])
    loss = CrossEntropy().fitted(torch.tensor([[0, 1, 1, IGNORED]]), "classes", 2)
    assert loss.correct(z, torch.tensor([[0, 1, 1, IGNORED]])).tolist() == pytest.approx([1 / 3])
    y = torch.tensor([[1.0, 0.0, 0.0]])
    tagged = BinaryCrossEntropy().fitted(y, "tags", 3)
    assert tagged.correct(torch.tensor([[2.0, 2.0, -2.0]]), y).tolist() == pytest.approx([2 / 3])


ROW = "a,b,u,v,y\n0.5,1,0,True,3\n1.5,2,1,False,4\n2.5,3,0,True,3\n"


@pytest.mark.parametrize(
    ("options", "task", "y"),
    [
        ({"label": ["u", "y"], "task": "regression"}, "numbers", [[0, 3], [1, 4], [0, 3]]),
        ({"label": "y", "task": "regression"}, "numbers", [3, 4, 3]),
        ({"label": ["u", "v"], "task": "tags"}, "tags", [[0, 1], [1, 0], [0, 1]]),
        ({"label": "u", "num_classes": 4}, "classes", [0, 1, 0]),
    ],
)
def test_a_table_has_several_numbers_or_tags_or_class_numbers(tmp_path, options, task, y):
    for kind in ("test", "train"):
        (tmp_path / f"{kind}.csv").write_text(ROW)
    drop = [name for name in ("u", "v", "y") if name not in options["label"]]
    loaded = CSV(path="train.csv", test_path="test.csv", drop=drop, **options).load(DataFolder(tmp_path))
    assert (loaded.task, loaded.y.tolist(), loaded.y_test.tolist()) == (task, y, y)
    assert loaded.x.shape == (3, 5 - len(drop) - len(np.atleast_1d(options["label"])))
    assert (loaded.outputs, loaded.told["classes"]) == {
        "numbers": (loaded.y.ndim, []),
        "tags": (2, ["u", "v"]),
        "classes": (4, ["0", "1", "2", "3"]),
    }[task]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"label": ["u", "y"]}, r"^label = \['u', 'y'\]: one column has the classes"),
        ({"label": "u", "task": "tags"}, r"^task = tags: name the columns of the tags"),
        ({"label": ["u", "u"], "task": "tags"}, "names a column twice"),
        ({"label": ["u", "y"], "task": "tags"}, "column 'y', has '3', which is neither 0 nor 1"),
        ({"label": "y", "num_classes": 4}, r"has '4', which is none of the classes 0 \.\. 3"),
        ({"label": "y", "num_classes": 4, "task": "regression"}, "num_classes = 4: there are no classes in regression"),
    ],
)
def test_labels_of_a_table_that_are_not_those_of_its_task_are_refused(tmp_path, options, words):
    (tmp_path / "t.csv").write_text(ROW)
    with pytest.raises(InputError, match=words):
        CSV(path="t.csv", **options).load(DataFolder(tmp_path))


@pytest.mark.parametrize(
    ("y", "options", "shown"),
    [
        (CLASSES, {}, ("classes", 3, (5,))),
        (CLASSES, {"num_classes": 7}, ("classes", 7, (5,))),
        (TAGS, {"task": "tags"}, ("tags", 2, ())),
        (TAGS, {"task": "regression"}, ("numbers", 2, ())),
        (TAGS, {"num_classes": 2}, ("classes", 2, (2,))),
        (TAGS[:, 0], {"num_classes": 5}, ("classes", 5, ())),
        (TAGS, {}, r'0 and 1 alone; say task = "tags", or of one-hot rows take argmax'),
        (CLASSES, {"num_classes": 2}, r"labels 0 \.\. 2, not the classes 0 \.\. 1"),
        (CLASSES, {"task": "tags"}, "has no tags"),
        (CLASSES * 0.5, {}, "class numbers are whole"),
        (CLASSES - 1, {}, r"labels -101 \.\. 1"),
    ],
)
def test_an_archive_has_targets_of_every_kind(tmp_path, y, options, shown):
    np.savez(tmp_path / "a.npz", x=X, y=y)
    loader, folder = NPZ(path="a.npz", **options), DataFolder(tmp_path)
    if isinstance(shown, str):
        with pytest.raises(InputError, match=shown):
            loader.load(folder)
        return
    loaded = loader.load(folder)
    assert (loaded.task, loaded.outputs, loaded.places) == shown
    both = np.concatenate((loaded.y, loaded.y_test))
    assert sorted(both.tolist()) == sorted(y.tolist())


def test_a_file_of_tags_is_learnt_by_a_built_in_model(tmp_path, monkeypatch):
    """From a table of tags by name to measures of the run, its picture among them."""
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "a.npz", x=X, y=TAGS)
    loss = {"kind": "binary_cross_entropy", "pos_weight": "balanced"}
    found = fedsim.run(
        problem={"dataset": {"kind": "npz", "path": "a.npz", "task": "tags"}, "model": "mlp", "loss": loss},
        partition={"kind": "iid", "clients": 2},
        client=SGD,
        rounds=1,
        out=tmp_path / "run",
        data_dir=tmp_path,
    )
    assert 0.0 <= found.history["test_accuracy"][-1] <= 1.0
    assert (tmp_path / "run" / "partition.png").exists()


def test_a_function_of_places_has_no_part_of_those_that_do_not_count():
    """A loss of each place, which is no number where nothing counts."""

    def own(outputs: Tensor, targets: Tensor) -> Tensor:
        each = -torch.log_softmax(outputs, dim=-1).gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        return each.where(targets != IGNORED, torch.nan)

    for client in (SGD, {"kind": "fedzo", "steps": 1, "batch_size": 4, "lr": 0.1}):
        ends = [
            fedsim.run(rounds=1, problem=problem("a class a token", loss=loss), client=client, save=False).params
            for loss in (own, None)
        ]
        assert torch.allclose(*ends, rtol=0, atol=1e-9)


def test_labels_of_several_places_are_not_made_noisy(tmp_path):
    np.savez(tmp_path / "a.npz", x=X.reshape(ROWS, -1), y=CLASSES)
    tables = {"problem": {"dataset": {"kind": "npz", "path": "a.npz"}, "model": "logistic"}}
    with pytest.raises(InputError, match=r"^partition\.noise = 0\.5: only class labels can be replaced"):
        fedsim.run(**tables, partition={"kind": "iid", "clients": 2, "noise": 0.5}, data_dir=tmp_path, save=False)


def test_a_client_that_counts_classes_needs_one_an_example():
    with pytest.raises(InputError, match=r"^problem\.dataset = tags: a client that counts classes"):
        Cohort.class_counts(SimpleNamespace(data=problem("tags").data))
