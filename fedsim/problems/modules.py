"""Modules that can be trained: made to fit a data set, refused where they cannot be, started from a state dict."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.core.errors import InputError, named_line, one_line
from fedsim.core.memory import no_room
from fedsim.core.plugins import kind_of
from fedsim.core.streams import Streams
from fedsim.nets.heads import Head, fitted, inside, which
from fedsim.nets.losses import (
    IGNORED,
    BinaryCrossEntropy,
    CrossEntropy,
    Loss,
    SquaredError,
    Targets,
    loss_of,
)
from fedsim.problems.datasets import Dataset
from fedsim.problems.models.layers import initialise
from fedsim.problems.models.weights import read_weights


def build_model(made: Any, dataset: Dataset, streams: Streams) -> nn.Module:
    """The model that options describe, to fit a data set, with initial parameters of the named draws."""
    if dataset.padding is not None and getattr(made, "padding", dataset.padding) is None:
        made = replace(made, padding=dataset.padding)
    try:
        # A plug-in's layers may draw their parameters from the global generator when they are made.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(streams.derive("model") & 0xFFFFFFFF)
            model: nn.Module = made.build(dataset.x.shape[1:], dataset.outputs, dataset.vocabulary)
    except InputError as error:
        raise InputError("problem.model", error.value, error.remedy) from None
    except (MemoryError, RuntimeError) as error:
        if not no_room(error):
            raise
        raise InputError("problem.model", kind_of("models", made), too_large(error)) from error
    hold_module(model)
    initialise(model, streams)
    return model


def too_large(error: BaseException) -> str:
    """The remedy for a model that memory has no room for."""
    return f"does not fit in this machine's memory; make it smaller ({one_line(error, 120)})"


DEFAULT: Mapping[Targets, Loss] = {
    "classes": CrossEntropy(),
    "numbers": SquaredError(),
    "tags": BinaryCrossEntropy(),
}
"""The losses of targets where none is named."""


def fitting_loss(dataset: Dataset, given: object) -> Loss:
    """The loss that is meant, of None the targets' own; refuses one that is not for these targets."""
    loss = DEFAULT[dataset.task] if given is None else loss_of(given)
    if dataset.task not in loss.tasks:
        held = {"classes": "classes", "numbers": "real numbers", "tags": "tags"}[dataset.task]
        name = given if isinstance(given, str) else kind_of("losses", loss)
        raise InputError("problem.loss", name, f"the labels of {dataset.name} are {held}; leave it out")
    return loss


def hold_one(model: object, option: str = "problem.model") -> None:
    """Refuse (InputError) several models, as one for each client."""
    several = isinstance(model, list | tuple | nn.ModuleList | nn.ModuleDict)
    if several or (isinstance(model, Mapping) and any(isinstance(one, nn.Module) for one in model.values())):
        count = len(model)  # type: ignore[arg-type]
        remedy = "clients train one architecture, whose parameters are averaged number by number; run each model alone"
        raise InputError(option, f"{count} models", remedy)


def hold_module(model: object) -> None:
    """Refuse what is no module of numbers: InputError says what it is instead."""
    hold_one(model)
    name = getattr(model, "__name__", type(model).__name__)
    if not isinstance(model, nn.Module):
        made = f"is a class; make a module of it: {name}(...)" if isinstance(model, type) else "is no module"
        if isinstance(model, str) or (isinstance(model, Mapping) and "kind" in model):
            name, made = one_line(repr(model), 60), "is one for experiment files, which say their data themselves"
        raise InputError("problem.model", name, f"{made}; give an object of a subclass of torch.nn.Module")
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError("problem.model", name, "is compiled by TorchScript; give the module that it was made from")
    for own, part in model.named_modules():
        replaced = vars(part).get("forward")
        if replaced is not None and getattr(replaced, "__self__", None) is not part:
            remedy = "its forward is a function of elsewhere, which copies would share; give it a class of its own"
            raise InputError("problem.model", f"{type(part).__name__} ({own})", remedy)
    for own, tensor in (*model.named_parameters(), *model.named_buffers()):
        fault = _no_numbers(tensor)
        if fault is not None:
            raise InputError("problem.model", f"{name} ({own})", fault)


def _no_numbers(tensor: Tensor) -> str | None:
    """Why a parameter or buffer is none that can be computed with; None: it can."""
    if nn.parameter.is_lazy(tensor):
        return "is of a lazy layer, which has no shape yet; call the model on an example first"
    if tensor.is_meta:
        return "is on the meta device, which has no numbers; make the model on the cpu"
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex():
        return "is sparse, quantised or complex; take plain real numbers"
    if tensor._backward_hooks:
        return "has a hook on its gradient, which copies of the model do not take along; put it into the forward pass"
    return None


def check_module(
    model: nn.Module, x: Tensor, head: Head | None = None, places: tuple[int, ...] = (), *, whole: bool = False
) -> int:
    """How many outputs a model gives for inputs x [2, ...], on the CPU, whose generator a draw would move.

    head: where they are in what it returns; a hook on the model has it give them from then on. places: the shape of
    what has outputs in an example. whole: a tensor [B, *places] is one output for each. InputError: it does not fit x,
    or its forward pass draws or changes what it should not.
    """
    name = type(model).__name__
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError("problem.model", name, "it has no parameter to train")
    if not all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters()):
        raise InputError("problem.model", name, "its initial parameters are not all finite")
    before, given = torch.get_rng_state(), x.clone()
    buffers = {key: buffer.clone() for key, buffer in model.named_buffers()}
    writes = {key: own._version for key, own in model.named_parameters()}
    tokens = "" if x.is_floating_point() else " (whole numbers are tokens; give floats, if these are none)"
    kind = f"{str(x.dtype).removeprefix('torch.')} inputs of shape {tuple(x.shape[1:])}{tokens}"
    try:
        with torch.no_grad():
            _take(model, head or Head(), given, f"does not fit {kind}", places, whole=whole)
        found = _called(model, given, f"does not fit {kind}", places)
        with torch.no_grad():
            single = f"fails for a single one of {kind}"
            apart = [_called(model, x[row : row + 1].clone(), single, places) for row in range(len(x))]
        _hold_differentiable(model, found)
    finally:
        drawn = not torch.equal(before, torch.get_rng_state())
        torch.set_rng_state(before)
    if drawn:
        raise InputError(
            "problem.model",
            name,
            "its forward draws from the global generator; use torch.nn.Dropout as a layer of its own",
        )
    if any(not torch.equal(buffers[key], buffer) for key, buffer in model.named_buffers()):
        raise InputError("problem.model", name, "its forward changes a buffer, which clients would share")
    if any(writes[key] != own._version for key, own in model.named_parameters()):
        raise InputError("problem.model", name, "its forward changes its parameters, as max_norm does; leave that out")
    if not torch.equal(given, x):
        raise InputError("problem.model", name, "its forward changes its inputs; take no inplace layer at the front")
    if not torch.allclose(found, torch.cat(apart), rtol=1e-3, atol=1e-4, equal_nan=True):
        raise InputError("problem.model", name, "its outputs for an example depend on the others of the batch")
    return found.shape[-1]


def _take(model: nn.Module, head: Head, x: Tensor, fault: str, places: tuple[int, ...], *, whole: bool) -> None:
    """Have a model give the outputs that its head says, by a hook on it."""
    returned = _returned(model, x, fault)
    tensor = inside(returned, head.path)
    if isinstance(tensor, Tensor) and tensor.dim():
        taken = fitted(head, tensor, places, whole=whole)
        if taken is not None:
            model.register_forward_hook(taken)
    elif head.path:
        name = type(tensor).__name__
        raise InputError("problem.head", head.at, f"is a {name}, no tensor [B, outputs]; {which(returned)}")


def _returned(model: nn.Module, x: Tensor, fault: str) -> Any:
    """What a model returns for inputs x [B, ...]."""
    name = type(model).__name__
    try:
        return model(x)
    except InputError:  # of its head
        raise
    except (Exception, SystemExit) as error:  # of whatever kind is in a forward pass that somebody has written
        if no_room(error):
            raise InputError("problem.model", name, too_large(error)) from error
        raise InputError("problem.model", name, f"{fault}: {one_line(named_line(error), 200)}") from error


def _called(model: nn.Module, x: Tensor, fault: str, places: tuple[int, ...]) -> Tensor:
    """The outputs [B, *places, K] of a model for inputs x [B, ...]."""
    name, found = type(model).__name__, _returned(model, x, fault)
    if not isinstance(found, Tensor) or not found.is_floating_point():
        kind = f"a tensor of {found.dtype}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise InputError("problem.model", name, f"gives {kind}; {which(found)}")
    own = next(model.parameters()).dtype
    if found.dtype != own:
        given, wanted = (str(kind).removeprefix("torch.") for kind in (found.dtype, own))
        fault = f"gives {given}, and its parameters are {wanted}; its forward is not to convert, as autocast does"
        raise InputError("problem.model", name, fault)
    if found.dim() != 2 + len(places) or found.shape[:-1] != (len(x), *places):
        shape = f"gives outputs of shape {tuple(found.shape)} for inputs of shape {tuple(x.shape)}"
        wanted = ", ".join(map(str, (len(x), *places)))
        raise InputError("problem.model", name, f"{shape}; it is to be ({wanted}, outputs)")
    return found


def _hold_differentiable(model: nn.Module, outputs: Tensor) -> None:
    """Refuse outputs that say nothing about the parameters, or whose gradients are not to be added up."""
    name, trained = type(model).__name__, [own for own in model.parameters() if own.requires_grad]
    if not outputs.requires_grad:
        raise InputError("problem.model", name, "its outputs have no gradient, as under no_grad or after detach")
    try:
        gradients = torch.autograd.grad(outputs.sum(), trained, allow_unused=True)
    except RuntimeError as error:
        raise InputError("problem.model", name, f"cannot be differentiated: {one_line(error, 200)}") from error
    if all(gradient is None for gradient in gradients):
        raise InputError("problem.model", name, "its outputs depend on none of its trainable parameters")
    if any(gradient is not None and gradient.is_sparse for gradient in gradients):
        raise InputError("problem.model", name, "its embedding has sparse gradients; leave sparse = True out")


def hold_binary(head: Head | None, dataset: Dataset) -> None:
    """Refuse a head of two classes where labels are others."""
    if head is not None and head.binary and dataset.num_classes != 2:
        held = f"{dataset.num_classes} classes" if dataset.num_classes else "real numbers"
        raise InputError("problem.head.binary", True, f"is of the classes 0 and 1, and the labels are {held}")


def hold_outputs(model: nn.Module, outputs: int, dataset: Dataset) -> None:
    """Refuse a model of too few outputs for the labels, and say what is meant by these."""
    name, classes = type(model).__name__, dataset.num_classes
    if not classes and outputs != dataset.outputs:
        held = "tags" if dataset.tags else "real numbers"
        wanted = f"and the targets are {held}, of {dataset.outputs} output{'s' * (dataset.outputs > 1)}"
        remedy = (
            ""
            if dataset.outputs > 1
            else "; class labels are whole numbers, y.astype(int), and their loss is one of classes"
        )
        raise InputError("problem.model", name, f"gives {outputs} output{'s' * (outputs > 1)}, {wanted}{remedy}")
    if outputs >= classes:
        return
    least = min(int(part[part != IGNORED].min()) for part in (dataset.y, dataset.y_test) if len(part))
    held = f"gives {outputs} output{'s' * (outputs > 1)} for labels {least} .. {classes - 1}"
    if outputs == 1:
        binary = "; if it is the log-odds of class 1, say head = { binary = true }" if classes == 2 else ""
        remedy = f"give one for each class{binary}; if these are numbers to predict, floats, or loss = squared_error"
    elif least > 0 and outputs >= classes - least:
        remedy = f"classes are numbered from 0: take {least} off the labels, or give {classes} outputs"
    else:
        remedy = f"give one for each of the {classes} classes, 0 .. {classes - 1}"
    raise InputError("problem.model", name, f"{held}; {remedy}")


def hold_tokens(model: nn.Module, x: np.ndarray[Any, Any], held: str, places: tuple[int, ...] = ()) -> None:
    """Refuse whole numbers x [n, ...] that a model takes some of, and others not, as an embedding does.

    Each place of an input is tried with the least and the largest number that it has anywhere.
    """
    if x.dtype.kind != "i" or not len(x):
        return
    flat = x.reshape(len(x), -1)
    with torch.no_grad():
        try:
            model(torch.from_numpy(np.stack((x.min(axis=0), x.max(axis=0)))))
        except (IndexError, RuntimeError):
            for row in np.unique(np.concatenate((flat.argmin(axis=0), flat.argmax(axis=0)))).tolist():
                tokens = f"example {row} of the {held} inputs, with tokens {flat[row].min()} .. {flat[row].max()}"
                _called(model, torch.from_numpy(x[row : row + 1]), f"does not take {tokens}", places)


def load_start(path: Path) -> dict[str, Tensor]:
    """A state dict to start from; see `read_weights`."""
    return read_weights(path, "problem.start")


def started(module: nn.Module, tensors: Mapping[str, Tensor], trained: Collection[str]) -> dict[str, Tensor]:
    """The module's state dict with what `tensors` has in its place.

    InputError: it is no state dict, lacks what is trained, or has something of another shape or that is not finite.
    """
    if not isinstance(tensors, Mapping):
        raise InputError("problem.start", type(tensors).__name__, "is not a state dict")
    held = dict(module.state_dict())
    for name, own in held.items():
        found = tensors.get(name)
        if isinstance(found, Tensor) and found.shape == own.shape and bool(torch.isfinite(found).all()):
            held[name] = found.to(own.device, own.dtype)
        elif name in trained or found is not None:
            shape = tuple(found.shape) if isinstance(found, Tensor) else "none"
            remedy = f"the model wants a finite tensor of shape {tuple(own.shape)}, the state has shape {shape}"
            raise InputError("problem.start", name, remedy)
    return held
