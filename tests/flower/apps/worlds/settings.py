"""Settings of a process: all at once, changed, and read."""

import builtins
import decimal
import locale
import logging
import os
import socket
import sys
import warnings

import numpy as np
import torch

# Each is called with the number of times that this process has been spoiled: the server's, or a node's.
CHANGES = {
    "dtype": lambda: torch.set_default_dtype(torch.float64),
    "device": lambda: torch.set_default_device("meta"),
    "gradients": lambda: torch.set_grad_enabled(False),
    "deterministic": lambda: torch.use_deterministic_algorithms(True),
    "products": lambda: torch.set_float32_matmul_precision("medium"),
    "anomaly": lambda: torch.autograd.set_detect_anomaly(True),
    "threads": lambda: torch.set_num_threads(3),
    "errors": lambda: np.seterr(over="raise"),
    "call": lambda: np.seterrcall(print),
    "printing": lambda: np.set_printoptions(precision=3),
    "environment": lambda: os.environ.update(FROM_APP="1"),
    "removed": lambda: os.environ.pop("HOME", None),
    "folder": lambda: os.chdir("/"),
    "path": lambda: sys.path.append("/nowhere"),
    "arguments": lambda: sys.argv.append("--nothing"),
    "recursion": lambda: sys.setrecursionlimit(sys.getrecursionlimit() + 7),
    "level": lambda: logging.getLogger().setLevel(5),
    "handler": lambda: logging.getLogger("of.an.app").addHandler(logging.NullHandler()),
    "filter": lambda: logging.getLogger("flwr").addFilter(lambda record: True),
    "passed on": lambda: setattr(logging.getLogger("of.an.app"), "propagate", False),
    "disabled": lambda: logging.disable(11),
    "warnings": lambda: warnings.simplefilter("error", BytesWarning),
    "built in": lambda: setattr(builtins, "of_an_app", 1),
    "decimal": lambda: setattr(decimal.getcontext(), "prec", 7),
    "socket": lambda: socket.setdefaulttimeout(3.0),
    "locale": lambda: locale.setlocale(locale.LC_ALL, "C.UTF-8" if locale.setlocale(locale.LC_ALL) == "C" else "C"),
}


def read():
    """What CHANGES change, in the same order, as text."""
    logger = logging.getLogger("of.an.app")
    found = [
        *(torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled()),
        *(torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision()),
        *(torch.is_anomaly_enabled(), torch.get_num_threads(), np.geterr()["over"], np.geterrcall() is not None),
        *(np.get_printoptions()["precision"], os.environ.get("FROM_APP"), "HOME" in os.environ, os.getcwd()),
        *("/nowhere" in sys.path, "--nothing" in sys.argv, sys.getrecursionlimit(), logging.getLogger().level),
        *(len(logger.handlers), len(logging.getLogger("flwr").filters), logger.propagate),
        *(logging.getLogger().manager.disable, any(each[2] is BytesWarning for each in warnings.filters)),
        *(hasattr(builtins, "of_an_app"), decimal.getcontext().prec, socket.getdefaulttimeout()),
        locale.setlocale(locale.LC_ALL),
    ]
    return dict(zip(CHANGES, map(str, found), strict=True))


def spoil():
    """Change all of them."""
    for change in CHANGES.values():
        change()
