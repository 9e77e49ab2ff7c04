"""Anybody's model, a record of named arrays such as a PyTorch state dict, as the vector [d] of strategies, and back.

The vector has the arrays of floats that are not frozen, in the record's order and in the widest of their types. Whole
numbers, such as how many batches a normalisation has seen, are not averaged: the server takes those of one client.
Frozen arrays stay as they are.
"""

from __future__ import annotations

import fnmatch
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray
from torch import Tensor

from fedsim.core.errors import InputError
from fedsim.core.near import meant
from fedsim.flower.records import opened
from fedsim.flower.replies import RefusedError
from fedsim.nets.stack import Layout

Kept = Mapping[str, Array]
"""The arrays of whole numbers, by name."""


@dataclass(frozen=True)
class StateDict:
    """What the arrays of a model are. names: of all, in their order. layout: where floats lie in the vector.

    types: of these, in the same order. whole: types and shapes of whole numbers and truths, by name. frozen: the arrays
    that stay as they are.
    """

    names: tuple[str, ...]
    layout: Layout
    types: tuple[np.dtype[np.floating], ...]
    whole: Mapping[str, tuple[np.dtype[np.generic], tuple[int, ...]]]
    frozen: Kept

    @classmethod
    def of(cls, arrays: ArrayRecord, frozen: Sequence[str] = (), option: str = "initial_arrays") -> StateDict:
        """What a model's first arrays say. frozen: names, or patterns such as `encoder.*`. option: to blame for arrays.

        InputError: there is nothing to train, an array is not of numbers, or a pattern fits no name.
        """
        still = dict[str, Array]()
        for pattern in frozen:
            fitting = [pattern] if pattern in arrays else fnmatch.filter(arrays, pattern)
            still |= {name: arrays[name] for name in fitting}
            if not fitting:
                remedy = (
                    f"is no array of the model{meant(pattern, list(arrays))}; write a name, or a pattern as encoder.*"
                )
                raise InputError("frozen", pattern, remedy)
        shapes, types = dict[str, tuple[int, ...]](), list[np.dtype[np.floating]]()
        whole = dict[str, tuple[np.dtype[np.generic], tuple[int, ...]]]()
        for name, array in arrays.items():
            if name in still:
                continue
            try:
                values = opened(array)
            except ValueError as error:
                raise InputError(option, name, f"{error}; give numbers, or freeze it") from error
            if values.dtype.kind == "f":
                shapes[name] = values.shape
                types.append(values.dtype)
            else:
                whole[name] = (values.dtype, values.shape)
        if not any(math.prod(shape) for shape in shapes.values()):
            raise InputError(option, ", ".join(arrays) or "(nothing)", "there are no floats to train in it")
        return cls(
            tuple(arrays), Layout(tuple(shapes), tuple(shapes.values()), len(shapes)), tuple(types), whole, still
        )

    @cached_property
    def dtype(self) -> torch.dtype:
        """The type of the vector: float32, or float64 where an array has it."""
        return torch.float64 if any(dtype.itemsize > 4 for dtype in self.types) else torch.float32

    @cached_property
    def _alike(self) -> bool:
        """Whether all arrays have the vector's own type, so that nothing is rounded as it crosses."""
        size = 8 if self.dtype == torch.float64 else 4
        return all(dtype.itemsize == size for dtype in self.types)

    @cached_property
    def _places(self) -> dict[str, tuple[slice, tuple[int, ...]]]:
        """Where each array of floats lies in the vector, and its shape."""
        ends = np.cumsum(self.layout.sizes).tolist()
        layout = zip(self.layout.names, ends, self.layout.sizes, self.layout.shapes, strict=True)
        return {name: (slice(end - size, end), shape) for name, end, size, shape in layout}

    def described(self) -> dict[str, int | str]:
        """What tells models apart, as a table: by names, types and shapes, and by the numbers of what is frozen."""
        found = hashlib.blake2b(digest_size=16)
        floats = zip(self.layout.names, self.types, self.layout.shapes, strict=True)
        forms = {name: (dtype.str, shape) for name, dtype, shape in floats}
        forms |= {name: (dtype.str, shape) for name, (dtype, shape) in self.whole.items()}
        for name in self.names:
            found.update(repr((name, forms.get(name))).encode())
            found.update(self.frozen[name].data if name in self.frozen else b"")
        return {"arrays": len(self.names), "digest": found.hexdigest()}

    def vector(self, arrays: ArrayRecord) -> Tensor:
        """The floats of a record of ours, [d]. InputError: it is of another model, and what is wrong with it."""
        row = np.empty(self.layout.dimension, str(self.dtype).removeprefix("torch."))
        try:
            self.read(arrays, row)
        except RefusedError as error:
            remedy = f"{error}; hand over all arrays of the model that it began with"
            raise InputError("arrays", f"{len(arrays)} arrays", remedy) from error
        return torch.from_numpy(row)

    def kept(self, arrays: ArrayRecord) -> dict[str, Array]:
        """The whole numbers of a record of ours."""
        return {name: arrays[name] for name in self.whole}

    def stored(self, kept: Kept) -> dict[str, bytes]:
        """Whole numbers as a checkpoint takes them."""
        return {name: opened(array).tobytes() for name, array in kept.items()}

    def restored(self, stored: Mapping[str, bytes]) -> dict[str, Array]:
        """The same back from a checkpoint."""
        kinds = {name: self.whole[name] for name in stored}
        return {
            name: Array(np.frombuffer(stored[name], dtype).reshape(shape)) for name, (dtype, shape) in kinds.items()
        }

    def model_floats(self, vector: Tensor) -> ArrayRecord:
        """The floats of a model [d], in their types and shapes."""
        return ArrayRecord(self._arrays(vector, self.types))

    def record(self, floats: Mapping[str, Array], kept: Kept) -> ArrayRecord:
        """A model as an app knows it: floats, whole numbers and what is frozen, all names in their order."""
        held = {**floats, **kept, **self.frozen}
        return ArrayRecord({name: held[name] for name in self.names})

    def floats(self, vectors: Tensor) -> ArrayRecord:
        """A vector like the model, [d], as arrays by the names of its floats; vectors [n, d] as arrays of n rows each.

        They have the vector's own type, for they need not fit into the model's.
        """
        return ArrayRecord(self._arrays(vectors, [vectors.numpy(force=True).dtype] * len(self.types)))

    def _arrays(self, vectors: Tensor, types: Sequence[np.dtype[Any]]) -> dict[str, Array]:
        values, made = vectors.numpy(force=True), dict[str, Array]()
        for (name, (place, shape)), dtype in zip(self._places.items(), types, strict=True):
            made[name] = Array(np.array(values[..., place].reshape((*values.shape[:-1], *shape)), dtype, order="C"))
        return made

    def arrived(self, vector: Tensor) -> Tensor:
        """What a node has of a vector [d] that it is sent: rounded where arrays have narrower types."""
        if self._alike:
            return vector
        parts = torch.split(vector, self.layout.sizes)
        narrow = {2: torch.float16, 4: torch.float32, 8: torch.float64}
        kinds = zip(parts, self.types, strict=True)
        return torch.cat([part.to(narrow[dtype.itemsize]).to(vector.dtype) for part, dtype in kinds])

    def read(
        self, held: ArrayRecord, row: NDArray[np.floating], sent: NDArray[np.floating] | None = None
    ) -> dict[str, Array]:
        """Write a reply's floats into a row [d], and return its whole numbers.

        sent: what its node was sent, [d], of which that stays what it leaves out; None: nothing may be left out. Frozen
        arrays are passed over. RefusedError: it is not of this model, and why. A row may be half written then.
        """
        lacks = next((name for name in self._places if name not in held), None)
        if lacks is not None and sent is not None:
            row[:] = sent
        found, trained = dict[str, Array](), 0
        for name, array in held.items():
            if name in self.frozen:
                continue
            if name not in self._places and name not in self.whole:
                raise RefusedError(f"nobody has asked for {name[:40]!r}")
            try:
                values = opened(array)
            except ValueError as error:
                raise RefusedError(f"{name}: {error}") from error
            if name in self.whole:
                found[name] = self._whole(name, values)
                continue
            place, shape = self._places[name]
            if values.dtype.kind != "f" or values.shape != shape:
                raise RefusedError(f"{name} is {values.dtype} {list(values.shape)}, not floats {list(shape)}")
            row[place] = values.reshape(-1)
            trained += 1
        if trained == 0 or (sent is None and lacks is not None):
            raise RefusedError(f"{lacks} is missing" if trained else "it has none of the model's arrays")
        return found

    def _whole(self, name: str, values: NDArray[np.generic]) -> Array:
        """A reply's array of whole numbers, in the model's type. RefusedError: it is none such, or does not fit in."""
        dtype, shape = self.whole[name]
        if values.dtype.kind not in "biu" or values.shape != shape:
            raise RefusedError(f"{name} is {values.dtype} {list(values.shape)}, not {dtype} {list(shape)}")
        made = np.array(values, dtype, order="C")  # what the reply's description says is not passed on
        if not np.array_equal(made, values):
            raise RefusedError(f"{name} has numbers that are no {dtype}")
        return Array(made)
