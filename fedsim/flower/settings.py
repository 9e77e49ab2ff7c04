"""Settings of the process, which a Flower app may make as if the process were its own: read, and put back.

What is set through context variables (NumPy 2's error state among them) is kept apart by `fedsim.flower.worlds`, too.
"""

from __future__ import annotations

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
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

Settings = Mapping[str, Any]
"""What `present` has read: values by the names of `_SETTINGS`."""


class _Setting(NamedTuple):
    """How a setting is read and written. portable: what is read makes sense in another process, too."""

    read: Callable[[], Any]
    write: Callable[[Any], object]
    portable: bool = True


def present() -> Settings:
    """The settings as they are."""
    return {name: setting.read() for name, setting in _SETTINGS.items()}


def portable(settings: Settings) -> Settings:
    """Those that another process can take over."""
    return {name: value for name, value in settings.items() if _SETTINGS[name].portable}


def change(before: Settings, after: Settings) -> None:
    """Write what differs between the settings as they are and those that are to be."""
    for name, value in after.items():
        if before[name] != value:
            _SETTINGS[name].write(value)


def _folder() -> str:
    """The working folder; empty where it has been removed, so that there is no way back."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return ""


def _enter(folder: str) -> None:
    if folder:
        os.chdir(folder)


_environment = vars(os.environ)["_data"]
"""The variables as the process has them, of bytes or of text; to decode them all takes a hundred times as long."""


def _set_environment(wanted: Mapping[Any, Any]) -> None:
    variables = {os.fsdecode(name): os.fsdecode(value) for name, value in wanted.items()}
    for name in set(os.environ) - set(variables):
        del os.environ[name]
    os.environ.update(variables)
    if hasattr(time, "tzset"):
        time.tzset()  # TZ may be one of them


def _set_builtins(wanted: Mapping[str, Any]) -> None:
    held = vars(builtins)
    for name in set(held) - set(wanted):
        del held[name]
    held.update(wanted)


def _set_warnings(wanted: tuple[list[Any], Callable[..., None]]) -> None:
    filters, show = wanted
    warnings.resetwarnings()  # so that it is looked up anew what is to be shown
    warnings.filters[:] = filters  # type: ignore[index]
    logging.captureWarnings(False)  # which must know that it does not
    if show.__module__ == "logging":
        logging.captureWarnings(True)
    else:
        warnings.showwarning = show


def _set_collector(wanted: tuple[bool, tuple[int, int, int]]) -> None:
    enabled, threshold = wanted
    gc.set_threshold(*threshold)
    if enabled:
        gc.enable()
    else:
        gc.disable()


def _interpreter() -> tuple[Any, ...]:
    return sys.getrecursionlimit(), sys.getswitchinterval(), sys.get_int_max_str_digits()


def _set_interpreter(wanted: tuple[int, float, int]) -> None:
    recursion, interval, digits = wanted
    sys.setrecursionlimit(recursion)
    sys.setswitchinterval(interval)
    sys.set_int_max_str_digits(digits)


def _set_handlers(wanted: Mapping[signal.Signals, Any]) -> None:
    if threading.current_thread() is threading.main_thread():  # no other may
        for number, handler in wanted.items():
            if handler is not None:  # one that Python has not installed
                signal.signal(number, handler)


def _set_start_method(wanted: str | None) -> None:
    multiprocessing.set_start_method(wanted, force=True)


def _set_kernels(wanted: tuple[bool, bool]) -> None:
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = wanted


def _set_streams(wanted: tuple[Any, Any, Any]) -> None:
    sys.stdin, sys.stdout, sys.stderr = wanted


def _set_device(wanted: torch.device) -> None:
    torch.set_default_device(None if wanted.type == "cpu" else wanted)


def _decimals() -> tuple[Any, ...]:
    held = decimal.getcontext()
    traps = [kind for kind, trapped in held.traps.items() if trapped]
    return held.prec, held.rounding, held.Emin, held.Emax, held.capitals, held.clamp, [], traps


class _Loggers:
    """All loggers, by name: some hundred, looked through after each call, and named anew only where one has come."""

    def __init__(self) -> None:
        self._made: list[Any] = []
        self._named = [("", logging.getLogger())]

    def __call__(self) -> list[tuple[str, logging.Logger]]:
        """The loggers that there are now."""
        root, place = logging.getLogger(), logging.PlaceHolder
        made = list(root.manager.loggerDict.values())
        if made != self._made:  # the same objects in the same order, which takes a microsecond to see
            named = root.manager.loggerDict.items()
            self._named = [("", root), *((name, one) for name, one in named if not isinstance(one, place))]
            self._made = made
        return self._named


_loggers = _Loggers()


def _levels() -> dict[str, int]:
    return {name: logger.level for name, logger in _loggers() if logger.level}


def _set_levels(wanted: Mapping[str, int]) -> None:
    for name, logger in _loggers():
        if logger.level != (level := wanted.get(name, logging.NOTSET)):
            logger.setLevel(level)


_UNTOUCHED: tuple[Any, ...] = (False, True, [], [])


def _wiring() -> dict[str, Any]:
    """Of each logger that is not as it was made: whether it is disabled, passes on, its handlers and its filters."""
    found = {}
    for name, logger in _loggers():
        if logger.handlers or logger.filters or logger.disabled or not logger.propagate:
            handlers = [(handler, handler.level) for handler in logger.handlers]
            found[name] = bool(logger.disabled), logger.propagate, handlers, list(logger.filters)
    return found


def _set_wiring(wanted: Mapping[str, Any]) -> None:
    for name, logger in _loggers():
        disabled, propagate, handlers, filters = wanted.get(name, _UNTOUCHED)
        logger.disabled, logger.propagate = disabled, propagate
        logger.handlers[:] = [handler for handler, _ in handlers]
        logger.filters[:] = filters
        for handler, level in handlers:
            handler.setLevel(level)


_SIGNALS = [signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGALRM") if hasattr(signal, name)]
_SETTINGS: Mapping[str, _Setting] = {
    "environment": _Setting(lambda: dict(_environment), _set_environment),
    "working folder": _Setting(_folder, _enter),
    "search path": _Setting(lambda: list(sys.path), lambda value: sys.path.__setitem__(slice(None), value)),
    "arguments": _Setting(lambda: list(sys.argv), lambda value: sys.argv.__setitem__(slice(None), value)),
    "interpreter": _Setting(_interpreter, _set_interpreter),
    "collector": _Setting(lambda: (gc.isenabled(), gc.get_threshold()), _set_collector),
    "signals": _Setting(lambda: {number: signal.getsignal(number) for number in _SIGNALS}, _set_handlers, False),
    "start method": _Setting(lambda: multiprocessing.get_start_method(allow_none=True), _set_start_method),
    "locale": _Setting(lambda: locale.setlocale(locale.LC_ALL), lambda value: locale.setlocale(locale.LC_ALL, value)),
    "socket timeout": _Setting(socket.getdefaulttimeout, socket.setdefaulttimeout),
    "streams": _Setting(lambda: (sys.stdin, sys.stdout, sys.stderr), _set_streams, portable=False),
    "builtins": _Setting(lambda: dict(vars(builtins)), _set_builtins, portable=False),
    "warnings": _Setting(lambda: (list(warnings.filters), warnings.showwarning), _set_warnings, portable=False),
    "decimals": _Setting(_decimals, lambda value: decimal.setcontext(decimal.Context(*value))),
    "log disabled": _Setting(lambda: logging.root.manager.disable, logging.disable),
    "log levels": _Setting(_levels, _set_levels),
    "log wiring": _Setting(_wiring, _set_wiring, portable=False),
    "numpy errors": _Setting(np.geterr, lambda value: np.seterr(**value)),
    "numpy error call": _Setting(np.geterrcall, np.seterrcall, portable=False),
    "numpy printing": _Setting(np.get_printoptions, lambda value: np.set_printoptions(**value), portable=False),
    "default dtype": _Setting(torch.get_default_dtype, torch.set_default_dtype),
    "default device": _Setting(torch.get_default_device, _set_device),
    "gradients": _Setting(torch.is_grad_enabled, torch.set_grad_enabled),
    "anomalies": _Setting(torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    "deterministic": _Setting(torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    "kernels": _Setting(lambda: (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic), _set_kernels),
    "matrix products": _Setting(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    "threads": _Setting(torch.get_num_threads, torch.set_num_threads, portable=False),
}
