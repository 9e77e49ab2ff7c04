"""What the names of measures say: which way is better, and which come first."""

from __future__ import annotations

LOWER = frozenset({"loss", "error", "value", "gap"})
HIGHER = frozenset({"accuracy", "success", "precision", "recall", "f1", "jaccard", "cosine"})
FIRST = ("test_accuracy", "value", "gap", "test_loss", "train_loss", "client_accuracy_p10")
"""What is said first of a run, in this order, where it was measured."""


def lower_is_better(name: str) -> bool:
    """Whether a measure improves downwards: a loss, an error, the value of a function."""
    return not LOWER.isdisjoint(name.split("_"))


def is_measure(name: str) -> bool:
    """Whether a column of metrics.jsonl has a better and a worse."""
    return not (LOWER | HIGHER).isdisjoint(name.split("_"))
