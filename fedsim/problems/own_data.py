"""Supervised problems from a user's own arrays.

What is handed over is copied, so that a problem stays what it was, and looked through: the first thing that cannot be
used is refused in a line that names the argument.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.core.errors import InputError, one_line
from fedsim.core.memory import no_room
from fedsim.nets.heads import Head, head_of
from fedsim.nets.losses import loss_named
from fedsim.problems.base import choose_device
from fedsim.problems.datasets import Dataset
from fedsim.problems.modules import too_large
from fedsim.problems.partitions.base import Partition
from fedsim.problems.supervised import Supervised

Array = np.ndarray[Any, Any]


def supervised(
    x: Any,
    y: Any,
    *,
    model: nn.Module,
    clients: Iterable[Any],
    test: tuple[Any, Any] | None = None,
    loss: str | None = None,
    head: Mapping[str, Any] | Head | str | int | None = None,
    device: str | torch.device = "auto",
    dtype: torch.dtype = torch.float32,
) -> Supervised:
    """A problem from arrays of your own, which it copies.

    x: inputs [n, ...], floats or integer tokens, all finite. y: class numbers [n] from 0, or real targets. model: any
    module whose outputs are [B, classes], for all classes of the labels or more (or [B, 1] for real targets); its
    parameters are where training starts. clients: for each client the indices of its examples. test: inputs and targets
    to judge the global model on; without it the training examples are. loss: `cross_entropy` of classes; whole numbers
    are targets, too, with `squared_error` or `log_cosh`. By default whole numbers are classes, floats targets.
    head: where in what the model returns its outputs are, as a key, an attribute or a place of a tuple, or a table of
    the options of `problem.head`. device: `auto`, `cpu` or `cuda`. dtype: torch.float32 or torch.float64.
    """
    if dtype not in (torch.float32, torch.float64):
        raise InputError("dtype", str(dtype), "take torch.float32 or torch.float64")
    if loss is not None:
        loss_named(loss)
    inputs, targets = _examples(("x", x), ("y", y), dtype)
    tested = None if test is None else _examples(*_pair(test), dtype)
    whole = targets.dtype.kind == "i"
    if loss == "cross_entropy" and not whole:
        raise InputError("y", str(targets.dtype), "are real numbers, and cross_entropy is of classes: .astype(int)")
    classes = 0
    if loss == "cross_entropy" or (loss is None and whole):
        classes = 1 + max(_largest_class(name, own) for name, own in (("y", targets), ("test", tested and tested[1])))
    else:
        targets, tested = targets.astype(np.float64), tested and (tested[0], tested[1].astype(np.float64))
    if (
        tested is not None and inputs.dtype.kind != tested[0].dtype.kind
    ):  # of which the whole numbers are meant as floats
        inputs, tested = inputs.astype(np.float64), (tested[0].astype(np.float64), tested[1])
    dataset = Dataset("own", inputs, targets, *(tested or (inputs, targets)), num_classes=classes)
    partition = Partition.from_lists(_lists(clients))
    partition.check(dataset)
    try:
        device = choose_device(device, "device")
        return Supervised(dataset, partition, model, loss=loss, head=head_of(head), device=device, dtype=dtype)
    except (MemoryError, RuntimeError) as error:
        if not no_room(error):
            raise
        raise InputError("problem.model", type(model).__name__, too_large(error)) from error


def _pair(test: Any) -> tuple[tuple[str, Any], tuple[str, Any]]:
    if not isinstance(test, tuple | list) or len(test) != 2:
        shown = f"{len(test)} parts" if isinstance(test, tuple | list) else type(test).__name__
        raise InputError("test", shown, "give inputs and targets: test=(x, y)")
    return ("test", test[0]), ("test", test[1])


def _examples(x: tuple[str, Any], y: tuple[str, Any], dtype: torch.dtype) -> tuple[Array, Array]:
    """Inputs [n, ...] and targets [n], each with the name of its argument, as arrays of our own."""
    (option, _), (own, _) = x, y
    inputs, targets = _numbers(*x, dtype), _numbers(*y, dtype)
    if not inputs.ndim or (option == "x" and not len(inputs)):
        raise InputError(option, f"shape {inputs.shape}", "give a row for each example, one at least")
    if targets.shape != (len(inputs),):
        one_hot = "; of one-hot rows take y.argmax(axis=1)" if targets.ndim == 2 and targets.shape[1] > 1 else ""
        remedy = f"give one number for each input, shape {(len(inputs),)}{one_hot}"
        raise InputError(own, f"shape {targets.shape}", remedy)
    return inputs, targets


def _numbers(option: str, values: Any, dtype: torch.dtype) -> Array:
    """A copy of numbers: floats that are finite in this precision, or int64."""
    try:
        array = _as_array(values)
    except MemoryError as error:
        raise InputError(option, type(values).__name__, f"does not fit in this machine's memory ({error})") from error
    except Exception as error:  # of whatever kind is in the argument's own conversion
        raise InputError(option, type(values).__name__, f"is no array of numbers: {one_line(error, 160)}") from error
    if array.dtype.kind == "f":
        wide = array.dtype.itemsize > 8
        array = array.astype(np.float64 if wide else array.dtype.newbyteorder("="))
        _hold_finite(option, array, dtype)
        return array
    if array.dtype.kind == "b":
        raise InputError(option, "bool", "true and false are no numbers; give 0 and 1: .astype(int)")
    if array.dtype.kind not in "iu":
        held = type(values).__name__ if array.dtype.kind == "O" and not array.ndim else str(array.dtype)
        sparse = " (.toarray() makes a sparse matrix one)" if hasattr(values, "toarray") else ""
        raise InputError(option, held, f"give an array of numbers: floats, class numbers or tokens{sparse}")
    if array.size and int(array.max()) >= 2**63:
        raise InputError(option, str(array.max()), "whole numbers have 63 bits; take a smaller one")
    return array.astype(np.int64)


def _as_array(values: Any) -> Array:
    if isinstance(values, Tensor):
        tensor = values.detach().to("cpu")
        return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    if np.ma.is_masked(values):
        raise ValueError("some of its values are masked; fill them in, or leave these examples out")
    if isinstance(values, list | tuple) and values and isinstance(values[0], Tensor):
        return np.stack([_as_array(row) for row in values])
    return np.asarray(values)


def _hold_finite(option: str, array: Array, dtype: torch.dtype) -> None:
    """Refuse NaN, infinity, and what would be infinite in this precision, and say in which example."""
    largest = torch.finfo(dtype).max
    if not array.size or (-largest <= float(array.min()) and float(array.max()) <= largest):  # neither of which NaN is
        return
    beyond = ~(np.abs(array) <= largest).reshape(len(array) if array.ndim else 1, -1)
    row = int(beyond.any(axis=1).argmax())
    value = float(array.reshape(len(beyond), -1)[row][beyond[row]][0])
    remedy = (
        f"of example {row}, is not finite in {str(dtype).removeprefix('torch.')}; mend the example, or leave it out"
    )
    raise InputError(option, f"{value:g}", remedy)


def _largest_class(option: str, labels: Array | None) -> int:
    """The largest class number there is. InputError: these are no class numbers."""
    if labels is None or not len(labels):
        return 0
    if labels.dtype.kind == "f":
        raise InputError(
            option, str(labels.dtype), "its targets are real numbers, and those of y are classes: .astype(int)"
        )
    if labels.min() < 0:
        raise InputError(option, f"labels {labels.min()} .. {labels.max()}", "classes are numbered from 0")
    return int(labels.max())


def _lists(clients: Any) -> list[Any]:
    """The index lists of the clients, one each."""
    remedy = "give for each client the indices of its examples, such as [[0, 1], [2, 3, 4]]"
    if isinstance(clients, str | Mapping) or not isinstance(clients, Iterable):
        raise InputError("clients", one_line(repr(clients), 60), remedy)
    lists = list(clients)
    if not lists:
        raise InputError("clients", "[]", remedy)
    if isinstance(lists[0], int | np.integer):
        raise InputError(
            "clients", f"{len(lists)} numbers", f"{remedy}; of owners np.flatnonzero(owner == c) for each c"
        )
    return lists
