"""The schedule that a finished run suggests for the next one like it (Defazio et al. 2023, algorithm 1).

w_r = G_r^-2 of a run whose steps are as long as their gradients, or G_r^-1 of l1 norms, where steps are of Adam's kind
factor_r = w_r sum_{s > r} w_s, divided by the largest factor

G_r is how long the mean change of round r is, divided by the factor of the run's own schedule, smoothed by a median
filter. Norms that are all the same give the linear decay to 0; norms that fall give a rate that rises before it falls.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from fedsim.core.errors import InputError
from fedsim.core.schedules import Constant, Schedule
from fedsim.running.history import Row
from fedsim.running.stored import StoredRun

Norm = Literal["l2", "l1"]
COLUMNS: dict[Norm, tuple[str, float]] = {"l2": ("change_norm", 2.0), "l1": ("change_norm_l1", 1.0)}
"""The column of metrics.jsonl that has a norm, and the power of it by which rounds are weighed."""


def schedule_of(folder: Path, norm: Norm = "l2", smooth: float = 0.1) -> list[float]:
    """Factors of the rounds of a next run like that in a folder, one a round of it. smooth: see `smoothed`.

    InputError: the run does not say how long its rounds' changes were, or not of each; or it has not ended.
    """
    if not 0.0 <= smooth <= 1.0:
        raise InputError("smooth", smooth, "is the share of the rounds that a median is of; give 0 to 1")
    run, (column, power) = StoredRun(folder), COLUMNS[norm]
    config = run.config()
    told = _norms(folder, run.rows(), column, _own(config.get("client", {})))
    if run.ended(config) is None:
        remedy = "its schedule would fall to 0 where it has come to; have it end, or go on with fedsim run --resume"
        raise InputError("run", str(folder), f"is {run.status(config)}: {remedy}")
    return refined(smoothed(told, smooth) ** -power)


def refined(weights: NDArray[np.float64]) -> list[float]:
    """Factors [T] of rounds that are weighed so, [T]: the largest is 1, the last 0."""
    later = weights.sum() - weights.cumsum()
    later[-1] = 0.0  # not what rounding leaves of it
    factors = weights * later
    found: list[float] = (factors / factors.max()).tolist()
    return found


def smoothed(norms: NDArray[np.float64], share: float) -> NDArray[np.float64]:
    """The medians of 2 floor(T share / 2) + 1 norms around each of T.

    Beyond the first norm there is that norm, and beyond the last they come again, the last one first.
    """
    half = int(len(norms) * share / 2)
    around = np.concatenate([np.full(half, norms[0]), norms, norms[::-1][:half]])
    medians: NDArray[np.float64] = np.median(np.lib.stride_tricks.sliding_window_view(around, 2 * half + 1), axis=1)
    return medians


def _own(client: dict[str, Any]) -> Schedule:
    """The schedule of a run's learning rate, by the table of its client."""
    epochs = client.get("epochs_schedule", {"kind": "constant"})
    if epochs != {"kind": "constant"}:
        remedy = "rounds differ in their epochs, by which their changes do not tell of gradients; take another run"
        raise InputError("run", epochs["kind"], remedy)
    adapter: TypeAdapter[Schedule] = TypeAdapter(Schedule)
    return adapter.validate_python(client.get("schedule", Constant()))


def _norms(folder: Path, rows: Sequence[Row], column: str, own: Schedule) -> NDArray[np.float64]:
    """How long the change of each round would have been at the base rate, [T]."""
    remedy = "run it with strategy.report_norms = true"
    if not any(column in row for row in rows):
        raise InputError("run", str(folder), f"does not say how long its changes were; {remedy}")
    found = []
    for number, row in enumerate(rows, start=1):
        factor = own.factor(number - 1)
        if row["round"] != number:
            raise InputError(
                "run", str(folder), "has not a row a round, which asynchronous strategies have not; take another"
            )
        if not row.get(column) or not factor:
            why = "its rate was 0" if not factor else "nobody moved the model"
            raise InputError("run", str(folder), f"round {number} tells of no gradient, for {why}; take another run")
        found.append(row[column] / factor)
    if len(found) < 2:
        raise InputError("run", str(folder), "has a single round, and a schedule is of several; take another run")
    return np.array(found, dtype=np.float64)
