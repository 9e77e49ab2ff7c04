"""How kernels are compiled, and where the results are kept.

numba keeps what it has compiled beside a function's file and looks at that file alone: an edit of another file, whose
functions are compiled into it, would go unnoticed. So the folder is named by a hash of all kernels' files, of numba's
version and of the processor. A folder that cannot be written is done without, and a damaged file is made again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import llvmlite.binding
import numba
from llvmlite import ir
from numba import types
from numba.core import config as numba_config
from numba.core.caching import FunctionCache
from numba.core.ccallback import CFunc
from numba.core.sigutils import normalize_signature
from numba.extending import intrinsic

from fedsim.core.cache import cache_folder

jit: Any = numba.njit  # typed without some of its settings
config: Any = numba_config  # typed as if it had none
SETTINGS = {"nogil": True, "error_model": "numpy"}
"""Other threads go on meanwhile; a division by zero gives infinity, as in tensors."""

part = jit(**SETTINGS, no_cpython_wrapper=True, no_cfunc_wrapper=True)
"""Of functions that are compiled into those that call them."""


def features() -> str:
    """Those of the processor that is compiled for."""
    return str(config.CPU_FEATURES or llvmlite.binding.get_host_cpu_features().flatten())


def key(folder: Path) -> str:
    """The hash of all files of kernels in a folder, and of what they are compiled by and for."""
    name = config.CPU_NAME or llvmlite.binding.get_host_cpu_name()
    by = f"{numba.__version__} {llvmlite.__version__} {name} {features()}"
    found = hashlib.blake2b(by.encode(), digest_size=16)
    for file in sorted(folder.glob("*.py")):
        text = file.read_bytes()
        found.update(f"{file.name} {len(text)}".encode() + text)
    return found.hexdigest()


class _Kept(FunctionCache):
    """numba's own files, without which everything goes on."""

    def load_overload(self, signature: Any, context: Any) -> Any:
        """What was compiled; None: nothing, or it cannot be read."""
        try:
            return super().load_overload(signature, context)
        except Exception:  # of whatever kind is in a damaged pickle
            with suppress(OSError):
                self.flush()
            return None

    def save_overload(self, signature: Any, data: Any) -> None:
        """Keep it, if the disk lets us."""
        with suppress(OSError):
            super().save_overload(signature, data)


def entry(function: Callable[..., None]) -> Any:
    """Compile a function that Python calls, and keep what comes of it."""
    made = jit(**SETTINGS)(function)
    _keep(made, function)
    return made


class Rule:
    """A function of a rule of a step, which compiled loops call by its address.

    So it is compiled where it is asked for alone, and the loops are not compiled again for another. Its arguments are
    vectors of numbers of one kind, p, g and what is remembered; then float64, int64 and a vector of float64.
    """

    def __init__(self, function: Callable[..., None]) -> None:
        self._function = function
        self.address = lru_cache(self._address)

    def _address(self, kind: str) -> int:
        """Where it is for numbers of a kind, by NumPy's name; it is compiled before, if it has not been kept."""
        vector = types.Array(getattr(types, kind), 1, "C")
        signature = types.void(vector, vector, vector, types.float64, types.int64, types.Array(types.float64, 1, "C"))
        made: Any = CFunc(self._function, normalize_signature(signature), {}, {"error_model": SETTINGS["error_model"]})
        _keep(made, self._function)
        made.compile()
        return int(made.address)


def _call(typing: Any, address: Any, p: Any, g: Any, memory: Any, lr: Any, number: Any, numbers: Any) -> Any:
    """Call the rule at an address."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        own = ir.FunctionType(context.get_value_type(types.none), [arg.type for arg in args[1:]])
        builder.call(builder.inttoptr(args[0], own.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.void(types.int64, p, g, memory, types.float64, types.int64, numbers), generate


call: Any = intrinsic(_call)


def _keep(made: Any, function: Callable[..., None]) -> None:
    """Have what comes of compiling a function kept, where it can be."""
    folder = cache_folder() / "kernels" / key(Path(function.__code__.co_filename).parent)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    before, config.CACHE_DIR = config.CACHE_DIR, str(folder)
    try:
        made._cache = _Kept(function)
    except (OSError, RuntimeError):  # nothing can be written there
        return
    finally:
        config.CACHE_DIR = before
