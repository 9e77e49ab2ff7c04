"""Modules that can be trained: made to fit a data set, refused where they cannot be, started from a state dict."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedsim.core.errors import InputError, one_line
from fedsim.core.streams import Streams
from fedsim.nets.losses import LOSSES, Loss, loss_named
from fedsim.problems.datasets import Dataset
from fedsim.problems.models.layers import initialise


def build_model(made: Any, dataset: Dataset, streams: Streams) -> nn.Module:
    """The model that options describe, to fit a data set, with initial parameters of the named draws."""
    try:
        # A plug-in's layers may draw their parameters from the global generator when they are made.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(streams.derive("model") & 0xFFFFFFFF)
            model: nn.Module = made.build(dataset.x.shape[1:], dataset.num_classes, dataset.vocabulary)
    except InputError as error:
        raise InputError("problem.model", error.value, error.remedy) from None
    initialise(model, streams)
    return model


def fitting_loss(dataset: Dataset, name: str | None) -> Loss:
    """The loss of that name, or the labels' own; refuses one that does not go with the labels."""
    classes = dataset.num_classes > 0
    loss = loss_named(name or ("cross_entropy" if classes else "squared_error"))
    if classes != (loss is LOSSES["cross_entropy"]):
        held = "classes" if classes else "real numbers"
        raise InputError("problem.loss", name, f"the labels of {dataset.name} are {held}; leave it out")
    return loss


def check_module(model: nn.Module, x: Tensor, outputs: int) -> None:
    """Refuse a model that does not fit inputs x [2, ...], or whose forward pass draws or changes what it should not.

    On the CPU, whose generator a draw would move.
    """
    name = type(model).__name__
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError("problem.model", name, "it has no parameter to train")
    if not all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters()):
        raise InputError("problem.model", name, "its initial parameters are not all finite")
    before = torch.get_rng_state()
    buffers = {key: buffer.clone() for key, buffer in model.named_buffers()}
    try:
        with torch.no_grad():
            found = model(x)
            apart = torch.cat([model(x[row : row + 1]) for row in range(len(x))])
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        line = one_line(error, 200)
        raise InputError("problem.model", name, f"does not fit inputs of shape {tuple(x.shape[1:])}: {line}") from error
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
    if tuple(found.shape) != (len(x), outputs):
        raise InputError("problem.model", name, f"gives outputs of shape {tuple(found.shape)[1:]}, not {(outputs,)}")
    if not torch.allclose(found, apart, rtol=1e-3, atol=1e-4, equal_nan=True):
        raise InputError("problem.model", name, "its outputs for an example depend on the others of the batch")


def load_start(path: Path) -> dict[str, Tensor]:
    """A state dict to start from: .safetensors, or .pt/.pth read without running any code in it."""
    if not path.is_file():
        raise InputError("problem.start", str(path), "there is no such file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        loaded: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
        return loaded
    except Exception as error:
        line = str(error).strip().partition("\n")[0][:120]
        raise InputError("problem.start", str(path), f"cannot be read as a state dict: {line}") from error


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
