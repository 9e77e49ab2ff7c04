"""exp(x) and exp(x) - 1 of numbers that are not positive, a vector at once.

x = n log 2 + r with |r| <= log(2) / 2, and exp(x) = 2^n (1 + q), q = exp(r) - 1 by its Taylor series, whose next term
is below half a last bit. Functions of the standard library take one number a call, and differ between systems.
"""

from __future__ import annotations

import math
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fedsim.nets.kernels.compiling import part
from fedsim.nets.kernels.tiles import LANE, WIDTH, Emitter

TERMS = {4: 7, 8: 13}
"""Of the series, by the bytes of a number."""
MANTISSA = {4: 23, 8: 52}
LEAST = {4: -87.0, 8: -708.0}
"""Below, exp(x) is taken for 0."""
HIGH = {4: 0.693359375, 8: float.fromhex("0x1.62e42fee00000p-1")}
"""log 2 but for its last bits, so that n times it is exact."""


def _power(less_one: bool) -> Any:
    @intrinsic
    def power(typing: Any, w: Any, place: Any) -> Any:
        """Replace the vector at a place."""

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            emit = Emitter(context, builder, signature.args[0], args[0], WIDTH)
            bits, mantissa = emit.size, MANTISSA[emit.size]
            whole = ir.VectorType(LANE if bits == 4 else ir.IntType(64), emit.lanes)

            def all_of(value: float) -> Any:
                return ir.Constant(emit.vector, [value] * emit.lanes)

            def whole_of(value: int) -> Any:
                return ir.Constant(whole, [value] * emit.lanes)

            x = emit.load(args[1])
            # Added to this, a number is rounded to a whole one, which stands in the last bits.
            magic = all_of(1.5 * 2.0**mantissa)
            shifted = emit.fma(x, all_of(1.0 / math.log(2.0)), magic)
            n = builder.fsub(shifted, magic)
            high = HIGH[bits]
            low = float.fromhex("0x1.a39ef35793c76p-33") if bits == 8 else math.log(2.0) - high
            r = emit.fma(n, all_of(-low), emit.fma(n, all_of(-high), x))
            series = all_of(1.0 / math.factorial(TERMS[bits]))
            for power in range(TERMS[bits] - 1, 0, -1):
                series = emit.fma(series, r, all_of(1.0 / math.factorial(power)))
            q = builder.fmul(series, r)
            exponent = builder.shl(builder.bitcast(shifted, whole), whole_of(mantissa))
            one = (2 ** (8 * bits - mantissa - 2) - 1) << mantissa  # the bits of 1.0
            scale = builder.bitcast(builder.add(exponent, whole_of(one)), emit.vector)
            rest = builder.fsub(scale, all_of(1.0)) if less_one else scale
            found = emit.fma(scale, q, rest)
            small = builder.fcmp_ordered("<", x, all_of(LEAST[bits]))
            emit.store(builder.select(small, all_of(-1.0 if less_one else 0.0), found), args[1])
            return context.get_dummy_value()

        return types.void(w, types.int64), generate

    return power


_exp, _expm1 = _power(False), _power(True)


@part
def exp(x):
    """Replace numbers that are not positive by their exponentials; they fill whole vectors."""
    for k in range(0, len(x), WIDTH // x.itemsize):
        _exp(x, k)


@part
def expm1(x):
    """The same less one, to the last bit where they are small."""
    for k in range(0, len(x), WIDTH // x.itemsize):
        _expm1(x, k)
