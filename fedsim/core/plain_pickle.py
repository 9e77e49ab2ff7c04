"""Pickles that are not trusted, read to containers, numbers, texts and plain arrays of numbers.

A pickle is a program. Python's own machine would let it import, call and change what it likes; here a few of its
operations move values on a stack, nothing is imported, and the only call is of names that stand for what an array of
numbers is rebuilt from. Also of files of joblib, which have the content of an array behind its description.
"""

from __future__ import annotations

import io
import math
import pickletools
import re
import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedsim.core.data_files import Array

MARK = object()
NUMBERS = re.compile(r"b1|[iu][1248]|f[248]")
"""Types of numbers as pickles call them."""
MOST_DIMENSIONS = 32
VALUES = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
BYTES = {"STRING", "BINSTRING", "SHORT_BINSTRING"}
"""Texts of Python 2, which are bytes."""
GIVEN = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "BINBYTES"}
GIVEN |= {"SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
"""Operations that push what stands behind them."""
EMPTY: dict[str, type[Any]] = {"EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_DICT": dict}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class UnsoundError(ValueError):
    """The bytes are no pickle of plain data."""


@dataclass(frozen=True)
class _Named:
    """What a pickle would import."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class _Type:
    """A type of numbers, whose byte order may follow."""

    name: str
    order: str = ""

    def dtype(self) -> np.dtype[Any]:
        return np.dtype(f"{self.order}{self.name}")


@dataclass(eq=False)
class _Array:
    """An array that is to be filled; `content` once it is."""

    content: Array | None = None


@dataclass
class _Machine:
    file: io.BytesIO
    stack: list[Any] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def marked(self) -> list[Any]:
        """Take what lies above the last mark, and the mark."""
        place = next(at for at in range(len(self.stack) - 1, -1, -1) if self.stack[at] is MARK)
        taken = self.stack[place + 1 :]
        del self.stack[place:]
        return taken

    def popped(self) -> Any:
        value = self.stack.pop()
        if value is MARK:
            raise UnsoundError("a mark where a value should be")
        return value


def load(content: bytes) -> Any:
    """Read a pickle. UnsoundError: it has more than plain data, or is none."""
    machine = _Machine(io.BytesIO(content))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escape sequences in texts of protocol 0
            for operation, given, _ in pickletools.genops(machine.file):
                if operation.name == "STOP":
                    return _plain(machine.popped())
                _step(machine, operation.name, given)
    except (IndexError, KeyError, StopIteration, TypeError, UnicodeError) as error:
        raise UnsoundError(f"its parts do not fit each other ({type(error).__name__})") from error
    raise UnsoundError("it has no end")


def _step(machine: _Machine, name: str, given: Any) -> None:
    """Do one operation."""
    stack, memo = machine.stack, machine.memo
    if name in VALUES:
        stack.append(VALUES[name])
    elif name in BYTES:
        stack.append(given.encode("latin-1"))
    elif name in GIVEN:
        stack.append(given)
    elif name in EMPTY:
        stack.append(EMPTY[name]())
    elif name == "MARK":
        stack.append(MARK)
    elif name == "TUPLE":
        stack.append(tuple(machine.marked()))
    elif name == "LIST":
        stack.append(machine.marked())
    elif name == "DICT":
        pairs = machine.marked()
        stack.append({})
        _put(stack[-1], pairs)
    elif name in TUPLES:
        stack.append(tuple(reversed([machine.popped() for _ in range(TUPLES[name])])))
    elif name in ("APPEND", "APPENDS"):
        added = machine.marked() if name == "APPENDS" else [machine.popped()]
        _of(stack[-1], list).extend(added)
    elif name in ("SETITEM", "SETITEMS"):
        added = machine.marked() if name == "SETITEMS" else [machine.popped(), machine.popped()][::-1]
        _put(_of(stack[-1], dict), added)
    elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
        memo[len(memo) if given is None else given] = stack[-1]
    elif name in ("GET", "BINGET", "LONG_BINGET"):
        stack.append(memo[given])
    elif name == "GLOBAL":
        stack.append(_Named(*given.split(" ", 1)))
    elif name == "STACK_GLOBAL":
        called, module = machine.popped(), machine.popped()
        stack.append(_Named(_of(module, str), _of(called, str)))
    elif name == "NEWOBJ":
        arguments, wanted = machine.popped(), machine.popped()
        if not _is(wanted, "joblib", "NumpyArrayWrapper") or arguments:
            raise UnsoundError(f"it asks for {wanted}, which plain data do not need")
        stack.append(_Array())
    elif name == "REDUCE":
        arguments, wanted = machine.popped(), machine.popped()
        stack.append(_rebuilt(wanted, _of(arguments, tuple)))
    elif name == "BUILD":
        state = machine.popped()
        _fill(machine, stack[-1], state)
    elif name not in ("PROTO", "FRAME"):
        raise UnsoundError(f"it has the operation {name}, which plain data do not need")


def _of(value: Any, kind: type[Any]) -> Any:
    """The value, which is of that kind."""
    if type(value) is not kind:
        raise UnsoundError(f"a {type(value).__name__} where a {kind.__name__} should be")
    return value


def _put(table: dict[Any, Any], pairs: list[Any]) -> None:
    for key, value in zip(pairs[::2], pairs[1::2], strict=True):
        if not isinstance(key, str | bytes | int):
            raise UnsoundError(f"a table with a {type(key).__name__} for a key")
        table[key] = value


def _is(wanted: Any, package: str, name: str) -> bool:
    return isinstance(wanted, _Named) and wanted.module.split(".")[0] == package and wanted.name == name


def _rebuilt(wanted: Any, arguments: tuple[Any, ...]) -> Any:
    """What a call gives: the types, arrays and bytes that arrays are rebuilt from; nothing else is called."""
    if _is(wanted, "numpy", "_reconstruct"):
        return _Array()
    if _is(wanted, "numpy", "dtype"):
        name = arguments[0].decode("latin-1") if isinstance(arguments[0], bytes) else arguments[0]
        if not NUMBERS.fullmatch(_of(name, str)):
            raise UnsoundError(f"arrays of {name!r}, which is no type of numbers")
        return _Type(name)
    if _is(wanted, "numpy", "_frombuffer"):
        content, kind, shape, order = arguments
        return _Array(_array(content, kind, shape, order))
    if not arguments and any(_is(wanted, package, "bytes") for package in ("builtins", "__builtin__")):
        return b""  # of these protocols, too
    if _is(wanted, "_codecs", "encode"):  # how Python 3 writes bytes in the protocols of Python 2
        text, encoding = arguments
        if encoding != "latin1":
            raise UnsoundError("texts in another encoding than that of bytes")
        return _of(text, str).encode("latin-1")
    raise UnsoundError(f"it asks for {wanted}, which plain data do not need")


def _fill(machine: _Machine, target: Any, state: Any) -> None:
    """Give a type its byte order, or an array its content."""
    if isinstance(target, _Type):
        order = state[1].decode("latin-1") if isinstance(state[1], bytes) else state[1]
        if state[2:5] != (None, None, None) or order not in ("<", ">", "|", "="):
            raise UnsoundError("a type of numbers that has fields")
        target.order = order
    elif isinstance(target, _Array) and target.content is None and isinstance(state, tuple):
        _, shape, kind, by_column, content = state
        target.content = _array(content, kind, shape, "F" if by_column else "C")
    elif isinstance(target, _Array) and target.content is None:
        target.content = _behind(machine.file, _of(state, dict))
    else:
        raise UnsoundError(f"the state of a {type(target).__name__}")


def _behind(file: io.BytesIO, state: dict[Any, Any]) -> Array:
    """An array of joblib, whose content stands in the file behind its description."""
    if not _is(state["subclass"], "numpy", "ndarray"):
        raise UnsoundError(f"it asks for {state['subclass']}, which plain data do not need")
    if state.get("numpy_array_alignment_bytes") is not None:
        file.read(file.read(1)[0])
    kind, shape = _of(state["dtype"], _Type), _shape(state["shape"])
    return _array(file.read(math.prod(shape) * kind.dtype().itemsize), kind, shape, state["order"])


def _shape(shape: Any) -> tuple[int, ...]:
    sizes = _of(shape, tuple)
    if len(sizes) > MOST_DIMENSIONS or not all(type(size) is int and size >= 0 for size in sizes):
        raise UnsoundError(f"arrays of shape {str(shape)[:40]}")
    return tuple(sizes)


def _array(content: Any, kind: Any, shape: Any, order: Any) -> Array:
    """An array of numbers that has this content, of which it needs all."""
    sizes, dtype = _shape(shape), _of(kind, _Type).dtype()
    if not isinstance(content, bytes | bytearray) or len(content) != math.prod(sizes) * dtype.itemsize:
        raise UnsoundError("an array whose content has not its size")
    flat = np.frombuffer(content, dtype)
    return flat.reshape(sizes, order="F" if order == "F" else "C")


def _plain(value: Any) -> Any:
    """The value with arrays in place of what was filled; of a table what stands in it, too."""
    if isinstance(value, dict):
        return {key: one if isinstance(one, dict) else _plain(one) for key, one in value.items()}
    if isinstance(value, _Named | _Type) or (isinstance(value, _Array) and value.content is None):
        raise UnsoundError(f"a {type(value).__name__.strip('_')} where data should be")
    return value.content if isinstance(value, _Array) else value
