"""Trackers: where a run is told while it goes on, beside its folder: TensorBoard, MLflow, W&B, a table.

An author of a tracker imports all that it needs from here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedsim.core.lazy import lazily

if TYPE_CHECKING:
    from fedsim.core.errors import InputError
    from fedsim.core.options import PositiveFloat, PositiveInt, Texts, options
    from fedsim.trackers.base import Ending, Group, Log, Row, TrackedRun, Tracker
    from fedsim.trackers.csv import CSV
    from fedsim.trackers.mlflow import MLflow
    from fedsim.trackers.tensorboard import TensorBoard
    from fedsim.trackers.wandb import WandB

# Loaded when first asked for: the commands ask at their end whether a tracker hangs.
_HOMES = {
    "CSV": "fedsim.trackers.csv",
    "Ending": "fedsim.trackers.base",
    "Group": "fedsim.trackers.base",
    "InputError": "fedsim.core.errors",
    "MLflow": "fedsim.trackers.mlflow",
    "Log": "fedsim.trackers.base",
    "PositiveFloat": "fedsim.core.options",
    "PositiveInt": "fedsim.core.options",
    "Row": "fedsim.trackers.base",
    "TensorBoard": "fedsim.trackers.tensorboard",
    "Texts": "fedsim.core.options",
    "TrackedRun": "fedsim.trackers.base",
    "Tracker": "fedsim.trackers.base",
    "WandB": "fedsim.trackers.wandb",
    "options": "fedsim.core.options",
}

__all__ = [
    "CSV",
    "Ending",
    "Group",
    "InputError",
    "Log",
    "MLflow",
    "PositiveFloat",
    "PositiveInt",
    "Row",
    "TensorBoard",
    "Texts",
    "TrackedRun",
    "Tracker",
    "WandB",
    "options",
]

__getattr__, __dir__ = lazily(__name__, _HOMES)
