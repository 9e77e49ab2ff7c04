"""What is the same however clients are executed; see `fedsim.testing.checks`."""

from __future__ import annotations

from importlib.util import find_spec
from itertools import cycle
from typing import Any

import torch

from fedsim.client.training import LocalTraining
from fedsim.testing.rounds import engine_of
from fedsim.testing.subject import Subject, final

DOUBLE = 1e-4
"""Of the tolerance of a subject, what it is in double precision."""


def _precisions(subject: Subject) -> list[tuple[torch.dtype, dict[str, Any], float]]:
    """In which precision runs are compared, with what of their tables changed, and how far apart they may end."""
    return [(torch.float64, {}, DOUBLE * subject.tolerance), (torch.float32, {"rounds": 1}, subject.tolerance)]


def loop_equals_stacked(subject: Subject) -> None:
    """Executed one by one, clients come to what they come to together."""
    for dtype, rounds, tolerance in _precisions(subject):
        stacked = subject.end(dtype, **rounds)
        simulation = subject.simulation(dtype, engine={"executor": "loop"}, **rounds)
        executor = engine_of(simulation).executor
        assert executor.name == "loop"
        executor.memory = executor._row_bytes  # a cohort each, where it would take several clients
        loop = final(simulation)
        bound, found = tolerance * float(loop.abs().max()), float((stacked - loop).abs().max())
        assert found <= bound, f"the loop and the stack differ by {found:.2g}, which is more than {bound:.2g} ({dtype})"


def compiled_equals_stacked(subject: Subject) -> None:
    """Where local training is one compiled loop a client, or values are, clients come to the same, however many.

    Of other clients, on functions, and where numba is not installed, nothing is compiled.
    """
    client = subject.part(("client",))
    compiles = isinstance(client, LocalTraining) or (client.values_only and not subject.values_only)
    if not compiles or find_spec("numba") is None:
        return
    compiled: dict[str, Any] = {"engine": {"executor": "fused"}}
    for dtype, rounds, tolerance in _precisions(subject):
        stacked = subject.end(dtype, **rounds)
        found = final(subject.simulation(dtype, **compiled, **rounds))
        bound, away = tolerance * float(stacked.abs().max()), float((found - stacked).abs().max())
        assert away <= bound, f"compiled, it differs by {away:.2g}, which is more than {bound:.2g} ({dtype})"
        parts = subject.simulation(dtype, **compiled, **rounds)
        executor = engine_of(parts).executor
        assert executor.name == "fused"
        executor.memory = 2 * executor._row_bytes
        assert torch.equal(final(parts), found), "compiled, cohorts of 2 end elsewhere than those of any size"


def the_size_of_chunks_and_the_cores_change_no_bit(subject: Subject) -> None:
    """How many clients are stacked at once, and on how many cores, is of no consequence."""
    whole, parts = subject.simulation(torch.float32), subject.simulation(torch.float32)
    engine_of(whole).executor.cores = 1
    executor, rows = engine_of(parts).executor, iter(parts)
    for chunk in cycle((1, 3)):  # each alone, and, with what is remembered, in company that is not everybody's
        executor.memory = chunk * executor._row_bytes
        assert executor.chunk == chunk
        if next(rows, None) is None:
            break
    assert torch.equal(final(parts), final(whole)), "cohorts of 1 and of 3 in turn end elsewhere than those of any size"
