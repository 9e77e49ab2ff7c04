"""Heads: where in what a model returns its outputs are, and how they lie.

Many models return a dict, a tuple or a dataclass of several things, and PyTorch's own losses have classes second,
[B, K, H, W]. Here outputs are one tensor [B, *places, K], classes last: what a hook makes of whatever a module returns.
A hook leaves the module and the names of its parameters as they are, and whatever calls the module has outputs.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator
from torch import Tensor, nn

from fedsim.core.errors import InputError
from fedsim.core.options import NonNegativeInt, PositiveInt, options

HEAD = "problem.head"
DEEPEST = 3
"""How far a refusal looks for tensors in what a model returns."""


@options
class Head:
    """Where in what a model returns its outputs are, and how they lie."""

    at: str | NonNegativeInt | None = None
    """A key, an attribute or a place of a tuple, or several with dots between. Not given: a tensor is returned."""
    classes: PositiveInt | None = None
    """The axis of the tensor that classes lie along; 0 is the batch. Not given: where the shape leaves no doubt."""
    binary: bool = False
    """A single output z is the log-odds of class 1 against class 0: (0, z) stands for it, whose softmax is the same."""

    @property
    def path(self) -> tuple[str, ...]:
        """The parts of `at`."""
        return () if self.at is None else tuple(str(self.at).split("."))


def as_head(given: object) -> object:
    """A key or a place alone as a head that is there."""
    if isinstance(given, Mapping):
        return Head(**given)
    return Head(at=given) if isinstance(given, str | int) and not isinstance(given, bool) else given


def head_of(given: object) -> Head | None:
    """The head that is meant by an argument of Python's. InputError: it is none."""
    made = as_head(given)
    if made is not None and not isinstance(made, Head):
        raise InputError("head", given, 'give a key, as "logits", a place, as 0, or a Head')
    return made


AnyHead = Annotated[Head | None, BeforeValidator(as_head, json_schema_input_type=str | NonNegativeInt | Head)]


@dataclass(frozen=True)
class Taken:
    """A hook that makes outputs [B, *places, K] of what a module returns.

    path: where in it the tensor is. axis: of the tensor, which is to be last. places: the axes before it, where axes of
    one number are to be left out or put in. binary: see `Head`.
    """

    path: tuple[str, ...] = ()
    axis: int | None = None
    places: tuple[int, ...] | None = None
    binary: bool = False

    def __call__(self, module: nn.Module, given: tuple[Any, ...], returned: Any) -> Tensor:  # noqa: ARG002
        """What stands in the place of what a module has returned."""
        return self.shaped(inside(returned, self.path))

    def shaped(self, outputs: Tensor) -> Tensor:
        """A tensor [B, ...] as outputs."""
        if self.axis is not None:
            outputs = outputs.movedim(self.axis, -1)
        if self.places is not None:
            outputs = outputs.reshape(len(outputs), *self.places, -1)
        return torch.cat((torch.zeros_like(outputs), outputs), dim=-1) if self.binary else outputs


def inside(returned: Any, path: tuple[str, ...]) -> Any:
    """What is at a place of what a model has returned. InputError: there is no such place."""
    inner = returned
    for part in path:
        if isinstance(inner, Mapping) and part in inner:
            inner = inner[part]
        elif isinstance(inner, tuple | list) and part.isdecimal() and int(part) < len(inner):
            inner = inner[int(part)]
        elif not isinstance(inner, Mapping | Tensor) and hasattr(inner, part):
            inner = getattr(inner, part)
        else:
            remedy = f"there is none in the {type(returned).__name__} that the model returns; {which(returned)}"
            raise InputError(HEAD, ".".join(path), remedy)
    return inner


def which(returned: Any) -> str:
    """What to say of where outputs may be in what a model returns."""
    known = [name for name in _tensors(returned, ()) if name]
    if not known:
        return "its forward is to return floats, a tensor [B, outputs]"
    shown = ", ".join(f'"{name}"' if not name.isdecimal() else name for name in known[:8])
    return f"say where its outputs are: head = {shown}" if len(known) == 1 else f"say as head which of: {shown}"


def _tensors(returned: Any, above: tuple[str, ...]) -> Iterator[str]:
    """Where tensors of floats are, as `at` would say it."""
    if isinstance(returned, Tensor):
        if returned.is_floating_point():
            yield ".".join(above)
        return
    if len(above) >= DEEPEST:
        return
    inner: Mapping[Any, Any] = {}
    if isinstance(returned, Mapping):
        inner = returned
    elif isinstance(returned, tuple) and hasattr(returned, "_fields"):
        inner = dict(zip(returned._fields, returned, strict=True))
    elif isinstance(returned, tuple | list):
        inner = dict(enumerate(returned))
    elif dataclasses.is_dataclass(returned):
        inner = {field.name: getattr(returned, field.name, None) for field in dataclasses.fields(returned)}
    for name, value in inner.items():
        yield from _tensors(value, (*above, str(name)))


def fitted(head: Head, returned: Tensor, places: tuple[int, ...], *, whole: bool) -> Taken | None:
    """The hook that makes outputs [B, *places, K] of a tensor like this one; None: it is that already, or never.

    whole: without an axis of outputs, [B, *places], there is one output a place. InputError: classes may be along
    either of two axes, or along one that there is not.
    """
    shape, axis = tuple(returned.shape), head.classes
    if axis is None:
        axis = _axis(shape, places)
    elif axis >= len(shape):
        raise InputError(
            f"{HEAD}.classes", axis, f"outputs have the shape {shape}, whose axes are 0 .. {len(shape) - 1}"
        )
    moved = shape if axis is None else (*shape[:axis], *shape[axis + 1 :], shape[axis])
    axis = None if axis == len(shape) - 1 else axis
    narrow = not moved[1:] or moved[1:-1] != places
    if narrow:
        rest, bare = (tuple(side for side in sides if side != 1) for sides in (moved[1:], places))
        alone = rest == bare and (whole or head.binary)
        narrow = alone or (len(rest) == len(bare) + 1 and rest[:-1] == bare)
    if axis is None and not narrow and not head.path and not head.binary:
        return None
    return Taken(head.path, axis, places if narrow else None, head.binary)


def _axis(shape: tuple[int, ...], places: tuple[int, ...]) -> int | None:
    """The axis that classes lie along; None: the last."""
    if not places or shape[2:] != places:
        return None
    if shape[1:-1] == places:
        both = f"classes may be along axis 1 or {len(shape) - 1} of outputs of the shape {shape}"
        raise InputError(f"{HEAD}.classes", "(nothing)", f"{both}; say which")
    return 1


def taken_of(model: nn.Module) -> Taken | None:
    """The hook that makes a module's outputs of the tensor that it returns, where nothing else is hung on it."""
    hooks = list(model._forward_hooks.values())
    if len(hooks) != 1 or not isinstance(hooks[0], Taken) or hooks[0].path or model._forward_pre_hooks:
        return None
    return hooks[0]


def bare(model: nn.Module) -> nn.Module:
    """The same module, of the same parts and parameters, without what is hung on its forward pass."""
    own = copy.copy(model)
    own._forward_hooks = OrderedDict()
    return own
