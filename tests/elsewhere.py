"""A device that is no CPU, pretended on one: it has its memory to itself, and tells when the host waits for it.

Within `pretended` PyTorch's device `meta` computes: its tensors are wrappers around tensors of the CPU, which no other
tensor may be mixed with, as on a GPU. What a GPU would have to finish before the host could go on is counted: numbers
that are read back, copies from one to the other, and results whose shape follows from the numbers.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("meta")
CPU = torch.device("cpu")
aten = torch.ops.aten
READ = {
    aten._local_scalar_dense, aten.equal, aten.nonzero, aten.nonzero_numpy, aten.masked_select, aten._unique2,
    aten.unique_dim, aten.unique_consecutive, aten.bincount, aten.is_nonzero, aten._linalg_check_errors,
}  # fmt: skip
"""Operations whose result, or its shape, the host needs before it can go on."""
HERE = f"{Path(__file__).parent.parent}/"


class Elsewhere(Tensor):
    """A tensor of the pretended device; `inner` has its numbers."""

    inner: Tensor
    waits: ClassVar[Counter[str]] = Counter()

    @staticmethod
    def __new__(cls, inner: Tensor) -> Elsewhere:
        made: Elsewhere = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
        )
        made.inner = inner
        return made

    def __repr__(self, **_: Any) -> str:
        return f"Elsewhere({self.inner!r})"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """What PyTorch does not hand on as an operation: numbers as a list."""
        if func is Tensor.tolist:
            return args[0].cpu().tolist()
        if func == Tensor.data.__set__:  # which would leave the numbers behind
            args[0].inner = args[1].inner
        if func is Tensor.new_tensor:
            return torch.tensor(args[1], dtype=args[0].dtype).to(DEVICE)
        if func in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[1], list):
            args = (args[0], torch.tensor(args[1]).to(DEVICE), *args[2:])
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute where no mode is active, as in another thread."""
        return computed(func, args, kwargs or {})


def computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """What an operation gives; where the host would wait for the device, that is counted by where it was asked for."""
    flat = tree_flatten((args, kwargs))[0]
    elsewhere = [one for one in flat if isinstance(one, Elsewhere)]
    target = kwargs.get("device")
    target = None if target is None else torch.device(target)
    if not elsewhere and target != DEVICE:
        return func(*args, **kwargs)
    packet = func.overloadpacket
    here = [one for one in flat if isinstance(one, Tensor) and not isinstance(one, Elsewhere)]
    copies = packet in (aten._to_copy, aten.copy_, aten.lift_fresh)
    if elsewhere and not copies and any(one.dim() for one in here):
        indexed = packet in (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_)
        # Numbers may be at places that the CPU names; they may not be numbers of the CPU.
        written = args[2] if indexed and len(args) > 2 else None
        if not indexed or any(one is written or one is args[0] for one in here):
            raise RuntimeError(f"{func} mixes tensors of two devices")
        Elsewhere.waits[_where(f"{packet} by indices of the CPU")] += 1
    crosses = (bool(elsewhere) and target == CPU) or (copies and bool(here))
    if packet in READ or crosses or _follows(packet, elsewhere, kwargs):
        Elsewhere.waits[_where(str(packet))] += 1
    if target is not None:
        kwargs = {**kwargs, "device": CPU}
    if packet is aten._efficientzerotensor:  # a thing of forward mode that has no memory
        func = aten.zeros.default
    own = {id(one.inner): one for one in elsewhere}
    given = func(*_inner(args), **_inner(kwargs))
    if torch.Tag.inplace_view in func.tags:  # the wrapper's own shape follows
        with torch._C._DisableTorchDispatch():
            func(*args, **kwargs)
    if target == CPU or (packet is aten.copy_ and not isinstance(args[0], Elsewhere)):
        return given

    def wrapped(one: Any) -> Any:
        if not isinstance(one, Tensor):
            return one
        known = own.get(id(one))
        return Elsewhere(one) if known is None else known

    return tree_map(wrapped, given)


def _follows(packet: Any, elsewhere: list[Elsewhere], kwargs: dict[str, Any]) -> bool:
    """Whether the shape of an operation's result follows from numbers of the device."""
    if packet is aten.repeat_interleave:
        return kwargs.get("output_size") is None
    masks = any(one.dtype in (torch.bool, torch.uint8) for one in elsewhere[1:])
    return packet in (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_) and masks


def _inner(tree: Any) -> Any:
    return tree_map(lambda one: one.inner if isinstance(one, Elsewhere) else one, tree)


def _where(what: str) -> str:
    """What, and the function of the project that has asked for it."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(HERE) and path != __file__:
            return f"{path.removeprefix(HERE)} {frame.f_code.co_name}: {what}"
        frame = frame.f_back
    return what


class _Counting(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


class _Sending(TorchFunctionMode):
    """What is made of numbers of the host is sent to the device, which would make it without numbers."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            return func(*args, **{**kwargs, "device": None}).to(kwargs["device"])
        return func(*args, **kwargs)


@contextmanager
def pretended() -> Iterator[Counter[str]]:
    """Within this block the device computes; how often the host has waited for it, by where."""
    Elsewhere.waits = Counter()
    with _Sending(), _Counting():
        yield Elsewhere.waits
