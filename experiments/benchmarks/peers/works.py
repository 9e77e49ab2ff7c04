"""The works of the benchmark: data, clients and schedule of each."""

from __future__ import annotations

import gzip
import lzma
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from experiments.benchmarks.peers import networks
from experiments.benchmarks.peers.work import Indices, Paced, Pgd, Work


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
        model=networks.mlp,
        forward=networks.chain_forward,
        epochs=5,
        batch_size=4,
        lr=0.1,
        rounds=10,
        per_round=None,
    )


def digits_32() -> Work:
    """Make the digits with batches of 32: most clients take one step or two an epoch."""
    return replace(digits(), name="digits_32", batch_size=32, rounds=40)


def digits_norm() -> Work:
    """Make 100 clients of 12 of the digits with batch normalisation, of which PyTorch refuses batches of one."""
    work = digits()
    return replace(
        work, name="digits_norm", clients=np.split(np.arange(1200), 100), model=networks.normalised_mlp, rounds=40
    )


def one_hidden() -> Work:
    """Make 10 clients of 60 images, 784-200-10, all in each round, 5 epochs of batches of 10."""
    return _flat(_few_images("one_hidden", 10, 60, networks.one_hidden, networks.chain_forward, epochs=5, lr=0.05))


def two_nn() -> Work:
    """Make 100 clients of 20 images, McMahan's 2NN, all in each round, 5 epochs of batches of 10."""
    return _flat(_few_images("two_nn", 100, 20, networks.two_nn, networks.chain_forward, epochs=5, lr=0.05))


def lenet() -> Work:
    """Make 20 clients of 60 images, LeNet, all in each round, 1 epoch of batches of 10."""
    return _few_images("lenet", 20, 60, networks.lenet, networks.lenet_forward, epochs=1, lr=0.2)


def fedavg_cnn() -> Work:
    """Make 5 clients of 60 images, the CNN of the FedAvg paper, all in each round, 1 epoch of batches of 10."""
    return _few_images("fedavg_cnn", 5, 60, networks.fedavg_cnn, networks.cnn_forward, epochs=1, lr=0.05)


def _few_images(
    name: str,
    clients: int,
    size: int,
    model: Callable[[], nn.Module],
    forward: Callable[[Sequence[Tensor], Tensor], Tensor],
    *,
    epochs: int,
    lr: float,
) -> Work:
    """Take the first images of `images`, `size` for each client, batches of 10, and 2,000 test images."""
    work = images()
    rows = np.concatenate(work.clients)[: clients * size]
    return replace(
        work,
        name=name,
        x=work.x[rows],
        y=work.y[rows],
        clients=np.split(np.arange(clients * size), clients),
        x_test=work.x_test[:2000],
        y_test=work.y_test[:2000],
        model=model,
        forward=forward,
        epochs=epochs,
        batch_size=10,
        lr=lr,
        rounds=40,
        per_round=None,
    )


def _flat(work: Work) -> Work:
    return replace(work, x=work.x.flatten(1), x_test=work.x_test.flatten(1))


def resnet() -> Work:
    """Make 5 clients of 40 images [3, 32, 32], a ResNet with GroupNorm, all in each round, 1 epoch of batches of 10.

    The images are CIFAR-10's when the folder named by FEDSIM_DATA has them, else random ones.
    """
    x, y, x_test, y_test = _cifar() or _random_images((3, 32, 32), test=1_000, train=1_000)
    rows = np.arange(200)
    return Work(
        name="resnet",
        x=x[rows],
        y=y[rows],
        clients=np.split(rows, 5),
        x_test=x_test[:500],
        y_test=y_test[:500],
        model=networks.resnet,
        forward=networks.resnet_forward,
        epochs=1,
        batch_size=10,
        lr=0.1,
        rounds=60,
        per_round=None,
    )


def character_lstm() -> Work:
    """Make 10 clients of 60 texts of 40 characters, an LSTM that says the next, 1 epoch of batches of 10."""
    return _texts("character_lstm", networks.character_lstm, networks.character_lstm_forward, lr=4.0)


def transformer() -> Work:
    """Make 10 clients of 60 texts of 40 characters, an encoder of two layers, 1 epoch of batches of 10."""
    return _texts("transformer", networks.transformer, networks.transformer_forward, lr=0.05)


def _texts(
    name: str,
    model: Callable[[], nn.Module],
    forward: Callable[[Sequence[Tensor], Tensor], Tensor],
    *,
    lr: float,
) -> Work:
    """Cut Shakespeare's text, or a random one where FEDSIM_DATA has none, into pieces with what comes next."""
    text, length, clients, size = _text(), networks.LENGTH, 10, 60
    pieces = text.unfold(0, length + 1, length + 1)[: clients * size + 500]
    x, y = pieces[:, :-1].contiguous(), pieces[:, -1].contiguous()
    count = clients * size
    return Work(
        name=name,
        x=x[:count],
        y=y[:count],
        clients=np.split(np.arange(count), clients),
        x_test=x[count:],
        y_test=y[count:],
        model=model,
        forward=forward,
        epochs=1,
        batch_size=10,
        lr=lr,
        rounds=40,
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
        model=networks.lenet,
        forward=networks.lenet_forward,
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
    x, y, x_test, y_test = _fashion_mnist() or _random_images((1, 28, 28), test=10_000, train=60_000)
    order = np.random.default_rng(0).permutation(len(y))
    return Work(
        name="images",
        x=x,
        y=y,
        clients=np.split(order, 100),
        x_test=x_test,
        y_test=y_test,
        model=networks.cnn,
        forward=networks.cnn_forward,
        epochs=1,
        batch_size=32,
        lr=0.05,
        rounds=21,
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


def _fashion_mnist() -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    folder = _folder("FashionMNIST", "raw")
    if folder is None:
        return None

    def read(name: str, header: int) -> Tensor:
        packed = (folder / f"{name}-ubyte.gz").read_bytes()
        return torch.tensor(np.frombuffer(gzip.decompress(packed), np.uint8, offset=header))

    x, x_test = (read(f"{part}-images-idx3", 16).reshape(-1, 1, 28, 28).float() / 255 for part in ("train", "t10k"))
    y, y_test = (read(f"{part}-labels-idx1", 8).long() for part in ("train", "t10k"))
    return x, y, x_test, y_test


def _cifar() -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    folder = _folder("cifar10_subset")
    if folder is None:
        return None

    def read(part: str) -> Tensor:
        with lzma.open(folder / f"x_{part}.npy.xz") as file:
            images = torch.from_numpy(np.load(file)[:1_000])
        return images.permute(0, 3, 1, 2).float().contiguous() / 255

    labels = np.load(folder / "labels.npz")
    y, y_test = (torch.tensor(labels[f"y_{part}"][:1_000], dtype=torch.int64) for part in ("train", "test"))
    return read("train"), y, read("test"), y_test


def _random_images(shape: tuple[int, ...], test: int, train: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hide a faint pattern for each class under noise."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randn(10, *shape, generator=generator)
    y = torch.randint(10, (train + test,), generator=generator)
    x = torch.randn(len(y), *shape, generator=generator).add_(patterns[y], alpha=0.2)
    return x[:train], y[:train], x[train:], y[train:]


def _text() -> Tensor:
    """A text of symbols below `networks.SYMBOLS`, int64."""
    folder = _folder("shakespeare")
    if folder is None:
        return torch.randint(networks.SYMBOLS, (100_000,), generator=torch.Generator().manual_seed(0))
    letters = np.frombuffer((folder / "input.txt").read_bytes(), np.uint8)
    return torch.from_numpy(np.unique(letters, return_inverse=True)[1].astype(np.int64))


def _folder(*names: str) -> Path | None:
    """A folder of the one that FEDSIM_DATA names, if there."""
    root = os.environ.get("FEDSIM_DATA")
    folder = Path(root or "", *names)
    return folder if root is not None and folder.is_dir() else None
