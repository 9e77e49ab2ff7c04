"""What decides the last bits of results beside versions: the kernels of this process, and how they are set.

MKL otherwise picks kernels by the alignment of memory and the number of matrices in a batch, so that a client's numbers
would depend on who else is in its cohort. `fedsim/__init__.py` sets MKL_CBWR, which MKL reads at its first product and
never again, to the fastest kernels of the processor that do not. A GPU's products are pinned by
CUBLAS_WORKSPACE_CONFIG, which is set there too, and by `settle`.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
from functools import cache
from pathlib import Path
from typing import Any

import torch

from fedsim.core.errors import InputError
from fedsim.parallel.cores import one_core_an_operation

BRANCHES = (
    *("OFF", "AUTO", "COMPATIBLE", "SSE2", "SSE3", "SSSE3", "SSE4_1", "SSE4_2", "AVX", "AVX2"),
    *("AVX512_MIC", "AVX512", "AVX512_MIC_E1", "AVX512_E1", "AVX10"),
)
"""MKL's kinds of kernels, as MKL_CBWR names them, by their number less one."""
STRICT = 0x10000
"""Added to the number where results do not depend on alignment either."""
UNKNOWN = "unknown"


def kernels() -> str:
    """Which kernels MKL takes, as after MKL_CBWR; "unknown" where PyTorch has no MKL, or one that does not say."""
    said = _mkl()
    if said is None:
        return UNKNOWN
    branch, strict = said & ~STRICT, ",STRICT" if said & STRICT else ""
    return f"{BRANCHES[branch - 1] if 0 < branch <= len(BRANCHES) else branch}{strict}"


def hold_pinned() -> None:
    """Refuse to compute where kernels follow the alignment of memory. InputError: they do, and what to do about it."""
    found = kernels()
    if found == "OFF":
        remedy = "MKL multiplied before it was told which kernels to take; import fedsim before anything multiplies"
        raise InputError("MKL_CBWR", found, f"{remedy}, or set MKL_CBWR=AUTO,STRICT before Python starts")
    if found not in (UNKNOWN, "COMPATIBLE") and not found.endswith(",STRICT"):
        remedy = "with these kernels of MKL results follow the alignment of memory"
        raise InputError("MKL_CBWR", found, f"{remedy}; leave it unset, or set AUTO,STRICT or COMPATIBLE")


def settle(device: torch.device, tf32: bool) -> None:
    """Have this process compute on a GPU in full precision, unless tf32 is asked for, and to the same bits each time.

    Where an operation has no such way PyTorch warns, by its name. Nothing is changed where the device is none.
    InputError: tf32 is asked for there.
    """
    if device.type != "cuda":
        if tf32:
            raise InputError("engine.tf32", True, f"there is no such rounding on {device.type}; remove it")
        return
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = False  # which takes the kernel that happened to be the fastest
    torch.use_deterministic_algorithms(True, warn_only=True)
    deterministic: Any = torch.utils.deterministic  # typed as if it could not be set
    deterministic.fill_uninitialized_memory = False  # nothing reads it, and filling takes time


def arithmetic() -> dict[str, str]:
    """How this process computes: settings by name, and the hash of what some operations give here."""
    settings = {
        "kernels": kernels(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "matmul": torch.get_float32_matmul_precision(),
        "default": str(torch.get_default_dtype()).removeprefix("torch."),
    }
    if torch.cuda.is_available():
        # Neither TF32 nor deterministic ways, which follow from the experiment; see `settle`.
        workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG", UNKNOWN)
        settings |= {"cuda": torch.cuda.get_device_name(), "workspace": workspace}
    return settings | {"probe": _probe()}


@cache
def _mkl() -> int | None:
    """What MKL says of itself."""
    path = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        ask: Any = ctypes.CDLL(str(path)).mkl_serv_cbwr_get
    except (OSError, AttributeError):  # another system, or another library of products
        return None
    torch.ones(64, 64).mm(torch.ones(64, 64))  # before which it would say what it has been told last
    return int(ask(ctypes.c_int(-1)))


def _probe() -> str:
    """The hash of some products, filters and functions as this process computes them now."""
    found = hashlib.blake2b(digest_size=8)
    for dtype in (torch.float32, torch.float64):
        left, right = (_numbers(*shape, dtype=dtype) for shape in ((4, 10, 65), (4, 65, 33)))
        images, filters = _numbers(2, 3, 9, 9, dtype=dtype), _numbers(4, 3, 3, 3, dtype=dtype)
        with one_core_an_operation():
            for part in (
                torch.bmm(left, right),
                left[0].mm(right[0]),
                torch.nn.functional.conv2d(images, filters),
                left.exp(),
                left.sigmoid(),
                left.sum(dim=(1, 2)),
                left * left.new_tensor(torch.finfo(dtype).tiny),  # zero where small numbers are flushed
            ):
                found.update(part.contiguous().numpy().tobytes())
    return found.hexdigest()


def _numbers(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    """Numbers between -1 and 1 that need all their bits, from no generator."""
    count = torch.Size(shape).numel()
    whole = torch.arange(1, count + 1, dtype=torch.int64)
    return ((whole * 7919 % 10007).to(dtype) / 5003 - 1).reshape(shape)
