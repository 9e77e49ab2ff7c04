"""The data, and a model of one layer, whose arrays are called as PyTorch calls them: weight [10, 64] and bias [10]."""

from functools import cache

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

Arrays = dict[str, NDArray[np.float32]]
STEPS, RATE = 5, 0.5


def initial() -> Arrays:
    """The model to start from."""
    return {"weight": np.zeros((10, 64), np.float32), "bias": np.zeros(10, np.float32)}


@cache
def digits(held_out: bool) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Every fifth example, which is held out, or the others: x [n, 64], y [n]."""
    data = load_digits()
    mine = (np.arange(len(data.target)) % 5 == 0) == held_out
    return (data.data[mine] / 16).astype(np.float32), data.target[mine]


def load_data(partition: int, partitions: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """A node's examples: sorted by class and cut into pieces, of which it has two; the later nodes have larger ones."""
    x, y = digits(held_out=False)
    shares = np.tile(1.0 + np.arange(partitions) / partitions, 2).cumsum()
    cuts = (len(y) * shares / shares[-1]).astype(int)[:-1]
    pieces = np.split(np.argsort(y, kind="stable"), cuts)
    mine = np.concatenate((pieces[partition], pieces[partitions + partition]))
    return x[mine], y[mine]


def probabilities(model: Arrays, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of each class, [n, 10]."""
    scores = x @ model["weight"].T + model["bias"]
    found: NDArray[np.float32] = np.exp(scores - scores.max(axis=1, keepdims=True))
    return found / found.sum(axis=1, keepdims=True)


def trained(
    model: Arrays, x: NDArray[np.float32], y: NDArray[np.int64], correction: Arrays | None = None
) -> tuple[Arrays, float]:
    """The model after STEPS steps of size RATE over all examples, and the mean loss before them.

    correction: what is added to each gradient.
    """
    losses, rows = [], np.arange(len(y))
    for _ in range(STEPS):
        found = probabilities(model, x)
        losses.append(float(-np.log(found[rows, y]).mean()))
        found[rows, y] -= 1
        found /= np.float32(len(y))
        gradient = {"weight": found.T @ x, "bias": found.sum(axis=0)}
        if correction is not None:
            gradient = {name: array + correction[name] for name, array in gradient.items()}
        model = {name: array - np.float32(RATE) * gradient[name] for name, array in model.items()}
    return model, sum(losses) / STEPS


def accuracy(model: Arrays) -> float:
    """The share of the held-out digits that the model gets right."""
    x, y = digits(held_out=True)
    return float((probabilities(model, x).argmax(axis=1) == y).mean())
