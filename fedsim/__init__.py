"""fedsim: federated and zeroth-order learning with thousands of virtual clients on one machine.

The distribution is called fedsim-lab; fedsim_lab.py knows this package by that.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from fedsim.core.version import __version__ as __version__

if TYPE_CHECKING:
    from fedsim.configuration.tables import Experiment, experiment, load
    from fedsim.core.errors import DivergedError, FedsimError, InputError
    from fedsim.problems.black_box import BlackBoxError, black_box
    from fedsim.problems.supervised import supervised
    from fedsim.reports.comparison import compare
    from fedsim.running.resume import resume
    from fedsim.running.runner import Result, Round, run

# MKL otherwise picks kernels by the alignment of memory and the number of matrices in a batch, so that a client's
# numbers would depend on who else is in its cohort. Read at the first product, so it must stand before that.
os.environ.setdefault("MKL_CBWR", "AVX2,STRICT")

# Loaded when first asked for, so that a command that needs no tensors does not wait for them.
_HOMES = {
    "compare": "fedsim.reports.comparison",
    "DivergedError": "fedsim.core.errors",
    "FedsimError": "fedsim.core.errors",
    "InputError": "fedsim.core.errors",
    "Experiment": "fedsim.configuration.tables",
    "experiment": "fedsim.configuration.tables",
    "load": "fedsim.configuration.tables",
    "BlackBoxError": "fedsim.problems.black_box",
    "black_box": "fedsim.problems.black_box",
    "Result": "fedsim.running.runner",
    "Round": "fedsim.running.runner",
    "resume": "fedsim.running.resume",
    "run": "fedsim.running.runner",
    "supervised": "fedsim.problems.supervised",
}

__all__ = [
    "BlackBoxError",
    "DivergedError",
    "Experiment",
    "FedsimError",
    "InputError",
    "Result",
    "Round",
    "black_box",
    "compare",
    "experiment",
    "load",
    "resume",
    "run",
    "supervised",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fedsim' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
