"""Object graphs as JSON and tensors: a closed codec, which makes objects of known classes and runs nothing of theirs.

What it knows: None, numbers, strings and bytes; tensors and NumPy arrays; lists, tuples, dictionaries, sets, deques and
counters of these; and the classes that `storable` gives a name: dataclasses, NamedTuples, exceptions, and classes
whose attributes say all. Every number keeps its bits, a NaN too. Objects that can change are written once and are
shared afterwards as they were before; tensors that are the same memory are written once.

A value is JSON's own, or a list that begins with a tag: `["tuple", ...]`, `["object", 3]`. Objects that can change
stand in a table, by number, so that they may hold each other.
"""

from __future__ import annotations

import dataclasses
import json
import math
import struct
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from fedsim.core.errors import DivergedError, FedsimError, InputError, StalledError

Json = Any
"""A value as JSON has it."""
Made = TypeVar("Made", bound=type)
MANY = 32
"""Whole numbers in a list, beyond which they are kept as a tensor."""
WORD = range(-(2**63), 2**63)
"""Whole numbers that JSON readers and tensors take as they are."""
STORED = frozenset(
    {
        *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    }
)
"""Types that tensors are written in; others are written as bytes."""
MAPPINGS: dict[str, type[dict[Any, Any]]] = {"dict": dict, "OrderedDict": OrderedDict, "Counter": Counter}

_known: dict[str, type] = {}
_names: dict[type, str] = {}


class GraphError(FedsimError):
    """A document that cannot be read: it names what this process does not have."""


def storable(name: str) -> Callable[[Made], Made]:
    """Give a class whose objects can be written its name in documents, which stays when the class moves.

    All that they are is in their fields, slots or attributes; they are made again without `__init__`. A module that is
    executed again makes its classes anew, and the new one has the name. InputError: another class has it.
    """

    def named(cls: Made) -> Made:
        other = _known.get(name)
        if other is not None:
            if _path(other) != _path(cls):
                raise InputError("storable", name, f"is the name of {_path(other)}; give {_path(cls)} another")
            del _names[other]
        _known[name], _names[cls] = cls, name
        return cls

    return named


@dataclass(frozen=True)
class Document:
    """A value, written down. text: JSON. tensors: what it refers to by number; they share memory with the value."""

    text: str
    tensors: Sequence[Tensor]


def encode(value: object) -> Document:
    """Write a value down. TypeError: it holds an object of a class that is not known, or an unusual tensor."""
    writer = _Writer()
    root = writer.value(value)
    return Document(json.dumps({"root": root, "objects": writer.objects}, separators=(",", ":")), writer.tensors)


def decode(document: Document) -> Any:
    """Make the value again. GraphError: it needs a class or a field that is not here."""
    try:
        written = json.loads(document.text)
        reader = _Reader(document.tensors)
        reader.open(written["objects"])
        return reader.value(written["root"])
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise GraphError(f"{type(error).__name__}: {error}") from error


class _Writer:
    """tensors: met so far, each once. objects: written so far, by number."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.objects: list[Json] = []
        self._numbers: dict[int, int] = {}
        self._places: dict[tuple[Any, ...], int] = {}
        self._kept: list[object] = []  # an id is another object's once its own is gone

    def value(self, given: Any) -> Json:
        kind = type(given)
        if given is None or kind is bool or kind is str:
            return given
        if kind is int:
            return given if given in WORD else ["int", hex(given)]
        if kind is float:
            return given if math.isfinite(given) else ["float", struct.pack("<d", given).hex()]
        if kind is Tensor:
            return self._tensor(given)
        if kind is tuple:
            return ["tuple", *map(self.value, given)]
        name = _names.get(kind)
        if name is not None and issubclass(kind, tuple):
            return ["named", name, *map(self.value, given)]
        if kind is bytes:
            return ["bytes", given.hex()]
        if kind is frozenset:
            return ["frozenset", *map(self.value, map(_plain, given))]
        if isinstance(given, np.number | np.bool_):
            return ["scalar", given.dtype.str, given.tobytes().hex()]
        write = _WRITERS.get(kind) if name is None else _Writer._class
        if write is None:
            raise TypeError(f"a {_path(kind)} cannot be written down; give its class a name: @storable('a-name')")
        number = self._numbers.get(id(given))
        if number is None:
            number = self._numbers[id(given)] = len(self.objects)
            self._kept.append(given)
            self.objects.append(None)
            self.objects[number] = write(self, given)
        return ["object", number]

    def _tensor(self, given: Tensor) -> Json:
        if given.layout is not torch.strided or given.is_quantized or given.requires_grad:
            raise TypeError("a tensor that is sparse, quantised or waits for a gradient cannot be written down")
        place = self._place(given)
        note = [] if given.dtype in STORED else [str(given.dtype).removeprefix("torch."), list(given.shape)]
        return ["tensor", place, str(given.device), *note]

    def _place(self, given: Tensor) -> int:
        """The number of a tensor among those that are written."""
        memory = (given.data_ptr(), given.device, given.dtype, given.shape, given.stride(), given.is_conj())
        key = memory if given.numel() else (id(given),)
        if key not in self._places:
            self._places[key] = len(self.tensors)
            self._kept.append(given)
            flat = given.resolve_conj().resolve_neg()
            self.tensors.append(flat if flat.dtype in STORED else flat.reshape(-1).contiguous().view(torch.uint8))
        return self._places[key]

    def _class(self, given: Any) -> Json:
        name = _names[type(given)]
        if isinstance(given, BaseException):
            return ["error", name, *map(self.value, map(_plain, given.args))]
        return ["class", name, *([field, self.value(getattr(given, field))] for field in _fields(given))]

    def _list(self, given: list[Any]) -> Json:
        if len(given) > MANY and set(map(type, given)) == {int} and min(given) in WORD and max(given) in WORD:
            return ["numbers", self._place(torch.tensor(given, dtype=torch.int64))]
        return ["list", *map(self.value, given)]

    def _mapping(self, given: dict[Any, Any]) -> Json:
        return [type(given).__name__, *([self.value(_plain(key)), self.value(inner)] for key, inner in given.items())]

    def _set(self, given: set[Any]) -> Json:
        return ["set", *map(self.value, map(_plain, given))]

    def _deque(self, given: deque[Any]) -> Json:
        return ["deque", given.maxlen, *map(self.value, given)]

    def _array(self, given: np.ndarray[Any, Any]) -> Json:
        if given.dtype.hasobject or given.dtype.names is not None:
            raise TypeError(f"an array of {given.dtype} cannot be written down")
        # As bytes, since PyTorch has not all of NumPy's types.
        content = np.frombuffer(given.tobytes(), dtype=np.uint8).copy()
        return ["array", self._place(torch.from_numpy(content)), given.dtype.str, list(given.shape)]


_WRITERS: dict[type, Callable[[_Writer, Any], Json]] = {
    **dict.fromkeys(MAPPINGS.values(), _Writer._mapping),
    list: _Writer._list,
    set: _Writer._set,
    deque: _Writer._deque,
    np.ndarray: _Writer._array,
}


class _Reader:
    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = tensors
        self._made: dict[int, dict[tuple[Any, ...], Tensor]] = {}
        self._objects: list[Any] = []

    def open(self, written: Sequence[Json]) -> None:
        """Make all objects of the table: first each by itself, then what they hold."""
        self._objects = [self._shell(entry) for entry in written]
        for made, entry in zip(self._objects, written, strict=True):
            self._fill(made, entry)

    def value(self, written: Json) -> Any:
        if not isinstance(written, list):
            return written
        tag, *rest = written
        if tag == "object":
            return self._objects[rest[0]]
        if tag == "tensor":
            return self._tensor(*rest)
        if tag == "tuple":
            return tuple(map(self.value, rest))
        if tag == "named":
            return self._named(*rest)
        if tag == "frozenset":
            return frozenset(map(self.value, rest))
        if tag == "int":
            return int(rest[0], 16)
        if tag == "float":
            return struct.unpack("<d", bytes.fromhex(rest[0]))[0]
        if tag == "bytes":
            return bytes.fromhex(rest[0])
        if tag == "scalar":
            return np.frombuffer(bytes.fromhex(rest[1]), dtype=np.dtype(rest[0]))[0]
        raise GraphError(f"{tag} is no tag that is known")

    def _tensor(self, place: int, device: str, dtype: str | None = None, shape: Sequence[int] = ()) -> Tensor:
        """A tensor, the same object for the same memory."""
        made, key = self._made.setdefault(place, {}), (device, dtype)
        if key not in made:
            found = self._tensors[place]
            if dtype is not None:
                found = found.view(getattr(torch, dtype)).reshape(tuple(shape))
            made[key] = found.to(device)
        return made[key]

    def _named(self, name: str, *values: Json) -> Any:
        cls = _class(name)
        if len(values) != len(cls._fields):
            raise GraphError(f"{name} has other fields now")
        return tuple.__new__(cls, map(self.value, values))

    def _shell(self, written: Json) -> Any:
        """An object of the table with nothing in it; arrays, errors and lists of numbers are whole at once."""
        tag, *rest = written
        if tag == "class":
            cls = _class(rest[0])
            return cls.__new__(cls)
        if tag == "error":
            cls = _class(rest[0])
            return cls.__new__(cls, *map(self.value, rest[1:]))
        if tag == "numbers":
            return self._tensors[rest[0]].tolist()
        if tag == "array":
            content = self._tensors[rest[0]].numpy().tobytes()
            return np.frombuffer(content, dtype=np.dtype(rest[1])).reshape(rest[2]).copy()
        if tag == "deque":
            return deque(maxlen=rest[0])
        if tag in MAPPINGS:
            return MAPPINGS[tag]()
        return {"list": list, "set": set}[tag]()

    def _fill(self, made: Any, written: Json) -> None:
        tag, *rest = written
        if tag == "class":
            names = {name for name, _ in rest[1:]}
            if dataclasses.is_dataclass(made) and names != {field.name for field in dataclasses.fields(made)}:
                raise GraphError(f"{rest[0]} has other fields now")
            for name, inner in rest[1:]:
                object.__setattr__(made, name, self.value(inner))  # frozen ones, too
        elif tag in MAPPINGS:
            for key, inner in rest:
                made[self.value(key)] = self.value(inner)
        elif tag == "list":
            made.extend(map(self.value, rest))
        elif tag == "set":
            made.update(map(self.value, rest))
        elif tag == "deque":
            made.extend(map(self.value, rest[1:]))


def _fields(given: object) -> Iterable[str]:
    """The names of all that an object is."""
    if dataclasses.is_dataclass(given):
        return [field.name for field in dataclasses.fields(given)]
    return getattr(type(given), "__slots__", None) or list(vars(given))


def _plain(key: Any) -> Any:
    """A key or a member of a set: one whose hash is known before other objects are whole."""
    if isinstance(key, tuple | frozenset) and type(key) in (tuple, frozenset):
        for inner in key:
            _plain(inner)
    elif not (key is None or type(key) in (bool, int, float, str, bytes)):
        raise TypeError(f"a {_path(type(key))} as a key cannot be written down")
    return key


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _class(name: str) -> Any:
    if name not in _known:
        raise GraphError(f"there is no class called {name} here")
    return _known[name]


# Their module is below this one.
storable("stalled-error")(StalledError)
storable("diverged-error")(DivergedError)
