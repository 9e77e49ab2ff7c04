"""Codes of sums: n workers send combinations of n parts, and any n - s of them give the sum of all parts.

Worker i sends sum_j B[i, j] g_j with at most s + 1 numbers of B[i] that are not 0. Where any n - s rows of B have the
row of ones in their span, a'B_alive = 1' has a solution, and sum_i a_i l_i over those who are there is sum_j g_j.
Tandon et al. 2017, "Gradient coding", sections 3 and 4.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fedsim.core.errors import InputError

Numbers = NDArray[np.float64]
Normal = Callable[[tuple[int, int]], Numbers]
"""Draws independent standard normal numbers of a shape, such as `numpy.random.default_rng(0).standard_normal`."""
TOLERANCE = 1e-6
"""How far a combination of codes may be from the sum that it stands for."""


def cyclic(checks: Numbers) -> Numbers:
    """B [n, n] of the cyclic code: worker i holds the parts i, i + 1, ..., i + s modulo n.

    checks: H [s, n] with H 1 = 0 and any s columns independent. Row i has B[i, i] = 1 and its other s numbers so that
    H B[i]' = 0: all rows are in the null space of H, which has n - s dimensions and the vector of ones in it.

    InputError: its columns do not go with each other.
    """
    stragglers, workers = checks.shape
    code = np.zeros((workers, workers))
    for worker in range(workers):
        others = (worker + 1 + np.arange(stragglers)) % workers
        code[worker, worker] = 1.0
        try:
            code[worker, others] = np.linalg.solve(checks[:, others], -checks[:, worker])
        except np.linalg.LinAlgError as error:
            remedy = f"the columns {others.tolist()} depend on each other; draw another"
            raise InputError("checks", f"[{stragglers}, {workers}]", remedy) from error
    return code


def drawn(workers: int, stragglers: int, normal: Normal) -> Numbers:
    """B of the cyclic code with normal checks, the last of each row minus the sum of the others; s = 0: the identity.

    InputError: there is nobody left to answer.
    """
    held(workers, stragglers)
    if stragglers == 0:
        return np.eye(workers)
    checks = normal((stragglers, workers)).copy()
    checks[:, -1] = -checks[:, :-1].sum(axis=1)
    return cyclic(checks)


def repetition(workers: int, stragglers: int) -> Numbers:
    """B [n, n] of fractional repetition: groups of s + 1 workers, of whom each holds all s + 1 parts of its group.

    InputError: n is no multiple of s + 1.
    """
    held(workers, stragglers)
    if workers % (stragglers + 1):
        remedy = f"{workers} workers do not divide into groups of {stragglers + 1}; take the cyclic code"
        raise InputError("stragglers", stragglers, remedy)
    groups = np.arange(workers) // (stragglers + 1)
    code: Numbers = np.equal.outer(groups, groups).astype(np.float64)
    return code


def held(workers: int, stragglers: int) -> None:
    """InputError: fewer than none, or all, are to be stragglers."""
    if not 0 <= stragglers < workers:
        raise InputError("stragglers", stragglers, f"of {workers} workers 0 to {workers - 1} may be late")


def decode(code: Numbers, alive: NDArray[np.bool_]) -> Numbers | None:
    """The factors a [n] of what workers have sent, 0 for those who are not there, or None: these do not give the sum.

    code: B [n, n]. alive: who has answered, bool [n]. Of several the shortest a.
    """
    rows = code[alive]
    if not len(rows):
        return None
    ones = np.ones(code.shape[1])
    factors = np.linalg.lstsq(rows.T, ones, rcond=None)[0]
    if np.abs(rows.T @ factors - ones).max() > TOLERANCE:
        return None
    found = np.zeros(len(code))
    found[alive] = factors
    return found
