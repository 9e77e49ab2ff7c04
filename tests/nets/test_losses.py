"""Losses: each keeps to what all do, is PyTorch's where PyTorch has it, and says what it does not go with."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional

import fedsim
from fedsim.core import plugins
from fedsim.core.errors import InputError
from fedsim.nets.losses import (
    IGNORED,
    AbsoluteError,
    BinaryCrossEntropy,
    CrossEntropy,
    Focal,
    Huber,
    LogCosh,
    Loss,
    Pinball,
    Poisson,
    SquaredError,
)
from fedsim.testing import conformance
from fedsim.testing.problems import DEVICE

WEIGHTS = (0.5, 2.0, 1.0, 3.0)
TestCrossEntropy = conformance(CrossEntropy(), others={"weights": WEIGHTS})
TestSmoothCrossEntropy = conformance(CrossEntropy(weights=WEIGHTS, label_smoothing=0.2), others={"weights": "balanced"})
TestFocal = conformance(Focal(), others={"weights": WEIGHTS})
TestFocalOfWeights = conformance(Focal(gamma=0.5, weights="balanced"), others={"weights": WEIGHTS})
TestSquaredError = conformance(SquaredError())
TestLogCosh = conformance(LogCosh())
TestAbsoluteError = conformance(AbsoluteError())
TestHuber = conformance(Huber(delta=0.7))
TestPinball = conformance(Pinball(quantile=0.9))
TestPoisson = conformance(Poisson())
TestBinaryCrossEntropy = conformance(BinaryCrossEntropy(), others={"pos_weight": "balanced"})
TestBinaryCrossEntropyOfWeights = conformance(BinaryCrossEntropy(pos_weight=WEIGHTS), others={"pos_weight": None})
HELD = (CrossEntropy, Focal, SquaredError, LogCosh, AbsoluteError, Huber, Pinball, Poisson, BinaryCrossEntropy)


def test_every_loss_is_held_to_the_kit():
    assert {entry.load() for entry in plugins.names("losses").values()} == set(HELD)


GENERATOR = torch.Generator().manual_seed(0)
Z = 3 * torch.randn(7, 4, dtype=torch.float64, generator=GENERATOR)
Z[0] = torch.tensor([60.0, -60.0, 0.0, 900.0])
CLASSES = torch.randint(0, 4, (7,), generator=GENERATOR)
TAGS = torch.randint(0, 2, (7, 4), generator=GENERATOR).double()
NUMBERS = torch.randn(7, 4, dtype=torch.float64, generator=GENERATOR)
W = torch.tensor(WEIGHTS, dtype=torch.float64)


def pinball(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return torch.maximum(0.9 * (t - z), -0.1 * (t - z))


@pytest.mark.parametrize(
    ("loss", "targets", "expected"),
    [
        (CrossEntropy(), CLASSES, functional.cross_entropy(Z, CLASSES, reduction="none")),
        (
            CrossEntropy(weights=WEIGHTS, label_smoothing=0.3),
            CLASSES,
            functional.cross_entropy(Z, CLASSES, weight=W, label_smoothing=0.3, reduction="none"),
        ),
        (Focal(gamma=0.0, weights=WEIGHTS), CLASSES, functional.cross_entropy(Z, CLASSES, weight=W, reduction="none")),
        (SquaredError(), NUMBERS, functional.mse_loss(Z, NUMBERS, reduction="none").mean(dim=1)),
        (AbsoluteError(), NUMBERS, functional.l1_loss(Z, NUMBERS, reduction="none").mean(dim=1)),
        (Huber(delta=0.7), NUMBERS, functional.huber_loss(Z, NUMBERS, delta=0.7, reduction="none").mean(dim=1)),
        (Pinball(quantile=0.9), NUMBERS, pinball(Z, NUMBERS).mean(dim=1)),
        (
            Poisson(),
            NUMBERS.abs(),
            functional.poisson_nll_loss(Z, NUMBERS.abs(), log_input=True, reduction="none").mean(dim=1),
        ),
        (
            BinaryCrossEntropy(pos_weight=WEIGHTS),
            TAGS,
            functional.binary_cross_entropy_with_logits(Z, TAGS, pos_weight=W, reduction="none").mean(dim=1),
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Loss) else "",
)
def test_it_is_that_of_pytorch(loss, targets, expected):
    """Outputs of 60 and 900 among them, beyond which exponentials are 0 or infinite."""
    found = loss.fitted(targets, loss.tasks[0], 4).examples(Z, targets)
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_focal_counts_what_is_easy_less():
    """Probabilities 3/4 and 1/4, gamma 2: (1/4)^2 log(4/3) of the likely class, (3/4)^2 log 4 of the other."""
    z = torch.tensor([[np.log(3.0), 0.0]] * 2, dtype=torch.float64)
    found = Focal().examples(z, torch.tensor([0, 1]))
    assert found.tolist() == pytest.approx([np.log(4 / 3) / 16, 9 * np.log(4) / 16])


def test_balanced_weights_are_those_of_scikit_learn():
    y = torch.tensor([[0, 0, 0, 2], [2, IGNORED, 0, 0]])
    fitted = CrossEntropy(weights="balanced").fitted(y, "classes", 4)
    expected = compute_class_weight("balanced", classes=np.array([0, 2]), y=y[y != IGNORED].numpy())
    assert fitted.factors(Z).tolist() == pytest.approx([expected[0], 1.0, expected[1], 1.0])
    tags = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    balanced = BinaryCrossEntropy(pos_weight="balanced").fitted(tags, "tags", 2)
    given = BinaryCrossEntropy(pos_weight=(2.0, 1.0)).fitted(tags, "tags", 2)
    z = Z[:3, :2].float()
    assert torch.equal(balanced.examples(z, tags), given.examples(z, tags))


X, Y = NUMBERS.numpy(), CLASSES.numpy()
REFUSED = {
    "another task": ({"y": X[:, 0], "loss": "focal"}, r"^y = float64: are real numbers"),
    "numbers of classes": (
        {"task": "classification", "loss": "huber"},
        r"^problem\.loss = huber: the labels .* classes",
    ),
    "one weight": (
        {"loss": {"kind": "cross_entropy", "weights": [1.0]}},
        r"weights = \[1\.0\]: give one for each of the 4",
    ),
    "a rate of nothing": ({"loss": {"kind": "pinball", "quantile": 1.0}}, r"^problem\.loss\.quantile = 1\.0"),
    "counts below 0": ({"y": X[:, 0], "loss": "poisson", "model": torch.nn.Linear(4, 1)}, r"poisson: is of counts"),
    "a mean": (
        {"loss": functional.cross_entropy},
        r"^problem\.loss = cross_entropy: gives shape \(\) .*reduction='none'",
    ),
    "a module": ({"loss": torch.nn.CrossEntropyLoss()}, r"^problem\.loss = CrossEntropyLoss: gives shape \(\)"),
    "a class": ({"loss": torch.nn.CrossEntropyLoss}, r"^problem\.loss = CrossEntropyLoss: give a name"),
    "a fault": ({"loss": lambda z, y: z[:, 9]}, r"^problem\.loss = <lambda>: does not fit: IndexError"),
    "company": (
        {"loss": lambda z, y: functional.cross_entropy(z - z.mean(dim=0), y, reduction="none")},
        "depends on the others of the batch",
    ),
    "tags of a row": ({"task": "tags"}, r"^y = shape \(7,\): are no tags"),
    "too few classes": ({"num_classes": 2}, r"^num_classes = 2: give a whole number, of labels up to 3 at least 4"),
    "classes of numbers": ({"y": X[:, 0], "num_classes": 2}, r"^num_classes = 2: the targets are numbers"),
    "0 and 1": ({"y": TAGS.numpy()}, r"^y = shape \(7, 4\): of 0 and 1 may be tags .*argmax"),
    "a task": ({"task": "tagging"}, r"^task = tagging: name one of"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_loss_does_not_go_with_is_one_line(name):
    changes, words = REFUSED[name]
    given = {"y": Y, "model": torch.nn.Linear(4, 4), "clients": [range(7)], "device": DEVICE, **changes}
    with pytest.raises(InputError, match=words) as caught:
        fedsim.supervised(X, **given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("y", "outputs", "loss", "twin"),
    [
        (Y, 4, lambda z, y: functional.cross_entropy(z, y, reduction="none"), "cross_entropy"),
        (X[:, 0], 1, torch.nn.HuberLoss(reduction="none"), "huber"),
        (X[:, :2], 2, lambda z, y: (z - y).abs(), "absolute_error"),
        (TAGS.numpy(), 4, functional.binary_cross_entropy_with_logits, None),
    ],
    ids=["classes", "a number", "numbers", "a mean of tags"],
)
@pytest.mark.parametrize("executor", ["loop", "stacked"])
def test_a_function_of_ones_own_is_a_loss(y, outputs, loss, twin, executor):
    """The same run as of the plug-in that it equals; a mean of all of a batch is refused."""

    def trained(loss):
        torch.manual_seed(0)
        problem = fedsim.supervised(
            X,
            y,
            model=torch.nn.Linear(4, outputs),
            clients=[range(3), range(3, 7)],
            loss=loss,
            dtype=torch.float64,
            device="cpu",
            task="tags" if twin is None else None,
        )
        client = {"kind": "sgd", "epochs": 2, "batch_size": 2, "lr": 0.1}
        return fedsim.run(rounds=2, problem=problem, client=client, engine={"executor": executor}, save=False).params

    if twin is None:
        with pytest.raises(InputError, match="gives shape"):
            trained(loss)
    else:
        assert torch.allclose(trained(loss), trained(twin), rtol=0, atol=1e-12)
