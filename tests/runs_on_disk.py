"""Small runs on the disk, for the tests of what reads them."""

from __future__ import annotations

import math
from pathlib import Path

from fedsim.running.folder import RunFolder


def write(path: Path, accuracies: list[float | None], *, seed: int = 0, lr: float = 0.1, **options: object) -> Path:
    """A run that evaluates in every second round only, and in the last; test_loss = 1 - accuracy."""
    with RunFolder.create(path, "x") as folder:
        folder.write_config({"name": "x", "seed": seed, "client": {"kind": "sgd", "lr": lr}, **options})
        for number, accuracy in enumerate(accuracies, start=1):
            row = {"round": number, "time": 2.0 * number, "wall": 0.5 * number, "clients": 10}
            row |= {
                "bytes_up": 2**18,
                "bytes_down": 2**19,
                "queries": 0,
                "failed": 0,
                "train_loss": 1.0 / number,
            }
            if number % 2 == 0 or number == len(accuracies):
                row["test_accuracy"] = math.nan if accuracy is None else accuracy
                row["test_loss"] = math.nan if accuracy is None else 1 - accuracy
            folder.append(row)
    return path
