"""What is searched, and how: a function for each partition, and strategies with the clients that go with them."""

import zlib

import numpy as np

BOX = (0.0, 1.0)
METHODS = {
    "fedes": ({"kind": "fedes", "lr": 0.1, "sigma": 0.05}, {"kind": "fedes"}),
    "fedzo": ({"kind": "fedzo"}, {"kind": "fedzo", "steps": 5, "lr": 0.05}),
    "fzoos": ({"kind": "fzoos"}, {"kind": "fzoos", "steps": 5, "lr": 0.05, "features": 500, "noise": 1e-3}),
    "scaffold_zo": ({"kind": "scaffold_zo"}, {"kind": "scaffold_zo", "steps": 5, "lr": 0.05}),
    "decomfl": ({"kind": "decomfl", "lr": 0.1, "steps": 5}, {"kind": "decomfl", "mu": 0.05}),
    "fedkseed": ({"kind": "fedkseed", "lr": 0.1, "pool": 256}, {"kind": "fedkseed", "steps": 5, "mu": 0.05}),
    "one_byte": ({"kind": "one_byte", "lr": 0.4, "samples": 5}, {"kind": "one_byte", "mu": 0.05}),
    "cma_es": ({"kind": "cma_es", "sigma": 0.2}, {"kind": "values"}),
}
"""By the method's name a strategy and its client, as tables of an experiment."""


def distances(points, partition):
    """The mean square of the way [Q, d] to where a partition would have it: [Q]."""
    centre = np.random.default_rng(partition).uniform(0.5, 0.9, points.shape[-1])
    return ((points - centre) ** 2).mean(axis=-1)


def cost(points, context):
    """What a node is asked for: its function at points [Q, d], with noise that is the same for the same point."""
    partition, noise = context.node_config["partition-id"], context.run_config["noise"]
    seeds = [[partition, zlib.crc32(point.tobytes())] for point in points]
    drawn = np.array([np.random.default_rng(seed).normal() for seed in seeds])
    return distances(points, partition) + noise * drawn
