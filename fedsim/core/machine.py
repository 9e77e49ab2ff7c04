"""What a run is computed on, in words for its methods section."""

from __future__ import annotations

import os
import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
"""Where Linux says what its processors are."""


def processor() -> str:
    """The name of the processor, as its maker has it where the system tells, and how many cores there are."""
    cores = f"{os.cpu_count()} cores"
    try:
        lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # of other systems
        lines = []
    told = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{next(told, platform.processor() or platform.machine())}, {cores}"
