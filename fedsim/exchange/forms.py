"""The form of a reply, held to what its order asks for: the same on Flower's nodes as in virtual time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor


class Form(NamedTuple):
    """A tensor's type, by NumPy's name, and its shape."""

    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


def forms_of(tensors: Mapping[str, Tensor], rows: int | None = None) -> dict[str, Form]:
    """The forms of tensors by name; with `rows`, of as many rows each."""
    return {
        name: Form(str(tensor.dtype).removeprefix("torch."), (len(tensor) if rows is None else rows, *tensor.shape[1:]))
        for name, tensor in tensors.items()
    }


def misfit(found: Mapping[str, Form], asked: Mapping[str, Form]) -> str | None:
    """What is wrong with what has come, in words; None: it has the names, types and shapes that were asked for."""
    for name, form in asked.items():
        if name not in found:
            return f"{name} is missing"
        if found[name] != form:
            return f"{name} is {str(found[name])[:80]}, not {form}"
    for name in found:
        if name not in asked:
            return f"nobody has asked for {name[:40]!r}"
    return None
