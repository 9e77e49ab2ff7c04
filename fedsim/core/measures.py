"""What the names of columns say: which way is better, under which attack, and which come first.

asked: whether higher is better, by the label of each measure that a run was asked for (`evaluation.metrics`). Of other
columns, as losses, accuracies, what strategies observe and values of functions, the words in their names say it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

LOWER = frozenset({"loss", "error", "value", "gap", "std"})
HIGHER = frozenset({"accuracy", "success", "precision", "recall", "f1", "jaccard", "cosine", "gain"})
FIRST = (
    *(
        "test_accuracy",
        "validation_accuracy",
        "personal_accuracy",
        "personal_gain",
        "newcomer_accuracy",
        "value",
        "gap",
    ),
    *("test_loss", "validation_loss", "train_loss", "client_accuracy_p10", "personal_accuracy_p10"),
)
"""What is said first of a run, in this order, where it was measured."""
SETS = r"test|global_train|(validation_)?(client|personal|newcomer)|validation"
"""How columns of models begin: whose examples they are about."""
COLUMN = re.compile(rf"({SETS})_(?P<what>\w+?)(_(mean|p10|p90|worst))?")
"""Columns of models: whose examples, under which attack, which measure, and what of the clients' values it is."""
CENTRAL = ("test", "validation", "personal", "newcomer")
"""Whose measures are said of a run beside its others."""
ALWAYS = ("accuracy", "loss")
UNDEFINED = "_undefined"
"""The end of a column that counts the clients for which a measure is undefined."""
WAYS = {"higher": True, "lower": False}
"""How a run notes which way a measure improves."""
Asked = Mapping[str, bool]
NOTHING: Asked = MappingProxyType({})


def attack_of(name: str, asked: Asked = NOTHING) -> str:
    """The label of the attack under which a measure was taken, such as `pgd20`; empty: none."""
    what, label = _parts(name, asked)
    return what.removesuffix(label).removesuffix("_") if label else ""


def label_of(name: str, asked: Asked) -> str | None:
    """The measure that was asked for and that a column is about; None: it is about none of them."""
    label = _parts(name, asked)[1]
    return label if label in asked else None


def lower_is_better(name: str, asked: Asked = NOTHING) -> bool:
    """Whether a measure improves downwards: as it says itself, or as a loss, an error, the value of a function."""
    label = label_of(name, asked)
    return not LOWER.isdisjoint(name.split("_")) if label is None else not asked[label]


def is_measure(name: str, asked: Asked = NOTHING) -> bool:
    """Whether a column of metrics.jsonl has a better and a worse."""
    if name.endswith(UNDEFINED):
        return False
    return label_of(name, asked) is not None or not (LOWER | HIGHER).isdisjoint(name.split("_"))


def gains(numbers: Mapping[str, float | None]) -> dict[str, float]:
    """How much better clients' own models are than the global one on the same examples, of columns that say so of both.

    As personal_gain, and of examples set aside validation_personal_gain: the difference of the accuracies, or, where
    there are none, of the losses.
    """
    found: dict[str, float] = {}
    for on in ("", "validation_"):
        for kind, sign in (("loss", -1.0), ("accuracy", 1.0)):
            own, everybodys = numbers.get(f"{on}personal_{kind}"), numbers.get(f"{on}client_{kind}")
            if own is not None and everybodys is not None:
                found[f"{on}personal_gain"] = sign * (own - everybodys)
    return found


def first(asked: Asked) -> tuple[str, ...]:
    """What is said first of a run, where it was measured: `FIRST`, with what was asked for after the test accuracy."""
    labels = [label for label in asked if label not in ALWAYS]
    return (FIRST[0], *(f"{whose}_{label}" for label in labels for whose in CENTRAL), *FIRST[1:])


def noted(asked: Asked) -> dict[str, str]:
    """Which way each measure improves, as config.toml has it: `higher` or `lower`."""
    return {label: next(word for word, way in WAYS.items() if way == higher) for label, higher in asked.items()}


def as_noted(table: object) -> dict[str, bool] | None:
    """What `noted` has written, as it was; None: it has not written this."""
    if not isinstance(table, Mapping) or not all(isinstance(way, str) and way in WAYS for way in table.values()):
        return None
    return {str(label): WAYS[way] for label, way in table.items()}


def _parts(name: str, asked: Asked) -> tuple[str, str]:
    """Of a column what stands between whose and what of it, and the measure with which that ends; both may be empty."""
    found = COLUMN.fullmatch(name)
    what = "" if found is None or name.endswith(UNDEFINED) else found["what"]
    ends = (label for label in (*asked, *ALWAYS) if what == label or what.endswith(f"_{label}"))
    return what, max(ends, key=len, default="")
