"""What this machine's memory has room for, and how libraries say that it has none."""

from __future__ import annotations

import os
import sys

if sys.platform != "win32":
    import resource

SAID = ("allocate memory", "out of memory", "size calculation overflowed", "multiplication overflow")
"""What PyTorch says where it does not get memory, or is asked for more than there are addresses."""


def no_room(error: BaseException) -> bool:
    """Whether an error says that memory was not enough; PyTorch's is a RuntimeError like any other."""
    words = str(error)
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(said in words for said in SAID))


def room() -> int:
    """Bytes that this process could have at most: those of the machine, or what its shell allows."""
    if sys.platform == "win32":
        return sys.maxsize
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    allowed, _ = resource.getrlimit(resource.RLIMIT_AS)
    return machine if allowed == resource.RLIM_INFINITY else min(machine, allowed)
