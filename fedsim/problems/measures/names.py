"""Short names of measures, as experiments write them: `f1_macro` for `{kind = "f1", average = "macro"}`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fedsim.core.errors import InputError
from fedsim.core.near import name_one
from fedsim.core.plugins import names

AVERAGES = {
    f"{kind}_{average}": {"kind": kind, "average": average}
    for kind in ("f1", "precision", "recall", "jaccard")
    for average in ("macro", "micro", "weighted", "samples")
}
SHORT: Mapping[str, Mapping[str, Any]] = {
    **AVERAGES,
    "mean_iou": {"kind": "jaccard", "average": "macro", "name": "mean_iou"},
    "token_accuracy": {"kind": "accuracy", "name": "token_accuracy"},
}
TOP_K = re.compile(r"top_([1-9][0-9]{0,5})_accuracy")
ELSEWHERE = {
    "roc_auc": "auroc",
    "roc_auc_score": "auroc",
    "auc": "auroc",
    "f1_score": "f1_macro",
    "matthews_corrcoef": "matthews",
    "mcc": "matthews",
    "kappa": "cohen_kappa",
    "cross_entropy": "log_loss",
    "brier_score": "brier",
    "brier_score_loss": "brier",
    "calibration_error": "ece",
    "iou": "mean_iou",
    "jaccard_score": "jaccard_macro",
    "mean_absolute_error": "mae",
    "mean_squared_error": "mse",
    "root_mean_squared_error": "rmse",
    "mean_absolute_percentage_error": "mape",
    "r2_score": "r2",
    "mean_pinball_loss": "pinball",
}
"""What libraries call measures that have another name here."""


def tables(given: Any) -> Any:
    """A list of measures as plug-ins are written: what is a short name becomes its table.

    InputError: a name is none, with the one that may be meant.
    """
    if isinstance(given, str | Mapping):
        given = (given,)
    if not isinstance(given, Sequence):
        return given
    return tuple(_table(one, number) if isinstance(one, str) else one for number, one in enumerate(given))


def spelled(name: str) -> dict[str, Any] | None:
    """The table that a short name stands for; None: it is no short name."""
    top = TOP_K.fullmatch(name)
    if top is not None:
        return {"kind": "top_k_accuracy", "k": int(top[1])}
    return dict(SHORT[name]) if name in SHORT else None


def _table(name: str, number: int) -> str | Mapping[str, Any]:
    table, installed = spelled(name), names("measures")
    if table is not None:
        return table
    if name in ELSEWHERE:
        raise InputError(str(number), name, f"is called {ELSEWHERE[name]} here")
    if ":" not in name and not name.endswith(".py") and name not in installed:
        raise InputError(str(number), name, name_one(name, sorted({*installed, *SHORT, "top_5_accuracy"})))
    return name
