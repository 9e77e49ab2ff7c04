"""Softmax regression on digits, in NumPy: the data of a node, and what is done with them."""

from functools import cache

import numpy as np
from sklearn.datasets import load_digits


@cache
def digits():
    """Inputs [n, 65], the last one 1, and labels [n], shuffled once."""
    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    inputs = np.hstack([found.data / 16.0, np.ones((len(order), 1))])
    return inputs[order], found.target[order]


def data_of(partition, partitions):
    """The training examples of a node: of p + 1 shares of the first 1,500, so that the last has ten times the first."""
    ends = np.cumsum(np.arange(partitions + 1)) * 1500 // (partitions * (partitions + 1) // 2)
    x, y = digits()
    return x[ends[partition] : ends[partition + 1]], y[ends[partition] : ends[partition + 1]]


def held_out():
    """The examples that no node has."""
    x, y = digits()
    return x[1500:], y[1500:]


def probabilities(weights, x):
    """Of each class [n, 10], by weights [65, 10]."""
    powers = np.exp(x @ weights - (x @ weights).max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def trained(weights, x, y, epochs, batch_size, lr, generator):
    """The weights after epochs of plain SGD, and the mean loss on the way."""
    losses = []
    for _ in range(epochs):
        order = generator.permutation(len(y))
        for begin in range(0, len(y), batch_size):
            own = order[begin : begin + batch_size]
            found = probabilities(weights, x[own])
            losses.append(-np.log(found[np.arange(len(own)), y[own]]).mean())
            found[np.arange(len(own)), y[own]] -= 1.0
            weights = weights - lr * x[own].T @ found / len(own)
    return weights, float(np.mean(losses))
