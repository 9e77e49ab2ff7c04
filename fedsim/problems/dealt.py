"""What clients have been dealt: what they are called, and how their labels lie."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedsim.nets.losses import IGNORED
from fedsim.problems.datasets import Dataset
from fedsim.problems.partitions.base import Partition


def owners_names(data: Dataset, partition: Partition) -> list[str] | None:
    """What the clients are called, where each is one of the owners that the data set names."""
    owner, known = data.owner, data.told.get("owners")
    if owner is None or not known:
        return None
    owners, begin = owner[partition.order], partition.offset[:-1]
    lowest, highest = np.minimum.reduceat(owners, begin), np.maximum.reduceat(owners, begin)
    if (lowest != highest).any() or len(np.unique(lowest)) < len(lowest):
        return None
    return [str(known[code]) for code in lowest]


def label_distances(data: Dataset, split: Partition) -> NDArray[np.float64] | None:
    """How far the labels that each client trains on are from those of all clients together, [N], from 0 to 1.

    sum_k |n_ik / n_i - n_k / n| / 2, the total variation distance, n_ik of client i's n_i examples being of class k.
    None: an example has not one class.
    """
    if data.task != "classes" or data.y.ndim > 1:
        return None
    labels, sizes = data.y[split.order].astype(np.int64), np.diff(split.offset)
    kinds, clients = int(labels.max()) + 1, len(sizes)
    of_all = np.bincount(labels, minlength=kinds) / len(labels)
    # of each client those classes that it has, of which alone its share may be larger than that of all
    held, counts = np.unique(np.repeat(np.arange(clients), sizes) * kinds + labels, return_counts=True)
    owner, label = np.divmod(held, kinds)
    excess = np.maximum(counts / sizes[owner] - of_all[label], 0.0)
    return np.bincount(owner, excess, clients).astype(np.float64)


def draw_labels(data: Dataset, split: Partition, names: Sequence[str] | None, path: Path) -> None:
    """Draw which classes or tags the clients have, or how large their numbers are; of several numbers nothing."""
    from fedsim import plots

    if data.task == "numbers" and data.y.ndim > 1:
        return
    kinds = data.told.get("classes") or [str(label) for label in range(data.outputs if data.task != "numbers" else 0)]
    labels, order, offset = data.y, split.order, split.offset
    if labels.ndim > 1:  # all labels of an example, one after the other, come in its place
        dealt = labels[order].reshape(len(order), -1)
        held = dealt > 0 if data.task == "tags" else dealt != IGNORED
        labels = held.nonzero()[1] if data.task == "tags" else dealt[held]
        order, offset = np.arange(len(labels)), np.concatenate(([0], np.cumsum(held.sum(axis=1))))[offset]
    counted: Literal["examples", "places", "tags"]
    counted = "examples" if data.y.ndim == 1 else "tags" if data.task == "tags" else "places"
    plots.label_distribution(plots.Dealt(labels, offset, order, kinds, names, counted), path)
