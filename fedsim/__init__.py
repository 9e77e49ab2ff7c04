"""fedsim: federated and zeroth-order learning with thousands of virtual clients on one machine.

The distribution is called fedsim-lab; fedsim_lab.py knows this package by that.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from fedsim.core.lazy import lazily
from fedsim.core.version import __version__ as __version__

if TYPE_CHECKING:
    from fedsim import plots
    from fedsim.client import Client
    from fedsim.configuration.tables import Experiment, experiment, load
    from fedsim.core.errors import DivergedError, FedsimError, InputError
    from fedsim.problems.evaluators import BlackBoxError
    from fedsim.problems.own_data import supervised
    from fedsim.problems.own_functions import black_box
    from fedsim.reports.comparison import compare
    from fedsim.running.history import History
    from fedsim.running.result import Result, Round
    from fedsim.running.resume import resume
    from fedsim.running.runner import run
    from fedsim.running.study import Study
    from fedsim.running.sweep import sweep
    from fedsim.server import Strategy
    from fedsim.tuning.search import tune

# See `fedsim.parallel.arithmetic`. MKL reads it at its first product, so it must stand before that.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
# A GPU's products, which are otherwise summed in an order that differs from call to call.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

# Loaded when first asked for, so that a command that needs no tensors does not wait for them.
_HOMES = {
    "BlackBoxError": "fedsim.problems.evaluators",
    "Client": "fedsim.client",
    "DivergedError": "fedsim.core.errors",
    "Experiment": "fedsim.configuration.tables",
    "FedsimError": "fedsim.core.errors",
    "History": "fedsim.running.history",
    "InputError": "fedsim.core.errors",
    "Result": "fedsim.running.result",
    "Round": "fedsim.running.result",
    "Strategy": "fedsim.server",
    "Study": "fedsim.running.study",
    "black_box": "fedsim.problems.own_functions",
    "compare": "fedsim.reports.comparison",
    "experiment": "fedsim.configuration.tables",
    "load": "fedsim.configuration.tables",
    "plots": "fedsim.plots",
    "resume": "fedsim.running.resume",
    "run": "fedsim.running.runner",
    "supervised": "fedsim.problems.own_data",
    "sweep": "fedsim.running.sweep",
    "tune": "fedsim.tuning.search",
}

__all__ = [
    "BlackBoxError",
    "Client",
    "DivergedError",
    "Experiment",
    "FedsimError",
    "History",
    "InputError",
    "Result",
    "Round",
    "Strategy",
    "Study",
    "black_box",
    "compare",
    "experiment",
    "load",
    "plots",
    "resume",
    "run",
    "supervised",
    "sweep",
    "tune",
]

__getattr__, __dir__ = lazily(__name__, _HOMES)
