"""Correlated noise: lower triangular C with b bands and unit columns, of which noise is C^-1 Z.

Prefix sums are A = B C with A the lower triangle of ones. The released rows G + C^-1 Z have the prefix sums
A G + B Z, and whoever takes part at most once in any b rounds meets columns of C that are orthogonal: k times add up to
a sensitivity of sqrt(k). Choquette-Choo et al. 2023. It is the columns that have norm 1, and not the rows: of C' C a
lower triangular C is the reversed Cholesky factor.
"""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
Places = NDArray[np.int64]


def toeplitz(size: int, bands: int) -> Matrix:
    """Bands 1, 1/2, 3/8, ... (c_k = c_{k-1} (2k - 1) / (2k)) below the diagonal, each column then of norm 1."""
    band = np.cumprod([1.0] + [(2 * k - 1) / (2 * k) for k in range(1, min(bands, size))])
    found = sum(np.diag(np.full(size - k, own), -k) for k, own in enumerate(band))
    return cast("Matrix", found / np.linalg.norm(found, axis=0))


def optimal(size: int, bands: int) -> Matrix:
    """The C for which |A C^-1|^2 is least, found by L-BFGS over its entries from `toeplitz` on.

    With E = A C^-1 the gradient is -2 E' E C^-T, of which a column of norm 1 takes what is orthogonal to it. The same
    minimum as that of tr(A' A X^-1) over X = C' C of unit diagonal and b bands.
    """
    from scipy.optimize import minimize

    rows, columns = np.nonzero(np.tri(size) - np.tri(size, k=-bands))

    def error(entries: Matrix) -> tuple[float, Matrix]:
        factor, norms = _unit(_filled(size, rows, columns, entries))
        inverse = np.linalg.inv(factor)
        summed = np.cumsum(inverse, axis=0)
        gradient = -2.0 * (summed.T @ summed) @ inverse.T
        along = gradient - factor * np.sum(factor * gradient, axis=0)
        return float(np.sum(summed**2)), (along / norms)[rows, columns]

    start = toeplitz(size, bands)[rows, columns]
    found = minimize(error, start, jac=True, method="L-BFGS-B", options={"maxiter": 2000, "gtol": 1e-8, "ftol": 1e-12})
    factor, _ = _unit(_filled(size, rows, columns, found.x))
    return factor * np.sign(np.diag(factor))


def _filled(size: int, rows: Places, columns: Places, entries: Matrix) -> Matrix:
    factor = np.zeros((size, size))
    factor[rows, columns] = entries
    return factor


def _unit(factor: Matrix) -> tuple[Matrix, Matrix]:
    """A matrix with its columns divided by their norms, and those."""
    norms = np.linalg.norm(factor, axis=0)
    return factor / norms, norms


def squared_error(factor: Matrix) -> float:
    """|A C^-1|^2, the sum of the variances of all prefix sums for noise of variance 1."""
    ones = np.tril(np.ones_like(factor))
    return float(np.sum(np.linalg.solve(factor.T, ones.T) ** 2))
