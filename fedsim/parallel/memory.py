"""Memory that was freed stays with the process, for the next round needs as much.

glibc gives a block of more than 32 MiB back to the system as soon as it is freed, and the system clears every page of
the next one again: with 100 clients of 200,000 parameters 29,000 to 39,000 pages a round, and up to half of its time.
"""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache
from typing import Any

TRIM_THRESHOLD, MMAP_MAX = -1, -4
"""Of glibc's `mallopt`: from how many free bytes at its end the heap shrinks, and how many blocks may be outside it."""


@cache
def keep_freed_memory() -> bool:
    """Have this process keep what it frees, up to 2 GiB at its heap's end; whether it does so from now on.

    Where there is another allocator, or a variable of glibc's says how memory is to be kept, nothing is changed.
    """
    if not sys.platform.startswith("linux") or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt: Any = ctypes.CDLL(None).mallopt
    except AttributeError:  # musl has none
        return False
    return bool(mallopt(MMAP_MAX, 0) and mallopt(TRIM_THRESHOLD, 2**31 - 1))
