"""What a process frees it keeps."""

from __future__ import annotations

import sys

import pytest
import torch

from fedsim.parallel import memory
from fedsim.running.build import build_simulation
from fedsim.testing.problems import small_experiment, small_problem

resource = pytest.importorskip("resource")


def faults(nbytes: int) -> int:
    """Pages that the system has to clear for a block that is filled and freed."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(nbytes, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator is Linux's")
def test_a_block_that_is_freed_and_made_again_takes_no_new_pages():
    """64 MiB are 16,384 pages of 4 KiB, or 32 of 2 MiB where the system gives those."""
    memory.keep_freed_memory.cache_clear()
    build_simulation(small_experiment(1), small_problem())
    assert memory.keep_freed_memory.cache_info().currsize == 1
    if not memory.keep_freed_memory():
        pytest.skip("another allocator, or one that is set otherwise")
    assert min(faults(2**26) for _ in range(3)) < 16


def test_who_has_set_the_allocator_keeps_it_so(monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    assert memory.keep_freed_memory.__wrapped__() is False
