"""What the names of measures say: which way is better, and which come first."""

from __future__ import annotations

import re

LOWER = frozenset({"loss", "error", "value", "gap", "std"})
HIGHER = frozenset({"accuracy", "success", "precision", "recall", "f1", "jaccard", "cosine"})
FIRST = ("test_accuracy", "personal_accuracy", "value", "gap", "test_loss", "train_loss", "client_accuracy_p10")
"""What is said first of a run, in this order, where it was measured."""
ATTACKED = re.compile(r"(test|global_train|client)_(?P<attack>\w+)_(accuracy|loss)(_(mean|p10|worst))?")


def attack_of(name: str) -> str:
    """The label of the attack under which a measure was taken, such as `pgd20`; empty: none."""
    found = ATTACKED.fullmatch(name)
    return found["attack"] if found else ""


def lower_is_better(name: str) -> bool:
    """Whether a measure improves downwards: a loss, an error, the value of a function."""
    return not LOWER.isdisjoint(name.split("_"))


def is_measure(name: str) -> bool:
    """Whether a column of metrics.jsonl has a better and a worse."""
    return not (LOWER | HIGHER).isdisjoint(name.split("_"))
