"""Weights in files: read without running any code in them, and put into a module that may have another last layer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from fedsim.core.errors import InputError, shortened, warn
from fedsim.core.files import look

COUNTED = "num_batches_tracked"
"""What BatchNorm layers have in files beside numbers that are used: how many batches they have seen."""


def read_weights(path: Path, option: str) -> dict[str, Tensor]:
    """A state dict: .safetensors, or .pt/.pth read without running any code in it. InputError on `option`: none is."""
    if look(path, option) is None or not path.is_file():
        raise InputError(option, str(path), "there is no such file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        loaded: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
        return loaded
    except Exception as error:
        line = str(error).strip().partition("\n")[0][:120]
        raise InputError(option, str(path), f"cannot be read as a state dict: {line}") from error


def load_weights(module: nn.Module, path: Path, outputs: int, option: str = "weights") -> None:
    """Have a module start from a file's weights, in place.

    A tensor that has a row for each of `outputs` in the module, and another number of rows in the file, is the last
    layer's, of other classes: it stays as it is made, and a line says so. InputError: anything else is missing, is of
    another shape, or is not the module's.
    """
    found, own = read_weights(path, option), module.state_dict()
    if not isinstance(found, Mapping) or not all(isinstance(one, Tensor) for one in found.values()):
        raise InputError(option, str(path), "is no state dict: names and tensors")
    used = {name: tensor for name, tensor in found.items() if not name.endswith(COUNTED)}
    strange = [name for name in used if name not in own]
    absent = [name for name in own if name not in used and not name.endswith(COUNTED)]
    for names, words in ((strange, "which the model has not"), (absent, "which the file has not")):
        if names:
            shown = shortened(", ".join(names[:4]))
            raise InputError(option, str(path), f"is of another model: {shown}, {words} ({len(names)} such names)")
    fresh = [name for name, tensor in used.items() if _of_other_classes(tensor, own[name], outputs)]
    for name, tensor in used.items():
        if name not in fresh and tensor.shape != own[name].shape:
            remedy = f"{name} has the shape {tuple(tensor.shape)}, in the model {tuple(own[name].shape)}"
            raise InputError(option, str(path), remedy)
    module.load_state_dict({name: tensor for name, tensor in used.items() if name not in fresh}, strict=False)
    if fresh:
        warn(f"{path.name} is of other classes: {', '.join(fresh)} start as they are made")


def _of_other_classes(tensor: Tensor, own: Tensor, outputs: int) -> bool:
    """Whether these are weights of the last layer, for other classes than the module's."""
    return tensor.shape != own.shape and own.shape[:1] == (outputs,) and tensor.shape[1:] == own.shape[1:]
