"""What every engine of the benchmark table is given to do, and the interface it is driven by.

The rule is federated averaging weighted by examples: each chosen client starts at theta, takes plain SGD
steps over `epochs` fresh shuffles of its examples, the last partial batch kept, and theta becomes
sum_i n_i theta_i / sum_i n_i. Who works is a function of the round, and in which order a client visits its
examples one of (round, client), so engines that follow both end in the same parameters up to rounding.
"""

from __future__ import annotations

import gzip
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Pgd:
    """Every batch is replaced by l_inf PGD on it, with inputs in [0, 1], from a random start."""

    epsilon: float
    steps: int

    @property
    def step_size(self) -> float:
        """Of each step."""
        return 2.5 * self.epsilon / self.steps


@dataclass(frozen=True)
class Paced:
    """Passes over the first n(t) = N (b + (1 - b) t / (a T)) examples, by ascending loss of the model of the round."""

    a: float
    b: float


@dataclass(frozen=True, kw_only=True)
class Work:
    """One federated problem with its schedule.

    x: float32 [n, ...], y: int64 [n]. clients: the rows of each client, int64 [n_i]. x_test, y_test: the
    central test set. model: an importable function that makes the module with its initial parameters, the
    same at each call. forward: the same network as a function of its parameters, in the module's order.
    per_round: clients a round, None for all. rounds: after how many rounds the engines' accuracies are
    compared. attack, curriculum: how local training differs from that; engines that cannot do it are left out.
    """

    name: str
    x: Tensor
    y: Tensor
    clients: list[Indices]
    x_test: Tensor
    y_test: Tensor
    model: Callable[[], nn.Module]
    forward: Callable[[Sequence[Tensor], Tensor], Tensor]
    epochs: int
    batch_size: int
    lr: float
    rounds: int
    per_round: int | None
    attack: Pgd | None = None
    curriculum: Paced | None = None

    @property
    def cohort_size(self) -> int:
        """How many clients work in a round."""
        return len(self.clients) if self.per_round is None else self.per_round

    def chosen(self, round: int) -> list[int]:  # noqa: A002
        """Name the clients of a round (counted from 0), ascending."""
        if self.per_round is None:
            return list(range(len(self.clients)))
        drawn = np.random.default_rng((1, round)).choice(len(self.clients), self.per_round, replace=False)
        return sorted(drawn.tolist())

    def orders(self, round: int, client: int) -> Iterator[Tensor]:  # noqa: A002
        """Yield for each epoch the order in which a client of n examples visits them: int64 [n]; or without end."""
        # PyTorch's generator on the CPU uses only the lower 32 bits of a seed.
        generator = torch.Generator().manual_seed(round * len(self.clients) + client)
        for _ in range(self.epochs) if self.curriculum is None else count():
            yield torch.randperm(len(self.clients[client]), generator=generator)

    def examples(self, client: int) -> tuple[Tensor, Tensor]:
        """Copy out a client's inputs [n, ...] and labels [n]."""
        rows = torch.from_numpy(self.clients[client])
        return self.x[rows], self.y[rows]

    def accuracy(self, parameters: Mapping[str, Tensor]) -> float:
        """Measure the share of the test set that the model with this state dict labels rightly."""
        model = self.model()
        model.load_state_dict(dict(parameters))
        model.eval()
        with torch.no_grad():
            batches = torch.split(self.x_test, 1000)
            labels = torch.cat([model(x).argmax(1) for x in batches])
        return float((labels == self.y_test).float().mean())


class Peer(Protocol):
    """An engine of the table. `start` is timed apart; each `round` advances the global model by one round."""

    @staticmethod
    def missing() -> str | None:
        """Say why this engine cannot run here ("not installed"), or None."""

    def start(self) -> None:
        """Do all that is done once, however many rounds follow."""

    def round(self) -> None:
        """Run one round."""

    def parameters(self) -> dict[str, Tensor]:
        """Copy the present global model, as a state dict."""

    def accuracy(self) -> float:
        """Measure the test accuracy of the present global model."""

    def stop(self) -> None:
        """Give back everything that `start` took; may be called twice, and after a failure."""


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let PyTorch use `count` threads inside, and as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def digits() -> Work:
    """Make 100 Dirichlet(0.3) clients of scikit-learn's digits; MLP 64-64-10, all clients in each round."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    held_out = len(labels) // 5
    test, train = order[:held_out], order[held_out:]
    x, y = torch.tensor(images / 16.0, dtype=torch.float32), torch.tensor(labels, dtype=torch.int64)
    return Work(
        name="digits",
        x=x[train],
        y=y[train],
        clients=dirichlet(labels[train], clients=100, alpha=0.3),
        x_test=x[test],
        y_test=y[test],
        model=mlp,
        forward=mlp_forward,
        epochs=5,
        batch_size=4,
        lr=0.1,
        rounds=10,
        per_round=None,
    )


def adversarial_5() -> Work:
    """Make 5 clients of the digits that train against PGD-10."""
    return _adversarial(5)


def adversarial_100() -> Work:
    """Make 100 clients of the digits that train against PGD-10."""
    return _adversarial(100)


def _adversarial(clients: int) -> Work:
    work = digits()
    labels = work.y.numpy()
    dealt = dirichlet(labels, clients=clients, alpha=0.3)
    return replace(
        work, name="adversarial", clients=dealt, epochs=1, batch_size=10, attack=Pgd(epsilon=0.15, steps=10), rounds=5
    )


def curriculum() -> Work:
    """Make 100 clients of 400 images, 10 a round, LeNet, 5 epochs of batches of 10, easy images first."""
    work = images()
    return replace(
        work,
        name="curriculum",
        clients=[own[:400] for own in work.clients],
        model=lenet,
        forward=lenet_forward,
        epochs=5,
        batch_size=10,
        lr=0.02,
        curriculum=Paced(a=0.8, b=0.2),
        rounds=2,
    )


def images() -> Work:
    """Make 100 clients of 600 images [1, 28, 28], 10 a round; a CNN of two convolutions.

    The images are Fashion-MNIST's when the folder named by FEDSIM_DATA has them, else random ones of the same
    shape and number.
    """
    x, y, x_test, y_test = _fashion_mnist() or _random_images()
    order = np.random.default_rng(0).permutation(len(y))
    return Work(
        name="images",
        x=x,
        y=y,
        clients=np.split(order, 100),
        x_test=x_test,
        y_test=y_test,
        model=cnn,
        forward=cnn_forward,
        epochs=1,
        batch_size=32,
        lr=0.05,
        rounds=9,
        per_round=10,
    )


def dirichlet(labels: NDArray[np.integer], *, clients: int, alpha: float) -> list[Indices]:
    """Deal out the rows of each class by proportions ~ Dirichlet(alpha), drawn for each class.

    A client left without any takes one row from the client that has most.
    """
    rng = np.random.default_rng(0)
    dealt: list[list[int]] = [[] for _ in range(clients)]
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        shares = rng.dirichlet(np.full(clients, alpha))
        cuts = (np.cumsum(shares)[:-1] * len(rows)).astype(np.int64)
        for mine, part in zip(dealt, np.split(rows, cuts), strict=True):
            mine.extend(part.tolist())
    for mine in dealt:
        if not mine:
            mine.append(max(dealt, key=len).pop())
    return [np.array(mine, dtype=np.int64) for mine in dealt]


def mlp() -> nn.Module:
    """Make the perceptron 64-64-10."""
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    return _initialised(model)


def mlp_forward(parameters: Sequence[Tensor], x: Tensor) -> Tensor:
    """Apply the perceptron: x [B, 64] to logits [B, 10]."""
    w1, b1, w2, b2 = parameters
    return F.linear(F.linear(x, w1, b1).relu(), w2, b2)


def cnn() -> nn.Module:
    """Make two 5x5 convolutions of 16 and 32 channels, each with ReLU and 2x2 pooling, and a linear layer."""
    with torch.device("meta"):
        model = nn.Sequential(
            nn.Conv2d(1, 16, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * 7 * 7, 10),
        )
    return _initialised(model)


def cnn_forward(parameters: Sequence[Tensor], x: Tensor) -> Tensor:
    """Apply the convolutional network: x [B, 1, 28, 28] to logits [B, 10]."""
    w1, b1, w2, b2, w3, b3 = parameters
    x = F.max_pool2d(F.conv2d(x, w1, b1, padding=2).relu(), 2)
    x = F.max_pool2d(F.conv2d(x, w2, b2, padding=2).relu(), 2)
    return F.linear(x.flatten(1), w3, b3)


def lenet() -> nn.Module:
    """Make LeNet-5: 5x5 convolutions of 6 and 16 channels, each with ReLU and 2x2 pooling, and layers 120, 84, 10."""
    with torch.device("meta"):
        model = nn.Sequential(
            nn.Conv2d(1, 6, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(256, 120),
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.ReLU(),
            nn.Linear(84, 10),
        )
    return _initialised(model)


def lenet_forward(parameters: Sequence[Tensor], x: Tensor) -> Tensor:
    """Apply LeNet: x [B, 1, 28, 28] to logits [B, 10]."""
    w1, b1, w2, b2, w3, b3, w4, b4, w5, b5 = parameters
    x = F.max_pool2d(F.conv2d(x, w1, b1).relu(), 2)
    x = F.max_pool2d(F.conv2d(x, w2, b2).relu(), 2)
    x = F.linear(F.linear(x.flatten(1), w3, b3).relu(), w4, b4).relu()
    return F.linear(x, w5, b5)


def _initialised(model: nn.Module) -> nn.Module:
    """Fill a module of linear and convolution layers as PyTorch does, U(-b, b) with b = fan_in^-1/2.

    The module comes from the meta device, so that nothing is drawn from the global generator.
    """
    generator = torch.Generator().manual_seed(0)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                bound = 1 / math.sqrt(layer.weight[0].numel())
                for parameter in layer.parameters():
                    parameter.uniform_(-bound, bound, generator=generator)
    return model


def _fashion_mnist() -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    root = os.environ.get("FEDSIM_DATA")
    folder = Path(root or "", "FashionMNIST", "raw")
    if root is None or not folder.is_dir():
        return None

    def read(name: str, header: int) -> Tensor:
        packed = (folder / f"{name}-ubyte.gz").read_bytes()
        return torch.tensor(np.frombuffer(gzip.decompress(packed), np.uint8, offset=header))

    x, x_test = (read(f"{part}-images-idx3", 16).reshape(-1, 1, 28, 28).float() / 255 for part in ("train", "t10k"))
    y, y_test = (read(f"{part}-labels-idx1", 8).long() for part in ("train", "t10k"))
    return x, y, x_test, y_test


def _random_images() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hide a faint pattern for each class under noise, in the shapes of Fashion-MNIST."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randn(10, 1, 28, 28, generator=generator)
    y = torch.randint(10, (70_000,), generator=generator)
    x = torch.randn(70_000, 1, 28, 28, generator=generator).add_(patterns[y], alpha=0.2)
    return x[:60_000], y[:60_000], x[60_000:], y[60_000:]
