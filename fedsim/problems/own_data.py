"""Supervised problems from a user's own arrays."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.core.errors import InputError
from fedsim.problems.base import choose_device
from fedsim.problems.datasets import Dataset
from fedsim.problems.partitions.base import Partition
from fedsim.problems.supervised import Supervised


def supervised(
    x: Any,
    y: Any,
    *,
    model: nn.Module,
    clients: Iterable[Any],
    test: tuple[Any, Any] | None = None,
    loss: str | None = None,
    device: str = "auto",
    dtype: torch.dtype = torch.float32,
) -> Supervised:
    """A problem from arrays of your own.

    x: inputs [n, ...], floats or integer tokens. y: class numbers [n], or real targets. model: any module whose
    outputs are [B, classes] (or [B, 1] for real targets); its parameters are where training starts. clients: for each
    client the indices of its examples. test: inputs and targets to judge the global model on; without it the training
    examples are.
    """
    inputs, targets = _array("x", x), _array("y", y)
    held = (inputs, targets) if test is None else (_array("test", test[0]), _array("test", test[1]))
    classes = 0
    if loss != "squared_error" and np.issubdtype(targets.dtype, np.integer):
        classes = 1 + max(int(part.max()) for part in (targets, held[1]) if part.size)
    else:
        targets, held = targets.astype(np.float64), (held[0], held[1].astype(np.float64))
    dataset = Dataset("own", inputs, targets, *held, num_classes=classes)
    partition = Partition.from_lists(list(clients))
    partition.check(dataset)
    return Supervised(
        dataset,
        partition,
        model,
        loss=loss,
        device=choose_device(device),
        dtype=dtype,
    )


def _array(option: str, values: Any) -> np.ndarray[Any, Any]:
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if np.issubdtype(array.dtype, np.floating):
        return array
    if not np.issubdtype(array.dtype, np.integer):
        raise InputError(option, str(array.dtype), "give numbers: floats, class numbers or tokens")
    return array.astype(np.int64)
