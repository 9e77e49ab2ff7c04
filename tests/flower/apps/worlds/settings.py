"""Settings of a process: all at once, changed, and read."""

import builtins
import decimal
import gc
import locale
import logging
import multiprocessing
import os
import signal
import socket
import sys
import time
import warnings

import numpy as np
import torch

ROOT, OWN, FLOWER = logging.getLogger(), logging.getLogger("of.an.app"), logging.getLogger("flwr")
NOTHING = logging.NullHandler()


def turned():
    """The other one of two locales."""
    return "C.UTF-8" if locale.setlocale(locale.LC_ALL) == "C" else "C"


# How each is changed, and how it is read; what is read differs before and after.
SETTINGS = {
    "dtype": (lambda: torch.set_default_dtype(torch.float64), torch.get_default_dtype),
    "device": (lambda: torch.set_default_device("meta"), torch.get_default_device),
    "gradients": (lambda: torch.set_grad_enabled(False), torch.is_grad_enabled),
    "deterministic": (lambda: torch.use_deterministic_algorithms(True), torch.are_deterministic_algorithms_enabled),
    "products": (lambda: torch.set_float32_matmul_precision("medium"), torch.get_float32_matmul_precision),
    "anomaly": (lambda: torch.autograd.set_detect_anomaly(True), torch.is_anomaly_enabled),
    "kernels": (lambda: setattr(torch.backends.cudnn, "benchmark", True), lambda: torch.backends.cudnn.benchmark),
    "threads": (lambda: torch.set_num_threads(3), torch.get_num_threads),
    "errors": (lambda: np.seterr(over="raise"), lambda: np.geterr()["over"]),
    "error call": (lambda: np.seterrcall(print), lambda: np.geterrcall() is not None),
    "printing": (lambda: np.set_printoptions(precision=3), lambda: np.get_printoptions()["precision"]),
    "environment": (lambda: os.environ.update(FROM_APP="1"), lambda: os.environ.get("FROM_APP")),
    "removed": (lambda: os.environ.pop("HOME", None), lambda: "HOME" in os.environ),
    "zone": (lambda: (os.environ.update(TZ="XYZ+3"), time.tzset()), lambda: time.tzname[0]),
    "folder": (lambda: os.chdir("/"), os.getcwd),
    "path": (lambda: sys.path.append("/nowhere"), lambda: "/nowhere" in sys.path),
    "arguments": (lambda: sys.argv.append("--nothing"), lambda: "--nothing" in sys.argv),
    "recursion": (lambda: sys.setrecursionlimit(sys.getrecursionlimit() + 7), sys.getrecursionlimit),
    "digits": (lambda: sys.set_int_max_str_digits(5000), sys.get_int_max_str_digits),
    "interval": (lambda: sys.setswitchinterval(0.25), sys.getswitchinterval),
    "collector": (lambda: gc.set_threshold(100), lambda: gc.get_threshold()[0]),
    "collections": (gc.disable, gc.isenabled),
    "signal": (lambda: signal.signal(signal.SIGHUP, print), lambda: callable(signal.getsignal(signal.SIGHUP))),
    "processes": (
        lambda: multiprocessing.set_start_method("forkserver", force=True),
        lambda: multiprocessing.get_start_method(allow_none=True),
    ),
    "level": (lambda: ROOT.setLevel(5), lambda: ROOT.level),
    "handler": (lambda: OWN.addHandler(NOTHING), lambda: len(OWN.handlers)),
    "handler's level": (lambda: NOTHING.setLevel(7), lambda: NOTHING.level),
    "filter": (lambda: FLOWER.addFilter(lambda record: True), lambda: len(FLOWER.filters)),
    "passed on": (lambda: setattr(OWN, "propagate", False), lambda: OWN.propagate),
    "disabled": (lambda: logging.disable(11), lambda: ROOT.manager.disable),
    "captured": (lambda: logging.captureWarnings(True), lambda: warnings.showwarning.__module__),
    "warnings": (
        lambda: warnings.simplefilter("error", BytesWarning),
        lambda: any(each[2] is BytesWarning for each in warnings.filters),
    ),
    "built in": (lambda: setattr(builtins, "of_an_app", 1), lambda: hasattr(builtins, "of_an_app")),
    "decimal": (lambda: setattr(decimal.getcontext(), "prec", 7), lambda: decimal.getcontext().prec),
    "socket": (lambda: socket.setdefaulttimeout(3.0), socket.getdefaulttimeout),
    "locale": (lambda: locale.setlocale(locale.LC_ALL, turned()), lambda: locale.setlocale(locale.LC_ALL)),
}


def read():
    """All of them, as text."""
    return {name: str(reading()) for name, (_, reading) in SETTINGS.items()}


def spoil():
    """Change all of them."""
    for change, _ in SETTINGS.values():
        change()
