"""Supervised problems from a user's own arrays.

What is handed over is copied, so that a problem stays what it was, and looked through: the first thing that cannot be
used is refused in a line that names the argument.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.core.errors import InputError, one_line
from fedsim.core.memory import no_room
from fedsim.core.near import name_one
from fedsim.nets.heads import Head, head_of
from fedsim.nets.losses import IGNORED, Loss, Targets, loss_of
from fedsim.nets.selection import Selection
from fedsim.problems.base import choose_device
from fedsim.problems.datasets import Dataset
from fedsim.problems.datasets.base import TARGETS, Task
from fedsim.problems.modules import too_large
from fedsim.problems.normalisation import Normalisation, Rule
from fedsim.problems.partitions.base import Partition, listed
from fedsim.problems.partitions.newcomers import parted_clients, parted_newcomers
from fedsim.problems.partitions.validation import set_aside
from fedsim.problems.public import hold_alike
from fedsim.problems.supervised import Supervised

Array = np.ndarray[Any, Any]


def supervised(
    x: Any,
    y: Any,
    *,
    model: nn.Module,
    clients: Iterable[Any],
    test: tuple[Any, Any] | None = None,
    test_clients: Iterable[Any] | None = None,
    validation: float | Iterable[Any] | None = None,
    newcomers: float | Iterable[int] | None = None,
    loss: str | Mapping[str, Any] | Loss | Callable[[Tensor, Tensor], Any] | None = None,
    task: Task | None = None,
    num_classes: int | None = None,
    head: Mapping[str, Any] | Head | str | int | None = None,
    statistics: Rule | None = None,
    shared: Selection = "all",
    public: Any = None,
    device: str | torch.device = "auto",
    dtype: torch.dtype = torch.float32,
) -> Supervised:
    """A problem from arrays of your own, which it copies.

    x: inputs [n, ...], floats or integer tokens, all finite. y: class numbers from 0, [n] or [n, *places], one for each
    token or pixel, -100 where none counts; or real targets [n] or [n, k]; or tags [n, k], 0 and 1. model: any module
    whose outputs are [B, *places, classes], for all classes of the labels or more (or [B, k] for numbers and tags,
    [B, 1] for targets [n]); its parameters are where training starts. clients: for each client the indices of its
    examples. test: inputs and targets to judge the global model on; without it the training examples are. test_clients:
    for each client the indices of the test examples that it is judged on itself; without it they are its own for
    training. validation: what `evaluation.on = "validation"` is about: the share of each client's examples that nobody
    trains on, drawn as under seed 0 (see `partition.validation`); or for each client the indices of such examples,
    which no list of `clients` has. newcomers: the share of the clients, drawn as under seed 0, or the numbers of those,
    who never take part and are judged on their test or validation examples (see `partition.newcomers`). loss: a name, a
    table with `kind` and options, a `Loss`, or a function of outputs and targets that gives a loss for each example,
    see `fedsim.nets.losses.Given`; by default cross_entropy of classes, squared_error of numbers, binary_cross_entropy
    of tags. task: `classification`, `regression` or `tags`; by default what the loss is for, or else whole numbers are
    classes and floats targets of a regression. num_classes: how many classes there are, where labels need not have all.
    head: where in what the model returns its outputs are, as a key, an attribute or a place of a tuple, or a table of
    the options of `problem.head`. statistics: what becomes of the running statistics of batch normalisation, `averaged`
    (by default), `pooled`, `frozen`, `local_statistics` or `local`; see `problem.normalisation`. shared: what alone
    crosses of the parameters, as in `problem.shared`, where all others stay with each client: `body`, `head`, names, a
    list of these, or `{"not": ...}`. public: inputs like x without targets, [m, ...], which the server has for
    strategies that distil; leave them out of `clients` if they are of x. device: `auto`, `cpu` or `cuda`. dtype:
    torch.float32 or torch.float64.
    """
    if dtype not in (torch.float32, torch.float64):
        raise InputError("dtype", str(dtype), "take torch.float32 or torch.float64")
    normalisation = None if statistics is None else Normalisation(statistics=statistics)
    named = None if loss is None else loss_of(loss)
    inputs, targets = _examples(("x", x), ("y", y), dtype)
    tested = None if test is None else _examples(*_pair(test), dtype)
    kind = _kind(targets, named, task)
    classes = 0
    if kind == "classes":
        classes = 1 + max(_largest_class(name, own) for name, own in (("y", targets), ("test", tested and tested[1])))
        if num_classes is not None and (type(num_classes) is not int or num_classes < classes):
            raise InputError(
                "num_classes", num_classes, f"give a whole number, of labels up to {classes - 1} at least {classes}"
            )
        classes = num_classes or classes
    else:
        if num_classes is not None:
            raise InputError("num_classes", num_classes, f"the targets are {kind}, not classes; leave it out")
        targets, tested = targets.astype(np.float64), tested and (tested[0], tested[1].astype(np.float64))
    if tested is not None and tested[1].shape[1:] != targets.shape[1:]:
        remedy = f"give targets like those of y, of shape {(len(tested[0]), *targets.shape[1:])}"
        raise InputError("test", f"shape {tested[1].shape}", remedy)
    if (
        tested is not None and inputs.dtype.kind != tested[0].dtype.kind
    ):  # of which the whole numbers are meant as floats
        inputs, tested = inputs.astype(np.float64), (tested[0].astype(np.float64), tested[1])
    dataset = Dataset("own", inputs, targets, *(tested or (inputs, targets)), num_classes=classes, tags=kind == "tags")
    if test_clients is not None and test is None:
        raise InputError("test_clients", "given", "are indices of test examples; give test, too, or leave them out")
    lists, tests = _lists(clients, "clients"), None if test_clients is None else _lists(test_clients, "test_clients")
    if tests is not None and len(tests) != len(lists):
        raise InputError("test_clients", f"{len(tests)} lists", f"there are {len(lists)} clients; give a list for each")
    partition = Partition.from_lists(lists, tests)
    partition.check(dataset)
    if validation is not None:
        partition = _validated(partition, validation)
        partition.check(dataset)
    unlabelled = None if public is None else _numbers("public", public, dtype)
    if unlabelled is not None:
        unlabelled = unlabelled.astype(np.float64) if inputs.dtype.kind == "f" else unlabelled
        hold_alike(unlabelled, inputs, "public", "inputs")
    partition, others = _parted(partition, newcomers)
    try:
        device = choose_device(device, "device")
        problem = Supervised(
            dataset,
            partition,
            model,
            loss=named,
            head=head_of(head),
            device=device,
            dtype=dtype,
            statistics=None if normalisation is None else normalisation.shared,
            public=unlabelled,
            newcomers=others,
        )
    except (MemoryError, RuntimeError) as error:
        if not no_room(error):
            raise
        raise InputError("problem.model", type(model).__name__, too_large(error)) from error
    private = () if normalisation is None else normalisation.private
    return (problem.keeping(*private) if private else problem).sharing(shared)


def _validated(partition: Partition, validation: Any) -> Partition:
    """The partition with examples for validation: a share of each client's, or those that are named for each."""
    if isinstance(validation, int | float):
        if not 0 < validation < 1:
            raise InputError("validation", validation, "give a share above 0 and below 1, or for each client indices")
        try:
            return set_aside(partition, validation, None, seed=0)
        except InputError as error:
            raise InputError("validation", validation, error.remedy) from None
    lists = _lists(validation, "validation")
    if len(lists) != partition.clients:
        remedy = f"there are {partition.clients} clients; give a list for each"
        raise InputError("validation", f"{len(lists)} lists", remedy)
    order, offset = listed(lists, "validation")
    if not len(order):
        raise InputError("validation", "no example", "name some, or give a share such as 0.2")
    trained = order[np.isin(order, partition.order)]
    if len(trained):
        remedy = "is in a list of clients, too, and would be trained on; take it out of one"
        raise InputError("validation", f"example {trained[0]}", remedy)
    return replace(partition, validation_order=order, validation_offset=offset)


def _parted(partition: Partition, newcomers: Any) -> tuple[Partition, Partition | None]:
    """The partition of those who take part, and that of newcomers: a share of the clients, or some by their numbers."""
    if newcomers is None:
        return partition, None
    remedy = "give a share above 0 and below 1, or the numbers of clients, and leave some others"
    if isinstance(newcomers, float):
        if not 0 < newcomers < 1:
            raise InputError("newcomers", newcomers, remedy)
        try:
            return parted_newcomers(partition, newcomers, seed=0)
        except InputError as error:
            raise InputError("newcomers", newcomers, error.remedy) from None
    try:
        numbers = np.unique(np.asarray(list(newcomers)))
    except (TypeError, ValueError) as error:
        raise InputError("newcomers", one_line(repr(newcomers), 60), remedy) from error
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu" or not 0 < len(numbers) < partition.clients:
        raise InputError("newcomers", one_line(repr(newcomers), 60), remedy)
    if numbers[0] < 0 or numbers[-1] >= partition.clients:
        wrong = numbers[0] if numbers[0] < 0 else numbers[-1]
        raise InputError("newcomers", int(wrong), f"clients are numbered from 0 to {partition.clients - 1}")
    return parted_clients(partition, numbers.astype(np.int64))


def _pair(test: Any) -> tuple[tuple[str, Any], tuple[str, Any]]:
    if not isinstance(test, tuple | list) or len(test) != 2:
        shown = f"{len(test)} parts" if isinstance(test, tuple | list) else type(test).__name__
        raise InputError("test", shown, "give inputs and targets: test=(x, y)")
    return ("test", test[0]), ("test", test[1])


def _examples(x: tuple[str, Any], y: tuple[str, Any], dtype: torch.dtype) -> tuple[Array, Array]:
    """Inputs [n, ...] and targets [n, ...], each with the name of its argument, as arrays of our own."""
    (option, _), (own, _) = x, y
    inputs, targets = _numbers(*x, dtype), _numbers(*y, dtype)
    if not inputs.ndim or (option == "x" and not len(inputs)):
        raise InputError(option, f"shape {inputs.shape}", "give a row for each example, one at least")
    if not targets.ndim or len(targets) != len(inputs) or 0 in targets.shape[1:]:
        remedy = f"give one number for each input, shape {(len(inputs),)}, or several"
        raise InputError(own, f"shape {targets.shape}", remedy)
    return inputs, targets


def _kind(y: Array, loss: Loss | None, task: Task | None) -> Targets:
    """What targets y [n, ...] are meant as. InputError: they cannot be that, or nobody has said which."""
    tasks = get_args(Task)
    if task is not None and task not in tasks:
        raise InputError("task", task, name_one(task, tasks))
    kinds = (TARGETS[task],) if task is not None else () if loss is None else loss.tasks
    shape = f"shape {y.shape}"
    if len(kinds) == 1:
        (kind,) = kinds
    elif y.ndim == 2 and y.shape[1] > 1 and np.isin(y, (0, 1)).all():
        remedy = 'of 0 and 1 may be tags (task="tags"), numbers ("regression") or classes of places ("classification")'
        raise InputError("y", shape, f"{remedy}: say which; of one-hot rows take y.argmax(axis=1)")
    else:
        kind = "classes" if y.dtype.kind == "i" else "numbers"
    if kind == "classes" and y.dtype.kind == "f":
        of = "cross_entropy" if task is None else task
        raise InputError("y", str(y.dtype), f"are real numbers, and {of} is of classes: .astype(int)")
    if kind == "classes" and y.shape[1:] == (1,):
        raise InputError("y", shape, f"give one number for each input, shape {(len(y),)}: .ravel()")
    if kind != "classes" and y.ndim > 2:
        raise InputError("y", shape, f"give one row of {kind} for each input, shape ({len(y)}, {kind})")
    if kind == "tags" and (y.ndim != 2 or not np.isin(y, (0, 1)).all()):
        raise InputError("y", shape, f"are no tags; give 0 and 1, shape ({len(y)}, tags)")
    return kind


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
    labels = labels[labels != IGNORED] if labels.ndim > 1 else labels
    if not labels.size:
        return 0
    if labels.dtype.kind == "f":
        raise InputError(
            option, str(labels.dtype), "its targets are real numbers, and those of y are classes: .astype(int)"
        )
    if labels.min() < 0:
        raise InputError(option, f"labels {labels.min()} .. {labels.max()}", "classes are numbered from 0")
    return int(labels.max())


def _lists(clients: Any, option: str) -> list[Any]:
    """The index lists of the clients, one each. option: which argument they are."""
    remedy = "give for each client the indices of its examples, such as [[0, 1], [2, 3, 4]]"
    if isinstance(clients, str | Mapping) or not isinstance(clients, Iterable):
        raise InputError(option, one_line(repr(clients), 60), remedy)
    lists = list(clients)
    if not lists:
        raise InputError(option, "[]", remedy)
    if isinstance(lists[0], int | np.integer):
        raise InputError(option, f"{len(lists)} numbers", f"{remedy}; of owners np.flatnonzero(owner == c) for each c")
    return lists
