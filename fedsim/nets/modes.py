"""Ways in which layers are computed: those that forward mode knows, and those that can be differentiated twice."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from threading import Lock
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

_twice: ContextVar[bool] = ContextVar("fedsim_twice", default=False)


class _FastPaths:
    """PyTorch's for LSTMs and attention, which are on or off for all threads of a process: off while somebody is in."""

    def __init__(self) -> None:
        self._lock, self._inside, self._before = Lock(), 0, ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                layers: Any = torch.backends.mkldnn  # typed as if its flags could not be set
                self._before.callback(setattr, layers, "enabled", layers.enabled)
                attention = torch.backends.mha.get_fastpath_enabled()
                self._before.callback(torch.backends.mha.set_fastpath_enabled, attention)
                layers.enabled = False
                torch.backends.mha.set_fastpath_enabled(False)
                self._before.enter_context(sdpa_kernel(SDPBackend.MATH))
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._before.close()


without_fast_paths = _FastPaths()
"""Within this block PyTorch's fast paths for LSTMs and attention, which have one derivative and no forward mode, rest.

As long as one thread is in, they rest for all: who computes with derivatives of some and gradients of others stays in
for both, so that no bit of a gradient depends on what other threads do.
"""


@contextmanager
def forward_mode() -> Iterator[None]:
    """Within this block layers are computed in ways that forward-mode differentiation knows."""
    with without_fast_paths, warnings.catch_warnings():
        # Of PyTorch's own rules, when the first of them is read.
        warnings.filterwarnings("ignore", message=r".*torch\.jit\.script", category=DeprecationWarning)
        yield


@contextmanager
def second_order() -> Iterator[None]:
    """Within this block layers are computed in ways whose gradients can be differentiated, too."""
    token = _twice.set(True)
    try:
        with without_fast_paths:
            yield
    finally:
        _twice.reset(token)


def twice() -> bool:
    """Whether what is computed now is to be differentiated twice."""
    return _twice.get()
