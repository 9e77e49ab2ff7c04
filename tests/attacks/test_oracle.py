"""PGD and FGSM held to those of the Adversarial Robustness Toolbox: another implementation, another order of draws."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from victims import accuracy, dense, digits, fitted, victim

from fedsim.attacks.attack import ExampleDraws
from fedsim.attacks.gradient import FGSM, PGD, Ascent
from fedsim.core.streams import Streams
from fedsim.problems.datasets.idx import read_idx

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("art", reason="the oracle is adversarial-robustness-toolbox: pip install 'fedsim-lab[attacks]'")
    from art.attacks.evasion import FastGradientMethod, ProjectedGradientDescent
    from art.estimators.classification import PyTorchClassifier

ATTACKS = [
    FGSM(epsilon=0.1),
    FGSM(epsilon=0.5, norm="l2"),
    PGD(epsilon=0.1, steps=20, random_start=False),
    PGD(epsilon=0.5, steps=20, random_start=False, norm="l2"),
]


@contextmanager
def numpy_seeded(seed: int) -> Iterator[None]:
    """Within this block NumPy's global generator, from which the toolbox draws, has this seed."""
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002


def theirs(attack: Ascent, model: nn.Module, x: Tensor, y: Tensor, seed: int = 0) -> Tensor:
    """What the toolbox makes of inputs [n, ...] with the options of our attack."""
    settings: dict[str, Any] = {"norm": 2 if attack.norm == "l2" else np.inf, "eps": attack.epsilon, "batch_size": 1000}
    if isinstance(attack, PGD):
        settings |= {"eps_step": attack.size, "max_iter": attack.steps, "num_random_init": int(attack.random_start)}
        settings |= {"verbose": False}
    kind = ProjectedGradientDescent if isinstance(attack, PGD) else FastGradientMethod
    with warnings.catch_warnings(), numpy_seeded(seed):
        warnings.simplefilter("ignore")
        classifier = PyTorchClassifier(
            model, nn.CrossEntropyLoss(), tuple(x.shape[1:]), 10, clip_values=attack.bounds, device_type="cpu"
        )
        made = kind(classifier, **settings).generate(x.numpy(), np.eye(10, dtype=np.float32)[y.numpy()])
    return torch.from_numpy(made)


def ours(attack: Ascent, model: nn.Module, x: Tensor, y: Tensor, seed: int = 0) -> Tensor:
    """What we make of inputs [n, ...]."""
    draws = ExampleDraws(Streams(seed), torch.arange(len(x)))
    return attack.perturb(victim(model, draws=draws), x[None], y[None])[0]


def assert_alike(attack: Ascent, model: nn.Module, x: Tensor, y: Tensor) -> None:
    """From the same start the same predictions, of an attack that does something."""
    own, other = ours(attack, model, x, y), theirs(attack, model, x, y)
    assert float((model(own).argmax(dim=1) == model(other).argmax(dim=1)).double().mean()) >= 0.998
    # Signs differ where a gradient is within rounding of zero, and what follows from there; that is rare.
    assert float(((own - other).abs() > 1e-4).double().mean()) < 0.002
    assert accuracy(model, own, y) < accuracy(model, x, y) - 0.1


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.label)
def test_from_the_same_start_digits_are_predicted_alike(attack):
    model, x, y = digits()
    assert_alike(attack, model, x, y)


@pytest.mark.parametrize("folder", ["MNIST", "FashionMNIST"])
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.label)
def test_from_the_same_start_5000_images_are_predicted_alike(data_dir, attack, folder):
    model, x, y = images(data_dir, folder)
    assert_alike(attack, model, x, y)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_from_random_starts_accuracies_agree_within_their_spread(norm):
    model, x, y = digits()
    attack = PGD(epsilon=0.1 if norm == "linf" else 0.5, norm=norm, steps=20)
    own, other = (
        np.array([accuracy(model, make(attack, model, x, y, seed=seed), y) for seed in range(3)])
        for make in (ours, theirs)
    )
    assert len(set(own)) > 1
    # The deviation of a difference of two means of three; at least two of the 1,797 examples.
    spread = np.sqrt((own.var(ddof=1) + other.var(ddof=1)) / 3)
    assert abs(own.mean() - other.mean()) <= max(3 * spread, 2 / len(x))


_IMAGES: dict[str, tuple[nn.Module, Tensor, Tensor]] = {}


def images(data: Path, folder: str) -> tuple[nn.Module, Tensor, Tensor]:
    """An MLP 196-32-10 trained on the last 5,000 test images of a data set, shrunk to 14 x 14, and the first 5,000."""
    if folder not in _IMAGES:
        found = [next((data / folder).rglob(f"t10k-{part}-ubyte*")) for part in ("images-idx3", "labels-idx1")]
        pixels = torch.from_numpy(read_idx(found[0], 3).astype(np.float32) / 255)
        x = nn.functional.avg_pool2d(pixels.unsqueeze(1), 2).flatten(1)
        y = torch.from_numpy(read_idx(found[1], 1).astype(np.int64))
        _IMAGES[folder] = fitted(dense(196, 32, 10), x[5000:], y[5000:], steps=60), x[:5000], y[:5000]
    return _IMAGES[folder]
