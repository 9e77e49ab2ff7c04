"""The generators of the process, for code of others that draws from them: nothing of ours ever does."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def begin_globals(seed: int) -> None:
    """Have Python's, NumPy's and PyTorch's generators on the CPU begin where `seed` says.

    seed: of any size; of 64 bits and more the low ones that each generator takes are used.
    """
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)  # noqa: NPY002  # what others draw from
    torch.default_generator.manual_seed(seed & 0x7FFFFFFFFFFFFFFF)


@contextmanager
def seeded_globals(seed: int) -> Iterator[None]:
    """Within this block the generators begin as of `begin_globals`; then they are put back."""
    python, arrays = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        begin_globals(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(arrays)  # noqa: NPY002
