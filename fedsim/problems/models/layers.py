"""What the built-in models share: what they are built for, and parameters that are drawn by name.

Models are made without a draw from any generator: `build` makes their layers on the meta device and
`materialise` gives them memory; `initialise` then fills them from the run's named streams.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from fedsim.core.errors import InputError
from fedsim.core.memory import room
from fedsim.core.streams import SERVER, Streams
from fedsim.nets.sequences import Positions

Built = TypeVar("Built", bound=nn.Module)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
OUT_OF_ATTENTION = nn.modules.linear.NonDynamicallyQuantizableLinear
NORMS = (nn.GroupNorm, nn.LayerNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def materialise(module: Built) -> Built:
    """Give a module made on the meta device memory on the CPU; every number is 0 until `initialise`.

    MemoryError: this machine has none for the model, its gradient and two more copies, which any run holds at once.
    """
    needed = 4 * sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
    if needed > room():
        raise MemoryError(f"it takes {needed / 2**30:.0f} GiB to train, and {room() / 2**30:.0f} are all there is")
    # `to_empty` asks a meta tensor for its like, and PyTorch imports SymPy to answer.
    zeros = {name: torch.zeros(tensor.shape, dtype=tensor.dtype) for name, tensor in module.state_dict().items()}
    module.load_state_dict(zeros, assign=True)
    return module


def stay_zero(layer: Built) -> Built:
    """Mark a layer whose parameters `initialise` leaves at 0."""
    marked: Any = layer
    marked.starts_at_zero = True
    return layer


def deviating(layer: Built, deviation: float) -> Built:
    """Mark a table of tokens or places whose normal numbers `initialise` draws with this deviation."""
    marked: Any = layer
    marked.deviation = deviation
    return layer


Start = Literal["usual", "ibp"]
"""How weights of linear layers and convolutions are drawn; see `drawn_by`."""


def drawn_by(start: Start, module: Built) -> Built:
    """Mark how `initialise` draws weights: ibp, all but the last layer's for interval bounds."""
    if start == "ibp":
        layers: list[Any] = [part for part in module.modules() if isinstance(part, (nn.Linear, *CONVOLUTIONS))]
        for layer in layers[:-1]:
            layer.starts_for_bounds = True
    return module


def starts_as_made(module: Built) -> Built:
    """Mark a module whose parameters `initialise` leaves as they are, because a library has drawn or loaded them."""
    marked: Any = module
    marked.starts_as_made = True
    return module


def initialise(module: nn.Module, streams: Streams) -> None:
    """Draw the parameters of `module`, in place, from PyTorch's default distributions.

    Linear and convolution weights and biases are uniform in +-1/sqrt(fan_in), recurrent layers in
    +-1/sqrt(hidden), embeddings and places standard normal (their padding row 0); attention is uniform in
    +-sqrt(6 / (rows + columns)) with biases at 0; norms start at scale 1 and shift 0. Weights that are marked for
    interval bounds are normal of deviation sqrt(2 pi) / fan_in, by which the radius of a box stays about the same from
    layer to layer (Shi et al. 2021).
    The draw is named by the parameter's name, so a layer's numbers do not depend on its neighbours, and
    made in single precision on the CPU, so they are the same in every precision and on every device. The
    parameters of any other layer, of one that is frozen, and of a module that `starts_as_made`, stay as they are;
    one of several layers is the first's.
    """
    if getattr(module, "starts_as_made", False):
        return
    owner = torch.tensor([SERVER])
    held: set[int] = set()
    with torch.no_grad():
        for path, layer in module.named_modules():
            own = [
                (name, one) for name, one in layer.named_parameters(prefix=path, recurse=False) if id(one) not in held
            ]
            held.update(id(parameter) for _, parameter in own)
            if any(not parameter.requires_grad for _, parameter in own):
                continue
            if isinstance(layer, NORMS):
                layer.reset_parameters()
                continue
            for name, parameter in own:
                zero = getattr(layer, "starts_at_zero", False) or name.endswith("in_proj_bias")
                if zero or (isinstance(layer, OUT_OF_ATTENTION) and name.endswith("bias")):
                    parameter.zero_()
                elif isinstance(layer, nn.Embedding | Positions):
                    drawn = streams.normal(f"model/{name}", owner, parameter.shape)[0]
                    parameter.copy_(drawn * getattr(layer, "deviation", 1.0))
                elif getattr(layer, "starts_for_bounds", False) and name.endswith("weight"):
                    drawn = streams.normal(f"model/{name}", owner, parameter.shape)[0]
                    parameter.copy_(drawn * math.sqrt(2.0 * math.pi) / parameter[0].numel())
                elif isinstance(layer, (nn.Linear, nn.RNNBase, *CONVOLUTIONS)):
                    drawn = streams.uniform(f"model/{name}", owner, parameter.shape)[0]
                    parameter.copy_((2 * drawn - 1) * _bound(layer))
                elif isinstance(layer, nn.MultiheadAttention) and name.endswith("proj_weight"):
                    drawn = streams.uniform(f"model/{name}", owner, parameter.shape)[0]
                    parameter.copy_((2 * drawn - 1) * (6 / sum(parameter.shape)) ** 0.5)
            if isinstance(layer, nn.Embedding) and layer.padding_idx is not None:
                layer.weight[layer.padding_idx].zero_()


def need_numbers(kind: str, shape: Sequence[int], vocabulary: int) -> None:
    """Refuse inputs that are not vectors or arrays of numbers. shape: one input's, without the batch."""
    if vocabulary:
        raise InputError(
            "model", kind, "reads numbers, but these inputs are characters; use the model lstm, gru or transformer"
        )
    if not shape:
        raise InputError("model", kind, "needs inputs of at least one dimension, but each is one number")


IDS = "if they are token ids, set tokens = true of the data set; else "
"""What may be meant by whole numbers [steps] that a data set has taken for features."""


def need_sequences(kind: str, shape: Sequence[int], vocabulary: int, padding: int | None) -> None:
    """Refuse inputs that are no sequences of tokens, or of vectors of numbers, and padding that is no token."""
    if len(shape) != (1 if vocabulary else 2):
        fault = f"reads sequences of tokens, or [steps, features], but these inputs are numbers of shape {list(shape)}"
        remedy = "use a model of numbers, such as mlp"
        raise InputError("model", kind, f"{fault}; {IDS if len(shape) == 1 else ''}{remedy}")
    if padding is not None and not padding < vocabulary:
        fault = f"is no token: there are {vocabulary}" if vocabulary else "is a token, but these inputs are numbers"
        raise InputError("model.padding", padding, f"{fault}; leave it out")


def need_images(kind: str, shape: Sequence[int], vocabulary: int, side: int) -> tuple[int, int, int]:
    """(channels, height, width) of the inputs; refuse what is no image with sides of at least `side`."""
    need_numbers(kind, shape, vocabulary)
    if len(shape) != 3 or min(shape[1:]) < side:
        raise InputError(
            "model",
            kind,
            f"needs images [channels, height, width] of at least {side}x{side}, but the inputs' shape is "
            f"{list(shape)}; use the model mlp or logistic",
        )
    channels, height, width = shape
    return channels, height, width


def _bound(layer: nn.Module) -> float:
    if isinstance(layer, nn.RNNBase):
        return float(layer.hidden_size**-0.5)
    weight = layer.get_parameter("weight")
    return float(weight[0].numel() ** -0.5)
