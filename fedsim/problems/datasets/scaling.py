"""Standardising in double precision, so that what is told apart is told apart afterwards, however large it is."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedsim.core.data_files import Array

EXACT = 2.0**53
"""The largest whole number below which floating-point numbers tell all whole numbers apart."""
EXTREME = 1e100
"""Numbers beyond this, or all below its inverse, have squares that leave the range of floating-point numbers."""


def moderate(largest: Any) -> Array:
    """Powers of two by which columns are multiplied so that their squares are numbers; 1 for all but extreme columns.

    largest: the largest magnitude of each column, [k].
    """
    extreme = (largest >= EXTREME) | ((largest <= 1 / EXTREME) & (largest > 0))
    return np.where(extreme, np.ldexp(1.0, np.minimum(-np.frexp(largest)[1], 1023)), 1.0)


def standardised(x: Array, x_test: Array) -> tuple[Array, Array, dict[str, Any]]:
    """Both, float32, shifted and scaled by the mean and deviation of the training inputs, and these numbers.

    Per feature for tables [n, features], per channel for images [n, channels, ...]. What is constant is only shifted.
    x_test may be empty.
    """
    from sklearn.preprocessing import StandardScaler

    def columns(values: Array) -> Array:
        return np.moveaxis(values, 1, -1).reshape(-1, values.shape[1]).astype(np.float64)

    def shaped(flat: Array, values: Array) -> Array:
        moved = (*values.shape[:1], *values.shape[2:], values.shape[1])
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(np.moveaxis(flat.reshape(moved), -1, 1), np.float32)

    flat = columns(x)
    factor = moderate(np.abs(flat).max(axis=0, initial=0))
    scaler = StandardScaler(copy=False)
    done = scaler.fit_transform(flat * factor)
    done_test = scaler.transform(columns(x_test) * factor) if len(x_test) else columns(x_test)
    told = {"mean": (scaler.mean_ / factor).tolist(), "deviation": (scaler.scale_ / factor).tolist()}
    return shaped(done, x), shaped(done_test, x_test), told
