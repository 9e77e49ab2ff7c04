"""Models in messages and models in training, as arrays by the names of the state dict."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Union

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message
from numpy.typing import NDArray

from fedsim.core.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

Arrays = dict[str, NDArray[Any]]
"""Arrays by their names in the state dict."""
Model = Union["nn.Module", Mapping[str, Any], Sequence[Any]]
"""A model as an app has it: a module, arrays or tensors by name, or a list of them as `to_numpy_ndarrays` gives it."""

Parameters = Union["nn.Module", Mapping[str, "nn.Parameter"]]
"""A module, or its parameters under the names that were sent, where a wrapper gives them others."""


def floats(record: ArrayRecord) -> Arrays:
    """The arrays of a record that are of floating point."""
    found = {name: array.numpy() for name, array in record.items()}
    return {name: array for name, array in found.items() if array.dtype.kind == "f"}


def widened(array: NDArray[Any]) -> NDArray[Any]:
    """The same in single precision at least, in which corrections are computed."""
    return array.astype(np.result_type(array.dtype, np.float32), copy=False)


def record_of(arrays: Arrays) -> ArrayRecord:
    """Arrays as a record."""
    return ArrayRecord({name: Array(np.ascontiguousarray(array)) for name, array in arrays.items()})


class Sent:
    """The model that a message carries: its one record of arrays that is none of those `beside` it.

    names: of all its arrays, in order. floats: those of floating point.
    """

    def __init__(self, message: Message, beside: Collection[str] = ()) -> None:
        records = {name: held for name, held in message.content.array_records.items() if name not in beside}
        if len(records) != 1:
            raise InputError("message", ", ".join(records) or "(nothing)", "the model is one ArrayRecord; send one")
        (record,) = records.values()
        self.names, self.floats = [*record], floats(record)

    def trained(self, model: Model) -> Arrays:
        """What has become of these floats, as far as the model has them and trains them. InputError: it does not fit.

        Of a module the parameters that are not frozen.
        """
        if hasattr(model, "named_parameters"):
            found = {name: as_array(value) for name, value in model.named_parameters() if value.requires_grad}
        elif isinstance(model, Mapping):
            found = {name: as_array(value) for name, value in model.items()}
        elif len(model) == len(self.names):
            found = {name: as_array(value) for name, value in zip(self.names, model, strict=True)}
        else:
            raise InputError("model", f"{len(model)} arrays", f"{len(self.names)} were sent; give all, in their order")
        known = {name: array for name, array in found.items() if name in self.floats}
        self._hold(found, {name: array.shape for name, array in known.items()})
        return known

    def moved(self, arrays: Arrays) -> bool:
        """Whether any of these is another than was sent."""
        return any(not np.array_equal(array, self.floats[name]) for name, array in arrays.items())

    def with_gradients(self, model: Parameters) -> Iterator[tuple[str, nn.Parameter, Tensor]]:
        """Name, parameter and gradient of what is about to make a step. InputError: it is another model, or too early.

        Frozen parameters are left out, and those that were not sent.
        """
        named = dict(model if isinstance(model, Mapping) else model.named_parameters())
        known = {name: parameter for name, parameter in named.items() if name in self.floats}
        self._hold(named, {name: tuple(parameter.shape) for name, parameter in known.items()})
        if all(parameter.grad is None for parameter in known.values()):
            raise InputError("model", "no gradients", "correct them after loss.backward() and before optimizer.step()")
        for name, parameter in known.items():
            if parameter.grad is not None:
                yield name, parameter, parameter.grad

    def _hold(self, names: Collection[str], shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Refuse a model of other names or shapes. shapes: of those that are known."""
        if not shapes:
            sent = ", ".join([*self.floats][:3])
            raise InputError(
                "model", ", ".join([*names][:3]), f"was sent with names like {sent}; give parameters by these names"
            )
        for name, shape in shapes.items():
            if shape != self.floats[name].shape:
                raise InputError(name, shape, f"was sent as {self.floats[name].shape}; give the model that was loaded")


def setting(message: Message, name: str) -> float | None:
    """A number among the message's settings, at least 0; None: it is not there."""
    for record in message.content.config_records.values():
        if name in record:
            value = record[name]
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not 0.0 <= float(value) < math.inf:  # type: ignore[arg-type]
                raise InputError(name, value, "the server sends a number of at least 0")
            return float(value)  # type: ignore[arg-type]
    return None


def remembered(context: Context, place: str, like: Arrays) -> Arrays:
    """What the client keeps at a place of its state, zeros at first. like: names, shapes and types that it has."""
    held = context.state.array_records.get(place)
    if held is None:
        return {name: np.zeros_like(array) for name, array in like.items()}
    found = {name: array.numpy() for name, array in held.items()}
    if {name: array.shape for name, array in found.items()} != {name: array.shape for name, array in like.items()}:
        raise InputError(f"context.state.{place}", ", ".join([*found][:3]), "is of another model; start a new run")
    return {name: found[name].astype(array.dtype, copy=False) for name, array in like.items()}


def as_array(value: Any) -> NDArray[Any]:
    """A tensor, or anything that NumPy takes, as an array."""
    return np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
