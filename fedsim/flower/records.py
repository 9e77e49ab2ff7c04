"""Tensors in Flower's records, and the names of what only our own nodes are sent and say."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from torch import Tensor

from fedsim.exchange.forms import Form

CLIENT_METRICS = "client-metrics"
"""The clients' metrics, [C] by name."""
CLIENTS = "clients"
"""Which clients a record's rows belong to, int64 [C]; in an order, whom it is for."""
ORDER, STATE = "order", "state"
DATA = "data"
"""A digest of how many examples each client has."""
NBYTES = "payload-bytes"
"""Of each client of a reply, what its payload takes to cross, int64 [C]."""
QUERIES = "queries"
"""Of each client of a reply, the evaluations that it asked for, as of `JobResult`, int64 [C, 3]."""
NUMPY = "numpy.ndarray"
"""How the bytes of an array are written."""
MAGIC = b"\x93NUMPY\x01\x00"
"""With what they begin."""
HEADER = re.compile(
    rb"\{'descr': '([<|][biuf][1248])', 'fortran_order': (True|False), 'shape': \(((?:\d{1,15},? ?)*)\), \}\s*"
)
"""How they describe themselves."""
BYTES_BESIDE = 1024
"""Before the numbers stand so many bytes at most; NumPy's own description takes 128."""
SOUND = "sound"
"""Of each client of a reply that sends nothing, whether what it remembers is finite, bool [k]."""
TURN, LATE = "turn", "late"
"""In an order: the number under which its clients draw, and what becomes of those that are late; see `Order`."""


def record(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """Write tensors from any device as a record, their types kept."""
    return ArrayRecord({name: Array(tensor.detach().cpu().numpy()) for name, tensor in tensors.items()})


def digest_of(sizes: Tensor) -> str:
    """What tells data apart: of how many examples each client has, int64 [N]."""
    return hashlib.blake2b(sizes.numpy().tobytes(), digest_size=8).hexdigest()


def tensors(held: ArrayRecord, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Read a record that one trusts as tensors on a device."""
    return {name: torch.from_numpy(array.numpy()).to(device) for name, array in held.items()}


def announced(held: ArrayRecord) -> dict[str, Form]:
    """What the arrays of a record say that they are."""
    return {name: Form(array.dtype, tuple(array.shape)) for name, array in held.items()}


def opened(array: Array) -> np.ndarray:
    """The numbers of an array that nobody has looked at, not to be written to. ValueError: it is none, and why.

    Nothing of its description is evaluated, and no memory is taken.
    """
    data = array.data
    begin = 10 + int.from_bytes(data[8:10], "little")
    described = _described(data[10:begin]) if begin <= BYTES_BESIDE else None
    if array.stype != NUMPY or data[:8] != MAGIC or described is None:
        raise ValueError("its bytes are no array of numbers as NumPy writes one")
    dtype, shape, order = described
    if len(data) - begin != dtype.itemsize * math.prod(shape):
        raise ValueError(f"its {len(data) - begin} bytes of numbers are not {Form(dtype.name, shape)}")
    return np.frombuffer(data, dtype, offset=begin).reshape(shape, order=order)


@lru_cache(maxsize=4096)
def _described(head: bytes) -> tuple[np.dtype[Any], tuple[int, ...], Literal["F", "C"]] | None:
    """The type, the shape and the order of numbers that describe themselves so; None: none do."""
    found = HEADER.fullmatch(head)
    if found is None:
        return None
    shape = tuple(map(int, found[3].replace(b",", b" ").split()))
    return np.dtype(found[1].decode()), shape, "F" if found[2] == b"True" else "C"


def decoded(array: Array, form: Form) -> Tensor:
    """An array that nobody has looked at, as a tensor of a form. ValueError: it is none, and why.

    Memory is taken for no more numbers than the form has.
    """
    values = opened(array)
    if (values.dtype.name, values.shape) != form:
        raise ValueError(f"its bytes are not {form}")
    return torch.from_numpy(values.copy(order="C"))
