"""Messages between two processes: small ones through a pipe, large ones through memory that both see.

A message is pickled with protocol 5. The buffers that it lends (NumPy's arrays, PyTorch's tensors on a CPU) are not
part of the pickle: they are copied once into shared memory and once out of it, and so are `bytes` of 64 KiB and more.
Tensors arrive contiguous, each in memory of its own.

NumPy and PyTorch are imported where they are needed, so that a new process can first set what they read then.
"""

from __future__ import annotations

import copyreg
import math
import os
import pickle
import sys
from collections.abc import Sequence
from contextlib import suppress
from itertools import accumulate
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SMALL = 2**15
"""Bytes of a message up to which the pipe is as fast."""
ALIGNED = 64
"""Where arrays begin: at multiples of as many bytes, as PyTorch's own do."""
SYSTEM = Path("/dev/shm")
"""Where segments are files, on systems where they are."""


class UnreadableError(Exception):
    """A message came that cannot be unpickled here; its cause is what was raised."""


class Channel:
    """One end of a connection on which two processes answer each other in turn.

    connection: a pipe in both directions. own, other: how the segments of shared memory are named that this end and
    the other one write into, with a number behind; both ends know both. A segment is used for every message, and
    replaced by one at least twice as large when a message does not fit. Its name is removed as soon as both ends have
    it, so nothing is left of it when they end, however they do. Where the system has no room, large messages take the
    pipe, too.
    """

    def __init__(self, connection: Connection, own: str, other: str) -> None:
        self.connection, self._own, self._other = connection, own, other
        self._out: SharedMemory | None = None
        self._in: SharedMemory | None = None
        self._made = self._met = 0

    def send(self, message: object) -> None:
        """Send a message, once the other end has answered the last one.

        Raises what pickle raises, with nothing sent, or OSError where the other end is gone.
        """
        parts, sizes = _pickled(message)
        room = None if sum(sizes) <= SMALL else self._room(sum(sizes))
        if room is None:
            self.connection.send_bytes(b"".join([pickle.dumps((0, sizes)), *parts]))
            return
        begin = 0
        for part in parts:
            room[begin : begin + part.nbytes] = part
            begin += part.nbytes
        self.connection.send_bytes(pickle.dumps((self._made, sizes)))

    def receive(self) -> Any:
        """The next message; it shares no memory with the other end.

        EOFError or OSError: the other end is gone. UnreadableError: the message makes no sense here.
        """
        data = self.connection.recv_bytes()
        number, sizes = pickle.loads(data)  # which stops where the first pickle ends
        block = memoryview(data)[len(data) - sum(sizes) :] if number == 0 else self._segment(number)
        parts = [block[end - size : end] for size, end in zip(sizes, accumulate(sizes), strict=True)]
        try:
            return pickle.loads(parts[0], buffers=[_copied(part) for part in parts[1:]])
        except Exception as error:
            raise UnreadableError from error
        finally:
            for part in (*parts, block):
                part.release()

    def close(self) -> None:
        """Let go of the connection and of the memory, also of what a dead process at the other end has made."""
        self.connection.close()
        if self._out is not None:
            _removed(self._out)
        if self._in is not None:
            self._in.close()
        self._out = self._in = None
        with suppress(FileNotFoundError):
            _removed(SharedMemory(f"{self._other}{self._met + 1}"))

    def _room(self, size: int) -> memoryview | None:
        """Memory for so many bytes or more that the other end will find; None: there is none."""
        if self._out is not None and self._out.size >= size:
            return self._out.buf
        wanted = size if self._out is None else max(size, 2 * self._out.size)
        try:
            made = SharedMemory(f"{self._own}{self._made + 1}", create=True, size=wanted)
        except OSError:
            return None
        try:
            _reserve(made)
        except OSError:
            _removed(made)
            return None
        if self._out is not None:
            _removed(self._out)
        self._out, self._made = made, self._made + 1
        return made.buf

    def _segment(self, number: int) -> memoryview:
        if number != self._met:
            if self._in is not None:
                self._in.close()
            self._in, self._met = SharedMemory(f"{self._other}{number}"), number
            with suppress(FileNotFoundError):
                self._in.unlink()
        assert self._in is not None
        assert self._in.buf is not None
        return self._in.buf[:]


class _Stream:
    """A file to pickle into that keeps what is written as it comes: large `bytes` are not copied."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.write = self.parts.append


def _pickled(message: object) -> tuple[list[memoryview], list[int]]:
    """The pickle, in parts, and behind it the buffers that it lends; and how many bytes it has, and each of these."""
    stream, buffers = _Stream(), list[pickle.PickleBuffer]()
    pickler = pickle.Pickler(stream, protocol=5, buffer_callback=buffers.append)
    if "torch" in sys.modules:
        import torch

        # Of itself a tensor would be copied into the pickle.
        pickler.dispatch_table = {**copyreg.dispatch_table, torch.Tensor: _reduced}
    pickler.dump(message)
    lent = [buffer.raw() for buffer in buffers]
    sizes = [sum(map(len, stream.parts)), *(part.nbytes for part in lent)]
    return [*(memoryview(part) for part in stream.parts), *lent], sizes


def _reduced(tensor: Tensor) -> Any:
    import torch

    plain = tensor.device.type == "cpu" and tensor.layout is torch.strided and not tensor.is_quantized
    if not plain or tensor.__dict__:
        return tensor.__reduce_ex__(5)  # type: ignore[no-untyped-call]
    numbers = tensor.detach().resolve_conj().resolve_neg().contiguous()
    raw: Any = numbers.reshape(-1).view(torch.uint8).numpy()  # NumPy has no bfloat16
    return _tensor, (pickle.PickleBuffer(raw), tensor.dtype, tuple(tensor.shape), tensor.requires_grad)


def _tensor(lent: memoryview, dtype: torch.dtype, shape: Sequence[int], requires_grad: bool) -> Tensor:
    import torch

    flat = torch.frombuffer(lent, dtype=dtype) if math.prod(shape) else torch.empty(0, dtype=dtype)
    return flat.reshape(shape).requires_grad_(requires_grad)


def _copied(part: memoryview) -> memoryview:
    import numpy as np

    room = np.empty(part.nbytes + ALIGNED, np.uint8)
    begin = -room.ctypes.data % ALIGNED
    copy = room[begin : begin + part.nbytes]
    copy[:] = part
    return copy.data


def _reserve(memory: SharedMemory) -> None:
    """Take the memory that a segment is to have; OSError: there is not so much.

    Else the system would end the process that writes where no page is left for it.
    """
    file = SYSTEM / memory.name
    if file.exists():
        with file.open("r+b") as opened:
            os.posix_fallocate(opened.fileno(), 0, memory.size)


def _removed(memory: SharedMemory) -> None:
    """Let go of a segment, and remove its name if the other end has not."""
    memory.close()
    with suppress(FileNotFoundError):
        memory.unlink()
