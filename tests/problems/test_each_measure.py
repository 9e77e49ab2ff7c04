"""Measures are those of scikit-learn, for all and for each client; where targets allow no value they say so."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import sklearn.metrics as reference
import torch
from torch import Tensor

from fedsim.core.errors import BrokenPromiseError, InputError
from fedsim.core.plugins import make, names
from fedsim.problems.measures import Measure, tables
from fedsim.testing.measures import CHECKS, Measuring
from fedsim.testing.specimen import EVERY, every_option_moves_something


def measure(given: Any) -> Measure:
    """A measure, as the experiment names it."""
    (table,) = tables(given)
    made: Measure = make("measures", table, "metrics.0")
    return made


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def classes(number: int, of: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Outputs [60, K], of which some are alike, and targets of some of the K classes."""
    outputs = drawn(60, number, seed=seed)
    outputs[10:20] = outputs[:10]
    return outputs, torch.from_numpy(np.random.default_rng(seed + 1).choice(of, 60))


def numbers(columns: int) -> tuple[Tensor, Tensor]:
    return drawn(60, columns), drawn(60, columns, seed=1)


def tags() -> tuple[Tensor, Tensor]:
    """Outputs [60, 4] and tags, of which some examples have none."""
    targets = (drawn(60, 4, seed=1) > 0.3).double()
    targets[:5] = 0.0
    return drawn(60, 4), targets


def probabilities(outputs: Tensor) -> Any:
    return outputs.softmax(dim=1).numpy()


def averages(function: Any) -> dict[str, Any]:
    """What scikit-learn says of predictions, by the average."""
    return {
        average: lambda y, said, average=average: function(y, said, average=average, zero_division=0)
        for average in ("macro", "micro", "weighted", "samples")
    }


SHARES = {
    "f1": reference.f1_score,
    "precision": reference.precision_score,
    "recall": reference.recall_score,
    "jaccard": reference.jaccard_score,
}
AVERAGED = [(kind, average, call) for kind, f in SHARES.items() for average, call in averages(f).items()]
CLASSES = [((2, (0, 1))), (5, (0, 1, 2, 3, 4)), (5, (0, 2, 3))]
"""How many outputs there are, and which classes are among the targets: all, or some."""


@pytest.mark.parametrize(("width", "of"), CLASSES)
def test_measures_of_predicted_classes_are_those_of_scikit_learn(width, of):
    outputs, targets = classes(width, of)
    y, said = targets.numpy(), outputs.argmax(dim=1).numpy()
    for kind, average, call in AVERAGED:
        if average != "samples":
            assert measure(f"{kind}_{average}")(outputs, targets) == pytest.approx(call(y, said), abs=1e-14), kind
    for kind, found in (
        ("accuracy", reference.accuracy_score),
        ("balanced_accuracy", lambda y, said: reference.recall_score(y, said, average="macro", labels=of)),
        ("matthews", reference.matthews_corrcoef),
        ("cohen_kappa", reference.cohen_kappa_score),
    ):
        assert measure(kind)(outputs, targets) == pytest.approx(found(y, said), abs=1e-14), kind
    assert measure("mean_iou")(outputs, targets) == measure("jaccard_macro")(outputs, targets)
    assert measure("token_accuracy")(outputs, targets) == measure("accuracy")(outputs, targets)


@pytest.mark.parametrize(("width", "of"), CLASSES)
def test_measures_of_probabilities_are_those_of_scikit_learn(width, of):
    outputs, targets = classes(width, of)
    y, shares, labels = targets.numpy(), probabilities(outputs), list(range(width))
    loss = reference.log_loss(y, shares, labels=labels)
    assert measure("log_loss")(outputs, targets) == pytest.approx(loss, rel=1e-12)
    assert measure("perplexity")(outputs, targets) == pytest.approx(math.exp(loss), rel=1e-12)
    score = shares[:, 1] if width == 2 else shares
    brier = reference.brier_score_loss(y, score, **({} if width == 2 else {"labels": labels}))
    assert measure("brier")(outputs, targets) == pytest.approx(brier, rel=1e-12)
    for k in range(1, width):
        top = reference.top_k_accuracy_score(y, score if width > 2 else outputs.numpy()[:, 1], k=k, labels=labels)
        if (width, k) != (2, 1):  # where scikit-learn takes a threshold, and not the larger output
            assert measure(f"top_{k}_accuracy")(outputs, targets) == top
    held = [1] if width == 2 else of
    for kind, call in (("auroc", reference.roc_auc_score), ("average_precision", reference.average_precision_score)):
        each = [call(y == label, shares[:, label]) for label in held]
        assert measure(kind)(outputs, targets) == pytest.approx(np.mean(each), rel=1e-12), kind
    if len(of) == width > 2:
        whole = reference.roc_auc_score(y, shares, multi_class="ovr")
        assert measure("auroc")(outputs, targets) == pytest.approx(whole, rel=1e-12)
        assert measure("average_precision")(outputs, targets) == pytest.approx(
            reference.average_precision_score(y, shares), rel=1e-12
        )


@pytest.mark.parametrize("columns", [1, 3])
def test_measures_of_numbers_are_those_of_scikit_learn(columns):
    outputs, targets = numbers(columns)
    for kind, call in (
        ("mae", reference.mean_absolute_error),
        ("mse", reference.mean_squared_error),
        ("rmse", reference.root_mean_squared_error),
        ("r2", reference.r2_score),
        ("explained_variance", reference.explained_variance_score),
        ("median_absolute_error", reference.median_absolute_error),
        ("mape", reference.mean_absolute_percentage_error),
        ("max_error", lambda y, said: max(map(reference.max_error, y.T, said.T))),
        ("pinball", reference.mean_pinball_loss),
        ({"kind": "pinball", "alpha": 0.9}, lambda y, said: reference.mean_pinball_loss(y, said, alpha=0.9)),
    ):
        found = call(targets.numpy(), outputs.numpy())
        assert measure(kind)(outputs, targets) == pytest.approx(found, rel=1e-12), kind


def test_measures_of_tags_are_those_of_scikit_learn():
    outputs, targets = tags()
    y, said, scores = targets.numpy(), (outputs > 0).numpy(), outputs.numpy()
    for kind, average, call in AVERAGED:
        assert measure(f"{kind}_{average}")(outputs, targets) == pytest.approx(call(y, said), abs=1e-14), kind
    for kind, call, given in (
        ("hamming_loss", reference.hamming_loss, said),
        ("subset_accuracy", reference.accuracy_score, said),
        ("auroc", reference.roc_auc_score, scores),
        ("average_precision", reference.average_precision_score, scores),
    ):
        assert measure(kind)(outputs, targets) == pytest.approx(call(y, given), abs=1e-14), kind


def test_equal_scores_count_half_for_auroc_and_at_once_for_average_precision():
    outputs = drawn(60, 2).round()
    targets = classes(2, (0, 1))[1]
    score = (outputs[:, 1] - outputs[:, 0]).numpy()
    assert len(np.unique(score)) < 12
    for kind, call in (("auroc", reference.roc_auc_score), ("average_precision", reference.average_precision_score)):
        assert measure(kind)(outputs, targets) == pytest.approx(call(targets.numpy(), score), abs=1e-14), kind


def test_of_equal_outputs_the_first_class_is_predicted():
    outputs, targets = torch.zeros(4, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 1])
    assert measure("accuracy")(outputs, targets) == 0.25
    assert measure("top_1_accuracy")(outputs, targets) == 0.25
    assert measure("top_2_accuracy")(outputs, targets) == 0.75


@pytest.mark.parametrize("bins", [1, 4, 15])
def test_calibration_is_the_gap_of_confidence_and_accuracy_in_bins(bins):
    outputs, targets = classes(5, (0, 1, 2, 3, 4))
    outputs = 3.0 * outputs
    confidence, said = outputs.softmax(dim=1).max(dim=1)
    gap = 0.0
    for number in range(bins):  # each bin has its upper end
        own = (confidence > number / bins) & (confidence <= (number + 1) / bins)
        right = (said == targets)[own].double()
        gap += abs(float(right.sum() - confidence[own].sum())) / len(targets)
    assert measure({"kind": "ece", "bins": bins})(outputs, targets) == pytest.approx(gap, rel=1e-12)
    # Outputs 0 and 0 of two classes are confident by a half, the upper end of the first of two bins, and here wrong;
    # the second example is right, and its gap must not be set off against the first's.
    even = torch.tensor([[0.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    away = 1.0 / (1.0 + math.exp(-1.0))
    expected = (0.5 + abs(1.0 - away)) / 2
    assert measure({"kind": "ece", "bins": 2})(even, torch.tensor([1, 1])) == pytest.approx(expected, rel=1e-12)


CLIENTS = torch.tensor([0, 7, 1, 20, 0, 32])
"""Examples of each client: two have none, and one a single example."""
ALL = sorted(names("measures"))


def of_task(kind: str) -> tuple[Tensor, Tensor]:
    """Outputs and targets that suit a measure; the fourth client's targets are all the same."""
    outputs, targets = {
        "classes": lambda: classes(6, (0, 1, 2, 3, 4)),
        "numbers": lambda: numbers(2),
        "tags": tags,
    }[sorted(measure(kind).tasks)[0]]()
    targets[8:28] = targets[8]
    return outputs, targets


@pytest.mark.parametrize("kind", ALL)
def test_each_client_has_what_its_examples_come_to_alone(kind):
    outputs, targets = of_task(kind)
    made = measure(kind)
    found = made.of_clients(outputs, targets, CLIENTS)
    assert found.dtype == torch.float64
    parts = zip(torch.split(outputs, CLIENTS.tolist()), torch.split(targets, CLIENTS.tolist()), strict=True)
    for client, (given, wanted) in enumerate(parts):
        if not len(wanted) or made.undefined(wanted) is not None:
            assert found[client].isnan()
        else:
            assert float(found[client]) == pytest.approx(made(given, wanted), rel=1e-12), client
            assert math.isfinite(found[client])


def test_where_targets_allow_no_value_there_is_none_and_why_is_said():
    outputs, one_class = drawn(4, 3), torch.tensor([2, 2, 2, 2])
    for kind in ("auroc", "average_precision", "matthews", "cohen_kappa"):
        assert measure(kind).undefined(one_class) == "all examples are of one class"
        assert math.isnan(measure(kind)(outputs, one_class))
        assert measure(kind).undefined(torch.tensor([2, 0, 2, 2])) is None
    single, same = drawn(1, 1), torch.full((4, 1), 2.5, dtype=torch.float64)
    for kind in ("r2", "explained_variance"):
        assert measure(kind).undefined(single) == measure(kind).undefined(same) == "all targets are the same"
        assert math.isnan(measure(kind)(single, single))
        assert math.isnan(measure(kind)(drawn(4, 1), same))
    zero = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    assert measure("mape").undefined(zero) == "a target is 0"
    assert math.isnan(measure("mape")(drawn(2, 1), zero))
    alike = torch.tensor([[1.0, 0.0]] * 3, dtype=torch.float64)
    assert measure("auroc").undefined(alike) == "all examples have the same tags"
    assert math.isnan(measure("auroc")(drawn(3, 2), alike))


def test_tags_and_columns_that_allow_no_value_are_left_out_of_the_mean():
    outputs, targets = tags()
    targets[:, 2] = 1.0
    rest = [0, 1, 3]
    expected = reference.roc_auc_score(targets.numpy()[:, rest], outputs.numpy()[:, rest])
    assert measure("auroc")(outputs, targets) == pytest.approx(expected, rel=1e-12)
    outputs, targets = numbers(2)
    targets[:, 0] = 7.0
    expected = reference.r2_score(targets.numpy()[:, 1], outputs.numpy()[:, 1])
    assert measure("r2")(outputs, targets) == pytest.approx(expected, rel=1e-12)


def test_a_model_that_always_says_one_class_has_no_correlation():
    outputs = torch.zeros(4, 2, dtype=torch.float64)
    targets = torch.tensor([0, 1, 1, 0])
    assert measure("matthews")(outputs, targets) == 0.0 == reference.matthews_corrcoef(targets, [0, 0, 0, 0])
    assert measure("cohen_kappa")(outputs, targets) == 0.0


@pytest.mark.parametrize("kind", ALL)
def test_a_better_model_is_better_by_every_measure_and_none_beyond_its_best(kind):
    made = measure(kind)
    task = sorted(made.tasks)[0]
    outputs, targets = {"classes": lambda: classes(6, (0, 1, 2, 3, 4)), "numbers": lambda: numbers(2), "tags": tags}[
        task
    ]()
    if task == "numbers":
        right = targets.clone()
    elif task == "tags":
        right = 200.0 * (targets - 0.5)
    else:
        right = 100.0 * torch.nn.functional.one_hot(targets, 6).double()
    worse, best = made(outputs, targets), made(right, targets)
    assert best > worse if made.higher_is_better else best < worse
    assert best == pytest.approx(made.best, abs=1e-12)


@pytest.mark.parametrize("kind", ALL)
def test_each_keeps_to_what_all_of_its_kind_do(kind):
    specimen = Measuring(measure(kind))
    for check in (*EVERY, *CHECKS):
        check(specimen)
    for field in dataclasses.fields(specimen.plugin):
        every_option_moves_something(specimen, field.name)


def test_each_measure_is_called_as_it_is_named():
    short = ["f1_macro", "recall_weighted", "jaccard_samples", "top_7_accuracy", "mean_iou", "token_accuracy"]
    for name in [*short, *(name for name in ALL if name not in ("f1", "precision", "recall", "jaccard"))]:
        assert measure(name).label == {"top_k_accuracy": "top_5_accuracy"}.get(name, name)
    assert measure("f1").label == "f1_macro"
    assert measure({"kind": "f1", "average": "micro"}) == measure("f1_micro")
    assert measure({"kind": "pinball", "alpha": 0.9, "name": "upper"}).label == "upper"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("f1_marco", r"0 = f1_marco: name one of: .*; did you mean f1_macro\?"),
        ("roc_auc", r"0 = roc_auc: is called auroc here"),
        ("mean_absolute_error", r"is called mae here"),
        ("", r"name one of"),
    ],
)
def test_an_unknown_name_is_refused_with_the_one_that_is_meant(name, said):
    with pytest.raises(InputError, match=said):
        tables([name])


@pytest.mark.parametrize(
    ("given", "task", "width", "said"),
    [
        ("r2", "classes", 10, r"kind = r2: is about numbers, and these targets are classes; leave it out"),
        ("f1_macro", "numbers", 1, r"kind = f1_macro: is about classes or tags, and these targets are numbers"),
        ("f1_samples", "classes", 10, r"average = samples: is about several tags an example"),
        ("top_10_accuracy", "classes", 10, r"k = 10: there are 10 classes"),
    ],
)
def test_a_measure_that_does_not_suit_the_targets_is_refused(given, task, width, said):
    with pytest.raises(InputError, match=said):
        measure(given).check(task, width)


def test_what_suits_the_targets_is_not():
    measure("f1_samples").check("tags", 3)
    measure("top_9_accuracy").check("classes", 10)


def test_what_gives_no_number_has_broken_its_promise(monkeypatch):
    made = measure("accuracy")
    monkeypatch.setattr(type(made), "__call__", lambda self, outputs, targets: "a lot")
    with pytest.raises(BrokenPromiseError, match=r"measure.kind = accuracy: gives 'a lot', which is no number"):
        made.of(*classes(2, (0, 1)))
