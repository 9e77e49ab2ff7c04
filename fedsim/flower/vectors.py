"""The float arrays of a record as one vector, and back. Whole numbers, such as counts of batches, are no part of it."""

from __future__ import annotations

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from torch import Tensor

from fedsim.core.errors import InputError


def flat(held: ArrayRecord, *, rows: bool = False) -> Tensor:
    """The floats of arrays, one after the other, [d]: of double precision where one of them is, else of single.

    rows: of arrays [n, *shape] instead, as [n, d].
    """
    found = [values for array in held.values() if (values := array.numpy()).dtype.kind == "f"]
    if not found:
        raise InputError("arrays", ", ".join(held) or "(nothing)", "send an array of floats at least")
    if rows and len({values.shape[:1] for values in found}) > 1:
        shapes = ", ".join(str(values.shape) for values in found)
        raise InputError("arrays", shapes, "send as many rows of each array")
    dtype = np.float64 if any(values.dtype == np.float64 for values in found) else np.float32
    shaped = [values.astype(dtype).reshape((len(values), -1) if rows else -1) for values in found]
    return torch.from_numpy(np.concatenate(shaped, axis=-1))


def filled(held: ArrayRecord, x: Tensor) -> ArrayRecord:
    """The same arrays, with the floats of a vector [d] in place of theirs, in their types."""
    numbers, place, found = x.numpy(), 0, dict[str, Array]()
    for name, array in held.items():
        values = array.numpy()
        if values.dtype.kind == "f":
            values = numbers[place : place + values.size].astype(values.dtype).reshape(values.shape)
            place += values.size
            array = Array(values)
        found[name] = array
    return ArrayRecord(found)
